"""What tells a token's place in encoder-decoder transformers: sinusoids, tables, or T5's buckets of distances."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from nlp.models.layers import initial_weights


def sinusoids(length: int, num_features: int, *, as_marian: bool = False) -> np.ndarray:
    """Sines of each position, then cosines, float32 (length, D), computed in float64.

    The i-th of D / 2 wave lengths is 2 pi 10000^(i / (D / 2)) in the paper (Vaswani et al. 2017, section 3.5) and in
    transformers' Marian, 2 pi 10000^(i / (D / 2 - 1)) in Marian's own code (`as_marian`), as in tensor2tensor.
    """
    half = num_features // 2
    steps = max(half - 1, 1) if as_marian else half
    angles = np.arange(length)[:, None] / 10000.0 ** (np.arange(half) / steps)
    rows: np.ndarray = np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
    return rows


def relative_buckets(distances: np.ndarray, num_buckets: int, max_distance: int, *, both_ways: bool) -> np.ndarray:
    """T5's bucket of each distance, position of the key minus that of the query, int32.

    Half of the buckets hold one distance each, the others grow on a logarithmic scale to `max_distance` (Raffel et al.
    2020, arXiv:1910.10683, section 2.1). With `both_ways` half of all buckets are for keys that come later; else those
    share bucket 0 with the query's own position. Computed in float32 as T5's own code does, since the rounding decides
    about neighbours of a bucket's edge.
    """
    offset = np.zeros_like(distances)
    if both_ways:
        num_buckets //= 2
        offset = np.where(distances > 0, num_buckets, 0)
        distances = np.abs(distances)
    else:
        distances = np.maximum(-distances, 0)
    exact = num_buckets // 2
    steps = np.log(np.maximum(distances, 1).astype(np.float32) / np.float32(exact))
    steps = steps / np.float32(np.log(max_distance / exact)) * np.float32(num_buckets - exact)
    far = np.minimum(exact + steps.astype(np.int64), num_buckets - 1)
    return (offset + np.where(distances < exact, distances, far)).astype(np.int32)


class RelativeBias(keras.layers.Layer):
    """What T5 adds to the scores of a query and a key at some distance: one number for each bucket and head."""

    def __init__(
        self, num_buckets: int, max_distance: int, num_heads: int, *, both_ways: bool, **layer_options: Any
    ) -> None:
        super().__init__(**layer_options)
        self.num_buckets, self.num_heads = num_buckets, num_heads
        # All distances beyond the longest share its bucket.
        self.longest = max_distance
        known = np.arange(-max_distance, max_distance + 1)
        self.buckets = relative_buckets(known, num_buckets, max_distance, both_ways=both_ways)

    def build(self, input_shape: tuple[int | None, ...] | None = None) -> None:
        """Create the table (buckets, H)."""
        shape = (self.num_buckets, self.num_heads)
        self.table = self.add_weight(shape=shape, initializer=initial_weights(), name="table")

    def between(self, length: Any) -> tf.Tensor:
        """What is added for all pairs in texts of this length, float32 (1, H, T, T)."""
        places = tf.range(length)
        bias = self.of_distances(places[None, :] - places[:, None])  # (T, T, H)
        return tf.expand_dims(tf.transpose(bias, (2, 0, 1)), 0)

    def of_distances(self, distances: tf.Tensor) -> tf.Tensor:
        """Distances of any shape -> float32 (..., H)."""
        near = tf.clip_by_value(distances, -self.longest, self.longest) + self.longest
        return tf.gather(tf.cast(tf.convert_to_tensor(self.table), tf.float32), tf.gather(self.buckets, near))
