"""What a text classifier has to beat: logistic regression on TF-IDF (scikit-learn)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shared.examples import Examples
from shared.pipeline import Metrics

_STRENGTHS = (1.0, 10.0, 100.0)
# Folds over which the strength is chosen, and the examples that are used for it at most.
_FOLDS, _CHOICE_SAMPLE = 3, 10_000


def tfidf_baseline(train: Examples, held_out: Examples) -> Metrics:
    """Scores of a logistic regression on TF-IDF of words and pairs of words, its strength chosen by cross-validation.

    Args:
        train: single-label examples of texts or pairs of texts.
        held_out: what is scored.

    Returns:
        `accuracy` and `macro_f1`; `details["strength"]` is the inverse regularisation C that was chosen.

    Raises:
        ImportError: where scikit-learn is not installed.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline

    def model(strength: float) -> Any:
        return make_pipeline(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b|[^\w\s]"),
            LogisticRegression(C=strength, max_iter=1000),
        )

    texts, labels = _joined(train.inputs), np.asarray(train.targets, dtype=str)
    some = np.random.default_rng(0).permutation(len(texts))[:_CHOICE_SAMPLE]
    rarest = int(np.unique(labels[some], return_counts=True)[1].min())
    strength = 10.0
    if rarest >= _FOLDS:
        folds = StratifiedKFold(_FOLDS)
        sample = [texts[i] for i in some]
        scores = {c: cross_val_score(model(c), sample, labels[some], cv=folds).mean() for c in _STRENGTHS}
        strength = max(scores, key=lambda c: float(scores[c]))
    fitted = model(strength).fit(texts, labels)
    predicted, truth = fitted.predict(_joined(held_out.inputs)), np.asarray(held_out.targets, dtype=str)
    values = {
        "accuracy": float(np.mean(predicted == truth)),
        "macro_f1": float(f1_score(truth, predicted, average="macro", zero_division=0.0)),
    }
    return Metrics(values, details={"strength": strength})


def _joined(inputs: Sequence[Any] | np.ndarray) -> list[str]:
    return [text if isinstance(text, str) else " \n ".join(text) for text in inputs]
