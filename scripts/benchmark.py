"""Measure ours beside a peer, in one process, warmed up, in turns; medians and ratios as JSON.

    python scripts/benchmark.py image-input
    python scripts/benchmark.py image-classification --repeats 7 --json result.json

`image-input` reads photographs from TRIPTYCH_DATA (coco-tiny) where that is there, else pictures drawn on the spot; the
text benchmarks read SST-2 and AG News, else our samples. Those with text and of translation need torch and
transformers (see nlp_benchmarks.py). `gpu` checks a machine with GPUs and measures nothing on one without.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dense_benchmarks
import gpu_benchmarks
import memory_benchmarks
import nlp_benchmarks
import recsys_benchmarks
import translation_benchmarks

from shared.cli import OneLineParser, run_script
from shared.runtime import RuntimeConfig

# Enough that filling and draining the pipelines is a small part of a pass.
_NUM_IMAGES = 1600


def measured(sides: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, dict[str, Any]]:
    """Run each side once to warm up, then `repeats` times in turns; a side returns its rate, higher is better."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for run in range(repeats + 1):
        for name, side in sides.items():
            rate = side()
            if run:
                rates[name].append(rate)
    return {name: {"median": statistics.median(values), "all": values} for name, values in rates.items()}


def ratios(rates: Mapping[str, Mapping[str, Any]], ours: str) -> dict[str, float]:
    """Median over turns of our rate divided by the other's in the same turn."""
    own = rates[ours]["all"]
    return {
        f"{ours} / {name}": statistics.median(a / b for a, b in zip(own, values["all"], strict=True))
        for name, values in rates.items()
        if name != ours
    }


# Instruction sets by which speeds differ most, the strongest first, as Linux names them.
_VECTORS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")


def hardware() -> dict[str, Any]:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
        widest = next((name for name in _VECTORS if name in fields.get("flags", "").split()), None)
        model = fields.get("model name", model) + (f" with {widest}" if widest else "")
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}


# image-input: JPEG files to augmented 224 px float batches.


def image_input(repeats: int) -> dict[str, Any]:
    """Images/s of our input pipeline, of bare OpenCV decode and resize, and of Keras's directory loader."""
    with tempfile.TemporaryDirectory() as directory:
        source = _photographs(Path(directory))
        sides = _image_input_sides(Path(directory) / "photos")
        rates = measured({name: functools.partial(_timed, run) for name, run in sides.items()}, repeats)
        memory = _memory_over_passes(sides["triptych, augmented"], passes=10)
    return {
        "unit": "images/s",
        "files": f"{_NUM_IMAGES} JPEG files of {source}, batches of 32 at 224 px, float32",
        "rates": rates,
        "ratios": ratios(rates, "triptych, augmented"),
        "resident_mib_after_each_of_10_passes": memory,
    }


def _timed(run: Callable[[], int]) -> float:
    start = time.perf_counter()
    return run() / (time.perf_counter() - start)


def _image_input_sides(directory: Path) -> dict[str, Callable[[], int]]:
    import cv2
    import keras
    import numpy as np

    from shared.data import InputPipeline, Loading, Stages
    from vision.augmentation import Augmentation
    from vision.data import read_image_folder
    from vision.images import decode_image

    examples = read_image_folder(directory)
    augmentation = Augmentation(image_size=224)
    stages = Stages(
        encode=lambda path, _: {"images": decode_image(path)},
        augment=lambda arrays, rng: {"images": augmentation(arrays["images"], rng)},
        collate=lambda group: {"images": np.stack([arrays["images"] for arrays in group], dtype=np.float32)},
    )
    pipeline = InputPipeline(examples, stages, Loading(batch_size=32, shuffle=True))
    threads = len(os.sched_getaffinity(0))

    def ours() -> int:
        return sum(len(batch["images"]) for batch in pipeline.epoch())

    def bare(path: str) -> Any:
        return cv2.resize(cv2.imread(path), (224, 224))

    def opencv() -> int:
        cv2.setNumThreads(1)
        with ThreadPoolExecutor(threads) as pool:
            return sum(1 for _ in pool.map(bare, examples.inputs))

    loader = keras.utils.image_dataset_from_directory(directory, image_size=(224, 224), batch_size=32, verbose=False)

    def keras_loader() -> int:
        return sum(int(images.shape[0]) for images, _ in loader)

    return {
        "triptych, augmented": ours,
        "bare OpenCV decode and resize": opencv,
        "keras.utils.image_dataset_from_directory": keras_loader,
    }


def _memory_over_passes(run: Callable[[], int], passes: int) -> list[int]:
    import psutil

    process = psutil.Process()
    memory = []
    for _ in range(passes):
        run()
        memory.append(round(process.memory_info().rss / 2**20))
    return memory


def _photographs(directory: Path) -> str:
    """Fill a folder per class with links to photographs, or with drawn pictures; says which."""
    data = Path(os.environ.get("TRIPTYCH_DATA", Path(__file__).parents[2] / "shared" / "data"))
    found = sorted((data / "coco-tiny").rglob("*.jpg"))
    files = list(found) or list(_drawn(directory))
    for number in range(_NUM_IMAGES):
        folder = directory / "photos" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:04d}.jpg").symlink_to(files[number % len(files)])
    return "coco-tiny (about 640 x 480)" if found else "drawn pictures (640 x 480)"


