from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from vision.models.normalization import FusedBatchNormalization


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


def test_other_precisions_are_keras_s():
    layer = FusedBatchNormalization(dtype="mixed_bfloat16")
    y = layer(tf.ones((2, 3, 3, 4), tf.bfloat16), training=True)
    assert y.dtype == tf.bfloat16
