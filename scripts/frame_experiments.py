"""Experiments with what all tasks share, for `results.py`."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from experiment import ROOT, benchmark_record

# kill -9 at random moments.

_CHILD = """
import sys
import numpy as np
from sklearn.datasets import load_digits
from shared import RuntimeConfig, TrainingConfig
RuntimeConfig().apply()
from vision import ImageClassifier, ImageClassifierConfig
digits = load_digits()
images, labels = list((digits.images * 255 / 16).astype(np.uint8)), [str(n) for n in digits.target]
config = ImageClassifierConfig(image_size=16, channels=1, width=8, dropout=0.2, erasing=0.3)
training = TrainingConfig(epochs=4, batch_size=64, ema_decay=0.95, checkpoint_steps=3)
classifier = ImageClassifier(config)
print("READY", flush=True)
classifier.fit((images[300:], labels[300:]), (images[:300], labels[:300]), training=training,
               checkpoint=sys.argv[1] + "/state", resume=True)
np.savez(sys.argv[1] + "/weights.npz", *classifier.model.get_weights())
classifier.save(sys.argv[1] + "/saved")
print("DONE", flush=True)
"""


def kill_and_resume(trials: int = 20) -> dict[str, Any]:
    """A training run killed at a random moment, resumed, and compared with an unbroken one, again and again."""
    import numpy as np

    moments = random.Random(0)
    equal, kills = 0, []
    with tempfile.TemporaryDirectory() as directory:
        unbroken = Path(directory, "unbroken")
        seconds = _train_child(unbroken, kill_after=None)
        expected = np.load(unbroken / "weights.npz")
        for trial in range(trials):
            place = Path(directory, f"trial{trial}")
            moment = moments.uniform(0.0, seconds)
            _train_child(place, kill_after=moment)
            kills.append(f"{moment:.2f} s: {_progress(place)}")
            _train_child(place, kill_after=None)
            weights = np.load(place / "weights.npz")
            equal += all(np.array_equal(weights[name], expected[name]) for name in expected.files)
            shutil.rmtree(place)
    return {
        "title": "kill -9 at random moments, then resume",
        "data": "scikit-learn's digits; state saved every 3 steps of 92; dropout, erasing, averages, validation",
        "target": "every run resumes and ends with weights bit-equal to an unbroken run",
        "figures": {
            "trials": trials,
            "bit-equal after resuming": equal,
            "length of the unbroken run (s)": round(seconds, 2),
        },
        "kills": kills,
    }


def _train_child(directory: Path, *, kill_after: float | None) -> float:
    """Run the training in a process of its own; returns the seconds from its start of training to its end."""
    directory.mkdir(exist_ok=True)
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(directory)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )
    assert child.stdout is not None
    if child.stdout.readline() != "READY\n":
        raise RuntimeError("The training process did not start.")
    start = time.monotonic()
    if kill_after is not None:
        time.sleep(kill_after)
        child.send_signal(signal.SIGKILL)
    done = child.stdout.read() == "DONE\n"
    child.wait()
    if kill_after is None and not done:
        raise RuntimeError("A resumed run did not end well.")
    return time.monotonic() - start


def _progress(directory: Path) -> str:
    states = sorted(path.name for path in (directory / "state").glob("state-*") if not path.name.endswith(".partial"))
    if (directory / "saved" / "pipeline.json").exists():
        return "after the end"
    return f"newest state {states[-1]}" if states else "before the first state"


def gradient_checkpointing() -> dict[str, Any]:
    """Memory and time of training on long texts, with and without."""
    return benchmark_record(
        "gradient-checkpointing",
        "Gradient checkpointing on texts of 1,024 tokens",
        "less memory in training, at two thirds of the speed or more",
        repeats=5,
    )


def gpu() -> dict[str, Any]:
    """The check of a machine with a GPU, which must be there.

    Raises:
        FileNotFoundError: where TensorFlow sees none.
    """
    record = benchmark_record(
        "gpu",
        "A GPU: every task trains, four networks timed",
        "every task trains; rates stated with card and driver",
        repeats=5,
    )
    if record["card"] is None:
        raise FileNotFoundError("TensorFlow sees no GPU here. What was measured on another machine stays as it is.")
    checks, failed = record.pop("checks"), record.pop("failed")
    record["settings"] = (
        f"driver {record['driver']}, TensorFlow {record['tensorflow']} built for CUDA {record['cuda']}; XLA only where "
        "it is named"
    )
    record["figures"] = {"tasks tried": len(checks), "tasks that train": len(checks) - len(failed)} | record["figures"]
    return record
