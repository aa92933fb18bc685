"""Recommenders as Keras models: the solved weights, and from user numbers the scores of all items.

Legend: B users asked for, U users known, I items, D factors, N entries of the users' histories.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import scipy.sparse as sp
import tensorflow as tf

from recsys.models.scorers import FactorScorer, ItemScorer, Scorer, Users
from recsys.models.sequence_network import SequenceNetwork
from recsys.sequences import Sequences


class RecommenderNetwork(keras.Model):
    """User numbers (B,), int64 -> scores (B, I), float32; -1 and users without usable history: popularity.

    Args:
        usable: whether the model has a say on a user, bool (U,).
        popularity: the answer otherwise, (I,).
    """

    def __init__(self, usable: np.ndarray, popularity: np.ndarray) -> None:
        super().__init__(dtype="float32")
        # One more row than there are users: -1 is the last.
        self.usable = self.constant("usable", np.append(usable, False).astype(np.int64))
        self.popularity = self.constant("popularity", popularity)

    def constant(self, name: str, values: np.ndarray) -> Any:
        """A weight with these values: float32, or int64 where they are whole numbers."""
        dtype = "int64" if values.dtype.kind in "iu" else "float32"
        weight = self.add_weight(shape=values.shape, dtype=dtype, initializer="zeros", trainable=False, name=name)
        weight.assign(values.astype(dtype))
        return weight

    def call(self, users: tf.Tensor) -> tf.Tensor:
        """Scores of all items."""
        rows = tf.where(users < 0, tf.cast(tf.shape(self.usable)[0] - 1, tf.int64), tf.cast(users, tf.int64))
        by_model = tf.gather(self.usable, rows) > 0
        return tf.where(by_model[:, None], self.model_scores(rows), self.popularity[None, :])

    def model_scores(self, rows: tf.Tensor) -> tf.Tensor:
        """Scores of all items by the model, for rows (B,); popularity has no other."""
        return tf.tile(self.popularity[None, :], [tf.shape(rows)[0], 1])


class FactorNetwork(RecommenderNetwork):
    """Scores by inner products of vectors, plus an offset."""

    def __init__(self, scorer: FactorScorer, users: np.ndarray, usable: np.ndarray, popularity: np.ndarray) -> None:
        super().__init__(usable, popularity)
        self.users = self.constant("users", np.vstack([users, np.zeros((1, users.shape[1]), np.float32)]))
        self.items = self.constant("items", scorer.items)
        self.offset = scorer.offset

    def model_scores(self, rows: tf.Tensor) -> tf.Tensor:
        """(B, D) x (D, I)."""
        return tf.matmul(tf.gather(self.users, rows), self.items, transpose_b=True) + self.offset


class ItemNetwork(RecommenderNetwork):
    """Scores by sums of item-to-item weights over histories, which are rows of offsets, items and values."""

    def __init__(
        self, scorer: ItemScorer, histories: sp.csr_matrix, usable: np.ndarray, popularity: np.ndarray
    ) -> None:
        super().__init__(usable, popularity)
        self.offsets = self.constant("offsets", np.append(histories.indptr, histories.indptr[-1]))
        self.entries = self.constant("entries", histories.indices)
        self.values = self.constant("values", histories.data)
        arrays = scorer.arrays()
        self.sparse = "weights" not in arrays
        if self.sparse:
            self.weight_offsets = self.constant("weight_offsets", arrays["offsets"])
            self.weight_items = self.constant("weight_items", arrays["columns"])
            self.weight_values = self.constant("weight_values", arrays["values"])
        else:
            self.dense_weights = self.constant("dense_weights", arrays["weights"])

    def model_scores(self, rows: tf.Tensor) -> tf.Tensor:
        """(B, I) sparse x (I, I)."""
        owners, places = expanded(self.offsets, rows)
        items, values = tf.gather(self.entries, places), tf.gather(self.values, places)
        shape = tf.stack([tf.size(rows, tf.int64), tf.size(self.popularity, tf.int64)])
        if not self.sparse:
            histories = tf.SparseTensor(tf.stack([owners, items], axis=1), values, shape)
            return tf.sparse.sparse_dense_matmul(histories, self.dense_weights)
        sources, inner = expanded(self.weight_offsets, items)
        parts = tf.gather(values, sources) * tf.gather(self.weight_values, inner)
        where = tf.stack([tf.gather(owners, sources), tf.gather(self.weight_items, inner)], axis=1)
        return tf.scatter_nd(where, parts, shape)


class SequenceRecommenderNetwork(RecommenderNetwork):
    """Scores by a network that reads the last `max_length` items of each user; the network is shared, not copied."""

    def __init__(self, network: SequenceNetwork, sequences: Sequences, max_length: int, popularity: np.ndarray) -> None:
        super().__init__(sequences.lengths > 0, popularity)
        self.network = network
        self.max_length = max_length
        self.offsets = self.constant("offsets", np.append(sequences.offsets, sequences.offsets[-1]))
        # One more than there are, so that users without any have a place to look at.
        self.entries = self.constant("entries", np.append(sequences.items, -1).astype(np.int64))

    def model_scores(self, rows: tf.Tensor) -> tf.Tensor:
        """The vector after each last item, times all items."""
        offsets = tf.convert_to_tensor(self.offsets)
        ends = tf.gather(offsets, rows + 1)
        lengths = tf.minimum(ends - tf.gather(offsets, rows), self.max_length)
        steps = tf.range(tf.maximum(tf.reduce_max(lengths), 1))
        real = steps < lengths[:, None]
        places = tf.where(real, (ends - lengths)[:, None] + steps, tf.size(self.entries, tf.int64) - 1)
        items = tf.cast(tf.gather(self.entries, places), tf.int32)
        return self.scores_after(items, tf.cast(lengths, tf.int32))

    def scores_after(self, items: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        """Scores of all items after sequences (B, T), int32, of which `lengths` (B,) are real: (B, I)."""
        vectors = self.network(items, lengths, training=False)
        last = tf.cast(tf.gather(vectors, tf.maximum(lengths - 1, 0), batch_dims=1), tf.float32)
        return tf.matmul(last, tf.cast(tf.convert_to_tensor(self.network.table), tf.float32), transpose_b=True)


def expanded(offsets: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The entries of some rows of a compressed sparse matrix: which of `rows` each belongs to, and its place."""
    offsets = tf.convert_to_tensor(offsets)
    starts = tf.gather(offsets, rows)
    lengths = tf.gather(offsets, rows + 1) - starts
    owners = tf.repeat(tf.range(tf.size(rows, tf.int64)), lengths)
    firsts = tf.cumsum(lengths, exclusive=True)
    places = tf.range(tf.reduce_sum(lengths)) + tf.repeat(starts - firsts, lengths)
    return owners, places


def recommender_network(scorer: Scorer, users: Users, usable: np.ndarray, popularity: np.ndarray) -> RecommenderNetwork:
    """The network of a scorer, for `users` as the scorer represents them."""
    if isinstance(scorer, FactorScorer):
        network: RecommenderNetwork = FactorNetwork(scorer, np.asarray(users), usable, popularity)
    elif isinstance(scorer, ItemScorer):
        network = ItemNetwork(scorer, users, usable, popularity)
    else:
        network = RecommenderNetwork(usable, popularity)
    network(np.zeros(1, np.int64))
    return network
