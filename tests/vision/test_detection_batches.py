"""What a detector is trained on: boxes stay where their pixels are, through every variation."""

from __future__ import annotations

import numpy as np
import pytest

from vision.detection_batches import TrainingVariation, collated
from vision.frame import Frame
from vision.geometry import GeometryRange
from vision.mosaic import TrainingObjects


def _variation(**changes) -> TrainingVariation:
    fields = {
        "frame": Frame(height=96, width=128),
        "geometry": GeometryRange(min_scale=0.8, max_scale=1.25, aspect=1.2, flip=True, flip_vertically=True),
        "hue": 0.0,
        "saturation": 0.0,
        "brightness": 0.0,
        "mosaic": 0.0,
        "multi_scale": 0.0,
        "min_visible": 0.25,
    }
    return TrainingVariation(**{**fields, **changes})


def _scene(rng, height=90, width=120):
    """A bright rectangle on dark ground, with its box."""
    side = (int(rng.integers(20, 40)), int(rng.integers(20, 40)))
    top, left = int(rng.integers(0, height - side[0])), int(rng.integers(0, width - side[1]))
    image = np.full((height, width, 3), 20, np.uint8)
    image[top : top + side[0], left : left + side[1]] = 230
    box = np.array([[left, top, left + side[1], top + side[0]]], np.float32)
    return image, TrainingObjects(box, np.zeros(1, np.int32), np.zeros(1, bool))


def _box_of(image):
    y, x = np.nonzero(image[..., 0] > 180)
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1], float)


@pytest.mark.parametrize("shape", [(90, 120), (360, 480), (45, 200)])
@pytest.mark.parametrize("seed", range(5))
def test_boxes_are_where_their_pixels_are(shape, seed):
    rng = np.random.default_rng(seed)
    variation = _variation()
    image, objects = _scene(rng, *shape) if shape[0] < 100 else _scene(rng, shape[0] // 4, shape[1] // 4)
    if shape[0] > 100:  # a large photograph, which is shrunk before it is varied
        image = image.repeat(4, axis=0).repeat(4, axis=1)
        objects = TrainingObjects(objects.boxes * 4, objects.classes, objects.crowd)
    varied = variation.vary(variation.encoded(image, objects), rng)
    assert varied["images"].shape == (96, 128, 3)
    for box in varied["boxes"]:
        # Linear sampling blurs an edge over a pixel to either side.
        np.testing.assert_allclose(_box_of(varied["images"]), box, atol=1.0)


def test_most_objects_stay_and_cut_ones_are_clipped():
    rng = np.random.default_rng(0)
    kept = [_variation().vary(_variation().encoded(*_scene(rng)), rng)["boxes"] for _ in range(40)]
    assert sum(map(len, kept)) > 25
    boxes = np.concatenate(kept)
    assert (boxes >= 0).all()
    assert (boxes <= [128, 96, 128, 96]).all()


def test_a_batch_of_another_size_moves_its_boxes():
    rng = np.random.default_rng(1)
    variation = _variation(multi_scale=0.5)
    batch = collated([variation.vary(variation.encoded(*_scene(rng)), rng) for _ in range(8)])
    resized = variation.vary_batch(batch, np.random.default_rng(3))
    assert resized["images"].shape[1:3] != batch["images"].shape[1:3]
    for image, boxes, classes in zip(resized["images"], resized["boxes"], resized["classes"], strict=True):
        for box in boxes[classes >= 0]:
            np.testing.assert_allclose(_box_of(image), box, atol=1.5)
