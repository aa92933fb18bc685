"""Training images put together from four (mosaic), with their boxes.

Four scenes in one image show objects beside other ones and at the edges of a view (Bochkovskiy et al. 2020,
arXiv:2004.10934, section 3.3). Here the four come from the batch, whose images have been varied already.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vision.boxes import clip_boxes
from vision.geometry import visible_shares

# Where the four meet: not nearer to an edge than this share of the side.
_MARGIN = 0.25


@dataclass(frozen=True, eq=False)
class TrainingObjects:
    """The objects of a training image: boxes float32 (N, 4) xyxy in its pixels, classes int32 (N,), crowd bool (N,)."""

    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)

    def take(self, kept: np.ndarray) -> TrainingObjects:
        """Those at `kept`, an index array or a mask."""
        return TrainingObjects(self.boxes[kept], self.classes[kept], self.crowd[kept])


def within(
    objects: TrainingObjects, width: int, height: int, *, min_visible: float, min_side: float
) -> TrainingObjects:
    """Objects clipped to an image of `width` x `height` pixels, without those of which too little is left.

    An object is dropped where less than `min_visible` of its area is inside, or a side of what is inside is below
    `min_side` pixels. Crowds are clipped, and dropped only where nothing is left: what lies in them stays doubtful.
    """
    shares = visible_shares(objects.boxes, width, height)
    clipped = clip_boxes(objects.boxes, width, height)
    sides = (clipped[:, 2:] - clipped[:, :2]).min(axis=1, initial=np.inf) if len(clipped) else np.zeros(0)
    kept = np.where(objects.crowd, sides > 0, (shares >= min_visible) & (sides >= min_side))
    return TrainingObjects(clipped, objects.classes, objects.crowd).take(kept)


def joined(parts: list[TrainingObjects]) -> TrainingObjects:
    """All objects of several."""
    return TrainingObjects(
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.classes for part in parts]),
        np.concatenate([part.crowd for part in parts]),
    )


def mosaic(
    images: np.ndarray,
    objects: list[TrainingObjects],
    rng: np.random.Generator,
    *,
    share: float,
    min_visible: float,
    min_side: float,
) -> tuple[np.ndarray, list[TrainingObjects]]:
    """A batch of which a `share` of the images is made of four of its images.

    The four meet in a random point. Each quarter shows a window of its image, of the quarter's size and at a random
    place; the first is of the image itself.

    Args:
        images: uint8 (B, H, W, C).
        objects: of each image.
        rng: source of all choices.
        share: 0 to 1.
        min_visible: as for `within`.
        min_side: as for `within`.
    """
    height, width = images.shape[1:3]
    mixed, found = images.copy(), list(objects)
    for number in range(len(images)):
        if rng.random() >= share:
            continue
        others = rng.integers(len(images), size=3)
        cut_y, cut_x = (int(side * rng.uniform(_MARGIN, 1 - _MARGIN)) for side in (height, width))
        quarters = [
            (0, 0, cut_y, cut_x),
            (0, cut_x, cut_y, width),
            (cut_y, 0, height, cut_x),
            (cut_y, cut_x, height, width),
        ]
        parts = []
        for source, (top, left, bottom, right) in zip((number, *others), quarters, strict=True):
            high, wide = bottom - top, right - left
            from_y, from_x = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
            mixed[number, top:bottom, left:right] = images[source, from_y : from_y + high, from_x : from_x + wide]
            seen = objects[source]
            moved = TrainingObjects(seen.boxes - np.array([from_x, from_y] * 2, np.float32), seen.classes, seen.crowd)
            inside = within(moved, wide, high, min_visible=min_visible, min_side=min_side)
            parts.append(
                TrainingObjects(inside.boxes + np.array([left, top] * 2, np.float32), inside.classes, inside.crowd)
            )
        found[number] = joined(parts)
    return mixed, found
