"""Pictures of answers: boxes with names, and masks laid over an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np

# Glasbey-like: hues a golden angle apart, so that neighbouring class numbers differ.
_GOLDEN = 0.618034
_FONT = cv2.FONT_HERSHEY_SIMPLEX
# The class that is left without a tint.
BACKGROUND = "background"


def class_colour(number: int) -> tuple[int, int, int]:
    """An RGB colour for a class number; the same for the same number always."""
    hue = int(180 * ((number * _GOLDEN + 0.58) % 1.0))
    value = (235, 190, 215)[number % 3]
    pixel = cv2.cvtColor(np.array([[[hue, 200, value]]], np.uint8), cv2.COLOR_HSV2RGB)[0, 0]
    return int(pixel[0]), int(pixel[1]), int(pixel[2])


def draw_boxes(
    image: np.ndarray, boxes: np.ndarray, captions: Sequence[str], colours: Sequence[tuple[int, int, int]]
) -> np.ndarray:
    """A copy of `image` uint8 (H, W, 3) with `boxes` (N, 4) xyxy in pixels, each in its colour under its caption.

    Lines and letters grow with the image. A caption stands above its box, or where there is no room or another caption,
    within it or below; the last boxes choose first.
    """
    drawn: np.ndarray = np.ascontiguousarray(image).copy()
    scale = max(image.shape[:2]) / 640
    line = max(1, round(2 * scale))
    for box, colour in zip(boxes, colours, strict=True):
        (left, top), (right, bottom) = (tuple(map(int, np.rint(corner))) for corner in (box[:2], box[2:]))
        cv2.rectangle(drawn, (left, top), (right - 1, bottom - 1), colour, line)
    taken: list[_Place] = []
    for box, caption, colour in reversed(list(zip(boxes, captions, colours, strict=True))):
        taken.append(_caption(drawn, box, caption, colour, max(0.35, 0.45 * scale), taken))
    return drawn


# Left, top, right and bottom of a caption, in pixels.
_Place: TypeAlias = tuple[int, int, int, int]


def _caption(
    drawn: np.ndarray, box: np.ndarray, text: str, colour: tuple[int, int, int], size: float, taken: Sequence[_Place]
) -> _Place:
    """Write a caption where none of those `taken` is, and return where."""
    thickness = max(1, round(1.4 * size))
    (width, height), below = cv2.getTextSize(text, _FONT, size, thickness)
    left = int(min(max(box[0], 0), max(0, drawn.shape[1] - width - 4)))
    tall = height + below + 4
    edge, end = (int(np.rint(min(max(side, 0), drawn.shape[0]))) for side in (box[1], box[3]))
    tops = [top for top in (edge - tall, edge, end, end - tall) if 0 <= top <= drawn.shape[0] - tall] or [0]
    places = [(left, top, left + width + 4, top + tall) for top in tops]
    place = next((place for place in places if not any(_meet(place, other) for other in taken)), places[0])
    top, bottom = place[1], place[3]
    cv2.rectangle(drawn, (left, top), (left + width + 4, bottom), colour, cv2.FILLED)
    dark = sum(share * channel for share, channel in zip((0.299, 0.587, 0.114), colour, strict=True)) < 140
    ink = (255, 255, 255) if dark else (0, 0, 0)
    cv2.putText(drawn, text, (left + 2, bottom - below), _FONT, size, ink, thickness, cv2.LINE_AA)
    return place


def _meet(first: _Place, second: _Place) -> bool:
    across = first[0] < second[2] and second[0] < first[2]
    return across and first[1] < second[3] and second[1] < first[3]


def draw_classes(
    image: np.ndarray, mask: np.ndarray, labels: Sequence[str], *, opacity: float = 0.5, legend: bool = True
) -> np.ndarray:
    """`draw_mask` in the colours of the classes, with a legend of those that are there.

    A class called "background" is left as it is, so that one sees what it is the background of.
    """
    colours = [class_colour(number) for number in range(len(labels))]
    shown = np.unique(mask[mask < len(labels)]).tolist()
    if BACKGROUND in labels:
        nothing = labels.index(BACKGROUND)
        mask = np.where(mask == nothing, np.uint8(255), mask)
        shown = [number for number in shown if number != nothing]
    picture = draw_mask(image, mask, colours, opacity=opacity)
    if not legend:
        return picture
    return with_legend(picture, [labels[k] for k in shown], [colours[k] for k in shown])


def draw_mask(
    image: np.ndarray, mask: np.ndarray, colours: Sequence[tuple[int, int, int]], *, opacity: float = 0.5
) -> np.ndarray:
    """A copy of `image` uint8 (H, W, 3) tinted by class, with a line between classes.

    Args:
        image: RGB.
        mask: class numbers uint8 (H, W); numbers without colour are left as they are.
        colours: RGB of each class number.
        opacity: share of the tint, 0 to 1.
    """
    table = np.zeros((256, 3), np.uint8)
    table[: len(colours)] = colours
    tint = table[mask]
    coloured = (mask < len(colours))[..., None]
    drawn = np.where(coloured, cv2.addWeighted(tint, opacity, image, 1 - opacity, 0), image)
    edge = np.zeros(mask.shape, bool)
    edge[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    edge[1:] |= mask[1:] != mask[:-1]
    return np.where((edge & coloured[..., 0])[..., None], tint, drawn).astype(np.uint8)


def with_legend(picture: np.ndarray, labels: Sequence[str], colours: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """`picture` with a strip to the right that has each label beside its colour."""
    row = 22
    width = 40 + max((cv2.getTextSize(label, _FONT, 0.45, 1)[0][0] for label in labels), default=0)
    height = max(picture.shape[0], 10 + row * len(labels))
    sheet = np.full((height, picture.shape[1] + width, 3), 255, np.uint8)
    sheet[: picture.shape[0], : picture.shape[1]] = picture
    for number, (label, colour) in enumerate(zip(labels, colours, strict=True)):
        x, y = picture.shape[1] + 8, 8 + row * number
        cv2.rectangle(sheet, (x, y), (x + 16, y + 14), colour, cv2.FILLED)
        cv2.putText(sheet, label, (x + 22, y + 12), _FONT, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
    return sheet


def write_png(path: str | Path, image: np.ndarray) -> None:
    """Write `image` uint8 RGB (H, W, 3) as a PNG file.

    Raises:
        OSError: where the file cannot be written.
    """
    encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1]
    Path(path).write_bytes(encoded.tobytes())
