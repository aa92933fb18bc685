"""Signals that ask a training run to stop: noted, and obeyed once the running step is done."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class StopSignals:
    """Takes note of SIGTERM and SIGINT while training runs; a second one ends the process as usual."""

    def __init__(self, *, enabled: bool) -> None:
        # Python delivers signals to the main thread only.
        self._enabled = enabled and threading.current_thread() is threading.main_thread()
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if self._enabled:
            self._before = {n: signal.signal(n, self._note) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        self._put_back()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._put_back()

    def _put_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
