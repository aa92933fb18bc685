"""From an image of any shape to what a model takes: one recipe, saved with the weights, the same in every export."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf

Resize = Literal["stretch", "crop", "pad"]

# ITU-R BT.601 luma, as JPEG defines grey.
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How an image is brought to the model.

    `stretch` resizes the whole image to a square; `crop` takes the centre square of `crop_fraction` of the short
    side; `pad` keeps the aspect ratio and adds black. Resizing is antialiased. The model then takes
    (value - mean) / std per channel, for values 0..255; `mean` and `std` have one entry for grey, three for RGB.
    """

    image_size: int
    resize: Resize = "stretch"
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    crop_fraction: float = 1.0
    mean: tuple[float, ...] = (127.5, 127.5, 127.5)
    std: tuple[float, ...] = (127.5, 127.5, 127.5)

    @property
    def channels(self) -> int:
        """3 for RGB, 1 for grey."""
        return len(self.mean)

    def leaves(self, image: np.ndarray) -> bool:
        """Whether an image is as the model takes it: of its size and channels, with nothing to be cut off."""
        cropped = self.resize == "crop" and self.crop_fraction != 1.0
        return image.shape == (self.image_size, self.image_size, self.channels) and not cropped

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The recipe in a dictionary made by `to_dict`."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)


