"""The classifier's network: normalisation -> trunk -> head, and the functions around it.

Shapes: B images, S image size, C channels, D features, K labels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from shared.export import Endpoint
from shared.pretrained import require_safe_config
from shared.runtime import current_runtime, float32_policy, seeded
from vision.models.residual import residual_network
from vision.preprocessing import Preprocessing, decode_and_prepare

if TYPE_CHECKING:
    from vision.classification import ImageClassifierConfig
    from vision.models.backbones import PretrainedClassifier

# Windows of a grid head in each direction.
_GRID = 3

# Images trained from scratch are centred on mid-grey; 63.75 brings typical photographs to about unit variance.
_CENTRE, _SPREAD = 127.5, 63.75


@dataclass(frozen=True)
class ClassifierNetwork:
    """Trunk (B, S, S, C) normalised -> (B, h, w, D), head -> (B, K), and how to build them again."""

    trunk: keras.Model
    head: keras.Model | None
    model: keras.Model | None
    architecture: dict[str, Any]
    preprocessing: Preprocessing

    def with_new_head(self, config: ImageClassifierConfig, num_labels: int) -> ClassifierNetwork:
        """The same trunk under a new, untrained head."""
        with current_runtime().scope(), seeded(config.seed):
            head = _new_head(config.pooling, self.trunk, num_labels, dropout=config.dropout)
        return _composed(self.trunk, head, self.architecture | {"head": config.pooling}, self.preprocessing, config)


def residual_classifier(config: ImageClassifierConfig, num_labels: int) -> ClassifierNetwork:
    """A residual network with initial weights drawn from `config.seed`."""
    architecture = {"family": "residual", "width": config.width, "depth": config.depth}
    preprocessing = Preprocessing(
        image_size=config.image_size,
        resize=config.resize,
        mean=(_CENTRE,) * config.channels,
        std=(_SPREAD,) * config.channels,
    )
    return rebuilt_network(architecture | {"head": config.pooling}, preprocessing, config, num_labels)


def rebuilt_network(
    architecture: dict[str, Any], preprocessing: Preprocessing, config: ImageClassifierConfig, num_labels: int
) -> ClassifierNetwork:
    """The network that `architecture` describes, with weights drawn from `config.seed`."""
    with current_runtime().scope(), seeded(config.seed):
        trunk = _trunk(architecture, config)
        if isinstance(architecture["head"], str):
            head = _new_head(architecture["head"], trunk, num_labels, dropout=config.dropout)
        else:
            require_safe_config(architecture["head"], "the saved head")
            head = keras.Model.from_config(architecture["head"])
    return _composed(trunk, head, architecture, preprocessing, config)


def pretrained_network(
    preset: PretrainedClassifier, config: ImageClassifierConfig, *, keep_head: bool
) -> ClassifierNetwork:
    """The preset's trunk, with its own head or none yet."""
    preprocessing = dataclasses.replace(preset.preprocessing, image_size=config.image_size, resize=config.resize)
    if keep_head:
        assert preset.head is not None
        architecture = preset.architecture | {"head": preset.head.get_config()}
        return _composed(preset.trunk, preset.head, architecture, preprocessing, config)
    network = ClassifierNetwork(preset.trunk, None, None, preset.architecture, preprocessing)
    return network.with_new_head(config, len(config.labels)) if config.labels else network


def _new_head(pooling: str, trunk: keras.Model, num_labels: int, *, dropout: float) -> keras.Model:
    if pooling == "grid":
        return grid_head(trunk.output_shape[1:], num_labels, dropout=dropout)
    return pooled_head(trunk.output_shape[-1], num_labels, dropout=dropout)


def pooled_head(num_features: int, num_labels: int, *, dropout: float) -> keras.Model:
    """(B, h, w, D) -> (B, K): global average pooling, dropout, a dense layer. Logits are float32 in any precision."""
    features = keras.Input((None, None, num_features))
    return _head(features, layers.GlobalAveragePooling2D()(features), num_labels, dropout)


