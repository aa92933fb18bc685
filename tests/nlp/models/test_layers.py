from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from nlp.models.layers import Linear


def test_the_gradient_of_a_bias_in_16_bits_is_summed_in_32():
    layer = Linear(3, dtype="mixed_bfloat16")
    x = tf.ones((8, 1024, 2), tf.bfloat16)
    layer.build(x.shape)
    with tf.GradientTape() as tape:
        y = layer(x)
    np.testing.assert_array_equal(tape.gradient(y, layer.bias.value), [8192.0] * 3)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_rows_are_mapped_shifted_and_activated(dtype):
    layer = Linear(3, activation="relu", dtype=dtype)
    layer.build((None, 2))
    layer.kernel.assign([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]])
    layer.bias.assign([0.5, -4.0, 0.0])
    answer = layer(tf.constant([[[1.0, 2.0]]], layer.compute_dtype))
    np.testing.assert_array_equal(tf.cast(answer, tf.float32), [[[1.5, 0.0, 0.0]]])
