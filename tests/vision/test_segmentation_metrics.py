from __future__ import annotations

import numpy as np
import pytest

from vision.annotations import IGNORED
from vision.segmentation_metrics import pixel_counts, segmentation_metrics


def test_no_pixel_that_counts():
    counts = pixel_counts(np.full((2, 2), IGNORED, np.uint8), np.zeros((2, 2), np.uint8), 3)
    assert counts.tolist() == [[0] * 3] * 3
    with pytest.raises(ValueError, match="No pixel belongs to a class"):
        segmentation_metrics(counts, ["a", "b", "c"])


def test_hand_counted():
    truth = np.array([[0, 0, 1, 1], [0, 2, 1, IGNORED]], np.uint8)
    answer = np.array([[0, 1, 1, 1], [0, 0, 0, 2]], np.uint8)
    counts = pixel_counts(truth, answer, 4)
    assert counts.tolist() == [[2, 1, 0, 0], [1, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    metrics, details = segmentation_metrics(counts, ["a", "b", "c", "never"])
    # a: 2 of 2 + 1 + 2; b: 2 of 2 + 1 + 1; c: 0 of 1; the fourth occurs nowhere and is left out.
    assert metrics["mean_iou"] == pytest.approx((2 / 5 + 2 / 4 + 0) / 3)
    assert metrics["pixel_accuracy"] == pytest.approx(4 / 7)
    assert details["per_class"][3]["iou"] is None
    assert details["per_class"][0] == {"label": "a", "iou": 0.4, "recall": 2 / 3, "precision": 0.5, "pixels": 3}


def test_counts_over_images_add_up_to_those_of_all():
    rng = np.random.default_rng(0)
    truth, answer = rng.integers(0, 4, (5, 6, 7), np.uint8), rng.integers(0, 4, (5, 6, 7), np.uint8)
    parts = sum(pixel_counts(t, a, 4) for t, a in zip(truth, answer, strict=True))
    np.testing.assert_array_equal(parts, pixel_counts(truth, answer, 4))


def test_agrees_with_scikit_learn():
    from sklearn.metrics import confusion_matrix, jaccard_score

    rng = np.random.default_rng(1)
    truth = rng.integers(0, 5, 500).astype(np.uint8)
    answer = np.where(rng.random(500) < 0.6, truth, rng.integers(0, 5, 500)).astype(np.uint8)
    counts = pixel_counts(truth, answer, 5)
    np.testing.assert_array_equal(counts, confusion_matrix(truth, answer))
    mean_iou = segmentation_metrics(counts, list("abcde"))[0]["mean_iou"]
    assert mean_iou == pytest.approx(jaccard_score(truth, answer, average="macro"))


def test_shapes_must_be_equal():
    with pytest.raises(ValueError, match="equal shapes"):
        pixel_counts(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8), 2)
