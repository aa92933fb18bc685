"""One optimizer step of the training loop, on one device or on several.

On several, each computes its share of the batch (shared/distribution.py); the gradients and the loss go through one
sum before the optimizer sees them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from shared.data import Arrays
from shared.distribution import BatchShares, computing_share, synchronise_norms
from shared.recomputation import recomputing
from shared.runtime import current_runtime
from shared.training_config import TrainingConfig

if TYPE_CHECKING:
    from shared.training import TrainingTask


class TrainStep:
    """One optimizer step as a compiled function; also used by the learning-rate finder and by benchmarks.

    Args:
        task: model and loss.
        optimizer: built on all of the model's trainable variables.
        config: for the number of accumulated batches and the decay of the averaged weights.
    """

    def __init__(self, task: TrainingTask, optimizer: keras.optimizers.Optimizer, config: TrainingConfig) -> None:
        self.task = task
        self.optimizer = optimizer
        self.loss_sum = tf.Variable(0.0, trainable=False, dtype=tf.float32)
        self._row_wise = {id(variable) for variable in task.row_wise}
        self._variables = list(task.model.trainable_variables)
        self._ema_decay, self._recompute = config.ema_decay, config.gradient_checkpointing
        self._sums = [_zeros_per_replica(v) for v in self._variables] if config.accumulation_steps > 1 else []
        # Statistics of batch normalisation are averaged along with the weights that they belong to.
        self.averaged = list(task.model.weights) if self._ema_decay else []
        self.averages = [tf.Variable(v.value, trainable=False) for v in self.averaged]
        if current_runtime().num_replicas > 1:
            synchronise_norms(task.model)
        self.compile()

    def compile(self) -> None:
        """Compile anew: needed after the set of trained variables has changed."""
        runtime = current_runtime()
        self._strategy = runtime.strategy
        self._apply: Any = None
        self._accumulate: Any = None

    @property
    def is_traced(self) -> bool:
        """Whether there is a graph yet; tracing and compiling it takes the time of many steps."""
        return self._apply is not None

    def __call__(self, batches: Sequence[Arrays | BatchShares]) -> None:
        """Update the weights by the mean gradient of `batches` (as many as are accumulated).

        On one device these are whole batches, on several what `InputPipeline.shares` gives.
        """
        # A tensor, so that the shorter group at the end of an epoch needs no compilation of its own.
        count = tf.constant(float(len(batches)))
        inputs = [self._inputs(batch) for batch in batches]
        if self._apply is None:
            self._trace_for(inputs[0])
        for tensors in inputs[:-1]:
            self._accumulate(*tensors, count)
        self._apply(*inputs[-1], count)

    def _trace_for(self, inputs: tuple[Any, Any]) -> None:
        runtime = current_runtime()
        options: dict[str, Any] = {"autograph": False, "jit_compile": runtime.xla}
        if self.task.varying_shapes and not runtime.xla:
            # One graph for all shapes: a graph each takes long, and one made after a second shape has come would
            # round otherwise than the first, so that a resumed run would not end bit-equal.
            of_any_size = tf.nest.map_structure(lambda t: tf.TensorSpec([None] * t.shape.rank, t.dtype), inputs)
            options["input_signature"] = [*of_any_size, tf.TensorSpec((), tf.float32)]
        self._apply = tf.function(self._step, **options)
        self._accumulate = tf.function(self._add_gradients, **options)

    @property
    def _num_replicas(self) -> int:
        return 1 if self._strategy is None else int(self._strategy.num_replicas_in_sync)

    def _inputs(self, batch: Arrays | BatchShares) -> tuple[Any, Any]:
        """Tensors of a batch, or of each local share of one, and what part of the whole batch each share is."""
        if not isinstance(batch, BatchShares):
            if self._num_replicas > 1:
                raise TypeError("Several devices take batches in shares: `InputPipeline.shares`; received a whole one.")
            return _tensors(batch), ()
        whole = max(1, batch.num_examples)
        return [_tensors(part) for part in batch.parts], [tf.constant(size / whole) for size in batch.sizes]

    def _step(self, batch: Any, shares: Any, count: tf.Tensor) -> None:
        self.loss_sum.assign_add(self._on_replicas(self._apply_gradients, batch, shares, count))
        if self._ema_decay:
            self._update_averages()

    def _add_gradients(self, batch: Any, shares: Any, count: tf.Tensor) -> None:
        self.loss_sum.assign_add(self._on_replicas(self._keep_gradients, batch, shares, count))

    def _on_replicas(
        self, function: Callable[[Any, Any, Any], tf.Tensor], batch: Any, shares: Any, count: tf.Tensor
    ) -> tf.Tensor:
        if self._strategy is None:
            return function(batch, None, count)
        if self._num_replicas == 1:
            return self._strategy.reduce(
                tf.distribute.ReduceOp.SUM, self._strategy.run(function, args=(batch, None, count)), axis=None
            )
        first = current_runtime().portion.first
        own_batch, own_share = (
            self._strategy.experimental_distribute_values_from_function(
                lambda context, values=values: values[context.replica_id_in_sync_group - first]
            )
            for values in (batch, shares)
        )
        losses = self._strategy.run(function, args=(own_batch, own_share, count))
        return self._strategy.experimental_local_results(losses)[0]

    def _apply_gradients(self, batch: dict[str, tf.Tensor], share: tf.Tensor | None, count: tf.Tensor) -> tf.Tensor:
        loss, variables, gradients = self._gradients(batch, share, count)
        if self._sums:
            sums = self._trained(self._sums)
            gradients = [gradient + total for gradient, total in zip(gradients, sums, strict=True)]
        if share is not None:
            # Before the optimizer clips: the norm to limit is that of the whole gradient. All in one sum.
            loss, *gradients = _summed_over_replicas([loss, *gradients])
        self.optimizer.apply(gradients, variables)
        if self._sums:
            for total in sums:
                total.assign(tf.zeros_like(total))
        return loss

    def _keep_gradients(self, batch: dict[str, tf.Tensor], share: tf.Tensor | None, count: tf.Tensor) -> tf.Tensor:
        loss, _, gradients = self._gradients(batch, share, count)
        for total, gradient in zip(self._trained(self._sums), gradients, strict=True):
            total.assign_add(gradient)
        return loss if share is None else _summed_over_replicas([loss])[0]

    def _gradients(
        self, batch: dict[str, tf.Tensor], share: tf.Tensor | None, count: tf.Tensor
    ) -> tuple[tf.Tensor, list[keras.Variable], list[tf.Tensor]]:
        """This replica's part of the mean loss over the batch and `count` batches, and the gradients of that part."""
        variables = self.task.model.trainable_variables
        with tf.GradientTape() as tape, computing_share(share):
            with recomputing(self._recompute):
                loss = tf.cast(self.task.loss(batch), tf.float32)
            if share is not None:
                loss *= share
            if self.task.model.losses:
                extra = tf.add_n([tf.cast(extra, tf.float32) for extra in self.task.model.losses])
                loss += extra / self._num_replicas
            loss /= count
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, [v.value for v in variables])
        unused = [v.path for v, gradient in zip(variables, gradients, strict=True) if gradient is None]
        if unused:
            raise ValueError(f"The loss does not depend on {', '.join(unused)}: freeze these or use them.")
        # Rows that were looked up several times are added up: the norm to limit is that of the sums.
        whole = [g if self._by_rows(v) else tf.convert_to_tensor(g) for v, g in zip(variables, gradients, strict=True)]
        return loss, variables, whole

    def _by_rows(self, variable: keras.Variable) -> bool:
        """Whether the optimizer is to get rows, which it adds up itself; sums over batches and devices are whole."""
        scaled = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)
        return id(variable) in self._row_wise and self._strategy is None and not self._sums and not scaled

    def _trained(self, values: Sequence[Any]) -> list[Any]:
        """Those of `values` (one per variable of the whole model) whose variables are trained at present."""
        trained = {id(variable) for variable in self.task.model.trainable_variables}
        return [value for value, variable in zip(values, self._variables, strict=True) if id(variable) in trained]

    def _update_averages(self) -> None:
        # The decay grows from 0.18 to its full value, so that the first average is not the random start:
        # min(decay, (1 + t) / (10 + t)), as in TensorFlow's ExponentialMovingAverage(num_updates=).
        step = tf.cast(self.optimizer.iterations.value, tf.float32)
        decay = tf.minimum(self._ema_decay, (1.0 + step) / (10.0 + step))
        for average, variable in zip(self.averages, self.averaged, strict=True):
            _subtract(average, average - variable.value, 1.0 - decay)

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Put the averaged weights into the model for the duration of a `with` block."""
        raw = [v.numpy() for v in self.averaged]
        assign(self.averaged, [average.numpy() for average in self.averages])
        try:
            yield
        finally:
            assign(self.averaged, raw)


def _subtract(variable: tf.Variable, change: tf.Tensor, factor: tf.Tensor) -> None:
    """`variable -= factor * change`; where one device holds float32, in one pass over memory instead of two."""
    if change.dtype == tf.float32 and not tf.distribute.has_strategy():
        tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=factor, delta=change)
    else:
        variable.assign_sub(change * tf.cast(factor, change.dtype))


def _zeros_per_replica(variable: keras.Variable) -> tf.Variable:
    """Zeros in the shape of `variable`; each replica has values of its own."""
    zeros, on_read = tf.zeros(variable.shape, variable.dtype), tf.VariableSynchronization.ON_READ
    return tf.Variable(zeros, trainable=False, synchronization=on_read, aggregation=tf.VariableAggregation.SUM)


def _summed_over_replicas(values: list[tf.Tensor]) -> list[tf.Tensor]:
    context = tf.distribute.get_replica_context()
    summed: list[tf.Tensor] = context.all_reduce(tf.distribute.ReduceOp.SUM, values)
    return summed


def _tensors(batch: Arrays) -> dict[str, tf.Tensor]:
    return {key: tf.convert_to_tensor(array) for key, array in batch.items()}


def assign(variables: Sequence[Any], values: Sequence[np.ndarray]) -> None:
    """Give variables their values, one each."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
