"""What a ranker has to beat: logistic regression and gradient boosting, tuned on a part of the training rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from recsys.feature_encoder import FeatureEncoder
from recsys.features import Features, Numbers
from recsys.metrics import auc, log_loss
from shared.pipeline import Metrics

# The values that are tried, on a tenth of the training rows.
STRENGTHS = (0.03, 0.1, 0.3, 1.0)
LEAVES = (15.0, 31.0, 63.0)
# More rows are not learned from: baselines are to take a minute.
MOST_ROWS = 200_000
# Categories that scikit-learn's trees can tell apart.
_MOST_CATEGORIES = 250


def ranking_baselines(train: Features, test: Features, *, seed: int = 0) -> dict[str, Metrics]:
    """`auc`, `log_loss` and `accuracy` on `test` of both, with the chosen setting in `details`.

    Logistic regression sees categories one-hot (those of two rows or more), numbers standardised and as quantile
    ranges; trees see numbers as they are, and categories as such.

    Args:
        train: with targets 0 and 1.
        test: the same.
        seed: of the part of `train` on which settings are chosen.

    Raises:
        ImportError: without scikit-learn.
        ValueError: for targets that are not 0 and 1.
    """
    import sklearn  # noqa: F401  # said at once where it is missing

    assert train.targets is not None
    assert test.targets is not None
    if not np.isin(train.targets, (0, 1)).all():
        raise ValueError("Baselines of rankers are for targets 0 and 1.")
    rows = np.random.default_rng(seed).permutation(len(train))[:MOST_ROWS]
    tenth = max(1, len(rows) // 10)
    results = {}
    for name, settings, matrices, fitted in (
        ("logistic regression", STRENGTHS, _one_hot, _logistic),
        ("gradient boosting", LEAVES, _as_they_are, _boosted),
    ):
        learned, held = train.take(rows[tenth:]), train.take(rows[:tenth])
        x, x_held, options = matrices(learned, held)
        tried = [(_scores(fitted(x, learned.targets, s, options), x_held, held)["log_loss"], s) for s in settings]
        setting = min(tried)[1]
        everything = train.take(rows)
        x, x_test, options = matrices(everything, test)
        metrics = _scores(fitted(x, everything.targets, setting, options), x_test, test)
        results[name] = Metrics(dict(metrics), details={"setting": setting})
    return results


def _scores(model: Any, x: Any, data: Features) -> Metrics:
    chances, targets = model.predict_proba(x)[:, 1], data.targets
    assert targets is not None
    accuracy = float(np.mean((chances >= 0.5) == (targets == 1)))
    return Metrics({"auc": auc(chances, targets), "log_loss": log_loss(chances, targets), "accuracy": accuracy})


def _one_hot(train: Features, test: Features) -> tuple[Any, Any, dict[str, Any]]:
    encoder = FeatureEncoder.fit(train, min_count=2, max_vocabulary=20_000, buckets=10)
    return _sparse(encoder, train), _sparse(encoder, test), {}


def _sparse(encoder: FeatureEncoder, data: Features) -> sp.csr_matrix:
    """Categories and lists as 0 and 1, and numbers: (N, rows of the table + W)."""
    arrays = encoder.encode(data)
    numbers = [arrays[name] for name in ("categories", "lists") if name in arrays]
    parts = []
    if numbers:
        columns = np.concatenate(numbers, axis=1)
        rows = np.repeat(np.arange(len(data)), columns.shape[1])
        kept = columns.ravel() > 0
        ones = np.ones(np.count_nonzero(kept), np.float64)
        shape = (len(data), encoder.layout.num_rows)
        parts.append(sp.csr_matrix((ones, (rows[kept], columns.ravel()[kept])), shape=shape))
    if "numbers" in arrays:
        parts.append(sp.csr_matrix(arrays["numbers"].astype(np.float64)))
    return sp.hstack(parts).tocsr()


def _logistic(x: Any, targets: Any, strength: float, options: dict[str, Any]) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=300, tol=1e-3).fit(x, targets)


def _as_they_are(train: Features, test: Features) -> tuple[Any, Any, dict[str, Any]]:
    encoder = FeatureEncoder.fit(train, min_count=2, max_vocabulary=_MOST_CATEGORIES)
    categorical = [True] * len(encoder.categories)
    matrices = []
    for data in (train, test):
        arrays = encoder.encode(data)
        parts = [np.zeros((len(data), 0))]
        if encoder.categories:
            firsts = np.array([category.first for category in encoder.categories])
            parts.append(arrays["categories"] - firsts)
        if encoder.lists:
            ones = _sparse(encoder, data)
            parts += [ones[:, part.first : part.first + part.size].toarray() for part in encoder.lists]
        raw = [data.columns[number.name] for number in encoder.numbers]
        parts += [column.values[:, None] for column in raw if isinstance(column, Numbers)]
        if encoder.embeddings:
            width = sum(embedding.width for embedding in encoder.embeddings)
            parts.append(arrays["numbers"][:, -width:])
        matrices.append(np.concatenate(parts, axis=1))
    mask = np.array(categorical + [False] * (matrices[0].shape[1] - len(categorical)))
    return matrices[0], matrices[1], {"categorical_features": mask if mask.any() else None}


def _boosted(x: Any, targets: Any, leaves: float, options: dict[str, Any]) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    model = HistGradientBoostingClassifier(
        learning_rate=0.08, max_iter=400, max_leaf_nodes=int(leaves), early_stopping=True, random_state=0, **options
    )
    return model.fit(x, targets)
