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
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from shared.checkpoint import CheckpointDirectory, TrainingState, pack, unpack
from shared.data import Arrays, InputPipeline, Loading
from shared.distribution import BatchShares, num_examples
from shared.fingerprint import data_fingerprint
from shared.optimizers import build_optimizer, build_schedule
from shared.pipeline import FitOptions, History, Metrics, Pipeline, TrainingInterrupted
from shared.profiling import Profiler
from shared.progress import Progress, TrainingLog
from shared.runtime import current_runtime
from shared.signals import StopSignals
from shared.train_step import TrainStep as TrainStep
from shared.train_step import assign
from shared.training_config import TrainingConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """What the loop needs to know of a task.

    `loss(batch)` runs the model in training mode on a batch of tensors (the dictionary that `batches` yields, as
    tensors) and gives the mean loss, a scalar; on several devices each gets its share of the batch, so a mean over
    anything but examples is made by `distribution.mean_over_batch`. `validate()` scores the model as it is, with
    `evaluate`'s own code; all workers call it together, and what the first gets counts.
    `set_head_only(on)` switches between training the head alone, in the first `freeze_epochs`, and all that shall be
    trained. `rate_factors` has one factor on the learning rate for each of the variables trained with it off.
    `row_wise` has large tables of which a step of adamw is to update only the rows that it read. `fingerprint`
    identifies config and data: a state resumes only under an equal one. With `varying_shapes` batches differ in shape,
    as those of texts do.
    """

    model: keras.Model
    loss: Callable[[dict[str, tf.Tensor]], tf.Tensor]
    batches: InputPipeline
    validate: Callable[[], Metrics] | None = None
    set_head_only: Callable[[bool], None] | None = None
    rate_factors: Sequence[float] | None = None
    row_wise: Sequence[keras.Variable] = ()
    fingerprint: dict[str, Any] = field(default_factory=dict)
    varying_shapes: bool = False


