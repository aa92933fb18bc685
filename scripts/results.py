"""Run the experiments behind docs/results.md and write that page.

    python scripts/results.py                       # only render the page from docs/results.json
    python scripts/results.py fashion-mnist         # run one experiment again, then render
    python scripts/results.py --all                 # run them all (about two hours on 2 cores)

Each experiment names its data, split, seeds, metric and command, and records wall time and hardware; the figures are
kept in docs/results.json, so the page can be rendered without running anything.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmark import BENCHMARKS, hardware

from shared.cli import OneLineParser, run_script
from shared.runtime import RuntimeConfig
from shared.training_config import TrainingConfig

_ROOT = Path(__file__).parents[1]
_RECORD = _ROOT / "docs" / "results.json"
_PAGE = _ROOT / "docs" / "results.md"
_SEEDS = (0, 1, 2)


def data_directory() -> Path:
    """Where the data sets are: TRIPTYCH_DATA, or ../shared/data beside the project."""
    directory = Path(os.environ.get("TRIPTYCH_DATA", _ROOT.parent / "shared" / "data"))
    if not directory.is_dir():
        raise FileNotFoundError(f"There are no data sets at {directory}. Set TRIPTYCH_DATA to their directory.")
    return directory


def fashion_mnist() -> dict[str, Any]:
    """From scratch on Fashion-MNIST, three seeds."""
    from vision import ImageClassifier, ImageClassifierConfig, read_idx

    train = read_idx(data_directory() / "fashion-mnist", split="train")
    test = read_idx(data_directory() / "fashion-mnist", split="test")
    runs = []
    for seed in _SEEDS:
        classifier = ImageClassifier(ImageClassifierConfig(**FASHION_CONFIG, seed=seed))
        history = classifier.fit(train, training=TrainingConfig(**FASHION_TRAINING, seed=seed))
        runs.append(_run(seed, classifier.evaluate(test), history))
    return {
        "title": "Fashion-MNIST, residual network from scratch",
        "data": "fashion-mnist: 60,000 training and 10,000 test images, 28 x 28 grey; no validation set, last weights",
        "metric": "test accuracy",
        "target": "at least 0.940 as the mean of 3 seeds, each run at most 15 minutes on 2 cores",
        "settings": _settings(FASHION_CONFIG, FASHION_TRAINING),
        "runs": runs,
        "baseline": _pixel_baseline(train, test),
    }


FASHION_CONFIG: dict[str, Any] = {
    "image_size": 28,
    "channels": 1,
    "width": 24,
    "pooling": "grid",
    "crop": "none",
    "average_mirrored": True,
}
FASHION_TRAINING: dict[str, Any] = {
    "epochs": 9,
    "batch_size": 64,
    "learning_rate": 0.004,
    "schedule": "one_cycle",
    "warmup": 0.15,
    "weight_decay": 0.05,
    "clip_norm": 0.0,
    "label_smoothing": 0.1,
    "ema_decay": 0.999,
}

FLOWERS_CONFIG: dict[str, Any] = {"image_size": 128, "crop_scale": 0.5}
FLOWERS_TRAINING: dict[str, Any] = {
    "epochs": 8,
    "batch_size": 32,
    "learning_rate": 0.001,
    "freeze_epochs": 1,
    "freeze_groups": 2,
    "layer_decay": 0.9,
    "weight_decay": 0.05,
    "ema_decay": 0.98,
    "label_smoothing": 0.1,
    "warmup": 0.1,
}
FLOWERS_SCRATCH_CONFIG: dict[str, Any] = {"image_size": 64, "width": 24}
FLOWERS_SCRATCH_TRAINING: dict[str, Any] = {
    "epochs": 20,
    "batch_size": 64,
    "learning_rate": 0.004,
    "label_smoothing": 0.1,
    "ema_decay": 0.98,
    "weight_decay": 0.05,
}


def flowers5() -> dict[str, Any]:
    """EfficientNet-Lite0 fine-tuned on flowers5, beside a linear classifier on its frozen features."""
    from vision import ImageClassifier

    classifier = ImageClassifier.from_preset("efficientnet_lite0", labels="from_data", **FLOWERS_CONFIG, seed=0)
    baseline = _probe_baseline(FLOWERS_CONFIG["image_size"])
    return {
        "title": "flowers5, EfficientNet-Lite0 fine-tuned",
        "data": "flowers5: 3,426 training, 417 validation, 464 test photographs of 128 px, 5 classes; best weights by "
        "validation accuracy",
        "metric": "test accuracy",
        "target": "at least 0.90, at most 15 minutes on 2 cores",
        "settings": _settings(FLOWERS_CONFIG, FLOWERS_TRAINING),
        "runs": [_flowers_run(classifier, FLOWERS_TRAINING, 0)],
        "baseline": baseline,
        "figures": {
            f"PSNR of photographs shrunk to {side} px and enlarged again (dB, median)": _median_psnr(side)
            for side in (16, 32, 64)
        },
    }


def _probe_baseline(image_size: int) -> dict[str, Any]:
    """A logistic regression on the pretrained network's pooled features, its strength chosen on the validation set."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from shared.pretrained import resolve
    from vision import read_image_folder
    from vision.images import decode_image
    from vision.models.backbones import load_pretrained_classifier
    from vision.preprocessing import prepare_image
    from vision.presets import PRESETS

    preset = load_pretrained_classifier(resolve("efficientnet_lite0", PRESETS), image_size)
    preprocessing = dataclasses.replace(preset.preprocessing, image_size=image_size)
    mean, std = np.asarray(preprocessing.mean, np.float32), np.asarray(preprocessing.std, np.float32)

    def features(split: str) -> tuple[Any, Any]:
        examples = read_image_folder(data_directory() / "flowers5" / split)
        images = np.stack([prepare_image(decode_image(path), preprocessing) for path in examples.inputs])
        parts = [
            np.asarray(preset.trunk((images[i : i + 32] - mean) / std, training=False)).mean(axis=(1, 2))
            for i in range(0, len(images), 32)
        ]
        return np.concatenate(parts), list(examples.targets)

    train, validation, test = (features(split) for split in ("train", "val", "test"))
    tried = [
        make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=300)).fit(*train) for c in (0.001, 0.01, 0.1)
    ]
    best = max(tried, key=lambda model: model.score(*validation))
    return {
        "name": "logistic regression on the frozen network's pooled features",
        "accuracy": float(best.score(*test)),
    }