def grid_head(feature_shape: tuple[int, int, int], num_labels: int, *, dropout: float) -> keras.Model:
    """As `pooled_head`, but with averages over 3 x 3 windows, so that the answer depends on where a feature is.

    For centred images of one object, such as scanned digits or catalogue pictures: they train in fewer epochs.
    """
    features = keras.Input(feature_shape)
    strides = [max(1, size // _GRID) for size in feature_shape[:2]]
    windows = [size - (_GRID - 1) * stride for size, stride in zip(feature_shape[:2], strides, strict=True)]
    if min(windows) < 1:
        raise ValueError(f"A grid of {_GRID} x {_GRID} needs larger features than {feature_shape[:2]}: enlarge images.")
    x = layers.Flatten()(layers.AveragePooling2D(windows, strides)(features))
    return _head(features, x, num_labels, dropout)


def _head(features: keras.KerasTensor, x: keras.KerasTensor, num_labels: int, dropout: float) -> keras.Model:
    if dropout:
        x = layers.Dropout(dropout)(x)
    return keras.Model(features, layers.Dense(num_labels, dtype="float32", name="logits")(x), name="head")


def _trunk(architecture: dict[str, Any], config: ImageClassifierConfig) -> keras.Model:
    if architecture["family"] == "residual":
        width, depth = architecture["width"], architecture["depth"]
        return residual_network(config.image_size, config.channels, width=width, depth=depth)
    from vision.models.backbones import build_trunk

    return build_trunk(architecture, config.image_size)


def _composed(
    trunk: keras.Model,
    head: keras.Model,
    architecture: dict[str, Any],
    preprocessing: Preprocessing,
    config: ImageClassifierConfig,
) -> ClassifierNetwork:
    size, channels = config.image_size, config.channels
    with current_runtime().scope():
        images = keras.Input((size, size, channels), name="images")
        normalised = _normalisation(preprocessing)(images)
        model = keras.Model(images, head(trunk(normalised)), name="image_classifier")
    return ClassifierNetwork(trunk, head, model, architecture, preprocessing)


def _normalisation(preprocessing: Preprocessing) -> keras.layers.Layer:
    """(x - mean) / std per channel, in float32: 8-bit values would lose their last bit in bfloat16."""
    mean, std = np.asarray(preprocessing.mean), np.asarray(preprocessing.std)
    return layers.Rescaling((1 / std).tolist(), (-mean / std).tolist(), dtype="float32", name="normalisation")


def probabilities(model: keras.Model, images: tf.Tensor, config: ImageClassifierConfig) -> tf.Tensor:
    """Images (B, S, S, C), any numeric type -> float32 probabilities (B, K)."""
    images = tf.cast(images, tf.float32)
    own = _probabilities_of_view(model, images, config)
    if not config.average_mirrored:
        return own
    return (own + _probabilities_of_view(model, tf.reverse(images, axis=[2]), config)) / 2


def _probabilities_of_view(model: keras.Model, images: tf.Tensor, config: ImageClassifierConfig) -> tf.Tensor:
    logits = tf.cast(model(images, training=False), tf.float32)
    return tf.sigmoid(logits) if config.multi_label else tf.nn.softmax(logits)


def probability_function(model: keras.Model, config: ImageClassifierConfig) -> Callable[[np.ndarray], np.ndarray]:
    """A compiled `probabilities` for NumPy batches; batches are padded to powers of two, so few shapes are traced."""
    compiled = tf.function(
        lambda images: probabilities(model, images, config),
        autograph=False,
        jit_compile=current_runtime().xla,
    )

    def predict(images: np.ndarray) -> np.ndarray:
        count = len(images)
        padded = 1 << (count - 1).bit_length()
        if padded > count:
            images = np.concatenate([images, np.repeat(images[-1:], padded - count, axis=0)])
        result: np.ndarray = compiled(tf.convert_to_tensor(images)).numpy()[:count]
        return result

    return predict


def float32_twin(network: ClassifierNetwork, config: ImageClassifierConfig, num_labels: int) -> keras.Model:
    """The same model with the same weights, computing in float32: what converters can take."""
    if keras.config.dtype_policy().name == "float32":
        assert network.model is not None
        return network.model
    with float32_policy():
        twin = rebuilt_network(network.architecture, network.preprocessing, config, num_labels).model
    assert twin is not None
    assert network.model is not None
    twin.set_weights(network.model.get_weights())
    return twin


def serving_endpoints(
    model: keras.Model,
    preprocessing: Preprocessing,
    config: ImageClassifierConfig,
    *,
    encoded: Sequence[bytes],
    expected: np.ndarray,
) -> dict[str, Endpoint]:
    """What a classifier serves: `serve` takes encoded images (B,), `serve_images` prepared ones (B, S, S, C) uint8.

    Both give probabilities (B, K). `expected` is what `predict` gives for `encoded`.
    """
    size, channels = preprocessing.image_size, preprocessing.channels

    def from_images(images: tf.Tensor) -> tf.Tensor:
        return probabilities(model, images, config)

    def from_encoded(data: tf.Tensor) -> tf.Tensor:
        spec = tf.TensorSpec((size, size, channels), tf.uint8)
        images = tf.map_fn(lambda item: decode_and_prepare(item, preprocessing), data, fn_output_signature=spec)
        return from_images(images)

    prepared = np.stack([decode_and_prepare(tf.constant(item), preprocessing).numpy() for item in encoded])
    return {
        "serve": Endpoint(
            function=from_encoded,
            signature=(tf.TensorSpec((None,), tf.string, name="encoded_images"),),
            example=(np.asarray(encoded, dtype=object),),
            expected=expected,
        ),
        "serve_images": Endpoint(
            function=from_images,
            signature=(tf.TensorSpec((None, size, size, channels), tf.uint8, name="images"),),
            example=(prepared,),
            expected=expected,
        ),
    }
