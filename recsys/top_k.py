"""The k best of many scores, exactly, with ties broken by the order of items. NumPy only."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

# Scores that are computed at once, 16 MB of float32, and items in them, of products: larger blocks leave the cache.
_BLOCK = 4 << 20
_ITEMS_AT_ONCE = 1 << 13
NOTHING = -1


def top_k(scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best `k` columns of each row, best first.

    Of equal scores the lower column comes first. Scores of -inf or NaN are no answers: where fewer than `k` others
    are in a row, the rest of its answer is column -1 with score -inf.

    Args:
        scores: (B, N), any float.
        k: at least 1; more than N gives N columns.

    Returns:
        Columns, int64 (B, min(k, N)), and their scores, of the dtype of `scores`.

    Raises:
        ValueError: for `k` below 1, or scores that are not two-dimensional.
    """
    if k < 1:
        raise ValueError(f"`k` must be at least 1; received {k}.")
    if scores.ndim != 2:
        raise ValueError(f"`scores` must have shape (B, N); received {scores.shape}.")
    k = min(k, scores.shape[1])
    if k == 0 or not len(scores):
        return np.full((len(scores), k), NOTHING, np.int64), np.full((len(scores), k), -np.inf, scores.dtype)
    if np.isnan(scores.max()):  # the largest is NaN where any is
        scores = np.where(np.isnan(scores), scores.dtype.type(-np.inf), scores)
    columns = _best_columns(scores, k)
    best = np.take_along_axis(scores, columns, axis=1)
    order = np.argsort(-best, axis=1, kind="stable")  # stable on rising columns: of equal scores the lower first
    columns, best = (np.take_along_axis(part, order, axis=1) for part in (columns, best))
    return np.where(np.isneginf(best), NOTHING, columns), best


def _best_columns(scores: np.ndarray, k: int) -> np.ndarray:
    """The columns of the best `k`, rising."""
    num = scores.shape[1]
    if k == num:
        return np.broadcast_to(np.arange(num), scores.shape)
    columns = np.argpartition(scores, num - k, axis=1)[:, num - k :]
    lowest = np.take_along_axis(scores, columns, axis=1).min(axis=1, keepdims=True)
    # Where the k-th score occurs outside of the chosen columns too, argpartition took any of the equals.
    # Among those that are no answers, any will do.
    real = np.flatnonzero(~np.isneginf(lowest[:, 0]))
    tied = real[np.count_nonzero(scores[real] >= lowest[real], axis=1) > k]
    for row in tied.tolist():
        above = np.flatnonzero(scores[row] > lowest[row])
        equal = np.flatnonzero(scores[row] == lowest[row])
        columns[row] = np.concatenate([above, equal[: k - len(above)]])
    return np.sort(columns, axis=1)


def hide(scores: np.ndarray, rows: sp.csr_matrix) -> None:
    """Set the scores at the entries of `rows`, a sparse matrix of the same shape, to -inf, in place."""
    scores[np.repeat(np.arange(len(scores)), np.diff(rows.indptr)), rows.indices] = -np.inf


def block_size(num_columns: int) -> int:
    """Rows of scores that are worth computing at once."""
    return max(1, _BLOCK // max(1, num_columns))


def top_k_products(
    queries: np.ndarray, items: np.ndarray, k: int, *, seen: sp.csr_matrix | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The best `k` items by inner product, for many queries over many items, in blocks of both.

    Args:
        queries: float32 (B, D).
        items: float32 (N, D).
        k: at least 1; more than N gives N columns.
        seen: entries (B, N) that are no answers; None for none.

    Returns:
        Item numbers, int64 (B, min(k, N)), and scores, as `top_k` gives them for `queries @ items.T`.
    """
    k = min(k, len(items))
    if not k:
        return np.zeros((len(queries), 0), np.int64), np.zeros((len(queries), 0), np.float32)
    width = max(k, min(len(items), _ITEMS_AT_ONCE))
    height = max(1, _BLOCK // max(1, width))
    answers = []
    for start in range(0, len(queries), height):
        part = queries[start : start + height]
        hidden = None if seen is None else seen[start : start + height].tocsc()
        columns = np.zeros((len(part), 0), np.int64)
        best = np.zeros((len(part), 0), np.float32)
        for left in range(0, len(items), width):
            scores = part @ items[left : left + width].T
            if hidden is not None:
                hide(scores, hidden[:, left : left + width].tocsr())
            found, values = _better(scores, best, k)
            found = np.where(found >= 0, found + left, found)
            columns, best = _merged(np.hstack([columns, found]), np.hstack([best, values]), k)
        answers.append((columns, best))
    if not answers:
        return np.zeros((0, k), np.int64), np.zeros((0, k), np.float32)
    return np.concatenate([columns for columns, _ in answers]), np.concatenate([best for _, best in answers])


def _better(scores: np.ndarray, best: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns that may still be among the best `k`, and their scores: rows of equal width, -1 and -inf at their ends.

    After the first block few scores are above the k-th best so far, and one comparison finds them; a score that equals
    it belongs to a later item, and loses.
    """
    if best.shape[1] < k:
        return top_k(scores, k)
    rows, columns = np.divmod(np.flatnonzero(scores > best[:, k - 1 :]), scores.shape[1])
    counts = np.bincount(rows, minlength=len(scores))
    width = int(counts.max(initial=0))
    if width > max(64, 4 * k):
        return top_k(scores, k)
    found = np.full((len(scores), width), NOTHING, np.int64)
    values = np.full((len(scores), width), -np.inf, scores.dtype)
    places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    found[rows, places], values[rows, places] = columns, scores[rows, columns]
    return found, values


def _merged(columns: np.ndarray, scores: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The best `k` of candidates whose equals stand in the order of items."""
    places, best = top_k(scores, k)
    return np.where(places >= 0, np.take_along_axis(columns, places, axis=1), NOTHING), best
