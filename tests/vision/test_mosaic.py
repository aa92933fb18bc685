from __future__ import annotations

import numpy as np

from vision.mosaic import TrainingObjects, joined, mosaic, within


def _objects(*boxes: list[float], crowd: bool = False) -> TrainingObjects:
    count = len(boxes)
    return TrainingObjects(
        np.array(boxes, np.float32).reshape(-1, 4), np.arange(count, dtype=np.int32), np.full(count, crowd)
    )


def test_objects_are_clipped_and_dropped_by_the_stated_rules():
    seen = within(
        _objects([-6, 0, 4, 10], [-9, 0, 1, 10], [5, 5, 6, 10], [2, 2, 8, 8]), 10, 10, min_visible=0.25, min_side=2.0
    )
    assert seen.boxes.tolist() == [[0, 0, 4, 10], [2, 2, 8, 8]]  # one a tenth visible, one a pixel wide: dropped
    assert seen.classes.tolist() == [0, 3]


def test_a_crowd_stays_while_anything_of_it_is_seen():
    crowd = _objects([-90, 0, 1, 10], [20, 0, 30, 10], crowd=True)
    assert within(crowd, 10, 10, min_visible=0.5, min_side=2.0).boxes.tolist() == [[0, 0, 1, 10]]


def test_no_objects():
    assert len(within(_objects(), 10, 10, min_visible=0.5, min_side=2.0)) == 0
    assert len(joined([_objects(), _objects()])) == 0


def test_boxes_of_a_mosaic_lie_where_their_pixels_are():
    rng = np.random.default_rng(0)
    images, objects = np.zeros((8, 64, 64, 3), np.uint8), []
    for number in range(8):
        left, top = (int(v) for v in rng.integers(0, 44, 2))
        images[number, top : top + 20, left : left + 20] = 10 * (number + 1)
        objects.append(
            TrainingObjects(
                np.array([[left, top, left + 20, top + 20]], np.float32),
                np.array([number], np.int32),
                np.array([False]),
            )
        )
    mixed, found = mosaic(images, objects, np.random.default_rng(1), share=1.0, min_visible=0.2, min_side=2.0)
    count = 0
    for picture, seen in zip(mixed, found, strict=True):
        for (left, top, right, bottom), number in zip(seen.boxes.astype(int), seen.classes, strict=True):
            assert (picture[top:bottom, left:right] == 10 * (number + 1)).all()
            count += 1
    assert count > 8
    assert (mixed != images).any()


def test_without_a_share_nothing_changes():
    images, objects = np.ones((2, 8, 8, 3), np.uint8), [_objects(), _objects()]
    mixed, found = mosaic(images, objects, np.random.default_rng(0), share=0.0, min_visible=0.2, min_side=2.0)
    np.testing.assert_array_equal(mixed, images)
    assert [len(seen) for seen in found] == [0, 0]
