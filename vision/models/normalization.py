"""Batch normalisation in one operation.

Keras computes it from a dozen elementwise operations, each of which reads and writes the whole feature map, in float32
where the map has 16 bits. TensorFlow has one operation for it, forwards and backwards, which computes in float32 and
reads and writes the map as it is. On several devices it is computed in float32 from sums over all of them.

In inference TensorFlow's graph optimizer joins it to the convolution before it, but not to a depthwise one. There the
kernel is scaled instead, in the graph.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import layers

from shared.distribution import sum_over_batch


class FusedBatchNormalization(layers.BatchNormalization):
    """`keras.layers.BatchNormalization` with the same results, faster in training for maps (B, h, w, C)."""

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """(B, h, w, C) -> the same shape; statistics of the batch in training, the moving ones otherwise."""
        # Frozen in a network that is trained, it is a product and a sum, with a simpler gradient than the operation's.
        frozen = training and not self.trainable
        if frozen or mask is not None or self.renorm or not self._is_usual(inputs):
            return super().call(inputs, training=training, mask=mask)
        if not training:
            return self._applied(inputs)
        return self._trained_together(inputs) if self.synchronized else self._trained(inputs)

    def _is_usual(self, inputs: Any) -> bool:
        """Whether the operation takes `inputs`: it reads maps of 16 or 32 bits, and keeps statistics in 32."""
        if isinstance(inputs, keras.KerasTensor) or len(inputs.shape) != 4 or self.axis not in (-1, 3):
            return False
        return bool(self.variable_dtype == "float32" and inputs.dtype.name == self.compute_dtype)

    def _applied(self, inputs: tf.Tensor) -> tf.Tensor:
        mean, variance = self.moving_mean.value, self.moving_variance.value
        convolution = _depthwise_convolution(inputs)
        if convolution is not None:
            scale, addend = self._factors(mean, variance)
            return tf.nn.bias_add(_with_scale(convolution, scale), addend)
        outputs: tf.Tensor = tf.compat.v1.nn.fused_batch_norm(
            inputs, *self._scale_and_offset(), mean, variance, epsilon=self.epsilon, is_training=False
        )[0]
        return outputs

    def _trained(self, inputs: tf.Tensor) -> tf.Tensor:
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            inputs, *self._scale_and_offset(), epsilon=self.epsilon, is_training=True
        )[:3]
        # The operation gives the unbiased variance, Keras keeps the biased one.
        count = tf.cast(tf.size(inputs) / tf.shape(inputs)[-1], tf.float32)
        self._keep(mean, variance * ((count - 1) / count))
        return outputs

    def _trained_together(self, inputs: tf.Tensor) -> tf.Tensor:
        """By the statistics of the whole batch, of which other devices have other shares: one sum over them."""
        # Distances from the moving mean, which all devices share: squares of the values themselves would round more.
        centre = tf.stop_gradient(self.moving_mean.value)
        distances = tf.cast(inputs, tf.float32) - centre
        count = tf.cast(tf.size(inputs) / tf.shape(inputs)[-1], tf.float32)
        sums, squares, counts = sum_over_batch(
            tf.reduce_sum(distances, axis=(0, 1, 2)), tf.reduce_sum(tf.square(distances), axis=(0, 1, 2)), count
        )
        mean = sums / counts
        variance = tf.maximum(squares / counts - tf.square(mean), 0.0)
        self._keep(mean + centre, variance)
        scale, addend = self._factors(mean, variance)
        return tf.cast(distances * scale + addend, inputs.dtype)

    def _factors(self, mean: tf.Tensor, variance: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """What values are multiplied with, and what is added to them, (C,) each."""
        gamma, beta = self._scale_and_offset()
        scale = tf.math.rsqrt(variance + self.epsilon) * gamma
        return scale, beta - mean * scale

    def _scale_and_offset(self) -> tuple[tf.Tensor, tf.Tensor]:
        shape = self.moving_mean.shape
        gamma = self.gamma.value if self.scale else tf.ones(shape)
        return gamma, self.beta.value if self.center else tf.zeros(shape)

    def _keep(self, mean: tf.Tensor, variance: tf.Tensor) -> None:
        for average, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
            average.assign(average.value * self.momentum + value * (1 - self.momentum))


def _depthwise_convolution(outputs: tf.Tensor) -> tf.Operation | None:
    """In a graph, the depthwise convolution that gives `outputs`, one kernel for each channel, in float32."""
    if not tf.is_symbolic_tensor(outputs) or outputs.dtype != tf.float32:
        return None
    found = outputs.op
    is_one = found.type == "DepthwiseConv2dNative" and found.inputs[1].shape[-1] == 1
    return found if is_one and found.get_attr("data_format") == b"NHWC" else None


def _with_scale(convolution: tf.Operation, scale: tf.Tensor) -> tf.Tensor:
    """What the depthwise convolution gives, times `scale` (C,): the kernel takes it, and no map is read again.

    The convolution itself is left without use, unless something else reads it. What is added to this, and an
    activation, TensorFlow computes with it.
    """
    images, kernel = convolution.inputs
    return tf.raw_ops.DepthwiseConv2dNative(
        input=images,
        filter=kernel * scale[:, None],
        strides=convolution.get_attr("strides"),
        padding=convolution.get_attr("padding").decode(),
        explicit_paddings=convolution.get_attr("explicit_paddings"),
        dilations=convolution.get_attr("dilations"),
    )


def fuse_normalization(model: keras.Model) -> keras.Model:
    """Let the batch normalisations of `model`, which others have built, be computed in one operation; gives it back.

    The layers keep their names, weights and settings; only their computation is another. What Keras serialises of them
    is read again with `CUSTOM_LAYERS` as custom objects.
    """
    for layer in model._flatten_layers():
        if type(layer) is layers.BatchNormalization:
            layer.__class__ = FusedBatchNormalization
    return model


CUSTOM_LAYERS = {"FusedBatchNormalization": FusedBatchNormalization}
