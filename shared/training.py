"""The training loop that all tasks share, with states that resume bit for bit.

One step is one compiled function: forward pass, gradients, update, averaged weights, loss sum. The loop around it
reads top to bottom in `_Run.run`; what it must remember is listed in `_Run._state`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from shared.checkpoint import CheckpointDirectory, TrainingState, pack, unpack
from shared.data import Arrays, InputPipeline, Loading
from shared.fingerprint import data_fingerprint
from shared.optimizers import build_optimizer, build_schedule
from shared.pipeline import FitOptions, History, Metrics, Pipeline, TrainingInterrupted
from shared.progress import Progress, TrainingLog
from shared.recomputation import recomputing
from shared.runtime import current_runtime
from shared.signals import StopSignals
from shared.training_config import TrainingConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """What the loop needs to know of a task.

    `loss(batch)` runs the model in training mode on a batch of tensors (the dictionary that `batches` yields, as
    tensors) and gives the mean loss, a scalar. `validate()` scores the model as it is, with `evaluate`'s own code.
    `set_head_only(on)` switches between training the head alone, in the first `freeze_epochs`, and all that shall be
    trained. `rate_factors` has one factor on the learning rate for each of the variables trained with it off.
    `fingerprint` identifies config and data: a state resumes only under an equal one. With `varying_shapes` batches
    differ in shape, as those of texts do.
    """

    model: keras.Model
    loss: Callable[[dict[str, tf.Tensor]], tf.Tensor]
    batches: InputPipeline
    validate: Callable[[], Metrics] | None = None
    set_head_only: Callable[[bool], None] | None = None
    rate_factors: Sequence[float] | None = None
    fingerprint: dict[str, Any] = field(default_factory=dict)
    varying_shapes: bool = False


def run_training(task: TrainingTask, options: FitOptions) -> History:
    """Train `task.model` in place and return how it went; the model ends with its best weights.

    Raises:
        TrainingInterrupted: after SIGTERM or SIGINT, once the state is saved (only with a checkpoint directory).
        FloatingPointError: when the loss is no longer finite.
        ValueError: when a state cannot be resumed by this run, or would be overwritten by it.
    """
    return _Run(task, options).run()


def training_loading(training: TrainingConfig) -> Loading:
    """How the examples of a training run are loaded: shuffled, in whole batches, for all replicas together."""
    return Loading(
        batch_size=training.batch_size * current_runtime().num_replicas,
        batch_tokens=training.batch_tokens * current_runtime().num_replicas,
        shuffle=True,
        seed=training.seed,
        drop_remainder=True,
        cache_bytes=int(training.cache_gib * (1 << 30)),
        max_bad_share=training.max_bad_share,
    )


def validation_loading(training: TrainingConfig) -> Loading:
    """How the validation set of a training run is loaded: as much kept and tolerated as of the training set."""
    return Loading(cache_bytes=int(training.cache_gib * (1 << 30)), max_bad_share=training.max_bad_share)


def run_fingerprint(pipeline: Pipeline, batches: InputPipeline) -> dict[str, Any]:
    """What a resumed run must have in common with the one it goes on: config, preset, data, and how it computes.

    The fingerprint of the data is also put into the pipeline's provenance, which `save` writes to training.json.
    """
    runtime = current_runtime()
    fingerprint = data_fingerprint(batches.source)
    pipeline.provenance["data"] = {"fingerprint": fingerprint, "num_examples": batches.num_examples}
    return {
        **pipeline.config.to_dict(),
        "preset": pipeline.provenance.get("preset", {}).get("ref"),
        "num_examples": batches.num_examples,
        "data": fingerprint,
        "num_replicas": runtime.num_replicas,
        "precision": runtime.precision,
        "xla": runtime.xla,
    }


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
        self._variables = list(task.model.trainable_variables)
        self._ema_decay, self._recompute = config.ema_decay, config.gradient_checkpointing
        self._sums = [_zeros_per_replica(v) for v in self._variables] if config.accumulation_steps > 1 else []
        # Statistics of batch normalisation are averaged along with the weights that they belong to.
        self.averaged = list(task.model.weights) if self._ema_decay else []
        self.averages = [tf.Variable(v.value, trainable=False) for v in self.averaged]
        self.compile()

    def compile(self) -> None:
        """Compile anew: needed after the set of trained variables has changed."""
        runtime = current_runtime()
        self._strategy = runtime.strategy
        self._apply: Any = None
        self._accumulate: Any = None

    def __call__(self, batches: Sequence[Arrays]) -> None:
        """Update the weights by the mean gradient of `batches` (as many as are accumulated)."""
        # A tensor, so that the shorter group at the end of an epoch needs no compilation of its own.
        count = tf.constant(float(len(batches)))
        if self._apply is None:
            self._trace_for(batches[0])
        for batch in batches[:-1]:
            self._accumulate(self._tensors(batch), count)
        self._apply(self._tensors(batches[-1]), count)

    def _trace_for(self, batch: Arrays) -> None:
        runtime = current_runtime()
        options: dict[str, Any] = {"autograph": False, "jit_compile": runtime.xla}
        if self.task.varying_shapes and self._num_replicas == 1 and not runtime.xla:
            # One graph for all shapes: a graph each takes long, and one made after a second shape has come would
            # round otherwise than the first, so that a resumed run would not end bit-equal.
            of_any_size = {key: tf.TensorSpec([None] * a.ndim, a.dtype) for key, a in batch.items()}
            options["input_signature"] = [of_any_size, tf.TensorSpec((), tf.float32)]
        self._apply = tf.function(self._step, **options)
        self._accumulate = tf.function(self._add_gradients, **options)

    @property
    def _num_replicas(self) -> int:
        return 1 if self._strategy is None else int(self._strategy.num_replicas_in_sync)

    def _tensors(self, batch: Arrays) -> Any:
        if self._strategy is None or self._num_replicas == 1:
            return {key: tf.convert_to_tensor(array) for key, array in batch.items()}
        parts = {key: _equal_parts(array, self._num_replicas) for key, array in batch.items()}
        return self._strategy.experimental_distribute_values_from_function(
            lambda context: {k: tf.convert_to_tensor(p[context.replica_id_in_sync_group]) for k, p in parts.items()}
        )

    def _step(self, batch: Any, count: tf.Tensor) -> None:
        self.loss_sum.assign_add(self._on_replicas(self._apply_gradients, batch, count))
        if self._ema_decay:
            self._update_averages()

    def _add_gradients(self, batch: Any, count: tf.Tensor) -> None:
        self.loss_sum.assign_add(self._on_replicas(self._keep_gradients, batch, count))

    def _on_replicas(self, function: Callable[[Any, Any], tf.Tensor], batch: Any, count: tf.Tensor) -> tf.Tensor:
        if self._strategy is None:
            return function(batch, count)
        losses = self._strategy.run(function, args=(batch, count))
        return self._strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

    def _apply_gradients(self, batch: dict[str, tf.Tensor], count: tf.Tensor) -> tf.Tensor:
        loss, variables, gradients = self._gradients(batch, count)
        if self._sums:
            sums = self._trained(self._sums)
            gradients = [tf.convert_to_tensor(g) + s for g, s in zip(gradients, sums, strict=True)]
        if self._num_replicas > 1:
            # Before the optimizer clips: the norm to limit is that of the whole gradient.
            context = tf.distribute.get_replica_context()
            gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        self.optimizer.apply(gradients, variables)
        if self._sums:
            for total in sums:
                total.assign(tf.zeros_like(total))
        return loss

    def _keep_gradients(self, batch: dict[str, tf.Tensor], count: tf.Tensor) -> tf.Tensor:
        loss, _, gradients = self._gradients(batch, count)
        for total, gradient in zip(self._trained(self._sums), gradients, strict=True):
            total.assign_add(tf.convert_to_tensor(gradient))
        return loss

    def _gradients(
        self, batch: dict[str, tf.Tensor], count: tf.Tensor
    ) -> tuple[tf.Tensor, list[keras.Variable], list[tf.Tensor]]:
        """This replica's share of the mean loss over replicas and `count` batches, and the gradients of that share."""
        variables = self.task.model.trainable_variables
        with tf.GradientTape() as tape:
            with recomputing(self._recompute):
                loss = tf.cast(self.task.loss(batch), tf.float32)
            if self.task.model.losses:
                loss += tf.add_n([tf.cast(extra, tf.float32) for extra in self.task.model.losses])
            loss /= self._num_replicas * count
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, [v.value for v in variables])
        unused = [v.path for v, gradient in zip(variables, gradients, strict=True) if gradient is None]
        if unused:
            raise ValueError(f"The loss does not depend on {', '.join(unused)}: freeze these or use them.")
        return loss, variables, gradients

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
            average.assign_sub((average - variable.value) * tf.cast(1.0 - decay, average.dtype))

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Put the averaged weights into the model for the duration of a `with` block."""
        raw = [v.numpy() for v in self.averaged]
        _assign(self.averaged, [average.numpy() for average in self.averages])
        try:
            yield
        finally:
            _assign(self.averaged, raw)


class _Run:
    """One call of `fit`."""

    def __init__(self, task: TrainingTask, options: FitOptions) -> None:
        self.task = task
        self.config = options.training
        self.options = options
        self.checkpoint = None if options.checkpoint is None else CheckpointDirectory(options.checkpoint)
        self.steps_per_epoch = max(1, math.ceil(task.batches.num_batches / self.config.accumulation_steps))
        # What a state remembers, beside weights, optimizer and averages.
        self.epoch = 0
        self.batch = 0
        self.step = 0
        self.records: list[dict[str, Any]] = []
        self.best: float | None = None
        self.best_epoch: int | None = None
        self.best_weights: list[np.ndarray] | None = None
        self.best_file: str | None = None
        self.stopped_early = False
        self.seconds_before = 0.0
        self.epoch_seconds_before = 0.0

    def run(self) -> History:
        """Train to the end, or until stopped early or by a signal."""
        self.started = self.last_saved = time.monotonic()
        state = self._state_to_resume()
        self._build()
        if state is not None:
            self._restore(state)
        self.progress = Progress(self.config.epochs)
        self.log = TrainingLog(self.options.log, self.records, self.options.after_epoch)
        with StopSignals(enabled=self.checkpoint is not None) as self.signals, contextlib.closing(self.progress):
            while self.epoch < self.config.epochs and not self.stopped_early:
                self._run_epoch()
        return self._finish()

    def _build(self) -> None:
        model = self.task.model
        self.head_only = False
        if self.task.set_head_only is not None:
            self.task.set_head_only(False)
        schedule = build_schedule(self.config, self.steps_per_epoch)
        self.schedule = schedule
        with current_runtime().scope():
            self.optimizer = build_optimizer(
                self.config, model.trainable_variables, schedule, rate_factors=self.task.rate_factors
            )
            self.train_step = TrainStep(self.task, self.optimizer, self.config)

    def _run_epoch(self) -> None:
        self._set_head_only(self.epoch < self.config.freeze_epochs)
        batches = self.task.batches
        self.epoch_started = time.monotonic()
        done = round(batches.num_examples * min(1.0, self.batch / batches.num_batches))
        self.progress.start_epoch(self.epoch + 1, num_examples=batches.num_examples, done=done)
        groups = _groups(batches.epoch(self.epoch, self.batch), self.config.accumulation_steps)
        with contextlib.closing(groups):
            for group in groups:
                self.train_step(group)
                self.step += 1
                self.batch += len(group)
                self._after_step(sum(len(next(iter(batch.values()))) for batch in group))
        self._end_epoch()

    def _after_step(self, num_examples: int) -> None:
        loss = self._mean_loss() if self.progress.wants_loss() else None
        self.progress.advance(num_examples, loss)
        if self.signals.received is not None:
            self._stop(self.signals.received)
        if self._save_is_due():
            self._save()

    def _end_epoch(self) -> None:
        loss = self._mean_loss()
        training_seconds = self.epoch_seconds_before + time.monotonic() - self.epoch_started
        record: dict[str, Any] = {
            "epoch": self.epoch + 1,
            "step": self.step,
            "loss": loss,
            "learning_rate": float(self.schedule(self.step - 1)),
        }
        metrics = self._validate()
        if metrics is not None:
            record |= {f"validation_{name}": value for name, value in metrics.items()}
        record["seconds"] = training_seconds
        record["examples_per_second"] = self.task.batches.num_examples / max(training_seconds, 1e-9)
        self.records.append(record)
        self.progress.end_epoch(record)
        self.log.write(record)
        self.epoch, self.batch, self.epoch_seconds_before = self.epoch + 1, 0, 0.0
        self.train_step.loss_sum.assign(0.0)
        if self.signals.received is not None:
            self._stop(self.signals.received)
        if self._save_is_due() or self._ends():
            self._save()

    def _validate(self) -> Metrics | None:
        if self.task.validate is None:
            return None
        with self.train_step.averaged_weights():
            metrics = self.task.validate()
            if self.best is None or math.isnan(self.best) or metrics.first > self.best:
                self._keep_best(metrics.first)
        patience = self.config.patience
        since_best = self.epoch + 1 - (self.best_epoch or 0)
        self.stopped_early = bool(patience) and since_best >= patience and self.epoch + 1 < self.config.epochs
        return metrics

    def _keep_best(self, value: float) -> None:
        self.best, self.best_epoch = value, self.epoch + 1
        self.best_weights = [v.numpy() for v in self.task.model.variables]
        if self.checkpoint is not None:
            self.best_file = self.checkpoint.write_best(self.epoch + 1, self.best_weights)

    def _finish(self) -> History:
        self._set_head_only(False)
        if self.best_weights is not None:
            _assign(self.task.model.variables, self.best_weights)
        elif self.train_step.averages:
            _assign(self.train_step.averaged, [average.numpy() for average in self.train_step.averages])
        return History(
            records=tuple(self.records),
            best_epoch=self.best_epoch,
            wall_seconds=self._elapsed(),
            stopped_early=self.stopped_early,
            bad_records=tuple(str(bad) for bad in self.task.batches.bad_records),
        )

    def _set_head_only(self, on: bool) -> None:
        if self.task.set_head_only is not None and self.head_only != on:
            self.task.set_head_only(on)
            self.head_only = on
            self.train_step.compile()

    def _mean_loss(self) -> float:
        steps_before = self.records[-1]["step"] if self.records else 0
        loss = float(self.train_step.loss_sum.numpy()) / max(1, self.step - steps_before)
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"The loss is {loss} in step {self.step}. Lower the learning rate, clip gradients, or look for "
                "non-finite inputs."
            )
        return loss

    def _ends(self) -> bool:
        return self.epoch >= self.config.epochs or self.stopped_early

    # Saving and resuming.

    def _save_is_due(self) -> bool:
        if self.checkpoint is None:
            return False
        steps, minutes = self.config.checkpoint_steps, self.config.checkpoint_minutes
        by_steps = steps > 0 and self.step % steps == 0
        return by_steps or (minutes > 0 and time.monotonic() - self.last_saved >= 60 * minutes)

    def _save(self) -> None:
        if self.checkpoint is None:
            return
        self._mean_loss()  # raises where the weights are no longer worth keeping
        self.checkpoint.write(self._state())
        self.last_saved = time.monotonic()

    def _state(self) -> TrainingState:
        arrays = pack(
            {
                "model": [v.numpy() for v in self.task.model.variables],
                "optimizer": [v.numpy() for v in self.optimizer.variables],
                "averages": [v.numpy() for v in self.train_step.averages],
                "loss": [self.train_step.loss_sum.numpy().reshape(1)],
            }
        )
        in_epoch = time.monotonic() - self.epoch_started if self.batch else 0.0
        values = {
            "epoch": self.epoch,
            "batch": self.batch,
            "records": self.records,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_file": self.best_file,
            "stopped_early": self.stopped_early,
            "seconds": self._elapsed(),
            "epoch_seconds": self.epoch_seconds_before + in_epoch,
            "data": self.task.batches.state(),
            "fingerprint": self._fingerprint(),
        }
        return TrainingState(self.step, arrays, values)

    def _restore(self, state: TrainingState) -> None:
        assert self.checkpoint is not None
        _assign(self.task.model.variables, unpack(state.arrays, "model"))
        _assign(self.optimizer.variables, unpack(state.arrays, "optimizer"))
        _assign(self.train_step.averages, unpack(state.arrays, "averages"))
        self.train_step.loss_sum.assign(unpack(state.arrays, "loss")[0][0])
        values = state.values
        self.step, self.epoch, self.batch = state.step, values["epoch"], values["batch"]
        self.records = list(values["records"])
        self.best, self.best_epoch, self.best_file = values["best"], values["best_epoch"], values["best_file"]
        if self.best_file is not None:
            self.best_weights = self.checkpoint.read_best(self.best_file)
        self.stopped_early = values["stopped_early"]
        self.seconds_before, self.epoch_seconds_before = values["seconds"], values["epoch_seconds"]
        self.task.batches.restore(values["data"])
        logger.info("resumed at step %d from %s", self.step, self.checkpoint.path)

    def _state_to_resume(self) -> TrainingState | None:
        if self.checkpoint is None:
            return None
        state = self.checkpoint.latest()
        if state is None:
            return None
        if not self.options.resume:
            raise ValueError(
                f"{self.checkpoint.path} holds a run that stopped at step {state.step}. Go on with it "
                "(`resume=True`, on the command line --resume), or delete that directory to start anew."
            )
        _check_fingerprint(state.values["fingerprint"], self._fingerprint())
        return state

    def _fingerprint(self) -> dict[str, Any]:
        # How often a state is saved, and how much is cached, changes nothing in what comes out.
        free = {"checkpoint_minutes", "checkpoint_steps", "cache_gib"}
        training = {key: value for key, value in self.config.to_dict().items() if key not in free}
        return {**self.task.fingerprint, **{f"training.{key}": value for key, value in training.items()}}

    def _stop(self, number: int) -> None:
        assert self.checkpoint is not None
        self._save()
        raise TrainingInterrupted(
            f"{signal.Signals(number).name} received: training stopped after step {self.step} and its state was saved "
            f"in {self.checkpoint.path}. Resume with the same call and `resume=True` (on the command line: --resume)."
        )

    def _elapsed(self) -> float:
        return self.seconds_before + time.monotonic() - self.started


def _groups(batches: Iterator[Arrays], size: int) -> Generator[list[Arrays], None, None]:
    """Batches in groups of `size`, for one optimizer step each; the last group of an epoch may be shorter."""
    group: list[Arrays] = []
    try:
        for batch in batches:
            group.append(batch)
            if len(group) == size:
                yield group
                group = []
        if group:
            yield group
    finally:
        getattr(batches, "close", lambda: None)()


def _zeros_per_replica(variable: keras.Variable) -> tf.Variable:
    """Zeros in the shape of `variable`; each replica has values of its own."""
    zeros, on_read = tf.zeros(variable.shape, variable.dtype), tf.VariableSynchronization.ON_READ
    return tf.Variable(zeros, trainable=False, synchronization=on_read, aggregation=tf.VariableAggregation.SUM)


def _equal_parts(array: np.ndarray, num_parts: int) -> list[np.ndarray]:
    """`array` cut along its first axis; what is over is left out, since each replica's mean counts alike."""
    size = len(array) // num_parts
    if size == 0:
        raise ValueError(
            f"A batch of {len(array)} examples cannot be shared by {num_parts} devices. Use one device, or more data."
        )
    return [array[i * size : (i + 1) * size] for i in range(num_parts)]


def _assign(variables: Sequence[Any], values: Sequence[np.ndarray]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def _check_fingerprint(saved: dict[str, Any], present: dict[str, Any]) -> None:
    present = json.loads(json.dumps(present))  # as the saved one was: JSON has lists where Python has tuples
    changed = [key for key in sorted(saved.keys() | present.keys()) if saved.get(key) != present.get(key)]
    if changed:
        listed = ", ".join(f"{key} (was {saved.get(key)!r}, is {present.get(key)!r})" for key in changed)
        raise ValueError(
            f"The saved state belongs to another run; different: {listed}. Resume with the same data and options."
        )
