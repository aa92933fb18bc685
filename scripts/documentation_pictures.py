"""Draw the pictures of docs/pictures: answers of small detectors and segmenters on test images.

    python scripts/documentation_pictures.py                              # trains what is drawn: some minutes
    python scripts/documentation_pictures.py blood --detector cells-model  # with a saved detector

Only drawn scenes, and images whose licence allows it, are shown: BCCD (MIT, Shenggan/BCCD_Dataset) and the nuclei of
DSB 2018 (CC0). The sets are looked for where `results.py` has them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from dense_experiments import BCCD_CONFIG, BCCD_TRAINING, NUCLEI_CONFIG, NUCLEI_TRAINING, PRESET
from experiment import ROOT, data_directory

from shared.cli import OneLineParser, run_script
from shared.runtime import RuntimeConfig
from shared.training_config import TrainingConfig

_DIRECTORY = ROOT / "docs" / "pictures"
_EPOCHS = 6
# Boxes need longer than masks.
_BLOOD_EPOCHS = 20
_WHITE = 255


def shapes(_: argparse.Namespace) -> None:
    """Drawn scenes, above with boxes, below with masks."""
    from shape_samples import CLASSES, shape_scenes

    from vision import ImageSegmenter, ImageSegmenterConfig, ObjectDetector, ObjectDetectorConfig

    frame: dict[str, Any] = {"image_height": 96, "image_width": 96, "scale_jitter": 1.2, "hue": 0.0}
    training = TrainingConfig(epochs=48, batch_size=12, learning_rate=0.004, clip_norm=5.0)
    boxes, masks = (shape_scenes(300, masks=with_masks) for with_masks in (False, True))
    detector = ObjectDetector(ObjectDetectorConfig(width=16, pyramid_channels=32, head_depth=1, **frame))
    detector.fit(boxes.take(range(240)), training=training)
    segmenter = ImageSegmenter(ImageSegmenterConfig(labels=CLASSES, width=8, decoder_channels=16, **frame))
    segmenter.fit(masks.take(range(240)), training=training)
    images = [boxes.inputs[place] for place in (241, 243, 247, 252)]
    large = [cv2.resize(image, None, fx=3, fy=3, interpolation=cv2.INTER_CUBIC) for image in images]
    found = [answer.draw(image) for answer, image in zip(detector.predict(large), large, strict=True)]
    tinted = [answer.draw(image, legend=False) for answer, image in zip(segmenter.predict(large), large, strict=True)]
    _write("shapes.jpg", [found, tinted])


def blood(options: argparse.Namespace) -> None:
    """Blood cells with boxes."""
    from vision import ObjectDetector, read_pascal_voc

    train, validation, test = (read_pascal_voc(data_directory() / "bccd", split=s) for s in ("train", "val", "test"))
    if options.detector:
        detector = ObjectDetector.load(options.detector)
    else:
        detector = ObjectDetector.from_preset(PRESET, labels="from_data", **BCCD_CONFIG)
        detector.fit(train, validation, training=TrainingConfig(**{**BCCD_TRAINING, "epochs": _BLOOD_EPOCHS}))
    chosen = [test.inputs[place] for place in (3, 20)]
    _write("blood.jpg", [[answer.draw(path) for answer, path in zip(detector.predict(chosen), chosen, strict=True)]])


def nuclei(options: argparse.Namespace) -> None:
    """Nuclei: image, answer and truth side by side."""
    from dense_experiments import nuclei_splits

    from vision import ImageSegmenter, Segmentation
    from vision.images import decode_image

    train, test = nuclei_splits()
    if options.segmenter:
        segmenter = ImageSegmenter.load(options.segmenter)
    else:
        segmenter = ImageSegmenter.from_preset(PRESET, labels="from_data", **NUCLEI_CONFIG)
        segmenter.fit(train, training=TrainingConfig(**{**NUCLEI_TRAINING, "epochs": _EPOCHS}))
    rows = []
    for place in (5, 31):
        path, target = test[place]
        image = decode_image(path)
        answer = segmenter.predict([path])[0]
        truth = Segmentation(target.read(), answer.labels)
        bright = np.clip(image.astype(int) * 2, 0, _WHITE).astype(np.uint8)  # dark as they are, one would see little
        rows.append([bright, *(drawn.draw(bright, legend=False, opacity=0.35) for drawn in (answer, truth))])
    _write("nuclei.jpg", rows)


_PICTURES = {"shapes": shapes, "blood": blood, "nuclei": nuclei}


def _write(name: str, rows: Sequence[Sequence[np.ndarray]]) -> None:
    """Write pictures of one size as a sheet with white lines between them."""
    gap = 6
    joined = [_joined(row, axis=1, gap=gap) for row in rows]
    sheet = _joined(joined, axis=0, gap=gap)
    file = _DIRECTORY / name
    file.parent.mkdir(parents=True, exist_ok=True)
    data = cv2.imencode(".jpg", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()
    file.write_bytes(data)
    print(f"wrote {file.relative_to(ROOT)}, {len(data) / 1000:.0f} kB")


def _joined(parts: Sequence[np.ndarray], *, axis: int, gap: int) -> np.ndarray:
    shape = list(parts[0].shape)
    shape[axis] = gap
    blank = np.full(shape, _WHITE, np.uint8)
    return np.concatenate([piece for part in parts for piece in (part, blank)][:-1], axis=axis)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw the named pictures, or all."""
    parser = OneLineParser(description="Draw the pictures of docs/pictures.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(_PICTURES)}; none: all")
    parser.add_argument("--detector", type=Path, help="a saved detector of blood cells (default: train one)")
    parser.add_argument("--segmenter", type=Path, help="a saved segmenter of nuclei (default: train one)")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in _PICTURES]
    if unknown:
        raise ValueError(f"There is no picture {unknown[0]!r}. Pictures: {', '.join(_PICTURES)}.")
    RuntimeConfig().apply()
    for name in options.names or _PICTURES:
        _PICTURES[name](options)


if __name__ == "__main__":
    sys.exit(run_script(main))
