from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys.rounds import run_epochs
from shared import Metrics, TrainingConfig, TrainingInterrupted
from shared.pipeline import FitOptions


class Counter:
    """A model whose only array counts its epochs."""

    def __init__(self) -> None:
        self.arrays = {"count": np.zeros(1, np.float32)}

    def epoch(self, number: int) -> float:
        assert self.arrays["count"][0] == number
        self.arrays = {"count": self.arrays["count"] + 1}
        return 1.0 / (1 + number)


def run(model: Counter, options: FitOptions, values: list[float] | None = None, **fingerprint: Any) -> Any:
    def validate() -> tuple[float, Metrics]:
        assert values is not None
        value = values[int(model.arrays["count"][0]) - 1]
        return value, Metrics({"good": value})

    return run_epochs(
        model, options, num_examples=10, fingerprint=fingerprint, validate=None if values is None else validate
    )


def options(epochs: int, patience: int = 0, **more: Any) -> FitOptions:
    return FitOptions(training=TrainingConfig(epochs=epochs, patience=patience), **more)


def test_the_best_epoch_is_kept_and_the_log_has_a_line_for_each(tmp_path: Path) -> None:
    model = Counter()
    history = run(model, options(4, log=tmp_path / "log.jsonl"), [0.1, 0.3, 0.2, 0.3])
    assert (history.best_epoch, model.arrays["count"][0], history.stopped_early) == (2, 2, False)
    assert history.losses == [1, 1 / 2, 1 / 3, 1 / 4]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["validation_good"] for line in lines] == [0.1, 0.3, 0.2, 0.3]


def test_without_validation_the_last_epoch_is_kept() -> None:
    model = Counter()
    history = run(model, options(3))
    assert (history.best_epoch, model.arrays["count"][0]) == (None, 3)


def test_patience_ends_a_run() -> None:
    model = Counter()
    history = run(model, options(9, patience=2), [0.1, 0.3, 0.2, 0.1, 0.9])
    assert (history.stopped_early, len(history.records), model.arrays["count"][0]) == (True, 4, 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_that_can_be_resumed(number: signal.Signals, tmp_path: Path) -> None:
    class Interrupted(Counter):
        def epoch(self, number_: int) -> float:
            if number_ == 2:
                os.kill(os.getpid(), number)
            return super().epoch(number_)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingInterrupted, match=r"state after its last whole epoch .* `resume=True`"):
        run(Interrupted(), options(5, checkpoint=tmp_path / "state"), [0.5, 0.1, 0.2, 0.3, 0.4], data="x")
    assert signal.getsignal(signal.SIGTERM) is before
    resumed = Counter()
    going_on = options(5, checkpoint=tmp_path / "state", resume=True)
    history = run(resumed, going_on, [0.5, 0.1, 0.2, 0.3, 0.4], data="x")
    assert (len(history.records), history.best_epoch, resumed.arrays["count"][0]) == (5, 1, 1)
    with pytest.raises(ValueError, match="of another run: data differ"):
        run(Counter(), going_on, data="y")


def test_a_loss_that_is_no_number_ends_a_run() -> None:
    class Lost(Counter):
        def epoch(self, number: int) -> float:
            return float("nan")

    with pytest.raises(FloatingPointError, match=r"nan in epoch 1\. Choose a lower learning rate"):
        run(Lost(), options(3))
