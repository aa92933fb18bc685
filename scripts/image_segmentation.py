"""Train, evaluate, run and export image segmenters, and check their data.

    python scripts/image_segmentation.py check --data streets/train --pictures sheet
    python scripts/image_segmentation.py train --train streets/train --validation streets/val \
        --preset efficientnet_lite0 --labels from_data --freeze-norms --output streets-model
    python scripts/image_segmentation.py predict --model streets-model --pictures drawn crossing.jpg

A data path is a folder of images with its folder of masks beside it (`masks` beside `images`, `trainannot` beside
`train`), the folder that holds both, or a COCO JSON file of instances. `classes.txt` has the class names of folders.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shared.cli import ReaderOption, TaskCommand, main


def read(
    path: Path,
    split: str,
    *,
    max_bad_share: float,
    masks: str | None = None,
    classes: str | None = None,
    colours: str | None = None,
    ignore: str | None = None,
) -> Any:
    """Examples at `path`."""
    from vision.segmentation_data import read_masks

    names = None if classes is None else classes if Path(classes).is_file() else classes.split(",")
    return read_masks(
        path,
        masks=masks,
        classes=names,
        colours=None if colours is None else _numbers("colours", colours),
        ignore=() if ignore is None else _numbers("ignore", ignore),
        max_bad_share=max_bad_share,
    )


def _numbers(name: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"`{name}` must be numbers with commas between them, as 0,255; received {text!r}.") from error


def inputs(typed: Sequence[str]) -> Iterator[str]:
    """Images: paths, those of folders and of lists."""
    from vision.data import image_inputs

    return image_inputs(typed)


def draw(source: Any, answer: Any, file: Path) -> None:
    """Write the picture of an answer."""
    from vision.drawing import write_png

    write_png(file, answer.draw(source))


def check(examples: Any, path: Path, pictures: Path | None) -> Sequence[str]:
    """What is in a set, and what is wrong with it."""
    from vision.data_report import segmentation_report

    return segmentation_report(examples, pictures)


def details(metrics: Any, pictures: Path | None) -> Sequence[str]:
    """The per-class table as lines."""
    shown = [(row, "     -" if row["iou"] is None else f"{row['iou']:.4f}") for row in metrics.details["per_class"]]
    return [f"{row['label']:24s} iou {iou}  {row['pixels']} pixels" for row, iou in shown]


COMMAND = TaskCommand(
    name="image_segmentation",
    description="Train, evaluate, run and export image segmenters, and check their data.",
    pipeline="vision.segmentation:ImageSegmenter",
    config="vision.segmentation:ImageSegmenterConfig",
    read=read,
    inputs=inputs,
    inputs_help="an image, a folder of images, or @FILE for a list of paths",
    portion=32,
    draw=draw,
    check=check,
    reader_options=(
        ReaderOption("masks", "folder of the masks, where it is not beside the images"),
        ReaderOption(
            "classes",
            "class names by number with commas between them, or a file of them (default: classes.txt); of COCO "
            "those to take (default: all)",
        ),
        ReaderOption("colours", "pixel values of the classes where they are not their numbers, as 0,255"),
        ReaderOption("ignore", "pixel values that are no class, as 255"),
    ),
    common=(
        *("labels", "image_height", "image_width", "view", "decoder", "region_loss", "class_weights", "scale_jitter"),
        *("rotation", "flip", "flip_vertically", "epochs", "batch_size", "optimizer", "learning_rate", "warmup"),
        *("weight_decay", "ema_decay", "label_smoothing", "freeze_epochs", "freeze_groups", "freeze_norms"),
        *("layer_decay", "patience", "precision", "devices"),
    ),
    details=details,
)

if __name__ == "__main__":
    sys.exit(main(COMMAND))