def _drawn(directory: Path) -> Iterator[Path]:
    import cv2
    import numpy as np

    (directory / "drawn").mkdir()
    for number in range(40):
        noise = np.random.default_rng(number).integers(0, 256, (48, 64, 3), np.uint8)
        file = directory / "drawn" / f"{number}.jpg"
        cv2.imwrite(str(file), cv2.resize(noise, (640, 480), interpolation=cv2.INTER_CUBIC))
        yield file


# image-classification: `fit` beside a bare Keras `model.fit`.


def image_classification(repeats: int) -> dict[str, Any]:
    """Training images/s of our `fit` and of `keras.Model.fit`: same network, optimizer and in-memory images."""
    sides = _fit_sides()
    rates = measured(sides, repeats)
    return {
        "unit": "training images/s",
        "files": "4,096 random 32 x 32 RGB images in memory, residual network of width 16, Adam, batches of 128",
        "rates": rates,
        "ratios": ratios(rates, "triptych fit"),
    }


def _fit_sides() -> dict[str, Callable[[], float]]:
    import keras
    import numpy as np

    from shared.training_config import TrainingConfig
    from vision import ImageClassifier, ImageClassifierConfig

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4096, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, 4096)
    names = tuple(str(number) for number in range(10))
    config = ImageClassifierConfig(image_size=32, width=16, labels=names, crop="none", flip=False)
    training = TrainingConfig(
        epochs=2, batch_size=128, clip_norm=0.0, weight_decay=0.0, schedule="constant", warmup=0.0
    )

    def ours() -> float:
        history = ImageClassifier(config).fit((images, labels), training=training)
        return float(history.records[-1]["examples_per_second"])

    def bare() -> float:
        classifier = ImageClassifier(config)
        classifier.training_task((images[:1], labels[:1]), training)
        model = classifier.model
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer=keras.optimizers.Adam(1e-3), loss=loss)
        model.fit(images, labels, batch_size=128, verbose=0)
        start = time.perf_counter()
        model.fit(images, labels, batch_size=128, verbose=0)
        return len(images) / (time.perf_counter() - start)

    return {"triptych fit": ours, "keras.Model.fit": bare}


BENCHMARKS: dict[str, Callable[[int], dict[str, Any]]] = {
    "image-input": image_input,
    "image-classification": image_classification,
    "detection-inference": dense_benchmarks.detection_inference,
    "detection-train": dense_benchmarks.detection_train,
    "text-inference": nlp_benchmarks.text_inference,
    "text-inference-bfloat16": functools.partial(nlp_benchmarks.text_inference, precision="bfloat16"),
    "text-single": nlp_benchmarks.text_single,
    "text-finetune": nlp_benchmarks.text_finetune,
    "ner-inference": nlp_benchmarks.ner_inference,
    "gpu": gpu_benchmarks.gpu,
    "gradient-checkpointing": memory_benchmarks.gradient_checkpointing,
    "ials": recsys_benchmarks.ials,
    "ranking": recsys_benchmarks.ranking,
    "sasrec": recsys_benchmarks.sasrec,
    "two-tower": recsys_benchmarks.two_tower,
    "top-k": recsys_benchmarks.top_k,
    "translation-decode": translation_benchmarks.translation_decode,
    "translation-decode-bfloat16": translation_benchmarks.translation_decode_bfloat16,
    "translation-train": translation_benchmarks.translation_train,
}
# What is applied before a benchmark; the others run with the defaults. oneDNN's kernels gain on batches and lose on
# the few rows of one short text.
RUNTIMES: dict[str, RuntimeConfig] = {
    "text-inference-bfloat16": RuntimeConfig(precision="mixed_bfloat16"),
    "translation-decode-bfloat16": RuntimeConfig(precision="mixed_bfloat16"),
    "text-single": RuntimeConfig(onednn="off"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one benchmark and print its JSON."""
    parser = OneLineParser(description="Measure ours beside a peer, in turns; prints JSON.")
    parser.add_argument("name", choices=sorted(BENCHMARKS), help="what to measure")
    parser.add_argument("--repeats", type=int, default=5, help="counted turns after one to warm up (default: 5)")
    parser.add_argument("--json", type=Path, help="write the JSON there too")
    options = parser.parse_args(arguments)
    RUNTIMES.get(options.name, RuntimeConfig()).apply()
    result = {
        "benchmark": options.name,
        "command": f"python scripts/benchmark.py {options.name} --repeats {options.repeats}",
        "hardware": hardware(),
        **BENCHMARKS[options.name](options.repeats),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n", encoding="utf-8")
    if result.get("failed"):
        raise RuntimeError(f"These tasks did not train: {', '.join(result['failed'])}. See `checks`.")


if __name__ == "__main__":
    sys.exit(run_script(main))
