"""Many small ridge regressions at once: one for each row of a sparse matrix, all on the same vectors.

Row r wants x that minimises  sum_c w_rc (t_rc - v_c . x)^2 + sum_d p_rd x_d^2  over its entries c. The normal equations
have D unknowns; their dual form (Woodbury's identity) has as many as the row has entries n, which is fewer for most
rows of real data. Rows of like length are solved together, in the smaller form, exactly (`solve_rows`), or by conjugate
gradients (`descend_rows`), which is a few products with a row's own vectors: several times faster.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import scipy.sparse as sp

# Numbers in the gathered vectors of one batch: small enough for the cache of a core, large enough for BLAS.
_BATCH, _DESCENT_BATCH = 1 << 19, 1 << 20
# Keeps divisions of nothing by nothing at nothing.
_TINY = np.float32(1e-30)


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
        gathered = vectors.take(matrix.indices.take(places), axis=0)  # half the time of indexing with brackets
        gathered *= np.where(inside, roots[places], 0)[:, :, None]
        right = np.where(inside, wanted[places], 0)
        penalty = base + ridge[rows, None] * scale
        solve_batch = _dual if gathered.shape[1] < dim else _primal
        solution[rows] = solve_batch(gathered, right, penalty)

    counts = np.diff(matrix.indptr)
    _in_threads(solve, _batches(counts, _BATCH, lambda longest: longest * (dim + min(longest, dim))))
    return solution


def descend_rows(
    matrix: sp.csr_matrix,
    vectors: np.ndarray,
    *,
    base: np.ndarray,
    ridge: np.ndarray,
    start: np.ndarray | None,
    tolerance: float,
    max_steps: int,
) -> np.ndarray:
    """The solution of each row for targets of 1, by conjugate gradients (Hestenes and Stiefel 1952).

    The penalty preconditions: unknowns are scaled so that it is 1 for each. Then the entries of a row change the
    identity in few directions, and a handful of steps come close.

    Args:
        matrix: weights w, positive, float32 (R, C).
        vectors: v, float32 (C, D).
        base: the part of the penalty that all rows share, (D,).
        ridge: the penalty of each row, (R,); base + ridge must be positive.
        start: where to begin, float32 (R, D), such as a solution for similar vectors; None: at zeros.
        tolerance: the most that a solution may be wrong by, relative to its length, in the norm of its penalty.
        max_steps: steps at most.

    Returns:
        float32 (R, D); zeros for rows without entries.
    """
    dim = vectors.shape[1]
    solution = np.zeros((matrix.shape[0], dim), np.float32)
    base, ridge = base.astype(np.float32), ridge.astype(np.float32)
    plain = bool((matrix.data == 1).all())

    def solve(rows: np.ndarray) -> None:
        places, inside = _places(matrix.indptr, rows)
        gathered = vectors.take(matrix.indices.take(places), axis=0)
        weights = None if plain and inside.all() else np.where(inside, matrix.data[places], 0)
        root = 1 / np.sqrt(base + ridge[rows, None])
        begin = None if start is None else start[rows] / root
        solution[rows] = root * _conjugate_gradients(gathered, weights, root, begin, tolerance, max_steps)

    _in_threads(solve, _batches(np.diff(matrix.indptr), _DESCENT_BATCH, lambda longest: longest * dim))
    return solution


def _conjugate_gradients(
    vectors: np.ndarray,
    weights: np.ndarray | None,
    root: np.ndarray,
    start: np.ndarray | None,
    tolerance: float,
    max_steps: int,
) -> np.ndarray:
    """Give y of (I + S V' W V S) y = S V' W 1 with S = penalty^-1/2, the `root` (B, D)."""

    def seen(values: np.ndarray) -> np.ndarray:  # (B, D) -> (B, n)
        return np.asarray((vectors @ (values * root)[:, :, None])[:, :, 0])

    def turned(values: np.ndarray) -> np.ndarray:  # (B, n) -> (B, D)
        weighted = values if weights is None else values * weights
        return np.asarray((weighted[:, None, :] @ vectors)[:, 0] * root)

    if start is None:
        solved, residual = np.zeros_like(root), turned(np.ones(vectors.shape[:2], np.float32))
    else:
        solved, residual = start, turned(1 - seen(start)) - start
    direction, squares = residual.copy(), _squares(residual)
    for _ in range(max_steps):
        # No eigenvalue of the system is below 1: the error is not longer than the residual.
        if (squares <= np.float32(tolerance**2) * _squares(solved)).all():
            break
        product = direction + turned(seen(direction))
        step = squares / np.maximum(np.einsum("bd,bd->b", direction, product), _TINY)
        solved += step[:, None] * direction
        residual -= step[:, None] * product
        fresh = _squares(residual)
        direction *= (fresh / np.maximum(squares, _TINY))[:, None]
        direction += residual
        squares = fresh
    return solved


def _squares(rows: np.ndarray) -> np.ndarray:
    return np.asarray(np.einsum("bd,bd->b", rows, rows))


def _in_threads(solve: Callable[[np.ndarray], None], batches: Iterator[np.ndarray]) -> None:
    # One thread of BLAS in each of ours: more would wait for one another.
    with _blas().limit(limits=1, user_api="blas"), ThreadPoolExecutor(_cores()) as threads:
        for _ in threads.map(solve, batches):
            pass


def _cores() -> int:
    # Where processes are bound to cores, as in containers, these are fewer than the machine has.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def _blas() -> Any:
    # Not at the top: it sets an environment variable when it is imported.
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _batches(counts: np.ndarray, most: int, numbers: Callable[[int], int]) -> Iterator[np.ndarray]:
    """Rows with entries, those of like count together: `most` numbers to a batch, a row of a count taking `numbers`."""
    order = np.argsort(-counts, kind="stable")
    order = order[: np.count_nonzero(counts)]
    start = 0
    while start < len(order):
        longest = int(counts[order[start]])
        size = max(1, most // numbers(longest))
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
