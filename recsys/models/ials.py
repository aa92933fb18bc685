"""iALS: factors of users and items that reconstruct all of an implicit matrix, seen and unseen.

    sum over seen (u, i)  w_ui (1 - p_u . q_i)^2  +  a0 sum over all (u, i)  (p_u . q_i)^2
        +  sum over u  l_u |p_u|^2  +  sum over i  l_i |q_i|^2,      l_u = l (n_u + a0 I)^v,  l_i = l (n_i + a0 U)^v

Hu, Koren and Volinsky 2008; with the regularisation scaled by frequency of Rendle et al. 2021 (arXiv:2110.14037), where
v = 1 scales fully and v = 0 not at all. One side is solved while the other stays, in turn.

The unseen entries put the same matrix a0 Q'Q into every row's equations. In the basis of its eigenvectors it is
diagonal: then it preconditions conjugate gradients, which need few steps, and for exact solutions rows with fewer
entries than factors can be solved in the dual form (`least_squares`). Takacs, Pilaszy and Tikk 2011 use conjugate
gradients without the change of basis, a fixed number of steps from the last solution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import scipy.sparse as sp

from recsys.models.least_squares import (
    BatchedRows,
    descend_rows,
    gram_matrix,
    one_blas_thread,
    row_products,
    solve_rows,
)

Solver: TypeAlias = Literal["conjugate_gradient", "exact"]

# What solutions by conjugate gradients may be wrong by, relative to their length, and the most steps to them. In
# training the next epoch goes on from there: on the sets of the benchmark `ials` two steps a side give lower objectives
# after 5, 10 and 20 epochs than solutions to the end, for the vectors change anyway. Folding in has no next epoch.
_TOLERANCE, _MOST_STEPS = 0.01, 2
_FOLD_TOLERANCE, _MOST_FOLD_STEPS = 1e-3, 100


@dataclass(frozen=True)
class Ials:
    """The hyper-parameters of the formula above, l, a0 and v; the scale of initial factors; how rows are solved."""

    l2: float
    unobserved_weight: float
    frequency_exponent: float
    init_scale: float = 0.1
    solver: Solver = "conjugate_gradient"

    def start(self, matrix: sp.csr_matrix, factors: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Factors to begin with: users normal with deviation `init_scale` / sqrt(factors), items zero."""
        num_users, num_items = matrix.shape
        users = np.random.default_rng(seed).standard_normal((num_users, factors), np.float32)
        users *= self.init_scale / np.sqrt(factors)
        return users, np.zeros((num_items, factors), np.float32)

    def epoch(
        self, matrix: BatchedRows, transposed: BatchedRows, users: np.ndarray, items: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Solve items for `users`, then users for these items: new factors (U, D) and (I, D).

        The matrix (U, I) and its transpose are in batches for factors of D numbers.

        Conjugate gradients begin where the factors are.

        Users come last, so that theirs are what folding in their histories gives; with conjugate gradients, about so.
        """
        users, items = self._solved(transposed, users, items)[:2]
        items, users = self._solved(matrix, items, users)[:2]
        return users, items

    def solve(self, matrix: sp.csr_matrix, vectors: np.ndarray) -> np.ndarray:
        """The best factors of each row of `matrix` (R, C), for vectors (C, D) of its columns: (R, D)."""
        _, solved, basis = self._solved(BatchedRows(matrix, vectors.shape[1]), vectors, None)
        return row_products(solved, basis.T)

    def _solved(
        self, rows: BatchedRows, vectors: np.ndarray, start: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The vectors and the best factors of the rows in the basis of the vectors' eigenvectors, and this basis.

        Inner products are the same in any basis: training stays in the last one.
        """
        with one_blas_thread:
            values, basis64 = np.linalg.eigh(gram_matrix(vectors).astype(np.float64))
        basis = basis64.astype(np.float32)
        rotated = row_products(vectors, basis)
        base = self.unobserved_weight * np.maximum(values, 0)
        penalty = {"base": base, "ridge": self.ridge(rows.counts, len(vectors))}
        if self.solver == "exact":
            return rotated, solve_rows(rows.matrix, rotated, **penalty), basis
        tolerance, steps = (_FOLD_TOLERANCE, _MOST_FOLD_STEPS) if start is None else (_TOLERANCE, _MOST_STEPS)
        solved = descend_rows(rows, rotated, **penalty, start=start, turn=basis, tolerance=tolerance, max_steps=steps)
        return rotated, solved, basis

    def ridge(self, counts: np.ndarray, others: int) -> np.ndarray:
        """The regularisation of rows with so many entries (R,), where there are so many columns: (R,)."""
        return np.asarray(self.l2 * (counts + self.unobserved_weight * others) ** self.frequency_exponent)

    def loss(self, matrix: sp.csr_matrix, users: np.ndarray, items: np.ndarray) -> float:
        """The objective above, per seen entry."""
        predicted = entry_products(matrix, users, items)
        seen = float(matrix.data @ (1 - predicted) ** 2)
        everything = self.unobserved_weight * float(np.sum(gram_matrix(users) * gram_matrix(items)))
        num_users, num_items = matrix.shape
        counts = np.diff(matrix.indptr), np.bincount(matrix.indices, minlength=num_items)
        penalty = float(self.ridge(counts[0], num_items) @ (users**2).sum(axis=1))
        penalty += float(self.ridge(counts[1], num_users) @ (items**2).sum(axis=1))
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
