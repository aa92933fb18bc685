"""What detection and segmentation learn from: the boxes and the mask of an image, and the rules that clean them.

Legend
    boxes   float32 (N, 4), xyxy: left, top, right, bottom in pixels of the raw image after EXIF orientation. Edges lie
            between pixels: an image of W x H pixels is the box (0, 0, W, H), and width is right - left
    mask    uint8 (H, W), class numbers; IGNORED where pixels neither train nor count
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np

from shared.examples import BadExampleError, BadRecord, Examples, tolerated
from shared.vocabulary import Vocabulary
from vision.boxes import clip_boxes, has_area
from vision.images import MAX_PIXELS, read_image_header

# The class number of pixels that are no class.
IGNORED = 255

# Boxes may overrun the image by this much, in pixels, without a report: they are rounded in files.
ROUNDING = 0.5

Box: TypeAlias = tuple[float, float, float, float]
Colour: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class ObjectBoxes:
    """The objects in an image: the target of a detector.

    `boxes` are xyxy in pixels (anything that becomes float32 (N, 4)), `labels` the N class names. `crowd` (N,) marks
    regions that hold several objects or doubtful ones: they are neither learned nor counted. Left out, none is.

    Raises:
        ValueError: for other shapes, unequal lengths, or numbers that are not finite.
        TypeError: for labels that are no strings.

    Example:
        >>> ObjectBoxes([[10, 20, 60, 80]], ["cat"]).crowd
        array([False])
    """

    boxes: np.ndarray
    labels: tuple[str, ...]
    crowd: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))

    def __post_init__(self) -> None:
        boxes = _as_boxes(self.boxes)
        labels = _as_labels(self.labels)
        crowd = np.asarray(self.crowd)
        if not crowd.size:
            crowd = np.zeros(len(boxes), bool)
        if len(labels) != len(boxes) or crowd.shape != (len(boxes),):
            raise ValueError(
                f"`labels` and `crowd` must have one entry a box; received {len(boxes)} boxes, {len(labels)} labels "
                f"and crowd of shape {crowd.shape}."
            )
        if crowd.dtype != bool:
            raise TypeError(f"`crowd` must be bool; received {crowd.dtype}.")
        for name, value in (("boxes", boxes), ("labels", labels), ("crowd", crowd)):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.boxes)

    def take(self, kept: np.ndarray) -> ObjectBoxes:
        """The objects at `kept`, an index array or a mask."""
        indices = np.arange(len(self))[kept]
        return ObjectBoxes(self.boxes[indices], tuple(self.labels[i] for i in indices), self.crowd[indices])


def as_objects(target: Any, labels: Sequence[Any] | Vocabulary | None = None) -> ObjectBoxes:
    """The target of a detector as `ObjectBoxes`.

    Args:
        target: `ObjectBoxes`, or a mapping with `boxes` (N, 4) xyxy in pixels, `labels` (N names or class numbers) and
            maybe `crowd` (N,), as the element of a `tf.data.Dataset` may be.
        labels: the class names by number; without them, number 3 is called "3".

    Raises:
        TypeError: for anything else.
        ValueError: for shapes that do not fit, and class numbers without a name.
    """
    if isinstance(target, ObjectBoxes):
        return target
    if not isinstance(target, Mapping) or not {"boxes", "labels"} <= target.keys():
        raise TypeError(
            "A detector's target is `ObjectBoxes(boxes, labels)`, or a mapping with `boxes` (N, 4), xyxy in pixels, "
            f"and `labels`; received {type(target).__name__}."
        )
    kinds = np.asarray(target["labels"]).reshape(-1).tolist()
    names = None if labels is None else [str(label) for label in labels]
    found = tuple(_class_name(kind, names) for kind in kinds)
    return ObjectBoxes(target["boxes"], found, np.asarray(target.get("crowd", np.zeros(0, bool))))


def _class_name(kind: Any, names: Sequence[str] | None) -> str:
    if isinstance(kind, bytes):
        return kind.decode()
    if not isinstance(kind, int):
        return str(kind)
    if names is not None and not 0 <= kind < len(names):
        raise ValueError(f"Class number {kind} has no name: there are {len(names)} classes, from 0 on.")
    return str(kind) if names is None else names[kind]


def _as_boxes(values: Any) -> np.ndarray:
    try:
        boxes = np.array(values, np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`boxes` must be numbers of shape (N, 4) in xyxy order ({error}).") from error
    if boxes.size == 0 and boxes.shape in ((0,), (0, 4)):
        return boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"`boxes` must have shape (N, 4) in xyxy order; received {boxes.shape}.")
    if not np.isfinite(boxes).all():
        row = int(np.argmin(np.isfinite(boxes).all(axis=1)))
        raise ValueError(f"`boxes` must be finite; box {row} is {boxes[row].tolist()}. Drop or correct it.")
    return boxes


def _as_labels(values: Sequence[str]) -> tuple[str, ...]:
    if isinstance(values, str):
        raise TypeError(f"`labels` must be a sequence of class names; received one string, {values!r}.")
    labels = tuple(values)
    for label in labels:
        if not isinstance(label, str):
            raise TypeError(f"`labels` must be class names (str); received {label!r} ({type(label).__name__}).")
    return labels


# Cleaning.


@dataclass(frozen=True)
class CleanedBoxes:
    """Objects that fit their image; the boxes that were `dropped`, and those that were `clipped` and kept."""

    objects: ObjectBoxes
    dropped: tuple[BadRecord, ...]
    clipped: tuple[BadRecord, ...]


def clean_boxes(objects: ObjectBoxes, width: int, height: int, places: Sequence[str]) -> CleanedBoxes:
    """`objects` clipped to an image of `width` x `height` pixels, without those of which nothing is left.

    A box is dropped where it is narrower or lower than `vision.boxes.MIN_SIDE` after clipping. It is reported as
    clipped where an edge has moved by more than ROUNDING.

    Args:
        objects: boxes as they stand in a file.
        width: of the image, in pixels.
        height: of the image, in pixels.
        places: what each box is called in a report (its file, and line or number).
    """
    boxes = clip_boxes(objects.boxes, width, height)
    kept = has_area(boxes)
    moved = np.abs(boxes - objects.boxes).max(axis=1, initial=0)
    dropped, clipped = [], []
    for row, place in enumerate(places):
        before = _as_text(objects.boxes[row])
        if not kept[row]:
            what = "lies outside" if has_area(objects.boxes[row : row + 1])[0] else "has no area in"
            dropped.append(BadRecord(place, f"box {before} {what} the image of {width}x{height} pixels"))
        elif moved[row] > ROUNDING:
            reason = f"box {before} overruns the image of {width}x{height} pixels by {moved[row]:g}; clipped"
            clipped.append(BadRecord(place, reason))
    cleaned = ObjectBoxes(boxes, objects.labels, objects.crowd).take(kept)
    return CleanedBoxes(cleaned, tuple(dropped), tuple(clipped))


def _as_text(box: np.ndarray) -> str:
    return f"({', '.join(f'{value:g}' for value in box)})"


@dataclass(frozen=True)
class RawBox:
    """One box as a file has it: `where` it stands, class name, xyxy in pixels, and whether it is a crowd."""

    where: str
    label: str
    box: Box
    crowd: bool = False


class AnnotatedImages:
    """Images with boxes as a reader finds them, one after the other, and what is wrong with either."""

    def __init__(self) -> None:
        self._inputs: list[str] = []
        self._targets: list[ObjectBoxes] = []
        self._bad_images: list[BadRecord] = []
        self._dropped: list[BadRecord] = []
        self._clipped: list[BadRecord] = []

    def skip(self, where: object, reason: str) -> None:
        """Report an image that cannot be used."""
        self._bad_images.append(BadRecord(str(where), reason))

    def skip_box(self, bad: BadRecord) -> None:
        """Report a box that cannot be used and belongs to no image that is kept."""
        self._dropped.append(bad)

    def add(self, image: Path, size: tuple[int, int], boxes: Sequence[RawBox], bad: Sequence[BadRecord] = ()) -> None:
        """Keep `image` with what is good of its `boxes`.

        An image without objects is kept: it teaches what is none. One of whose objects nothing can be used is left
        out, for it would teach that they are none.

        Args:
            image: its file.
            size: (width, height) to which the boxes are clipped.
            boxes: its boxes.
            bad: boxes that could not even be read.
        """
        objects = ObjectBoxes(
            np.array([raw.box for raw in boxes], np.float32).reshape(-1, 4),
            tuple(raw.label for raw in boxes),
            np.array([raw.crowd for raw in boxes], bool),
        )
        cleaned = clean_boxes(objects, *size, [raw.where for raw in boxes])
        dropped = (*bad, *cleaned.dropped)
        self._dropped += dropped
        if dropped and not len(cleaned.objects):
            self.skip(image, f"none of its {len(dropped)} boxes can be used")
            return
        self._clipped += cleaned.clipped
        self._inputs.append(str(image))
        self._targets.append(cleaned.objects)

    def examples(self, where: Path, max_bad_share: float) -> Examples:
        """Paths with their `ObjectBoxes`. Bad records: images left out, boxes dropped, then boxes clipped.

        Raises:
            ValueError: where there is no image, or more than `max_bad_share` of images or of boxes cannot be used.
        """
        good = Examples(self._inputs, self._targets, tuple(self._bad_images))
        tolerated(good, where, max_bad_share, things="images")
        if self._dropped:
            # Boxes are counted like images; which they are does not matter.
            kept = range(sum(len(objects) for objects in self._targets))
            tolerated(Examples(kept, kept, tuple(self._dropped)), where, max_bad_share, things="boxes")
        return Examples(self._inputs, self._targets, (*self._bad_images, *self._dropped, *self._clipped))


# Masks.


@dataclass(frozen=True)
class MaskCoding:
    """How the pixels of a mask become class numbers.

    Class number i is `labels[i]` and is stored as `values[i]`: a pixel value, or an RGB colour. Pixels of the
    `ignored` values become IGNORED. Values are what the file stores: of a PNG with a palette the index of a pixel,
    not its colour; colours are what one sees, palette or not.

    Raises:
        ValueError: for no labels, more than 255, labels or values given twice, or values of two kinds.
    """

    labels: tuple[str, ...]
    values: tuple[int, ...] | tuple[Colour, ...]
    ignored: tuple[int, ...] | tuple[Colour, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.labels) <= IGNORED:
            raise ValueError(f"A mask has 1 to {IGNORED} classes; received {len(self.labels)} `labels`.")
        if len(self.values) != len(self.labels):
            raise ValueError(f"{len(self.labels)} `labels` need as many `values`; received {len(self.values)}.")
        for name, given in (("labels", self.labels), ("values", (*self.values, *self.ignored))):
            twice = [value for i, value in enumerate(given) if value in given[:i]]
            if twice:
                raise ValueError(f"`{name}` must differ from one another; {twice[0]!r} is given twice.")
        if len({_is_colour(value) for value in (*self.values, *self.ignored)}) > 1:
            raise ValueError("`values` and `ignored` must be all pixel values or all colours (red, green, blue).")

    @property
    def is_colour(self) -> bool:
        """Whether classes are told by colours."""
        return _is_colour(self.values[0])

    def numbers(self, pixels: np.ndarray) -> np.ndarray:
        """Class numbers, uint8 (H, W), of pixel values (H, W) or of colours (H, W, 3).

        Raises:
            BadExampleError: for a value that is no class; the message has it and its place.
        """
        given = (*self.values, *self.ignored)
        classes = np.array([*range(len(self.values)), *[IGNORED] * len(self.ignored)], np.uint8)
        known = np.array([_colour_code(value) for value in given])
        codes = _colour_codes(pixels) if self.is_colour else pixels
        # Among few codes, bisection; pixel values are looked up in a table, which is ten times faster.
        found = _found(codes, known) if self.is_colour else _looked_up(codes, known)
        strange = found < 0
        if strange.any():
            y, x = (int(place) for place in np.argwhere(strange)[0])
            raise BadExampleError(self._refusal(pixels, x, y))
        return np.asarray(classes[found])

    def _refusal(self, pixels: np.ndarray, x: int, y: int) -> str:
        if self.is_colour:
            return f"the colour {tuple(pixels[y, x].tolist())} at x={x}, y={y} is no class's and not ignored"
        text = f"the value {pixels[y, x]} at x={x}, y={y} is no class's and not ignored"
        if set(np.unique(pixels).tolist()) <= {0, 255}:
            text += "; a mask of 0 and 255 for two classes is read with colours=(0, 255)"
        return text


def _is_colour(value: object) -> bool:
    return not isinstance(value, int)


def _colour_code(value: int | Colour) -> int:
    return value if isinstance(value, int) else value[0] << 16 | value[1] << 8 | value[2]


def _found(codes: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Where each of `codes` is among the `known` ones, -1 where it is not."""
    order = np.argsort(known)
    places = order[np.minimum(np.searchsorted(known, codes, sorter=order), len(known) - 1)]
    return np.where(known[places] == codes, places, -1)


