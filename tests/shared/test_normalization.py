from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from shared.normalization import FastLayerNormalization

RNG = np.random.default_rng(0)
GAMMA, BETA = RNG.uniform(0.5, 2.0, 6).astype(np.float32), RNG.normal(size=6).astype(np.float32)


def pair(dtype: str = "float32", **options) -> tuple[FastLayerNormalization, keras.layers.LayerNormalization]:
    """Ours and Keras's with the same weights, over 6 features."""
    layers = FastLayerNormalization(dtype=dtype, **options), keras.layers.LayerNormalization(dtype=dtype, **options)
    for layer in layers:
        layer.build((None, None, 6))
        layer.set_weights([value for value, used in ((GAMMA, layer.scale), (BETA, layer.center)) if used])
    return layers


def results(layer, x: tf.Tensor, training: bool) -> list[np.ndarray]:
    """Outputs, and gradients of the sum of their cubes."""
    weights = [weight.value for weight in layer.trainable_weights]
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=training) if isinstance(layer, FastLayerNormalization) else layer(x)
        loss = tf.reduce_sum(tf.cast(y, tf.float32) ** 3)
    return [tf.cast(value, tf.float32).numpy() for value in (y, *tape.gradient(loss, [x, *weights]))]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 6), (2, 1, 3, 6), (0, 6)])
def test_outputs_and_gradients_are_those_of_keras(shape, training):
    ours, theirs = pair(epsilon=1e-5)
    x = tf.constant(RNG.normal(2.0, 3.0, shape).astype(np.float32))
    for own, other in zip(results(ours, x, training), results(theirs, x, training), strict=True):
        np.testing.assert_allclose(own, other, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("training", [False, True])
def test_bfloat16_goes_in_and_out_and_statistics_are_float32(training):
    ours, theirs = pair("mixed_bfloat16", epsilon=1e-5)
    x = tf.cast(RNG.normal(300.0, 1.0, (5, 6)), tf.bfloat16)
    assert ours(x, training=training).dtype == tf.bfloat16
    np.testing.assert_allclose(results(ours, x, training)[0], results(theirs, x, training)[0], atol=0.03)


@pytest.mark.parametrize("options", [{"scale": False}, {"center": False}, {"axis": 1}])
def test_what_it_has_no_shorter_way_for_is_left_to_keras(options):
    layers = FastLayerNormalization(**options), keras.layers.LayerNormalization(**options)
    x = tf.constant(RNG.normal(size=(2, 3, 6)).astype(np.float32))
    np.testing.assert_allclose(layers[0](x), layers[1](x), atol=1e-6)


def test_a_graph_of_unknown_lengths_keeps_the_shape_that_is_known():
    layer, _ = pair()
    traced = tf.function(layer, input_signature=[tf.TensorSpec((None, None, 6))])
    assert traced.get_concrete_function().output_shapes.as_list() == [None, None, 6]
    assert traced(tf.zeros((2, 5, 6))).shape == (2, 5, 6)


def test_features_that_are_all_equal_give_the_offset():
    layer, _ = pair()
    np.testing.assert_allclose(layer(tf.fill((3, 6), 7.0)), np.tile(BETA, (3, 1)), atol=1e-4)


@pytest.mark.parametrize("epsilon", [1e-12, 1e-5, 1e-3, 0.1])
@pytest.mark.parametrize("shape", [(None, 6), (4, 6), (None, None, 6), (2, 2, 6)])
def test_constant_weights_keep_their_epsilon(shape, epsilon):
    """TensorFlow's optimizer of graphs takes another, .001, where it makes one operation of a normalisation."""
    layer, keras_layer = pair(epsilon=epsilon)
    x = tf.constant(RNG.normal(0.5, 0.01, [4, 6] if len(shape) == 2 else [2, 2, 6]).astype(np.float32))

    @tf.function(input_signature=[tf.TensorSpec(shape)], autograph=False)
    def answer(x: tf.Tensor) -> tf.Tensor:
        outputs, _ = layer.stateless_call([tf.constant(GAMMA), tf.constant(BETA)], [], tf.nn.relu(x))
        return tf.nn.relu(outputs)

    np.testing.assert_allclose(answer(x), tf.nn.relu(keras_layer(x)), rtol=2e-4, atol=2e-4)


def test_constant_weights_of_a_layer_in_16_bits_are_used_in_32():
    layer, _ = pair("mixed_bfloat16")
    x = tf.cast(RNG.normal(300.0, 1.0, (5, 6)), tf.bfloat16)

    @tf.function(autograph=False)
    def answer() -> tf.Tensor:
        return layer.stateless_call([tf.constant(GAMMA), tf.constant(BETA)], [], x)[0]

    assert answer().dtype == tf.bfloat16
    np.testing.assert_allclose(tf.cast(answer(), tf.float32), tf.cast(layer(x), tf.float32), atol=0.03)


def test_with_a_gpu_constant_weights_are_left_to_keras(monkeypatch):
    """TensorFlow's optimizer of graphs would make an operation of it that runs on no GPU."""
    layer, keras_layer = pair(epsilon=1e-12)
    x = tf.constant(RNG.normal(0.5, 0.01, (4, 6)).astype(np.float32))
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind=None: ["gpu"])

    def types(layer: keras.layers.Layer) -> list[str]:
        @tf.function(autograph=False)
        def answer(x: tf.Tensor) -> tf.Tensor:
            return layer.stateless_call([tf.constant(GAMMA), tf.constant(BETA)], [], x)[0]

        operations = answer.get_concrete_function(x).graph.get_operations()
        return sorted(operation.type for operation in operations)

    assert types(layer) == types(keras_layer)
