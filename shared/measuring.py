"""Precision and XLA picked by measurement: some training steps of the very model, on its own batches.

Keras fixes the precision of a model when it is built. Each precision is therefore tried with a pipeline of its own,
which the caller's `build` makes under that precision; all of them are gone afterwards.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import logging
import math
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.checkpoint import CheckpointDirectory
from shared.distribution import num_examples, parts_of
from shared.runtime import Runtime, RuntimeConfig, activate, activated, current_runtime
from shared.training_config import TrainingConfig

if TYPE_CHECKING:
    from shared.data import Arrays
    from shared.distribution import BatchShares
    from shared.training import TrainingTask

logger = logging.getLogger(__name__)

# A choice has to shorten the planned run by this factor: timings on shared machines scatter by a few per cent.
_WORTHWHILE = 1.05
# Among choices that do, the simplest within this factor of the best is taken.
_TIED = 1.03
# What is slower than this after one round is not timed any further.
_HOPELESS = 1.5
# How far the mean loss may be from float32's: dropout draws other numbers under XLA.
_LOSS_TOLERANCE = 0.1
_ROUNDS = 5
_STEPS = 3
# Batches among which a task whose batches differ in shape has its middle one looked up.
_LOOKED_AT = 8


@dataclass(frozen=True)
class Trial:
    """What was measured of one choice.

    `first_seconds` is the first step, with tracing and compilation; `step_seconds` the median of later ones. `relative`
    is the median over rounds of the step's time as a share of float32's without XLA in the same round. `loss` is the
    mean over the first steps. Where `note` says why a choice is out, figures may be missing (NaN).
    """

    precision: str
    xla: bool
    first_seconds: float = math.nan
    step_seconds: float = math.nan
    relative: float = math.nan
    loss: float = math.nan
    note: str = ""

    def seconds_of_run(self, num_steps: int, num_shapes: int, default: Trial) -> float:
        """Seconds that so many steps would take; under XLA each shape is compiled once."""
        compiling = max(0.0, self.first_seconds - self.step_seconds)
        return (num_shapes if self.xla else 1) * compiling + num_steps * self.relative * default.step_seconds


@dataclass(frozen=True)
class RuntimeChoice:
    """The runtime that was picked, now in effect, and what led to it; as a text it is a table."""

    runtime: Runtime
    trials: tuple[Trial, ...] = ()
    planned_steps: int = 0
    seconds: float = 0.0
    reason: str = ""

    def __str__(self) -> str:
        xla = "on" if self.runtime.xla else "off"
        if not self.trials:
            return f"precision {self.runtime.precision}, xla {xla}: {self.reason}"
        lines = [f"{'precision':16s}{'xla':5s}{'ms/step':>10s}{'relative':>10s}{'first step':>12s}{'loss':>10s}"]
        lines += [self._row(trial) for trial in self.trials]
        lines.append(
            f"picked {self.runtime.precision}, xla {xla}, for {self.planned_steps} steps; "
            f"measured in {self.seconds:.0f} s"
        )
        return "\n".join(lines)

    def _row(self, trial: Trial) -> str:
        name = f"{trial.precision:16s}{'on' if trial.xla else 'off':5s}"
        figures = ""
        if math.isfinite(trial.step_seconds):
            figures = (
                f"{1e3 * trial.step_seconds:10.1f}{trial.relative:10.2f}{trial.first_seconds:10.1f} s{trial.loss:10.4f}"
            )
        picked = (trial.precision, trial.xla) == (self.runtime.precision, self.runtime.xla)
        return f"{name}{figures}{'  picked' if picked else f'  {trial.note}' if trial.note else ''}"


def choose_runtime(
    build: Callable[[], Any],
    train: Any,
    *,
    training: TrainingConfig | None = None,
    config: RuntimeConfig | None = None,
    checkpoint: str | Path | None = None,
    precisions: Sequence[str] | None = None,
    max_seconds: float = 90.0,
    task_options: Mapping[str, Any] | None = None,
) -> RuntimeChoice:
    """Put a `RuntimeConfig` into effect whose `auto`s are decided by timing steps of the pipeline that `build` makes.

    Precisions are float32, and what the hardware computes fast: bfloat16, and on GPUs float16 with loss scaling. Each
    choice takes the same steps on the same batches, in turns. One is picked only where the planned run gets shorter by
    more than 5 %, and its losses are finite and close to float32's; of equal ones float32 without XLA, then the
    simplest. Weights, data order and random numbers of a pipeline that is built afterwards are as if nothing had been
    measured.

    Args:
        build: makes the pipeline, as it will be made for training; called once for each precision.
        train: the training set.
        training: the planned run.
        config: what is not `auto` is taken as it is; both `auto` where left out.
        checkpoint: the run's checkpoint directory. A state in it decides what is `auto`: a run goes on as it began.
        precisions: try these, whatever the hardware has.
        max_seconds: when to stop measuring. A step that has begun is finished, and float32 is always timed.
        task_options: further keywords of the pipeline's `training_task`, such as tables of features.

    Raises:
        ValueError: as `build` and `training_task` raise it, and as `RuntimeConfig.apply` does.

    Example:
        >>> def build():
        ...     return TextClassifier.from_preset("minilm_l6", labels="from_data")
        >>> print(choose_runtime(build, train, training=training))                       # doctest: +SKIP
        >>> classifier = build()                                                         # doctest: +SKIP
    """
    config = config or RuntimeConfig(precision="auto", xla="auto")
    fixed: dict[str, Any] = {
        "precision": "float32" if config.precision == "auto" else config.precision,
        "xla": "off" if config.xla == "auto" else config.xla,
    }
    base = dataclasses.replace(config.replace(**fixed).apply(), config=config)
    saved = None if checkpoint is None else CheckpointDirectory(Path(checkpoint)).latest_values()
    if "auto" not in (config.precision, config.xla):
        return _chosen(base, base.precision, base.xla, reason="as it was asked for")
    if saved is not None:
        began = saved["fingerprint"]
        precision = str(began["precision"]) if config.precision == "auto" else base.precision
        xla = bool(began.get("xla", False)) if config.xla == "auto" else base.xla
        return _chosen(base, precision, xla, reason="as the run began that is resumed")
    if base.workers.count > 1:
        raise ValueError(
            "Precision and XLA are measured by one process; several workers might pick differently. Measure with "
            "workers=off, and name both (--precision, --xla)."
        )
    started = time.monotonic()
    candidates, left_out = _candidates(config, base, precisions)
    with _left_as_it_was():
        trials, num_steps, num_shapes = _measured(
            lambda: _task(build(), train, training or TrainingConfig(), task_options or {}),
            training or TrainingConfig(),
            candidates,
            started + max_seconds,
        )
    picked = _picked(trials, num_steps, num_shapes)
    return _chosen(
        base,
        picked.precision,
        picked.xla,
        trials=(*trials, *left_out),
        planned_steps=num_steps,
        seconds=time.monotonic() - started,
    )


def _chosen(base: Runtime, precision: str, xla: bool, **what_led_to_it: Any) -> RuntimeChoice:
    runtime = activate(dataclasses.replace(base, precision=precision, xla=xla))
    choice = RuntimeChoice(runtime, **what_led_to_it)
    logger.info("%s", choice)
    return choice


def _candidates(
    config: RuntimeConfig, base: Runtime, precisions: Sequence[str] | None
) -> tuple[list[Runtime], list[Trial]]:
    """What is timed, the default first and the costly to compile last; and what is not, with the reason."""
    left_out: list[Trial] = []
    if config.precision != "auto":
        chosen = [base.precision]
    elif precisions is not None:
        chosen = list(dict.fromkeys(("float32", *precisions)))
    else:
        reasons = _hardware_without()
        chosen = ["float32", *(precision for precision, reason in reasons.items() if not reason)]
        left_out = [
            Trial(precision, False, note=f"not timed: {reason}") for precision, reason in reasons.items() if reason
        ]
    switches = [False, True] if config.xla == "auto" else [base.xla]
    return [dataclasses.replace(base, precision=p, xla=xla) for xla in switches for p in chosen], left_out


def _hardware_without() -> dict[str, str]:
    """For each reduced precision why it is no use on this machine's devices; empty where it may be."""
    import tensorflow as tf

    if not tf.config.list_logical_devices("GPU"):
        found = _cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"}
        return {
            "mixed_bfloat16": "" if found else "this CPU has no instructions for it (AVX-512 BF16, AMX)",
            "mixed_float16": "it is for GPUs",
        }
    details = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.get_visible_devices("GPU")]
    capability = min(detail.get("compute_capability", (0, 0)) for detail in details)
    # Matrix units for float16 came with compute capability 7.0 (V100), for bfloat16 with 8.0 (A100).
    needed = {"mixed_bfloat16": (8, 0), "mixed_float16": (7, 0)}
    return {
        precision: "" if capability >= least else f"compute capability {capability} is below {least}"
        for precision, least in needed.items()
    }


