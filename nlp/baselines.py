"""What a text classifier has to beat: linear models on TF-IDF (scikit-learn)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from nlp.metrics import regression_scores
from shared.examples import Examples
from shared.pipeline import Metrics

Kind: TypeAlias = Literal["classification", "multi_label", "regression"]

_STRENGTHS = (1.0, 10.0, 100.0)
# Folds over which the strength is chosen, and the examples that are used for it at most.
_FOLDS, _CHOICE_SAMPLE = 3, 10_000


def tfidf_baseline(train: Examples, held_out: Examples, *, kind: Kind = "classification") -> Metrics:
    """Scores of a linear model on TF-IDF of words and pairs of words, its strength chosen by cross-validation.

    Args:
        train: examples of texts or pairs of texts.
        held_out: what is scored.
        kind: with one label each, with any number, or with numbers as targets.

    Returns:
        `accuracy` and `macro_f1` of a logistic regression; `macro_f1` of one for each of several labels; what
        `regression_scores` gives of a ridge regression. `details["strength"]` is the inverse regularisation C (ridge:
        1 / alpha) that was chosen.

    Raises:
        ImportError: where scikit-learn is not installed.
        ValueError: for targets of another kind.
    """
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    classes: Sequence[str] = ()
    if kind == "classification":
        truths = [np.asarray(part.targets, dtype=str) for part in (train, held_out)]
    elif kind == "multi_label":
        classes = sorted({str(label) for target in train.targets for label in target})
        truths = [_indicators(part.targets, classes) for part in (train, held_out)]
    else:
        truths = [np.asarray(part.targets, dtype=np.float64) for part in (train, held_out)]
    texts, targets = _joined(train.inputs), truths[0]
    some = np.random.default_rng(0).permutation(len(texts))[:_CHOICE_SAMPLE]
    strength = _STRENGTHS[len(_STRENGTHS) // 2]
    if _can_be_folded(targets[some], kind):
        folds = StratifiedKFold(_FOLDS) if kind == "classification" else _FOLDS
        search = GridSearchCV(_linear_model(kind, strength), _grid(kind), cv=folds, refit=False)
        search.fit([texts[i] for i in some], targets[some])
        strength = _strength_of(search.best_params_)
    predicted = _linear_model(kind, strength).fit(texts, targets).predict(_joined(held_out.inputs))
    metrics = _scores(kind, predicted, truths[1])
    metrics.details["strength"] = strength
    return metrics


def _linear_model(kind: Kind, strength: float) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import Pipeline

    features = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b|[^\w\s]")
    if kind == "regression":
        return Pipeline([("features", features), ("model", Ridge(alpha=1 / strength))])
    model = LogisticRegression(C=strength, max_iter=1000)
    return Pipeline([("features", features), ("model", OneVsRestClassifier(model) if kind == "multi_label" else model)])


def _grid(kind: Kind) -> dict[str, list[float]]:
    if kind == "regression":
        return {"model__alpha": [1 / strength for strength in _STRENGTHS]}
    return {"model__estimator__C" if kind == "multi_label" else "model__C": list(_STRENGTHS)}


def _strength_of(chosen: Mapping[str, float]) -> float:
    ((name, value),) = chosen.items()
    return 1 / value if name == "model__alpha" else value


def _can_be_folded(targets: np.ndarray, kind: Kind) -> bool:
    """Whether each fold can have examples of each class."""
    if kind == "classification":
        return int(np.unique(targets, return_counts=True)[1].min()) >= _FOLDS
    # Of several labels one may be missing from a fold, of which scikit-learn would warn.
    both = kind == "regression" or bool(np.all((targets.sum(axis=0) > _FOLDS) & ((1 - targets).sum(axis=0) > _FOLDS)))
    return len(targets) >= 10 * _FOLDS and both


def _indicators(targets: Sequence[Any] | np.ndarray, classes: Sequence[str]) -> np.ndarray:
    places = {name: place for place, name in enumerate(classes)}
    indicators = np.zeros((len(targets), len(classes)), np.int64)
    for row, target in zip(indicators, targets, strict=True):
        row[[places[str(label)] for label in target if str(label) in places]] = 1
    return indicators


def _scores(kind: Kind, predicted: np.ndarray, truth: np.ndarray) -> Metrics:
    from sklearn.metrics import f1_score

    if kind == "regression":
        return regression_scores(predicted, truth)
    values = {"macro_f1": float(f1_score(truth, predicted, average="macro", zero_division=0.0))}
    if kind == "classification":
        values = {"accuracy": float(np.mean(predicted == truth)), **values}
    return Metrics(values)


def _joined(inputs: Sequence[Any] | np.ndarray) -> list[str]:
    return [text if isinstance(text, str) else " \n ".join(text) for text in inputs]
