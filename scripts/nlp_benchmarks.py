"""Benchmarks with text, for `benchmark.py`: beside PyTorch and transformers, which run in a process of their own.

Where these are not installed beside TensorFlow, TRIPTYCH_PEER names the Python that has them. Both sides have the same
weights (our pipeline, written with `save_hugging_face`), the same texts and as many threads as there are cores.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from experiment import ROOT, peer_process

from shared.training_config import TrainingConfig

Sides = dict[str, Callable[[], float]]
_NUM_TEXTS = 512
_NUM_BATCHES = 12


def texts() -> tuple[list[str], str]:
    """Texts of very different lengths, in no order, and what they are."""
    data = Path(os.environ.get("TRIPTYCH_DATA", ROOT.parent / "shared" / "data"))
    rng = random.Random(0)
    if (data / "sst2").is_dir() and (data / "ag-news-10k").is_dir():
        from nlp import read_text_table

        short = read_text_table(data / "sst2" / "test.tsv").inputs[: _NUM_TEXTS // 2]
        long = read_text_table(data / "ag-news-10k" / "test.tsv", header=False).inputs[: _NUM_TEXTS // 2]
        chosen, name = [*short, *long], "half sentences of SST-2, half news of AG News"
    else:
        from nlp import read_text_table

        messages = read_text_table(ROOT / "scripts" / "samples" / "shop_messages.csv").inputs
        chosen = [" ".join(rng.choices(messages, k=rng.randint(1, 10))) for _ in range(_NUM_TEXTS)]
        name = "one to ten of our sample messages, joined"
    rng.shuffle(chosen)
    return chosen, f"{_NUM_TEXTS} texts: {name}"


def text_inference(repeats: int, precision: str = "float32") -> dict[str, Any]:
    """Texts/s of `predict`, of transformers' pipeline, and of sorted PyTorch batches; strings in, classes out."""
    given, description = texts()
    classifier = _classifier(given)
    for _ in range(3):  # so many texts with the same weights that they have become constants
        classifier.predict(given)
    with tempfile.TemporaryDirectory() as directory, _peer(classifier, given, directory, precision) as peer:
        sides: Sides = {
            "triptych predict": lambda: _rate(lambda: classifier.predict(given), len(given)),
            "transformers.pipeline(batch_size=32)": lambda: len(given) / peer("pipeline_texts"),
            "PyTorch, sorted batches": lambda: len(given) / peer("sorted_texts"),
        }
        return _compared(sides, repeats, "texts/s", f"{description}; {precision}", "triptych predict")


def text_single(repeats: int) -> dict[str, Any]:
    """Short texts, one call each."""
    given = sorted(texts()[0], key=len)[:100]
    classifier = _classifier(given)

    def ours() -> None:
        for text in given:
            classifier.predict([text])

    with tempfile.TemporaryDirectory() as directory, _peer(classifier, given, directory) as peer:
        sides: Sides = {
            "triptych predict": lambda: _rate(ours, len(given)),
            "PyTorch, tokenizer and model": lambda: len(given) / peer("single_texts"),
        }
        what = "the 100 shortest, one call each; float32, oneDNN off"
        return _compared(sides, repeats, "texts/s", what, "triptych predict")


def text_finetune(repeats: int) -> dict[str, Any]:
    """Texts/s of training steps on the same batches: loss, gradients, clipping, AdamW."""
    from shared.optimizers import build_optimizer
    from shared.training import TrainStep

    given, description = texts()
    classifier = _classifier(given)
    training = TrainingConfig(batch_size=32, learning_rate=1e-5, weight_decay=0.01)
    task = classifier.training_task((given, [number % 6 for number in range(len(given))]), training)
    batches = list(itertools.islice(task.batches.epoch(0), _NUM_BATCHES))
    step = TrainStep(task, build_optimizer(training, task.model.trainable_variables, 1e-5), training)
    count = sum(len(batch["targets"]) for batch in batches)

    def ours() -> None:
        for batch in batches:
            step([batch])
        step.loss_sum.numpy()

    with tempfile.TemporaryDirectory() as directory:
        arrays = {
            f"{name}_{number}": batch[key].reshape(-1, batch[key].shape[-1]) if batch[key].ndim > 1 else batch[key]
            for number, batch in enumerate(batches)
            for name, key in (("ids", "token_ids"), ("mask", "mask"), ("targets", "targets"))
        }
        np.savez(Path(directory) / "batches.npz", allow_pickle=False, **arrays)
        with _peer(classifier, given, directory) as peer:
            sides: Sides = {
                "triptych step": lambda: _rate(ours, count),
                "PyTorch step": lambda: count / peer("training_steps"),
            }
            what = f"{description}; {_NUM_BATCHES} batches of 32, the same arrays; float32, dropout 0.1"
            return _compared(sides, repeats, "texts/s", what, "triptych step")


def ner_inference(repeats: int) -> dict[str, Any]:
    """Texts/s of an entity recognizer's `predict` and of transformers' pipeline with whole words."""
    from nlp import EntityRecognizer

    given, description = texts()
    recognizer = EntityRecognizer.from_preset("minilm_l6", labels=("PER", "ORG", "LOC"), max_length=256)
    words = [text.split() for text in given[:64]]
    tags = [["B-PER" if word[:1].isupper() and number else "O" for number, word in enumerate(text)] for text in words]
    recognizer.fit((words, tags), training=TrainingConfig(epochs=2, learning_rate=3e-4))
    with tempfile.TemporaryDirectory() as directory, _peer(recognizer, given, directory) as peer:
        sides: Sides = {
            "triptych predict": lambda: _rate(lambda: recognizer.predict(given), len(given)),
            "transformers.pipeline(batch_size=32)": lambda: len(given) / peer("pipeline_entities"),
        }
        return _compared(sides, repeats, "texts/s", f"{description}; float32", "triptych predict")


def _classifier(given: Sequence[str]) -> Any:
    """MiniLM under a head for six classes, barely trained: what it answers does not matter here."""
    from nlp import TextClassifier

    labels = tuple(f"class {number}" for number in range(6))
    classifier = TextClassifier.from_preset("minilm_l6", labels=labels, max_length=256)
    classifier.fit((given[:12], [labels[number % 6] for number in range(12)]), training=TrainingConfig(epochs=1))
    return classifier


def _rate(run: Callable[[], Any], count: int) -> float:
    start = time.perf_counter()
    run()
    return count / (time.perf_counter() - start)


def _compared(sides: Sides, repeats: int, unit: str, files: str, ours: str) -> dict[str, Any]:
    from benchmark import measured, ratios

    rates = measured(sides, repeats)
    return {"unit": unit, "files": files, "rates": rates, "ratios": ratios(rates, ours)}


@contextlib.contextmanager
def _peer(
    pipeline: Any, given: Sequence[str], directory: str, precision: str = "float32"
) -> Iterator[Callable[[str], float]]:
    """A function that lets the peer run one side and gives its seconds."""
    pipeline.save_hugging_face(directory)
    Path(directory, "texts.json").write_text(json.dumps(list(given)), encoding="utf-8")
    threads = str(len(os.sched_getaffinity(0)))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with peer_process("torch_text.py", directory, threads, precision, **pipes) as process:
        yield functools.partial(_seconds, process)
        assert process.stdin is not None
        process.stdin.close()


def _seconds(process: subprocess.Popen[str], side: str) -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps({"side": side}) + "\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise RuntimeError("The process with PyTorch ended; it needs torch and transformers (TRIPTYCH_PEER).")
    return float(json.loads(line)["seconds"])
