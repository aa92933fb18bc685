"""Metrics of text tasks. NumPy and plain Python only; those of classifiers are in `shared.classification_metrics`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any, TypeAlias

import numpy as np

from shared.pipeline import Metrics

# (type, start, end); whatever makes two entities differ comes after the type.
_Entity: TypeAlias = tuple[Hashable, ...]


def entity_scores(true: Sequence[Sequence[_Entity]], predicted: Sequence[Sequence[_Entity]]) -> Metrics:
    """Strict entity-level scores: a predicted entity is right where type, start and end all are.

    Equal to seqeval's strict mode where the entities were read from IOB2 or BIOES tags with `malformed="drop"`, and
    to conlleval where they were read from IOB1 or IOB2 tags with "repair" (see `nlp.tags.entities`). 0 where a ratio
    has no denominator.

    Args:
        true: for each text its entities (type, start, end); an entity counts once however often it is listed.
        predicted: the same for the answers.

    Returns:
        `f1`, `precision` and `recall` over all entities, `f1_<TYPE>` for each type that occurs; `details["per_type"]`
        has a row per type with `label`, `precision`, `recall`, `f1`, `support` and `predicted`.

    Raises:
        ValueError: for no texts, or lists of unequal length.

    Example:
        >>> scores = entity_scores([[("PER", 0, 2), ("LOC", 5, 6)]], [[("PER", 0, 2), ("LOC", 4, 6)]])
        >>> scores["f1"], scores["f1_PER"], scores["f1_LOC"]
        (0.5, 1.0, 0.0)
    """
    if len(true) != len(predicted):
        raise ValueError(
            f"Expected the entities of as many texts in both lists; received {len(true)} true and {len(predicted)} "
            "predicted."
        )
    if not len(true):
        raise ValueError("There are no texts to score: expected at least one, received 0.")
    hits, actual, answered = Counter[Any](), Counter[Any](), Counter[Any]()
    for true_entities, predicted_entities in zip(true, predicted, strict=True):
        expected, given = set(map(tuple, true_entities)), set(map(tuple, predicted_entities))
        actual.update(entity[0] for entity in expected)
        answered.update(entity[0] for entity in given)
        hits.update(entity[0] for entity in expected & given)
    table = [{"label": kind, **_ratios(hits[kind], actual[kind], answered[kind])} for kind in sorted(actual | answered)]
    total = _ratios(hits.total(), actual.total(), answered.total())
    values = {key: total[key] for key in ("f1", "precision", "recall")}
    return Metrics({**values, **{f"f1_{row['label']}": row["f1"] for row in table}}, details={"per_type": table})


def _ratios(hits: int, actual: int, predicted: int) -> dict[str, float]:
    return {
        "precision": hits / max(predicted, 1),
        "recall": hits / max(actual, 1),
        "f1": 2 * hits / max(actual + predicted, 1),
        "support": actual,
        "predicted": predicted,
    }


def regression_scores(predictions: np.ndarray, targets: np.ndarray) -> Metrics:
    """`spearman` (rank correlation, ties share their mean rank), `pearson` (correlation) and `rmse`.

    Args:
        predictions: (N,).
        targets: (N,).

    Returns:
        The three values; a correlation is 0 where one side is constant.

    Raises:
        ValueError: for no examples.
    """
    if len(targets) == 0:
        raise ValueError("There are no examples to score: expected at least one target, received 0.")
    predictions, targets = predictions.astype(np.float64), targets.astype(np.float64)
    return Metrics(
        {
            "spearman": _correlation(_ranks(predictions), _ranks(targets)),
            "pearson": _correlation(predictions, targets),
            "rmse": float(np.sqrt(np.mean((predictions - targets) ** 2))),
        }
    )


def translation_scores(predictions: Sequence[str], references: Sequence[str]) -> Metrics:
    """`bleu` (Papineni et al. 2002) and `chrf` (Popovic 2015) over all sentences, 0 to 100, as sacreBLEU computes them.

    `details["signatures"]` names how exactly, for each (Post 2018, arXiv:1804.08771).

    Args:
        predictions: translations as they are, not tokenized.
        references: one for each.

    Raises:
        ValueError: where there are none, or not as many of one as of the other.
    """
    from sacrebleu.metrics import BLEU, CHRF

    if not predictions or len(predictions) != len(references):
        raise ValueError(
            f"As many translations as references are needed; received {len(predictions)} and {len(references)}."
        )
    values: dict[str, float] = {}
    signatures: dict[str, str] = {}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        values[name] = float(metric.corpus_score(list(predictions), [list(references)]).score)
        signatures[name] = str(metric.get_signature())
    return Metrics(values, details={"signatures": signatures})


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: np.ndarray = (ends - (counts - 1) / 2)[inverse]
    return ranks


def _correlation(left: np.ndarray, right: np.ndarray) -> float:
    left, right = left - left.mean(), right - right.mean()
    norm = float(np.sqrt(np.sum(left**2) * np.sum(right**2)))
    return float(np.sum(left * right)) / norm if norm > 0 else 0.0
