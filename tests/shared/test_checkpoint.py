from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.checkpoint import CheckpointDirectory, TrainingState, pack, unpack

ROOT = Path(__file__).parents[2]


def state(step: int, best_file: str | None = None, **values: Any) -> TrainingState:
    """A state whose arrays and values all name its step."""
    return TrainingState(
        step, {"model/00000": np.full((20, 3), step, np.float32)}, {"step": step, "best_file": best_file, **values}
    )


def assert_whole(directory: CheckpointDirectory) -> int:
    """The step of the newest state, whose parts and best weights are of that step."""
    latest = directory.latest()
    assert latest is not None
    assert (latest.arrays["model/00000"] == latest.step).all()
    assert latest.values["step"] == latest.step
    if latest.values["best_file"] is not None:
        assert directory.read_best(latest.values["best_file"])[0].tolist() == [latest.step]
    return latest.step


ARRAYS = [
    np.zeros((0, 3), np.float32),
    np.float32(0.1).reshape(()),
    np.array([np.nan, -0.0, np.inf, 1e-45, np.finfo(np.float32).max], np.float32),
    np.array([0x7FC00001, 0xFFC12345], np.uint32).view(np.float32),  # NaNs with a payload
    np.array([1 / 3, -np.inf]),
    np.array([2**63 - 1, -(2**63)]),
    np.array([0, 2**32 - 1], np.uint32),
    np.array([True, False]),
    np.arange(12, dtype=np.float32).reshape(3, 4).T,
    np.arange(12, dtype=np.float16)[::3],
]


def assert_same_bits(left: np.ndarray, right: np.ndarray) -> None:
    assert (left.shape, left.dtype) == (right.shape, right.dtype)
    assert left.tobytes() == right.tobytes()


@pytest.mark.parametrize("groups", [{}, {"model": []}, {"model": ARRAYS}, {"model": ARRAYS[::-1], "optimizer": ARRAYS}])
def test_groups_of_arrays_come_back_bit_for_bit(tmp_path, groups):
    directory = CheckpointDirectory(tmp_path)
    directory.write(TrainingState(1, pack(groups), {}))
    latest = directory.latest()
    assert latest is not None
    for group, arrays in groups.items():
        for mine, expected in zip(unpack(latest.arrays, group), arrays, strict=True):
            assert_same_bits(mine, expected)
    assert unpack(latest.arrays, "other") == []


def test_more_than_ten_arrays_keep_their_order():
    arrays = [np.asarray(i) for i in range(123)]
    assert [int(a) for a in unpack(pack({"a": arrays, "b": arrays[:5]}), "a")] == list(range(123))


def test_values_come_back(tmp_path):
    values = {"best": 0.1 + 0.2, "records": [{"loss": float("inf"), "epoch": 1}], "note": "ü\n", "none": None}
    CheckpointDirectory(tmp_path).write(state(1, **values))
    latest = CheckpointDirectory(tmp_path).latest()
    assert latest is not None
    assert latest.values == {"step": 1, "best_file": None, **values}


def test_nothing_there_yet(tmp_path):
    assert CheckpointDirectory(tmp_path).latest() is None
    assert CheckpointDirectory(tmp_path / "nowhere").latest() is None
    assert not (tmp_path / "nowhere").exists()


def test_the_newest_two_states_are_kept(tmp_path):
    directory = CheckpointDirectory(tmp_path / "deep" / "state")
    for step in (1, 9, 10, 1_000_000_000, 10_000_000_000):
        directory.write(state(step))
        assert assert_whole(directory) == step
    assert sorted(os.listdir(directory.path)) == ["state-1000000000", "state-10000000000"]


def test_a_second_state_of_a_step_is_the_newer_one(tmp_path):
    directory = CheckpointDirectory(tmp_path)
    for again in range(12):
        directory.write(state(7, again=again))
        latest = directory.latest()
        assert latest is not None
        assert (latest.step, latest.values["again"]) == (7, again)
    assert len(os.listdir(tmp_path)) == 2
    directory.write(state(8))
    assert assert_whole(directory) == 8


def test_best_weights_stay_as_long_as_a_state_names_them(tmp_path):
    directory = CheckpointDirectory(tmp_path)
    best = {}
    for step in (1, 2, 3):
        best[step] = directory.write_best(step, [np.asarray([step])])
        assert best[step] in os.listdir(tmp_path)  # before any state names it
        directory.write(state(step, best[step]))
    assert best[1] not in os.listdir(tmp_path)
    assert directory.read_best(best[2])[0].tolist() == [2]
    assert assert_whole(directory) == 3
    directory.write(state(4, best[3]))
    directory.write(state(5, best[3]))
    assert sorted(os.listdir(tmp_path)) == [best[3], "state-000000004", "state-000000005"]


def test_best_weights_come_back_bit_for_bit(tmp_path):
    directory = CheckpointDirectory(tmp_path / "new")
    for mine, expected in zip(directory.read_best(directory.write_best(3, ARRAYS)), ARRAYS, strict=True):
        assert_same_bits(mine, expected)


# As in test_artifact: fork before each operation on the file system, kill the fork there, look at what it left.
_KILLS = """
import os, shutil, signal, sys
from pathlib import Path
from tests.shared import test_checkpoint as tests
import numpy as np

OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "os.listdir"}
os.fsync = lambda descriptor: None  # a kill loses nothing that was written

def write(directory, step):
    best = directory.write_best(step, [np.asarray([step])])
    directory.write(tests.state(step, best))

def killed_before(point, directory):
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        if event in OPERATIONS:
            seen += 1
            if seen > point:
                os.kill(os.getpid(), signal.SIGKILL)
    pid = os.fork()
    if pid == 0:
        sys.addaudithook(hook)
        write(directory, 3)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0

found = []
for point in range(500):
    directory = tests.CheckpointDirectory(Path(sys.argv[1]) / str(point))
    for step in (1, 2):
        write(directory, step)
    if not killed_before(point, directory):
        break
    found.append(tests.assert_whole(directory))
    for step in (4, 5):
        write(directory, step)
    assert tests.assert_whole(directory) == 5
    assert len(os.listdir(directory.path)) == 4, os.listdir(directory.path)
    shutil.rmtree(directory.path)
print(*found)
"""


def test_killed_at_any_point_a_whole_state_is_the_newest(tmp_path):
    child = subprocess.run(
        [sys.executable, "-c", _KILLS, str(tmp_path)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert child.returncode == 0, child.stderr
    found = child.stdout.split()
    assert found == sorted(found)
    assert min(found.count("2"), found.count("3")) > 5
