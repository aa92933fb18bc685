"""BPR: factors that put what a user chose above what they did not (Rendle et al. 2009, arXiv:1205.2618).

    minimise the mean over seen (u, i) and unseen (u, j) of  -ln sigmoid(s_ui - s_uj)  +  l2 / 2 of the vectors in it,
    s_ui = p_u . q_i + b_i

The items' biases are the last column of their factors; that of the users is 1 there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

# Added to AdaGrad's sums of squares.
_EPSILON = 1e-8
# Drawings of another item where one was seen; what is seen after that, of users who saw nearly all, is left as it is.
_REDRAWS = 8


@dataclass
class BprState:
    """Factors, and AdaGrad's sums of squared gradients beside them."""

    users: np.ndarray
    items: np.ndarray
    user_squares: np.ndarray
    item_squares: np.ndarray

    @classmethod
    def start(cls, matrix: sp.csr_matrix, factors: int, seed: int, init_scale: float) -> BprState:
        """Normal factors of deviation `init_scale` / sqrt(factors); biases zero."""
        rng = np.random.default_rng(seed)
        users, items = (rng.standard_normal((size, factors + 1), np.float32) for size in matrix.shape)
        for part in (users, items):
            part *= init_scale / np.sqrt(factors)
        users[:, -1], items[:, -1] = 1, 0
        return cls(users, items, np.zeros_like(users), np.zeros_like(items))


def bpr_epoch(
    state: BprState,
    matrix: sp.csr_matrix,
    *,
    learning_rate: float,
    l2: float,
    batch_size: int,
    rng: np.random.Generator,
    fixed_items: bool = False,
) -> float:
    """One pass over the interactions in random order, one unseen item drawn for each; returns the mean loss.

    Args:
        state: is changed in place.
        matrix: interactions, (U, I).
        learning_rate: of AdaGrad (Duchi et al. 2011).
        l2: regularisation.
        batch_size: interactions in one step.
        rng: order and drawings.
        fixed_items: change the users only, as folding in does.
    """
    total = 0.0
    for users, positive, negative in _batches(matrix, batch_size, rng):
        p, difference = state.users[users], state.items[positive] - state.items[negative]
        margin = np.einsum("nd,nd->n", p, difference)
        total += float(np.logaddexp(0, -margin).sum())
        slope = (-1 / (1 + np.exp(margin)))[:, None]  # of -ln sigmoid
        user_slopes = slope * difference + l2 * p
        user_slopes[:, -1] = 0
        _step(state.users, state.user_squares, users, user_slopes, learning_rate)
        if not fixed_items:
            both = np.concatenate([positive, negative])
            item_slopes = np.concatenate([slope * p, -slope * p]) + l2 * state.items[both]
            _step(state.items, state.item_squares, both, item_slopes, learning_rate)
    return total / max(1, len(matrix.indices))


def _batches(
    matrix: sp.csr_matrix, batch_size: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Users, items they chose, and items they did not."""
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    seen = rows * matrix.shape[1] + matrix.indices  # sorted, as rows and columns are
    order = rng.permutation(matrix.nnz)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        users = rows[chosen]
        negative = rng.integers(0, matrix.shape[1], len(chosen))
        for _ in range(_REDRAWS):
            keys = users * matrix.shape[1] + negative
            known = seen[np.minimum(np.searchsorted(seen, keys), len(seen) - 1)] == keys
            if not known.any():
                break
            negative[known] = rng.integers(0, matrix.shape[1], int(known.sum()))
        yield users, matrix.indices[chosen], negative


def _step(values: np.ndarray, squares: np.ndarray, rows: np.ndarray, slopes: np.ndarray, learning_rate: float) -> None:
    """An AdaGrad step with the sum of slopes of each row."""
    order = np.argsort(rows, kind="stable")
    distinct, starts = np.unique(rows[order], return_index=True)
    gradient = np.add.reduceat(slopes[order], starts, axis=0)
    squares[distinct] += gradient**2
    values[distinct] -= learning_rate * gradient / np.sqrt(squares[distinct] + _EPSILON)
