"""What a detector computes with: its network, its loss and its answers, and how they are built again.

Shapes: B images, H and W size of the frame, A cells, K classes, M answers, N objects.
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
from vision.boxes import MIN_SIDE
from vision.frame import Frame, frame_image, inner_size
from vision.models.backbones import PretrainedClassifier, load_pretrained_classifier
from vision.models.d_fine import FAMILY as D_FINE
from vision.models.d_fine import DFineNetwork, DFinePreset, is_d_fine, load_d_fine, pretrained_d_fine, rebuilt_d_fine
from vision.models.detection_loss import detection_loss
from vision.models.light_detector import cells, decoded, detector_network
from vision.models.pyramid import feature_trunk, new_feature_trunk
from vision.models.retinanet import FAMILY as RETINANET
from vision.models.retinanet import (
    RetinaNetNetwork,
    RetinaNetPreset,
    is_retinanet,
    load_retinanet,
    pretrained_retinanet,
    rebuilt_retinanet,
)
from vision.models.suppression import best_detections
from vision.preprocessing import decode_pixels
from vision.presets import PRESETS

if TYPE_CHECKING:
    from vision.detection import ObjectDetectorConfig

# Resolutions of the feature pyramid.
_LEVELS = 3
# Images of a network that is trained from scratch are centred on mid-grey; 63.75 brings typical photographs to about
# unit variance.
_CENTRE, _SPREAD = 127.5, 63.75


@dataclass(frozen=True)
class DetectorNetwork:
    """`model` takes images (B, H, W, 3), 0..255, and gives (B, A, 4 + K); `trunk` is the part that may be pretrained.

    `strides` are those of the pyramid's levels, `architecture` is the recipe of the trunk.
    """

    model: keras.Model
    trunk: keras.Model
    architecture: dict[str, Any]
    strides: tuple[int, ...]
    frame: Frame

    def loss(self, batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Mean loss of a batch: `images` uint8, `boxes` (B, N, 4), `classes` (B, N), -1 for none, `crowd` (B, N)."""
        images = tf.ensure_shape(batch["images"], (None, None, None, 3))
        centres, sizes = self._cells(images)
        predicted, logits = decoded(self.model(tf.cast(images, tf.float32), training=True), centres, sizes)
        boxes = tf.ensure_shape(batch["boxes"], (None, None, 4))
        return detection_loss(predicted, logits, centres, sizes, (boxes, batch["classes"], batch["crowd"]))

    def answers(self, images: tf.Tensor, config: ObjectDetectorConfig) -> tf.Tensor:
        """Images (B, H, W, 3), any numeric type -> (B, M, 6): xyxy in pixels of the frame, score, class number."""
        centres, sizes = self._cells(images)
        boxes, logits = decoded(self.model(tf.cast(images, tf.float32), training=False), centres, sizes)
        return best_detections(
            boxes,
            tf.sigmoid(logits),
            iou=config.nms_iou,
            max_detections=config.max_detections,
            voting=config.box_voting,
        )

    def _cells(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        static, dynamic = images.shape[1:3], tf.shape(images)
        height, width = (dynamic[axis + 1] if static[axis] is None else static[axis] for axis in range(2))
        return cells(height, width, self.strides)


Network: TypeAlias = DetectorNetwork | RetinaNetNetwork | DFineNetwork
Preset: TypeAlias = PretrainedClassifier | RetinaNetPreset | DFinePreset


def scratch_detector(config: ObjectDetectorConfig, num_classes: int) -> DetectorNetwork:
    """A detector on a small residual trunk, with initial weights drawn from `config.seed`."""
    architecture = {"family": "residual", "width": config.width, "depth": config.depth}
    with current_runtime().scope(), seeded(config.seed):
        trunk, strides = new_feature_trunk(architecture)
    frame = _frame(config, (_CENTRE,) * 3, (_SPREAD,) * 3)
    return _composed(trunk, strides, architecture, frame, config, num_classes)


def load_detector_preset(ref: str | Path, *, seed: int) -> Preset:
    """What a detector can begin with: a convolutional classifier, or a detector of keras-hub.

    Raises:
        FileNotFoundError, ValueError: as `shared.pretrained.resolve` and the loaders do.
    """
    source = resolve(ref, PRESETS)
    # The trunk is trained too: its variables belong to all devices, and its dropout seeds follow the config's.
    with current_runtime().scope(), seeded(seed):
        if is_retinanet(source):
            return load_retinanet(source)
        return load_d_fine(source) if is_d_fine(source) else load_pretrained_classifier(source, 256)


def pretrained_detector(preset: Preset, config: ObjectDetectorConfig, num_classes: int, *, keep_head: bool) -> Network:
    """A detector that begins with the preset's weights: a new one on a classifier's trunk, or one of keras-hub."""
    if isinstance(preset, RetinaNetPreset):
        return pretrained_retinanet(preset, config, num_classes, keep_head=keep_head)
    if isinstance(preset, DFinePreset):
        return pretrained_d_fine(preset, config, num_classes, keep_head=keep_head)
    with current_runtime().scope(), seeded(config.seed):
        trunk, strides = feature_trunk(preset.trunk, preset.architecture["family"])
    own = preset.preprocessing
    frame = _frame(config, own.mean, own.std)
    return _composed(trunk, strides, preset.architecture, frame, config, num_classes)


def rebuilt_detector(
    architecture: dict[str, Any], frame: Frame, config: ObjectDetectorConfig, num_classes: int
) -> Network:
    """The network that `architecture` describes, with weights drawn from `config.seed`."""
    if architecture["family"] == RETINANET:
        return rebuilt_retinanet(architecture, frame, config, num_classes)
    if architecture["family"] == D_FINE:
        return rebuilt_d_fine(architecture, frame, config, num_classes)
    with current_runtime().scope(), seeded(config.seed):
        trunk, strides = new_feature_trunk(architecture)
    return _composed(trunk, strides, architecture, frame, config, num_classes)


def _frame(config: ObjectDetectorConfig, mean: tuple[float, ...], std: tuple[float, ...]) -> Frame:
    return Frame(height=config.image_height, width=config.image_width, mean=mean, std=std)


def _composed(
    trunk: keras.Model,
    strides: tuple[int, ...],
    architecture: dict[str, Any],
    frame: Frame,
    config: ObjectDetectorConfig,
    num_classes: int,
) -> DetectorNetwork:
    mean, std = np.asarray(frame.mean), np.asarray(frame.std)
    with current_runtime().scope(), seeded(config.seed):
        # In float32: 8-bit values would lose their last bit in bfloat16.
        normalisation = layers.Rescaling((1 / std).tolist(), (-mean / std).tolist(), dtype="float32", name="normalised")
        model = detector_network(
            trunk,
            _LEVELS,
            num_classes,
            channels=config.pyramid_channels,
            depth=config.head_depth,
            normalisation=normalisation,
        )
    return DetectorNetwork(model, trunk, architecture, strides[-_LEVELS:], frame)


def answer_function(network: Network, config: ObjectDetectorConfig) -> Callable[[np.ndarray], np.ndarray]:
    """A compiled `answers` for NumPy batches; batches are padded to powers of two, so few shapes are traced."""
    compiled = tf.function(
        lambda images: network.answers(images, config), autograph=False, jit_compile=current_runtime().xla
    )

    def predict(images: np.ndarray) -> np.ndarray:
        count = len(images)
        padded = 1 << (count - 1).bit_length()
        if padded > count:
            images = np.concatenate([images, np.repeat(images[-1:], padded - count, axis=0)])
        result: np.ndarray = compiled(tf.convert_to_tensor(images)).numpy()[:count]
        return result

    return predict


def float32_twin(network: Network, config: ObjectDetectorConfig, num_classes: int) -> Network:
    """The same network with the same weights, computing in float32: what converters can take."""
    if keras.config.dtype_policy().name == "float32":
        return network
    with float32_policy():
        twin = rebuilt_detector(network.architecture, network.frame, config, num_classes)
    twin.model.set_weights(network.model.get_weights())
    return twin


def serving_endpoints(
    network: Network, config: ObjectDetectorConfig, *, encoded: Sequence[bytes], expected: np.ndarray
) -> dict[str, Endpoint]:
    """What a detector serves; non-maximum suppression is inside.

    `serve` takes encoded images (B,) and answers in pixels of each image after EXIF orientation, clipped to it;
    `serve_images` takes images of the frame (B, H, W, 3) uint8 and answers in its pixels. Both give (B, M, 6): xyxy,
    score, class number, by falling score; rows that are left over have score 0.
    `expected` is what the network answers for `encoded`, in pixels of the frame.
    """
    frame = network.frame
    pictures = [decode_pixels(tf.constant(item)) for item in encoded]
    sizes = tf.stack([tf.shape(picture)[:2] for picture in pictures])
    scales = tf.stack([_back(size, frame) for size in sizes])

    def from_images(images: tf.Tensor) -> tf.Tensor:
        return network.answers(images, config)

    def from_encoded(data: tf.Tensor) -> tf.Tensor:
        spec = (tf.TensorSpec((*frame.shape, 3), tf.uint8), tf.TensorSpec((6,), tf.float32), tf.TensorSpec(2, tf.int32))
        images, back, size = tf.map_fn(_framed_with_size(frame), data, fn_output_signature=spec)
        return _within(from_images(images) * back[:, None, :], size)

    return {
        "serve": Endpoint(
            function=from_encoded,
            signature=(tf.TensorSpec((None,), tf.string, name="encoded_images"),),
            example=(np.asarray(encoded, dtype=object),),
            expected=_within(expected * scales[:, None, :], sizes).numpy(),
        ),
        "serve_images": Endpoint(
            function=from_images,
            signature=(tf.TensorSpec((None, *frame.shape, 3), tf.uint8, name="images"),),
            example=(np.stack([frame_image(picture, frame).numpy() for picture in pictures]),),
            expected=expected,
        ),
    }


def _framed_with_size(frame: Frame) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
    def prepare(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        pixels = decode_pixels(data)
        size = tf.shape(pixels)[:2]
        return frame_image(pixels, frame), _back(size, frame), size

    return prepare


def _back(shape: tf.Tensor, frame: Frame) -> tf.Tensor:
    """Factors (6,) float32 on an answer in pixels of the frame that give it in those of an image of `shape`."""
    y, x = tf.unstack(tf.cast(shape[:2], tf.float32) / tf.cast(inner_size(shape, frame), tf.float32))
    return tf.stack([x, y, x, y, 1.0, 1.0])


def _within(answers: tf.Tensor, sizes: tf.Tensor) -> tf.Tensor:
    """Answers (B, M, 6) clipped to images of `sizes` (B, 2), height and width; what has no area there is left over."""
    limits = tf.cast(tf.gather(sizes, [1, 0, 1, 0], axis=1), tf.float32)[:, None, :]
    boxes = tf.clip_by_value(answers[..., :4], 0.0, limits)
    kept = tf.reduce_all(boxes[..., 2:] - boxes[..., :2] >= MIN_SIDE, axis=-1) & (answers[..., 4] > 0)
    answers = tf.where(kept[..., None], tf.concat([boxes, answers[..., 4:]], axis=-1), 0.0)
    order = tf.argsort(answers[..., 4], axis=-1, direction="DESCENDING", stable=True)
    return tf.gather(answers, order, batch_dims=1)
