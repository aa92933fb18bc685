from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from shared.launcher import _without_workers, local_workers, run_local_workers

ROOT = Path(__file__).parents[2]

# A worker that says who it is, waits for a signal where it is asked to, and ends with a code of its own.
_WORKER = """
import os, signal, sys, time
index = int(sys.argv[sys.argv.index("--worker-index") + 1])
addresses = sys.argv[sys.argv.index("--workers") + 1].split(",")
assert len(addresses) == 3 and len(set(addresses)) == 3 and "TRIPTYCH_LAUNCHED" in os.environ
print(f"out {index} {sys.argv[1:3]}", flush=True)
if "wait" in sys.argv:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    print("ready", file=sys.stderr, flush=True)
    time.sleep(60)
print(f"err {index}", file=sys.stderr, flush=True)
sys.exit(2 if index == 1 and "fail" in sys.argv else 0)
"""


@pytest.mark.parametrize(
    ("workers", "expected"), [("local:2", 2), ("local:16", 16), ("auto", None), ("off", None), ("a:1,b:2", None)]
)
def test_how_many_processes_are_asked_for(workers, expected):
    assert local_workers(workers) == expected


@pytest.mark.parametrize("workers", ["local:", "local:0", "local:-1", "local:two", "local:2 "])
def test_a_number_of_processes_that_is_none(workers):
    with pytest.raises(ValueError, match="takes a number of processes from 1 on"):
        local_workers(workers)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("a.py train --workers local:2", "a.py train"),
        ("a.py --workers=local:2 train", "a.py train"),
        ("a.py --workers local:2 --epochs 3", "a.py --epochs 3"),
        ("a.py --worker-timeout 9 --workers local:2", "a.py --worker-timeout 9"),
    ],
)
def test_the_flag_is_taken_out(command, expected):
    assert _without_workers(command.split()) == expected.split()


def test_the_first_is_shown_as_it_is_and_of_the_others_their_errors(tmp_path, capfd):
    script = tmp_path / "worker.py"
    script.write_text(_WORKER)
    assert run_local_workers(3, [str(script), "train", "x", "--workers", "local:3"]) == 0
    shown = capfd.readouterr()
    assert shown.out == "out 0 ['train', 'x']\n"
    assert sorted(shown.err.splitlines()) == ["[worker 1] err 1", "[worker 2] err 2", "err 0"]


def test_the_code_is_that_of_the_first_that_failed(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(_WORKER)
    assert run_local_workers(3, [str(script), "fail", "--workers", "local:3"]) == 2


def test_signals_reach_all(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(_WORKER)
    program = (
        f"import sys; from shared.launcher import run_local_workers as run; sys.exit(run(3, [{str(script)!r}, 'wait']))"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert child.stderr is not None
    assert [child.stderr.readline()[-6:] for _ in range(3)] == ["ready\n"] * 3
    child.send_signal(signal.SIGTERM)
    child.communicate(timeout=60)
    assert child.returncode == 130
