"""Reader: polygons and run lengths of a COCO JSON file to raw (image path, `CocoMask`) examples.

Instances become classes: the first class is the background, the others are the categories in the order of their ids.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from shared.examples import BadExampleError, BadRecord, Examples, existing_directory, existing_file, tolerated
from vision.annotations import IGNORED
from vision.detection_data import (
    checked_size,
    coco_categories,
    coco_content,
    coco_directory,
    coco_entries,
    entry_key,
    entry_name,
)
from vision.drawing import BACKGROUND

Polygon: TypeAlias = tuple[float, ...]


@dataclass(frozen=True)
class MaskObject:
    """One instance: its class number, and either `polygons` (x, y, x, y, ... in pixels) or the `runs` of its pixels.

    Runs are counted column by column, first those outside, then those inside, and so on. `crowd` marks a region of
    several instances.
    """

    number: int
    polygons: tuple[Polygon, ...] = ()
    runs: tuple[int, ...] = ()
    crowd: bool = False

    def pixels(self, height: int, width: int) -> np.ndarray:
        """Which pixels belong to it, bool (height, width); polygons are filled as pycocotools fills them."""
        if self.runs:
            inside = np.arange(len(self.runs)) % 2 == 1
            return np.repeat(inside, self.runs).reshape(width, height).T
        from faster_coco_eval.core import mask as coco_mask

        parts = coco_mask.frPyObjects([list(polygon) for polygon in self.polygons], height, width)
        return np.asarray(coco_mask.decode(coco_mask.merge(parts)), bool)


@dataclass(frozen=True)
class CocoMask:
    """The mask of an image as the instances of a COCO file: the target of a segmenter. It is drawn by `read`.

    Smaller instances lie over larger ones. A crowd neither trains nor counts where no instance is, or is filled as any
    other with `fill_crowds`.
    """

    path: str
    labels: tuple[str, ...]
    size: tuple[int, int]
    objects: tuple[MaskObject, ...]
    fill_crowds: bool = False

    def read(self, shape: tuple[int, int] | None = None) -> np.ndarray:
        """Class numbers, uint8 (H, W), IGNORED in crowds.

        Args:
            shape: (H, W) of the image, which must be that of the file.

        Raises:
            BadExampleError: where it is another; the message begins with where the annotations are.
        """
        height, width = self.size
        if shape is not None and tuple(shape) != self.size:
            raise BadExampleError(
                f"the mask has {width}x{height} pixels and its image {shape[1]}x{shape[0]}; they must be equal",
                self.path,
            )
        drawn = np.zeros(self.size, np.uint8)
        parts = [(thing, thing.pixels(height, width)) for thing in self.objects]
        # Crowds first, then by falling area.
        for thing, pixels in sorted(parts, key=lambda part: (not part[0].crowd, -int(part[1].sum()))):
            drawn[pixels] = IGNORED if thing.crowd and not self.fill_crowds else thing.number
        return drawn


def read_coco_masks(
    annotations: str | Path,
    images: str | Path | None = None,
    *,
    classes: Sequence[str] | None = None,
    crowds: Literal["ignore", "fill"] = "ignore",
    max_bad_share: float = 0.01,
) -> Examples:
    """Examples of a COCO JSON file of instances for segmentation (https://cocodataset.org/#format-data).

    Class 0 is "background", then come the categories in the order of their ids. Images without annotations are all
    background. An image of whose annotations one cannot be read is left out, for its mask would be wrong there.

    Args:
        annotations: the JSON file.
        images: directory of the images; left out, it is looked for as `read_coco` does.
        classes: names of the categories that are classes, in this order; others count as background. Left out, all.
        crowds: "ignore" takes the pixels of regions of several instances (`iscrowd`) out of training and scores, where
            no instance is drawn over them; "fill" takes them as any other instance.
        max_bad_share: share of unusable images above which the file is refused; below, they are bad records.

    Raises:
        FileNotFoundError: where the file is missing, or no directory has the images.
        ValueError: for another format, an unknown class or option, or too many bad records.
    """
    if crowds not in ("ignore", "fill"):
        raise ValueError(f"`crowds` must be 'ignore' or 'fill'; received {crowds!r}.")
    file = existing_file(annotations)
    content = coco_content(file)
    names = coco_categories(file, content)
    labels = _labels(file, [names[key] for key in sorted(names)], classes)
    numbers = {key: labels.index(name) if name in labels else 0 for key, name in names.items()}
    bad: list[BadRecord] = []
    entries = coco_entries(file, content, lambda where, reason: bad.append(BadRecord(where, reason)))
    directory = coco_directory(file, entries) if images is None else existing_directory(images)
    of_images: dict[Any, list[tuple[int, Any]]] = defaultdict(list)
    for place, annotation in enumerate(content["annotations"]):
        of_images[entry_key(annotation, "image_id")].append((place, annotation))
    inputs, targets = [], []
    for key, entry in entries.items():
        path = directory / entry["file_name"]
        try:
            width, height = checked_size(path, entry_key(entry, "width"), entry_key(entry, "height"))
            things = _objects(file, of_images.pop(key, []), numbers, (height, width))
        except BadExampleError as error:
            bad.append(BadRecord(str(path), error.reason if error.where is None else f"{error.where}: {error.reason}"))
            continue
        inputs.append(str(path))
        targets.append(CocoMask(f"{file}, image {key}", labels, (height, width), things, crowds == "fill"))
    for key, left in of_images.items():
        bad += [
            BadRecord(f"{file}, {entry_name('annotation', thing, place)}", f"its image {key!r} is not in `images`")
            for place, thing in left
        ]
    return tolerated(Examples(inputs, targets, tuple(bad)), file, max_bad_share, things="images")


def _labels(file: Path, names: Sequence[str], classes: Sequence[str] | None) -> tuple[str, ...]:
    unknown = [name for name in classes or () if name not in (*names, BACKGROUND)]
    if unknown:
        raise ValueError(f"{file} has no category {unknown[0]!r}. Categories: {', '.join(names)}.")
    chosen = dict.fromkeys((BACKGROUND, *(names if classes is None else classes)))
    if len(chosen) > IGNORED:
        raise ValueError(
            f"{file} has {len(chosen) - 1} categories; a mask has at most {IGNORED - 1} beside the background. Choose "
            "some by `classes`."
        )
    return tuple(chosen)


def _objects(
    file: Path, things: Sequence[tuple[int, Any]], numbers: Mapping[int, int], size: tuple[int, int]
) -> tuple[MaskObject, ...]:
    objects = []
    for place, thing in things:
        try:
            objects.append(_object(thing, numbers, size))
        except BadExampleError as error:
            raise BadExampleError(error.reason, f"{file}, {entry_name('annotation', thing, place)}") from error
    return tuple(objects)


def _object(thing: Any, numbers: Mapping[int, int], size: tuple[int, int]) -> MaskObject:
    category = entry_key(thing, "category_id")
    if not isinstance(category, int) or category not in numbers:
        raise BadExampleError(f"its category {category!r} is not in `categories`")
    crowd = thing.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise BadExampleError(f"`iscrowd` must be 0 or 1; it is {crowd!r}")
    shape = thing.get("segmentation")
    if isinstance(shape, dict):
        return MaskObject(numbers[category], runs=_runs(shape, size), crowd=bool(crowd))
    if not isinstance(shape, list) or not shape:
        raise BadExampleError(
            "`segmentation` must be polygons or run lengths; there is none, so its pixels are unknown"
        )
    polygons = tuple(_polygon(part, size) for part in shape)
    return MaskObject(numbers[category], polygons=polygons, crowd=bool(crowd))


def _polygon(values: Any, size: tuple[int, int]) -> Polygon:
    numbers = values if isinstance(values, list) else []
    good = [value for value in numbers if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(good) < 6 or len(good) % 2 or len(good) != len(numbers) or not all(map(math.isfinite, good)):
        raise BadExampleError("`segmentation` must have polygons [x, y, x, y, ...] of three or more finite points")
    height, width = size
    # What lies a little outside is cut off; memory and time grow with what lies far outside.
    for places, side in ((good[::2], width), (good[1::2], height)):
        if min(places) < -side or max(places) > 2 * side:
            raise BadExampleError(f"a polygon of `segmentation` lies far outside the image of {width}x{height} pixels")
    return tuple(map(float, good))


def _runs(shape: Mapping[str, Any], size: tuple[int, int]) -> tuple[int, ...]:
    counts = shape.get("counts")
    if shape.get("size") != list(size):
        height, width = size
        raise BadExampleError(
            f"`segmentation.size` must be that of the image, {[height, width]}; it is {shape.get('size')}"
        )
    if isinstance(counts, str):
        counts = compressed_runs(counts)
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        raise BadExampleError("`segmentation.counts` must be whole numbers of pixels, or a string of them")
    if sum(counts) != size[0] * size[1]:
        raise BadExampleError(f"`segmentation.counts` cover {sum(counts)} pixels of {size[0] * size[1]}")
    return tuple(counts)


def compressed_runs(text: str) -> list[int]:
    """The run lengths that a string of COCO's compressed form stands for.

    Five bits a character from code 48 on, a sixth says that the number goes on; from the fourth number on each is the
    difference to the one two before (pycocotools, common/maskApi.c, `rleFrString`).

    Raises:
        BadExampleError: for a character out of range, or an end within a number.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            raise BadExampleError("`segmentation.counts` is no string of run lengths")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value, shift = 0, 0
    if shift:
        raise BadExampleError("`segmentation.counts` ends within a number")
    return counts
