"""Train, evaluate, run and export image classifiers.

    python scripts/image_classification.py train --train flowers/train --validation flowers/val \
        --preset efficientnet_lite0 --labels from_data --output flowers-model
    python scripts/image_classification.py predict --model flowers-model rose.jpg

A data path is a folder with one folder of images per class, a CSV file with columns image and label, or a directory
of IDX files (MNIST and its relatives).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shared.cli import AnswerOption, ReaderOption, TaskCommand, main


def read(path: Path, split: str, *, max_bad_share: float, label_separator: str | None = None) -> Any:
    """Examples at `path`."""
    from vision.data import read_images

    return read_images(path, split=split, label_separator=label_separator, max_bad_share=max_bad_share)


def details(metrics: Any, pictures: Path | None) -> Sequence[str]:
    """The per-class table as lines; with `pictures`, the confusion matrix is drawn there."""
    from shared.classification_metrics import details_lines

    return details_lines(metrics.details, pictures)


def inputs(typed: Sequence[str]) -> Iterator[str]:
    """Images: paths, those of folders and of lists."""
    from vision.data import image_inputs

    return image_inputs(typed)


COMMAND = TaskCommand(
    name="image_classification",
    description="Train, evaluate, run and export image classifiers.",
    pipeline="vision.classification:ImageClassifier",
    config="vision.classification:ImageClassifierConfig",
    read=read,
    reader_options=(ReaderOption("label_separator", "what separates several labels in a CSV field (--multi-label)"),),
    answer_options=(AnswerOption("top_k", "classes in an answer (default: 5)"),),
    common=(
        *("labels", "image_size", "channels", "width", "dropout", "multi_label", "class_weights"),
        *("rand_augment", "erasing", "mixup", "cutmix", "epochs", "batch_size", "optimizer", "learning_rate"),
        *("warmup", "weight_decay", "ema_decay", "label_smoothing", "freeze_epochs", "freeze_groups", "layer_decay"),
        *("patience", "precision", "devices"),
    ),
    details=details,
    inputs=inputs,
    inputs_help="an image, a folder of images, or @FILE for a list of paths",
)

if __name__ == "__main__":
    sys.exit(main(COMMAND))
