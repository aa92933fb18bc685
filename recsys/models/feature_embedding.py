"""Encoded features as vectors: the block with which towers and rankers begin.

Legend: B rows, C categorical and bucketed columns, M multi-valued ones, F = C + M fields, L places of lists, D width
of a vector, W numbers.

All columns share one table (see recsys.feature_encoder), so that a batch takes one lookup for categories and one for
lists, however many columns there are. `keras_rs.layers.DistributedEmbedding` has a table and a lookup for each; it pays
where tables are spread over accelerators.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from recsys.feature_encoder import PADDING, FeatureLayout


class FeatureEmbedding(keras.layers.Layer):
    """Arrays of `FeatureEncoder.encode` -> vectors (B, F, D): one of each category, and the mean of each list's.

    An empty list is a vector of zeros.

    Args:
        layout: of the encoder.
        dim: D.
        scale: initial values are uniform within +-scale.
    """

    def __init__(self, layout: FeatureLayout, dim: int, *, scale: float = 0.05, **options: Any) -> None:
        super().__init__(**options)
        self.layout = layout
        self.dim = dim
        self.scale = scale

    @property
    def flat_width(self) -> int:
        """Width of what `flat` gives: F x D + W."""
        return self.layout.num_fields * self.dim + self.layout.num_numbers

    def build(self, *_: Any) -> None:
        """Make the table."""
        if self.layout.num_fields:
            initial = keras.initializers.RandomUniform(-self.scale, self.scale)
            # Not cast as a whole in mixed precision: what is looked up is.
            self.table = self.add_weight(
                shape=(self.layout.num_rows, self.dim), initializer=initial, name="table", autocast=False
            )
        self.built = True

    def call(self, arrays: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Vectors of all fields, in the order of `FeatureEncoder.field_names`."""
        parts = []
        if self.layout.num_categories:
            parts.append(self._looked_up(arrays["categories"]))
        if self.layout.list_widths:
            parts.append(self._pooled(arrays["lists"]))
        if not parts:
            return tf.zeros((tf.shape(arrays["numbers"])[0], 0, self.dim), self.compute_dtype)
        return tf.concat(parts, axis=1) if len(parts) > 1 else parts[0]

    def flat(self, arrays: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Vectors and numbers side by side, (B, F x D + W): what dense layers take."""
        parts = []
        if self.layout.num_fields:
            parts.append(tf.reshape(self(arrays), (-1, self.layout.num_fields * self.dim)))
        if self.layout.num_numbers:
            parts.append(tf.cast(arrays["numbers"], self.compute_dtype))
        return tf.concat(parts, axis=1) if len(parts) > 1 else parts[0]

    def _looked_up(self, numbers: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.gather(self.table.value, numbers), self.compute_dtype)

    def _pooled(self, numbers: tf.Tensor) -> tf.Tensor:
        """Means over the real places of each list: (B, L) -> (B, M, D)."""
        real = tf.cast(numbers != PADDING, self.compute_dtype)[:, :, None]
        vectors = self._looked_up(numbers) * real
        means, start = [], 0
        for width in self.layout.list_widths:
            places = slice(start, start + width)
            count = tf.maximum(tf.reduce_sum(real[:, places], axis=1), 1)
            means.append(tf.reduce_sum(vectors[:, places], axis=1) / count)
            start += width
        return tf.stack(means, axis=1)
