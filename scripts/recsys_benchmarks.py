"""Benchmarks of recommenders beside their peers, for `benchmark.py`.

`sasrec` needs rectools[torch], in the interpreter that TRIPTYCH_PEER names or in ours. It reads Amazon Beauty from
TRIPTYCH_DATA where that is there, else made sequences of about the same shape.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from experiment import data_directory, peer_process

from shared.training_config import TrainingConfig

# Users of the benchmark, and RecTools' own width of the feed-forward part.
_NUM_USERS = 2048
_SASREC: dict[str, Any] = {"dim": 64, "num_layers": 2, "num_heads": 2, "max_length": 50, "dropout": 0.2}
_HIDDEN = 64
_BATCH, _RATE = 256, 1e-3


def sasrec(repeats: int) -> dict[str, Any]:
    """Users/s of an epoch of SASRec with the softmax over all items."""
    from benchmark import measured, ratios

    from recsys import SequentialRecommender, SequentialRecommenderConfig
    from shared.optimizers import build_optimizer
    from shared.training import TrainStep

    data, description = _sequences()
    training = TrainingConfig(batch_size=_BATCH, learning_rate=_RATE, weight_decay=0.0, clip_norm=0.0)
    recommender = SequentialRecommender(SequentialRecommenderConfig(**_SASREC, hidden_dim=_HIDDEN))
    task = recommender.training_task(data, training)
    step = TrainStep(task, build_optimizer(training, task.model.trainable_variables, _RATE), training)
    epochs = iter(range(1_000_000))

    def ours() -> None:
        for batch in task.batches.epoch(next(epochs)):
            step([batch])
        step.loss_sum.numpy()

    with tempfile.TemporaryDirectory() as directory:
        file = str(Path(directory, "job.npz"))
        assert data.timestamps is not None
        columns = {"users": data.users, "items": data.items, "times": data.timestamps}
        np.savez(file, allow_pickle=False, **columns, **_SASREC, batch_size=_BATCH, learning_rate=_RATE)
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        with peer_process("torch_sasrec.py", file, str(len(os.sched_getaffinity(0))), **pipes) as process:
            sides: dict[str, Callable[[], float]] = {
                "triptych epoch": lambda: _rate(ours),
                "RecTools epoch": lambda: _NUM_USERS / _peer_seconds(process, "rectools[torch]"),
            }
            rates = measured(sides, repeats)
            assert process.stdin is not None
            process.stdin.close()
    what = ", ".join(f"{name} {value}" for name, value in _SASREC.items())
    return {
        "unit": "users/s",
        "files": f"{description}; {what}, feed-forward width {_HIDDEN}, batches of {_BATCH}, AdamW and Adam, float32",
        "rates": rates,
        "ratios": ratios(rates, "triptych epoch"),
    }


def _sequences() -> tuple[Any, str]:
    """Interactions of some users, with times, and what they are."""
    from recsys import Interactions, read_interactions

    try:
        data = read_interactions(data_directory() / "amazon-beauty-seq" / "Beauty.txt")
        description = "Amazon Beauty"
    except FileNotFoundError:
        rng = np.random.default_rng(0)
        items = (12_000 * rng.random(198_000) ** 2).astype(np.int64)
        data, description = Interactions(rng.integers(0, 22_000, 198_000), items), "made sequences"
    users, counts = np.unique(data.users, return_counts=True)
    chosen = users[np.argsort(-counts, kind="stable")[:: len(users) // _NUM_USERS][:_NUM_USERS]]
    part = data.take(np.isin(data.users, chosen))
    timed = Interactions(part.users, part.items, timestamps=np.arange(len(part)))
    return (
        timed,
        f"{description}: {_NUM_USERS:,} users, {len(np.unique(part.items)):,} items, {len(part):,} interactions",
    )


def _rate(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return _NUM_USERS / (time.perf_counter() - start)


def _peer_seconds(process: subprocess.Popen[str], package: str) -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("run\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"The peer's process ended; it needs {package} (TRIPTYCH_PEER names its interpreter).")
    return float(json.loads(line)["seconds"])
