"""Boxes as arrays: areas, overlaps, non-maximum suppression. NumPy only.

Legend
    boxes   float (N, 4), xyxy: left, top, right, bottom in pixels; edges lie between pixels, so width is right - left
"""

from __future__ import annotations

import numpy as np

# A box that is narrower or lower, in pixels, is taken for a slip: the smallest that COCO marks have a few tenths.
MIN_SIDE = 0.1


def clip_boxes(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """`boxes` (N, 4) xyxy with every edge moved into an image of `width` x `height` pixels."""
    return np.asarray(np.clip(boxes, 0, [width, height, width, height]), np.float32)


def has_area(boxes: np.ndarray) -> np.ndarray:
    """Which `boxes` (N, 4) xyxy are at least MIN_SIDE pixels wide and high: bool (N,)."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return np.asarray((sides >= MIN_SIDE).all(axis=1))


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """Areas (N,) in square pixels; 0 where a right edge is left of the left one, or a bottom above the top."""
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    return np.asarray(sides[:, 0] * sides[:, 1])


def intersections(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Areas (N, M) that each of `first` (N, 4) shares with each of `second` (M, 4)."""
    top_left = np.maximum(first[:, None, :2], second[None, :, :2])
    bottom_right = np.minimum(first[:, None, 2:], second[None, :, 2:])
    sides = np.maximum(bottom_right - top_left, 0)
    return np.asarray(sides[..., 0] * sides[..., 1])


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union (N, M) of each of `first` (N, 4) with each of `second` (M, 4); 0 where both are empty."""
    shared = intersections(first, second)
    union = box_areas(first)[:, None] + box_areas(second)[None, :] - shared
    return np.asarray(np.where(union > 0, shared / np.maximum(union, 1e-12), 0.0))


def suppressed(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, *, iou: float) -> np.ndarray:
    """Greedy non-maximum suppression within each class: indices of what is kept, by falling score.

    A box is dropped where one of its class with a higher score is kept and overlaps it by more than `iou`. Equal
    scores go by their order.

    Args:
        boxes: (N, 4) xyxy.
        scores: (N,).
        classes: (N,) numbers of the classes.
        iou: overlap from which on two boxes are taken for one object, 0 to 1.
    """
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(int(best))
        same = classes[rest] == classes[best]
        order = rest[~(same & (box_iou(boxes[best : best + 1], boxes[rest])[0] > iou))]
    return np.array(kept, np.int64)
