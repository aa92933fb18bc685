"""Batch normalisation in one operation.

Keras computes it from a dozen elementwise operations, each of which reads and writes the whole feature map. TensorFlow
has one operation for it, forwards and backwards.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers


class FusedBatchNormalization(layers.BatchNormalization):
    """`keras.layers.BatchNormalization` with the same results, faster in training for float32 maps (B, h, w, C)."""

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """(B, h, w, C) -> the same shape; statistics of the batch in training, the moving ones otherwise."""
        usual = mask is None and self.axis in (-1, 3) and not isinstance(inputs, keras.KerasTensor)
        # Frozen in a network that is trained, it is a product and a sum, with a simpler gradient than the operation's.
        frozen = training and not self.trainable
        if frozen or not (usual and len(inputs.shape) == 4 and inputs.dtype == tf.float32):
            return super().call(inputs, training=training, mask=mask)
        return self._trained(inputs) if training else self._applied(inputs)

    def _applied(self, inputs: tf.Tensor) -> tf.Tensor:
        mean, variance = self.moving_mean.value, self.moving_variance.value
        outputs: tf.Tensor = tf.compat.v1.nn.fused_batch_norm(
            inputs, self.gamma.value, self.beta.value, mean, variance, epsilon=self.epsilon, is_training=False
        )[0]
        return outputs

    def _trained(self, inputs: tf.Tensor) -> tf.Tensor:
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            inputs, self.gamma.value, self.beta.value, epsilon=self.epsilon, is_training=True
        )[:3]
        # The operation gives the unbiased variance, Keras keeps the biased one.
        count = tf.cast(tf.size(inputs) / tf.shape(inputs)[-1], tf.float32)
        variance *= (count - 1) / count
        for average, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            average.assign(average.value * self.momentum + value * (1 - self.momentum))
        return outputs


CUSTOM_LAYERS = {"FusedBatchNormalization": FusedBatchNormalization}