def prepare_image(image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """uint8 (H, W, 3) -> uint8 (S, S, C), by the operations that exports use."""
    if preprocessing.leaves(image):
        return image
    prepared: np.ndarray = _compiled(preprocessing)(image).numpy()
    return prepared


@functools.lru_cache(maxsize=32)
def _compiled(preprocessing: Preprocessing) -> Callable[[Any], tf.Tensor]:
    import tensorflow as tf

    with tf.device("cpu"):
        signature = [tf.TensorSpec((None, None, 3), tf.uint8)]
        compiled: Callable[[Any], tf.Tensor] = tf.function(
            lambda image: prepared(image, preprocessing), input_signature=signature, autograph=False
        ).get_concrete_function()
    return lambda image: compiled(tf.convert_to_tensor(image))


def prepared(image: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """uint8 (H, W, 3) -> uint8 (S, S, C) as TensorFlow operations."""
    import tensorflow as tf

    size = preprocessing.image_size
    if preprocessing.resize == "crop":
        image = _centre_square(image, preprocessing.crop_fraction)
    options = {"method": preprocessing.interpolation, "antialias": True}
    if preprocessing.resize == "pad":
        values = _padded(image, size, **options)
    else:
        values = tf.image.resize(image, (size, size), **options)
    if preprocessing.channels == 1:
        values = tf.reduce_sum(values * tf.constant(_LUMA), axis=-1, keepdims=True)
    pixels = tf.cast(tf.clip_by_value(tf.round(values), 0.0, 255.0), tf.uint8)
    return tf.ensure_shape(pixels, (size, size, preprocessing.channels))


def _padded(image: tf.Tensor, size: int, **options: Any) -> tf.Tensor:
    """The image in the middle of a black square; of a very narrow one, one line of pixels is left at least."""
    import tensorflow as tf

    shape = tf.cast(tf.shape(image)[:2], tf.float32)
    inner = tf.cast(tf.round(shape * size / tf.reduce_max(shape)), tf.int32)
    inner = tf.clip_by_value(inner, 1, size)
    top, left = tf.unstack((size - inner) // 2)
    return tf.image.pad_to_bounding_box(tf.image.resize(image, inner, **options), top, left, size, size)


def _centre_square(image: tf.Tensor, fraction: float) -> tf.Tensor:
    import tensorflow as tf

    shape = tf.shape(image)
    side = tf.cast(tf.round(fraction * tf.cast(tf.minimum(shape[0], shape[1]), tf.float32)), tf.int32)
    side = tf.maximum(side, 1)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    return image[top : top + side, left : left + side]


def decode_and_prepare(data: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """Encoded JPEG, PNG, GIF or BMP (a string scalar) -> uint8 (S, S, C), as TensorFlow operations.

    The graph twin of `decode_image` followed by `prepare_image`, EXIF orientation included.
    """
    return prepared(decode_pixels(data), preprocessing)


def decode_pixels(data: tf.Tensor) -> tf.Tensor:
    """Encoded JPEG, PNG, GIF or BMP (a string scalar) -> uint8 (H, W, 3): the graph twin of `decode_image`."""
    import tensorflow as tf

    from vision.images import DECODERS

    first = tf.strings.substr(data, 0, 2)
    known = tf.reduce_any(tf.equal(first, tf.constant([b"\xff\xd8", b"\x89P", b"GI", b"BM"])))
    message = "Expected the bytes of a JPEG, PNG, GIF or BMP file; convert other images, such as WebP or TIFF, first."
    with tf.control_dependencies([tf.debugging.Assert(known, [message], summarize=1)]):
        data = tf.identity(data)
    decode = {name: functools.partial(decoder, data) for name, decoder in DECODERS.items()}
    pixels = tf.case(
        [
            (tf.equal(first, b"\x89P"), decode["png"]),
            (tf.equal(first, b"GI"), decode["gif"]),
            (tf.equal(first, b"BM"), decode["bmp"]),
        ],
        default=lambda: _oriented(decode["jpeg"](), _jpeg_orientation(data)),
    )
    return tf.ensure_shape(pixels, (None, None, 3))


def _oriented(pixels: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Twin of `vision.images.oriented`."""
    import tensorflow as tf

    def among(*values: int) -> tf.Tensor:
        return tf.reduce_any(tf.equal(orientation, tf.constant(values)))

    pixels = tf.cond(orientation >= 5, lambda: tf.transpose(pixels, (1, 0, 2)), lambda: pixels)
    pixels = tf.cond(among(3, 4, 7, 8), lambda: pixels[::-1], lambda: pixels)
    return tf.cond(among(2, 3, 6, 7), lambda: pixels[:, ::-1], lambda: pixels)


def _jpeg_orientation(data: tf.Tensor) -> tf.Tensor:
    """EXIF orientation of a JPEG as an int32 scalar; 1 where there is none.

    Walks the segments as `vision.images` does, in a loop that any file ends: each round moves on by a byte or more.
    """
    import tensorflow as tf

    from vision.images import EXIF_REACH, JPEG_FRAMES, JPEG_WITHOUT_LENGTH

    # An EXIF segment that begins within reach may end one segment later.
    values = tf.cast(tf.io.decode_raw(tf.strings.substr(data, 0, EXIF_REACH + (1 << 16)), tf.uint8), tf.int32)
    values = tf.concat([values, tf.zeros(16, tf.int32)], 0)
    end = tf.size(values) - 16

    def is_exif(position: tf.Tensor) -> tf.Tensor:
        header = values[position : position + 10]
        begins = tf.logical_and(tf.equal(header[0], 0xFF), tf.equal(header[1], 0xE1))
        named = tf.reduce_all(tf.equal(header[4:10], [0x45, 0x78, 0x69, 0x66, 0, 0]))
        return tf.logical_and(begins, named)

    def among(marker: tf.Tensor, markers: Collection[int]) -> tf.Tensor:
        return tf.reduce_any(tf.equal(marker, tf.constant(sorted(markers), tf.int32)))

    def goes_on(position: tf.Tensor) -> tf.Tensor:
        marker = tf.gather(values, position + 1)
        frame = tf.logical_and(tf.equal(tf.gather(values, position), 0xFF), among(marker, JPEG_FRAMES))
        within = position < tf.minimum(end - 4, EXIF_REACH)
        return tf.logical_and(within, tf.logical_not(tf.logical_or(frame, is_exif(position))))

    def following(position: tf.Tensor) -> tuple[tf.Tensor]:
        marker = tf.gather(values, position + 1)
        # Between segments there may be fill bytes of 0xFF, and in damaged files other bytes.
        between = tf.logical_or(tf.not_equal(tf.gather(values, position), 0xFF), tf.equal(marker, 0xFF))
        length = tf.where(among(marker, JPEG_WITHOUT_LENGTH), 0, values[position + 2] * 256 + values[position + 3])
        return (tf.minimum(position + tf.where(between, 1, 2 + length), end - 4),)

    start = tf.minimum(2, tf.maximum(end - 4, 0))
    (position,) = tf.while_loop(goes_on, following, (start,), maximum_iterations=EXIF_REACH)
    found = tf.logical_and(is_exif(position), position < EXIF_REACH)
    return tf.cond(found, lambda: _tiff_orientation(values, position + 10), lambda: 1)


def _tiff_orientation(values: tf.Tensor, base: tf.Tensor) -> tf.Tensor:
    import tensorflow as tf

    little = tf.equal(values[base], 0x49)
    size = tf.size(values)

    def short(offset: tf.Tensor) -> tf.Tensor:
        offset = tf.clip_by_value(offset, 0, size - 2)
        first, second = values[offset], values[offset + 1]
        return tf.where(little, first + 256 * second, 256 * first + second)

    # Offsets beyond 64 KiB cannot lie in an APP1 segment: the low half is enough.
    start = base + short(tf.where(little, base + 4, base + 6))
    entries = start + 2 + 12 * tf.range(tf.minimum(short(start), 512))
    entries = tf.boolean_mask(entries, entries < size - 12)
    tags = tf.map_fn(short, entries)
    found = tf.boolean_mask(entries, tf.equal(tags, 0x0112))
    orientation = tf.cond(tf.size(found) > 0, lambda: short(found[0] + 8), lambda: 1)
    return tf.where(tf.logical_and(orientation >= 1, orientation <= 8), orientation, 1)
