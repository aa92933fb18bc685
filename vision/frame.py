"""From an image of any shape to the frame of a detector or segmenter, without distortion, and back.

Preprocessing is a square for classifiers; here it is a rectangle into which the image is fitted, in the upper left
corner, with mid-grey to the right and below. So what is found is brought back by a scale alone.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from vision.geometry import GREY

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True, kw_only=True)
class Frame:
    """How an image is brought to the network.

    It is resized (antialiased, bilinear) so that it just fits into `height` x `width` pixels, and padded with mid-grey
    until both are multiples of `multiple`, the largest stride of the network. The network then takes
    (value - mean) / std per channel, for values 0..255. With `stretch` the values of an image, all channels together,
    are spread over 0..255 before anything else.
    """

    height: int
    width: int
    multiple: int = 32
    mean: tuple[float, ...] = (127.5, 127.5, 127.5)
    std: tuple[float, ...] = (63.75, 63.75, 63.75)
    stretch: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of what the network takes, padding included."""
        return _up(self.height, self.multiple), _up(self.width, self.multiple)

    def inner(self, height: int, width: int) -> tuple[int, int]:
        """Height and width to which an image of `height` x `width` pixels is resized."""
        scale = self.scale(height, width)
        return max(1, round(height * scale)), max(1, round(width * scale))

    def scale(self, height: int, width: int) -> float:
        """The factor on an image of `height` x `width` pixels by which it just fits."""
        return min(self.height / height, self.width / width)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The frame in a dictionary made by `to_dict`."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)


def framed(image: np.ndarray, frame: Frame) -> np.ndarray:
    """uint8 (H, W, 3) -> uint8 (*frame.shape, 3), by the operations that exports use."""
    if not frame.stretch and image.shape[:2] == frame.shape == frame.inner(*image.shape[:2]):
        return image
    prepared: np.ndarray = _compiled(frame)(image).numpy()
    return prepared


@functools.lru_cache(maxsize=32)
def _compiled(frame: Frame) -> Callable[[Any], tf.Tensor]:
    import tensorflow as tf

    with tf.device("cpu"):
        signature = [tf.TensorSpec((None, None, 3), tf.uint8)]
        compiled: Callable[[Any], tf.Tensor] = tf.function(
            lambda image: frame_image(image, frame), input_signature=signature, autograph=False
        ).get_concrete_function()
    return lambda image: compiled(tf.convert_to_tensor(image))


def frame_image(image: tf.Tensor, frame: Frame) -> tf.Tensor:
    """uint8 (H, W, 3) -> uint8 (*frame.shape, 3) as TensorFlow operations."""
    import tensorflow as tf

    image = stretched_image(image) if frame.stretch else image
    inner = inner_size(tf.shape(image), frame)
    values = tf.image.resize(image, inner, method="bilinear", antialias=True)
    pixels = tf.cast(tf.clip_by_value(tf.round(values), 0.0, 255.0), tf.uint8)
    height, width = frame.shape
    padding = [[0, height - inner[0]], [0, width - inner[1]], [0, 0]]
    return tf.ensure_shape(tf.pad(pixels, padding, constant_values=GREY), (height, width, 3))


def stretched_values(image: np.ndarray) -> np.ndarray:
    """uint8 of any shape -> the same with its values spread over 0..255; of one value alone it stays as it is."""
    low, high = int(image.min()), int(image.max())
    if high == low:
        return image
    # In whole numbers, which are the same in TensorFlow.
    table = np.clip(np.arange(256) - low, 0, high - low)
    table = (table * 510 + (high - low)) // (2 * (high - low))
    return np.asarray(table.astype(np.uint8)[image])


def stretched_image(image: tf.Tensor) -> tf.Tensor:
    """Twin of `stretched_values` as TensorFlow operations."""
    import tensorflow as tf

    values = tf.cast(image, tf.int32)
    low, high = tf.reduce_min(values), tf.reduce_max(values)
    reach = tf.maximum(high - low, 1)
    return tf.where(high == low, image, tf.cast(((values - low) * 510 + reach) // (2 * reach), tf.uint8))


def inner_size(shape: tf.Tensor, frame: Frame) -> tf.Tensor:
    """Twin of `Frame.inner` for the shape of an image, as TensorFlow operations: int32 (2,)."""
    import tensorflow as tf

    # In float64, as Python computes it: rounding must go the same way.
    sides = tf.cast(shape[:2], tf.float64)
    scale = tf.minimum(frame.height / sides[0], frame.width / sides[1])
    return tf.maximum(tf.cast(tf.round(sides * scale), tf.int32), 1)


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
