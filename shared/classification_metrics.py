"""Classification metrics and their picture. NumPy and OpenCV only."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

# Of the picture of a confusion matrix: pixels above the matrix, the height of a line of names, the number of classes
# up to which they are named, and OpenCV's font scales.
_HEAD, _NAME_HEIGHT, _MAX_NAMED = 60, 14, 120
_TITLE_SCALE, _NAME_SCALE, _COUNT_SCALE = 0.5, 0.42, 0.42
# Colours of a share of 0 and of 1.
_LIGHT, _DARK = np.array([247, 251, 255]), np.array([8, 48, 107])


def accuracy(probabilities: np.ndarray, targets: np.ndarray) -> float:
    """Share of examples whose most probable class is the target.

    Args:
        probabilities: (N, K).
        targets: class numbers (N,).

    Raises:
        ValueError: for no examples, whose accuracy nobody knows.
    """
    _require_examples(targets)
    return float(np.mean(probabilities.argmax(axis=1) == targets))


def top_k_accuracy(probabilities: np.ndarray, targets: np.ndarray, k: int) -> float:
    """Share of examples whose target is among the k most probable classes; ties count against it.

    Raises:
        ValueError: for no examples.
    """
    _require_examples(targets)
    own = np.take_along_axis(probabilities, targets[:, None], axis=1)
    # Not ">=", which would take a model that answers NaN for perfect.
    at_least_as_probable = np.sum(~(probabilities < own), axis=1)
    return float(np.mean(at_least_as_probable <= k))


def _require_examples(targets: np.ndarray) -> None:
    if len(targets) == 0:
        raise ValueError("There are no examples to score: expected at least one target, received 0.")


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


def details_lines(details: Mapping[str, Any], pictures: Path | None = None) -> list[str]:
    """An evaluation's per-class table as lines for a terminal; with `pictures`, the confusion matrix is drawn there."""
    table = details.get("per_class")
    if not table:
        return []
    width = max(5, *(len(row["label"]) for row in table))
    lines = [f"{'class':{width}s}  precision  recall      f1  support"]
    lines += [
        f"{r['label']:{width}s}  {r['precision']:9.4f}  {r['recall']:6.4f}  {r['f1']:6.4f}  {r['support']:7d}"
        for r in table
    ]
    if pictures is not None and "confusion_matrix" in details:
        pictures.mkdir(parents=True, exist_ok=True)
        target = pictures / "confusion_matrix.png"
        picture = draw_confusion_matrix(details["confusion_matrix"], [row["label"] for row in table])
        cv2.imwrite(str(target), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        lines.append(f"confusion matrix drawn in {target}")
    return [*lines, ""]


def draw_confusion_matrix(matrix: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    """The matrix as a picture, uint8 RGB: a darker cell is a larger share of its row; names and counts where they fit.

    Raises:
        ValueError: for no labels, or another number of labels than rows and columns.
    """
    count = len(labels)
    if not count or matrix.shape != (count, count):
        raise ValueError(f"Expected one label for each row and column of {matrix.shape}; received {count} labels.")
    named = count <= _MAX_NAMED
    # Named cells are never lower than a line of names.
    cell = int(np.clip(640 // count, _NAME_HEIGHT, 64)) if named else max(1, 1600 // count)
    names = [_shortened(label, number) if named else "" for number, label in enumerate(labels)]
    margin = 24 + max(_text_width(name, _NAME_SCALE) for name in names)
    side = cell * count
    titles = ("confusion matrix: rows true, columns predicted", f"{int(np.trace(matrix))} of {int(matrix.sum())} right")
    width = max(margin + side, 16 + _text_width(titles[0], _TITLE_SCALE)) + 24
    picture = np.full((_HEAD + side + margin, width, 3), 255, np.uint8)
    _text(picture, titles[0], (16, 24), _TITLE_SCALE)
    _text(picture, titles[1], (16, 44), _NAME_SCALE, colour=(90, 90, 90))
    _draw_cells(picture, matrix, (margin, _HEAD), cell)
    for number, name in enumerate(names):
        middle = number * cell + cell // 2
        _text(picture, name, (margin - 8 - _text_width(name, _NAME_SCALE), _HEAD + middle + 4), _NAME_SCALE)
        _vertical_text(picture, name, margin + middle - 6, _HEAD + side + 8, _NAME_SCALE)
    return picture


def _draw_cells(picture: np.ndarray, matrix: np.ndarray, corner: tuple[int, int], cell: int) -> None:
    (left, top), side = corner, cell * len(matrix)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    colours = (_LIGHT + (_DARK - _LIGHT) * shares[..., None] ** 0.6).astype(np.uint8)
    picture[top : top + side, left : left + side] = colours.repeat(cell, axis=0).repeat(cell, axis=1)
    cv2.rectangle(picture, (left - 1, top - 1), (left + side, top + side), (90, 90, 90), 1)
    # All counts or none: where only small ones fitted, the diagonal would look empty.
    if _text_width(str(int(matrix.max())), _COUNT_SCALE) < cell - 4:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            middle = (left + column * cell + cell // 2, top + row * cell + cell // 2)
            _draw_count(picture, middle, int(matrix[row, column]), float(shares[row, column]))


def _draw_count(picture: np.ndarray, middle: tuple[int, int], count: int, share: float) -> None:
    (width, height), _ = cv2.getTextSize(str(count), cv2.FONT_HERSHEY_SIMPLEX, _COUNT_SCALE, 1)
    ink = (255, 255, 255) if share > 0.35 else (40, 40, 40)
    origin = (int(middle[0]) - width // 2, int(middle[1]) + height // 2)
    _text(picture, str(count), origin, _COUNT_SCALE, colour=ink)


def _text_width(text: str, scale: float) -> int:
    return int(cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)[0][0])


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


def _shortened(label: str, number: int) -> str:
    """The label in ASCII, which is what every OpenCV can draw; the class number where nothing of it is left."""
    plain = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode().strip() or f"class {number}"
    return plain if len(plain) <= 24 else plain[:23] + "."