def run_training(task: TrainingTask, options: FitOptions) -> History:
    """Train `task.model` in place and return how it went; the model ends with its best weights.

    Of several workers, the first writes and shows; all score a part, and end with the same weights.

    Raises:
        WorkerLostError: where another worker died, hung, or stopped with an error.
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
    """How the validation set of a training run is loaded: as much kept and tolerated as of the training set.

    Of several workers each reads its part.
    """
    return Loading(
        cache_bytes=int(training.cache_gib * (1 << 30)),
        max_bad_share=training.max_bad_share,
        portion=current_runtime().workers.portion,
    )


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


class _Run:
    """One call of `fit`."""

    def __init__(self, task: TrainingTask, options: FitOptions) -> None:
        self.task = task
        self.config = options.training
        self.options = options
        self.workers = current_runtime().workers
        # Only the first of several workers has one: the others get what it read, and leave writing to it.
        self.checkpoint: CheckpointDirectory | None = None
        if options.checkpoint is not None and self.workers.is_first:
            self.checkpoint = CheckpointDirectory(options.checkpoint)
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
        # Of several workers: what any has found to be bad, which all leave out from the next epoch on.
        self.found_bad: dict[str, list[str]] = {}
        self.stopped_early = False
        self.seconds_before = 0.0
        self.epoch_seconds_before = 0.0

    def run(self) -> History:
        """Train to the end, or until stopped early or by a signal."""
        self.started = self.last_saved = time.monotonic()
        self.profiler = Profiler(self.options.profile if self.workers.is_first else None)
        with self.workers.together(self._how_to_go_on, wait=True):
            with self.profiler.phase("set-up"):
                state = self._state_to_resume()
                self._build()
                if state is not None:
                    self._restore(state)
            self._train()
            history = self._finish()
        self.profiler.write(self.task)
        return history

    def _train(self) -> None:
        self.progress = Progress(self.config.epochs, shown=self.workers.is_first)
        self.log = TrainingLog(
            self.options.log if self.workers.is_first else None, self.records, self.options.after_epoch
        )
        enabled, closing = self.options.checkpoint is not None, contextlib.closing
        with StopSignals(enabled=enabled) as self.signals, closing(self.progress), closing(self.profiler):
            while self.epoch < self.config.epochs and not self.stopped_early:
                self._run_epoch()

    def _build(self) -> None:
        model = self.task.model
        self.head_only = False
        if self.task.set_head_only is not None:
            self.task.set_head_only(False)
        schedule = build_schedule(self.config, self.steps_per_epoch)
        self.schedule = schedule
        with current_runtime().scope():
            self.optimizer = build_optimizer(
                self.config,
                model.trainable_variables,
                schedule,
                rate_factors=self.task.rate_factors,
                row_wise=self.task.row_wise,
            )
            self.train_step = TrainStep(self.task, self.optimizer, self.config)

    def _run_epoch(self) -> None:
        self._set_head_only(self.epoch < self.config.freeze_epochs)
        batches = self.task.batches
        self.epoch_started = time.monotonic()
        done = round(batches.num_examples * min(1.0, self.batch / batches.num_batches))
        self.progress.start_epoch(self.epoch + 1, num_examples=batches.num_examples, done=done)
        drawn = batches.drawn(current_runtime().portion, self.epoch, self.batch)
        groups = _groups(drawn, self.config.accumulation_steps)
        with contextlib.closing(groups):
            for group in self.profiler.timed(groups):
                group = self._agreed(group)
                self.profiler.run(self.train_step, group)
                self.step += 1
                self.batch += len(group)
                self._after_step(sum(map(num_examples, group)))
        self._end_epoch()

    def _agreed(self, group: list[Arrays | BatchShares]) -> list[Arrays | BatchShares]:
        """Batches with the numbers of examples that all workers have of them; where one was told to stop, all do."""
        if self.workers.count == 1:
            return group
        shares = [batch for batch in group if isinstance(batch, BatchShares)]
        found = {key: bad for key, bad in self.task.batches.found_bad().items() if key not in self.found_bad}
        notes = self.workers.exchange([self.signals.received, [sum(batch.sizes) for batch in shares], found])
        for _, _, found_there in notes:
            self.found_bad |= found_there
        self._stop_if_told(signal for signal, _, _ in notes)
        totals = np.sum([sizes for _, sizes, _ in notes], axis=0).tolist()
        return [replace(batch, num_examples=total) for batch, total in zip(shares, totals, strict=True)]

    def _after_step(self, num_examples: int) -> None:
        loss = self._mean_loss() if self.progress.wants_loss() else None
        self.progress.advance(num_examples, loss)
        if self.workers.count == 1:
            self._stop_if_told([self.signals.received])
        if self._save_is_due():
            self._save()

    def _end_epoch(self) -> None:
        if self.workers.count > 1:
            self.task.batches.agree([self.found_bad, *self.workers.exchange(self.task.batches.found_bad())])
        loss = self._mean_loss()
        training_seconds = self.epoch_seconds_before + time.monotonic() - self.epoch_started
        record: dict[str, Any] = {
            "epoch": self.epoch + 1,
            "step": self.step,
            "loss": loss,
            "learning_rate": float(self.schedule(self.step - 1)),
        }
        with self.profiler.phase("validation"):
            metrics = self._validate()
        if metrics is not None:
            record |= {f"validation_{name}": value for name, value in metrics.items()}
        record["seconds"] = training_seconds
        record["examples_per_second"] = self.task.batches.num_examples / max(training_seconds, 1e-9)
        self.records.append(record)
        with self.profiler.phase("logging"):
            self.progress.end_epoch(record)
            self.log.write(record)
        self.epoch, self.batch, self.epoch_seconds_before = self.epoch + 1, 0, 0.0
        self.train_step.loss_sum.assign(0.0)
        self._stop_if_told(self.workers.exchange(self.signals.received))
        if self._save_is_due() or self._ends():
            self._save()

    def _validate(self) -> Metrics | None:
        if self.task.validate is None:
            return None
        with self.train_step.averaged_weights():
            metrics = self._scored(self.task.validate)
            if self.best is None or math.isnan(self.best) or metrics.first > self.best:
                self._keep_best(metrics.first)
        patience = self.config.patience
        since_best = self.epoch + 1 - (self.best_epoch or 0)
        self.stopped_early = bool(patience) and since_best >= patience and self.epoch + 1 < self.config.epochs
        return metrics

    def _scored(self, validate: Callable[[], Metrics]) -> Metrics:
        """The scores by which all workers go: those of the first, of what all have answered."""
        with self.workers.acting_alone():  # what one builds to answer, another without examples does not
            own = {name: float(value) for name, value in validate().items()}
        return Metrics(self.workers.from_first(lambda: own))

    def _keep_best(self, value: float) -> None:
        self.best, self.best_epoch = value, self.epoch + 1
        self.best_weights = [v.numpy() for v in self.task.model.variables]
        if self.checkpoint is not None:
            self.best_file = self.checkpoint.write_best(self.epoch + 1, self.best_weights)

    def _finish(self) -> History:
        self._set_head_only(False)
        if self.best_weights is not None:
            assign(self.task.model.variables, self.best_weights)
        elif self.train_step.averages:
            assign(self.train_step.averaged, [average.numpy() for average in self.train_step.averages])
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
        with self.profiler.phase("checkpoint"):
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
            "found_bad": self.found_bad,
            "fingerprint": self._fingerprint(),
        }
        return TrainingState(self.step, arrays, values)

    def _restore(self, state: TrainingState) -> None:
        assign(self.task.model.variables, unpack(state.arrays, "model"))
        assign(self.optimizer.variables, unpack(state.arrays, "optimizer"))
        assign(self.train_step.averages, unpack(state.arrays, "averages"))
        self.train_step.loss_sum.assign(unpack(state.arrays, "loss")[0][0])
        values = state.values
        self.step, self.epoch, self.batch = state.step, values["epoch"], values["batch"]
        self.records = list(values["records"])
        self.best, self.best_epoch, self.best_file = values["best"], values["best_epoch"], values["best_file"]
        self.best_weights = unpack(state.arrays, "best") or None
        self.stopped_early = values["stopped_early"]
        self.seconds_before, self.epoch_seconds_before = values["seconds"], values["epoch_seconds"]
        self.task.batches.restore(values["data"])
        self.found_bad = dict(values.get("found_bad", {}))
        logger.info("resumed at step %d from %s", self.step, self.options.checkpoint)

    def _state_to_resume(self) -> TrainingState | None:
        """The state to go on from, which of several workers the first reads for all."""
        for fingerprint in self.workers.exchange(self._fingerprint()):
            _check_fingerprint(fingerprint, self._fingerprint(), whose="Another worker is at another")

        def read() -> tuple[tuple[int, dict[str, Any]] | None, dict[str, np.ndarray]]:
            state = self._own_state()
            return (None, {}) if state is None else ((state.step, state.values), state.arrays)

        found, arrays = self.workers.arrays_from_first(read)
        return None if found is None else TrainingState(found[0], arrays, found[1])

    def _own_state(self) -> TrainingState | None:
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
        _check_fingerprint(state.values["fingerprint"], self._fingerprint(), whose="The saved state belongs to another")
        best_file = state.values["best_file"]
        best = {} if best_file is None else pack({"best": self.checkpoint.read_best(best_file)})
        return TrainingState(state.step, {**state.arrays, **best}, state.values)

    def _fingerprint(self) -> dict[str, Any]:
        # How often a state is saved, and how much is cached, changes nothing in what comes out.
        free = {"checkpoint_minutes", "checkpoint_steps", "cache_gib"}
        training = {key: value for key, value in self.config.to_dict().items() if key not in free}
        return {**self.task.fingerprint, **{f"training.{key}": value for key, value in training.items()}}

    def _stop_if_told(self, signals: Iterable[int | None]) -> None:
        """Save and stop where this process, or another worker, has received a signal."""
        number = next((number for number in signals if number is not None), None)
        if number is None:
            return
        self._save()
        self.workers.exchange()  # nobody leaves before the state is saved: some schedulers then end the others
        raise TrainingInterrupted(
            f"{signal.Signals(number).name} received: training stopped after step {self.step} and its state was saved "
            f"in {self.options.checkpoint}. Resume with the same call and `resume=True` (on the command line: "
            "--resume)."
        )

    def _how_to_go_on(self) -> str:
        """What to do when another worker was lost."""
        if self.options.checkpoint is None:
            return "Start all workers again; without a checkpoint they start from the beginning."
        return (
            f"Start all workers again with the same call and `resume=True` (on the command line: --resume): they go on "
            f"from the last state in {self.options.checkpoint}."
        )

    def _elapsed(self) -> float:
        return self.seconds_before + time.monotonic() - self.started


def _groups(batches: Iterator[Arrays | BatchShares], size: int) -> Generator[list[Arrays | BatchShares], None, None]:
    """Batches in groups of `size`, for one optimizer step each; the last group of an epoch may be shorter."""
    group: list[Arrays | BatchShares] = []
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


def _check_fingerprint(saved: dict[str, Any], present: dict[str, Any], *, whose: str) -> None:
    present = json.loads(json.dumps(present))  # as the saved one was: JSON has lists where Python has tuples
    # A state may be older than some options: what it does not name was as it is by default.
    defaults = {"xla": False, **{f"training.{key}": value for key, value in TrainingConfig().to_dict().items()}}
    saved = {key: value for key, value in defaults.items() if key in present} | saved
    saved = json.loads(json.dumps(saved))
    changed = [key for key in sorted(saved.keys() | present.keys()) if saved.get(key) != present.get(key)]
    if changed:
        listed = ", ".join(f"{key} (was {saved.get(key)!r}, is {present.get(key)!r})" for key in changed)
        raise ValueError(f"{whose} run; different: {listed}. Resume with the same data and options.")
