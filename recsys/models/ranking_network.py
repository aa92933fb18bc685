"""Networks that score rows of encoded features: DLRM, DCN-v2, DeepFM, Wide & Deep.

Legend: B rows, F fields (a vector each), D width of a vector, W numbers, P = N (N - 1) / 2 pairs of N vectors.

Each takes the arrays of `FeatureEncoder.encode` and gives logits, or ratings, float32 (B,).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from recsys.feature_encoder import FeatureLayout
from recsys.models.feature_embedding import FeatureEmbedding
from shared.dense import Dense

# Odd numbers that spread pairs over buckets (Knuth's multiplicative hashing); part of saved models.
_FIRST_FACTOR, _SECOND_FACTOR = 2_654_435_761, 40_503


class RankingNetwork(keras.Model):
    """A network over features; `logits` is what differs.

    Args:
        layout: of the encoder.
        dim: D.
        hidden: widths of the layers of the deep part.
        dropout: share of values dropped behind each of these.
    """

    def __init__(self, layout: FeatureLayout, *, dim: int, hidden: Sequence[int], dropout: float) -> None:
        # Names are given throughout: by them weights are found again in files.
        super().__init__(name="network")
        self.layout = layout
        self.embedding = FeatureEmbedding(layout, dim, name="embedding")
        self.deep = Perceptron(hidden, dropout, name="deep")
        # In float32 also where other layers are not: rounded logits would be ties.
        self.head = Dense(1, name="head", dtype="float32")

    def build(self, *_: Any) -> None:
        """Make the table; other layers are built when they are first called."""
        if not self.embedding.built:
            self.embedding.build()
        self.built = True

    def call(self, arrays: Mapping[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """Logits of rows, float32 (B,)."""
        return self.logits(arrays, training)[:, 0]

    def logits(self, arrays: Mapping[str, tf.Tensor], training: bool) -> tf.Tensor:
        """Logits float32 (B, 1)."""
        raise NotImplementedError

    def start_from(self, level: float) -> None:
        """Let the untrained network answer with about `level`: it need not learn how often there are clicks."""
        self.head.bias.assign([level])

    @property
    def tables(self) -> list[keras.Variable]:
        """The weights of which a batch reads some rows only."""
        blocks = [part for part in self._flatten_layers() if isinstance(part, FeatureEmbedding)]
        return [block.table for block in blocks if self.layout.num_fields]

    def numbers(self, arrays: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Numbers (B, W) in the precision of the layers."""
        return tf.cast(arrays["numbers"], self.compute_dtype)


class DlrmNetwork(RankingNetwork):
    """Inner products of all pairs of vectors, one of which stands for the numbers, then dense layers.

    z = bottom(numbers), (D,); p = (z, <v_i, v_j> for all i < j of z and the fields' vectors); logit = top(p).
    Naumov et al. 2019, "Deep Learning Recommendation Model for Personalization and Recommendation Systems"
    (arXiv:1906.00091), section 2; the inner products are factorisation machines' second order (Rendle 2010).

    Args:
        layout: of the encoder.
        dim: D.
        bottom: widths of the layers over the numbers, before the one of width D.
        hidden: of the layers over the products.
        dropout: behind these.
    """

    def __init__(
        self, layout: FeatureLayout, *, dim: int, bottom: Sequence[int], hidden: Sequence[int], dropout: float
    ) -> None:
        super().__init__(layout, dim=dim, hidden=hidden, dropout=dropout)
        self.bottom = Perceptron((*bottom, dim), 0.0, name="bottom") if layout.num_numbers else None

    def logits(self, arrays: Mapping[str, tf.Tensor], training: bool) -> tf.Tensor:
        """Logits (B, 1)."""
        vectors = self.embedding(arrays)
        parts = []
        if self.bottom is not None:
            dense = self.bottom(self.numbers(arrays), training=training)
            vectors = tf.concat([dense[:, None, :], vectors], axis=1)
            parts.append(dense)
        parts.append(pair_products(vectors))
        if vectors.shape[1] == 1 and self.bottom is None:  # a single field has no pair
            parts.append(vectors[:, 0])
        return self.head(self.deep(tf.concat(parts, axis=1), training=training))


