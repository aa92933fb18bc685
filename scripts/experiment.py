"""What experiments have in common: where the data is, how a run is written down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SEEDS = (0, 1, 2)


def data_directory() -> Path:
    """Where the data sets are: TRIPTYCH_DATA, or ../shared/data beside the project."""
    directory = Path(os.environ.get("TRIPTYCH_DATA", ROOT.parent / "shared" / "data"))
    if not directory.is_dir():
        raise FileNotFoundError(f"There are no data sets at {directory}. Set TRIPTYCH_DATA to their directory.")
    return directory


def run_record(seed: int, metrics: Any, history: Any) -> dict[str, Any]:
    """One run as results keep it: seed, metrics, minutes of training and its best epoch."""
    return {
        "seed": seed,
        "metrics": dict(metrics),
        "minutes": history.wall_seconds / 60,
        "best_epoch": history.best_epoch,
    }


def settings(config: dict[str, Any], training: dict[str, Any]) -> str:
    """The settings of an experiment in one line."""
    return ", ".join(f"{name} {value}" for name, value in {**config, **training}.items())


def benchmark_record(name: str, title: str, target: str, *, repeats: int = 7) -> dict[str, Any]:
    """A benchmark of `benchmark.py`, run in a process of its own, as results keep it."""
    arguments = [name, "--repeats", str(repeats)]
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "result.json")
        script = str(ROOT / "scripts" / "benchmark.py")
        command = [sys.executable, script, *arguments, "--json", str(file)]
        done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
        if not file.exists():  # what failed after that is in the file
            raise RuntimeError(f"The benchmark {name} ended with code {done.returncode}.")
        result = json.loads(file.read_text(encoding="utf-8"))
    measured = {key: value for key, value in result.items() if key not in ("command", "hardware")}
    return {**measured, "title": title, "target": target, "benchmark": " ".join(arguments)}


def peer_process(script: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start a script of scripts/peers, with the interpreter in TRIPTYCH_PEER or, without that, with our own."""
    return _started(os.environ.get("TRIPTYCH_PEER", sys.executable), script, arguments, options)


def own_process(script: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """The same with our own interpreter, for peers that need TensorFlow."""
    return _started(sys.executable, script, arguments, options)


def _started(
    interpreter: str, script: str, arguments: tuple[str, ...], options: dict[str, Any]
) -> subprocess.Popen[str]:
    command = [interpreter, str(ROOT / "scripts" / "peers" / script), *arguments]
    return subprocess.Popen(command, text=True, **options)
