"""Classification metrics and their picture. NumPy and OpenCV only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np


def accuracy(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Share of examples whose most probable class is the target.

    Args:
        probabilities: (N, K).
        targets: class numbers (N,).
    """
    return float(np.mean(probabilities.argmax(axis=1) == targets))


def top_k_accuracy(probabilities: np.ndarray, targets: np.ndarray, k: int) -> float:
    """Share of examples whose target is among the k most probable classes; ties count against it."""
    own = np.take_along_axis(probabilities, targets[:, None], axis=1)
    at_least_as_probable = np.sum(probabilities >= own, axis=1)
    return float(np.mean(at_least_as_probable <= k))


def confusion_matrix(targets: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts (K, K): row = true class, column = predicted class."""
    pairs = np.bincount(targets * num_classes + predictions, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def per_class_table(matrix: np.ndarray, labels: Sequence[str]) -> list[dict[str, Any]]:
    """One row per class with `label`, `precision`, `recall`, `f1` and `support`; 0 where a ratio has no denominator."""
    hits = np.diag(matrix).astype(float)
    return _rows(hits, predicted=matrix.sum(axis=0), actual=matrix.sum(axis=1), labels=labels)


def multi_label_table(chosen: np.ndarray, targets: np.ndarray, labels: Sequence[str]) -> list[dict[str, Any]]:
    """As `per_class_table`, from 0/1 arrays (N, K) of chosen and true classes."""
    hits = np.sum(chosen * targets, axis=0).astype(float)
    return _rows(hits, predicted=chosen.sum(axis=0), actual=targets.sum(axis=0), labels=labels)


def _rows(
    hits: np.ndarray, *, predicted: np.ndarray, actual: np.ndarray, labels: Sequence[str]
) -> list[dict[str, Any]]:
    precision = hits / np.maximum(predicted, 1)
    recall = hits / np.maximum(actual, 1)
    f1 = 2 * hits / np.maximum(predicted + actual, 1)
    counts = (actual.astype(int).tolist(), predicted.astype(int).tolist())
    columns = zip(labels, precision.tolist(), recall.tolist(), f1.tolist(), *counts, strict=True)
    names = ("label", "precision", "recall", "f1", "support", "predicted")
    return [dict(zip(names, row, strict=True)) for row in columns]


def macro_f1(table: Sequence[dict[str, Any]]) -> float:
    """Mean F1 over the classes that occur, in the targets or in the predictions."""
    occurring = [row["f1"] for row in table if row["support"] or row["predicted"]]
    return float(np.mean(occurring)) if occurring else 0.0


def draw_confusion_matrix(matrix: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """The matrix as a picture, uint8 RGB: a darker cell is a larger share of its row; counts where they fit."""
    count = len(labels)
    cell = int(np.clip(640 // count, 8, 64))
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.45
    names = [_shortened(label) for label in labels] if cell >= 14 else [""] * count
    margin = 64 + max((cv2.getTextSize(name, font, scale, 1)[0][0] for name in names), default=0)
    side = cell * count
    picture = np.full((side + margin + 40, side + margin + 40, 3), 255, np.uint8)
    left, top = margin, 56
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    for row, column in np.ndindex(count, count):
        x, y = left + column * cell, top + row * cell
        _draw_cell(picture, (x, y), cell, float(shares[row, column]), int(matrix[row, column]))
    cv2.rectangle(picture, (left, top), (left + side, top + side), (90, 90, 90), 1, cv2.LINE_AA)
    for number, name in enumerate(names):
        middle = number * cell + cell // 2
        width = cv2.getTextSize(name, font, scale, 1)[0][0]
        _text(picture, name, (left - 8 - width, top + middle + 5), scale)
        _vertical_text(picture, name, left + middle - 6, top + side + 8, scale)
    _text(picture, "confusion matrix: rows true, columns predicted", (left, 24), 0.5)
    right = int(np.trace(matrix))
    _text(picture, f"{right} of {int(matrix.sum())} right", (left, 44), scale, colour=(90, 90, 90))
    return picture


def _draw_cell(picture: np.ndarray, corner: tuple[int, int], cell: int, share: float, count: int) -> None:
    low, high = np.array([247, 251, 255]), np.array([8, 48, 107])
    colour = tuple(int(value) for value in low + (high - low) * share**0.6)
    x, y = corner
    cv2.rectangle(picture, corner, (x + cell - 1, y + cell - 1), colour, -1)
    text = str(count)
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.42, 1)
    if count and width < cell - 4:
        ink = (255, 255, 255) if share > 0.35 else (40, 40, 40)
        _text(picture, text, (x + (cell - width) // 2, y + (cell + height) // 2), 0.42, colour=ink)


def _text(
    picture: np.ndarray, text: str, origin: tuple[int, int], scale: float, *, colour: tuple[int, ...] = (40, 40, 40)
) -> None:
    cv2.putText(picture, text, origin, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, 1, cv2.LINE_AA)


def _vertical_text(picture: np.ndarray, text: str, x: int, y: int, scale: float) -> None:
    if not text:
        return
    (width, height), baseline = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    strip = np.full((height + baseline + 2, width + 2, 3), 255, np.uint8)
    _text(strip, text, (0, height), scale)
    turned = cv2.rotate(strip, cv2.ROTATE_90_COUNTERCLOCKWISE)
    room = picture[y : y + turned.shape[0], x : x + turned.shape[1]]
    room[:] = turned[: room.shape[0], : room.shape[1]]


def _shortened(label: str) -> str:
    plain = label.encode("ascii", "replace").decode()
    return plain if len(plain) <= 16 else plain[:15] + "."
