"""What recommendations and predicted scores are worth. NumPy only.

Rankings are judged by `hits`, a bool array (U, K): whether the answer at each place, best first, is among the user's
held-out items; and by `num_relevant` (U,), how many of these there are. All means are over the users, each of whom has
at least one held-out item. Figures of full rankings and of rankings among sampled items are not comparable: the keys
of the latter begin with `sampled_`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# Users by resamples that are drawn at once.
_DRAWN = 1 << 24


def recall(hits: np.ndarray, num_relevant: np.ndarray, k: int) -> np.ndarray:
    """Held-out items among the first `k`, divided by the number of held-out items: (U,).

    Some libraries divide by the smaller of `k` and that number; this one does not.
    """
    return np.asarray(hits[:, :k].sum(axis=1) / num_relevant)


def hit(hits: np.ndarray, num_relevant: np.ndarray, k: int) -> np.ndarray:
    """1 where any held-out item is among the first `k`, else 0: (U,)."""
    return np.asarray(hits[:, :k].any(axis=1), np.float64)


def mrr(hits: np.ndarray, num_relevant: np.ndarray, k: int) -> np.ndarray:
    """1 / place of the first held-out item (from 1), 0 where none is among the first `k`: (U,)."""
    found = hits[:, :k]
    return np.where(found.any(axis=1), 1.0 / (1 + np.argmax(found, axis=1)), 0.0) if found.shape[1] else _zeros(hits)


def ndcg(hits: np.ndarray, num_relevant: np.ndarray, k: int) -> np.ndarray:
    """Discounted gain with binary relevance, divided by that of the best possible ranking: (U,).

    Gain 1 / log2(1 + place) for each held-out item at `place` (from 1) among the first `k`; the best ranking has the
    min(k, num_relevant) items first. Jaervelin and Kekaelaeinen 2002, with the usual log2(1 + place).
    """
    discounts = 1.0 / np.log2(np.arange(2, k + 2))
    ideal = np.concatenate([[0.0], np.cumsum(discounts)])[np.minimum(num_relevant, k)]
    return np.asarray(hits[:, :k] @ discounts[: hits.shape[1]] / ideal)


def average_precision(hits: np.ndarray, num_relevant: np.ndarray, k: int) -> np.ndarray:
    """Mean over the held-out items of the precision at their places, 0 for those not among the first `k`: (U,).

    The divisor is min(k, num_relevant), so that 1 can be reached; the mean over users is MAP@k.
    """
    found = hits[:, :k]
    precision = np.cumsum(found, axis=1) / np.arange(1, found.shape[1] + 1)
    return np.asarray((precision * found).sum(axis=1) / np.minimum(num_relevant, k))


def coverage(answers: np.ndarray, num_items: int, k: int) -> float:
    """Share of the catalogue that is among the first `k` answers of anybody.

    Args:
        answers: item numbers (U, K), -1 where there is no answer.
        num_items: size of the catalogue.
        k: answers that count.
    """
    shown = answers[:, :k]
    return len(np.unique(shown[shown >= 0])) / num_items if num_items else 0.0


def novelty(answers: np.ndarray, popularity: np.ndarray, num_users: int, k: int) -> float:
    """Mean self-information of the answers in bits: -log2 of the share of users who have interacted with the item.

    Zhou et al. 2010 (PNAS 107:4511). An item that nobody has interacted with counts as if one had. NaN without answers.

    Args:
        answers: item numbers (U, K), -1 where there is no answer.
        popularity: number of users by item, (I,).
        num_users: of the training set.
        k: answers that count.
    """
    shown = answers[:, :k]
    counts = np.maximum(popularity[shown[shown >= 0]], 1)
    return float(np.mean(np.log2(num_users / counts))) if len(counts) else float("nan")


_RANKING = {"ndcg": ndcg, "recall": recall, "mrr": mrr, "hit": hit, "map": average_precision}


def ranking_by_user(hits: np.ndarray, num_relevant: np.ndarray, k: int, *, prefix: str = "") -> dict[str, np.ndarray]:
    """`ndcg@k`, `recall@k`, `mrr@k`, `hit@k` and `map@k` of each user, float64 (U,).

    Args:
        hits: bool (U, K), K at least `k` or all there is.
        num_relevant: number of held-out items, (U,), at least 1 each.
        k: answers that count.
        prefix: put before each name, such as "sampled_100_".

    Raises:
        ValueError: for `k` below 1, shapes that do not fit, or users without held-out items.
    """
    hits, num_relevant = np.asarray(hits, bool), np.asarray(num_relevant)
    if k < 1:
        raise ValueError(f"`k` must be at least 1; received {k}.")
    if hits.ndim != 2 or num_relevant.shape != hits.shape[:1]:
        raise ValueError(f"`hits` must be (U, K) and `num_relevant` (U,); received {hits.shape}, {num_relevant.shape}.")
    if (num_relevant < 1).any():
        raise ValueError("Each user needs at least one held-out item; leave out those without.")
    return {f"{prefix}{name}@{k}": metric(hits, num_relevant, k) for name, metric in _RANKING.items()}


def sampled_places(scores: np.ndarray, negatives: np.ndarray) -> np.ndarray:
    """The place, from 1, of a held-out item among itself and sampled items it is ranked with.

    Of equal scores the held-out item comes last: a model that gives everything one score must not look good.

    Args:
        scores: of the held-out items, (U,).
        negatives: scores of the sampled items, (U, N); NaN counts as the worst.

    Returns:
        int64 (U,), 1 to N + 1.
    """
    with np.errstate(invalid="ignore"):
        before = (negatives >= scores[:, None]).sum(axis=1)
    return np.asarray(np.where(np.isnan(scores), negatives.shape[1], before) + 1)


def hits_at(places: np.ndarray, k: int) -> np.ndarray:
    """Places (from 1) of one held-out item each as `hits`, bool (U, k)."""
    return np.asarray(np.asarray(places)[:, None] == np.arange(1, k + 1))


def bootstrap_intervals(
    by_user: Mapping[str, np.ndarray], *, confidence: float = 0.95, resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of the means, by drawing users anew with replacement (Efron 1979).

    They tell how far another sample of users may lead, not another training run. Metrics drawn in one call share
    their resamples.

    Args:
        by_user: values of each user, (U,), by name.
        confidence: share of resamples within the interval.
        resamples: how many are drawn.
        seed: of the draws.

    Returns:
        Lower and upper end by name; NaN where there are no users.
    """
    names = list(by_user)
    values = np.stack([np.asarray(by_user[name], np.float64) for name in names], axis=1) if names else np.zeros((0, 0))
    if not len(values):
        return {name: (float("nan"), float("nan")) for name in names}
    rng = np.random.default_rng(seed)
    at_once = max(1, _DRAWN // len(values))
    means = []
    for start in range(0, resamples, at_once):
        drawn = rng.integers(0, len(values), (min(at_once, resamples - start), len(values)))
        # How often each user was drawn, times the users' values: the sums of the resamples.
        means += [np.bincount(rows, minlength=len(values)) @ values / len(values) for rows in drawn]
    tail = 50 * (1 - confidence)
    low, high = np.percentile(np.stack(means), [tail, 100 - tail], axis=0)
    return {name: (float(low[i]), float(high[i])) for i, name in enumerate(names)}


# Predicted numbers.


def rmse(predicted: np.ndarray, true: np.ndarray) -> float:
    """Root of the mean squared difference; NaN of nothing."""
    predicted, true = _same_length(predicted, true)
    return float(np.sqrt(np.mean((predicted - true) ** 2))) if len(true) else float("nan")


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Probability that a positive has a higher score than a negative, ties counting half; NaN with one class only.

    By the ranks of Mann and Whitney 1947.

    Args:
        scores: (N,).
        labels: (N,), 1 or True for positives, 0 for negatives.
    """
    scores, labels = _same_length(scores, labels)
    positive = labels > 0.5
    num_positive = int(positive.sum())
    num_negative = len(labels) - num_positive
    if not num_positive or not num_negative:
        return float("nan")
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2.0)[places]  # the mean of 1-based ranks among equals
    return float((ranks[positive].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative))


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -log of the probability that was given to what happened, in nats; NaN of nothing.

    Probabilities are kept 1e-15 away from 0 and 1.

    Raises:
        ValueError: for probabilities outside of 0 to 1.
    """
    probabilities, labels = _same_length(probabilities, labels)
    if len(labels) and not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("`probabilities` must be from 0 to 1. Put scores through a sigmoid first.")
    clipped = np.clip(probabilities, 1e-15, 1 - 1e-15)
    losses = -(labels * np.log(clipped) + (1 - labels) * np.log1p(-clipped))
    return float(losses.mean()) if len(labels) else float("nan")


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, *, num_bins: int = 10) -> float:
    """How far what is predicted is from what happens: a mean over bins of equally many rows; NaN of nothing.

    The rows are sorted by probability and cut into bins; of each, |mean probability - share of positives| counts by its
    rows (the expected calibration error of Naeini et al. 2015, with bins by quantile).
    """
    probabilities, labels = _same_length(probabilities, labels)
    order = np.argsort(probabilities, kind="stable")
    bins = [rows for rows in np.array_split(order, num_bins) if len(rows)]
    distances = [abs(float(probabilities[rows].mean() - labels[rows].mean())) * len(rows) for rows in bins]
    return sum(distances) / len(order) if len(order) else float("nan")


def _same_length(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"Both must have shape (N,); received {first.shape} and {second.shape}.")
    return first, second


def _zeros(hits: np.ndarray) -> np.ndarray:
    return np.zeros(len(hits))
