"""The light detector: trunk, feature pyramid, one head for all levels.

Anchor-free: each cell of each level says how far the four edges of an object are from its centre (Tian et al. 2019,
FCOS, arXiv:1904.01355), and how sure it is of each class. A score stands for class and fit of the box at once, because
it is trained so (`detection_loss`); it takes the place of FCOS's centre-ness.

Shapes: B images, H and W image size, L levels, A cells of all levels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras
import tensorflow as tf
from keras import layers

from vision.models.pyramid import activated, feature_pyramid

# Share of cells that hold an object at the start: the bias by which training begins stably (Lin et al. 2017,
# RetinaNet, arXiv:1708.02002, section 4.1).
_PRIOR = 0.01
# The first boxes reach two cells to each side.
_FIRST_REACH = math.log(math.expm1(2.0))


def detector_network(
    trunk: keras.Model, levels: int, num_classes: int, *, channels: int, depth: int, normalisation: keras.layers.Layer
) -> keras.Model:
    """Images (B, H, W, 3), 0..255 -> (B, A, 4 + K): reach to the four edges before softplus, then class logits.

    Args:
        trunk: gives feature maps of falling resolution; the last `levels` of them are used.
        levels: L.
        num_classes: K.
        channels: of the pyramid and of the head.
        depth: convolutions in each of the head's two branches.
        normalisation: what the trunk expects before it.
    """
    images = keras.Input((None, None, 3), name="images")
    maps = feature_pyramid(trunk(normalisation(images))[-levels:], channels)
    boxes = _branch(maps, channels, depth, 4, "box", bias=_FIRST_REACH)
    classes = _branch(maps, channels, depth, num_classes, "class", bias=-math.log((1 - _PRIOR) / _PRIOR))
    cells = [layers.Concatenate(name=f"level{i}")([b, c]) for i, (b, c) in enumerate(zip(boxes, classes, strict=True))]
    joined = layers.Concatenate(axis=1, name="cells", dtype="float32")(cells) if len(cells) > 1 else cells[0]
    return keras.Model(images, joined, name="object_detector")


def _branch(
    maps: Sequence[keras.KerasTensor], channels: int, depth: int, outputs: int, name: str, *, bias: float
) -> list[keras.KerasTensor]:
    """Convolutions that the levels share, each level with statistics of its own (Tan et al. 2020, arXiv:1911.09070)."""
    answers = list(maps)
    for number in range(1, depth + 1):
        shared = layers.Conv2D(channels, 3, padding="same", use_bias=False, name=f"{name}{number}_conv")
        answers = [activated(shared(x), f"{name}{number}_level{i}") for i, x in enumerate(answers)]
    last = layers.Conv2D(
        outputs,
        1,
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
        bias_initializer=keras.initializers.Constant(bias),
        dtype="float32",
        name=f"{name}_out",
    )
    flat = layers.Reshape((-1, outputs), dtype="float32", name=f"{name}_cells")
    return [flat(last(x)) for x in answers]


def cells(height: int, width: int, strides: Sequence[int]) -> tuple[tf.Tensor, tf.Tensor]:
    """Centres (A, 2) as x, y in pixels and strides (A, 1) of the cells of all levels, in the network's order.

    `height` and `width` may be tensors; the strides divide both.
    """
    centres, sizes = [], []
    for stride in strides:
        y = (tf.cast(tf.range(height // stride), tf.float32) + 0.5) * stride
        x = (tf.cast(tf.range(width // stride), tf.float32) + 0.5) * stride
        grid = tf.stack(tf.meshgrid(x, y), axis=-1)
        centres.append(tf.reshape(grid, (-1, 2)))
        sizes.append(tf.fill((tf.shape(centres[-1])[0], 1), float(stride)))
    return tf.concat(centres, axis=0), tf.concat(sizes, axis=0)


def decoded(raw: tf.Tensor, centres: tf.Tensor, sizes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """What the network gives (B, A, 4 + K) -> boxes (B, A, 4) xyxy in pixels of its input, class logits (B, A, K)."""
    raw = tf.cast(raw, tf.float32)
    reach = tf.nn.softplus(raw[..., :4]) * sizes
    return tf.concat([centres - reach[..., :2], centres + reach[..., 2:]], axis=-1), raw[..., 4:]
