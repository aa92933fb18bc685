"""Many small ridge regressions at once: one for each row of a sparse matrix, all on the same vectors.

Row r wants x that minimises  sum_c w_rc (t_rc - v_c . x)^2 + sum_d p_rd x_d^2  over its entries c. The normal equations
have D unknowns; their dual form (Woodbury's identity) has as many as the row has entries n, which is fewer for most
rows of real data. Rows of like length are solved together, in the smaller form, exactly (`solve_rows`), or by conjugate
gradients (`descend_rows`), which is a few products with a row's own vectors: several times faster.
"""

from __future__ import annotations

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

    _in_threads(solve, _batches(np.diff(matrix.indptr), lambda longest: longest * (dim + min(longest, dim))))
    return solution


@dataclass(frozen=True)
class RowBatch:
    """Rows of about as many entries: their numbers (B,), columns (B, n), and weights (B, n).

    Beyond a row's end its first column is repeated, with weight 0; without weights each entry weighs 1.
    """

    rows: np.ndarray
    columns: np.ndarray
    weights: np.ndarray | None


class BatchedRows:
    """The rows of a sparse matrix, in batches that are made once, where they are first needed, and used often.

    Args:
        matrix: float32 (R, C); kept as `matrix`, and how many entries each row has as `counts`, (R,).
        dim: numbers in the vectors that the batches are for.
    """

    def __init__(self, matrix: sp.csr_matrix, dim: int) -> None:
        self.matrix = matrix
        self.counts = np.diff(matrix.indptr)
        self._dim = dim

    @functools.cached_property
    def batches(self) -> list[RowBatch]:
        """All rows with entries."""
        is_plain = bool((self.matrix.data == 1).all())
        rows = _batches(self.counts, lambda longest: longest * self._dim, like_counts=is_plain)
        return [self._batch(numbers, is_plain) for numbers in rows]

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
        tolerance: the most that a solution may be wrong by, relative to its length, in the norm of its penalty, unless
            `max_steps` end it before.
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

    New memory for each would have to be cleared by the system, which takes longer than the copy.
    """
    size = numbers.size * vectors.shape[1]
    if size > _BATCH:  # a single long row
        return np.asarray(vectors.take(numbers, axis=0))
    if not hasattr(own, "memory"):
        own.memory = np.empty(_BATCH, np.float32)
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


class _OneBlasThread:
    """In the block BLAS uses one thread in each of ours; of blocks in several threads the last one ends that.

    More would wait for one another; and those that BLAS has started once go on turning for some milliseconds after
    each product, on the cores that ours need.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0
        self._limit: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._limit = _blas().limit(limits=1, user_api="blas")
                _let_go()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._limit.restore_original_limits()
                _let_go()


one_blas_thread = _OneBlasThread()


def _let_go() -> None:
    # Else threadpoolctl would let only this thread set limits: the block may end in another.
    from threadpoolctl import OpenBLASController

    OpenBLASController.clear_controlling_thread(force=True)


def _in_threads(work: Callable[[_T], _R], parts: Iterable[_T]) -> list[_R]:
    with one_blas_thread, ThreadPoolExecutor(_cores()) as threads:
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


def _batches(counts: np.ndarray, numbers: Callable[[int], int], *, like_counts: bool = False) -> Iterator[np.ndarray]:
    """Rows with entries, those of like count together: `_BATCH` numbers to a batch, a row of a count taking `numbers`.

    With `like_counts` a batch ends where the count changes, if that makes it no less than half as large: such rows
    need no padding.
    """
    order = np.argsort(-counts, kind="stable")
    order = order[: np.count_nonzero(counts)]
    start = 0
    while start < len(order):
        longest = int(counts[order[start]])
        rows = order[start : start + max(1, _BATCH // numbers(longest))]
        same = int(np.count_nonzero(counts[rows] == longest))
        if like_counts and 2 * same >= len(rows):
            rows = rows[:same]
        yield rows
        start += len(rows)


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
