"""Scores of segmentations, from counts of pixels over a whole set. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vision.annotations import IGNORED


def pixel_counts(truth: np.ndarray, answer: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels of each class (rows, truth) that were answered as each class (columns), int64 (K, K).

    Args:
        truth: class numbers uint8, any shape; IGNORED pixels are not counted.
        answer: class numbers 0..K-1 of the same shape.
        num_classes: K.

    Raises:
        ValueError: for shapes that differ.
    """
    if truth.shape != answer.shape:
        raise ValueError(f"`truth` and `answer` must have equal shapes; received {truth.shape} and {answer.shape}.")
    counted = truth != IGNORED
    pairs = truth[counted].astype(np.int64) * num_classes + answer[counted]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def segmentation_metrics(counts: np.ndarray, labels: Sequence[str]) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics of accumulated `pixel_counts` (K, K), and a table per class.

    `mean_iou` is the mean over classes of TP / (TP + FP + FN); a class that occurs neither in the truth nor in an
    answer is left out (Everingham et al. 2015, section 4.4, over the pixels of all images together).
    `pixel_accuracy` is the share of pixels that are right.

    Raises:
        ValueError: where no pixel was counted.
    """
    total = int(counts.sum())
    if not total:
        raise ValueError("No pixel belongs to a class: all are ignored. Check the masks and which values are ignored.")
    right = np.diag(counts).astype(np.float64)
    of_class, answered = counts.sum(axis=1), counts.sum(axis=0)
    union = of_class + answered - right
    iou = np.divide(right, union, out=np.full(len(right), np.nan), where=union > 0)
    table = [
        {
            "label": label,
            "iou": None if np.isnan(iou[k]) else float(iou[k]),
            "recall": float(right[k] / of_class[k]) if of_class[k] else None,
            "precision": float(right[k] / answered[k]) if answered[k] else None,
            "pixels": int(of_class[k]),
        }
        for k, label in enumerate(labels)
    ]
    metrics = {"mean_iou": float(np.nanmean(iou)), "pixel_accuracy": float(right.sum() / total)}
    return metrics, {"per_class": table, "pixel_counts": counts}
