"""What is in a set for detection or segmentation and what is wrong with it, in lines to read and a sheet to look at."""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from shared.examples import BadExampleError, Examples
from vision.annotations import IGNORED, MaskFile, ObjectBoxes
from vision.boxes import box_areas, box_iou
from vision.coco_masks import CocoMask
from vision.drawing import class_colour, draw_boxes, draw_classes, write_png
from vision.images import decode_image

# Lines that one kind of finding may fill, pictures on a sheet, and the side of each in pixels.
_SHOWN, _PICTURES, _SIDE = 10, 12, 320
# Two boxes of a class that overlap by more are taken for one object marked twice.
_SAME_OBJECT = 0.9
# Areas in pixels that part small from medium and large objects in COCO's scores.
_SMALL, _LARGE = 32**2, 96**2


def detection_report(examples: Examples, declared: Sequence[str] = (), pictures: Path | None = None) -> list[str]:
    """Images, objects, classes and sizes of a set with `ObjectBoxes`, and what is doubtful or bad in it.

    Args:
        examples: what a reader returned.
        declared: all classes that the set names, to find those without an object.
        pictures: a directory for `examples.png`, a sheet of images with their boxes.
    """
    objects: list[ObjectBoxes] = list(examples.targets)
    counts = Counter(label for target in objects for label in target.labels)
    empty = sum(not len(target) for target in objects)
    crowds = sum(int(target.crowd.sum()) for target in objects)
    total = sum(counts.values())
    areas = np.concatenate([box_areas(target.boxes) for target in objects]) if objects else np.zeros(0)
    lines = [f"{len(examples)} images, {empty} of them without an object; {total} objects, {crowds} of them crowds"]
    lines += _class_lines(counts, declared, "objects")
    small, large = int((areas < _SMALL).sum()), int((areas >= _LARGE).sum())
    lines.append(f"object sizes: {small} small (below 32 x 32 px), {total - small - large} medium, {large} large")
    paths = [str(path) for path in examples.inputs]
    lines += _findings("objects marked twice (same class, overlap above 0.9)", _marked_twice(paths, objects))
    lines += _common_lines(examples, paths)
    if pictures is not None:
        names = list(dict.fromkeys([*declared, *sorted(counts)]))
        lines.append(_write_sheet(pictures, paths, objects, lambda image, target: _with_boxes(image, target, names)))
    return lines


def segmentation_report(examples: Examples, pictures: Path | None = None) -> list[str]:
    """Images, classes and pixels of a set with masks, and what is bad in it; every mask is read.

    Args:
        examples: what a reader returned.
        pictures: a directory for `examples.png`, a sheet of images with their masks.
    """
    masks: list[MaskFile | CocoMask] = list(examples.targets)
    labels = masks[0].labels if masks else ()
    pixels, present, bad = np.zeros(256, np.int64), np.zeros(256, np.int64), []
    for path, mask in zip(examples.inputs, masks, strict=True):
        try:
            counts = np.bincount(mask.read(decode_image(path).shape[:2]).reshape(-1), minlength=256)
        except BadExampleError as error:
            bad.append(str(error))
            continue
        pixels += counts
        present += counts > 0
    total = max(1, int(pixels.sum()))
    lines = [
        f"{len(examples)} images with masks, {len(labels)} classes, {pixels[IGNORED] / total:.1%} of pixels ignored"
    ]
    lines += [
        f"  {label:24s} {pixels[k] / total:7.2%} of pixels, in {present[k]} images" for k, label in enumerate(labels)
    ]
    lines += _findings("classes that never occur", [label for k, label in enumerate(labels) if not pixels[k]])
    lines += _findings("images or masks that cannot be used", bad)
    lines += _common_lines(examples, [str(path) for path in examples.inputs])
    if pictures is not None:
        lines.append(_write_sheet(pictures, list(examples.inputs), masks, _with_mask))
    return lines