def _median_psnr(side: int) -> float:
    """How well photographs survive being shrunk to `side` pixels: above about 40 dB nothing visible was there."""
    import cv2

    from vision.images import decode_image

    values = []
    for path in sorted((data_directory() / "flowers5" / "train").rglob("*.jpg"))[::20]:
        photo = decode_image(path)
        small = cv2.resize(photo, (side, side), interpolation=cv2.INTER_AREA)
        values.append(cv2.PSNR(photo, cv2.resize(small, photo.shape[1::-1], interpolation=cv2.INTER_CUBIC)))
    return statistics.median(values)


def flowers5_from_scratch() -> dict[str, Any]:
    """The residual network from scratch on flowers5, one seed: what the preset is worth."""
    from vision import ImageClassifier, ImageClassifierConfig

    classifier = ImageClassifier(ImageClassifierConfig(**FLOWERS_SCRATCH_CONFIG, seed=0))
    return {
        "title": "flowers5, residual network from scratch",
        "data": "flowers5, as above",
        "metric": "test accuracy",
        "target": "none: it stands beside the fine-tuned figure",
        "settings": _settings(FLOWERS_SCRATCH_CONFIG, FLOWERS_SCRATCH_TRAINING),
        "runs": [_flowers_run(classifier, FLOWERS_SCRATCH_TRAINING, 0)],
    }


