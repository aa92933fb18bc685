"""Optimizers and learning-rate schedules, built from a `TrainingConfig`.

The update rules are Keras's own, Adam's with a faster kernel. What is added: one factor per variable on the learning
rate (lower rates for lower layers) and decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101) that
follows the same factor and spares biases, norms and other vectors.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from shared.runtime import current_runtime
from shared.training_config import TrainingConfig

# First learning rate of one_cycle as a share of the highest: Smith and Topin 2018 (arXiv:1708.07120).
_ONE_CYCLE_START = 1 / 25


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate by step: warm-up, then a cosine, linear or constant course, one cycle, or an inverse square root.

    Warm-up rises linearly from 0 over `warmup_steps`, and again from `second_start`, where more variables join: their
    moments in Adam start from nothing while its bias correction has long ended, so first steps would be too large.
    `one_cycle` rises by half a cosine from 1/25 of the peak and falls by the other half. `inverse_sqrt` falls as
    1 / sqrt(step), from the peak at the end of warm-up (Vaswani et al. 2017, arXiv:1706.03762, equation 3). All end at
    `final_rate * peak` in step `total_steps`, except it and `constant`.
    """

    def __init__(
        self,
        name: str,
        *,
        peak: float,
        total_steps: int,
        warmup_steps: int,
        final_rate: float,
        second_start: int = 0,
    ) -> None:
        super().__init__()
        self.name = name
        self.peak = peak
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.final_rate = final_rate
        self.second_start = second_start

    def __call__(self, step: Any) -> Any:
        """Learning rate in `step` (from 0), a float32 scalar."""
        # Steps count from 1 here: the first update must not have a rate of 0.
        step = ops.cast(step, "float32") + 1.0
        since_start = ops.where(step > self.second_start, step - self.second_start, step)
        rise = ops.minimum(1.0, since_start / max(1.0, float(self.warmup_steps)))
        if self.name == "inverse_sqrt":
            first = max(1.0, float(self.warmup_steps))
            return self.peak * rise * ops.sqrt(first / ops.maximum(step, first))
        left = max(1, self.total_steps - self.warmup_steps)
        progress = ops.clip((step - self.warmup_steps) / left, 0.0, 1.0)
        return self.peak * self._rise(rise) * self._fall(progress)

    def _rise(self, share: Any) -> Any:
        if self.name == "one_cycle" and self.warmup_steps:
            return _ONE_CYCLE_START + (1 - _ONE_CYCLE_START) * (1 - ops.cos(math.pi * share)) / 2
        return share

    def _fall(self, progress: Any) -> Any:
        if self.name == "constant":
            return 1.0
        remaining = 1 - progress if self.name == "linear" else (1 + ops.cos(math.pi * progress)) / 2
        return self.final_rate + (1 - self.final_rate) * remaining

    def get_config(self) -> dict[str, Any]:
        """Constructor arguments."""
        return {
            "name": self.name,
            "peak": self.peak,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
            "final_rate": self.final_rate,
            "second_start": self.second_start,
        }


def build_schedule(config: TrainingConfig, steps_per_epoch: int) -> Schedule:
    """The schedule that `config` describes, stretched over all its epochs."""
    total_steps = steps_per_epoch * config.epochs
    return Schedule(
        config.schedule,
        peak=config.learning_rate,
        total_steps=total_steps,
        warmup_steps=round(config.warmup * total_steps),
        final_rate=config.final_rate,
        second_start=steps_per_epoch * config.freeze_epochs,
    )


def build_optimizer(
    config: TrainingConfig,
    variables: Sequence[keras.Variable],
    schedule: Schedule | float,
    *,
    rate_factors: Sequence[float] | None = None,
    row_wise: Sequence[keras.Variable] = (),
) -> keras.optimizers.Optimizer:
    """An optimizer over `variables`, ready for `apply` on any subset of them.

    Args:
        config: the update rule, decay, clipping and momentum.
        variables: all variables that will ever be trained.
        schedule: learning rate by step, or a constant one.
        rate_factors: one factor per variable on the learning rate; 1 for each where left out.
        row_wise: those of `variables` of which a step of adamw touches only the rows that have a gradient: see `_Adam`.
    """
    optimizer = _create(config, schedule)
    optimizer.build(list(variables))
    factors = [1.0] * len(variables) if rate_factors is None else list(rate_factors)
    if len(factors) != len(variables):
        raise ValueError(
            f"`rate_factors` must have one factor for each of {len(variables)} variables; received {len(factors)}."
        )
    optimizer.rate_factors = factors
    optimizer.scalars = _Scalars()
    optimizer.decays = [config.weight_decay if len(v.shape) > 1 else 0.0 for v in variables]
    chosen = {id(variable) for variable in row_wise}
    optimizer.row_wise = [id(v) in chosen and len(v.shape) > 1 for v in variables]
    if keras.config.dtype_policy().name == "mixed_float16":
        scaled = keras.optimizers.LossScaleOptimizer(optimizer)
        scaled.build(list(variables))
        return scaled
    return optimizer


def _create(config: TrainingConfig, schedule: Schedule | float) -> keras.optimizers.Optimizer:
    clip = config.clip_norm or None
    if config.optimizer == "sgd":
        nesterov = config.momentum > 0
        return _per_variable(keras.optimizers.SGD)(
            schedule, momentum=config.momentum, nesterov=nesterov, global_clipnorm=clip
        )
    if config.optimizer == "adafactor":
        return _per_variable(keras.optimizers.Adafactor)(schedule, relative_step=False, global_clipnorm=clip)
    if config.optimizer == "lion":
        return _per_variable(keras.optimizers.Lion)(schedule, global_clipnorm=clip)
    return _per_variable(_Adam)(schedule, global_clipnorm=clip)


