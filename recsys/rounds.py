"""The training of models that improve epoch by epoch in NumPy: validation, best state, log, and resuming.

A state is saved after each epoch, and what an epoch draws at random depends on the seed and its number alone: a run
that is resumed ends as an unbroken one.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from shared.checkpoint import CheckpointDirectory, TrainingState
from shared.pipeline import FitOptions, History, Metrics, TrainingInterrupted
from shared.progress import Progress, TrainingLog
from shared.runtime import current_runtime


class Trainer(Protocol):
    """A model in training: its state in arrays, and how one epoch changes them."""

    arrays: dict[str, np.ndarray]

    def epoch(self, number: int) -> float:
        """Train for one epoch, `number` from 0, and return its mean loss."""
        ...


@dataclass
class _Course:
    """How far a run is."""

    records: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int | None = None
    best_value: float = -np.inf


def run_epochs(
    trainer: Trainer,
    options: FitOptions,
    *,
    num_examples: int,
    fingerprint: dict[str, Any],
    validate: Callable[[], tuple[float, Metrics]] | None = None,
) -> History:
    """Train, and leave `trainer` with its best arrays; the last ones without `validate`.

    Args:
        trainer: is changed in place.
        options: epochs and patience; the directory of states, the log.
        num_examples: interactions in one epoch.
        fingerprint: of config and data; a state resumes only under an equal one.
        validate: gives the value that is to be large, and the metrics to be shown.

    Raises:
        TrainingInterrupted: at SIGINT or SIGTERM, where there is a directory of states.
        ValueError: for a state of another run, and where several workers would write states to one place.
        FloatingPointError: where the loss is no longer finite.
    """
    if options.checkpoint is not None:
        current_runtime().workers.require_alone("This model")
    started = time.monotonic()
    states = None if options.checkpoint is None else CheckpointDirectory(options.checkpoint)
    course, best = _resumed(states, options, trainer, fingerprint)
    progress = Progress(options.training.epochs)
    log = TrainingLog(options.log, course.records, options.after_epoch)
    with _interruptible(states), contextlib.closing(progress):
        while len(course.records) < options.training.epochs and not _stops(course, options):
            number = len(course.records)
            progress.start_epoch(number + 1, num_examples=num_examples, done=0)
            begun = time.monotonic()
            loss = trainer.epoch(number)
            if not np.isfinite(loss):
                raise FloatingPointError(f"The loss is {loss} in epoch {number + 1}. Choose a lower learning rate.")
            seconds = time.monotonic() - begun
            record: dict[str, Any] = {"epoch": number + 1, "step": number + 1, "loss": loss}
            if validate is not None:
                value, metrics = validate()
                record |= {f"validation_{name}": figure for name, figure in metrics.items()}
                if value > course.best_value:
                    course.best_value, course.best_epoch = value, number + 1
                    best = {name: array.copy() for name, array in trainer.arrays.items()}
            record |= {"seconds": seconds, "examples_per_second": num_examples / max(seconds, 1e-9)}
            course.records.append(record)
            progress.end_epoch(record)
            log.write(record)
            if states is not None:
                states.write(_state(course, trainer, best, fingerprint))
    if best:
        trainer.arrays = best
    return History(
        records=tuple(course.records),
        best_epoch=course.best_epoch,
        wall_seconds=time.monotonic() - started,
        stopped_early=len(course.records) < options.training.epochs,
    )


def _stops(course: _Course, options: FitOptions) -> bool:
    patience = options.training.patience
    return bool(patience) and course.best_epoch is not None and len(course.records) - course.best_epoch >= patience


def _state(
    course: _Course, trainer: Trainer, best: dict[str, np.ndarray], fingerprint: dict[str, Any]
) -> TrainingState:
    arrays = {f"now/{name}": array for name, array in trainer.arrays.items()}
    arrays |= {f"best/{name}": array for name, array in best.items()}
    values = {
        "records": course.records,
        "best_epoch": course.best_epoch,
        "best_value": None if course.best_epoch is None else course.best_value,
        "fingerprint": fingerprint,
    }
    return TrainingState(len(course.records), {name: np.ascontiguousarray(a) for name, a in arrays.items()}, values)


def _resumed(
    states: CheckpointDirectory | None, options: FitOptions, trainer: Trainer, fingerprint: dict[str, Any]
) -> tuple[_Course, dict[str, np.ndarray]]:
    state = None if states is None else states.latest()
    if state is None:
        return _Course(), {}
    if not options.resume:
        raise ValueError(f"{options.checkpoint} holds the state of another run. Resume it, or remove the directory.")
    kept = state.values["fingerprint"]
    differing = [name for name in fingerprint if kept.get(name) != fingerprint[name]]
    if differing:
        raise ValueError(
            f"The state in {options.checkpoint} is of another run: {', '.join(differing)} differ. Give the same config "
            "and data, or remove the directory."
        )
    trainer.arrays = _group(state, "now")
    course = _Course(state.values["records"], state.values["best_epoch"])
    if state.values["best_value"] is not None:
        course.best_value = state.values["best_value"]
    return course, _group(state, "best")


def _group(state: TrainingState, name: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(f"{name}/"): a for key, a in state.arrays.items() if key.startswith(f"{name}/")}


@contextlib.contextmanager
def _interruptible(states: CheckpointDirectory | None) -> Iterator[None]:
    """With states to resume from, SIGTERM and SIGINT end a run with a message; the running epoch is lost."""
    if states is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt as stop:
        raise TrainingInterrupted(
            f"Interrupted: training stopped, and the state after its last whole epoch is in {states.path}. Call `fit` "
            "with `resume=True` to go on."
        ) from stop
    finally:
        signal.signal(signal.SIGTERM, before)