def _flowers_run(classifier: Any, training: dict[str, Any], seed: int) -> dict[str, Any]:
    from vision import read_image_folder

    train, validation, test = (read_image_folder(data_directory() / "flowers5" / s) for s in ("train", "val", "test"))
    history = classifier.fit(train, validation, training=TrainingConfig(**training, seed=seed))
    return _run(seed, classifier.evaluate(test), history)


def _run(seed: int, metrics: Any, history: Any) -> dict[str, Any]:
    return {
        "seed": seed,
        "metrics": dict(metrics),
        "minutes": history.wall_seconds / 60,
        "best_epoch": history.best_epoch,
    }


def _settings(config: dict[str, Any], training: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in {**config, **training}.items())


def _pixel_baseline(train: Any, test: Any) -> dict[str, Any]:
    """A logistic regression on pixels, its strength chosen on the last 5,000 training images."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    flat = [np.reshape(examples.inputs, (len(examples), -1)).astype(np.float32) / 255 for examples in (train, test)]
    fit_x, held_x, fit_y, held_y = flat[0][:10000], flat[0][-5000:], train.targets[:10000], train.targets[-5000:]
    tried = {c: LogisticRegression(C=c, max_iter=200, tol=1e-2).fit(fit_x, fit_y) for c in (0.01, 0.1, 1.0)}
    best = max(tried, key=lambda c: tried[c].score(held_x, held_y))
    model = LogisticRegression(C=best, max_iter=200, tol=1e-2).fit(flat[0], train.targets)
    return {
        "name": f"logistic regression on pixels (C {best:g})",
        "accuracy": float(model.score(flat[1], test.targets)),
    }


def image_input() -> dict[str, Any]:
    """Input pipeline beside bare OpenCV and Keras's loader."""
    return _benchmark("image-input", "Image input", "at least 0.9 of bare OpenCV; ahead of Keras; memory flat")


def image_classification() -> dict[str, Any]:
    """`fit` beside `keras.Model.fit`."""
    return _benchmark("image-classification", "Overhead of fit", "at least 0.97 of keras.Model.fit")


def _benchmark(name: str, title: str, target: str) -> dict[str, Any]:
    repeats = 7
    return {"title": title, "target": target, "benchmark": f"{name} --repeats {repeats}", **BENCHMARKS[name](repeats)}


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
        cwd=_ROOT,
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


# The preset beside a reference forward pass.


def preset_reference() -> dict[str, Any]:
    """EfficientNet-Lite0's own head beside the reference logits kept in tests/golden."""
    import numpy as np

    from vision import ImageClassifier

    golden = np.load(_ROOT / "tests" / "golden" / "efficientnet_lite0.npz")
    classifier = ImageClassifier.from_preset("efficientnet_lite0")
    logits = np.asarray(classifier.model(golden["images"].astype(np.float32), training=False))
    return {
        "title": "EfficientNet-Lite0 beside the reference forward pass",
        "data": str(golden["description"]),
        "target": "same top-1; largest logit difference stated",
        "figures": {
            "images": len(logits),
            "same top-1": int(np.sum(logits.argmax(1) == golden["logits"].argmax(1))),
            "largest logit difference": float(np.max(np.abs(logits - golden["logits"]))),
            "largest logit": float(np.max(np.abs(golden["logits"]))),
        },
    }


TREC_CONFIG: dict[str, Any] = {"max_length": 64}
TREC_TRAINING: dict[str, Any] = {"epochs": 4, "learning_rate": 2e-4, "layer_decay": 0.9, "ema_decay": 0.98}


