"""Train, evaluate, run and export object detectors, and check their data.

    python scripts/object_detection.py check --data cells --pictures sheet
    python scripts/object_detection.py train --train cells#train --validation cells#val \
        --preset efficientnet_lite0 --labels from_data --freeze-norms --output cells-model
    python scripts/object_detection.py predict --model cells-model --pictures drawn blood.jpg film.mp4 folder

A data path is a COCO JSON file, a Pascal VOC directory, or the YAML file or directory of a YOLO set; PATH#SPLIT names
one of several splits.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shared.cli import AnswerOption, NamedInput, TaskCommand, main


def read(path: Path, split: str, *, max_bad_share: float) -> Any:
    """Examples at `path`."""
    from vision.detection_data import read_objects

    return read_objects(path, split=split, max_bad_share=max_bad_share)


def inputs(typed: Sequence[str]) -> Iterator[Any]:
    """Images: paths as they are, those of a folder one by one, a video frame by frame."""
    from vision.data import image_files
    from vision.video import SUFFIXES, read_video

    for text in typed:
        path = Path(text)
        if path.is_dir():
            yield from map(str, image_files(path))
        elif path.suffix.lower() in SUFFIXES:
            for seconds, image in read_video(path):
                yield NamedInput({"video": text, "seconds": round(seconds, 3)}, image)
        else:
            yield text


def draw(source: Any, answer: Any, file: Path) -> None:
    """Write the picture of an answer."""
    from vision.drawing import write_png

    write_png(file, answer.draw(source))


def check(examples: Any, path: Path, pictures: Path | None) -> Sequence[str]:
    """What is in a set, and what is wrong with it."""
    from vision.data_report import detection_report
    from vision.detection_data import coco_labels

    declared = coco_labels(path) if path.suffix.lower() == ".json" else ()
    return detection_report(examples, declared, pictures)


def details(metrics: Any, pictures: Path | None) -> Sequence[str]:
    """The per-class table as lines."""
    return [
        f"{row['label']:24s} map {_shown(row['map'])}  map_50 {_shown(row['map_50'])}  {row['objects']} objects"
        for row in metrics.details["per_class"]
    ]


def _shown(value: float | None) -> str:
    return "     -" if value is None else f"{value:.4f}"


COMMAND = TaskCommand(
    name="object_detection",
    description="Train, evaluate, run and export object detectors, and check their data.",
    pipeline="vision.detection:ObjectDetector",
    config="vision.detection:ObjectDetectorConfig",
    read=read,
    inputs=inputs,
    inputs_help="an image, a folder of images, or a video",
    portion=64,
    draw=draw,
    check=check,
    answer_options=(
        AnswerOption("threshold", "score from which an object is an answer (default: the model's)", float),
        AnswerOption("tile", "side of overlapping tiles for large images, in pixels (default: none)"),
    ),
    common=(
        *("labels", "image_height", "image_width", "threshold", "scale_jitter", "rotation", "flip", "flip_vertically"),
        *("mosaic", "multi_scale", "epochs", "batch_size", "optimizer", "learning_rate", "warmup", "weight_decay"),
        *("ema_decay", "freeze_epochs", "freeze_groups", "freeze_norms", "layer_decay", "patience"),
        *("precision", "devices"),
    ),
    details=details,
)

if __name__ == "__main__":
    sys.exit(main(COMMAND))
