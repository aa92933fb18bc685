"""Biased matrix factorisation for ratings (Koren, Bell and Volinsky 2009), by alternating least squares.

    minimise  sum over rated (u, i)  (r_ui - m - b_u - b_i - p_u . q_i)^2
        +  sum over u  (lb b_u^2 + l n_u^v |p_u|^2)  +  the same over i

m is the mean rating. One side's biases and factors are solved together, exactly, while the other stays. A user's
vector is (p_u, b_u, 1) and an item's (q_i, 1, b_i), so that a score is one inner product, to which m is added.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from recsys.models.ials import entry_products
from recsys.models.least_squares import solve_rows


@dataclass(frozen=True)
class BiasedMf:
    """The hyper-parameters of the formula above: l, lb, v, and the scale of the initial factors."""

    l2: float
    bias_l2: float
    frequency_exponent: float
    init_scale: float = 0.1

    def start(self, matrix: sp.csr_matrix, factors: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Vectors to begin with: users with normal factors, items without; no biases."""
        users = np.random.default_rng(seed).standard_normal((matrix.shape[0], factors + 2), np.float32)
        users *= self.init_scale / np.sqrt(factors)
        users[:, -2], users[:, -1] = 0, 1
        items = np.zeros((matrix.shape[1], factors + 2), np.float32)
        items[:, -2] = 1
        return users, items

    def epoch(
        self, ratings: sp.csr_matrix, transposed: sp.csr_matrix, mean: float, users: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Solve items for `users`, then users for these items: new vectors (U, D + 2) and (I, D + 2).

        Users come last, so that theirs are what folding in their histories gives.
        """
        items = _swapped(self.solve_users(transposed, mean, _swapped(users)))
        return self.solve_users(ratings, mean, items), items

    def solve_users(self, ratings: sp.csr_matrix, mean: float, items: np.ndarray) -> np.ndarray:
        """The best vectors of users with these `ratings`, float32 (R, D + 2); of users without any, biases are 0."""
        counts = np.maximum(np.diff(ratings.indptr), 1)
        ridge = self.l2 * counts**self.frequency_exponent
        base = np.zeros(items.shape[1] - 1)
        scale = np.ones(items.shape[1] - 1)
        base[-1], scale[-1] = self.bias_l2, 0
        solved = solve_rows(
            sp.csr_matrix((np.ones(ratings.nnz, np.float32), ratings.indices, ratings.indptr), ratings.shape),
            items[:, :-1],
            targets=ratings.data - mean - items[ratings.indices, -1],
            base=base,
            ridge=ridge,
            scale=scale,
        )
        return np.hstack([solved, np.ones((len(solved), 1), np.float32)])

    def loss(self, ratings: sp.csr_matrix, mean: float, users: np.ndarray, items: np.ndarray) -> float:
        """Mean squared error on the ratings, without the penalty."""
        errors = ratings.data - mean - entry_products(ratings, users, items)
        return float(np.mean(errors**2)) if len(errors) else 0.0


def _swapped(vectors: np.ndarray) -> np.ndarray:
    """Users' vectors seen as items', and the other way round: the last two columns exchanged."""
    swapped = vectors.copy()
    swapped[:, [-2, -1]] = vectors[:, [-1, -2]]
    return swapped