def trec() -> dict[str, Any]:
    """MiniLM fine-tuned on TREC's six classes of questions, three seeds."""
    from nlp import TextClassifier, read_text_table
    from nlp.baselines import tfidf_baseline

    train, test = (read_text_table(data_directory() / "trec" / f"{split}.tsv") for split in ("train", "test"))
    runs = []
    for seed in _SEEDS:
        classifier = TextClassifier.from_preset("minilm_l6", labels="from_data", **TREC_CONFIG, seed=seed)
        history = classifier.fit(train, training=TrainingConfig(**TREC_TRAINING, seed=seed))
        runs.append(_run(seed, classifier.evaluate(test), history))
    baseline = tfidf_baseline(train, test)
    return {
        "title": "TREC-6, MiniLM fine-tuned",
        "data": "trec: 5,452 training and 500 test questions, 6 classes; no validation set, last weights",
        "metric": "test accuracy",
        "target": "at least 0.962 as the mean of 3 seeds",
        "settings": _settings(TREC_CONFIG, TREC_TRAINING),
        "runs": runs,
        "baseline": {
            "name": f"logistic regression on TF-IDF (C {baseline.details['strength']:g})",
            "accuracy": baseline["accuracy"],
        },
    }


EXPERIMENTS: dict[str, Callable[[], dict[str, Any]]] = {
    "fashion-mnist": fashion_mnist,
    "flowers5": flowers5,
    "flowers5-from-scratch": flowers5_from_scratch,
    "preset-reference": preset_reference,
    "image-input": image_input,
    "image-classification": image_classification,
    "kill-and-resume": kill_and_resume,
    "trec": trec,
}


# Each target as a machine reads it; what only its words say (flat memory, a stated difference) is left to the reader. A
# metric is the mean over runs, "minutes" the longest run; a bound that is a text names another figure.
BOUNDS: dict[str, list[dict[str, Any]]] = {
    "fashion-mnist": [{"metric": "accuracy", "at_least": 0.94}, {"minutes": "of a run", "at_most": 15}],
    "flowers5": [{"metric": "accuracy", "at_least": 0.90}, {"minutes": "of a run", "at_most": 15}],
    "preset-reference": [{"figure": "same top-1", "at_least": "images"}],
    "image-input": [
        {"ratio": "triptych, augmented / bare OpenCV decode and resize", "at_least": 0.9},
        {"ratio": "triptych, augmented / keras.utils.image_dataset_from_directory", "at_least": 1.0},
    ],
    "image-classification": [{"ratio": "triptych fit / keras.Model.fit", "at_least": 0.97}],
    "kill-and-resume": [{"figure": "bit-equal after resuming", "at_least": "trials"}],
    "trec": [{"metric": "accuracy", "at_least": 0.962}],
}


# The page.


def render(records: dict[str, Any]) -> str:
    """docs/results.md from the kept figures."""
    parts = [
        "# Results\n",
        "Generated by `python scripts/results.py` from docs/results.json; do not edit. Each section's command runs the "
        "experiment again and updates both.\n",
    ]
    for name in EXPERIMENTS:
        if name in records:
            parts.append(_section(name, records[name]))
    return "\n".join(parts)


def _section(name: str, record: dict[str, Any]) -> str:
    machine = record["hardware"]
    lines = [f"## {record['title']}\n", f"- command: `python scripts/results.py {name}`"]
    if "benchmark" in record:
        lines.append(f"- measured by: `python scripts/benchmark.py {record['benchmark']}`")
    lines += [f"- {key}: {record[key]}" for key in ("data", "files", "settings", "metric") if key in record]
    if "target" in record:
        lines.append(f"- target: {record['target']}{_verdict(record)}")
    where = f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}"
    lines.append(f"- measured on {record['date']}: {where}; wall time {record['minutes']:.1f} min\n")
    if "runs" in record:
        lines += _run_table(record)
    if "rates" in record:
        lines += _rate_table(record)
    if "figures" in record:
        lines += ["", "| figure | value |", "|---|---|"]
        lines += [f"| {key} | {_shown(value)} |" for key, value in record["figures"].items()]
    if "kills" in record:
        lines += ["", "Killed after: " + "; ".join(record["kills"]) + "."]
    return "\n".join([*lines, ""])


