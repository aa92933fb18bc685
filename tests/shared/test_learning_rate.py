from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from shared.data import InputPipeline, Loading, Stages
from shared.learning_rate import find_learning_rate
from shared.training import TrainingTask
from shared.training_config import TrainingConfig

SGD = TrainingConfig(optimizer="sgd", momentum=0.0, weight_decay=0.0, clip_norm=0.0)


def regression(*, scale: float = 1.0) -> TrainingTask:
    """y = 2 x by least squares; plain gradient descent diverges above a rate of 1 / mean(x^2)."""
    inputs = np.random.default_rng(0).normal(size=(256, 1)).astype(np.float32)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")])
    stages = Stages(encode=lambda x, y: {"x": x, "y": y})
    return TrainingTask(
        model=model,
        loss=lambda batch: scale * tf.reduce_mean(tf.square(model(batch["x"], training=True) - batch["y"])),
        batches=InputPipeline((inputs, 2 * inputs), stages, Loading(batch_size=32, shuffle=True)),
    )


def test_the_suggestion_trains_and_weights_are_put_back():
    task = regression()
    before = task.model.get_weights()
    sweep = find_learning_rate(task, SGD, lowest=1e-4, highest=30.0, num_steps=60)
    assert 0.01 < sweep.suggestion < 1.0
    assert len(sweep.rates) == len(sweep.losses) > 10
    assert list(sweep.rates) == sorted(sweep.rates)
    np.testing.assert_array_equal(task.model.get_weights()[0], before[0])


def test_it_stops_where_training_diverges():
    sweep = find_learning_rate(regression(), SGD, lowest=1e-3, highest=1e4, num_steps=60)
    assert sweep.rates[-1] < 100
    assert len(sweep.rates) < 60


def test_a_loss_that_is_never_finite_is_an_error():
    with pytest.raises(ValueError, match="not finite at the lowest learning rate"):
        find_learning_rate(regression(scale=float("nan")), SGD, num_steps=10)
