from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import shared.distribution as distribution
from shared.channel import Channel, WorkerLostError, listening_socket
from shared.checkpoint import CheckpointDirectory
from shared.cluster import Cluster
from shared.distribution import (
    LOST_CODE,
    Portion,
    Workers,
    computing_share,
    mean_over_batch,
    sum_over_batch,
    synchronise_norms,
)
from tests.shared import jobs

ROOT = Path(__file__).parents[2]


def start(what: str, output: Path, *, tf_config: str = "", devices: int = 1) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment |= {"TF_CONFIG": tf_config} if tf_config else {}
    command = [sys.executable, "-m", "tests.shared.jobs", what, str(output), str(devices)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment)


def start_pair(what: str, *outputs: Path) -> list[subprocess.Popen[str]]:
    """Two workers on this machine, as TF_CONFIG says it to each."""
    listeners = [socket.create_server(("localhost", 0)) for _ in outputs]
    addresses = [f"localhost:{listener.getsockname()[1]}" for listener in listeners]
    for listener in listeners:
        listener.close()
    configs = [
        json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": i}})
        for i in range(len(outputs))
    ]
    return [start(what, output, tf_config=config) for output, config in zip(outputs, configs, strict=True)]


def ended(child: subprocess.Popen[str]) -> str:
    """What a process that ends well has written to stderr."""
    _, errors = child.communicate(timeout=300)
    assert child.returncode == 0, errors[-3000:]
    return errors


@pytest.fixture(scope="module")
def alone() -> dict[str, np.ndarray]:
    """What one process ends with."""
    return jobs.all_weights()


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, np.ndarray]]:
    """What each of two processes ends with."""
    outputs = [tmp_path_factory.mktemp("pair") / f"worker{i}.npz" for i in range(2)]
    for index, child in enumerate(start_pair("weights", *outputs)):
        assert ("epoch 1/2" in ended(child)) is (index == 0)
    return [dict(np.load(output)) for output in outputs]


def largest_difference(left: dict[str, np.ndarray], right: dict[str, np.ndarray], name: str) -> float:
    keys = [key for key in left if key.startswith(f"{name}/")]
    assert len(keys) > 2
    return max(float(np.abs(left[key] - right[key]).max(initial=0.0)) for key in keys)


@pytest.mark.parametrize("name", list(jobs.JOBS))
def test_two_processes_train_as_one_does(alone, together, name):
    assert largest_difference(alone, together[0], name) < 1e-5
    assert largest_difference(together[0], together[1], name) == 0.0


def test_two_processes_agree_on_what_cannot_be_read(together):
    expected = ["line 17: empty", "line 2: empty", "line 9: empty"]
    assert [worker["bad/records"].tolist() for worker in together] == [expected, expected]
    for key in (key for key in together[0] if key.startswith("bad/")):
        np.testing.assert_array_equal(together[0][key], together[1][key])


def test_two_devices_train_as_one_does(alone, tmp_path):
    ended(start("weights", tmp_path / "devices.npz", devices=2))
    found = dict(np.load(tmp_path / "devices.npz"))
    for name in jobs.JOBS:
        assert largest_difference(alone, found, name) < 1e-5


def test_a_killed_worker_stops_the_other_and_a_resumed_pair_ends_as_an_unbroken_one(tmp_path):
    first, second = start_pair("killed", tmp_path, tmp_path)
    second.communicate(timeout=300)
    died = time.monotonic()
    _, errors = first.communicate(timeout=60)
    assert time.monotonic() - died < 60
    assert (first.returncode, second.returncode) == (LOST_CODE, -9)
    assert "error: Training stopped on worker 0: worker 1 died: its connection is closed. " in errors
    assert f"--resume): they go on from the last state in {tmp_path / 'state'}." in errors
    assert "\nresume: python " in errors
    state = CheckpointDirectory(tmp_path / "state").latest()
    assert state is not None
    assert state.step == 8

    for child in start_pair("resumed", tmp_path, tmp_path):
        ended(child)
    workers = [dict(np.load(tmp_path / f"worker{i}.npz")) for i in range(2)]
    # Worker 1 was told to stop in the third step after step 8; nobody began the next.
    assert all("SIGTERM received: training stopped after step 11 " in str(worker["message"]) for worker in workers)
    for key in (key for key in workers[0] if key.startswith("again/")):
        np.testing.assert_array_equal(workers[0][key], workers[1][key])
        np.testing.assert_array_equal(workers[0][key], workers[0][key.replace("again", "unbroken")])
    for key in (key for key in workers[0] if key.startswith("bad_again/")):
        np.testing.assert_array_equal(workers[0][key], workers[1][key])
        np.testing.assert_array_equal(workers[0][key], workers[0][key.replace("again", "unbroken")])
    assert not (tmp_path / "nowhere").exists()


