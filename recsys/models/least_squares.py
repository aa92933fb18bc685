"""Many small ridge regressions at once: one for each row of a sparse matrix, all on the same vectors.

Row r wants x that minimises  sum_c w_rc (t_rc - v_c . x)^2 + sum_d p_rd x_d^2  over its entries c. The normal equations
have D unknowns; their dual form (Woodbury's identity) has as many as the row has entries n, which is fewer for most
rows of real data. Rows of like length are solved together, in the smaller form, exactly (`solve_rows`), or by conjugate
gradients (`descend_rows`), which is a few products with a row's own vectors: several times faster.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import scipy.sparse as sp

_T = TypeVar("_T")
_R = TypeVar("_R")

# Numbers in the gathered vectors of one batch: small enough for the cache of a core, large enough for BLAS.
_BATCH = 1 << 20
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

    sizes = functools.partial(_sizes, most=_BATCH, numbers=lambda longest: longest * (dim + min(longest, dim)))
    _in_threads(solve, _batches(np.diff(matrix.indptr), sizes))
    return solution


@dataclass(frozen=True)
class RowBatch:
    """Rows of about as many entries: their numbers (B,), columns (B, n), and weights (B, n), 0 beyond a row's end.

    Without weights each entry weighs 1.
    """

    rows: np.ndarray
    columns: np.ndarray
    weights: np.ndarray | None


class BatchedRows:
    """A sparse matrix, float32 (R, C), and its rows in batches for vectors of `dim` numbers: made once, used often."""

    def __init__(self, matrix: sp.csr_matrix, dim: int) -> None:
        self.matrix = matrix
        self.counts = np.diff(matrix.indptr)
        is_plain = bool((matrix.data == 1).all())
        sizes = functools.partial(_sizes, most=_BATCH, numbers=lambda longest: longest * dim, whole=is_plain)
        self.batches = [self._batch(rows, is_plain) for rows in _batches(self.counts, sizes)]

    def _batch(self, rows: np.ndarray, is_plain: bool) -> RowBatch:
        places, inside = _places(self.matrix.indptr, rows)
        weights = None if is_plain and inside.all() else np.where(inside, self.matrix.data[places], np.float32(0))
        return RowBatch(rows, self.matrix.indices.take(places), weights)


def descend_rows(
    rows: BatchedRows,
    vectors: np.ndarray,
    *,
    base: np.ndarray,
    ridge: np.ndarray,
    start: np.ndarray | None,
    turn: np.ndarray | None = None,
    tolerance: float,
    max_steps: int,
) -> np.ndarray:
    """The solution of each row for targets of 1, by conjugate gradients (Hestenes and Stiefel 1952).

    The penalty preconditions: unknowns are scaled so that it is 1 for each. Then the entries of a row change the
    identity in few directions, and a handful of steps come close.

    Args:
        rows: weights w, positive, float32 (R, C).
        vectors: v, float32 (C, D).
        base: the part of the penalty that all rows share, (D,).
        ridge: the penalty of each row, (R,); base + ridge must be positive.
        start: where to begin, float32 (R, D), such as a solution for similar vectors; None: at zeros.
        turn: what `start` is multiplied by first, float32 (D, D); left out, by nothing.
        tolerance: the most that a solution may be wrong by, relative to its length, in the norm of its penalty.
        max_steps: steps at most.

    Returns:
        float32 (R, D); zeros for rows without entries.
    """
    solution = np.zeros((len(rows.counts), vectors.shape[1]), np.float32)
    base, ridge = base.astype(np.float32), ridge.astype(np.float32)
    own = threading.local()

    def solve(batch: RowBatch) -> None:
        gathered = _gathered(vectors, batch.columns, own)
        root = 1 / np.sqrt(base + ridge[batch.rows, None])
        begin = None if start is None else start.take(batch.rows, axis=0)
        if begin is not None:
            begin = (begin if turn is None else begin @ turn) / root
        solution[batch.rows] = root * _conjugate_gradients(gathered, batch.weights, root, begin, tolerance, max_steps)

    _in_threads(solve, rows.batches)
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
    for number in range(max_steps):
        # No eigenvalue of the system is below 1: the error is not longer than the residual.
        if (squares <= np.float32(tolerance**2) * _squares(solved)).all():
            break
        view = seen(direction)
        curvature = _squares(direction) + _squares(view if weights is None else view * np.sqrt(weights))
        step = squares / np.maximum(curvature, _TINY)
        solved += step[:, None] * direction
        if number == max_steps - 1:  # the residual is not needed any more
            break
        residual -= step[:, None] * (direction + turned(view))
        fresh = _squares(residual)
        direction *= (fresh / np.maximum(squares, _TINY))[:, None]
        direction += residual
        squares = fresh
    return solved


def _gathered(vectors: np.ndarray, numbers: np.ndarray, own: threading.local) -> np.ndarray:
    """The vectors of such numbers, (*numbers.shape, D), in memory that a thread uses for one batch after the other.

    New memory for each would have to be cleared by the system, which takes as long as the copy.
    """
    size = numbers.size * vectors.shape[1]
    if getattr(own, "memory", np.empty(0)).size < size:
        own.memory = np.empty(size, np.float32)
    place = own.memory[:size].reshape(*numbers.shape, vectors.shape[1])
    # Numbers are in range; with "raise" NumPy would fill a copy first.
    return np.asarray(vectors.take(numbers, axis=0, out=place, mode="clip"))


def _squares(rows: np.ndarray) -> np.ndarray:
    return np.asarray(np.einsum("bd,bd->b", rows, rows))


def gram_matrix(vectors: np.ndarray) -> np.ndarray:
    """Inner products of the columns: float32 (R, D) -> (D, D)."""
    # In their order: sums are to be the same each time.
    parts = _in_threads(lambda rows: vectors[rows].T @ vectors[rows], _spans(len(vectors)))
    return np.asarray(sum(parts, np.zeros((vectors.shape[1],) * 2, np.float32)))


def row_products(rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The product of `rows`, float32 (R, D), and a matrix (D, E): (R, E)."""
    product = np.empty((len(rows), matrix.shape[1]), np.float32)
    _in_threads(lambda span: np.matmul(rows[span], matrix, out=product[span]), _spans(len(rows)))
    return product


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """In the block BLAS uses one thread in each of ours.

    More would wait for one another; and those that BLAS has started once go on turning for some milliseconds after
    each product, on the cores that ours need.
    """
    with _blas().limit(limits=1, user_api="blas"):
        yield


