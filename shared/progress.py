"""What a person sees while training runs, and the log that a program reads.

On a terminal: one bar per epoch with examples/s and the time left. Elsewhere: a plain line now and then and one per
epoch, so that log files stay readable.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 30.0
_SECONDS_BETWEEN_REFRESHES = 0.5


class Progress:
    """Progress of one epoch after another, written to stderr; not where it is not `shown`."""

    def __init__(self, epochs: int, *, shown: bool = True) -> None:
        self._epochs = epochs
        self._shown = shown
        self._terminal = shown and sys.stderr.isatty()
        self._bar: tqdm[Any] | None = None
        self._last = 0.0

    def start_epoch(self, epoch: int, *, num_examples: int, done: int) -> None:
        """Begin epoch number `epoch` (from 1) of `num_examples`, of which `done` were seen before a resume."""
        self._title = f"epoch {epoch}/{self._epochs}"
        self._total, self._done, self._first = num_examples, done, done
        self._started = self._last = time.monotonic()
        if self._terminal:
            self._bar = tqdm(
                total=num_examples,
                initial=done,
                desc=self._title,
                unit=" examples",
                leave=False,
                dynamic_ncols=True,
                mininterval=_SECONDS_BETWEEN_REFRESHES,
            )

    def wants_loss(self) -> bool:
        """Whether it is time to show the loss again; reading it more often would hold up the device."""
        if not self._shown:
            return False
        pause = _SECONDS_BETWEEN_REFRESHES if self._terminal else _SECONDS_BETWEEN_LINES
        return time.monotonic() - self._last >= pause

    def advance(self, num_examples: int, loss: float | None = None) -> None:
        """Count `num_examples`; show `loss` where it is given."""
        self._done += num_examples
        if self._bar is not None:
            self._bar.update(num_examples)
        if loss is None:
            return
        self._last = time.monotonic()
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.4f}", refresh=False)
        else:
            self._line(f"{self._title}  {self._done}/{self._total} examples  loss {loss:.4f}  {self._pace()}")

    def end_epoch(self, record: dict[str, Any]) -> None:
        """Close the epoch with one line of its figures."""
        self.close()
        metrics = [
            f"{name.removeprefix('validation_')} {value:.4f}"
            for name, value in record.items()
            if name.startswith("validation_")
        ]
        figures = [f"loss {record['loss']:.4f}", *metrics, f"{record['examples_per_second']:.0f} examples/s"]
        self._line(f"{self._title}  " + "  ".join(figures) + f"  {record['seconds']:.1f} s")

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _pace(self) -> str:
        rate = (self._done - self._first) / max(1e-9, time.monotonic() - self._started)
        left = (self._total - self._done) / max(rate, 1e-9)
        return f"{rate:.0f} examples/s  {left:.0f} s left in epoch"

    def _line(self, text: str) -> None:
        if self._shown:
            print(text, file=sys.stderr, flush=True)


class TrainingLog:
    """One JSON line per epoch in `path`, and TensorBoard events beside it where TensorBoard is installed.

    `after_epoch` is handed a copy of each record, too.
    """

    def __init__(
        self,
        path: Path | None,
        records: Sequence[dict[str, Any]] = (),
        after_epoch: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self._path = path
        self._after_epoch = after_epoch
        self._events: Any = None
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        # Of a resumed run, `records` are the epochs in its state; the log of a killed run may be ahead of that.
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        if importlib.util.find_spec("tensorboard") is not None:
            import tensorflow as tf

            self._events = tf.summary.create_file_writer(str(path.with_suffix(".tensorboard")))

    def write(self, record: dict[str, Any]) -> None:
        """Append one epoch's record."""
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        if self._events is not None:
            self._write_events(record)
        if self._after_epoch is not None:
            self._after_epoch(dict(record))

    def _write_events(self, record: dict[str, Any]) -> None:
        import tensorflow as tf

        with self._events.as_default(step=record["step"]):
            for name, value in record.items():
                if isinstance(value, float):
                    tf.summary.scalar(name, value)
        self._events.flush()
