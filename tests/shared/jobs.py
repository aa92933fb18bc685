"""Trainings that tests run in processes of their own: `python -m tests.shared.jobs WHAT OUTPUT NUM_DEVICES`.

The same program is one process, one of several workers (as the environment says), or one with several devices.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from shared import TrainingConfig

GLOBAL_BATCH = 8
_WORDS = ("good", "bad", "film", "plot", "very", "not", "dull", "fine", "long", "song")

LONG = TrainingConfig(
    epochs=8,
    batch_size=4,
    optimizer="adamw",
    learning_rate=0.02,
    ema_decay=0.9,
    accumulation_steps=2,
    warmup=0.2,
    checkpoint_steps=4,
)


def training(**changes: Any) -> Any:
    """Plain descent: Adam would make steps of rounding errors where a gradient is 0."""
    from shared.runtime import current_runtime

    fields = {"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.05, "clip_norm": 1.0, "epochs": 2}
    return TrainingConfig(batch_size=GLOBAL_BATCH // current_runtime().num_replicas, **{**fields, **changes})


def image_classifier(**options: Any) -> Any:
    """Images with batch normalisation and random variation."""
    from vision import ImageClassifier, ImageClassifierConfig

    rng = np.random.default_rng(0)
    images = list(rng.integers(0, 256, (44, 16, 16, 3), np.uint8))
    labels = [str(int(image.mean() > 127)) for image in images]
    classifier = ImageClassifier(ImageClassifierConfig(image_size=16, width=4, seed=1))
    classifier.fit((images, labels), (images[:9], labels[:9]), **{"training": training(), **options})
    return classifier


def text_classifier(**options: Any) -> Any:
    """Texts of different lengths, brought together by length."""
    from nlp import TextClassifier, TextClassifierConfig

    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(_WORDS, rng.integers(1, 12))) for _ in range(44)]
    labels = ["yes" if "good" in text else "no" for text in texts]
    config = TextClassifierConfig(hidden_size=16, num_layers=1, num_heads=2, dropout=0.0, seed=1)
    classifier = TextClassifier(config)
    classifier.fit((texts, labels), (texts[:9], labels[:9]), **{"training": training(), **options})
    return classifier


def sequential_recommender(**options: Any) -> Any:
    """Histories of different lengths, whose loss is a mean over places and not over users."""
    from recsys import Interactions, SequentialRecommender, SequentialRecommenderConfig
    from recsys.splitting import leave_one_out

    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 9, 44)
    users = np.repeat(np.arange(44), lengths).tolist()
    items = [f"item{number}" for number in rng.integers(0, 20, len(users))]
    data = leave_one_out(Interactions(users, items))
    config = SequentialRecommenderConfig(dim=8, num_layers=1, num_heads=1, dropout=0.0, seed=1)
    recommender = SequentialRecommender(config)
    recommender.fit(data.train, data.test, **{"training": training(), **options})
    return recommender


JOBS: dict[str, Callable[..., Any]] = {
    "image": image_classifier,
    "text": text_classifier,
    "sequence": sequential_recommender,
}


def all_weights(**options: Any) -> dict[str, np.ndarray]:
    """The final weights of all three, and their losses."""
    arrays: dict[str, np.ndarray] = {}
    for name, job in JOBS.items():
        pipeline = job(**options)
        arrays |= {f"{name}/{i}": np.array(value) for i, value in enumerate(pipeline.model.get_weights())}
        arrays[f"{name}/losses"] = np.array(pipeline.history.losses)
        scores = [value for r in pipeline.history.records for key, value in r.items() if key.startswith("validation")]
        arrays[f"{name}/scores"] = np.array(scores)
    return arrays


# What is done by several processes, or on several devices.


def weights(output: str) -> None:
    """All three, and a training on data of which some cannot be read."""
    from shared.runtime import current_runtime
    from tests.shared import test_training as loop

    arrays = all_weights()
    task = loop.with_bad_examples()
    history = loop.fit(task, loop.PLAIN)
    arrays |= {f"bad/{i}": value for i, value in enumerate(loop.weights(task))}
    arrays["bad/records"] = np.array(sorted(history.bad_records))
    workers = current_runtime().workers
    if workers.is_first and workers.count > 1:
        with workers.acting_alone():
            loop.toy()  # is built while nobody else builds anything
    np.savez(output, **arrays)


def killed(output: str) -> None:
    """A long training, in which worker 1 is killed in its tenth step."""
    from shared.runtime import current_runtime
    from tests.shared import test_training as loop

    after = {"step": 10, "number": signal.SIGKILL} if current_runtime().workers.index == 1 else None
    with _signalled(after):
        loop.fit(loop.toy(dropout=0.3), LONG, checkpoint=Path(output, "state"), resume=True)


def resumed(output: str) -> None:
    """That training gone on with, stopped by a SIGTERM to worker 1, gone on with again, and one that was unbroken."""
    from shared import TrainingInterrupted
    from shared.runtime import current_runtime
    from tests.shared import test_training as loop

    after = {"step": 3, "number": signal.SIGTERM} if current_runtime().workers.index == 1 else None
    # The second worker has no part in the files: it need not even see them.
    state = Path(output, "state") if current_runtime().workers.is_first else Path(output, "nowhere")
    message = ""
    with _signalled(after):
        try:
            loop.fit(loop.toy(dropout=0.3), LONG, checkpoint=state, resume=True)
        except TrainingInterrupted as stop:
            message = str(stop)
    again, unbroken = loop.toy(dropout=0.3), loop.toy(dropout=0.3)
    histories = [loop.fit(again, LONG, checkpoint=state, resume=True), loop.fit(unbroken, LONG)]
    arrays = {f"again/{i}": value for i, value in enumerate(loop.weights(again))}
    arrays |= {f"unbroken/{i}": value for i, value in enumerate(loop.weights(unbroken))}
    for name, history in zip(("again", "unbroken"), histories, strict=True):
        arrays[f"{name}/losses"] = np.array(history.losses)
    arrays |= _with_bad_examples(state.with_name("bad"))
    np.savez(Path(output, f"worker{current_runtime().workers.index}.npz"), message=np.array(message), **arrays)


def _with_bad_examples(state: Path) -> dict[str, np.ndarray]:
    """Data of which some cannot be read, which is found before a stop in the first epoch; and the same unbroken."""
    from shared import TrainingInterrupted
    from tests.shared import test_training as loop

    again, unbroken = loop.with_bad_examples(), loop.with_bad_examples()
    with _signalled({"step": 5, "number": signal.SIGTERM}), contextlib.suppress(TrainingInterrupted):
        loop.fit(loop.with_bad_examples(), loop.PLAIN, checkpoint=state)
    histories = [loop.fit(again, loop.PLAIN, checkpoint=state, resume=True), loop.fit(unbroken, loop.PLAIN)]
    arrays = {f"bad_again/{i}": value for i, value in enumerate(loop.weights(again))}
    arrays |= {f"bad_unbroken/{i}": value for i, value in enumerate(loop.weights(unbroken))}
    for name, history in zip(("bad_again", "bad_unbroken"), histories, strict=True):
        arrays[f"{name}/records"] = np.array(history.bad_records)
        arrays[f"{name}/losses"] = np.array(history.losses)
    return arrays


@contextlib.contextmanager
def _signalled(after: dict[str, Any] | None) -> Iterator[None]:
    """This process sends itself a signal after a step, counted from where it begins."""
    import pytest

    from tests.shared import test_training as loop

    with pytest.MonkeyPatch.context() as patch:
        if after is not None:
            loop.signal_after(patch, **after)
        yield


def main(what: str, output: str, num_devices: int) -> None:
    """Do one of these."""
    from shared import RuntimeConfig

    if num_devices > 1:
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * num_devices)
        RuntimeConfig(devices=",".join(f"cpu:{i}" for i in range(num_devices))).apply()
    else:
        RuntimeConfig().apply()
    {"weights": weights, "killed": killed, "resumed": resumed}[what](output)


if __name__ == "__main__":
    from shared.cli import run_script

    what, output, num_devices = sys.argv[1:]
    sys.exit(run_script(lambda: main(what, output, int(num_devices)), arguments=sys.argv[1:]))
