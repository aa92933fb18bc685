"""The check of a machine with GPUs, for `benchmark.py gpu`: every task trains, and four known networks are timed.

Where TensorFlow sees no GPU nothing is measured, and the result says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import random
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from shared.runtime import RuntimeConfig
from shared.training_config import TrainingConfig

if TYPE_CHECKING:
    from shared.training import TrainingTask, TrainStep


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large the timed networks and their batches are, and how many steps a turn has."""

    network: str = "ResNet50"
    image_size: int = 224
    image_batch: int = 128
    layers: int = 12
    width: int = 768
    heads: int = 12
    tokens: int = 384
    texts: int = 2048
    text_batch: int = 32
    users: int = 20_000
    items: int = 12_000
    history: int = 50
    user_batch: int = 128
    rows: int = 262_144
    columns: int = 26
    categories: int = 10_000
    row_batch: int = 8192
    steps: int = 30


def gpu(repeats: int, *, sizes: Sizes | None = None, precision: str | None = None) -> dict[str, Any]:
    """The card, whether each task trains in mixed precision, and training examples/s of four networks.

    Args:
        repeats: counted turns.
        sizes: smaller ones, to try the check itself.
        precision: measure in this one, on whatever devices there are.
    """
    import tensorflow as tf

    gpus = tf.config.get_visible_devices("GPU")
    if not gpus and precision is None:
        return {"card": None, "note": "TensorFlow sees no GPU here: nothing was measured, nothing is claimed."}
    details = tf.config.experimental.get_device_details(gpus[0]) if gpus else {}
    precision = precision or mixed_precision(details.get("compute_capability", (0, 0)))
    # One card: several are a matter of docs/distribution.md.
    RuntimeConfig(precision=precision, devices="gpu:0" if gpus else "cpu").apply()  # type: ignore[arg-type]
    sizes = sizes or Sizes()
    card = details.get("device_name", "no GPU")
    build = tf.sysconfig.get_build_info()
    checks = {name: _checked(check) for name, check in CHECKS.items()}
    return {
        "card": card,
        "num_cards": len(gpus),
        "driver": driver(),
        "tensorflow": tf.__version__,
        "cuda": build.get("cuda_version", "none"),
        "cudnn": build.get("cudnn_version", "none"),
        "precision": precision,
        "checks": checks,
        "failed": [name for name, check in checks.items() if not check["trains"]],
        "unit": "training examples/s",
        "files": f"{card}, {precision}; {sizes.network} at {sizes.image_size} px, BERT of {sizes.layers} layers at "
        f"{sizes.tokens} tokens, SASRec of {sizes.history} items, DLRM of {sizes.columns} columns; synthetic: a batch "
        "again and again, pipeline: read, varied and batched",
        **_throughput(sizes, repeats, card, precision),
    }


def mixed_precision(compute_capability: tuple[int, int]) -> str:
    """The reduced precision that a card computes fast: bfloat16 from 8.0 on, float16 from 7.0 on, else none."""
    if compute_capability >= (8, 0):
        return "mixed_bfloat16"
    return "mixed_float16" if compute_capability >= (7, 0) else "float32"


