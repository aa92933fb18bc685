"""What classifiers of images and of texts have in common: targets, class weights, scores, answers. NumPy only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from shared import classification_metrics
from shared.examples import Examples, Source
from shared.pipeline import Metrics
from shared.vocabulary import Vocabulary


@dataclass(frozen=True)
class Classification:
    """Answer for one input: classes by falling probability.

    Single-label: the k most probable classes. Multi-label: the classes that reach the threshold, maybe none.
    """

    labels: tuple[str, ...]
    probabilities: tuple[float, ...]

    @property
    def label(self) -> str | None:
        """The most probable class; None where a multi-label answer is empty."""
        return self.labels[0] if self.labels else None

    @property
    def probability(self) -> float | None:
        """Probability of `label`."""
        return self.probabilities[0] if self.probabilities else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"labels": list(self.labels), "probabilities": [round(p, 6) for p in self.probabilities]}


def class_names(source: Source, *, multi_label: bool) -> Vocabulary:
    """The classes that occur, sorted; class numbers as they come from TFDS give "0", "1", ..."""
    values: set[Any] = set()
    for target in _targets(source):
        values.update(_label_set(target) if multi_label else (_plain_label(target),))
    if not values:
        raise ValueError("The training set has no examples, or none with a label. Check the path, or give `labels`.")
    if all(isinstance(value, int) for value in values):
        return Vocabulary(str(number) for number in range(max(values) + 1))
    return Vocabulary(sorted(values))


@dataclass(frozen=True)
class ClassLabels:
    """The classes of a classifier, and how targets and probabilities are read in their light.

    A target is a class name or a class number; with `multi_label` a tuple of them, or a 0/1 array with one entry per
    class. `threshold` is the probability from which a class is assigned (multi-label).
    """

    names: Vocabulary
    multi_label: bool = False
    threshold: float = 0.5

    def __len__(self) -> int:
        return len(self.names)

    def encode(self, target: Any) -> np.ndarray:
        """Class number (int32 scalar), or for multi-label classes one 0/1 per class (float32).

        Raises:
            ValueError: for a label that is none of the classes.
            TypeError: for a multi-label target that is no tuple and no 0/1 array.
        """
        if not self.multi_label:
            return np.asarray(self._number(target), np.int32)
        if isinstance(target, np.ndarray) and target.shape == (len(self),):
            return target.astype(np.float32)
        hot = np.zeros(len(self), np.float32)
        hot[[self._number(label) for label in _label_set(target)]] = 1.0
        return hot

    def _number(self, target: Any) -> int:
        if isinstance(target, bytes):
            target = target.decode()
        if isinstance(target, int | np.integer):
            if 0 <= target < len(self):
                return int(target)
        elif target in self.names:
            return int(self.names.encode([target])[0])
        known = ", ".join(map(str, list(self.names)[:5])) + (", ..." if len(self) > 5 else "")
        raise ValueError(
            f"Label {target!r} is none of the {len(self)} classes of this classifier ({known}). Correct the "
            'data, or give `labels=` ("from_data" learns them; a preset\'s head is then new).'
        )

    def balanced_weights(self, source: Source) -> np.ndarray:
        """Weight of each class (K,) float32, total / (classes * count), as scikit-learn's "balanced"."""
        counts = np.zeros(len(self))
        for target in _targets(source):
            counts += self.encode(target) if self.multi_label else np.eye(len(self))[self.encode(target)]
        weights: np.ndarray = counts.sum() / (len(self) * np.maximum(counts, 1.0))
        return weights.astype(np.float32)

    def score(self, probabilities: np.ndarray, targets: np.ndarray) -> Metrics:
        """Metrics of probabilities (N, K) against encoded targets (N,) or, for multi-label classes, (N, K).

        Single-label: `accuracy`, `top_5_accuracy`, `macro_f1`, and the confusion matrix among the details.
        Multi-label: `macro_f1` and `accuracy` (all classes of an example right).
        """
        names = [str(name) for name in self.names]
        if self.multi_label:
            chosen, truth = (probabilities >= self.threshold).astype(np.int64), targets.astype(np.int64)
            table = classification_metrics.multi_label_table(chosen, truth, names)
            values = {
                "macro_f1": classification_metrics.macro_f1(table),
                "accuracy": float(np.mean(np.all(chosen == truth, axis=1))),
            }
            return Metrics(values, details={"per_class": table})
        matrix = classification_metrics.confusion_matrix(targets, probabilities.argmax(axis=1), len(names))
        table = classification_metrics.per_class_table(matrix, names)
        values = {
            "accuracy": classification_metrics.accuracy(probabilities, targets),
            "top_5_accuracy": classification_metrics.top_k_accuracy(probabilities, targets, 5),
            "macro_f1": classification_metrics.macro_f1(table),
        }
        return Metrics(values, details={"confusion_matrix": matrix, "per_class": table})

    def ranked(self, probabilities: np.ndarray, top_k: int) -> tuple[tuple[str, ...], tuple[float, ...]]:
        """The classes of an answer and their probabilities, from one row of probabilities (K,)."""
        order = np.argsort(-probabilities, kind="stable")
        kept = int(np.sum(probabilities >= self.threshold)) if self.multi_label else top_k
        names = tuple(str(name) for name in self.names.decode(order[:kept]))
        return names, tuple(float(probabilities[i]) for i in order[:kept])


def _label_set(target: Any) -> tuple[Any, ...]:
    if isinstance(target, tuple | list):
        return tuple(target)
    raise TypeError(
        f"A multi-label target is a tuple of labels or a 0/1 array with one entry per class; received {target!r}."
    )


def _targets(source: Source) -> Iterator[Any]:
    """All targets of a source; a dataset is read through once for them."""
    return iter(source.targets) if isinstance(source, Examples) else (target for _, target in source)


def _plain_label(target: Any) -> Any:
    if isinstance(target, bytes):
        return target.decode()
    if isinstance(target, np.integer):
        return int(target)
    if target is None:
        raise ValueError(
            "An example has no label. Where it comes from a table, say which column has the labels: `label=` of the "
            "reader, --label-column of the script."
        )
    if not isinstance(target, str | int):
        raise TypeError(f"A target is a label (str) or a class number (int); received {type(target).__name__}.")
    return target
