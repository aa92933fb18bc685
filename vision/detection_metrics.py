"""Scores of detections, by COCO's protocol (https://cocodataset.org/#detection-eval). No TensorFlow.

The counting is faster-coco-eval's, whose numbers are those of pycocotools.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vision.boxes import box_areas

# COCO scores the best hundred objects of an image.
MAX_DETECTIONS = 100


@dataclass(frozen=True, eq=False)
class ScoredImage:
    """What is in an image and what was found in it.

    `boxes` float (N, 4) xyxy in pixels, `classes` (N,) numbers and `crowd` (N,) bool are the truth; `found_boxes`
    (M, 4), `found_classes` (M,) and `scores` (M,) the answer.
    """

    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    found_boxes: np.ndarray
    found_classes: np.ndarray
    scores: np.ndarray


def scored_images(answers: Mapping[str, np.ndarray]) -> list[ScoredImage]:
    """Images from the rows of all.

    Args:
        answers: `num_boxes` (I,) says how many rows of `boxes`, `classes` and `crowd` are an image's, `num_found` (I,)
            how many of `found` (M, 6): xyxy, score, class.
    """
    places, found_places = (np.cumsum(answers[name])[:-1] for name in ("num_boxes", "num_found"))
    truth = [np.split(answers[name], places) for name in ("boxes", "classes", "crowd")]
    return [
        ScoredImage(boxes, classes, crowd, rows[:, :4], rows[:, 5].astype(np.int64), rows[:, 4])
        for boxes, classes, crowd, rows in zip(*truth, np.split(answers["found"], found_places), strict=True)
    ]


def coco_metrics(images: Sequence[ScoredImage], labels: Sequence[str]) -> tuple[dict[str, float], dict[str, Any]]:
    """Mean average precision over classes that occur, and details.

    `map` is the mean over overlaps (IoU) from 0.50 to 0.95 in steps of 0.05, `map_50` and `map_75` those at one
    overlap; 101 recall points, at most 100 detections an image, crowds as COCO treats them: what lies in them is
    neither right nor wrong. The details have `map_small` (below 32 x 32 pixels of box area), `map_medium`,
    `map_large` (from 96 x 96 pixels on; None where there are no such objects), `mar_100` (mean recall) and
    `per_class`, a table with the AP, the AP at 0.50 and the number of objects of each class.

    Raises:
        ValueError: where no image has an object that counts: precision is then not defined.
    """
    if not any((~image.crowd).any() for image in images):
        raise ValueError("None of the images has an object that counts, so there is no mAP. Score images with objects.")
    if not sum(len(image.scores) for image in images):
        return _nothing_found(images, labels)
    evaluation = _evaluated(images, len(labels))
    stats = [float(value) for value in evaluation.stats[:12]]
    metrics = {"map": stats[0], "map_50": stats[1], "map_75": stats[2]}
    details: dict[str, Any] = {
        name: None if stats[place] < 0 else stats[place]
        for name, place in (("map_small", 3), ("map_medium", 4), ("map_large", 5), ("mar_100", 8))
    }
    # (overlaps, recalls, classes, areas, numbers of detections); -1 for a class that does not occur.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    details["per_class"] = _table(
        images,
        labels,
        [_mean(precision[:, :, k]) for k in range(len(labels))],
        [_mean(precision[0, :, k]) for k in range(len(labels))],
    )
    return metrics, details


def _evaluated(images: Sequence[ScoredImage], num_classes: int) -> Any:
    from faster_coco_eval import COCO, COCOeval_faster

    truth = COCO(
        {
            "images": [{"id": number} for number in range(len(images))],
            "categories": [{"id": number, "name": str(number)} for number in range(num_classes)],
            "annotations": _annotations(images),
        }
    )
    evaluation = COCOeval_faster(truth, truth.loadRes(_results(images)), iouType="bbox", print_function=_silent)
    evaluation.run()
    return evaluation


def _silent(*_: object) -> None:
    return None


def _annotations(images: Sequence[ScoredImage]) -> list[dict[str, Any]]:
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(images):
        for box, area, kind, crowd in zip(
            _as_xywh(image.boxes), box_areas(image.boxes), image.classes, image.crowd, strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(kind),
                    "bbox": box.tolist(),
                    "area": float(area),
                    "iscrowd": int(crowd),
                }
            )
    return annotations


def _results(images: Sequence[ScoredImage]) -> list[dict[str, Any]]:
    return [
        {"image_id": number, "category_id": int(kind), "bbox": box.tolist(), "score": float(score)}
        for number, image in enumerate(images)
        for box, kind, score in zip(_as_xywh(image.found_boxes), image.found_classes, image.scores, strict=True)
    ]


def _as_xywh(boxes: np.ndarray) -> np.ndarray:
    boxes = boxes.astype(np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _mean(precision: np.ndarray) -> float | None:
    counted = precision[precision > -1]
    return float(counted.mean()) if counted.size else None


def _nothing_found(images: Sequence[ScoredImage], labels: Sequence[str]) -> tuple[dict[str, float], dict[str, Any]]:
    table = _table(images, labels, [0.0] * len(labels), [0.0] * len(labels))
    areas = dict.fromkeys(("map_small", "map_medium", "map_large", "mar_100"), 0.0)
    return {"map": 0.0, "map_50": 0.0, "map_75": 0.0}, {**areas, "per_class": table}


def _table(
    images: Sequence[ScoredImage], labels: Sequence[str], ap: Sequence[float | None], ap_50: Sequence[float | None]
) -> list[dict[str, Any]]:
    counts = np.zeros(len(labels), np.int64)
    for image in images:
        np.add.at(counts, image.classes[~image.crowd], 1)
    return [
        {
            "label": label,
            "map": ap[k] if counts[k] else None,
            "map_50": ap_50[k] if counts[k] else None,
            "objects": int(counts[k]),
        }
        for k, label in enumerate(labels)
    ]
