"""What a segmenter computes with: U-Net and DeepLabV3+ on pretrained trunks, and how they are built again.

Shapes: B images, H and W size of the frame, C channels of the decoder, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from shared.export import Endpoint
from shared.pretrained import resolve
from shared.runtime import current_runtime, float32_policy, seeded
from vision.annotations import IGNORED
from vision.frame import Frame, frame_image, inner_size
from vision.models.backbones import PretrainedClassifier, load_pretrained_classifier
from vision.models.hub_segmenter import FAMILY as HUB_SEGMENTER
from vision.models.hub_segmenter import (
    HubSegmenterPreset,
    built_hub_segmenter,
    is_hub_segmenter,
    load_hub_segmenter,
    move_segmenter,
)
from vision.models.normalization import FusedBatchNormalization
from vision.models.pyramid import convolved, feature_trunk, new_feature_trunk
from vision.models.segmentation_loss import segmentation_loss
from vision.preprocessing import decode_pixels
from vision.presets import PRESETS

if TYPE_CHECKING:
    from vision.segmentation import ImageSegmenterConfig

# Images of a network that is trained from scratch are centred on mid-grey; 63.75 brings typical photographs to about
# unit variance.
_CENTRE, _SPREAD = 127.5, 63.75
# Dilations of the pyramid pooling for features of a sixteenth of the resolution (Chen et al. 2017, arXiv:1706.05587,
# section 3.3).
_DILATIONS = (6, 12, 18)


@dataclass(frozen=True)
class SegmenterNetwork:
    """`model` takes images (B, H, W, 3), 0..255, and gives logits (B, H, W, K); `trunk` is what may be pretrained."""

    model: keras.Model
    trunk: keras.Model
    architecture: dict[str, Any]
    frame: Frame

    def loss(
        self,
        batch: Mapping[str, tf.Tensor],
        *,
        region: str,
        region_weight: float,
        class_weights: np.ndarray | None,
        label_smoothing: float,
    ) -> tf.Tensor:
        """Mean loss of a batch: `images` uint8 (B, H, W, 3), `masks` uint8 (B, H, W), IGNORED where nothing counts."""
        images = tf.ensure_shape(batch["images"], (None, *self.frame.shape, 3))
        return segmentation_loss(
            self.model(tf.cast(images, tf.float32), training=True),
            tf.cast(batch["masks"], tf.int32),
            region=region,
            region_weight=region_weight,
            class_weights=class_weights,
            label_smoothing=label_smoothing,
        )

    def probabilities(self, images: tf.Tensor, config: ImageSegmenterConfig) -> tf.Tensor:
        """Images (B, H, W, 3), any numeric type -> float32 (B, H, W, K)."""
        images = tf.cast(images, tf.float32)
        if not config.average_mirrored:
            return self._probabilities_of_view(images)
        mirrored = self._probabilities_of_view(tf.reverse(images, axis=[2]))
        return (self._probabilities_of_view(images) + tf.reverse(mirrored, axis=[2])) / 2

    def _probabilities_of_view(self, images: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax(tf.cast(self.model(images, training=False), tf.float32))


def scratch_segmenter(config: ImageSegmenterConfig, num_classes: int) -> SegmenterNetwork:
    """A segmenter on a small residual trunk, with initial weights drawn from `config.seed`."""
    architecture = {"family": "residual", "width": config.width, "depth": config.depth}
    return rebuilt_segmenter(architecture, _frame(config, (_CENTRE,) * 3, (_SPREAD,) * 3), config, num_classes)


Preset: TypeAlias = PretrainedClassifier | HubSegmenterPreset


def load_segmenter_preset(ref: str | Path, *, seed: int) -> Preset:
    """What a segmenter can begin with: a convolutional classifier, or a segmenter of keras-hub.

    Raises:
        FileNotFoundError, ValueError: as `shared.pretrained.resolve` and the loaders do.
    """
    source = resolve(ref, PRESETS)
    with current_runtime().scope(), seeded(seed):
        return load_hub_segmenter(source) if is_hub_segmenter(source) else load_pretrained_classifier(source, 256)


def pretrained_segmenter(
    preset: Preset, config: ImageSegmenterConfig, num_classes: int, *, keep_head: bool
) -> SegmenterNetwork:
    """A segmenter that begins with the preset's weights: a new one on a classifier's trunk, or one of keras-hub."""
    if isinstance(preset, HubSegmenterPreset):
        frame = preset.frame(config)
        network = rebuilt_segmenter(preset.architecture, frame, config, num_classes)
        move_segmenter(preset, network.model, keep_head=keep_head)
        return network
    with current_runtime().scope(), seeded(config.seed):
        trunk, strides = feature_trunk(preset.trunk, preset.architecture["family"])
    own = preset.preprocessing
    return _composed(trunk, strides, preset.architecture, _frame(config, own.mean, own.std), config, num_classes)


def rebuilt_segmenter(
    architecture: dict[str, Any], frame: Frame, config: ImageSegmenterConfig, num_classes: int
) -> SegmenterNetwork:
    """The network that `architecture` describes, with weights drawn from `config.seed`."""
    if architecture["family"] == HUB_SEGMENTER:
        with current_runtime().scope(), seeded(config.seed):
            model, trunk = built_hub_segmenter(architecture, frame, num_classes)
        return SegmenterNetwork(model, trunk, architecture, frame)
    with current_runtime().scope(), seeded(config.seed):
        trunk, strides = new_feature_trunk(architecture)
    return _composed(trunk, strides, architecture, frame, config, num_classes)


def _frame(config: ImageSegmenterConfig, mean: tuple[float, ...], std: tuple[float, ...]) -> Frame:
    return Frame(height=config.image_height, width=config.image_width, mean=mean, std=std, stretch=config.stretch)


def _composed(
    trunk: keras.Model,
    strides: tuple[int, ...],
    architecture: dict[str, Any],
    frame: Frame,
    config: ImageSegmenterConfig,
    num_classes: int,
) -> SegmenterNetwork:
    mean, std = np.asarray(frame.mean), np.asarray(frame.std)
    with current_runtime().scope(), seeded(config.seed):
        images = keras.Input((*frame.shape, 3), name="images")
        # In float32: 8-bit values would lose their last bit in bfloat16.
        normalise = layers.Rescaling((1 / std).tolist(), (-mean / std).tolist(), dtype="float32", name="normalised")
        normalised = normalise(images)
        features = dict(zip(strides, trunk(normalised), strict=True))
        if config.decoder == "unet":
            # The image itself is the map of stride 1.
            stages = {s: x for s, x in {1: normalised, **features}.items() if s >= config.decoder_stride}
            stride, x = _unet(stages, config.decoder_channels)
        else:
            stride, x = _deeplab(features, config.decoder_channels)
        if config.dropout:
            x = layers.Dropout(config.dropout, name="dropout")(x)
        x = layers.Conv2D(num_classes, 1, dtype="float32", name="logits")(x)
        if stride > 1:
            x = layers.UpSampling2D(stride, interpolation="bilinear", dtype="float32", name="full_size")(x)
    return SegmenterNetwork(keras.Model(images, x, name="image_segmenter"), trunk, architecture, frame)


def _unet(features: Mapping[int, keras.KerasTensor], channels: int) -> tuple[int, keras.KerasTensor]:
    """(stride, map): from the lowest resolution up, each step joined with the trunk's map of its resolution.

    Ronneberger et al. 2015 (arXiv:1505.04597) with a pretrained contracting path and normalised convolutions of equal
    padding; it ends at the highest resolution that there is a map of.
    """
    strides = sorted(features, reverse=True)
    x = features[strides[0]]
    for level, stride in enumerate(strides[1:]):
        # 2C channels at the two lowest resolutions, then C, then C / 2.
        width = max(8, round(channels * (2.0 if level < 2 else 0.5 ** (level - 2))))
        x = layers.UpSampling2D(strides[level] // stride, name=f"up{stride}")(x)
        x = layers.Concatenate(name=f"join{stride}")([x, features[stride]])
        x = convolved(x, width, f"decoder{stride}_1")
        x = convolved(x, width, f"decoder{stride}_2")
    return strides[-1], x


def _deeplab(features: Mapping[int, keras.KerasTensor], channels: int) -> tuple[int, keras.KerasTensor]:
    """(stride, map): dilated convolutions side by side on the last two resolutions, joined with a finer map.

    Chen et al. 2018 (arXiv:1802.02611, figure 2). Where there the trunk itself is dilated, here its last map is
    enlarged and joined with the one before, so that trunks stay as they were trained.
    """
    fine, before, last = (sorted(features)[place] for place in (1, -2, -1))
    enlarged = layers.UpSampling2D(last // before, name="up")(features[last])
    x = layers.Concatenate(name="deep")([enlarged, features[before]])
    x = convolved(x, 2 * channels, "reduced", kernel=1)
    parts = [convolved(x, channels, "pool0", kernel=1)]
    for rate in _DILATIONS:
        dilated = layers.Conv2D(
            channels, 3, padding="same", dilation_rate=rate, use_bias=False, name=f"pool{rate}_conv"
        )(x)
        dilated = FusedBatchNormalization(momentum=0.97, epsilon=1e-3, name=f"pool{rate}_norm")(dilated)
        parts.append(layers.ReLU(name=f"pool{rate}_relu")(dilated))
    whole = layers.GlobalAveragePooling2D(keepdims=True, name="whole")(x)
    whole = layers.Conv2D(channels, 1, activation="relu", name="whole_conv")(whole)
    height, width = x.shape[1:3]
    parts.append(layers.UpSampling2D((height, width), name="whole_up")(whole))
    x = convolved(layers.Concatenate(name="pools")(parts), 2 * channels, "pooled", kernel=1)
    x = layers.UpSampling2D(before // fine, interpolation="bilinear", name="up_fine")(x)
    low = convolved(features[fine], max(8, channels // 2), "fine", kernel=1)
    x = convolved(layers.Concatenate(name="join")([x, low]), 2 * channels, "decoder1")
    return fine, convolved(x, 2 * channels, "decoder2")


def restored(probabilities: tf.Tensor, shape: tf.Tensor, frame: Frame) -> tf.Tensor:
    """Probabilities in the frame (H, W, K) -> class numbers uint8 of an image of `shape` (height, width, ...)."""
    inner = inner_size(shape, frame)
    seen = probabilities[: inner[0], : inner[1]]
    resized = tf.image.resize(seen, tf.cast(shape[:2], tf.int32), method="bilinear")
    return tf.cast(tf.argmax(resized, axis=-1), tf.uint8)


def probability_function(network: SegmenterNetwork, config: ImageSegmenterConfig) -> Callable[[np.ndarray], np.ndarray]:
    """A compiled `probabilities` for NumPy batches; batches are padded to powers of two, so few shapes are traced."""
    compiled = tf.function(
        lambda images: network.probabilities(images, config), autograph=False, jit_compile=current_runtime().xla
    )

    def predict(images: np.ndarray) -> np.ndarray:
        count = len(images)
        padded = 1 << (count - 1).bit_length()
        if padded > count:
            images = np.concatenate([images, np.repeat(images[-1:], padded - count, axis=0)])
        result: np.ndarray = compiled(tf.convert_to_tensor(images)).numpy()[:count]
        return result

    return predict


def restoring_function(frame: Frame) -> Callable[[np.ndarray, tuple[int, int]], np.ndarray]:
    """A compiled `restored` for one image in NumPy."""
    signature = [tf.TensorSpec((*frame.shape, None), tf.float32), tf.TensorSpec((2,), tf.int32)]
    compiled = tf.function(lambda p, shape: restored(p, shape, frame), input_signature=signature, autograph=False)

    def restore(probabilities: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        with tf.device("cpu"):
            mask: np.ndarray = compiled(tf.convert_to_tensor(probabilities), tf.constant(shape, tf.int32)).numpy()
        return mask

    return restore


def float32_twin(network: SegmenterNetwork, config: ImageSegmenterConfig, num_classes: int) -> SegmenterNetwork:
    """The same network with the same weights, computing in float32: what converters can take."""
    if keras.config.dtype_policy().name == "float32":
        return network
    with float32_policy():
        twin = rebuilt_segmenter(network.architecture, network.frame, config, num_classes)
    twin.model.set_weights(network.model.get_weights())
    return twin


def serving_endpoints(
    network: SegmenterNetwork,
    config: ImageSegmenterConfig,
    *,
    encoded: Sequence[bytes],
    expected: np.ndarray,
    masks: Sequence[np.ndarray],
) -> dict[str, Endpoint]:
    """What a segmenter serves.

    `serve` takes encoded images (B,) and gives class numbers uint8 (B, h, w) in pixels of the images after EXIF
    orientation, h and w those of the largest, 255 beyond a smaller one. `serve_images` takes images of the frame
    (B, H, W, 3) uint8 and gives probabilities (B, H, W, K). Where pixels keep their size (`view="crop"`) there is
    `serve_images` alone: windows are the caller's.
    `expected` and `masks` are what `predict` computes for `encoded`.
    """
    frame = network.frame
    pictures = [decode_pixels(tf.constant(item)) for item in encoded]

    def from_encoded(data: tf.Tensor) -> tf.Tensor:
        spec = tf.RaggedTensorSpec((None, None), tf.uint8, ragged_rank=1)

        def answer(item: tf.Tensor) -> tf.RaggedTensor:
            pixels = decode_pixels(item)
            found = network.probabilities(frame_image(pixels, frame)[None], config)[0]
            return tf.RaggedTensor.from_tensor(restored(found, tf.shape(pixels)[:2], frame))

        return tf.map_fn(answer, data, fn_output_signature=spec).to_tensor(default_value=IGNORED)

    windows = Endpoint(
        function=lambda images: network.probabilities(images, config),
        signature=(tf.TensorSpec((None, *frame.shape, 3), tf.uint8, name="images"),),
        example=(np.stack([frame_image(picture, frame).numpy() for picture in pictures]),),
        expected=expected,
    )
    if config.view == "crop":
        return {"serve_images": windows}
    whole = Endpoint(
        function=from_encoded,
        signature=(tf.TensorSpec((None,), tf.string, name="encoded_images"),),
        example=(np.asarray(encoded, dtype=object),),
        expected=_together(masks),
    )
    return {"serve": whole, "serve_images": windows}


def _together(masks: Sequence[np.ndarray]) -> np.ndarray:
    height, width = (max(mask.shape[axis] for mask in masks) for axis in range(2))
    whole = np.full((len(masks), height, width), IGNORED, np.uint8)
    for number, mask in enumerate(masks):
        whole[number, : mask.shape[0], : mask.shape[1]] = mask
    return whole
