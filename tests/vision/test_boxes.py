from __future__ import annotations

import numpy as np
import pytest

from vision.boxes import box_areas, box_iou, clip_boxes, has_area, intersections, suppressed


def test_boxes_are_clipped_to_the_image():
    boxes = np.array([[-5, -5, 5, 5], [1, 2, 3, 4], [8, 4, 20, 30]], np.float32)
    assert clip_boxes(boxes, 10, 8).tolist() == [[0, 0, 5, 5], [1, 2, 3, 4], [8, 4, 10, 8]]
    assert clip_boxes(boxes, 10, 8).dtype == np.float32


def test_a_tenth_of_a_pixel_is_the_smallest_side():
    boxes = np.array([[0, 0, 0.11, 9], [0, 0, 0.09, 9], [0, 0, 9, 0.09], [3, 3, 3, 3], [4, 0, 3, 9]], np.float32)
    assert has_area(boxes).tolist() == [True, False, False, False, False]
    assert has_area(np.zeros((0, 4), np.float32)).shape == (0,)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([0, 0, 10, 10], [0, 0, 10, 10], 1.0),
        ([0, 0, 10, 10], [10, 0, 20, 10], 0.0),  # they touch
        ([0, 0, 10, 10], [5, 0, 15, 10], 50 / 150),
        ([0, 0, 10, 10], [2, 2, 4, 4], 4 / 100),
        ([3, 3, 3, 3], [3, 3, 3, 3], 0.0),  # both empty
        ([5, 0, 0, 5], [0, 0, 5, 5], 0.0),  # the wrong way round
    ],
)
def test_overlaps(first, second, expected):
    pair = np.array([first], float), np.array([second], float)
    assert box_iou(*pair)[0, 0] == pytest.approx(expected)
    assert box_iou(*pair[::-1])[0, 0] == pytest.approx(expected)


def test_no_boxes_have_no_overlaps():
    none, some = np.zeros((0, 4)), np.array([[0, 0, 1, 1.0]])
    assert box_iou(none, some).shape == (0, 1)
    assert intersections(some, none).shape == (1, 0)
    assert box_areas(none).shape == (0,)
    assert suppressed(none, np.zeros(0), np.zeros(0), iou=0.5).tolist() == []


def test_suppression_is_greedy_by_score_and_within_a_class():
    # b overlaps a and c; a and c do not overlap: without b, c stays.
    boxes = np.array([[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]], float)
    same = np.zeros(3)
    assert suppressed(boxes, np.array([0.9, 0.8, 0.7]), same, iou=0.3).tolist() == [0, 2]
    assert suppressed(boxes, np.array([0.7, 0.9, 0.8]), same, iou=0.3).tolist() == [1]
    assert suppressed(boxes, np.array([0.9, 0.8, 0.7]), np.array([0, 1, 0]), iou=0.3).tolist() == [0, 1, 2]
    assert suppressed(boxes[[0, 0]], np.array([0.5, 0.5]), same[:2], iou=0.3).tolist() == [0]
