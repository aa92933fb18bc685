from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from shared.dense import Dense, gelu

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 4), (2, 3, 2, 4), (0, 3, 4), (2, 0, 4)])
@pytest.mark.parametrize("options", [{}, {"use_bias": False}, {"activation": "relu"}])
def test_results_are_those_of_keras(shape, options):
    layers = [kind(3, **options) for kind in (Dense, keras.layers.Dense)]
    for layer in layers:
        layer.build(shape)
        layer.set_weights([np.linspace(-1, 1, w.shape[0] * 3).reshape(w.shape) for w in layers[0].weights[:1]] + [
            np.arange(3.0) for _ in layers[0].weights[1:]
        ])  # fmt: skip
    x = tf.constant(RNG.normal(size=shape).astype(np.float32))
    ours, theirs = (layer(x) for layer in layers)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_open_lengths_stay_open_and_known_ones_known():
    layer = Dense(3)
    traced = tf.function(layer, input_signature=[tf.TensorSpec((None, None, 2, 4))], autograph=False)
    assert traced.get_concrete_function().output_shapes.as_list() == [None, None, 2, 3]
    assert traced(tf.zeros((2, 5, 2, 4))).shape == (2, 5, 2, 3)
    traced = tf.function(layer, input_signature=[tf.TensorSpec((2, None, 4))], autograph=False)
    assert traced.get_concrete_function().output_shapes.as_list() == [2, None, 3]
    of_any_shape = tf.function(layer, input_signature=[tf.TensorSpec((None, None))], autograph=False)
    assert of_any_shape.get_concrete_function().output_shapes.as_list() == [None, 3]
    inputs = keras.Input((None, 4))
    assert keras.Model(inputs, Dense(3)(inputs)).output_shape == (None, None, 3)


@pytest.mark.parametrize("shape", [(None, None), (None, None, None)])
def test_other_features_than_it_was_built_for_are_an_error(shape):
    layer = Dense(3)
    layer.build((None, 4))
    traced = tf.function(layer, input_signature=[tf.TensorSpec(shape)], autograph=False)
    with pytest.raises(tf.errors.InvalidArgumentError, match="incompatible"):
        traced(tf.zeros([6, *[1] * (len(shape) - 2), 2]))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("mixed_bfloat16", 1e-2), ("mixed_float16", 2e-3)])
def test_gradients_of_many_rows_are_those_of_float64(dtype, tolerance):
    """TensorFlow's gradient of a bias is a third off in bfloat16 for as many rows."""
    layer = Dense(7, dtype=dtype)
    x = tf.constant(RNG.normal(size=(4, 1024, 5)), layer.compute_dtype)
    upstream = tf.constant(RNG.normal(0.3, 1.0, (4, 1024, 7)), layer.compute_dtype)
    layer.build(x.shape)
    with tf.GradientTape() as tape:
        y = layer(x)
    kernel, bias = tape.gradient(y, [layer.kernel.value, layer.bias.value], output_gradients=upstream)
    given, above = (tf.cast(tensor, tf.float64).numpy().reshape(4096, -1) for tensor in (x, upstream))
    for found, expected in ((kernel, given.T @ above), (bias, above.sum(axis=0))):
        assert found.dtype == tf.float32
        np.testing.assert_allclose(found, expected, atol=tolerance * np.abs(expected).max())


def test_gelu_and_its_gradient_are_exact():
    x = tf.constant(np.linspace(-6, 6, 101, dtype=np.float32))
    gradients = []
    for function in (gelu, tf.nn.gelu):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        gradients.append(tape.gradient(y, x))
    np.testing.assert_allclose(gelu(x), tf.nn.gelu(x), atol=1e-6)
    np.testing.assert_allclose(*gradients, atol=1e-6)
