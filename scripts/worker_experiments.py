"""How fast two workers on two cores are beside one process with two threads, for `results.py`."""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from experiment import ROOT

# One task of each domain: data made here, batches of this process, examples/s of each epoch but the first.
_CHILD = """
import json, os, sys
task, batch_size, part, parts, core = sys.argv[1], *map(int, sys.argv[2:6])
if core >= 0:
    os.sched_setaffinity(0, {core})
import numpy as np
from shared import RuntimeConfig, TrainingConfig
RuntimeConfig(num_threads=1 if core >= 0 else 2, devices="cpu").apply()
rng = np.random.default_rng(0)
training = TrainingConfig(epochs=4, batch_size=batch_size, optimizer="adamw", learning_rate=1e-3)
if task == "image classification":
    from vision import ImageClassifier, ImageClassifierConfig
    pipeline = ImageClassifier(ImageClassifierConfig(image_size=32, width=16))
    images = list(rng.integers(0, 256, (1024, 32, 32, 3), np.uint8))
    inputs = (images[part::parts], [str(i % 10) for i in range(1024)][part::parts])
elif task == "text classification":
    from nlp import TextClassifier, TextClassifierConfig
    words = np.array([f"word{i}" for i in range(2000)])
    texts = [" ".join(rng.choice(words, rng.integers(8, 48))) for _ in range(1024)]
    pipeline = TextClassifier(TextClassifierConfig(num_layers=2, hidden_size=128))
    inputs = (texts[part::parts], [str(i % 4) for i in range(1024)][part::parts])
else:
    from recsys import Interactions, SequentialRecommender, SequentialRecommenderConfig
    users = np.repeat(np.arange(2048), 30)
    items = rng.integers(0, 3000, len(users))
    kept = users % parts == part
    pipeline = SequentialRecommender(SequentialRecommenderConfig(max_length=30))
    inputs = Interactions(users[kept].tolist(), items[kept].tolist())
history = pipeline.fit(inputs, training=training)
print("RATES " + json.dumps([record["examples_per_second"] for record in history.records[1:]]))
"""

# Examples of a step over all processes, such as each task is trained with.
_TASKS = {"image classification": 64, "text classification": 64, "sequential recommendation": 256}


def two_workers(repeats: int = 3) -> dict[str, Any]:
    """Throughput of two workers of one thread each, of one process of two threads, and of two that do not talk.

    The last do the work of two workers without a sum between them: what is lost beside them is spent in sums over
    workers and in waiting for the slower one.
    """
    figures: dict[str, float] = {}
    for task, batch in _TASKS.items():
        rates: dict[str, list[float]] = {"one process": [], "two workers": [], "apart": []}
        for _ in range(repeats):
            # In turns, so that what else the machine does meets all alike.
            rates["one process"].append(sum(_rates([[task, batch, 0, 1, -1]])))
            half = [[task, batch // 2, 0, 1, core] for core in _two_cores()]
            rates["two workers"].append(_rates(half, together=True)[0])
            rates["apart"].append(sum(_rates([[task, batch // 2, i, 2, core] for i, core in enumerate(_two_cores())])))
        one, two, apart = (statistics.median(values) for values in rates.values())
        figures |= {
            f"{task}: one process of two threads (examples/s)": round(one, 1),
            f"{task}: two workers of one thread (examples/s)": round(two, 1),
            f"{task}: two workers / one process": round(two / one, 3),
            f"{task}: share of a step in sums over workers and waiting": round(1 - two / apart, 3),
        }
    return {
        "title": "two workers on two cores",
        "data": "made at random: 1,024 images of 32 px, 1,024 texts of 8 to 47 words, 2,048 histories of 30 items",
        "settings": f"batches of both together: {', '.join(f'{task} {size}' for task, size in _TASKS.items())}; "
        "each process on a core of its own",
        "target": "at least 0.9 of one process; below, the share of a step in sums and waiting says why",
        "figures": figures,
    }


def _two_cores() -> list[int]:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise ValueError("Two workers are measured on two cores; this process may use one.")
    return cores[:2]


def _rates(calls: Sequence[Sequence[object]], *, together: bool = False) -> list[float]:
    """Median examples/s of processes that run at the same time, as one training where they are `together`."""
    addresses = [f"localhost:{port}" for port in _free_ports(len(calls))]
    children = []
    for index, arguments in enumerate(calls):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
        environment |= {"TF_CONFIG": json.dumps(task)} if together else {}
        command = [sys.executable, "-c", _CHILD, *map(str, arguments)]
        children.append(
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT, env=environment
            )
        )
    outputs = [child.communicate()[0] for child in children]
    if any(child.returncode for child in children):
        raise RuntimeError("A training process did not end well.")
    return [statistics.median(json.loads(output.rpartition("RATES ")[2])) for output in outputs]


def _free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [int(listener.getsockname()[1]) for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
