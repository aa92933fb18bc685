"""Self-attention: Vaswani et al. 2017 (arXiv:1706.03762), and DeBERTa's (He et al. 2021, arXiv:2006.03654).

DeBERTa's "disentangled" attention adds to the scores of content against content (q_i . k_j) those of content against
the distance i - j, in one or both directions: c2p, q_i . K(i - j), and p2c, k_j . Q(i - j), where K and Q are
projections of one table of distance embeddings.

Shapes: B texts, T tokens, D features, H heads, d = D / H features of a head, S half the rows of the distance table.
Scores and softmax are float32 in any precision. A text whose mask is all False gets finite numbers without meaning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from nlp.models.layers import Linear, initial_weights, layer_norm, length_of

# Added to the scores of padding: exp of it is 0, yet sums of it stay finite.
_MASKED = -1e9


class SelfAttention(keras.layers.Layer):
    """(B, T, D) with a mask (B, T) of real tokens -> (B, T, D): each token's mixture of all real tokens' values.

    Query, key and value are one matrix (D, 3 D): one product instead of three.
    """

    def __init__(self, num_heads: int, num_features: int, *, dropout: float, **layer_options: Any) -> None:
        super().__init__(**layer_options)
        self.num_heads = num_heads
        self.num_features = num_features
        self.qkv = Linear(3 * num_features, name="qkv")
        self.dropout = keras.layers.Dropout(dropout)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the projection."""
        self.qkv.build(input_shape)

    def call(
        self,
        x: tf.Tensor,
        real: tf.Tensor,
        distances: tf.Tensor | None = None,
        *,
        first_only: bool = False,
        training: bool | None = None,
    ) -> tf.Tensor:
        """Give the mixtures; with `first_only` those of position 0 alone, (B, 1, D). `distances` play no part here."""
        if first_only:
            width = self.num_features
            query = self._heads(self._projected(x[:, :1], slice(0, width)), 1)[0]
            key, value = tf.unstack(self._heads(self._projected(x, slice(width, None)), 2))
        else:
            query, key, value = tf.unstack(self._heads(self.qkv(x), 3))
        query *= 1 / math.sqrt(self.num_features // self.num_heads)
        return self._mixed(tf.matmul(query, key, transpose_b=True), value, real, training)

    def _projected(self, x: tf.Tensor, columns: slice) -> tf.Tensor:
        kernel, bias = tf.convert_to_tensor(self.qkv.kernel), tf.convert_to_tensor(self.qkv.bias)
        rows = tf.matmul(tf.reshape(x, (-1, self.num_features)), kernel[:, columns]) + bias[columns]
        return tf.reshape(rows, (-1, length_of(x), rows.shape[-1]))

    def _heads(self, x: tf.Tensor, count: int) -> tf.Tensor:
        """(B, T, count D) -> (count, B, H, T, d)."""
        shape = (-1, length_of(x), count, self.num_heads, self.num_features // self.num_heads)
        return tf.transpose(tf.reshape(x, shape), (2, 0, 3, 1, 4))

    def _mixed(self, scores: tf.Tensor, value: tf.Tensor, real: tf.Tensor, training: bool | None) -> tf.Tensor:
        """Scores (B, H, Q, T) scaled, values (B, H, T, d) -> (B, Q, D)."""
        penalty = tf.expand_dims(tf.expand_dims(tf.where(real, 0.0, _MASKED), 1), 1)  # LiteRT has no new axes in slices
        weights = tf.cast(tf.nn.softmax(tf.cast(scores, tf.float32) + penalty), value.dtype)
        mixed = tf.matmul(self.dropout(weights, training=training), value)
        mixed = tf.transpose(mixed, (0, 2, 1, 3))  # (B, H, Q, d) -> (B, Q, H, d)
        return tf.reshape(mixed, (-1, length_of(mixed), self.num_features))


class DisentangledAttention(SelfAttention):
    """DeBERTa's attention; `distances` (2 T, D) are embeddings of the distances T - 1, ..., -T (`DistanceTable`).

    `terms` are "c2p" and "p2c", one, both or none. With `shared_projections` distances are projected by the content's
    own query and key matrices.
    """

    def __init__(
        self,
        num_heads: int,
        num_features: int,
        *,
        terms: Sequence[str],
        shared_projections: bool,
        dropout: float,
        distance_dropout: float,
        **layer_options: Any,
    ) -> None:
        super().__init__(num_heads, num_features, dropout=dropout, **layer_options)
        self.terms = tuple(terms)
        self.distance_dropout = keras.layers.Dropout(distance_dropout)
        own = not shared_projections
        self.distance_key = Linear(num_features, name="distance_key") if own and "c2p" in terms else None
        self.distance_query = Linear(num_features, name="distance_query") if own and "p2c" in terms else None

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the projections."""
        super().build(input_shape)
        for layer in (self.distance_key, self.distance_query):
            if layer is not None:
                layer.build((None, self.num_features))

    def call(
        self,
        x: tf.Tensor,
        real: tf.Tensor,
        distances: tf.Tensor | None = None,
        *,
        first_only: bool = False,
        training: bool | None = None,
    ) -> tf.Tensor:
        """Give the mixtures; with `first_only` those of position 0 alone, (B, 1, D)."""
        assert distances is not None
        query, key, value = tf.unstack(self._heads(self.qkv(x), 3))
        distances = self.distance_dropout(tf.cast(distances, x.dtype), training=training)
        scores = tf.matmul(query, key, transpose_b=True)
        length = length_of(x)
        if "c2p" in self.terms:
            table = self._distance_heads(distances, self.distance_key, 1)
            scores += _by_distance(tf.matmul(query, table, transpose_b=True), length, length - 1)
        if "p2c" in self.terms:
            table = self._distance_heads(tf.reverse(distances, (0,)), self.distance_query, 0)
            by_key = _by_distance(tf.matmul(key, table, transpose_b=True), length, length)
            scores += tf.linalg.matrix_transpose(by_key)
        # One root for all terms: equation 4 of the paper.
        scores /= math.sqrt(self.num_features // self.num_heads * (1 + len(self.terms)))
        mixed = self._mixed(scores, value, real, training)
        return mixed[:, :1] if first_only else mixed

    def _distance_heads(self, distances: tf.Tensor, projection: Linear | None, part: int) -> tf.Tensor:
        """(2 T, D) -> (1, H, 2 T, d), projected as queries (part 0) or keys (part 1)."""
        if projection is not None:
            return self._heads(projection(distances)[None], 1)[0]
        columns = slice(part * self.num_features, (part + 1) * self.num_features)
        return self._heads(self._projected(distances[None], columns), 1)[0]


def _by_distance(products: tf.Tensor, length: Any, first: Any) -> tf.Tensor:
    """Products (B, H, T, 2 T) with each distance -> scores (B, H, T, T) with column first - i + j of row i at (i, j).

    Rows are moved against each other by cutting the flat array anew, T (2 T - 1) numbers from `first` on: no gather
    (Huang et al. 2018, arXiv:1809.04281, section 3.4.1).
    """
    heads = products.shape[1]
    flat = tf.reshape(products, (-1, heads, length * 2 * length))
    flat = flat[:, :, first : first + length * (2 * length - 1)]
    return tf.reshape(flat, (-1, heads, length, 2 * length - 1))[..., :length]


class DistanceTable(keras.layers.Layer):
    """Texts (B, T, D) -> embeddings (2 T, D) of the distances T - 1, ..., -T between their tokens; the last is unused.

    The table has 2 S rows, for distances or, with `num_buckets` > 0, for buckets of them; S is `num_buckets` or else
    `max_distance`. `epsilon` is that of the layer normalisation over the rows, None for none.
    """

    def __init__(
        self,
        num_features: int,
        *,
        num_buckets: int,
        max_distance: int,
        epsilon: float | None,
        **layer_options: Any,
    ) -> None:
        super().__init__(**layer_options)
        self.num_features = num_features
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.span = num_buckets or max_distance
        self.norm = layer_norm(epsilon, name="norm") if epsilon is not None else None

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the table (2 S, D)."""
        shape = (2 * self.span, self.num_features)
        self.table = self.add_weight(shape=shape, initializer=initial_weights(), name="table")
        if self.norm is not None:
            self.norm.build(shape)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Give the rows for texts of this length."""
        table = tf.convert_to_tensor(self.table)
        if self.norm is not None:
            table = self.norm(table)
        length = length_of(x)
        return tf.gather(table, self._rows(tf.range(length - 1, -length - 1, -1)))

    def _rows(self, distances: tf.Tensor) -> tf.Tensor:
        if self.num_buckets:
            # All distances beyond the last bucket's edge share the last row.
            known = 2 * self.max_distance
            buckets = distance_buckets(np.arange(-known, known + 1), self.num_buckets, self.max_distance)
            distances = tf.gather(tf.constant(buckets), tf.clip_by_value(distances, -known, known) + known)
        return tf.clip_by_value(distances + self.span, 0, 2 * self.span - 1)


def distance_buckets(distances: np.ndarray, num_buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of each distance, int32: exact up to half of `num_buckets`, then on a logarithmic scale to its end.

    Computed in float32 as DeBERTa's own code does, since the rounding decides about neighbours of a bucket's edge
    (microsoft/DeBERTa, DeBERTa/deberta/da_utils.py).
    """
    middle = num_buckets // 2
    magnitude = np.maximum(np.abs(distances), middle).astype(np.float32)
    steps = np.log(magnitude / np.float32(middle)) / np.log(np.float32((max_distance - 1) / middle))
    logarithmic = np.ceil(steps * np.float32(middle - 1)) + middle
    near = np.abs(distances) <= middle
    return np.where(near, distances, np.sign(distances) * logarithmic).astype(np.int32)
