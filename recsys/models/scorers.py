"""Trained models by what they are: item popularity, item-to-item weights, or factors of users and items.

Each scores all items for users, who are given as `represent` gives them: rows of a sparse matrix, or vectors. Legend: B
users, I items, D factors.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import scipy.sparse as sp

from recsys.models.ials import pair_products
from recsys.top_k import NOTHING, block_size, hide, top_k, top_k_products

Arrays: TypeAlias = dict[str, np.ndarray]
Users: TypeAlias = np.ndarray | sp.csr_matrix


class Scorer(abc.ABC):
    """Scores of items; higher is better."""

    @abc.abstractmethod
    def represent(self, histories: sp.csr_matrix) -> Users:
        """Users by their histories (B, I), as the other methods take them; nothing is trained."""

    @abc.abstractmethod
    def scores(self, users: Users) -> np.ndarray:
        """Scores of all items, float32 (B, I), which the caller may write to."""

    @abc.abstractmethod
    def pair_scores(self, users: Users, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Scores of `items` (N,) for the users in `rows` (N,), float32 (N,)."""

    @abc.abstractmethod
    def similar(self, items: np.ndarray) -> np.ndarray | None:
        """How similar all items are to each of `items` (N,): float32 (N, I); None where the model cannot tell."""

    @abc.abstractmethod
    def arrays(self) -> Arrays:
        """What has to be saved, as dense arrays by name."""

    def best(
        self, users: Users, k: int, *, hidden: sp.csr_matrix | None = None, blocked: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best `k` items for each user, and their scores, (B, k) each.

        No answers are the entries of `hidden` (B, I), and the items that are `blocked`, bool (I,), for everybody.
        """
        num_items = self.num_items
        step = block_size(num_items)
        answers = []
        for start in range(0, users.shape[0], step):
            scores = self.scores(users[start : start + step])
            if hidden is not None:
                hide(scores, hidden[start : start + step])
            if blocked is not None:
                scores[:, blocked] = -np.inf
            answers.append(top_k(scores, k))
        if not answers:
            return np.zeros((0, min(k, num_items)), np.int64), np.zeros((0, min(k, num_items)), np.float32)
        items, scores = (np.concatenate(part) for part in zip(*answers, strict=True))
        return items, scores

    @property
    @abc.abstractmethod
    def num_items(self) -> int:
        """I."""


@dataclass(frozen=True, eq=False)
class PopularityScorer(Scorer):
    """The same scores for everybody, (I,)."""

    popularity: np.ndarray

    def represent(self, histories: sp.csr_matrix) -> sp.csr_matrix:
        """The histories themselves."""
        return histories

    def scores(self, users: Users) -> np.ndarray:
        """Popularity, in each row."""
        return np.tile(self.popularity, (users.shape[0], 1))

    def pair_scores(self, users: Users, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Popularity of the items."""
        return np.asarray(self.popularity[items])

    def similar(self, items: np.ndarray) -> None:
        """Nothing: popularity knows no similarity."""
        return None

    def arrays(self) -> Arrays:
        """The scores."""
        return {"popularity": self.popularity}

    @property
    def num_items(self) -> int:
        """I."""
        return len(self.popularity)


@dataclass(frozen=True, eq=False)
class ItemScorer(Scorer):
    """Item-to-item weights (I, I), dense or sparse: an item's score is the sum of its column over a history."""

    weights: np.ndarray | sp.csr_matrix

    def represent(self, histories: sp.csr_matrix) -> sp.csr_matrix:
        """The histories themselves."""
        return histories

    def scores(self, users: Users) -> np.ndarray:
        """Histories times weights."""
        product = users @ self.weights
        return np.asarray(product.toarray() if sp.issparse(product) else product, np.float32)

    def pair_scores(self, users: Users, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Sums over the history of each pair's user."""
        answers = np.empty(len(rows), np.float32)
        order = np.argsort(rows, kind="stable")
        distinct, starts = np.unique(rows[order], return_index=True)
        # By users, so that a user's scores are computed once.
        step = block_size(self.num_items)
        bounds = np.append(starts, len(rows))
        for start in range(0, len(distinct), step):
            block = distinct[start : start + step]
            pairs = order[bounds[start] : bounds[start + len(block)]]
            answers[pairs] = self.scores(users[block])[np.searchsorted(block, rows[pairs]), items[pairs]]
        return answers

    def similar(self, items: np.ndarray) -> np.ndarray:
        """The weights from each item to all others."""
        rows = self.weights[items]
        return np.asarray(rows.toarray() if sp.issparse(rows) else rows, np.float32)

    def contributions(self, history: sp.csr_matrix, item: int) -> np.ndarray:
        """What each entry of a history (1, I) adds to the score of `item`."""
        column = self.weights[history.indices, item]
        weights = np.asarray(column.toarray() if sp.issparse(column) else column).ravel()
        return np.asarray(history.data * weights, np.float32)

    def arrays(self) -> Arrays:
        """The weights; of sparse ones their three parts."""
        if isinstance(self.weights, np.ndarray):
            return {"weights": self.weights}
        return {"values": self.weights.data, "columns": self.weights.indices, "offsets": self.weights.indptr}

    @property
    def num_items(self) -> int:
        """I."""
        return int(self.weights.shape[0])

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> ItemScorer:
        """The scorer whose `arrays` these are."""
        if "weights" in arrays:
            return cls(arrays["weights"])
        size = len(arrays["offsets"]) - 1
        return cls(sp.csr_matrix((arrays["values"], arrays["columns"], arrays["offsets"]), shape=(size, size)))


@dataclass(frozen=True, eq=False)
class FactorScorer(Scorer):
    """Vectors whose inner product, plus `offset`, is the score.

    Biases are columns of the vectors, the last `num_biases` of them. `fold` gives the vectors of users from their
    histories; users who are `fixed`, bool by number, keep their trained ones when more is known of them. Users beyond
    its end are not fixed.
    """

    users: np.ndarray
    items: np.ndarray
    fold: Callable[[sp.csr_matrix], np.ndarray]
    offset: float = 0.0
    num_biases: int = 0
    fixed: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))

    def represent(self, histories: sp.csr_matrix) -> np.ndarray:
        """Vectors of users with these histories, (B, D)."""
        return self.fold(histories)

    def scores(self, users: Users) -> np.ndarray:
        """Inner products with all items."""
        return np.asarray(users @ self.items.T + np.float32(self.offset))

    def pair_scores(self, users: Users, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Inner products of the pairs."""
        return pair_products(np.asarray(users), rows, self.items, items) + np.float32(self.offset)

    def best(
        self, users: Users, k: int, *, hidden: sp.csr_matrix | None = None, blocked: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """By blocks of users and items, so that no score of all pairs is kept."""
        if blocked is None:
            items, scores = top_k_products(np.asarray(users), self.items, k, seen=hidden)
        else:
            allowed = np.flatnonzero(~blocked)
            hidden = None if hidden is None else hidden[:, allowed]
            places, scores = top_k_products(np.asarray(users), self.items[allowed], k, seen=hidden)
            items = np.where(places >= 0, np.append(allowed, NOTHING)[places], NOTHING)
        return items, scores + np.float32(self.offset)

    def similar(self, items: np.ndarray) -> np.ndarray:
        """Cosines of the items' vectors, biases left out."""
        vectors = self.items[:, : self.items.shape[1] - self.num_biases]
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return np.asarray(vectors[items] @ vectors.T)

    def arrays(self) -> Arrays:
        """Both sides' vectors and the offset."""
        return {"users": self.users, "items": self.items, "offset": np.array([self.offset], np.float32)}

    @property
    def num_items(self) -> int:
        """I."""
        return len(self.items)