class _Scalars:
    """Scalars of one step, each made once: as an operation for each variable they are half of a graph's nodes."""

    def __init__(self) -> None:
        self._made: dict[Hashable, tf.Tensor] = {}

    def get(self, key: Hashable, make: Callable[[], tf.Tensor]) -> tf.Tensor:
        """What `make` gave first; under a strategy, where each device needs its own, what it gives now."""
        if tf.distribute.has_strategy():
            return make()
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


class _Adam(keras.optimizers.Adam):
    """Keras's Adam, in one pass over memory: TensorFlow's kernel reads and writes each array once.

    Of tables that are `row_wise`, a step costs what its rows cost, not what the table costs: moments of other rows
    stay as they are until they are next read, where Adam's own would fade meanwhile (as in TensorFlow Addons'
    LazyAdam). Decay, too, comes with the rows.
    """

    scalars: _Scalars

    def update_rows(self, rows: tf.IndexedSlices, variable: Any, learning_rate: Any, decay: float) -> None:
        """Adam's update of distinct `rows` alone, with decoupled weight decay."""
        index = self._get_variable_index(variable)
        moments = self._momentums[index].value, self._velocities[index].value
        gradient = tf.cast(rows.values, tf.float32)
        first = self.beta_1 * tf.gather(moments[0], rows.indices) + (1 - self.beta_1) * gradient
        second = self.beta_2 * tf.gather(moments[1], rows.indices) + (1 - self.beta_2) * tf.square(gradient)
        for moment, values in zip(moments, (first, second), strict=True):
            moment.scatter_update(tf.IndexedSlices(values, rows.indices))
        rate = learning_rate * tf.sqrt(1 - self._power(self.beta_2)) / (1 - self._power(self.beta_1))
        change = rate * first / (tf.sqrt(second) + self.epsilon)
        if decay:
            change += learning_rate * decay * tf.gather(variable, rows.indices)
        variable.scatter_sub(tf.IndexedSlices(change, rows.indices))

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        if tf.distribute.has_strategy() or variable.dtype != "float32":
            super().update_step(gradient, variable, learning_rate)
            return
        index = self._get_variable_index(variable)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=self._power(self.beta_1),
            beta2_power=self._power(self.beta_2),
            lr=tf.cast(learning_rate, tf.float32),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=tf.cast(gradient, tf.float32),
        )

    def _power(self, beta: float) -> tf.Tensor:
        """`beta` to the number of this step, from 1."""

        def power() -> tf.Tensor:
            return tf.pow(tf.constant(beta, tf.float32), tf.cast(self.iterations.value, tf.float32) + 1.0)

        return self.scalars.get(("power", beta), power)


@functools.cache
def _per_variable(base: type[keras.optimizers.Optimizer]) -> type[keras.optimizers.Optimizer]:
    """`base` with a learning-rate factor and a weight decay for each variable."""

    class PerVariable(base):
        rate_factors: list[float]
        decays: list[float]
        row_wise: list[bool]
        scalars: _Scalars

        def apply(self, grads: Any, trainable_variables: Any = None) -> None:
            variables = self._trainable_variables if trainable_variables is None else trainable_variables
            pairs = zip(grads, variables, strict=True)
            try:
                super().apply([self._by_rows(gradient, variable) for gradient, variable in pairs], trainable_variables)
            finally:
                self.scalars = _Scalars()  # those of the next step are others

        def _by_rows(self, gradient: Any, variable: Any) -> Any:
            """Distinct rows where only these are to be updated, otherwise the gradient as it is."""
            if not isinstance(gradient, tf.IndexedSlices) or not self.row_wise[self._get_variable_index(variable)]:
                return gradient
            if not hasattr(self, "update_rows") or tf.distribute.has_strategy() or current_runtime().xla:
                return tf.convert_to_tensor(gradient)
            return distinct_rows(gradient)

        def _clip_gradients(self, grads: Any) -> Any:
            if self.global_clipnorm:
                # It takes rows, which Keras's does not, and gets the norm in one pass over memory instead of three.
                return tf.clip_by_global_norm(grads, self.global_clipnorm)[0]
            return super()._clip_gradients(grads)

        def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
            return grads_and_vars  # the training step has added them up over replicas already

        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            index, dtype = self._get_variable_index(variable), variable.dtype
            factor, decay = self.rate_factors[index], self.decays[index]
            rate = self.scalars.get(("rate", dtype, factor), lambda: tf.cast(learning_rate, dtype) * factor)
            if isinstance(gradient, tf.IndexedSlices) and self.row_wise[index]:
                self.update_rows(gradient, variable, rate, decay)
                return
            if decay:
                # One product, whose memory becomes the variable's: it is read and written once, where a difference
                # takes five passes. It rounds the decay to a multiple of 6e-8.
                kept = self.scalars.get(("kept", dtype, factor, decay), lambda: 1 - rate * decay)
                self.assign(variable, variable * kept)
            super().update_step(gradient, variable, rate)

    PerVariable.__name__ = base.__name__.removeprefix("_")
    return PerVariable


def distinct_rows(gradient: tf.IndexedSlices) -> tf.IndexedSlices:
    """The same gradient with each row once, as the sum of its parts."""
    rows, places = tf.unique(gradient.indices)
    return tf.IndexedSlices(
        tf.math.unsorted_segment_sum(gradient.values, places, tf.size(rows)), rows, gradient.dense_shape
    )