class DcnNetwork(RankingNetwork):
    """Cross layers beside dense ones, both over vectors and numbers side by side.

    x_0 = flat features; x_{l+1} = x_0 * (W_l x_l + b_l) + x_l, elementwise product; W_l = U_l V_l' of rank `rank`
    where that is above 0; logit = w (x_L, deep(x_0)). Wang et al. 2020, "DCN V2: Improved Deep & Cross Network and
    Practical Lessons for Web-scale Learning to Rank Systems" (arXiv:2008.13535), equations 1 and 2, parallel form.
    `keras_rs.layers.FeatureCross` is the same layer.

    Args:
        layout: of the encoder.
        dim: D.
        cross_layers: L.
        rank: of W_l; 0: full.
        hidden: of the dense layers.
        dropout: behind these.
    """

    def __init__(
        self,
        layout: FeatureLayout,
        *,
        dim: int,
        cross_layers: int,
        rank: int,
        hidden: Sequence[int],
        dropout: float,
    ) -> None:
        super().__init__(layout, dim=dim, hidden=hidden, dropout=dropout)
        width = self.embedding.flat_width
        self.crosses = [Dense(width, name=f"cross_{number}") for number in range(cross_layers)]
        names = [f"projection_{number}" for number in range(cross_layers)] if rank else []
        self.projections = [Dense(rank, use_bias=False, name=name) for name in names]

    def logits(self, arrays: Mapping[str, tf.Tensor], training: bool) -> tf.Tensor:
        """Logits (B, 1)."""
        first = self.embedding.flat(arrays)
        crossed = first
        for number, cross in enumerate(self.crosses):
            inner = self.projections[number](crossed) if self.projections else crossed
            crossed = first * cross(inner) + crossed
        deep = self.deep(first, training=training)
        return self.head(tf.concat([crossed, deep], axis=1))