def driver() -> str:
    """Version of the graphics driver, as nvidia-smi gives it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.split("\n")[0].strip()


# Every task trains a few steps.


def _checked(check: Callable[[], tuple[Any, Any]]) -> dict[str, Any]:
    """Losses of the first and the last epoch of a tiny run, or what went wrong."""
    try:
        pipeline, train = check()
        training = TrainingConfig(epochs=6, batch_size=8, learning_rate=3e-3)
        losses = pipeline.fit(train, training=training).losses
    except Exception as error:
        # Whatever it is: the other tasks are to be checked too.
        return {"trains": False, "error": f"{type(error).__name__}: {error}"[:500]}
    return {"trains": math.isfinite(losses[-1]) and losses[-1] < losses[0], "losses": [losses[0], losses[-1]]}


def _image_classification() -> tuple[Any, Any]:
    from vision import ImageClassifier, ImageClassifierConfig

    images = [np.full((32, 32, 3), 40 + 170 * (number % 2), np.uint8) for number in range(32)]
    config = ImageClassifierConfig(image_size=32, width=8)
    return ImageClassifier(config), (images, ["dark", "bright"] * 16)


def _object_detection() -> tuple[Any, Any]:
    from shape_samples import shape_scenes

    from vision import ObjectDetector, ObjectDetectorConfig

    config = ObjectDetectorConfig(image_height=96, image_width=96, width=8)
    return ObjectDetector(config), shape_scenes(32, masks=False)


def _image_segmentation() -> tuple[Any, Any]:
    from shape_samples import CLASSES, shape_scenes

    from vision import ImageSegmenter, ImageSegmenterConfig

    config = ImageSegmenterConfig(labels=CLASSES, image_height=96, image_width=96, width=8)
    return ImageSegmenter(config), shape_scenes(32, masks=True)


_SMALL: dict[str, Any] = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "dropout": 0.0}


def _text_classification() -> tuple[Any, Any]:
    from nlp import TextClassifier, TextClassifierConfig

    texts = [f"{word} number {number}" for number in range(16) for word in ("good", "bad")]
    return TextClassifier(TextClassifierConfig(**_SMALL, vocab_size=200)), (texts, ["yes", "no"] * 16)


def _named_entity_recognition() -> tuple[Any, Any]:
    from nlp import EntityRecognizer, EntityRecognizerConfig

    names = ["Ada", "Bob", "Eve", "Max"]
    sentences = [(name, "lives", "in", place) for name in names for place in ("Rome", "Oslo", "Bonn", "Kyiv")]
    tags = [("B-PER", "O", "O", "B-LOC")] * len(sentences)
    return EntityRecognizer(EntityRecognizerConfig(**_SMALL, vocab_size=200)), (sentences, tags)


def _translation() -> tuple[Any, Any]:
    from phrase_samples import phrase_pairs

    from nlp import Translator, TranslatorConfig

    return Translator(TranslatorConfig(**_SMALL, intermediate_size=64, vocab_size=400)), phrase_pairs(64)


def _sequential_recommendation() -> tuple[Any, Any]:
    from recsys import Interactions, SequentialRecommender, SequentialRecommenderConfig

    users, steps = np.repeat(np.arange(64), 8), np.tile(np.arange(8), 64)
    data = Interactions(users, (3 * users + steps) % 20, timestamps=steps)
    return SequentialRecommender(SequentialRecommenderConfig(dim=16, num_layers=1, max_length=8, dropout=0.0)), data


def _retrieval() -> tuple[Any, Any]:
    from recsys import TwoTowerRetriever, TwoTowerRetrieverConfig

    return TwoTowerRetriever(TwoTowerRetrieverConfig(dim=16)), _sequential_recommendation()[1]


def _ranking() -> tuple[Any, Any]:
    from recsys import Ranker, RankerConfig

    return Ranker(RankerConfig(model="dlrm", dropout=0.0)), _clicks(64, columns=3, categories=4)


CHECKS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "image_classification": _image_classification,
    "object_detection": _object_detection,
    "image_segmentation": _image_segmentation,
    "text_classification": _text_classification,
    "named_entity_recognition": _named_entity_recognition,
    "translation": _translation,
    "sequential_recommendation": _sequential_recommendation,
    "retrieval": _retrieval,
    "ranking": _ranking,
}


# Throughput of known networks.


def _throughput(sizes: Sizes, repeats: int, card: str, precision: str) -> dict[str, Any]:
    from benchmark import measured

    rates: dict[str, Any] = {}
    ratios: dict[str, float] = {}
    figures: dict[str, Any] = {}
    for name, make in NETWORKS.items():
        with make(sizes) as (task, training):
            sides, figures[f"{name}, XLA"] = _sides(task, training, sizes.steps)
            found = measured({f"{name}, {side}": run for side, run in sides.items()}, repeats)
            flops = _flops_per_example(task)
        rates |= found
        synthetic = found[f"{name}, synthetic"]
        for side in list(sides)[1:]:
            turns = zip(found[f"{name}, {side}"]["all"], synthetic["all"], strict=True)
            ratios[f"{name}, {side} / synthetic"] = statistics.median(rate / other for rate, other in turns)
        figures |= _utilisation(name, flops, synthetic["median"], card, precision)
    return {"rates": rates, "ratios": ratios, "figures": figures}


def _sides(task: TrainingTask, training: TrainingConfig, steps: int) -> tuple[dict[str, Callable[[], float]], str]:
    """Training examples/s on one batch that is on the device, and on batches as the input pipeline makes them; on the
    one batch also by a step that XLA compiled, where it can; and how that went.
    """
    import tensorflow as tf

    plain, compiled = _step(task, training), _step(task, training)
    batches = itertools.chain.from_iterable(task.batches.epoch(number) for number in itertools.count())
    first = next(batches)
    kept = {key: tf.convert_to_tensor(array) for key, array in first.items()}

    def rate(step: TrainStep, source: Iterator[Any]) -> float:
        start, count = perf_counter(), 0
        for batch in itertools.islice(source, steps):
            step([batch])
            count += len(next(iter(batch.values())))
        loss = float(step.loss_sum.numpy())  # waits for the device
        seconds = perf_counter() - start
        if not math.isfinite(loss):
            raise RuntimeError(f"The loss is {loss} in the timed steps.")
        return count / seconds

    sides = {
        "synthetic": lambda: rate(plain, itertools.repeat(kept)),
        "pipeline": lambda: rate(plain, batches),
    }
    try:
        seconds = _compile(compiled, kept)
    except Exception as error:
        # Whatever is missing on this machine: the rest is to be measured too.
        return sides, f"{type(error).__name__}: {error}"[:500]
    sides["synthetic with XLA"] = lambda: rate(compiled, itertools.repeat(kept))
    return sides, f"traced, compiled and first run in {seconds:.1f} s"


def _compile(step: TrainStep, batch: dict[str, Any]) -> float:
    """Take a step under XLA; gives the seconds. It stays compiled."""
    from shared.runtime import activated, current_runtime

    start = perf_counter()
    with activated(dataclasses.replace(current_runtime(), xla=True)):
        step([batch])
        step.loss_sum.numpy()  # waits for the device
    return perf_counter() - start


def _step(task: TrainingTask, training: TrainingConfig) -> TrainStep:
    from shared.optimizers import build_optimizer
    from shared.training import TrainStep

    factors, variables = task.rate_factors, task.model.trainable_variables
    optimizer = build_optimizer(training, variables, 1e-4, rate_factors=factors, row_wise=task.row_wise)
    return TrainStep(task, optimizer, training)


def _flops_per_example(task: TrainingTask) -> float | None:
    import tensorflow as tf

    from shared.flops import TRAINING_PASSES, forward_flops

    with contextlib.closing(task.batches.epoch(0)) as batches:  # type: ignore[type-var]
        batch = next(batches)
    counted = forward_flops(task.loss, {key: tf.TensorSpec(array.shape, array.dtype) for key, array in batch.items()})
    return None if counted is None else TRAINING_PASSES * counted / len(next(iter(batch.values())))


def _utilisation(name: str, flops: float | None, rate: float, card: str, precision: str) -> Mapping[str, float]:
    """TFLOP/s on synthetic input, and the share of the card's peak where that is known."""
    from shared.flops import peak_flops

    if flops is None:
        return {}
    peak = peak_flops(card, precision)
    figures = {f"{name}, TFLOP/s": flops * rate / 1e12}
    return figures if peak is None else figures | {f"{name}, share of the card's peak": flops * rate / peak}