def _cpu_flags() -> set[str]:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return {"bf16"} if (platform.system(), platform.machine()) == ("Darwin", "arm64") else set()
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    return {flag for line in lines if line.lower().startswith(("flags", "features")) for flag in line.split()}


@contextlib.contextmanager
def _left_as_it_was() -> Iterator[None]:
    """Random numbers and the runtime are afterwards as before; what trials log, the run itself will log."""
    states, level = (random.getstate(), np.random.get_state()), logging.root.manager.disable
    logging.disable(max(level, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(level)
        random.setstate(states[0])
        np.random.set_state(states[1])
        gc.collect()  # models and their compiled functions refer to each other


# Timing.


def _measured(
    new_task: Callable[[], TrainingTask], training: TrainingConfig, candidates: Sequence[Runtime], deadline: float
) -> tuple[list[Trial], int, int]:
    """A trial for each candidate, the steps of the planned run, and how many shapes its batches have at least."""
    tasks: dict[str, _Subject] = {}
    contenders: list[_Contender] = []
    trials = {(runtime.precision, runtime.xla): Trial(runtime.precision, runtime.xla) for runtime in candidates}
    for number, runtime in enumerate(candidates):
        key = (runtime.precision, runtime.xla)
        if number and time.monotonic() > deadline:
            trials[key] = dataclasses.replace(trials[key], note="not timed: no time left")
            continue
        with activated(runtime), _failures(trials, key, allowed=number > 0):
            if runtime.precision not in tasks:
                tasks[runtime.precision] = _Subject(new_task())
            contender = _Contender(tasks[runtime.precision], runtime, training)
            contender.warm_up()
            contenders.append(contender)
    for turn in range(_ROUNDS):
        if turn and time.monotonic() > deadline:
            break
        for contender in contenders:
            key = (contender.runtime.precision, contender.runtime.xla)
            if not trials[key].note:
                with activated(contender.runtime), _failures(trials, key, allowed=contender is not contenders[0]):
                    contender.take_turn()
            if contender.relative_to(contenders[0]) > _HOPELESS:
                trials[key] = dataclasses.replace(trials[key], note="slower")
    for contender in contenders:
        trial = contender.trial(contenders[0])
        key = (trial.precision, trial.xla)
        trials[key] = dataclasses.replace(trial, note=trials[key].note or _unsound(trial.loss, contenders[0].loss))
    first = contenders[0].subject
    return list(trials.values()), first.planned_steps(training), max(c.num_shapes for c in contenders)


def _task(pipeline: Any, train: Any, training: TrainingConfig, options: Mapping[str, Any]) -> TrainingTask:
    if not hasattr(pipeline, "training_task"):
        raise ValueError(
            f"`auto` is for pipelines that train in steps, which {type(pipeline).__name__} does not: name the "
            "precision, and xla on or off."
        )
    task: TrainingTask = pipeline.training_task(train, training, **options)
    return task


@contextlib.contextmanager
def _failures(trials: dict[tuple[str, bool], Trial], key: tuple[str, bool], *, allowed: bool) -> Iterator[None]:
    """A candidate that TensorFlow refuses, or that has no room in memory, is out; the default has to work."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        if not allowed:
            raise
        trials[key] = dataclasses.replace(
            trials[key], note=f"failed: {str(error.message).strip().splitlines()[0][:80]}"
        )


def _unsound(loss: float, expected: float) -> str:
    if not math.isfinite(loss):
        return "loss not finite"
    return "loss differs" if abs(loss - expected) > _LOSS_TOLERANCE * max(abs(expected), _LOSS_TOLERANCE) else ""


class _Subject:
    """A task in one precision, and its weights before anything was tried."""

    def __init__(self, task: TrainingTask) -> None:
        self.task = task
        self.start = [variable.numpy() for variable in task.model.variables]
        if task.set_head_only is not None:
            task.set_head_only(False)

    def batches(self) -> list[Arrays | BatchShares]:
        """The first batches, as the runtime in effect makes them."""
        count = _LOOKED_AT if self.task.varying_shapes else _STEPS
        drawn = self.task.batches.drawn(current_runtime().portion)
        with contextlib.closing(drawn) as batches:  # type: ignore[type-var]
            return list(itertools.islice(batches, count))

    def planned_steps(self, training: TrainingConfig) -> int:
        """Steps of the planned run, if its batches are as large as the first."""
        sizes = [num_examples(batch) for batch in self.batches()]
        per_step = statistics.mean(sizes) * training.accumulation_steps
        return training.epochs * max(1, math.ceil(self.task.batches.num_examples / per_step))

    def put_back(self) -> None:
        """Give the model its first weights."""
        for variable, value in zip(self.task.model.variables, self.start, strict=True):
            variable.assign(value)


class _Contender:
    """One candidate, taking its turns."""

    def __init__(self, subject: _Subject, runtime: Runtime, training: TrainingConfig) -> None:
        from shared.optimizers import build_optimizer, build_schedule
        from shared.training import TrainStep

        self.subject, self.runtime = subject, runtime
        task, config = subject.task, training.replace(accumulation_steps=1)
        schedule = build_schedule(config, max(1, subject.planned_steps(training) // training.epochs))
        with runtime.scope():
            optimizer = build_optimizer(
                config,
                task.model.trainable_variables,
                schedule,
                rate_factors=task.rate_factors,
                row_wise=task.row_wise,
            )
            self._step = TrainStep(task, optimizer, config)
        batches = subject.batches()
        arrays = [[array for part in parts_of(batch) for array in part.values()] for batch in batches]
        self.num_shapes = len({tuple(array.shape for array in some) for some in arrays})
        if task.varying_shapes:
            # One shape, for XLA compiles each: that of the middle one, which all candidates see alike.
            order = sorted(range(len(batches)), key=lambda i: sum(array.size for array in arrays[i]))
            batches = [batches[order[len(order) // 2]]]
        self._batches = [batches[i % len(batches)] for i in range(_STEPS)]
        self.seconds: list[float] = []
        self.first_seconds = self.loss = math.nan

    def warm_up(self) -> None:
        """The first steps: tracing, compilation, and the losses that are compared."""
        self.subject.put_back()
        self.first_seconds = self._run(self._batches[:1])
        losses = [self._loss()]
        for batch in self._batches[1:]:
            self._run([batch])
            losses.append(self._loss())
        self.loss = statistics.mean(losses)

    def take_turn(self) -> None:
        """Time the same steps once more."""
        self.subject.put_back()
        self.seconds.append(self._run(self._batches) / len(self._batches))
        if not math.isfinite(self._loss()):
            self.loss = math.nan

    def relative_to(self, default: _Contender) -> float:
        """Median over rounds of the time as a share of the default's."""
        ratios = [mine / other for mine, other in zip(self.seconds, default.seconds, strict=False)]
        return statistics.median(ratios) if ratios else math.nan

    def trial(self, default: _Contender) -> Trial:
        """What was measured."""
        return Trial(
            self.runtime.precision,
            self.runtime.xla,
            first_seconds=self.first_seconds,
            step_seconds=statistics.median(self.seconds) if self.seconds else math.nan,
            relative=self.relative_to(default),
            loss=self.loss,
        )

    def _run(self, batches: Sequence[Arrays | BatchShares]) -> float:
        self._step.loss_sum.assign(0.0)
        start = time.perf_counter()
        for batch in batches:
            self._step([batch])
        self._loss()  # waits for the device
        return time.perf_counter() - start

    def _loss(self) -> float:
        return float(self._step.loss_sum.numpy())


def _picked(trials: Sequence[Trial], num_steps: int, num_shapes: int) -> Trial:
    """The default (the first), or the simplest of the choices that are clearly faster over the planned run."""
    default = trials[0]
    seconds = {id(trial): trial.seconds_of_run(num_steps, num_shapes, default) for trial in trials if not trial.note}
    slowest = seconds[id(default)] / _WORTHWHILE
    faster = [trial for trial in trials if seconds.get(id(trial), math.inf) <= slowest]
    if not faster:
        return default
    best = min(seconds[id(trial)] for trial in faster)
    tied = [trial for trial in faster if seconds[id(trial)] <= _TIED * best]
    return min(tied, key=lambda trial: (trial.precision != default.precision) + (trial.xla != default.xla))
