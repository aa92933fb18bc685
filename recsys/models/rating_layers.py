"""Dense layers over a user's and an item's vector that give a rating: in NumPy, as a scorer, and as a Keras model.

Legend: B users, I items, N pairs, D width of a vector, H width of the first layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import tensorflow as tf

from recsys.models.network import RecommenderNetwork
from recsys.models.scorers import Arrays, FactorScorer, Scorer, Users
from recsys.top_k import block_size


@dataclass(frozen=True, eq=False)
class RatingLayers:
    """Kernels and biases in turn, ReLU between them; the first kernel is (2 D, H), user above item, the last (., 1)."""

    weights: tuple[np.ndarray, ...]

    def of_pairs(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Ratings of pairs of vectors (N, D), float32 (N,)."""
        return self._after_first(np.concatenate([users, items], axis=1) @ self.weights[0] + self.weights[1])

    def of_all(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Ratings of each user (B, D) and item (I, D), float32 (B, I)."""
        width = users.shape[1]
        of_users, of_items = users @ self.weights[0][:width], items @ self.weights[0][width:] + self.weights[1]
        return self._after_first(of_users[:, None] + of_items)

    def _after_first(self, x: np.ndarray) -> np.ndarray:
        for kernel, bias in zip(self.weights[2::2], self.weights[3::2], strict=True):
            x = np.maximum(x, 0) @ kernel + bias
        return np.asarray(x[..., 0], np.float32)

    def arrays(self) -> Arrays:
        """By names that keep their order."""
        return {f"layers/{number:02d}": weight for number, weight in enumerate(self.weights)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> RatingLayers:
        """The layers whose `arrays` these are, among others."""
        return cls(tuple(arrays[name] for name in sorted(arrays) if name.startswith("layers/")))


@dataclass(frozen=True, eq=False)
class RatingScorer(FactorScorer):
    """Users and items are vectors, scores are ratings by the layers."""

    layers: RatingLayers = RatingLayers(())

    @classmethod
    def of(cls, users: np.ndarray, items: np.ndarray, layers: RatingLayers) -> RatingScorer:
        """The scorer of trained vectors; users who come later count as average ones."""
        mean = users.mean(axis=0)

        def fold(histories: sp.csr_matrix) -> np.ndarray:
            return np.tile(mean, (histories.shape[0], 1))

        return cls(users, items, fold, fixed=np.ones(len(users), bool), layers=layers)

    def scores(self, users: Users) -> np.ndarray:
        """Ratings of all items, some users at a time."""
        step = block_size(self.num_items * self.layers.weights[0].shape[1])
        parts = [self.layers.of_all(users[start : start + step], self.items) for start in range(0, len(users), step)]
        return np.concatenate(parts) if parts else np.zeros((0, self.num_items), np.float32)

    def pair_scores(self, users: Users, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Ratings of the pairs."""
        return self.layers.of_pairs(np.asarray(users)[rows], self.items[items])

    def best(
        self, users: Users, k: int, *, hidden: sp.csr_matrix | None = None, blocked: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """By the ratings of all items: they are no inner products."""
        return Scorer.best(self, users, k, hidden=hidden, blocked=blocked)

    def arrays(self) -> Arrays:
        """Vectors and layers."""
        return {"users": self.users, "items": self.items, **self.layers.arrays()}


class RatingNetwork(RecommenderNetwork):
    """The same as a Keras 3 model: user numbers -> ratings of all items."""

    def __init__(self, scorer: RatingScorer, usable: np.ndarray, popularity: np.ndarray) -> None:
        super().__init__(usable, popularity)
        width = scorer.items.shape[1]
        weights = scorer.layers.weights
        self.of_users = self.constant("of_users", np.vstack([scorer.users, np.zeros((1, width))]) @ weights[0][:width])
        self.of_items = self.constant("of_items", scorer.items @ weights[0][width:] + weights[1])
        self.later = [self.constant(f"layer_{n:02d}", weight) for n, weight in enumerate(weights[2:])]

    def model_scores(self, rows: tf.Tensor) -> tf.Tensor:
        """(B, 1, H) + (I, H), and the layers after the first."""
        x = tf.gather(self.of_users, rows)[:, None] + tf.convert_to_tensor(self.of_items)
        for kernel, bias in zip(self.later[::2], self.later[1::2], strict=True):
            x = tf.matmul(tf.nn.relu(x), tf.convert_to_tensor(kernel)) + tf.convert_to_tensor(bias)
        return x[..., 0]
