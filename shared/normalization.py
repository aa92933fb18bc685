"""Layer normalisation in few passes over memory.

Keras computes it, and TensorFlow its gradient, from some twenty operations each of which reads and writes all features.
Here the gradient is one formula, in which sums over rows are products with a row of ones: CPUs are quicker at these.
Without a gradient, and with weights that are constants of a graph, it is written as TensorFlow's optimizer of graphs
knows it, which makes one operation of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from shared.dense import sum_of_rows

_EPSILON_OF_ONE_OPERATION = 0.001


class FastLayerNormalization(keras.layers.LayerNormalization):
    """`keras.layers.LayerNormalization` over the last axis: the same weights and results in less time.

    Statistics have the type of the weights, float32 in any mixed precision. Ba et al. 2016 (arXiv:1607.06450, section
    3).
    """

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """(..., D) -> the same shape, in the layer's own type."""
        last_axis = self.axis in (-1, [-1], [len(inputs.shape) - 1])
        if not last_axis or self.gamma is None or self.beta is None:
            return super().call(inputs)
        gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        if not training:
            if not _is_constant(gamma) or not self.epsilon or tf.config.list_logical_devices("GPU"):
                # Without a gradient to come there is nothing to gain; and with a GPU, where no weights of ours are
                # constant, TensorFlow's optimizer of graphs makes an operation that runs on no GPU.
                return super().call(inputs)
            normal = _as_one_operation(tf.cast(inputs, gamma.dtype), gamma, beta, self.epsilon)
            return tf.cast(normal, self.compute_dtype)
        rows = tf.reshape(inputs, (-1, inputs.shape[-1]))
        normal = _normalised(rows, gamma, beta, self.epsilon)
        normal = tf.reshape(tf.cast(normal, self.compute_dtype), tf.shape(inputs))
        normal.set_shape(inputs.shape)
        return normal


def _is_constant(tensor: tf.Tensor) -> bool:
    return bool(tf.is_symbolic_tensor(tensor) and tensor.op.type == "Const")


def _as_one_operation(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float) -> tf.Tensor:
    """(..., D) in the weights' type -> the same, by what becomes one operation, `_MklLayerNorm`, where oneDNN is.

    TensorFlow 2.21 then takes .001 for epsilon, whatever it was. So it is .001 here, of features that are multiplied by
    what makes that the epsilon that is meant: the formula holds as it is written, whether or not it is made one
    operation.
    """
    x *= math.sqrt(_EPSILON_OF_ONE_OPERATION / epsilon)
    last = [x.shape.rank - 1]
    mean = tf.reduce_mean(x, axis=last, keepdims=True)
    variance = tf.reduce_mean(tf.math.squared_difference(x, mean), axis=last, keepdims=True)
    factor = tf.math.rsqrt(variance + _EPSILON_OF_ONE_OPERATION) * gamma
    return x * factor + (beta - mean * factor)


def _normalised(rows: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float) -> tf.Tensor:
    """Rows (N, D) of any type -> (N, D) of the weights' type.

    The gradient in closed form: dx = factor (g - mean(g) - y mean(g y)), where y are the standardised rows, factor what
    they were multiplied by, and g = gamma times the gradient that comes from above.
    """

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def normalised(rows: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tuple[tf.Tensor, Callable[..., Any]]:
        centred = tf.cast(rows, gamma.dtype)
        centred -= _mean(centred)
        factor = tf.math.rsqrt(_mean(tf.square(centred)) + epsilon)
        standard = centred * factor

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            along = upstream * standard
            inner = upstream * gamma
            inner -= _mean(inner) + standard * _mean(along * gamma)
            return tf.cast(inner * factor, rows.dtype), sum_of_rows(along), sum_of_rows(upstream)

        return standard * gamma + beta, gradient

    return normalised(rows, gamma, beta)


def _mean(rows: tf.Tensor) -> tf.Tensor:
    """Mean over the features of each row: (N, D) -> (N, 1)."""
    return tf.reduce_mean(rows, axis=-1, keepdims=True)
