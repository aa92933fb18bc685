"""Experiments with pictures, for `results.py`."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

from experiment import ROOT, SEEDS, benchmark_record, data_directory, run_record, settings

from shared.training_config import TrainingConfig


def fashion_mnist() -> dict[str, Any]:
    """From scratch on Fashion-MNIST, three seeds."""
    from vision import ImageClassifier, ImageClassifierConfig, read_idx

    train = read_idx(data_directory() / "fashion-mnist", split="train")
    test = read_idx(data_directory() / "fashion-mnist", split="test")
    runs = []
    for seed in SEEDS:
        classifier = ImageClassifier(ImageClassifierConfig(**FASHION_CONFIG, seed=seed))
        history = classifier.fit(train, training=TrainingConfig(**FASHION_TRAINING, seed=seed))
        runs.append(run_record(seed, classifier.evaluate(test), history))
    return {
        "title": "Fashion-MNIST, residual network from scratch",
        "data": "fashion-mnist: 60,000 training and 10,000 test images, 28 x 28 grey; no validation set, last weights",
        "metric": "test accuracy",
        "target": "at least 0.940 as the mean of 3 seeds, each run at most 15 minutes on 2 cores",
        "settings": settings(FASHION_CONFIG, FASHION_TRAINING),
        "runs": runs,
        "baseline": _pixel_baseline(train, test),
    }


FASHION_CONFIG: dict[str, Any] = {
    "image_size": 28,
    "channels": 1,
    "width": 32,
    "pooling": "grid",
    "crop": "none",
    "erasing": 0.25,
    "average_mirrored": True,
}
FASHION_TRAINING: dict[str, Any] = {
    "epochs": 16,
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
        "settings": settings(FLOWERS_CONFIG, FLOWERS_TRAINING),
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
        "settings": settings(FLOWERS_SCRATCH_CONFIG, FLOWERS_SCRATCH_TRAINING),
        "runs": [_flowers_run(classifier, FLOWERS_SCRATCH_TRAINING, 0)],
    }


def _flowers_run(classifier: Any, training: dict[str, Any], seed: int) -> dict[str, Any]:
    from vision import read_image_folder

    train, validation, test = (read_image_folder(data_directory() / "flowers5" / s) for s in ("train", "val", "test"))
    history = classifier.fit(train, validation, training=TrainingConfig(**training, seed=seed))
    return run_record(seed, classifier.evaluate(test), history)


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
    return benchmark_record("image-input", "Image input", "at least 0.9 of bare OpenCV; ahead of Keras; memory flat")


def image_classification() -> dict[str, Any]:
    """`fit` beside `keras.Model.fit`."""
    return benchmark_record("image-classification", "Overhead of fit", "at least 0.97 of keras.Model.fit")


# The preset beside a reference forward pass.


def preset_reference() -> dict[str, Any]:
    """EfficientNet-Lite0's own head beside the reference logits kept in tests/golden."""
    import numpy as np

    from vision import ImageClassifier

    golden = np.load(ROOT / "tests" / "golden" / "efficientnet_lite0.npz")
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