def _looked_up(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The same for pixel values, uint8 or uint16."""
    table = np.full(np.iinfo(values.dtype).max + 1, -1, np.int16)
    possible = (known >= 0) & (known < len(table))
    table[known[possible]] = np.flatnonzero(possible)
    return np.asarray(table[values])


def _colour_codes(pixels: np.ndarray) -> np.ndarray:
    red, green, blue = np.moveaxis(pixels.astype(np.int32), -1, 0)
    return np.asarray(red << 16 | green << 8 | blue)


@dataclass(frozen=True)
class MaskFile:
    """The mask of an image as a PNG file: the target of a segmenter. It is decoded by `read`."""

    path: str
    coding: MaskCoding

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names by number."""
        return self.coding.labels

    def read(self, shape: tuple[int, int] | None = None) -> np.ndarray:
        """Class numbers, uint8 (H, W), IGNORED where there is none.

        Args:
            shape: (H, W) of the image, which the mask must share.

        Raises:
            BadExampleError: where the file cannot be read, is no PNG, has other values than its coding, or another
                size than `shape`; the message begins with the path.
        """
        try:
            data = Path(self.path).read_bytes()
        except OSError as error:
            raise BadExampleError(f"the mask cannot be read ({error.strerror})", self.path) from error
        try:
            numbers = self.coding.numbers(png_colours(data) if self.coding.is_colour else png_values(data))
        except BadExampleError as error:
            raise BadExampleError(error.reason, self.path) from error
        if shape is not None and numbers.shape != tuple(shape):
            height, width = numbers.shape
            raise BadExampleError(
                f"the mask has {width}x{height} pixels and its image {shape[1]}x{shape[0]}; they must be equal",
                self.path,
            )
        return numbers


# Types of a PNG's pixels (PNG specification, third edition, table 12).
_GREY, _PALETTE = 0, 3


def png_values(data: bytes) -> np.ndarray:
    """What a PNG of one channel stores, uint8 or uint16 (H, W): of one with a palette, the indices.

    OpenCV and TensorFlow replace indices by the palette's colours. A palette PNG without its palette is a grey one,
    so its type is exchanged first. Values of 1, 2 or 4 bits, which are stretched to 255, are divided again.

    Raises:
        BadExampleError: where the data is no PNG, is damaged, or has unequal colour channels.
    """
    chunks = _png_chunks(data)
    header = chunks[0][1]
    depth, kind = header[8], header[9]
    if kind == _PALETTE:
        header = header[:9] + bytes([_GREY]) + header[10:]
    pixels = _decoded([(b"IHDR", header), *_of(chunks, b"IDAT", b"IEND")], cv2.IMREAD_UNCHANGED)
    if pixels.ndim == 3:
        if pixels.shape[-1] in (3, 4) and (pixels[..., :3] != pixels[..., :1]).any():
            raise BadExampleError("the mask is a colour image, expected class numbers: give `colours`")
        pixels = pixels[..., 0]
    return pixels // np.uint8(255 // (2**depth - 1)) if depth < 8 else pixels


def png_colours(data: bytes) -> np.ndarray:
    """The colours of a PNG, uint8 RGB (H, W, 3), as they are stored: no transparency, gamma or profile is applied.

    Raises:
        BadExampleError: where the data is no PNG or is damaged.
    """
    chunks = _of(_png_chunks(data), b"IHDR", b"PLTE", b"IDAT", b"IEND")
    return _decoded(chunks, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    header = read_image_header(data)
    if header.format != "png":
        raise BadExampleError(f"masks are read from PNG files; this is {header.format.upper()}. Convert it")
    if not 0 < header.width * header.height <= MAX_PIXELS:
        raise BadExampleError(f"the header claims {header.width}x{header.height} pixels, at most {MAX_PIXELS} are read")
    chunks: list[tuple[bytes, bytes]] = []
    position = 8
    while not chunks or chunks[-1][0] != b"IEND":
        try:
            length, name = struct.unpack_from(">I4s", data, position)
            (checksum,) = struct.unpack_from(">I", data, position + 8 + length)
        except struct.error as error:
            raise BadExampleError("the PNG data is truncated") from error
        body = data[position + 8 : position + 8 + length]
        if zlib.crc32(name + body) != checksum:
            raise BadExampleError("the PNG data is damaged (a checksum differs)")
        chunks.append((name, body))
        position += length + 12
    if chunks[0][0] != b"IHDR" or len(chunks[0][1]) != 13:
        raise BadExampleError("the PNG data is damaged (it has no header)")
    return chunks


def _of(chunks: Sequence[tuple[bytes, bytes]], *names: bytes) -> list[tuple[bytes, bytes]]:
    return [chunk for chunk in chunks if chunk[0] in names]


def _decoded(chunks: Sequence[tuple[bytes, bytes]], flags: int) -> np.ndarray:
    parts = [struct.pack(">I", len(body)) + name + body for name, body in chunks]
    whole = b"\x89PNG\r\n\x1a\n" + b"".join(part + struct.pack(">I", zlib.crc32(part[4:])) for part in parts)
    try:
        pixels: np.ndarray | None = cv2.imdecode(np.frombuffer(whole, np.uint8), flags)
    except cv2.error as error:
        raise BadExampleError("the PNG data is damaged") from error
    if pixels is None:
        raise BadExampleError("the PNG data is truncated or damaged")
    return pixels
