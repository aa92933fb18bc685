"""Encoded images to pixels: formats, EXIF orientation, alpha, and every kind of broken file by name.

Between decoding and the model an image is uint8 RGB (H, W, 3). JPEG, PNG, GIF and BMP are decoded by the same
TensorFlow operations in a Python process and in an exported graph, so both see the same pixels; WebP and TIFF go
through OpenCV.

OpenCV and libjpeg may write a line of their own about a damaged file on the standard error stream. Their messages can
only be turned off for a whole process (`cv2.setLogLevel(0)`), which is left to the program.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import cv2
import numpy as np

from shared.examples import BadExampleError

if TYPE_CHECKING:
    import tensorflow as tf

# A file may claim any size in a few bytes; beyond this many pixels it is taken for a decompression bomb
# (the limit at which Pillow raises).
MAX_PIXELS = 178_956_970

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff"})

# EXIF data that begins later in a file is not looked at; it comes first by its standard.
EXIF_REACH = 1 << 18

JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JPEG_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xDA)})
_ORIENTATION_TAG = 0x0112


@dataclass(frozen=True)
class ImageHeader:
    """What the first bytes of a file claim: format, width and height as stored (in pixels), EXIF orientation 1..8.

    `components` is the number of colour components of a JPEG and the bytes per pixel of a BMP, 0 where pixels are
    packed or compressed; `frame` is where the frame header of a JPEG begins (a byte offset).
    """

    format: str
    width: int
    height: int
    orientation: int = 1
    components: int = 3
    frame: int = 0


def read_image_header(data: bytes) -> ImageHeader:
    """Format and size from the header alone; nothing is decoded.

    Raises:
        BadExampleError: where the bytes begin like no image format that is read here, or the header is cut off.
    """
    if not data:
        raise BadExampleError("the file is empty (0 bytes)")
    for matches, read in _FORMATS:
        if matches(data):
            try:
                return read(data)
            except (struct.error, IndexError) as error:
                raise BadExampleError("the image is truncated within its header") from error
    raise BadExampleError(f"not a JPEG, PNG, GIF, BMP, WebP or TIFF image (it begins with {data[:8]!r})")


# Enough of a file for the header of nearly every image.
_HEADER_BYTES = 1 << 16


def read_image_size(path: str | Path) -> tuple[int, int]:
    """(width, height) of an image in pixels after EXIF orientation, from the beginning of its file.

    Raises:
        BadExampleError: for what begins like no image that is read here; the message names the file.
    """
    try:
        with open(path, "rb") as stream:
            header, orientation = _header_of(stream)
    except OSError as error:
        raise BadExampleError(f"cannot be read ({error.strerror})", path) from error
    except BadExampleError as error:
        raise BadExampleError(error.reason, path) from error
    return (header.height, header.width) if orientation >= 5 else (header.width, header.height)


def _header_of(stream: BinaryIO) -> tuple[ImageHeader, int]:
    """The header, and the orientation in which the image is decoded."""
    data = stream.read(_HEADER_BYTES)
    try:
        header = read_image_header(data)
    except BadExampleError:
        header = None
    # The orientation of a WebP image stands after its pixels.
    if header is None or header.format == "webp":
        data += stream.read()
        header = read_image_header(data)
    # That of a TIFF image, which libtiff applies, is in a directory like that of EXIF data.
    return header, _exif_orientation(data) if header.format == "tiff" else header.orientation


def decode_image(
    source: str | Path | bytes | np.ndarray, *, max_pixels: int = MAX_PIXELS, min_side: int | None = None
) -> np.ndarray:
    """The pixels of an image, uint8 RGB (H, W, 3).

    EXIF orientation of JPEG, TIFF and WebP is applied, grey becomes RGB, transparent pixels are blended with white
    (those of a GIF are black), CMYK is converted, of 16-bit samples the high byte is kept, and of an animation the
    first frame.

    Args:
        source: a path, the bytes of a file, or a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) in RGB order.
        max_pixels: an image that claims more is refused before it is decoded.
        min_side: where given, a JPEG may come 2, 4 or 8 times smaller as long as both sides keep this many pixels:
            several times faster for large photographs, whose coefficients are then averaged within their 8x8 blocks.

    Raises:
        BadExampleError: for what is no readable image; the message begins with the path where there is one.
        TypeError: for another kind of source.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, bytes):
        return _decode(source, "image bytes", max_pixels, min_side)
    if isinstance(source, str | Path):
        return _decode(_read_file(Path(source)), str(source), max_pixels, min_side)
    raise TypeError(f"An image is a path, bytes or a uint8 array; received {type(source).__name__}.")


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BadExampleError("no such file", path) from error
    except IsADirectoryError as error:
        raise BadExampleError("is a directory, expected an image file", path) from error
    except PermissionError as error:
        raise BadExampleError("no permission to read it", path) from error
    except (OSError, ValueError) as error:
        # A name that is too long or holds a null character, a file where a directory is expected, a failing disk.
        raise BadExampleError(f"cannot be read ({error})", path) from error


