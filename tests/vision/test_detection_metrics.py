"""The reference is pycocotools, run here on the same detections."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import pytest

from vision.detection_metrics import ScoredImage, coco_metrics


def _image(boxes=(), classes=(), crowd=None, found=(), found_classes=(), scores=()) -> ScoredImage:
    return ScoredImage(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(classes, np.int64),
        np.zeros(len(boxes), bool) if crowd is None else np.array(crowd),
        np.array(found, np.float32).reshape(-1, 4),
        np.array(found_classes, np.int64),
        np.array(scores, np.float32),
    )


def _random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corner = rng.random((count, 2)) * 300
    return np.concatenate([corner, corner + 4 + rng.random((count, 2)) * 150], axis=1)


def _random_image(rng: np.random.Generator, num_classes: int) -> ScoredImage:
    count = int(rng.integers(0, 9))
    boxes, classes = _random_boxes(rng, count), rng.integers(0, num_classes, count)
    kept = int(rng.integers(0, count + 1))
    near = boxes[:kept] + rng.normal(0, 5, (kept, 4))
    others = _random_boxes(rng, int(rng.integers(0, 6)))
    return ScoredImage(
        boxes,
        classes,
        rng.random(count) < 0.2,
        np.concatenate([near, others]),
        np.concatenate([classes[:kept], rng.integers(0, num_classes, len(others))]),
        rng.random(kept + len(others)).round(2),  # with ties
    )


def _reference(images: list[ScoredImage], num_classes: int) -> np.ndarray:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def xywh(box: np.ndarray) -> list[float]:
        return [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]

    annotations, results = [], []
    for number, image in enumerate(images):
        for box, kind, crowd in zip(image.boxes, image.classes, image.crowd, strict=True):
            x, y, w, h = xywh(box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(kind),
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": int(crowd),
                }
            )
        for box, kind, score in zip(image.found_boxes, image.found_classes, image.scores, strict=True):
            results.append({"image_id": number, "category_id": int(kind), "bbox": xywh(box), "score": float(score)})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": number} for number in range(len(images))],
            "categories": [{"id": k, "name": str(k)} for k in range(num_classes)],
            "annotations": annotations,
        }
        truth.createIndex()
        evaluation = COCOeval(truth, _loaded(truth, results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return np.asarray(evaluation.stats)


def _loaded(truth: Any, results: list[dict[str, Any]]) -> Any:
    from pycocotools.coco import COCO

    if results:
        return truth.loadRes(results)
    # It cannot load a list without results.
    nothing = COCO()
    nothing.dataset = {**truth.dataset, "annotations": []}
    nothing.createIndex()
    return nothing


@pytest.mark.parametrize("seed", range(5))
def test_metrics_are_those_of_pycocotools(seed):
    rng = np.random.default_rng(seed)
    images = [_random_image(rng, 4) for _ in range(40)]
    images += [
        _image(),
        _image(boxes=[[0, 0, 9, 9]], classes=[1]),
        _image(found=[[0, 0, 9, 9]], found_classes=[2], scores=[0.9]),
    ]
    metrics, details = coco_metrics(images, ["a", "b", "c", "d", "never"])
    reference = _reference(images, 5)
    got = [metrics["map"], metrics["map_50"], metrics["map_75"]]
    got += [details[name] for name in ("map_small", "map_medium", "map_large")]
    np.testing.assert_allclose(got, reference[:6], atol=1e-9)
    assert details["mar_100"] == pytest.approx(reference[8], abs=1e-9)
    assert details["per_class"][4] == {"label": "never", "map": None, "map_50": None, "objects": 0}
    assert np.mean([row["map"] for row in details["per_class"][:4]]) == pytest.approx(metrics["map"], abs=1e-9)


def test_perfect_answers_score_1():
    image = _image(
        [[0, 0, 20, 20], [30, 30, 90, 90]],
        [0, 1],
        found=[[0, 0, 20, 20], [30, 30, 90, 90]],
        found_classes=[0, 1],
        scores=[0.9, 0.8],
    )
    metrics, details = coco_metrics([image], ["a", "b"])
    assert list(metrics.values()) == pytest.approx([1, 1, 1])
    assert details["map_large"] is None  # none is that large


def test_what_lies_in_a_crowd_is_neither_right_nor_wrong():
    truth = {"boxes": [[0, 0, 20, 20], [100, 100, 200, 200]], "classes": [0, 0], "crowd": [False, True]}
    found = {"found": [[110, 110, 130, 130], [0, 0, 20, 20]], "found_classes": [0, 0], "scores": [0.9, 0.8]}
    assert coco_metrics([_image(**truth, **found)], ["a"])[0]["map"] == pytest.approx(1.0)
    truth["crowd"] = [False, False]
    assert coco_metrics([_image(**truth, **found)], ["a"])[0]["map"] < 0.5


def test_nothing_found_scores_0():
    images = [_image([[0, 0, 5, 5]], [0]), _image(), _image([[1, 1, 9, 9]], [1], crowd=[True])]
    metrics, details = coco_metrics(images, ["a", "b"])
    assert list(metrics.values()) == [0, 0, 0]
    assert _reference(images, 2)[:3].tolist() == [0, 0, 0]
    assert [row["map"] for row in details["per_class"]] == [0.0, None]


def test_without_an_object_there_is_no_precision():
    with pytest.raises(ValueError, match="no mAP"):
        coco_metrics([_image(found=[[0, 0, 5, 5]], found_classes=[0], scores=[0.5])], ["a"])
    with pytest.raises(ValueError, match="no mAP"):
        coco_metrics([_image([[0, 0, 5, 5]], [0], crowd=[True])], ["a"])
