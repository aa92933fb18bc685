"""Training in float16: gradients are scaled, steps that overflow are skipped, and the scale is part of the state."""

from __future__ import annotations

import itertools
import signal
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest

import shared.runtime as runtime_module
from shared.pipeline import TrainingInterrupted
from shared.runtime import RuntimeConfig
from shared.training import TrainingTask, TrainStep
from tests.shared.test_training import (
    FULL,
    PLAIN,
    assert_close_weights,
    assert_equal_weights,
    fit,
    signal_after,
    step_of,
    toy,
    weights,
    without_times,
)

SCALED = keras.optimizers.LossScaleOptimizer
ADAM = PLAIN.replace(optimizer="adamw", learning_rate=0.02)
LION = ADAM.replace(optimizer="lion")


@pytest.fixture(autouse=True)
def _float16(monkeypatch):
    monkeypatch.setattr(runtime_module, "_current", None)
    RuntimeConfig(precision="mixed_float16", devices="cpu").apply()
    yield
    keras.config.set_dtype_policy("float32")


def start_scale(monkeypatch: pytest.MonkeyPatch, scale: float, growth: int = 2000) -> None:
    """Optimizers start with this scale and double it after so many steps without overflow."""

    class Scaled(SCALED):
        def __init__(self, inner: Any) -> None:
            super().__init__(inner, initial_scale=scale, dynamic_growth_steps=growth)

    monkeypatch.setattr(keras.optimizers, "LossScaleOptimizer", Scaled)


def scale_of(step: TrainStep) -> float:
    return float(step.optimizer.dynamic_scale.numpy())


def faint(task: TrainingTask) -> TrainingTask:
    """The same task with a loss whose gradients in float16 are 0 unless they are scaled."""
    return replace(task, loss=lambda batch: task.loss(batch) * 1e-8)


def test_gradients_too_small_for_float16_count(monkeypatch):
    start_scale(monkeypatch, 2.0**15)
    task = faint(toy())
    step, before = step_of(task, LION), weights(task)
    step([next(task.batches.epoch())])
    # Lion's steps have the size of the learning rate, however small the gradient.
    moved = [np.abs(new - old).mean() for new, old in zip(weights(task), before, strict=True)]
    assert min(moved) == pytest.approx(0.02, rel=1e-3)
    start_scale(monkeypatch, 1.0)
    unscaled = faint(toy())
    step, before = step_of(unscaled, LION), weights(unscaled)
    step([next(unscaled.batches.epoch())])
    assert np.array_equal(weights(unscaled)[0], before[0])


def test_a_scaled_step_is_the_plain_step(monkeypatch):
    start_scale(monkeypatch, 128.0)
    scaled = toy()
    step = step_of(scaled, PLAIN.replace(clip_norm=0.5))
    step([next(scaled.batches.epoch())])
    RuntimeConfig(devices="cpu").apply()
    plain = toy()
    step_of(plain, PLAIN.replace(clip_norm=0.5))([next(plain.batches.epoch())])
    assert_close_weights(weights(scaled), weights(plain), 2e-3)


def test_a_step_that_overflows_changes_nothing_but_the_scale(monkeypatch):
    start_scale(monkeypatch, 2.0**30)
    task = toy()
    step, batch = step_of(task, ADAM.replace(ema_decay=0.9)), next(task.batches.epoch())
    before, moments = weights(task), [v.numpy() for v in step.optimizer.inner_optimizer.variables]
    step([batch])
    assert_equal_weights(weights(task), before)
    assert_equal_weights([v.numpy() for v in step.optimizer.inner_optimizer.variables], moments)
    assert_equal_weights([average.numpy() for average in step.averages], before)
    assert scale_of(step) == 2.0**29
    assert np.isfinite(float(step.loss_sum))
    for _ in range(20):
        step([batch])
    assert not np.array_equal(weights(task)[0], before[0])
    assert np.isfinite(weights(task)[0]).all()


def test_one_overflow_among_accumulated_batches_skips_the_step(monkeypatch):
    start_scale(monkeypatch, 1024.0)
    task = toy()
    step = step_of(task, PLAIN.replace(accumulation_steps=2))
    good = next(task.batches.epoch())
    huge = {"x": good["x"], "y": good["y"] + 1e4}
    before = weights(task)
    step([huge, good])
    assert_equal_weights(weights(task), before)
    assert scale_of(step) == 512.0
    # What was accumulated is forgotten with the step.
    step([good, good])
    start_scale(monkeypatch, 512.0)
    fresh = toy()
    step_of(fresh, PLAIN.replace(accumulation_steps=2))([good, good])
    assert_equal_weights(weights(task), weights(fresh))


def test_the_scale_grows_again(monkeypatch):
    start_scale(monkeypatch, 8.0, growth=2)
    task = toy()
    step, batch = step_of(task, PLAIN), next(task.batches.epoch())
    scales = []
    for _ in range(5):
        step([batch])
        scales.append(scale_of(step))
    assert scales == [8.0, 16.0, 16.0, 32.0, 32.0]


@pytest.mark.parametrize("stopped", [1, 4, 6])
def test_resumed_after_overflows_equals_unbroken(tmp_path, monkeypatch, stopped):
    """Scales too high at first, then doubled every other step: overflows come before and after the stop."""
    start_scale(monkeypatch, 2.0**18, growth=2)
    scales: list[float] = []
    original = TrainStep.__call__

    def call(step: TrainStep, batches: Any) -> None:
        original(step, batches)
        scales.append(scale_of(step))

    monkeypatch.setattr(TrainStep, "__call__", call)
    expected = toy(dropout=0.3)
    history = fit(expected, FULL)
    unbroken = list(scales)
    assert any(b < a for a, b in itertools.pairwise(unbroken))
    assert any(b > a for a, b in itertools.pairwise(unbroken))
    scales.clear()
    with monkeypatch.context() as patch:
        signal_after(patch, stopped, signal.SIGTERM)
        with pytest.raises(TrainingInterrupted):
            fit(toy(dropout=0.3), FULL, checkpoint=tmp_path)
    resumed = toy(dropout=0.3)
    assert without_times(fit(resumed, FULL, checkpoint=tmp_path, resume=True)) == without_times(history)
    assert_equal_weights(weights(resumed), weights(expected))
    assert scales == unbroken
