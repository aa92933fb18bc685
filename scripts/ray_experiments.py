"""Experiments on a Ray cluster of this machine, for `results.py`. They need the extra ray."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiment import ROOT

_GOOD, _BAD = ("good", "fine", "great", "lovely", "bright"), ("bad", "poor", "awful", "dull", "grim")
_FILL = ("the", "film", "book", "was", "a", "story", "and", "song", "it")
_NUM_TEXTS, _NUM_IMAGES = 100_000, 20_000
_WORKERS = 2
# Ray's name of the processes that hold a pipeline.
_WORKER = "ray::MapWorker"


def ray_answers() -> dict[str, Any]:
    """Answers to many texts and images by two workers, one of which is killed half-way."""
    with tempfile.TemporaryDirectory() as directory:
        texts = _texts(Path(directory, "texts"), _NUM_TEXTS)
        images = _images(Path(directory, "images"), _NUM_IMAGES)
    return {
        "title": "Answers to many inputs on a Ray cluster, a worker killed half-way",
        "data": f"{_NUM_TEXTS:,} made texts (a GRU of width 16), {_NUM_IMAGES:,} PNG files of scikit-learn's digits "
        f"(a residual network of width 8); {_WORKERS} workers on this machine; kill -9 of one at half of the parts",
        "target": "each input answered once, in order; memory of the workers does not grow with the inputs",
        "figures": texts | images,
    }


def _texts(directory: Path, count: int) -> dict[str, Any]:
    directory.mkdir()
    rng = random.Random(0)
    rows = [_made_text(rng) for _ in range(400)]
    (directory / "train.csv").write_text("text,label\n" + "".join(f"{t},{label}\n" for t, label in rows))
    with (directory / "inputs.txt").open("w") as stream:
        stream.writelines(f"{_made_text(rng)[0]} {number}\n" for number in range(count))
    flags = ["--encoder", "gru", "--hidden-size", "16", "--vocab-size", "300", "--epochs", "1"]
    _call(directory, "text_classification", "train", "--train", "train.csv", "--output", "model", *flags)
    return _watched(directory, "text_classification", "texts", count)


def _made_text(rng: random.Random) -> tuple[str, str]:
    label = rng.choice(("good", "bad"))
    words = [*rng.choices(_FILL, k=rng.randint(2, 12)), rng.choice(_GOOD if label == "good" else _BAD)]
    return " ".join(words), label


def _images(directory: Path, count: int) -> dict[str, Any]:
    import cv2
    import numpy as np
    from sklearn.datasets import load_digits

    digits = load_digits()
    pictures = (digits.images * 255 / 16).astype(np.uint8)
    for number in range(count):
        kind = f"train/{digits.target[number]}" if number < 500 else "inputs"
        folder = directory / kind
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{number:06d}.png"), pictures[number % len(pictures)])
    paths = sorted(str(path.relative_to(directory)) for path in directory.rglob("*.png"))
    (directory / "inputs.txt").write_text("".join(f"{path}\n" for path in paths))
    flags = ["--image-size", "16", "--channels", "1", "--width", "8", "--epochs", "1"]
    _call(directory, "image_classification", "train", "--train", "train", "--output", "model", *flags)
    return _watched(directory, "image_classification", "images", count)


def _call(directory: Path, script: str, *arguments: str) -> None:
    subprocess.run(_command(script, *arguments), cwd=directory, check=True, capture_output=True)


def _command(script: str, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / f"{script}.py"), *arguments]


def _watched(directory: Path, script: str, name: str, count: int) -> dict[str, Any]:
    """Answer `inputs.txt`, kill a worker half-way, and compare what comes out with what went in."""
    flags = ["--engine", "ray", "--workers", str(_WORKERS), "--model", "model", "--output", "out.jsonl"]
    start = time.monotonic()
    process = subprocess.Popen(
        _command(script, "predict", *flags, "@inputs.txt"),
        cwd=directory,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    memory, killed = _sampled(process, directory / "out.jsonl.parts")
    if process.returncode != 0:
        raise RuntimeError(f"`predict --engine ray` ended with exit code {process.returncode}.")
    inputs = (directory / "inputs.txt").read_text().splitlines()
    answered = [json.loads(line)["input"] for line in (directory / "out.jsonl").read_text().splitlines()]
    return {
        f"{name}: inputs": count,
        f"{name}: answers": len(answered),
        f"{name}: different inputs answered": len(set(answered)),
        f"{name}: answers in the order of the inputs": "yes" if answered == inputs else "no",
        f"{name}: worker killed after this share of the parts": killed,
        f"{name}: a worker's memory at a quarter, MiB": _at(memory, 0.25),
        f"{name}: a worker's memory at nine tenths, MiB": _at(memory, 0.9),
        f"{name}: seconds in all": time.monotonic() - start,
    }


def _sampled(process: subprocess.Popen[bytes], parts: Path) -> tuple[list[tuple[float, float]], float]:
    """(share of parts answered, largest memory of a worker in MiB) over time, and the share at the kill."""
    samples, killed = [], 0.0
    while process.poll() is None:
        time.sleep(0.2)
        total = len(list(parts.glob("inputs-*.jsonl"))) or 1
        share = len(list(parts.glob("answers-*.jsonl"))) / total
        workers = _workers(process.pid)
        if workers and share:
            samples.append((share, max(worker.memory_info().rss for worker in workers) / 2**20))
        if workers and not killed and share >= 0.5:
            workers[0].send_signal(signal.SIGKILL)
            killed = share
    return samples, killed


def _workers(pid: int) -> list[Any]:
    import psutil

    found = []
    for child in psutil.Process(pid).children(recursive=True):
        try:
            if any(_WORKER in part for part in child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


def _at(samples: Sequence[tuple[float, float]], share: float) -> float:
    return next((memory for reached, memory in samples if reached >= share), float("nan"))