def _in_threads(work: Callable[[_T], _R], parts: Iterable[_T]) -> list[_R]:
    with one_blas_thread(), ThreadPoolExecutor(_cores()) as threads:
        return list(threads.map(work, parts))


def _spans(count: int) -> Iterator[slice]:
    """Neighbouring rows, in as many parts as there are cores."""
    size = max(1, -(-count // _cores()))
    yield from (slice(start, start + size) for start in range(0, count, size))


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


def _batches(counts: np.ndarray, sizes: Callable[[np.ndarray], int]) -> Iterator[np.ndarray]:
    """Rows with entries, those of like count together: as many as `sizes` says for the counts that are left."""
    order = np.argsort(-counts, kind="stable")
    order = order[: np.count_nonzero(counts)]
    ordered, start = counts[order], 0
    while start < len(order):
        size = sizes(ordered[start:])
        yield order[start : start + size]
        start += size


def _sizes(counts: np.ndarray, *, most: int, numbers: Callable[[int], int], whole: bool = False) -> int:
    """How many of the first rows make a batch.

    Args:
        counts: entries of the rows, falling.
        most: numbers in a batch, but for those of a single row.
        numbers: how many a row of a count takes.
        whole: end with the last row of the first one's count where that is not much less: nothing has to be padded.
    """
    size = max(1, most // numbers(int(counts[0])))
    if not whole:
        return size
    same = int(np.searchsorted(-counts, -counts[0], side="right"))
    return same if size <= 2 * same < 2 * size else size


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
