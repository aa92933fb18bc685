"""A learning-rate finder: the range test of Smith 2017 (arXiv:1506.01186, section 3.3)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from shared.data import Arrays
from shared.distribution import BatchShares
from shared.optimizers import build_optimizer
from shared.runtime import current_runtime
from shared.training import TrainingTask, TrainStep
from shared.training_config import TrainingConfig

# The run stops where the smoothed loss has grown by this factor over its minimum.
_DIVERGED = 4.0
_SMOOTHING = 0.9


@dataclass(frozen=True)
class LearningRateSweep:
    """Smoothed training loss at rising learning rates, and the rate to start from.

    `suggestion` is where the loss falls fastest per step of log(rate); the highest stable rate is some times larger.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    suggestion: float


def find_learning_rate(
    task: TrainingTask,
    training: TrainingConfig | None = None,
    *,
    lowest: float = 1e-6,
    highest: float = 1.0,
    num_steps: int = 100,
) -> LearningRateSweep:
    """Train a few steps at exponentially rising rates, then put the weights back.

    Args:
        task: as for training; a pipeline gives it by `training_task(train, training)`.
        training: optimizer, momentum, decay and batch size of the run that is planned.
        lowest: first learning rate.
        highest: last learning rate.
        num_steps: optimizer steps between the two.

    Raises:
        ValueError: where the loss is not finite from the start.
    """
    training = training or TrainingConfig()
    before = [variable.numpy() for variable in task.model.variables]
    rates = np.geomspace(lowest, highest, num_steps)
    try:
        losses = _sweep(task, training, rates)
    finally:
        for variable, value in zip(task.model.variables, before, strict=True):
            variable.assign(value)
    if len(losses) < 3:
        raise ValueError(f"The loss is not finite at the lowest learning rate, {lowest:g}. Look for bad inputs first.")
    return LearningRateSweep(
        rates=tuple(rates[: len(losses)].tolist()),
        losses=tuple(losses),
        suggestion=_steepest(rates[: len(losses)], losses),
    )


def _steepest(rates: np.ndarray, losses: list[float]) -> float:
    """The rate at which the loss falls fastest per step of log(rate)."""
    slopes = np.gradient(np.asarray(losses), np.log(rates))
    # Over its first steps the average follows single batches: their noise would pass for a slope.
    settled = min(round(1 / (1 - _SMOOTHING)), len(losses) // 3)
    return float(rates[settled + int(np.argmin(slopes[settled:]))])


def _sweep(task: TrainingTask, training: TrainingConfig, rates: np.ndarray) -> list[float]:
    with current_runtime().scope():
        optimizer = build_optimizer(
            training,
            task.model.trainable_variables,
            float(rates[0]),
            rate_factors=task.rate_factors,
            row_wise=task.row_wise,
        )
        step = TrainStep(task, optimizer, training.replace(accumulation_steps=1, ema_decay=0.0))
    losses: list[float] = []
    average = 0.0
    for count, (rate, batch) in enumerate(zip(rates, _endless(task), strict=False), start=1):
        optimizer.learning_rate = float(rate)
        step.loss_sum.assign(0.0)
        step([batch])
        loss = float(step.loss_sum.numpy())
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        smoothed = average / (1 - _SMOOTHING**count)
        if not math.isfinite(smoothed) or (losses and smoothed > _DIVERGED * min(losses)):
            break
        losses.append(smoothed)
    return losses


def _endless(task: TrainingTask) -> Iterator[Arrays | BatchShares]:
    portion = current_runtime().portion
    return itertools.chain.from_iterable(task.batches.drawn(portion, epoch) for epoch in itertools.count())
