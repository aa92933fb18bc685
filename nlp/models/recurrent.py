"""A bidirectional recurrent encoder (GRU or LSTM), trained from scratch.

    GRU     z, r = sigmoid(x Wz + h Uz), sigmoid(x Wr + h Ur);  n = tanh(x Wn + r * (h Un));  h' = z * h + (1 - z) * n
    LSTM    i, f, o = sigmoid(x W + h U);  c' = f * c + i * tanh(x Wc + h Uc);  h' = o * tanh(c')

with a bias to each product. The GRU (Cho et al. 2014, arXiv:1406.1078) has its reset gate after the product, as in
cuDNN; the LSTM (Hochreiter and Schmidhuber 1997) has no peepholes and starts with open forget gates (Jozefowicz et al.
2015). Both equal the layers of Keras (a test compares them), but take any mask, also one with holes, compute in float32
under any policy, and multiply all inputs at once before one loop takes both directions along.

Shapes: B texts, T positions, E features in, H units of a direction, G gates (3 GRU, 4 LSTM).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import keras
import tensorflow as tf
from keras import layers

from shared.config import Config, option

_NUM_GATES = {"gru": 3, "lstm": 4}


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig(Config):
    """What a recurrent encoder is."""

    vocab_size: int = option(8000, "rows of the word table", minimum=1)
    embedding_size: int = option(128, "features of the embeddings", minimum=1)
    hidden_size: int = option(128, "units in each direction", minimum=1)
    num_layers: int = option(1, "bidirectional layers", minimum=1)
    cell: Literal["gru", "lstm"] = option("gru", "kind of unit")
    dropout: float = option(
        0.3, "share of features dropped before each layer and at the end", minimum=0.0, maximum=0.95
    )
    num_segments: int = option(2, "rows of the segment table", minimum=1)


def build_recurrent_encoder(config: RecurrentConfig) -> keras.Model:
    """Token ids, segment ids (B, T) int32 and mask (B, T) bool -> float32 (B, T, 2 * hidden_size).

    The first half of the features has read the text up to a position, the second half from its end to there. Positions
    outside of the mask are not read, and their features are 0.
    """
    inputs = {
        "token_ids": keras.Input((None,), dtype="int32", name="token_ids"),
        "segment_ids": keras.Input((None,), dtype="int32", name="segment_ids"),
        "mask": keras.Input((None,), dtype="bool", name="mask"),
    }
    x = layers.Embedding(config.vocab_size, config.embedding_size, name="tokens")(inputs["token_ids"])
    # What tells the two texts of a pair apart starts from nothing: a single text has no need of it.
    x += layers.Embedding(config.num_segments, config.embedding_size, "zeros", name="segments")(inputs["segment_ids"])
    for number in range(1, config.num_layers + 1):
        x = layers.Dropout(config.dropout, name=f"dropout_{number}")(x)
        x = BidirectionalRecurrence(config.hidden_size, config.cell, name=f"recurrence_{number}")(x, inputs["mask"])
    x = layers.Dropout(config.dropout, dtype="float32", name="dropout")(x)
    return keras.Model(inputs, x, name="recurrent_encoder")


class BidirectionalRecurrence(layers.Layer):
    """Features (B, T, E) and mask (B, T) -> (B, T, 2H): forward states, then backward states; 0 outside of the mask.

    It computes in float32 whatever the policy: a state is the sum of many small steps.

    Args:
        units: H.
        cell: "gru" or "lstm"; gates are in the order of Keras: update, reset, new; input, forget, new, output.
        name: of the layer.
    """

    def __init__(self, units: int, cell: Literal["gru", "lstm"] = "gru", *, name: str | None = None) -> None:
        super().__init__(name=name, dtype="float32")
        self.units = units
        self.cell = cell

    def build(self, features_shape: tuple[int | None, ...]) -> None:
        """Make kernel (E, GH), recurrent kernel (H, GH) and biases (2, GH), of input and state, for each direction."""
        width = _NUM_GATES[self.cell] * self.units
        self.kernels, self.state_kernels, self.biases = [], [], []
        for direction in ("forward", "backward"):
            self.kernels.append(self.add_weight((features_shape[-1], width), name=f"{direction}_kernel"))
            # A turn of the state at first: it neither fades nor grows (Saxe et al. 2014, arXiv:1312.6120).
            self.state_kernels.append(
                self.add_weight((self.units, width), initializer="orthogonal", name=f"{direction}_state_kernel")
            )
            self.biases.append(self.add_weight((2, width), initializer=self._initial_bias, name=f"{direction}_bias"))

    def _initial_bias(self, shape: tuple[int, ...], dtype: Any = None) -> tf.Tensor:
        bias = tf.zeros(shape, dtype)
        if self.cell == "gru":
            return bias
        forget = tf.repeat(tf.constant([0.0, 1.0, 0.0, 0.0], dtype), self.units)
        return bias + tf.stack([forget, tf.zeros_like(forget)])

    # `mask` would mean to Keras what an earlier layer says of its output.
    def call(self, features: tf.Tensor, real: tf.Tensor) -> tf.Tensor:
        """Give the states."""
        real = tf.cast(real, tf.bool)
        shape, width = tf.shape(features), _NUM_GATES[self.cell] * self.units
        biases = tf.stack(_tensors(self.biases))  # (2, 2, GH)
        rows = tf.reshape(features, (-1, features.shape[-1]))
        products = tf.matmul(rows, tf.concat(_tensors(self.kernels), axis=1)) + tf.reshape(biases[:, 0], (-1,))
        # (BT, 2GH) -> (T, 2, B, GH), as each direction meets them.
        products = _as_met(tf.transpose(tf.reshape(products, (shape[0], shape[1], 2, width)), (1, 2, 0, 3)))
        met = _as_met(tf.repeat(tf.transpose(real)[:, None, :, None], 2, axis=1))
        states = self._states(products, met, biases[:, 1, None])
        states = tf.transpose(_as_met(states), (2, 0, 1, 3))  # (T, 2, B, H) -> (B, T, 2, H)
        states = tf.reshape(states, (shape[0], shape[1], 2 * self.units))
        return tf.where(real[:, :, None], states, 0.0)

    def _states(self, products: tf.Tensor, real: tf.Tensor, state_bias: tf.Tensor) -> tf.Tensor:
        """States (T, 2, B, H) from the inputs' products (T, 2, B, GH) and where they are real (T, 2, B, 1)."""
        step = gru_step if self.cell == "gru" else _lstm_step
        state_kernels = _tensors(self.state_kernels)

        def kept(state: tuple[tf.Tensor, ...], position: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, ...]:
            product, here = position
            # Two products of matrices: quicker on a CPU than one of stacks of them.
            recurrent = tf.stack([tf.matmul(state[0][i], kernel) for i, kernel in enumerate(state_kernels)])
            reached = step(product, recurrent + state_bias, *state)
            return tuple(tf.where(here, new, old) for new, old in zip(reached, state, strict=True))

        nothing = tf.zeros((2, tf.shape(products)[2], self.units))
        start = (nothing,) if self.cell == "gru" else (nothing, nothing)
        return tf.scan(kept, (products, real), start)[0]

    def get_config(self) -> dict[str, Any]:
        """What the layer is made of."""
        return {"name": self.name, "units": self.units, "cell": self.cell}


