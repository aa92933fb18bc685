from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from nlp.models.layers import Linear


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("mixed_bfloat16", 1e-2), ("mixed_float16", 2e-3)])
def test_gradients_of_many_rows_are_those_of_float64(dtype, tolerance):
    """TensorFlow's gradient of a bias is a third off in bfloat16 for as many rows."""
    layer = Linear(7, dtype=dtype)
    rng = np.random.default_rng(0)
    x = tf.constant(rng.normal(size=(4, 1024, 5)), layer.compute_dtype)
    upstream = tf.constant(rng.normal(0.3, 1.0, (4, 1024, 7)), layer.compute_dtype)
    layer.build(x.shape)
    with tf.GradientTape() as tape:
        y = layer(x)
    kernel, bias = tape.gradient(y, [layer.kernel.value, layer.bias.value], output_gradients=upstream)
    given, above = (tf.cast(tensor, tf.float64).numpy().reshape(4096, -1) for tensor in (x, upstream))
    for found, expected in ((kernel, given.T @ above), (bias, above.sum(axis=0))):
        assert found.dtype == tf.float32
        np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_rows_are_mapped_shifted_and_activated(dtype):
    layer = Linear(3, activation="relu", dtype=dtype)
    layer.build((None, 2))
    layer.kernel.assign([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]])
    layer.bias.assign([0.5, -4.0, 0.0])
    answer = layer(tf.constant([[[1.0, 2.0]]], layer.compute_dtype))
    np.testing.assert_array_equal(tf.cast(answer, tf.float32), [[[1.5, 0.0, 0.0]]])
