"""Many small ridge regressions at once: one for each row of a sparse matrix, all on the same vectors.

Row r wants x that minimises  sum_c w_rc (t_rc - v_c . x)^2 + sum_d p_rd x_d^2  over its entries c. The normal equations
have D unknowns; their dual form (Woodbury's identity) has as many as the row has entries n, which is fewer for most
rows of real data. Rows of like length are solved together, in the smaller form, exactly.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import scipy.sparse as sp

# Numbers in the gathered vectors of one batch: small enough for the cache of a core, large enough for BLAS.
_BATCH = 1 << 19


def solve_rows(
    matrix: sp.csr_matrix,
    vectors: np.ndarray,
    *,
    targets: np.ndarray | None = None,
    base: np.ndarray | None = None,
    ridge: np.ndarray,
    scale: np.ndarray | None = None,
) -> np.ndarray:
    """The solution of each row.

    Args:
        matrix: weights w, positive, float32 (R, C).
        vectors: v, float32 (C, D).
        targets: t for each entry of `matrix`, in its order; left out, each is 1.
        base: the part of the penalty p that all rows share, (D,); left out, 0.
        ridge: the penalty of each row, (R,); p = base + ridge * scale, and must be positive.
        scale: how the ridge weighs on each unknown, (D,); left out, 1.

    Returns:
        float32 (R, D); zeros for rows without entries.
    """
    dim = vectors.shape[1]
    solution = np.zeros((matrix.shape[0], dim), np.float32)
    base = np.zeros(dim, np.float32) if base is None else base.astype(np.float32)
    scale = np.ones(dim, np.float32) if scale is None else scale.astype(np.float32)
    ridge = ridge.astype(np.float32)
    roots = np.sqrt(matrix.data)
    wanted = roots if targets is None else (roots * targets).astype(np.float32)

    def solve(rows: np.ndarray) -> None:
        places, inside = _places(matrix.indptr, rows)
        gathered = vectors[matrix.indices[places]]
        gathered *= np.where(inside, roots[places], 0)[:, :, None]
        right = np.where(inside, wanted[places], 0)
        penalty = base + ridge[rows, None] * scale
        solve_batch = _dual if gathered.shape[1] < dim else _primal
        solution[rows] = solve_batch(gathered, right, penalty)

    # One thread of BLAS in each of ours: more would wait for one another.
    with _blas().limit(limits=1, user_api="blas"), ThreadPoolExecutor(os.cpu_count()) as threads:
        for _ in threads.map(solve, _batches(np.diff(matrix.indptr), dim)):
            pass
    return solution


@functools.cache
def _blas() -> Any:
    # Not at the top: it sets an environment variable when it is imported.
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _batches(counts: np.ndarray, dim: int) -> Iterator[np.ndarray]:
    """Rows with entries, those of like count together."""
    order = np.argsort(-counts, kind="stable")
    order = order[: np.count_nonzero(counts)]
    start = 0
    while start < len(order):
        longest = int(counts[order[start]])
        size = max(1, _BATCH // (longest * (dim + min(longest, dim))))
        yield order[start : start + size]
        start += size


def _places(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of the entries of `rows`, padded to the longest, and which of them are real: both (B, n)."""
    starts, ends = offsets[rows], offsets[rows + 1]
    steps = np.arange((ends - starts).max())
    places = starts[:, None] + steps
    inside = places < ends[:, None]
    return np.where(inside, places, starts[:, None]), inside


def _dual(vectors: np.ndarray, right: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """Give S V' (I + V S S V')^-1 t with S = penalty^-1/2: one system of n unknowns for each row."""
    root = 1 / np.sqrt(penalty)  # (B, D)
    scaled = vectors * root[:, None, :]  # (B, n, D)
    system = scaled @ scaled.transpose(0, 2, 1)  # (B, n, n)
    diagonal = np.arange(system.shape[1])
    system[:, diagonal, diagonal] += 1
    solved = np.linalg.solve(system, right[:, :, None])  # (B, n, 1)
    return np.asarray((scaled.transpose(0, 2, 1) @ solved)[:, :, 0] * root)


def _primal(vectors: np.ndarray, right: np.ndarray, penalty: np.ndarray) -> np.ndarray:
    """Give (V'V + P)^-1 V't: one system of D unknowns for each row."""
    turned = vectors.transpose(0, 2, 1)  # (B, D, n)
    system = turned @ vectors  # (B, D, D)
    diagonal = np.arange(system.shape[1])
    system[:, diagonal, diagonal] += penalty
    return np.asarray(np.linalg.solve(system, turned @ right[:, :, None])[:, :, 0])