def _tensors(weights: list[keras.Variable]) -> list[tf.Tensor]:
    return [tf.convert_to_tensor(weight) for weight in weights]


def _as_met(values: tf.Tensor) -> tf.Tensor:
    """(T, 2, ...), the second direction turned round in time; twice gives what was there before."""
    return tf.concat([values[:, :1], tf.reverse(values[:, 1:], axis=[0])], axis=1)


def gru_step(product: tf.Tensor, recurrent: tf.Tensor, state: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """The next state of a GRU, from the products of its input and of its state with the gates' kernels."""
    units = state.shape[-1]
    update, reset = tf.split(tf.sigmoid(product[..., : 2 * units] + recurrent[..., : 2 * units]), 2, axis=-1)
    new = tf.tanh(product[..., 2 * units :] + reset * recurrent[..., 2 * units :])
    return (new + update * (state - new),)


def _lstm_step(product: tf.Tensor, recurrent: tf.Tensor, state: tf.Tensor, memory: tf.Tensor) -> tuple[tf.Tensor, ...]:
    units = state.shape[-1]
    gates = product + recurrent
    take, keep = tf.split(tf.sigmoid(gates[..., : 2 * units]), 2, axis=-1)
    memory = keep * memory + take * tf.tanh(gates[..., 2 * units : 3 * units])
    return tf.sigmoid(gates[..., 3 * units :]) * tf.tanh(memory), memory
