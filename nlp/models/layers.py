"""What transformer encoders and their heads are made of: linear maps over all tokens at once, and activations.

Shapes: B texts, T tokens, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import keras
import tensorflow as tf

from shared.dense import add_bias, gelu
from shared.normalization import FastLayerNormalization

Activation: TypeAlias = Literal["gelu", "gelu_tanh", "relu", "silu", "tanh"]

# Spread of new weights, as in BERT (Devlin et al. 2019, arXiv:1810.04805, `initializer_range` of its code).
_INITIAL_STDDEV = 0.02


def activation_function(name: Activation | Literal["linear"]) -> Callable[[tf.Tensor], tf.Tensor]:
    """The function of this name; "gelu" is the exact one with erf, "gelu_tanh" its older approximation."""
    functions: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
        "gelu": gelu,
        "gelu_tanh": lambda x: tf.nn.gelu(x, approximate=True),
        "relu": tf.nn.relu,
        "silu": tf.nn.silu,
        "tanh": tf.tanh,
        "linear": lambda x: x,
    }
    return functions[name]


def initial_weights() -> keras.initializers.Initializer:
    """How new kernels and embeddings are drawn."""
    return keras.initializers.TruncatedNormal(stddev=_INITIAL_STDDEV)


def length_of(x: tf.Tensor) -> Any:
    """T of (B, T, ...): a number where it is static, else a scalar tensor."""
    return x.shape[1] if x.shape[1] is not None else tf.shape(x)[1]


class Linear(keras.layers.Layer):
    """(..., D) -> (..., units), as one product of two matrices: quicker on CPUs than a product over three axes."""

    def __init__(
        self,
        units: int,
        *,
        activation: Activation | Literal["linear"] = "linear",
        use_bias: bool = True,
        initializer: str | None = None,
        **layer_options: Any,
    ) -> None:
        super().__init__(**layer_options)
        self.units = units
        self.use_bias = use_bias
        self.initializer = initial_weights() if initializer is None else initializer
        self.activation = activation_function(activation)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create kernel (D, units) and bias (units,)."""
        self.kernel = self.add_weight(shape=(input_shape[-1], self.units), initializer=self.initializer, name="kernel")
        self.bias = self.add_weight(shape=(self.units,), initializer="zeros", name="bias") if self.use_bias else None

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Give the mapped and activated rows."""
        rows = tf.matmul(tf.reshape(x, (-1, x.shape[-1])), self.kernel)
        if self.bias is not None:
            rows = add_bias(rows, tf.convert_to_tensor(self.bias))
        rows = self.activation(rows)
        return rows if x.shape.rank == 2 else tf.reshape(rows, (-1, length_of(x), self.units))


def layer_norm(epsilon: float, name: str | None = None) -> keras.layers.LayerNormalization:
    """Layer normalisation over features; its statistics are float32 in any precision."""
    return FastLayerNormalization(epsilon=epsilon, name=name)