@contextlib.contextmanager
def _resnet(sizes: Sizes) -> Iterator[tuple[TrainingTask, TrainingConfig]]:
    """A network of keras.applications with random weights, on JPEG files."""
    import keras
    from benchmark import _photographs

    from vision import ImageClassifier, read_image_folder

    training = TrainingConfig(batch_size=sizes.image_batch, cache_gib=0.0)
    with tempfile.TemporaryDirectory() as directory:
        weights = Path(directory, "network", f"{sizes.network}.weights.h5")
        weights.parent.mkdir()
        getattr(keras.applications, sizes.network)(weights=None).save_weights(weights)
        classifier = ImageClassifier.from_preset(weights.parent, labels="from_data", image_size=sizes.image_size)
        _photographs(Path(directory))
        yield classifier.training_task(read_image_folder(Path(directory, "photos")), training), training


@contextlib.contextmanager
def text_task(sizes: Sizes) -> Iterator[tuple[TrainingTask, TrainingConfig]]:
    """An encoder of BERT's shape, from scratch, on texts that fill its windows."""
    from nlp import TextClassifier, TextClassifierConfig

    config = TextClassifierConfig(
        hidden_size=sizes.width, num_layers=sizes.layers, num_heads=sizes.heads, max_length=sizes.tokens, max_windows=1
    )
    rng = random.Random(0)
    words = ["".join(rng.choices("aeioubdfgklmnprst", k=rng.randint(2, 9))) for _ in range(2000)]
    texts = [" ".join(rng.choices(words, k=sizes.tokens)) for _ in range(sizes.texts)]
    training = TrainingConfig(batch_size=sizes.text_batch)
    yield TextClassifier(config).training_task((texts, ["yes", "no"] * (sizes.texts // 2)), training), training


@contextlib.contextmanager
def _sasrec(sizes: Sizes) -> Iterator[tuple[TrainingTask, TrainingConfig]]:
    from recsys import Interactions, SequentialRecommender, SequentialRecommenderConfig

    rng = np.random.default_rng(0)
    length = sizes.history + 1
    users = np.repeat(np.arange(sizes.users), length)
    items = (sizes.items * rng.random(len(users)) ** 2).astype(np.int64)
    data = Interactions(users, items, timestamps=np.tile(np.arange(length), sizes.users))
    recommender = SequentialRecommender(SequentialRecommenderConfig(max_length=sizes.history))
    training = TrainingConfig(batch_size=sizes.user_batch)
    yield recommender.training_task(data, training), training


@contextlib.contextmanager
def _dlrm(sizes: Sizes) -> Iterator[tuple[TrainingTask, TrainingConfig]]:
    from recsys import Ranker, RankerConfig

    ranker = Ranker(RankerConfig(model="dlrm", hidden=(512, 256), bottom=(256, 64), dropout=0.0, buckets=0))
    training = TrainingConfig(batch_size=sizes.row_batch)
    table = _clicks(sizes.rows, columns=sizes.columns, categories=sizes.categories)
    yield ranker.training_task(table, training), training


def _clicks(rows: int, *, columns: int, categories: int) -> Any:
    """Rows of categories and of 13 numbers, as Criteo's are shaped; the first column decides."""
    from recsys import Features

    rng = np.random.default_rng(0)
    codes = [(categories * rng.random(rows) ** 2).astype(np.int64) for _ in range(columns)]
    table: dict[str, Any] = {f"c{number}": [f"v{code}" for code in column] for number, column in enumerate(codes)}
    table |= {f"n{number}": rng.normal(0, 1, rows) for number in range(13)}
    return Features(table, targets=(codes[0] % 2).astype(np.float32))


NETWORKS: dict[str, Callable[[Sizes], contextlib.AbstractContextManager[tuple[TrainingTask, TrainingConfig]]]] = {
    "ResNet-50": _resnet,
    "BERT-base": text_task,
    "SASRec": _sasrec,
    "DLRM": _dlrm,
}