def _decode(data: bytes, name: str, max_pixels: int, min_side: int | None) -> np.ndarray:
    try:
        header = read_image_header(data)
    except BadExampleError as error:
        raise BadExampleError(str(error), name) from error
    if header.width < 1 or header.height < 1:
        raise BadExampleError(f"the header claims {header.width}x{header.height} pixels", name)
    if header.width * header.height > max_pixels:
        raise BadExampleError(
            f"the header claims {header.width}x{header.height} pixels, more than the {max_pixels} allowed", name
        )
    if header.format in ("webp", "tiff") or (header.format == "bmp" and header.components not in (1, 3, 4)):
        return oriented(_decode_with_opencv(data, name, header), header.orientation)
    if header.format == "jpeg" and header.components != 4:
        return oriented(_decode_jpeg(data, name, header, min_side), header.orientation)
    return _decode_with_tensorflow(data, name, header)


# By how much smaller a JPEG is decoded. Together with IMREAD_COLOR_RGB the result is colour, whatever the names say.
_REDUCED = (
    (8, cv2.IMREAD_REDUCED_GRAYSCALE_8),
    (4, cv2.IMREAD_REDUCED_GRAYSCALE_4),
    (2, cv2.IMREAD_REDUCED_GRAYSCALE_2),
)


def _decode_jpeg(data: bytes, name: str, header: ImageHeader, min_side: int | None) -> np.ndarray:
    # OpenCV gives the very pixels of `_jpeg` below, with less overhead a call, but fills what a truncated file lacks
    # with grey. The end marker cannot occur within the compressed data, so its absence tells.
    if data.rfind(b"\xff\xd9", header.frame) < 0:
        raise BadExampleError("the JPEG data is truncated", name)
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    if min_side is not None:
        short = min(header.width, header.height)
        flags |= next((flag for factor, flag in _REDUCED if short // factor >= min_side), 0)
    pixels: np.ndarray | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if pixels is None:
        raise BadExampleError("the JPEG data is damaged", name)
    return pixels


def _decode_with_tensorflow(data: bytes, name: str, header: ImageHeader) -> np.ndarray:
    import tensorflow as tf

    with tf.device("cpu"):
        try:
            pixels: np.ndarray = DECODERS[header.format](data).numpy()
        except tf.errors.InvalidArgumentError as error:
            raise BadExampleError(f"the {header.format.upper()} data is truncated or damaged", name) from error
    return oriented(pixels, header.orientation)


def _decode_with_opencv(data: bytes, name: str, header: ImageHeader) -> np.ndarray:
    # Unchanged, OpenCV 5.0 takes some colour BMPs for grey.
    flags = cv2.IMREAD_COLOR if header.format == "bmp" else cv2.IMREAD_UNCHANGED
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise BadExampleError("the image data is truncated or damaged", name) from error
    if pixels is None:
        raise BadExampleError("the image data is truncated or damaged", name)
    if header.format == "tiff" and pixels.dtype == np.uint8 and pixels.shape[2:] == (4,):
        # libtiff has multiplied these colours by their alpha already.
        white = 255 - pixels[..., 3:]
        pixels = np.minimum(pixels[..., :3].astype(np.int16) + white, 255).astype(np.uint8)
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise BadExampleError(f"samples of type {pixels.dtype} are not read; convert to 8 or 16 bit", name)
    if pixels.ndim == 3 and pixels.shape[-1] in (3, 4):
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if pixels.shape[-1] == 3 else cv2.COLOR_BGRA2RGBA)
    return _from_array(pixels)


def _from_array(array: np.ndarray) -> np.ndarray:
    if array.dtype != np.uint8:
        raise TypeError(
            f"An image array must be uint8 with values 0..255; received {array.dtype}. Scale and convert it first."
        )
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 3, 4) or 0 in array.shape:
        raise ValueError(
            f"An image array must have shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); received {array.shape}."
        )
    if array.shape[-1] == 1:
        return np.repeat(array, 3, axis=-1)
    if array.shape[-1] == 4:
        alpha = array[..., 3:].astype(np.float32) / 255
        return np.rint(array[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    return array


def oriented(pixels: Any, orientation: int) -> np.ndarray:
    """Pixels as they are to be seen, for an EXIF orientation 1..8 (TIFF 6.0, tag 274)."""
    if orientation >= 5:
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


# Decoders as TensorFlow operations, the same in eager mode and in a graph: encoded bytes -> uint8 (H, W, 3).


def _jpeg(data: Any) -> tf.Tensor:
    import tensorflow as tf

    # The accurate DCT gives the pixels that OpenCV and libjpeg give by default; TensorFlow's default is faster by
    # 2 % and off by up to 7 of 255.
    return tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")


def _png(data: Any) -> tf.Tensor:
    import tensorflow as tf

    pixels = tf.io.decode_png(data, channels=4)
    # Of images with less than 8 bits and no transparency, TensorFlow 2.21 fills alpha with the largest value of that
    # many bits instead of 255.
    depth = tf.cast(tf.io.decode_raw(tf.strings.substr(data, 24, 1), tf.uint8)[0], tf.int32)
    filler = tf.cast(tf.bitwise.left_shift(1, tf.minimum(depth, 8)) - 1, tf.uint8)
    opaque = tf.reduce_all(tf.equal(pixels[..., 3], filler))
    return tf.cond(opaque, lambda: pixels[..., :3], lambda: _on_white(pixels))


def _gif(data: Any) -> tf.Tensor:
    import tensorflow as tf

    # Unlike `decode_gif`, this stops after the first frame.
    return tf.io.decode_image(data, channels=3, expand_animations=False)


def _bmp(data: Any) -> tf.Tensor:
    import tensorflow as tf

    pixels = tf.io.decode_bmp(data, channels=0)
    channels = tf.shape(pixels)[-1]
    return tf.cond(channels == 1, lambda: _looked_up(pixels[..., 0], data), lambda: pixels[..., :3])


def _looked_up(numbers: tf.Tensor, bmp: tf.Tensor) -> tf.Tensor:
    """Palette entries: uint8 (H, W) -> uint8 (H, W, 3). The palette of a BMP lies between its header and its pixels."""
    import tensorflow as tf

    start, length = tf.unstack(tf.io.decode_raw(tf.strings.substr(bmp, 10, 8), tf.int32, fixed_length=8))
    palette = tf.io.decode_raw(tf.strings.substr(bmp, 14 + length, start - 14 - length), tf.uint8)
    entries = tf.reshape(palette[: tf.size(palette) // 4 * 4], (-1, 4))
    # Blue comes first. A number beyond the palette is black.
    entries = tf.pad(entries[:256, 2::-1], [[0, 256 - tf.minimum(tf.shape(entries)[0], 256)], [0, 0]])
    return tf.gather(entries, tf.cast(numbers, tf.int32))


def _on_white(rgba: tf.Tensor) -> tf.Tensor:
    """uint8 (H, W, 4) -> uint8 (H, W, 3), blended with white."""
    import tensorflow as tf

    alpha = tf.cast(rgba[..., 3:], tf.float32) / 255
    blended = tf.cast(rgba[..., :3], tf.float32) * alpha + 255 * (1 - alpha)
    return tf.cast(tf.round(blended), tf.uint8)


DECODERS = {"jpeg": _jpeg, "png": _png, "gif": _gif, "bmp": _bmp}


# Headers.


def _jpeg_header(data: bytes) -> ImageHeader:
    position, orientation = 2, None
    while True:
        while data[position] != 0xFF:
            position += 1
        while data[position] == 0xFF:
            position += 1
        marker = data[position]
        position += 1
        if marker in JPEG_WITHOUT_LENGTH:
            continue
        (length,) = struct.unpack_from(">H", data, position)
        if marker in JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, position + 3)
            return ImageHeader("jpeg", width, height, orientation or 1, data[position + 7], position)
        first_exif = orientation is None and position - 2 < EXIF_REACH
        if first_exif and marker == 0xE1 and data[position + 2 : position + 8] == b"Exif\0\0":
            orientation = _exif_orientation(data[position + 8 : position + length])
        position += length


def _exif_orientation(tiff: bytes) -> int:
    """Orientation in the first directory of an EXIF block; 1 where there is none or the block is damaged."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 10:
        return 1
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    if start + 2 > len(tiff):
        return 1
    (count,) = struct.unpack_from(order + "H", tiff, start)
    for entry in range(start + 2, min(start + 2 + 12 * count, len(tiff) - 11), 12):
        tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
        if tag == _ORIENTATION_TAG:
            return value if 1 <= value <= 8 else 1
    return 1


def _png_header(data: bytes) -> ImageHeader:
    width, height = struct.unpack_from(">II", data, 16)
    return ImageHeader("png", width, height)


def _gif_header(data: bytes) -> ImageHeader:
    width, height = struct.unpack_from("<HH", data, 6)
    return ImageHeader("gif", width, height)


def _bmp_header(data: bytes) -> ImageHeader:
    (length,) = struct.unpack_from("<I", data, 14)
    if length == 12:
        # The header of OS/2 1.x.
        width, height = struct.unpack_from("<HH", data, 18)
        return ImageHeader("bmp", width, height, components=0)
    width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    # Compression 3 are bit masks, without compression.
    components = bits // 8 if compression in (0, 3) else 0
    return ImageHeader("bmp", width, abs(height), components=components)


def _webp_header(data: bytes) -> ImageHeader:
    kind = data[12:16]
    if kind == b"VP8X":
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (value & 0x3FFF for value in struct.unpack_from("<HH", data, 26))
    return ImageHeader("webp", width, height, _webp_orientation(data) if kind == b"VP8X" else 1)


def _webp_orientation(data: bytes) -> int:
    position = 12
    while position + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, position + 4)
        if data[position : position + 4] == b"EXIF":
            block = data[position + 8 : position + 8 + length]
            return _exif_orientation(block.removeprefix(b"Exif\0\0"))
        position += 8 + length + length % 2
    return 1


def _tiff_header(data: bytes) -> ImageHeader:
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, start)
    sizes = {256: 0, 257: 0}
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(order + "HH", data, entry)
        if tag in sizes:
            # SHORT (3) or LONG (4).
            (sizes[tag],) = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, entry + 8)
    return ImageHeader("tiff", sizes[256], sizes[257])


_FORMATS = (
    (lambda data: data[:3] == b"\xff\xd8\xff", _jpeg_header),
    (lambda data: data[:8] == b"\x89PNG\r\n\x1a\n", _png_header),
    (lambda data: data[:6] in (b"GIF87a", b"GIF89a"), _gif_header),
    (lambda data: data[:2] == b"BM", _bmp_header),
    (lambda data: data[:4] == b"RIFF" and data[8:12] == b"WEBP", _webp_header),
    (lambda data: data[:4] in (b"II*\0", b"MM\0*"), _tiff_header),
)
