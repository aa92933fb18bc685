"""Messages between the workers of one training: agreement, values of all for all, and word of those that died.

TensorFlow adds up gradients; what the workers have to agree on beside goes this way, over TCP through worker 0: a
dozen bytes a step, and after an epoch the answers to the validation set. Each end sends a beat every two seconds, so
that a worker that died or hangs is noticed within a bounded time whatever the others are doing. Messages are JSON and
arrays in the safetensors format; nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_BEATS = 2.0
# How long a worker tries to reach worker 0, and worker 0 waits for the others; they have met in TensorFlow by then.
_SECONDS_TO_CONNECT, _SECONDS_TO_GREET = 60.0, 5.0
_HEADER = struct.Struct(">cQ")
_HELLO, _BEAT, _VALUE, _FAILURE, _BYE = b"H", b"B", b"V", b"F", b"Q"
# More than any state; a length above it is noise, not a message.
_LONGEST = 1 << 40
# Bytes that are sent at a time: a timeout is for one slice, so that a large message may take as long as it takes.
_SLICE = 1 << 20


class WorkerLostError(RuntimeError):
    """Another worker of this training died or stopped with an error; the message names it."""


class Channel:
    """This worker's end. `exchange`, `to_first` and `from_first` are called by all workers in the same order.

    Args:
        index: number of this worker.
        count: how many there are.
        silence: seconds without a beat after which a worker counts as lost.
        on_loss: called once, on another thread, with the message that says who was lost.
    """

    def __init__(self, index: int, count: int, *, silence: float, on_loss: Callable[[str], None]) -> None:
        self.index, self.count = index, count
        self._silence = silence
        self._on_loss = on_loss
        self._links: dict[int, _Link] = {}
        self._failure: str | None = None
        self._lock = threading.Lock()
        self._left: set[int] = set()
        self._closing = threading.Event()
        self._failed = threading.Event()
        self._number = 0
        # Whether the end of another worker is a loss; else it has done its part.
        self.watching = False

    @property
    def failure(self) -> str | None:
        """Which worker was lost, and how; None while all is well."""
        return self._failure

    # Connecting.

    def accept(self, listener: socket.socket, token: str) -> None:
        """Worker 0: take up the connections of all others, each of which has to say `token`."""
        listener.settimeout(_SECONDS_TO_CONNECT)
        try:
            while len(self._links) < self.count - 1:
                link = _Link(listener.accept()[0])
                index = link.greeting(token)
                if index is None or index in self._links or not 0 < index < self.count:
                    link.close()
                else:
                    self._links[index] = link
        except TimeoutError as error:
            missing = sorted(set(range(1, self.count)) - set(self._links))
            raise WorkerLostError(f"Worker {missing[0]} did not connect to worker 0.") from error
        finally:
            listener.close()
        self._start()

    def connect(self, host: str, port: int, token: str) -> None:
        """The others: connect to worker 0."""
        try:
            link = _Link(socket.create_connection((host, port), timeout=_SECONDS_TO_CONNECT))
        except OSError as error:
            raise WorkerLostError(f"Worker {self.index} cannot reach worker 0 at {host}:{port} ({error}).") from error
        link.send(_HELLO, json.dumps({"index": self.index, "token": token}).encode())
        self._links[0] = link
        self._start()

    def _start(self) -> None:
        for index, link in self._links.items():
            # Beats on a thread for each: one that is busy with a large message must not silence the others.
            threading.Thread(target=self._beat, args=(index,), name="worker-beats", daemon=True).start()
            threading.Thread(target=self._listen, args=(index, link), name=f"worker-{index}", daemon=True).start()

    # What all workers call together.

    def exchange(self, value: Any = None) -> list[Any]:
        """The plain values (JSON) that all workers give, by worker, once all have given theirs; so also a barrier."""
        self._number += 1
        if self.index == 0:
            values = [value, *(self._received(index)[0] for index in range(1, self.count))]
            self._send_all(_packed(self._number, values, {}))
            return values
        self._send(0, _VALUE, _packed(self._number, value, {}))
        everyone: list[Any] = self._received(0)[0]
        return everyone

    def from_first(
        self, value: Any = None, arrays: Mapping[str, np.ndarray] | None = None
    ) -> tuple[Any, dict[str, np.ndarray]]:
        """What worker 0 gives, a plain value and arrays, for all; the others wait for it, however long it takes."""
        self._number += 1
        if self.index == 0:
            self._send_all(_packed(self._number, value, arrays or {}))
            return value, dict(arrays or {})
        return self._received(0)

    def to_first(self, arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        """For worker 0 the arrays, of numbers or texts, that all workers give, by worker; for the others nothing."""
        self._number += 1
        if self.index == 0:
            return [dict(arrays), *(_with_texts(*self._received(index)) for index in range(1, self.count))]
        texts = {name: array.tolist() for name, array in arrays.items() if array.dtype.kind in "OU"}
        numbers = {name: array for name, array in arrays.items() if name not in texts}
        self._send(0, _VALUE, _packed(self._number, texts, numbers))
        return []

    def _received(self, index: int) -> tuple[Any, dict[str, np.ndarray]]:
        while True:
            self.check()
            try:
                number, value, arrays = _unpacked(self._links[index].values.get(timeout=0.5))
            except queue.Empty:
                if index in self._left and self._links[index].values.empty():
                    self._lose(f"worker {index} ended before the training was over")
                continue
            if number != self._number:
                self._lose(f"worker {index} is at message {number} where worker {self.index} is at {self._number}")
                continue
            return value, arrays

    def check(self, *, all_there: bool = False) -> None:
        """Raise if a worker was lost; with `all_there` also if one has ended in order.

        Raises:
            WorkerLostError: with who it was.
        """
        if self._failure is None and all_there and self._left:
            self._lose(f"worker {min(self._left)} ended before the training was over")
        if self._failure is not None:
            raise WorkerLostError(self._failure)

    def wait_for_failure(self, seconds: float) -> None:
        """Wait for word of a worker that was lost, but not longer."""
        self._failed.wait(seconds)

    # Ends, good and bad.

    def fail(self, reason: str) -> None:
        """Tell the others that this worker stops with an error."""
        self._closing.set()
        self._tell(f"worker {self.index} stopped: {reason}")

    def leave(self) -> None:
        """Say that this worker is done, and wait until all are; what worker 0 still does takes as long as it takes."""
        self._closing.set()
        for index in self._links:
            self._send(index, _BYE, b"")
        while self._failure is None and len(self._left) < len(self._links):
            time.sleep(0.02)

    def close(self) -> None:
        """Close the connections."""
        for link in self._links.values():
            link.close()

    def _tell(self, failure: str, *, except_for: int | None = None) -> None:
        for index in self._links:
            if index != except_for:
                self._send(index, _FAILURE, failure.encode())

    def _lose(self, failure: str, *, by: int | None = None) -> None:
        with self._lock:
            if self._failure is not None:
                return
            self._failure = failure
        self._failed.set()
        if self.index == 0:
            self._tell(failure, except_for=by)  # they are connected with worker 0 only
        if self.watching and not self._closing.is_set():
            self._on_loss(failure)

    # Threads.

    def _beat(self, index: int) -> None:
        while self._failure is None:
            self._send(index, _BEAT, b"")
            time.sleep(SECONDS_BETWEEN_BEATS)

    def _listen(self, index: int, link: _Link) -> None:
        while True:
            try:
                kind, payload = link.receive(self._silence)
            except TimeoutError:
                self._lose(f"worker {index} has been silent for {self._silence:g} s", by=index)
                return
            except OSError:
                if index not in self._left:
                    self._lose(f"worker {index} died: its connection is closed", by=index)
                return
            if kind == _VALUE:
                link.values.put(payload)
            elif kind == _BYE:
                self._left.add(index)
                if self.watching:
                    self._lose(f"worker {index} ended before the training was over", by=index)
            elif kind == _FAILURE:
                self._lose(payload.decode(errors="replace"), by=index)
                return

    def _send_all(self, payload: bytes) -> None:
        for index in self._links:
            self._send(index, _VALUE, payload)

    def _send(self, index: int, kind: bytes, payload: bytes) -> None:
        # Whoever listens at this connection hears of its end, too, and says so.
        try:
            self._links[index].send(kind, payload)
        except OSError:
            logger.debug("worker %d cannot be told", index)


class _Link:
    """One connection: whole messages out, under a lock, and in."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = connection
        self._lock = threading.Lock()
        self.values: queue.Queue[bytes] = queue.Queue()

    def send(self, kind: bytes, payload: bytes) -> None:
        """Send a message; where that fails the connection ends, for nothing can follow half a message.

        Raises:
            TimeoutError: where the other end takes nothing for the time that `receive` was given.
            OSError: where the connection is closed.
        """
        with self._lock:
            try:
                rest = memoryview(_HEADER.pack(kind, len(payload)) + payload)
                while rest:
                    rest = rest[self._connection.send(rest[:_SLICE]) :]
            except OSError:
                self._hang_up()
                raise

    def greeting(self, token: str) -> int | None:
        """The number of a worker that says who it is and knows `token`; None for any other caller."""
        try:
            kind, payload = self.receive(_SECONDS_TO_GREET, longest=1024)
            hello = json.loads(payload)
            return int(hello["index"]) if kind == _HELLO and hello["token"] == token else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def receive(self, timeout: float, *, longest: int = _LONGEST) -> tuple[bytes, bytes]:
        """The next message.

        Raises:
            TimeoutError: where nothing comes for `timeout` seconds.
            OSError: where the connection is closed.
        """
        self._connection.settimeout(timeout)
        kind, length = _HEADER.unpack(self._bytes(_HEADER.size))
        if length > longest:
            raise ConnectionError("not a message")
        return kind, self._bytes(length)

    def _bytes(self, count: int) -> bytes:
        parts: list[bytes] = []
        while count > 0:
            part = self._connection.recv(min(count, _SLICE))
            if not part:
                raise ConnectionError("closed")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        self._hang_up()
        self._connection.close()

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)  # wakes whoever listens at it


