from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from vision.models.hub import backbone_recipe, hub_trunk
from vision.models.normalization import FusedBatchNormalization, fuse_normalization
from vision.models.pyramid import feature_trunk


def _pair(trainable: bool = True) -> list[keras.layers.Layer]:
    rng = np.random.default_rng(0)
    values = [rng.normal(1, 0.2, 6), rng.normal(0, 1, 6), rng.normal(0, 1, 6), rng.random(6) + 0.5]
    pair = [cls(momentum=0.9, epsilon=1e-3) for cls in (keras.layers.BatchNormalization, FusedBatchNormalization)]
    for layer in pair:
        layer.build((None, None, None, 6))
        layer.set_weights(values)
        layer.trainable = trainable
    return pair


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_outputs_gradients_and_averages_are_those_of_keras(training, trainable):
    x = tf.constant(np.random.default_rng(1).normal(2, 3, (3, 5, 7, 6)), tf.float32)
    results = []
    for layer in _pair(trainable):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=training)
            loss = tf.reduce_sum(y**3)
        sources = [x, layer.gamma.value, layer.beta.value] if trainable else [x]
        results.append([y, *tape.gradient(loss, sources), *layer.get_weights()])
    for usual, fused in zip(*results, strict=True):
        np.testing.assert_allclose(fused, usual, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("training", [True, False])
def test_in_mixed_precision_too(training, precision):
    x = tf.cast(np.random.default_rng(1).normal(2, 3, (3, 5, 7, 6)), precision)
    results = []
    for cls in (keras.layers.BatchNormalization, FusedBatchNormalization):
        layer = cls(momentum=0.9, dtype=f"mixed_{precision}")
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=training)
            loss = tf.reduce_sum(tf.cast(y, tf.float32) ** 2 * tf.range(7.0)[:, None])
        gradients = tape.gradient(loss, [x, layer.gamma.value, layer.beta.value])
        assert (y.dtype, gradients[0].dtype, gradients[1].dtype) == (x.dtype, x.dtype, tf.float32)
        results.append([tf.cast(value, tf.float32).numpy() for value in [y, *gradients, *layer.get_weights()]])
    for usual, fused in zip(*results, strict=True):
        # One unit in the last place of bfloat16 is 2^-8 of the value.
        np.testing.assert_allclose(fused, usual, rtol=0.02, atol=0.02 * np.abs(usual).max())


@pytest.mark.parametrize("options", [{"scale": False}, {"center": False}, {"renorm": True}])
def test_layers_of_other_settings_are_those_of_keras(options):
    x = tf.constant(np.random.default_rng(1).normal(2, 3, (3, 5, 7, 6)), tf.float32)
    usual, fused = (
        cls(**options)(x, training=True) for cls in (keras.layers.BatchNormalization, FusedBatchNormalization)
    )
    np.testing.assert_allclose(fused, usual, rtol=2e-4, atol=2e-4)


def test_a_network_of_keras_keeps_its_layers_and_answers():
    network = keras.applications.MobileNetV2(input_shape=(32, 32, 3), include_top=False, weights=None)
    x = tf.constant(np.random.default_rng(0).normal(0, 1, (24, 32, 32, 3)), tf.float32)
    names, weights = [weight.path for weight in network.weights], network.get_weights()
    expected = [network(x, training=training).numpy() for training in (False, True)]
    network.set_weights(weights)  # as they were before the averages moved
    assert fuse_normalization(network) is network
    fused = [layer for layer in network._flatten_layers() if isinstance(layer, FusedBatchNormalization)]
    assert len(fused) == 52
    assert [weight.path for weight in network.weights] == names
    for training, answer in zip((False, True), expected, strict=True):
        np.testing.assert_allclose(network(x, training=training), answer, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("policy", "dtype"), [("float16", "float16"), ("bfloat16", "bfloat16"), ("float32", "bfloat16")]
)
@pytest.mark.parametrize("training", [True, False])
def test_other_policies_and_inputs_are_left_to_keras(training, policy, dtype):
    x = tf.cast(np.random.default_rng(1).normal(2, 3, (3, 5, 7, 6)), dtype)
    options = {"dtype": policy, "autocast": False}
    usual, fused = (
        cls(**options)(x, training=training) for cls in (keras.layers.BatchNormalization, FusedBatchNormalization)
    )
    assert fused.dtype == usual.dtype
    np.testing.assert_array_equal(fused, usual)