def _class_lines(counts: Counter[str], declared: Sequence[str], things: str) -> list[str]:
    total = max(1, sum(counts.values()))
    lines = [f"  {label:24s} {count:7d} {things} ({count / total:.1%})" for label, count in counts.most_common()]
    return lines + _findings("classes without an object", [label for label in declared if label not in counts])


def _common_lines(examples: Examples, paths: Sequence[str]) -> list[str]:
    lines = _findings("files that are equal byte for byte", _duplicates(paths))
    lines += _findings("bad records", [str(record) for record in examples.bad_records])
    return lines or ["nothing is wrong that a reader can see"]


def _findings(what: str, found: Sequence[str]) -> list[str]:
    if not found:
        return []
    rest = [f"  ... and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    return [f"{len(found)} {what}:", *(f"  {text}" for text in found[:_SHOWN]), *rest]


def _marked_twice(paths: Sequence[str], objects: Iterable[ObjectBoxes]) -> list[str]:
    found = []
    for path, target in zip(paths, objects, strict=True):
        same = np.array(target.labels)[:, None] == np.array(target.labels)[None, :]
        pairs = np.argwhere(np.triu((box_iou(target.boxes, target.boxes) > _SAME_OBJECT) & same, k=1))
        found += [f"{path}: {target.labels[i]} at {np.rint(target.boxes[i]).astype(int).tolist()}" for i, _ in pairs]
    return found


def _duplicates(paths: Sequence[str]) -> list[str]:
    by_size: dict[int, list[str]] = defaultdict(list)
    for path in paths:
        if Path(path).is_file():
            by_size[Path(path).stat().st_size].append(path)
    by_content: dict[str, list[str]] = defaultdict(list)
    for group in by_size.values():
        for path in group if len(group) > 1 else ():
            by_content[hashlib.sha256(Path(path).read_bytes()).hexdigest()].append(path)
    return [" = ".join(group) for group in by_content.values() if len(group) > 1]


def _write_sheet(
    directory: Path, paths: Sequence[Any], targets: Sequence[Any], draw: Callable[[np.ndarray, Any], np.ndarray]
) -> str:
    """Draw evenly spread examples side by side; returns a line that names the file."""
    directory.mkdir(parents=True, exist_ok=True)
    tiles = []
    for place in np.unique(np.linspace(0, len(paths) - 1, min(len(paths), _PICTURES)).astype(int)):
        try:
            tiles.append(_tile(draw(decode_image(paths[place]), targets[place])))
        except BadExampleError:
            continue  # in the report already, or found when it is trained on
    columns = max(1, math.ceil(math.sqrt(len(tiles))))
    blank = np.full((_SIDE, _SIDE, 3), 255, np.uint8)
    tiles += [blank] * (-len(tiles) % columns or (0 if tiles else 1))
    rows = [np.concatenate(tiles[start : start + columns], axis=1) for start in range(0, len(tiles), columns)]
    file = directory / "examples.png"
    write_png(file, np.concatenate(rows))
    return f"wrote {file}"


def _tile(picture: np.ndarray) -> np.ndarray:
    """The picture, fitted into a white square."""
    scale = _SIDE / max(picture.shape[:2])
    width, height = (max(1, round(side * scale)) for side in (picture.shape[1], picture.shape[0]))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    tile = np.full((_SIDE, _SIDE, 3), 255, np.uint8)
    tile[:height, :width] = cv2.resize(picture, (width, height), interpolation=interpolation)
    return tile


def _with_boxes(image: np.ndarray, target: ObjectBoxes, names: Sequence[str]) -> np.ndarray:
    colours = [class_colour(names.index(label)) for label in target.labels]
    captions = [
        f"{label}{' (crowd)' if crowd else ''}" for label, crowd in zip(target.labels, target.crowd, strict=True)
    ]
    return draw_boxes(image, target.boxes, captions, colours)


def _with_mask(image: np.ndarray, target: MaskFile | CocoMask) -> np.ndarray:
    return draw_classes(image, target.read(image.shape[:2]), target.labels)