def _packed(number: int, value: Any, arrays: Mapping[str, np.ndarray]) -> bytes:
    """A message: the length of its JSON, the JSON, and the arrays as safetensors."""
    text = json.dumps([number, value]).encode()
    return struct.pack(">Q", len(text)) + text + (_saved(arrays) if arrays else b"")


def _saved(arrays: Mapping[str, np.ndarray]) -> bytes:
    from safetensors.numpy import save

    data: bytes = save({name: np.array(array, order="C") for name, array in arrays.items()})
    return data


def _with_texts(texts: Mapping[str, list[str]], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {**arrays, **{name: np.array(values, object) for name, values in texts.items()}}


def _unpacked(payload: bytes) -> tuple[int, Any, dict[str, np.ndarray]]:
    from safetensors.numpy import load

    (length,) = struct.unpack_from(">Q", payload)
    number, value = json.loads(payload[8 : 8 + length])
    arrays = load(payload[8 + length :]) if len(payload) > 8 + length else {}
    return number, value, arrays


def listening_socket(host: str = "") -> tuple[socket.socket, int]:
    """A socket for worker 0, and its port: open to this machine only where `host` is this machine's name for itself."""
    listener = socket.create_server(("127.0.0.1" if host in ("localhost", "127.0.0.1") else "", 0))
    return listener, int(listener.getsockname()[1])


def unreachable(addresses: Sequence[str]) -> list[str]:
    """Those of the addresses at which nobody listens."""
    missing = []
    for address in addresses:
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
        except OSError:
            missing.append(address)
    return missing