# Pieces.


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Workers, Channel, list[int]]]:
    """Worker 1 of two, worker 0's end of the channel, and the codes with which worker 1's process would be ended."""
    codes: list[int] = []
    monkeypatch.setattr(distribution.os, "_exit", codes.append)
    monkeypatch.setattr(distribution, "_SECONDS_TO_STOP", 0.2)
    monkeypatch.setattr(distribution, "_abort_collectives", lambda _: None)
    workers = Workers(Cluster(("localhost:1", "localhost:2"), 1))
    first = Channel(0, 2, silence=20, on_loss=lambda _: None)
    second = workers._channel = Channel(1, 2, silence=20, on_loss=workers._on_loss)
    listener, port = listening_socket("localhost")
    accepting = threading.Thread(target=first.accept, args=(listener, "token"))
    accepting.start()
    second.connect("localhost", port, "token")
    accepting.join(10)
    yield workers, first, codes
    first.close()
    second.close()


def test_a_first_worker_that_is_lost_after_the_training_is_no_success(pair, capsys):
    workers, first, codes = pair
    threading.Timer(0.2, first.close).start()
    workers._leave(workers._channel)
    assert codes == [LOST_CODE]
    assert "Training stopped on worker 1: worker 0 died: its connection is closed. Start all" in capsys.readouterr().err


def test_a_first_worker_that_leaves_in_order_is_a_success(pair):
    workers, first, codes = pair
    threading.Timer(0.2, first.leave).start()
    workers._leave(workers._channel)
    assert codes == []


def test_whoever_has_caught_the_error_is_not_ended_later(pair):
    workers, first, codes = pair
    workers._channel._on_loss = lambda _: None  # comes late, as where the thread that listens is the slower one
    threading.Timer(0.2, first.close).start()
    with pytest.raises(WorkerLostError, match="worker 0 died"), workers.together():
        workers._channel.exchange()
    workers._on_loss("worker 0 died")
    time.sleep(0.5)
    workers._leave(workers._channel)
    assert codes == []


@pytest.mark.parametrize("num_shares", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [0, 1, 4, 5, 11])
def test_shares_are_all_of_a_batch_and_no_more(num_shares, size):
    batch = list(range(size))
    shares = [Portion(num_shares, first, 1).of(batch)[0] for first in range(num_shares)]
    assert [item for share in shares for item in share] == batch
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert [list(share) for share in Portion(num_shares, 0, num_shares).of(batch)] == [list(s) for s in shares]
    assert Portion(num_shares, 0, num_shares).is_all
    assert Portion(num_shares, 0, 1).is_all is (num_shares == 1)


def test_alone_every_answer_is_ones_own():
    workers = Workers()
    assert (workers.count, workers.index, workers.is_first) == (1, 0, True)
    assert workers.exchange({"a": 1}) == [{"a": 1}]
    assert workers.from_first(lambda: 5) == 5
    value, arrays = workers.arrays_from_first(lambda: (1, {"x": np.ones(2)}))
    assert (value, arrays["x"].tolist()) == (1, [1.0, 1.0])
    with workers.together(wait=True):
        pass


def test_what_cannot_be_shared_is_refused():
    Workers().require_alone("It")
    with pytest.raises(ValueError, match=r"It has nothing that 2 workers could share.*workers=off"):
        Workers(Cluster(("a:1", "b:1"), 0)).require_alone("It")


def test_on_one_device_a_mean_is_a_mean():
    assert float(mean_over_batch(tf.constant(6.0), tf.constant(4.0))) == 1.5
    assert float(mean_over_batch(tf.constant(0.25), tf.constant(0.5))) == 0.25
    assert [float(value) for value in sum_over_batch(tf.constant(2.0), tf.constant(3.0))] == [2.0, 3.0]


def test_norms_are_told_to_share_their_statistics():
    inner = keras.Sequential([keras.Input((2,)), keras.layers.BatchNormalization()])
    model = keras.Sequential([keras.Input((2,)), inner, keras.layers.Dense(1)])
    assert not inner.layers[0].synchronized
    synchronise_norms(model)
    assert inner.layers[0].synchronized


def test_a_stand_in_weighs_nothing(monkeypatch):
    class Context:
        @staticmethod
        def all_reduce(_: object, values: list[tf.Tensor]) -> list[tf.Tensor]:
            return [value + other for value, other in zip(values, next(others), strict=True)]

    monkeypatch.setattr(tf.distribute, "get_replica_context", Context)
    # Another device has three examples of four, with 30 words in all that lose 60; this one has 10 that lose 5.
    others: Iterator[list[float]] = iter([[30.0], [10.0]])
    with computing_share(tf.constant(0.25)):
        assert 0.25 * float(mean_over_batch(tf.constant(5.0), tf.constant(10.0))) == pytest.approx(5.0 / 40.0)
    with computing_share(tf.constant(0.0)):
        assert float(mean_over_batch(tf.constant(5.0), tf.constant(10.0))) == 0.0