class FirstOrder(keras.layers.Layer):
    """A weight for each category and number: arrays -> float32 (B, 1)."""

    def __init__(self, layout: FeatureLayout) -> None:
        super().__init__(name="first_order", dtype="float32")
        self.categories: Any = None
        if layout.num_fields:
            self.categories = FeatureEmbedding(layout, 1, scale=1e-3, name="categories", dtype="float32")
        self.linear: Any = None
        if layout.num_numbers:
            self.linear = Dense(1, use_bias=False, name="linear", dtype="float32")

    def call(self, arrays: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Sums of the weights of what is there."""
        parts = []
        if self.categories is not None:
            parts.append(tf.reduce_sum(self.categories(arrays), axis=1))
        if self.linear is not None:
            parts.append(self.linear(arrays["numbers"]))
        return tf.add_n(parts)


class DeepFmNetwork(RankingNetwork):
    """A factorisation machine plus dense layers over the same vectors.

    logit = sum_i w_i x_i + sum_{i<j} <v_i, v_j> x_i x_j + deep(v). A category's x is 1 (a list's: 1 / length each),
    and each number has a vector of its own. The second sum is ((sum_i x_i v_i)^2 - sum_i (x_i v_i)^2) / 2, summed over
    D; the pairs within one field's list are left out, since its mean counts as one vector. Guo et al. 2017, "DeepFM: A
    Factorization-Machine based Neural Network for CTR Prediction" (arXiv:1703.04247), equations 1 to 4; the identity is
    Rendle 2010's.
    """

    def __init__(self, layout: FeatureLayout, *, dim: int, hidden: Sequence[int], dropout: float) -> None:
        super().__init__(layout, dim=dim, hidden=hidden, dropout=dropout)
        self.first_order = FirstOrder(layout)
        self.factors: Any = None
        if layout.num_numbers:
            initial = keras.initializers.RandomUniform(-0.05, 0.05)
            self.factors = self.add_weight((layout.num_numbers, dim), initializer=initial, name="factors")

    def logits(self, arrays: Mapping[str, tf.Tensor], training: bool) -> tf.Tensor:
        """Logits (B, 1)."""
        vectors = self.embedding(arrays)
        total, squares = tf.reduce_sum(vectors, axis=1), tf.reduce_sum(tf.square(vectors), axis=1)
        parts = [tf.reshape(vectors, (-1, self.layout.num_fields * self.embedding.dim))] * bool(self.layout.num_fields)
        if self.factors is not None:
            numbers, factors = self.numbers(arrays), tf.convert_to_tensor(self.factors)
            total += tf.matmul(numbers, factors)
            squares += tf.matmul(tf.square(numbers), tf.square(factors))
            parts.append(numbers)
        second = tf.reduce_sum(tf.cast(tf.square(total) - squares, tf.float32), axis=1, keepdims=True) / 2
        deep = self.head(self.deep(tf.concat(parts, axis=1), training=training))
        return self.first_order(arrays) + second + deep


class WideDeepNetwork(RankingNetwork):
    """A linear model over categories, numbers and crosses of categories, plus dense layers over vectors.

    logit = w (x, phi(x)) + deep(v), phi(x) the crosses: of two columns together, a weight for each pair of categories,
    hashed into `cross_buckets`. Cheng et al. 2016, "Wide & Deep Learning for Recommender Systems" (arXiv:1606.07792),
    equations 1 and 3; both parts are trained together, here by one optimizer.

    Args:
        layout: of the encoder.
        crosses: places in `categories` of the columns that are crossed.
        cross_buckets: weights for each cross.
        dim: D.
        hidden: of the dense layers.
        dropout: behind these.
    """

    def __init__(
        self,
        layout: FeatureLayout,
        *,
        crosses: Sequence[tuple[int, int]],
        cross_buckets: int,
        dim: int,
        hidden: Sequence[int],
        dropout: float,
    ) -> None:
        super().__init__(layout, dim=dim, hidden=hidden, dropout=dropout)
        self.first_order = FirstOrder(layout)
        self.crosses = tuple(crosses)
        self.cross_buckets = cross_buckets
        if crosses:
            self.cross_weights = self.add_weight(
                (len(crosses) * cross_buckets, 1), initializer="zeros", name="cross_weights", autocast=False
            )

    def logits(self, arrays: Mapping[str, tf.Tensor], training: bool) -> tf.Tensor:
        """Logits (B, 1)."""
        logits = self.first_order(arrays)
        if self.crosses:
            weights = tf.gather(self.cross_weights.value, self._crossed(arrays["categories"]))
            logits += tf.cast(tf.reduce_sum(weights, axis=1), tf.float32)
        return logits + self.head(self.deep(self.embedding.flat(arrays), training=training))

    @property
    def tables(self) -> list[keras.Variable]:
        """The weights of which a batch reads some rows only."""
        return [*super().tables, *([self.cross_weights] if self.crosses else [])]

    def _crossed(self, categories: tf.Tensor) -> tf.Tensor:
        """The weight of each cross, by its place, (B, number of crosses)."""
        left, right = (
            tf.cast(tf.gather(categories, [cross[side] for cross in self.crosses], axis=1), tf.int64) for side in (0, 1)
        )
        buckets = tf.math.floormod(left * _FIRST_FACTOR + right * _SECOND_FACTOR, self.cross_buckets)
        return buckets + np.arange(len(self.crosses)) * self.cross_buckets


class Perceptron(keras.layers.Layer):
    """Dense layers with ReLU, and dropout behind each."""

    def __init__(self, widths: Sequence[int], dropout: float, *, name: str) -> None:
        super().__init__(name=name)
        numbered = enumerate(widths)
        self.layers = [Dense(width, activation="relu", name=f"dense_{n}") for n, width in numbered]
        self.dropouts = [keras.layers.Dropout(dropout) for _ in widths] if dropout else []

    def call(self, values: tf.Tensor, training: bool = False) -> tf.Tensor:
        """(B, any) -> (B, last width); with no widths at all `values` as they are."""
        for number, layer in enumerate(self.layers):
            values = layer(values)
            if self.dropouts:
                values = self.dropouts[number](values, training=training)
        return values


def pair_products(vectors: tf.Tensor) -> tf.Tensor:
    """Inner products of all pairs of N vectors: (B, N, D) -> (B, P), pairs (1, 0), (2, 0), (2, 1), ..."""
    count = vectors.shape[1]
    products = tf.reshape(tf.matmul(vectors, vectors, transpose_b=True), (-1, count * count))
    rows, columns = np.tril_indices(count, -1)
    return tf.gather(products, (rows * count + columns).astype(np.int32), axis=1)
