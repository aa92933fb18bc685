"""Train, evaluate, run and export image classifiers.

    python scripts/image_classification.py train --train flowers/train --validation flowers/val \
        --preset efficientnet_lite0 --labels from_data --output flowers-model
    python scripts/image_classification.py predict --model flowers-model rose.jpg

A data path is a folder with one folder of images per class, a CSV file with columns image and label, or a directory
of IDX files (MNIST and its relatives).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.cli import TaskCommand, main


def read(path: Path, split: str) -> Any:
    """Examples at `path`."""
    from vision.data import read_images

    return read_images(path, split=split)


def details(metrics: Any, pictures: Path | None) -> Sequence[str]:
    """The per-class table as lines; with `pictures`, the confusion matrix is drawn there."""
    table = metrics.details["per_class"]
    width = max([5, *(len(row["label"]) for row in table)])
    lines = [f"{'class':{width}s}  precision  recall      f1  support"]
    lines += [
        f"{r['label']:{width}s}  {r['precision']:9.4f}  {r['recall']:6.4f}  {r['f1']:6.4f}  {r['support']:7d}"
        for r in table
    ]
    if pictures is not None and "confusion_matrix" in metrics.details:
        lines.append(f"confusion matrix drawn in {_draw(metrics, [row['label'] for row in table], pictures)}")
    return [*lines, ""]


def _draw(metrics: Any, labels: list[str], pictures: Path) -> Path:
    import cv2

    from shared.classification_metrics import draw_confusion_matrix

    pictures.mkdir(parents=True, exist_ok=True)
    target = pictures / "confusion_matrix.png"
    picture = draw_confusion_matrix(metrics.details["confusion_matrix"], labels)
    cv2.imwrite(str(target), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    return target


COMMAND = TaskCommand(
    name="image_classification",
    description="Train, evaluate, run and export image classifiers.",
    pipeline="vision.classification:ImageClassifier",
    config="vision.classification:ImageClassifierConfig",
    read=read,
    common=(
        *(
            "labels",
            "image_size",
            "channels",
            "width",
            "depth",
            "dropout",
            "multi_label",
            "average_mirrored",
            "class_weights",
        ),
        *("rand_augment", "erasing", "mixup", "cutmix", "epochs", "batch_size", "optimizer", "learning_rate"),
        *(
            "schedule",
            "warmup",
            "weight_decay",
            "ema_decay",
            "label_smoothing",
            "freeze_epochs",
            "freeze_groups",
            "freeze_norms",
            "layer_decay",
        ),
        *("patience", "precision", "devices", "xla", "deterministic"),
    ),
    details=details,
)

if __name__ == "__main__":
    sys.exit(main(COMMAND))
