"""SLIM: sparse, non-negative item-to-item weights (Ning and Karypis 2011), found among the most co-chosen items.

    for each item j:  minimise  1/2 |x_j - X w|^2 + l2/2 |w|^2 + l1 |w|_1   with w >= 0 and w_j = 0

As in their fsSLIM, w may differ from zero only at the `candidates` items that share most users with j. The problems of
many items are then small and of one size, and coordinate descent runs on all of them at once.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from recsys.top_k import top_k

# Items whose problems are solved together, by the numbers in their Gram matrices.
_BATCH = 4 << 20
_SWEEPS, _TOLERANCE = 100, 1e-4


def slim_weights(matrix: sp.csr_matrix, *, l1: float, l2: float, candidates: int) -> sp.csr_matrix:
    """W, float32 (I, I): the score of item j is the sum of W[i, j] over the items i of a history.

    Args:
        matrix: interactions, (U, I).
        l1: strength that makes weights zero, at least 0.
        l2: strength that makes weights small, at least 0.
        candidates: items whose weights may differ from zero, for each item.
    """
    num_items = matrix.shape[1]
    gram = (matrix.T @ matrix).tocsr()
    size = min(candidates, max(1, num_items - 1))
    step = max(1, _BATCH // (size * size))
    rows, columns, values = [], [], []
    for start in range(0, num_items, step):
        items = np.arange(start, min(start + step, num_items))
        common = gram[items].toarray()  # (B, I): users that each item shares with each other one
        common[np.arange(len(items)), items] = 0
        chosen, shared = top_k(np.where(common > 0, common, -np.inf), size)
        chosen = np.where(chosen >= 0, chosen, items[:, None])  # to be without effect: `shared` is 0 there
        shared = np.where(np.isneginf(shared), 0, shared).astype(np.float32)
        grams = _submatrices(gram, chosen)
        weights = _descend(grams, shared, l1, l2)
        places, entries = np.nonzero(weights)
        rows.append(chosen[places, entries])
        columns.append(items[places])
        values.append(weights[places, entries])
    where = (np.concatenate(rows), np.concatenate(columns))
    return sp.csr_matrix((np.concatenate(values), where), shape=(num_items, num_items), dtype=np.float32)


def _submatrices(gram: sp.csr_matrix, chosen: np.ndarray) -> np.ndarray:
    """gram[chosen[b]][:, chosen[b]] for each b: float32 (B, N, N)."""
    batch, size = chosen.shape
    grams = np.empty((batch, size, size), np.float32)
    for place, numbers in enumerate(chosen):
        grams[place] = gram[numbers][:, numbers].toarray()
    return grams


def _descend(grams: np.ndarray, targets: np.ndarray, l1: float, l2: float) -> np.ndarray:
    """Cyclic coordinate descent on all problems at once: weights, float32 (B, N)."""
    weights = np.zeros_like(targets)
    fitted = np.zeros_like(targets)  # gram @ weights
    diagonal = np.einsum("bnn->bn", grams)
    for _ in range(_SWEEPS):
        largest = 0.0
        for n in range(targets.shape[1]):
            free = targets[:, n] - fitted[:, n] + diagonal[:, n] * weights[:, n]
            fresh = np.where(targets[:, n] > 0, np.maximum(free - l1, 0) / np.maximum(diagonal[:, n] + l2, 1e-9), 0)
            change = fresh - weights[:, n]
            if change.any():
                fitted += grams[:, n] * change[:, None]
                weights[:, n] = fresh
                largest = max(largest, float(np.abs(change).max()))
        if largest < _TOLERANCE:
            break
    return weights
