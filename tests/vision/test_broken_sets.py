"""One broken image among a thousand: the rest trains and is scored, and the report has its name."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest

from shared import TrainingConfig
from shared.examples import BadExampleError
from vision import (
    ImageSegmenter,
    ImageSegmenterConfig,
    ObjectDetector,
    ObjectDetectorConfig,
    read_coco,
    read_coco_masks,
    read_mask_folder,
)

_COUNT, _BROKEN, _SIDE = 1000, 421, 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of 32 x 32 pixels with a bright square each, as COCO and as masks; one of them breaks off."""
    root = tmp_path_factory.mktemp("thousand")
    for name in ("images", "masks"):
        (root / name).mkdir()
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "square"}]}
    rng = np.random.default_rng(0)
    for number in range(_COUNT):
        x, y = (int(place) for place in rng.integers(2, 14, 2))
        picture, mask = np.full((_SIDE, _SIDE, 3), 40, np.uint8), np.zeros((_SIDE, _SIDE), np.uint8)
        picture[y : y + 16, x : x + 16], mask[y : y + 16, x : x + 16] = 220, 1
        data = cv2.imencode(".jpg", picture)[1].tobytes()
        (root / "images" / f"{number:04d}.jpg").write_bytes(data[:200] if number == _BROKEN else data)
        (root / "masks" / f"{number:04d}.png").write_bytes(cv2.imencode(".png", mask)[1].tobytes())
        content["images"].append(
            {"id": number, "file_name": f"{number:04d}.jpg", "width": _SIDE, "height": _SIDE},
        )
        outline = [x, y, x + 16, y, x + 16, y + 16, x, y + 16]
        content["annotations"].append(
            {"id": number, "image_id": number, "category_id": 1, "bbox": [x, y, 16, 16], "segmentation": [outline]}
        )
    (root / "squares.json").write_text(json.dumps(content))
    return root


_TRAINING = TrainingConfig(epochs=1, batch_size=100)


def _check(pipeline, data, broken) -> None:
    assert (len(data), data.bad_records) == (_COUNT, ())  # what is in a file is seen when it is needed
    history = pipeline.fit(data, data, training=_TRAINING)
    assert len(history.bad_records) == 1
    assert history.bad_records[0].startswith(broken)
    assert np.isfinite(history.losses[0])
    metrics = pipeline.evaluate(data)
    assert [bad.where for bad in metrics.details["bad_records"]] == [broken]
    with pytest.raises(BadExampleError, match=f"{_BROKEN:04d}.jpg"):
        pipeline.predict([broken])
    with pytest.raises(ValueError, match=f"{_BROKEN:04d}.jpg"):
        pipeline.evaluate(data, max_bad_share=0.0)


def test_a_detector(folder):
    config = ObjectDetectorConfig(image_height=_SIDE, image_width=_SIDE, width=4, pyramid_channels=8, head_depth=0)
    detector = ObjectDetector(config)
    _check(detector, read_coco(folder / "squares.json"), str(folder / "images" / f"{_BROKEN:04d}.jpg"))
    table = detector.metrics.details["per_class"]
    assert [row["objects"] for row in table] == [_COUNT - 1]


@pytest.mark.parametrize("layout", ["folders", "coco"])
def test_a_segmenter(folder, layout):
    config = ImageSegmenterConfig(image_height=_SIDE, image_width=_SIDE, width=4, decoder_channels=8, decoder_stride=4)
    if layout == "coco":
        data = read_coco_masks(folder / "squares.json")
    else:
        data = read_mask_folder(folder / "images", folder / "masks", classes=["background", "square"])
    segmenter = ImageSegmenter(config)
    _check(segmenter, data, str(folder / "images" / f"{_BROKEN:04d}.jpg"))
    pixels = [row["pixels"] for row in segmenter.metrics.details["per_class"]]
    assert (sum(pixels), pixels[1]) == ((_COUNT - 1) * _SIDE**2, (_COUNT - 1) * 256)