def test_blocks_within_a_network_of_kerashub_are_fused_in_its_feature_maps_too():
    import keras_hub

    blocks = {
        "stackwise_num_repeats": [1, 1, 1, 1],
        "stackwise_input_filters": [8, 8, 8, 8],
        "stackwise_output_filters": [8, 8, 8, 8],
        "stackwise_expansion_ratios": [2, 2, 2, 2],
        "stackwise_strides": [1, 2, 2, 2],
        "stackwise_kernel_sizes": [3, 3, 3, 3],
        "stackwise_squeeze_and_excite_ratios": [0.25] * 4,
        "stackwise_block_types": ["fused", "unfused", "fused", "unfused"],
    }
    backbone = keras_hub.models.EfficientNetBackbone(
        **blocks, width_coefficient=1.0, depth_coefficient=1.0, input_shape=(64, 64, 3)
    )
    trunk, _ = feature_trunk(hub_trunk(backbone_recipe(backbone), 64), "keras_hub")
    norms = [layer for layer in trunk._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    assert norms
    assert all(type(layer) is FusedBatchNormalization for layer in norms)


@pytest.mark.parametrize(
    ("options", "folded"),
    [
        ({}, True),
        ({"strides": 2, "padding": "valid"}, True),
        ({"dilation_rate": 2}, False),
        ({"use_bias": True}, False),
        ({"depth_multiplier": 2}, False),
    ],
    ids=["plain", "strided", "dilated", "bias", "two kernels"],
)
def test_a_depthwise_kernel_takes_the_scale_in_graphs(options: dict[str, Any], folded: bool) -> None:
    rng = np.random.default_rng(0)
    settings = {"padding": "same", "use_bias": False, **options}
    images = keras.Input((None, None, 6))
    maps = keras.layers.DepthwiseConv2D(3, **settings)(images)
    maps = FusedBatchNormalization(name="norm")(maps)
    model = keras.Model(images, keras.layers.ReLU(6.0)(maps))
    for variable in model.variables:
        variable.assign(rng.uniform(0.5, 2, variable.shape) * rng.choice([-1, 1], variable.shape[-1:]))
    norm = model.get_layer("norm")
    norm.moving_variance.assign(rng.uniform(0.1, 3, norm.moving_variance.shape))
    function = tf.function(lambda x: model(x, training=False), autograph=False)
    x = tf.constant(rng.standard_normal((2, 9, 11, 6)), tf.float32)
    np.testing.assert_allclose(function(x), model(x, training=False), rtol=1e-5, atol=1e-5)
    kinds = [node.type for node in function.get_concrete_function(x).graph.get_operations()]
    assert ("FusedBatchNormV3" not in kinds) == folded
    # Weights are read at each call.
    norm.gamma.assign(-2 * norm.gamma)
    np.testing.assert_allclose(function(x), model(x, training=False), rtol=1e-5, atol=1e-5)


def test_in_16_bits_the_kernel_stays_as_it_is_and_gradients_go_through_the_scale() -> None:
    images = keras.Input((8, 8, 4))
    for precision, folded in (("float32", True), ("mixed_bfloat16", False)):
        maps = keras.layers.DepthwiseConv2D(3, use_bias=False, dtype=precision)(images)
        model = keras.Model(images, FusedBatchNormalization(center=False, dtype=precision)(maps))
        x = tf.random.stateless_normal((2, 8, 8, 4), (1, 2))

        def gradients(x: tf.Tensor, model: keras.Model = model) -> list[tf.Tensor]:
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = tf.reduce_sum(tf.cast(model(x, training=False), tf.float32) ** 3)
            return tape.gradient(loss, [x, *(variable.value for variable in model.trainable_variables)])

        function = tf.function(gradients, autograph=False)
        kinds = [node.type for node in function.get_concrete_function(x).graph.get_operations()]
        assert ("FusedBatchNormV3" not in kinds) == folded
        if folded:
            for found, expected in zip(function(x), gradients(x), strict=True):
                np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
