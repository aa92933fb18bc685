from __future__ import annotations

import math
from typing import get_args

import keras
import numpy as np
import pytest
import tensorflow as tf

from shared.optimizers import Schedule, build_optimizer, build_schedule
from shared.training_config import ScheduleName, TrainingConfig


def rates(name, *, total=10, warmup=0, final=0.0, second_start=0):
    schedule = Schedule(
        name, peak=2.0, total_steps=total, warmup_steps=warmup, final_rate=final, second_start=second_start
    )
    return [float(schedule(step)) for step in range(total)]


@pytest.mark.parametrize(
    ("name", "options", "step", "expected"),
    [
        ("constant", {}, 0, 2.0),
        ("constant", {}, 9, 2.0),
        ("constant", {"warmup": 4}, 0, 0.5),
        ("constant", {"warmup": 4}, 3, 2.0),
        ("linear", {}, 4, 1.0),
        ("linear", {}, 9, 0.0),
        ("linear", {"final": 0.5}, 9, 1.0),
        ("linear", {"warmup": 2}, 5, 1.0),
        ("cosine", {}, 4, 1.0),
        ("cosine", {}, 9, 0.0),
        ("cosine", {"final": 0.1}, 9, 0.2),
        ("cosine", {"warmup": 5}, 4, 2.0),
        ("one_cycle", {"warmup": 5}, 4, 2.0),
        ("one_cycle", {"warmup": 5}, 9, 0.0),
        ("one_cycle", {"warmup": 2}, 0, 2.0 * (1 / 25 + 24 / 25 / 2)),
        ("inverse_sqrt", {"warmup": 4}, 1, 1.0),
        ("inverse_sqrt", {"warmup": 4}, 3, 2.0),
        ("inverse_sqrt", {"warmup": 2}, 7, 1.0),
        ("inverse_sqrt", {}, 3, 1.0),
    ],
)
def test_schedules_at_known_steps(name, options, step, expected):
    assert rates(name, **options)[step] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", get_args(ScheduleName))
def test_the_first_step_does_something(name):
    for warmup in (0, 3):
        assert rates(name, warmup=warmup)[0] > 0


def test_warm_up_is_repeated_where_more_variables_join():
    plain, rewarmed = rates("constant", warmup=2), rates("constant", warmup=2, second_start=5)
    assert plain[:5] == rewarmed[:5]
    assert rewarmed[5] == pytest.approx(1.0)
    assert rewarmed[6] == pytest.approx(2.0)


def test_a_config_is_stretched_over_its_epochs():
    config = TrainingConfig(epochs=4, schedule="linear", learning_rate=1.0, warmup=0.25, freeze_epochs=1)
    schedule = build_schedule(config, steps_per_epoch=8)
    assert (schedule.total_steps, schedule.warmup_steps, schedule.second_start) == (32, 8, 8)
    restored = Schedule(**schedule.get_config())
    assert float(restored(20)) == float(schedule(20))


def variables():
    return [
        keras.Variable(np.full((2, 2), 1.0, np.float32), name="kernel"),
        keras.Variable(np.full((2,), 1.0, np.float32), name="bias"),
    ]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adafactor", "lion"])
def test_each_optimizer_goes_downhill(optimizer):
    config = TrainingConfig(optimizer=optimizer, weight_decay=0.0)
    weights = variables()
    step = build_optimizer(config, weights, 0.01)
    for _ in range(3):
        step.apply([np.full((2, 2), 0.5, np.float32), np.full((2,), 0.5, np.float32)], weights)
    for weight in weights:
        assert (weight.numpy() < 1.0).all()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adafactor", "lion"])
def test_decay_spares_vectors(optimizer):
    config = TrainingConfig(optimizer=optimizer, weight_decay=0.5, momentum=0.0)
    weights = variables()
    build_optimizer(config, weights, 0.1).apply([np.zeros((2, 2), np.float32), np.zeros(2, np.float32)], weights)
    np.testing.assert_allclose(weights[0].numpy(), 1 - 0.1 * 0.5, atol=1e-6)
    np.testing.assert_allclose(weights[1].numpy(), 1.0)


def test_rate_factors_scale_updates_and_decay():
    config = TrainingConfig(optimizer="sgd", momentum=0.0, weight_decay=0.5, clip_norm=0.0)
    weights = variables()
    optimizer = build_optimizer(config, weights, 0.1, rate_factors=[0.5, 2.0])
    optimizer.apply([np.ones((2, 2), np.float32), np.ones(2, np.float32)], weights)
    np.testing.assert_allclose(weights[0].numpy(), 1 - 0.05 * 0.5 - 0.05, atol=1e-6)
    np.testing.assert_allclose(weights[1].numpy(), 1 - 0.2, atol=1e-6)


def test_rate_factors_must_match_the_variables():
    with pytest.raises(ValueError, match="one factor for each of 2 variables; received 1"):
        build_optimizer(TrainingConfig(), variables(), 0.1, rate_factors=[1.0])


