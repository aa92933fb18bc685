"""An index of items by vector, in which the best for a user are found without looking at all: near the best, and quick.

The exact search of `top_k` takes time in proportion to the catalogue. This one follows the links of a graph of near
items (HNSW, Malkov and Yashunin 2018, arXiv:1603.09320, as faiss has it), for which time hardly grows; items can be
added at any time. It needs faiss: pip install 'triptych[ann]'.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp

from recsys.answers import Id
from recsys.ids import IdIndex, id_column
from recsys.top_k import NOTHING, top_k


class ItemIndex:
    """Items whose vectors' inner products with a user's are the scores.

    Args:
        items: ids, in the order of `vectors`.
        vectors: float32 (I, D).
        links: links of each item; more find better and take more memory, 8 bytes each beside the 4 D of the vector.
        depth: items that are looked at for an answer; more find better and take longer.

    Raises:
        ImportError: without faiss; the message says how to install it.
        ValueError: for vectors that do not fit the items, and items that are there twice.

    Example:
        >>> index = ItemIndex(["tea", "jam"], np.eye(2, dtype=np.float32))
        >>> index.add(["bun"], np.array([[2.0, 0.0]], np.float32))
        >>> numbers, scores = index.best(np.array([[1.0, 0.0]], np.float32), 2)
        >>> index.items.ids(numbers[0])
        ['bun', 'tea']
    """

    def __init__(self, items: Sequence[Id], vectors: np.ndarray, *, links: int = 32, depth: int = 128) -> None:
        faiss = _faiss()
        if np.ndim(vectors) != 2 or not np.shape(vectors)[1]:
            raise ValueError(f"`vectors` must have shape (I, D); received {np.shape(vectors)}.")
        self.items = IdIndex(id_column([], "items"), "item")
        self.depth = depth
        self._graph: Any = faiss.IndexHNSWFlat(vectors.shape[1], links, faiss.METRIC_INNER_PRODUCT)
        self._graph.hnsw.efConstruction = max(100, 2 * links)
        self.add(items, vectors)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def dim(self) -> int:
        """D."""
        return int(self._graph.d)

    def add(self, items: Sequence[Id], vectors: np.ndarray) -> None:
        """Take in further items; nothing is trained.

        Raises:
            ValueError: for vectors that do not fit the items, and items that are there already.
            TypeError: for ids of another kind than those that are there.
        """
        column = id_column(items, "items")
        if np.shape(vectors) != (len(column), self.dim):
            raise ValueError(
                f"`vectors` must have shape ({len(column)}, {self.dim}), a row for each item; received "
                f"{np.shape(vectors)}."
            )
        if not len(column):
            return
        known = self.items.numbers(column) >= 0 if len(self) else np.zeros(len(column), bool)
        if known.any() or len(set(column.tolist())) < len(column):
            twice = column[known][:1].tolist() or ["one of them"]
            raise ValueError(f"Items can be added once; {twice[0]!r} is there already. Make a new index to change it.")
        self._graph.add(np.ascontiguousarray(vectors, np.float32))
        # New ones at the end, in the order of their vectors.
        self.items = IdIndex(np.concatenate([self.items.entries, column]) if len(self) else column, "item")

    def vectors(self, items: Sequence[Id]) -> np.ndarray:
        """The vectors of some of its items, float32 (N, D).

        Raises:
            ValueError: for items that are not there.
        """
        numbers = self.items.numbers(items)
        if (numbers < 0).any():
            raise ValueError(f"There is no item {list(items)[int(np.argmin(numbers))]!r} in the index.")
        return np.array([self._graph.reconstruct(int(n)) for n in numbers], np.float32).reshape(-1, self.dim)

    def best(
        self, users: np.ndarray, k: int, *, hidden: sp.csr_matrix | None = None, blocked: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """About the best `k` items for each user, numbers and scores (B, min(k, I)), -1 and -inf where no more are.

        Args:
            users: vectors, float32 (B, D).
            k: at least 1.
            hidden: entries (B, I or fewer) are no answers.
            blocked: items that are no answers for anybody, bool (I,).
        """
        width = min(k, len(self))
        found = np.full((len(users), width), NOTHING, np.int64)
        scores = np.full((len(users), width), -np.inf, np.float32)
        extra = 0 if blocked is None else int(blocked.sum())
        counts = np.zeros(len(users), np.int64) if hidden is None else np.diff(hidden.indptr)
        # Users with histories of like length together: as many more have to be found as may be hidden.
        order = np.argsort(counts, kind="stable")
        for rows in np.array_split(order, max(1, len(order) // 256)):
            if len(rows):
                wanted = min(len(self), width + extra + int(counts[rows].max()))
                numbers, values = self._search(users[rows], wanted)
                wrong = np.zeros(numbers.shape, bool) if blocked is None else blocked[numbers]
                if hidden is not None:
                    wrong |= _among(numbers, hidden[rows])
                values[wrong | (numbers < 0)] = -np.inf
                places, scores[rows] = top_k(values, width)
                chosen = np.take_along_axis(numbers, np.maximum(places, 0), axis=1)
                found[rows] = np.where(places >= 0, chosen, NOTHING)
        return found, scores

    def _search(self, users: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        parameters = _faiss().SearchParametersHNSW(efSearch=max(self.depth, 2 * count))
        values, numbers = self._graph.search(np.ascontiguousarray(users, np.float32), count, params=parameters)
        return numbers, values


def _among(numbers: np.ndarray, rows: sp.csr_matrix) -> np.ndarray:
    """Whether each of the numbers (B, N) is an entry of its row, bool."""
    width = max(rows.shape[1], int(numbers.max(initial=0)) + 1)
    owners = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    return np.isin(np.arange(len(numbers))[:, None] * width + numbers, owners * width + rows.indices)


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError("An index of items needs faiss: pip install 'triptych[ann]'") from error
    return faiss
