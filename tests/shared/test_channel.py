from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import shared.channel as channel_module
from shared.channel import Channel, WorkerLostError, _Link, listening_socket, unreachable


class Group:
    """Channels of several workers in one process, each with a thread where they have to act at once."""

    def __init__(self, count: int, silence: float = 20.0) -> None:
        self.told: list[list[str]] = [[] for _ in range(count)]
        self.channels = [Channel(i, count, silence=silence, on_loss=self.told[i].append) for i in range(count)]
        listener, port = listening_socket()

        def join(channel: Channel) -> None:
            if channel.index:
                channel.connect("localhost", port, "secret")
            else:
                channel.accept(listener, "secret")

        self.all(join)
        for channel in self.channels:
            channel.watching = True

    def all(self, act: Callable[[Channel], Any]) -> list[Any]:
        """What each worker's channel gives, or the error that it raises."""
        results: list[Any] = [None] * len(self.channels)

        def run(channel: Channel) -> None:
            try:
                results[channel.index] = act(channel)
            except WorkerLostError as error:
                results[channel.index] = error

        threads = [threading.Thread(target=run, args=(channel,)) for channel in self.channels]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        return results


@pytest.fixture(autouse=True)
def _closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Channels are closed after each test, and their threads have ended."""
    made: list[Channel] = []
    create = Channel.__init__

    def note(channel: Channel, *arguments: Any, **options: Any) -> None:
        create(channel, *arguments, **options)
        made.append(channel)

    monkeypatch.setattr(Channel, "__init__", note)
    yield
    for channel in made:
        channel.close()
    for thread in threading.enumerate():
        if thread.name.startswith("worker-") and thread.name != "worker-beats":
            thread.join(10)


@pytest.fixture(params=[2, 3])
def group(request: pytest.FixtureRequest) -> Group:
    return Group(request.param)


def test_all_get_the_values_of_all_in_their_order(group):
    count = len(group.channels)
    for turn in range(3):
        values = group.all(lambda channel, turn=turn: channel.exchange([turn, channel.index]))
        assert values == [[[turn, index] for index in range(count)]] * count


def test_the_first_gets_the_arrays_of_all(group):
    def act(channel: Channel) -> Any:
        own = channel.index
        return channel.to_first(
            {
                "rows": np.full((own, 2), own, np.float32),
                "flags": np.arange(own) > 0,
                "texts": np.array(["süß", "x" * own], object),
                "codes": np.array(["", "ab"]),
            }
        )

    first, *others = group.all(act)
    assert others == [[]] * (len(group.channels) - 1)
    for index, found in enumerate(first):
        assert found["rows"].dtype == np.float32
        assert found["flags"].dtype == bool
        np.testing.assert_array_equal(found["rows"], np.full((index, 2), index))
        assert found["texts"].tolist() == ["süß", "x" * index]
        assert found["codes"].tolist() == ["", "ab"]


def test_all_get_what_the_first_has(group):
    arrays = {"x": np.arange(6.0).reshape(2, 3), "empty": np.zeros((0, 2)), "scalar": np.array(3.0, np.float32)}

    def act(channel: Channel) -> Any:
        return channel.from_first({"step": 7}, arrays) if channel.index == 0 else channel.from_first()

    for value, found in group.all(act):
        assert value == {"step": 7}
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].shape == array.shape
    assert group.all(lambda channel: channel.from_first("only" if channel.index == 0 else None)) == [
        ("only", {})
    ] * len(group.channels)


def test_a_worker_that_dies_is_named_to_all(group):
    last = len(group.channels) - 1
    group.channels[last].close()
    errors = group.all(lambda channel: channel.exchange() if channel.index != last else None)
    for error in errors[:last]:
        assert isinstance(error, WorkerLostError)
        assert str(error) == f"worker {last} died: its connection is closed"
    assert group.told[0] == [f"worker {last} died: its connection is closed"]


def test_an_error_of_one_is_told_to_all(group):
    last = len(group.channels) - 1
    group.channels[last].fail("ValueError: no")
    errors = group.all(lambda channel: channel.exchange() if channel.index != last else None)
    assert {str(error) for error in errors[:last]} == {f"worker {last} stopped: ValueError: no"}
    assert group.told[last] == []


def test_silence_counts_as_death(monkeypatch):
    monkeypatch.setattr(channel_module, "SECONDS_BETWEEN_BEATS", 1000.0)
    group = Group(2, silence=0.3)
    (error, _) = group.all(lambda channel: channel.exchange() if channel.index == 0 else None)
    assert str(error) == "worker 1 has been silent for 0.3 s"


def test_beats_are_no_silence(monkeypatch):
    monkeypatch.setattr(channel_module, "SECONDS_BETWEEN_BEATS", 0.05)
    group = Group(2, silence=0.5)
    time.sleep(1.2)
    assert group.all(lambda channel: channel.exchange(channel.index)) == [[0, 1], [0, 1]]


def test_a_busy_connection_silences_only_itself(monkeypatch):
    monkeypatch.setattr(channel_module, "SECONDS_BETWEEN_BEATS", 0.05)
    group = Group(3, silence=0.5)
    with group.channels[0]._links[1]._lock:
        time.sleep(0.8)
        assert "worker 0" in (group.channels[1].failure or "")
        assert "worker 0" not in (group.channels[2].failure or "")


@pytest.fixture
def ends() -> Iterator[tuple[_Link, socket.socket]]:
    """A connection that holds little at a time: an end that sends, with a timeout of one second, and the other."""
    with socket.create_server(("localhost", 0)) as listener:
        sender = socket.create_connection(listener.getsockname())
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        sender.settimeout(1.0)
        receiver = listener.accept()[0]
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    link = _Link(sender)
    yield link, receiver
    link.close()
    receiver.close()


def test_a_large_message_takes_longer_than_silence_may(ends):
    link, receiver = ends
    other, got = _Link(receiver), []

    def read() -> None:
        original = receiver.recv

        class Slow:
            def settimeout(self, _: float) -> None: ...

            def recv(self, count: int) -> bytes:
                time.sleep(0.15)
                return original(min(count, 1 << 20), socket.MSG_WAITALL)

        other._connection = Slow()
        got.append(other.receive(1.0))

    thread = threading.Thread(target=read)
    thread.start()
    payload = bytes(range(256)) * (12 << 12)
    started = time.monotonic()
    link.send(b"V", payload)
    assert time.monotonic() - started > 1.0
    thread.join(10)
    assert got == [(b"V", payload)]


def test_half_a_message_is_the_last(ends):
    link, receiver = ends
    with pytest.raises(TimeoutError):
        link.send(b"V", bytes(32 << 20))
    with pytest.raises(OSError, match="pipe"):
        link.send(b"B", b"")
    with pytest.raises(ConnectionError, match="closed"):
        _Link(receiver).receive(5.0)


def test_workers_of_one_machine_are_not_open_to_others():
    hosts = {}
    for host in ("localhost", "127.0.0.1", "node7"):
        listener, _ = listening_socket(host)
        hosts[host] = listener.getsockname()[0]
        listener.close()
    assert hosts == {"localhost": "127.0.0.1", "127.0.0.1": "127.0.0.1", "node7": "0.0.0.0"}


def test_whoever_leaves_waits_for_the_others(group):
    order: list[int] = []

    def act(channel: Channel) -> None:
        channel.watching = False
        channel.exchange()
        time.sleep(0.3 if channel.index == 0 else 0.0)
        order.append(channel.index)
        channel.leave()
        order.append(channel.index)

    group.all(act)
    assert order.index(0) >= len(group.channels) - 1  # the others came first, and were still there
    assert group.told == [[]] * len(group.channels)


def test_leaving_while_others_train_is_a_loss(group):
    last = len(group.channels) - 1
    group.channels[last].watching = False
    threading.Thread(target=group.channels[last].leave, daemon=True).start()
    errors = group.all(lambda channel: channel.exchange() if channel.index != last else None)
    assert {str(error) for error in errors[:last]} == {f"worker {last} ended before the training was over"}


def test_strangers_are_turned_away():
    listener, port = listening_socket()
    channels = [Channel(i, 2, silence=20, on_loss=lambda _: None) for i in range(2)]
    accepting = threading.Thread(target=channels[0].accept, args=(listener, "secret"))
    accepting.start()
    channels[1].connect("localhost", port, "guess")
    channels[1].wait_for_failure(10)
    with pytest.raises(WorkerLostError, match="worker 0 died"):
        channels[1].exchange()
    right = Channel(1, 2, silence=20, on_loss=lambda _: None)
    right.connect("localhost", port, "secret")
    accepting.join(10)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(right.exchange("right")))
    thread.start()
    assert channels[0].exchange("first") == ["first", "right"]
    thread.join(10)
    assert found == [["first", "right"]]


def test_noise_is_no_worker():
    listener, port = listening_socket()
    channel = Channel(0, 2, silence=20, on_loss=lambda _: None)
    accepting = threading.Thread(target=channel.accept, args=(listener, "secret"))
    accepting.start()
    for noise in (b"GET / HTTP/1.1\r\n\r\n", b"H" + b"\x00" * 7 + b"\x02{]", b"\xff" * 64):
        with socket.create_connection(("localhost", port)) as stranger:
            stranger.sendall(noise)
    right = Channel(1, 2, silence=20, on_loss=lambda _: None)
    right.connect("localhost", port, "secret")
    accepting.join(10)
    assert not accepting.is_alive()


def test_who_is_missing_is_found():
    with socket.create_server(("localhost", 0)) as there:
        address = f"localhost:{there.getsockname()[1]}"
        gone, port = listening_socket()
        gone.close()
        assert unreachable([address, f"localhost:{port}"]) == [f"localhost:{port}"]


def test_a_first_worker_that_is_not_there_is_said(monkeypatch):
    gone, port = listening_socket()
    gone.close()
    with pytest.raises(WorkerLostError, match=rf"Worker 1 cannot reach worker 0 at localhost:{port}"):
        Channel(1, 2, silence=5, on_loss=lambda _: None).connect("localhost", port, "secret")


def test_a_worker_that_does_not_come_is_said(monkeypatch):
    monkeypatch.setattr(channel_module, "_SECONDS_TO_CONNECT", 0.2)
    listener, _ = listening_socket()
    with pytest.raises(WorkerLostError, match="Worker 1 did not connect"):
        Channel(0, 2, silence=5, on_loss=lambda _: None).accept(listener, "secret")