def test_clipping_is_by_the_global_norm():
    config = TrainingConfig(optimizer="sgd", momentum=0.0, weight_decay=0.0, clip_norm=1.0)
    weights = variables()
    build_optimizer(config, weights, 1.0).apply(
        [np.full((2, 2), 3.0, np.float32), np.full(2, 4.0, np.float32)], weights
    )
    norm = math.sqrt(4 * 9 + 2 * 16)
    np.testing.assert_allclose(1 - weights[0].numpy(), 3 / norm, rtol=1e-5)
    np.testing.assert_allclose(1 - weights[1].numpy(), 4 / norm, rtol=1e-5)


def test_adamw_is_adam_with_decoupled_decay():
    ours, theirs = variables(), variables()
    gradients = [np.full((2, 2), 0.3, np.float32), np.full(2, -0.2, np.float32)]
    mine = build_optimizer(TrainingConfig(weight_decay=0.1, clip_norm=0.0), ours, 0.01)
    reference = keras.optimizers.AdamW(0.01, weight_decay=0.1)
    reference.exclude_from_weight_decay(var_list=[theirs[1]])
    for _ in range(3):
        mine.apply(gradients, ours)
        reference.apply(gradients, theirs)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-5)


@pytest.mark.filterwarnings("error")
def test_adam_takes_gradients_of_looked_up_rows():
    config, rows = TrainingConfig(weight_decay=0.0, clip_norm=1.0), tf.constant([2, 0, 2])
    ours, theirs = (keras.Variable(np.ones((4, 3), np.float32)) for _ in range(2))
    values = tf.random.stateless_normal((3, 3), seed=(1, 2))
    build_optimizer(config, [ours], 0.01).apply([tf.IndexedSlices(values, rows, tf.constant([4, 3]))], [ours])
    dense = tf.math.unsorted_segment_sum(values, rows, 4)
    build_optimizer(config, [theirs], 0.01).apply([dense], [theirs])
    np.testing.assert_allclose(ours.numpy()[[0, 2]], theirs.numpy()[[0, 2]], rtol=1e-5)
    np.testing.assert_array_equal(ours.numpy()[[1, 3]], 1.0)


def test_row_wise_tables_are_updated_where_they_were_read():
    config = TrainingConfig(weight_decay=0.1, clip_norm=1.0)
    table = keras.Variable(np.ones((5, 3), np.float32))
    optimizer = build_optimizer(config, [table], 0.01, row_wise=[table])
    twin = keras.Variable(np.ones((2, 3), np.float32))
    dense = build_optimizer(config, [twin], 0.01)

    @tf.function(autograph=False)
    def step(values, rows):
        optimizer.apply([tf.IndexedSlices(values, rows, tf.constant([5, 3]))], [table])

    for turn in range(3):
        values = tf.random.stateless_normal((3, 3), seed=(turn, 2))
        step(values, tf.constant([3, 0, 3]))
        # A table of these rows alone, updated as a whole, is what they must be.
        dense.apply([tf.stack([values[1], values[0] + values[2]])], [twin])
    np.testing.assert_allclose(table.numpy()[[0, 3]], twin.numpy(), rtol=1e-5)
    np.testing.assert_array_equal(table.numpy()[[1, 2, 4]], 1.0)  # neither moved nor decayed
    moments = [np.asarray(variable) for variable in optimizer.variables if variable.shape == (5, 3)]
    assert len(moments) == 2
    assert all((moment[[1, 2, 4]] == 0).all() and (moment[[0, 3]] != 0).all() for moment in moments)


def test_other_optimizers_take_row_wise_tables_as_a_whole():
    for name in ("sgd", "lion", "adafactor"):
        table = keras.Variable(np.ones((4, 3), np.float32))
        optimizer = build_optimizer(TrainingConfig(optimizer=name), [table], 0.01, row_wise=[table])
        optimizer.apply([tf.IndexedSlices(tf.ones((1, 3)), tf.constant([2]), tf.constant([4, 3]))], [table])
        assert (table.numpy()[2] < 1).all()


def test_variables_share_the_scalars_of_a_step():
    """A graph of many variables has few operations for each: on a GPU every scalar is a launch."""
    config = TrainingConfig(weight_decay=0.1)

    def size(number: int) -> int:
        made = [keras.Variable(np.ones((2, 2), np.float32)) for _ in range(number)]
        optimizer = build_optimizer(config, made, build_schedule(config, 10), rate_factors=[0.5] * number)
        step = tf.function(lambda: optimizer.apply([tf.ones((2, 2))] * number), autograph=False)
        operations = step.get_concrete_function().graph.get_operations()
        return sum(operation.type in {"Pow", "Mul", "Sub", "Cast", "Sqrt"} for operation in operations)

    # Of each: its gradient is clipped and it decays.
    assert size(20) - size(10) <= 10 * 2
