"""The simpler simple recurrent unit of small, fast Marian models, in the place of the decoder's self-attention.

    f = sigmoid(x Wf + b);  c' = f * c + (1 - f) * (x W);  result = relu(c')

Kim et al. 2019, "From Research to Production and Back" (WNGT 2019, section 3.2). One state of D features stands for all
positions before, so the cost of a step does not grow.

Shapes: B texts, R rows, T positions, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from nlp.models.layers import Linear, length_of
from nlp.models.pieces import piece
from nlp.models.seq2seq_layers import linear, product, with_bias


class SSRU(keras.layers.Layer):
    """(B, T, D) -> (B, T, D): each position has read those before it."""

    def __init__(self, num_features: int, **layer_options: Any) -> None:
        super().__init__(**layer_options)
        self.num_features = num_features
        self.forget = linear(num_features, "forget", use_bias=True)
        self.value = linear(num_features, "value", use_bias=False)

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The linear maps, in order."""
        return self.forget, self.value

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the kernels."""
        for layer in self.linears:
            layer.build((None, self.num_features))

    def call(self, x: tf.Tensor, penalty: tf.Tensor | None = None, training: bool | None = None) -> tf.Tensor:
        """Give the results; `penalty` belongs to attention and plays no part here."""
        # In float32 in any precision: a state is the sum of many small steps.
        keep = tf.sigmoid(tf.cast(self.forget(x), tf.float32))
        taken = (1.0 - keep) * tf.cast(self.value(x), tf.float32)
        return tf.cast(tf.nn.relu(running_states(keep, taken)), x.dtype)

    def step(self, x: tf.Tensor, kernels: Sequence[tf.Tensor], state: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Columns (D, R) and states (D, R) -> results and next states."""
        forget, value = (product(x, kernel) for kernel in kernels)
        return _next_state(forget, tf.convert_to_tensor(self.forget.bias), value, state)

    @property
    def result_bias(self) -> None:
        """Nothing is still to be added to the results of `step`."""


@piece
def _next_state(forget: tf.Tensor, bias: tf.Tensor, value: tf.Tensor, state: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    keep = tf.sigmoid(with_bias(forget, bias))
    state = keep * state + (1.0 - keep) * with_bias(value, None)
    return tf.nn.relu(state), state


def running_states(keep: tf.Tensor, taken: tf.Tensor) -> tf.Tensor:
    """c(t) = keep(t) c(t - 1) + taken(t) from c = 0 on, along axis 1 of (B, T, D): log2 T passes instead of T steps.

    Two stretches of positions join into one with keep1 keep2 and taken2 + keep2 taken1; after a pass each position
    stands for a stretch twice as long (Hillis and Steele 1986; for such recurrences Blelloch 1990, section 1.4).
    """
    length = length_of(taken)

    def join(reach: tf.Tensor, keep: tf.Tensor, taken: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        before = ((0, 0), (reach, 0), (0, 0))
        earlier = tf.pad(taken[:, :-reach], before)
        earlier_keep = tf.pad(keep[:, :-reach], before)
        return 2 * reach, keep * earlier_keep, taken + keep * earlier

    loose = tf.TensorShape([None, None, taken.shape[-1]])
    _, _, states = tf.while_loop(
        lambda reach, *_: reach < length, join, (1, keep, taken), shape_invariants=(tf.TensorShape([]), loose, loose)
    )
    return tf.ensure_shape(states, taken.shape)