def _verdict(record: dict[str, Any]) -> str:
    """Whether the measured figures keep the record's bounds; nothing where it has none."""
    if not record.get("bound"):
        return ""
    return ": **met**" if all(_is_kept(record, bound) for bound in record["bound"]) else ": **not met**"


def _is_kept(record: dict[str, Any], bound: dict[str, Any]) -> bool:
    if "metric" in bound:
        value = statistics.mean(run["metrics"][bound["metric"]] for run in record["runs"])
    elif "minutes" in bound:
        value = max(run["minutes"] for run in record["runs"])
    else:
        value = record["ratios"][bound["ratio"]] if "ratio" in bound else record["figures"][bound["figure"]]
    limit = bound["at_least"] if "at_least" in bound else bound["at_most"]
    limit = record["figures"][limit] if isinstance(limit, str) else limit
    return bool(value >= limit if "at_least" in bound else value <= limit)


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _run_table(record: dict[str, Any]) -> list[str]:
    names = list(record["runs"][0]["metrics"])
    lines = ["| seed | " + " | ".join(names) + " | minutes of training |", "|---" * (len(names) + 2) + "|"]
    for run in record["runs"]:
        values = " | ".join(f"{run['metrics'][name]:.4f}" for name in names)
        lines.append(f"| {run['seed']} | {values} | {run['minutes']:.1f} |")
    if len(record["runs"]) > 1:
        means = " | ".join(f"{statistics.mean(run['metrics'][name] for run in record['runs']):.4f}" for name in names)
        minutes = statistics.mean(run["minutes"] for run in record["runs"])
        lines.append(f"| **mean** | {means} | {minutes:.1f} |")
    if "baseline" in record:
        lines += ["", f"Baseline: {record['baseline']['name']}, accuracy {record['baseline']['accuracy']:.4f}."]
    return lines


def _rate_table(record: dict[str, Any]) -> list[str]:
    lines = [f"| side | {record['unit']}, median | lowest | highest |", "|---|---|---|---|"]
    for side, rate in record["rates"].items():
        lines.append(f"| {side} | {rate['median']:.0f} | {min(rate['all']):.0f} | {max(rate['all']):.0f} |")
    lines += ["", *(f"- {key}: **{value:.2f}** (median over turns)" for key, value in record["ratios"].items())]
    memory = record.get("resident_mib_after_each_of_10_passes")
    return (
        [*lines, f"- resident memory after each of 10 passes, MiB: {', '.join(map(str, memory))}"] if memory else lines
    )


def run_experiment(name: str, records: dict[str, Any]) -> None:
    """Run one experiment and put its record among `records`."""
    print(f"running {name}", file=sys.stderr)
    start = time.monotonic()
    record = EXPERIMENTS[name]()
    record |= {"minutes": (time.monotonic() - start) / 60, "date": time.strftime("%Y-%m-%d"), "hardware": hardware()}
    records[name] = record
    keep(records)


def keep(records: dict[str, Any]) -> None:
    """Write the records, each with the bounds that its target has now."""
    for name, record in records.items():
        if name in BOUNDS:
            record["bound"] = BOUNDS[name]
    _RECORD.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the named experiments, then render the page."""
    parser = OneLineParser(description="Run experiments and write docs/results.md.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(EXPERIMENTS)}; none: only render")
    parser.add_argument("--all", action="store_true", help="run every experiment")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in EXPERIMENTS]
    if unknown:
        raise ValueError(f"There is no experiment {unknown[0]!r}. Experiments: {', '.join(EXPERIMENTS)}.")
    RuntimeConfig().apply()
    records = json.loads(_RECORD.read_text(encoding="utf-8")) if _RECORD.exists() else {}
    for name in EXPERIMENTS if options.all else options.names:
        run_experiment(name, records)
    keep(records)
    _PAGE.write_text(render(records), encoding="utf-8")
    print(f"wrote {_PAGE.relative_to(_ROOT)}")


if __name__ == "__main__":
    sys.exit(run_script(main))
