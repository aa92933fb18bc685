"""Trainings that tests run in processes of their own: `python -m tests.shared.jobs OUTPUT [key=value ...]`.

The same program is one process, one of several workers (as the environment says), or one with several devices.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

GLOBAL_BATCH = 8
_WORDS = ("good", "bad", "film", "plot", "very", "not", "dull", "fine", "long", "song")


def training(**changes: Any) -> Any:
    """Plain descent: Adam would make steps of rounding errors where a gradient is 0."""
    from shared import TrainingConfig
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

    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 9, 44)
    users = np.repeat(np.arange(44), lengths).tolist()
    items = [f"item{number}" for number in rng.integers(0, 20, len(users))]
    data = Interactions(users, items)
    config = SequentialRecommenderConfig(dim=8, num_layers=1, num_heads=1, dropout=0.0, seed=1)
    recommender = SequentialRecommender(config)
    recommender.fit(data, **{"training": training(), **options})
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


def main(output: str) -> None:
    """Train all three and write their weights."""
    from shared import RuntimeConfig

    RuntimeConfig().apply()
    np.savez(output, **all_weights())


if __name__ == "__main__":
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    main(str(Path(sys.argv[1])))
