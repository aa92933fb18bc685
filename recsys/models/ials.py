"""iALS: factors of users and items that reconstruct all of an implicit matrix, seen and unseen.

    sum over seen (u, i)  w_ui (1 - p_u . q_i)^2  +  a0 sum over all (u, i)  (p_u . q_i)^2
        +  sum over u  l_u |p_u|^2  +  sum over i  l_i |q_i|^2,      l_u = l (n_u + a0 I)^v,  l_i = l (n_i + a0 U)^v

Hu, Koren and Volinsky 2008; with the regularisation scaled by frequency of Rendle et al. 2021 (arXiv:2110.14037), where
v = 1 scales fully and v = 0 not at all. One side is solved exactly while the other stays, in turn.

The unseen entries put the same matrix a0 Q'Q into every row's equations. In the basis of its eigenvectors it is
diagonal, and then rows with fewer entries than factors can be solved in the dual form (`least_squares`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from recsys.models.least_squares import solve_rows


@dataclass(frozen=True)
class Ials:
    """The hyper-parameters in the formula above: l, a0, v, and the scale of the initial factors."""

    l2: float
    unobserved_weight: float
    frequency_exponent: float
    init_scale: float = 0.1

    def start(self, matrix: sp.csr_matrix, factors: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Factors to begin with: users normal with deviation `init_scale` / sqrt(factors), items zero."""
        num_users, num_items = matrix.shape
        users = np.random.default_rng(seed).standard_normal((num_users, factors), np.float32)
        users *= self.init_scale / np.sqrt(factors)
        return users, np.zeros((num_items, factors), np.float32)

    def epoch(
        self, matrix: sp.csr_matrix, transposed: sp.csr_matrix, users: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Solve items for `users`, then users for these items: new factors (U, D) and (I, D).

        Users come last, so that theirs are what folding in their histories gives.
        """
        items = self.solve(transposed, users)
        return self.solve(matrix, items), items

    def solve(self, matrix: sp.csr_matrix, vectors: np.ndarray) -> np.ndarray:
        """The best factors of each row of `matrix` (R, C), for vectors (C, D) of its columns: (R, D)."""
        values, basis = np.linalg.eigh((vectors.T @ vectors).astype(np.float64))
        basis32 = basis.astype(np.float32)
        rotated = solve_rows(
            matrix,
            vectors @ basis32,
            base=self.unobserved_weight * np.maximum(values, 0),
            ridge=self.ridge(matrix),
        )
        return np.asarray(rotated @ basis32.T)

    def ridge(self, matrix: sp.csr_matrix) -> np.ndarray:
        """The regularisation of each row, (R,)."""
        counts = np.diff(matrix.indptr) + self.unobserved_weight * matrix.shape[1]
        return np.asarray(self.l2 * counts**self.frequency_exponent)

    def loss(self, matrix: sp.csr_matrix, users: np.ndarray, items: np.ndarray) -> float:
        """The objective above, per seen entry."""
        predicted = entry_products(matrix, users, items)
        seen = float(matrix.data @ (1 - predicted) ** 2)
        everything = self.unobserved_weight * float(np.sum((users.T @ users) * (items.T @ items)))
        penalty = float(self.ridge(matrix) @ (users**2).sum(axis=1))
        penalty += float(self.ridge(matrix.T.tocsr()) @ (items**2).sum(axis=1))
        return (seen + everything + penalty) / max(1, len(matrix.data))


def entry_products(matrix: sp.csr_matrix, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Inner products of row and column vectors at the entries of a sparse matrix, float32 (entries,)."""
    numbers = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    return pair_products(rows, numbers, columns, matrix.indices)


def pair_products(left: np.ndarray, left_rows: np.ndarray, right: np.ndarray, right_rows: np.ndarray) -> np.ndarray:
    """Inner products of row `left_rows[n]` of `left` with row `right_rows[n]` of `right`, in parts: float32 (N,)."""
    products = np.empty(len(left_rows), np.float32)
    step = max(1, (1 << 20) // max(1, left.shape[1]))
    for start in range(0, len(products), step):
        part = slice(start, start + step)
        np.einsum("nd,nd->n", left[left_rows[part]], right[right_rows[part]], out=products[part])
    return products
