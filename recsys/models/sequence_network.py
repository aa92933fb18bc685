"""Networks that read a user's items in the order of time: self-attention (SASRec) and recurrent (GRU4Rec).

Legend: B sequences, T items of each, D width, H heads, I items. Sequences are padded at their end: no item looks ahead,
so what comes after the last real one changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from shared.dense import Dense, gelu
from shared.normalization import FastLayerNormalization
from shared.recomputation import recomputable


class SequenceNetwork(keras.Model):
    """Items (B, T), int32, -1 where there is none, and lengths (B,) -> vectors after each item (B, T, D).

    The inner product of such a vector with a row of `table` (I, D) is the score of that item as the next one. Items
    that are read and items that are scored have one table (Press and Wolf 2017, arXiv:1608.05859).
    """

    def __init__(self, num_items: int, *, dim: int, dropout: float, dtype: Any = None) -> None:
        super().__init__(dtype=dtype, name="network")
        self.dim = dim
        self.table = self.add_weight(
            shape=(num_items, dim), initializer=self.initializer(), name="table", dtype=self.variable_dtype
        )
        self.dropout = keras.layers.Dropout(dropout, name="dropout")

    def initializer(self) -> keras.initializers.Initializer:
        """Normal values of deviation 0.02, cut off at twice that, as BERT's."""
        return keras.initializers.TruncatedNormal(stddev=0.02)

    def dense(self, width: int, name: str, *, activation: Callable[[tf.Tensor], tf.Tensor] | None = None) -> Dense:
        """A dense layer with these initial weights."""
        return Dense(width, activation=activation, kernel_initializer=self.initializer(), name=name)

    def embedded(self, items: tf.Tensor) -> tf.Tensor:
        """Rows of the table, (B, T, D)."""
        table = tf.cast(tf.convert_to_tensor(self.table), self.compute_dtype)
        return tf.gather(table, tf.maximum(items, 0))


class AttentionNetwork(SequenceNetwork):
    """SASRec (Kang and McAuley 2018, arXiv:1808.09781), with layer normalisation before each part.

    Positions are counted from the end of a sequence: the last item is position 0 whatever the length.

    Args:
        num_items: I.
        dim: D.
        num_layers: blocks of attention and feed-forward part.
        num_heads: H; divides D.
        hidden_dim: width inside of the feed-forward part.
        max_length: the largest T.
        dropout: of embeddings, attention's and feed-forward outputs.
    """

    def __init__(
        self,
        num_items: int,
        *,
        dim: int,
        num_layers: int,
        num_heads: int,
        hidden_dim: int,
        max_length: int,
        dropout: float,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_items, dim=dim, dropout=dropout, dtype=dtype)
        self.positions = self.add_weight(
            shape=(max_length, dim), initializer=self.initializer(), name="positions", dtype=self.variable_dtype
        )
        self.blocks = [
            AttentionBlock(self, num_heads, hidden_dim, dropout, name=f"block_{number}") for number in range(num_layers)
        ]
        self.norm = FastLayerNormalization(epsilon=1e-6, name="norm")

    def call(self, items: tf.Tensor, lengths: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Vectors (B, T, D)."""
        x = self.embedded(items) * tf.cast(self.dim**0.5, self.compute_dtype)
        steps = tf.range(tf.shape(items)[1])
        from_end = tf.maximum(lengths[:, None] - 1 - steps, 0)
        x += tf.gather(tf.cast(tf.convert_to_tensor(self.positions), x.dtype), from_end)
        x = self.dropout(x, training=training)
        for block in self.blocks:
            x = block(x, training=training)
        return self.norm(x)


class AttentionBlock(keras.layers.Layer):
    """Causal self-attention and a feed-forward part, each added to its input (Vaswani et al. 2017, 3.1)."""

    def __init__(self, network: SequenceNetwork, num_heads: int, hidden_dim: int, dropout: float, name: str) -> None:
        super().__init__(name=name, dtype=network.dtype_policy)
        self.num_heads = num_heads
        self.before = FastLayerNormalization(epsilon=1e-6, name="attention_norm")
        self.projections = network.dense(3 * network.dim, "projections")
        self.output_projection = network.dense(network.dim, "output")
        self.between = FastLayerNormalization(epsilon=1e-6, name="feed_forward_norm")
        self.inner = network.dense(hidden_dim, "inner", activation=gelu)
        self.outer = network.dense(network.dim, "outer")
        self.dropout = keras.layers.Dropout(dropout, name="dropout")

    @recomputable
    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        """(B, T, D) -> (B, T, D)."""
        attended = self.output_projection(self.attention(self.before(x, training=training)))
        x += self.dropout(attended, training=training)
        return x + self.dropout(self.outer(self.inner(self.between(x, training=training))), training=training)

    def attention(self, x: tf.Tensor) -> tf.Tensor:
        """Scaled dot products over the items up to each one."""
        batch, steps, width = tf.shape(x)[0], tf.shape(x)[1], x.shape[-1]
        size = width // self.num_heads
        parts = tf.reshape(self.projections(x), (batch, steps, 3, self.num_heads, size))
        query, key, value = tf.unstack(tf.transpose(parts, (2, 0, 3, 1, 4)))
        scores = tf.matmul(query * tf.cast(size**-0.5, x.dtype), key, transpose_b=True)
        ahead = tf.range(steps)[None, :] > tf.range(steps)[:, None]
        weights = tf.nn.softmax(tf.where(ahead, tf.cast(-1e4, x.dtype), scores))
        return tf.reshape(tf.transpose(tf.matmul(weights, value), (0, 2, 1, 3)), (batch, steps, width))


class RecurrentNetwork(SequenceNetwork):
    """GRU4Rec (Hidasi et al. 2016, arXiv:1511.06939): gated recurrent units over embedded items.

    Args:
        num_items: I.
        dim: D, also the width of the recurrent state.
        num_layers: recurrent layers.
        dropout: of embeddings and of each layer's outputs.
    """

    def __init__(self, num_items: int, *, dim: int, num_layers: int, dropout: float, dtype: Any = None) -> None:
        super().__init__(num_items, dim=dim, dropout=dropout, dtype=dtype)
        self.layers_in_order = [
            keras.layers.GRU(
                dim,
                return_sequences=True,
                name=f"gru_{number}",
            )
            for number in range(num_layers)
        ]
        self.projection = self.dense(dim, "projection")

    def call(self, items: tf.Tensor, lengths: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Vectors (B, T, D)."""
        x = self.dropout(self.embedded(items), training=training)
        for layer in self.layers_in_order:
            x = self.dropout(layer(x), training=training)
        return self.projection(x)
