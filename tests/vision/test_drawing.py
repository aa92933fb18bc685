from __future__ import annotations

import cv2
import numpy as np

from vision.annotations import IGNORED
from vision.drawing import class_colour, draw_boxes, draw_classes, draw_mask, with_legend, write_png


def test_classes_have_colours_of_their_own():
    assert len({class_colour(number) for number in range(40)}) == 40
    assert class_colour(3) == class_colour(3)


def test_boxes_are_drawn_on_a_copy_and_may_overrun():
    image = np.full((60, 80, 3), 90, np.uint8)
    boxes = np.array([[10, 20, 40, 50], [-5, -5, 200, 200]], np.float32)
    drawn = draw_boxes(image, boxes, ["cat 0.90", "a very long name that cannot fit 0.80"], [(255, 0, 0), (0, 0, 255)])
    assert drawn.shape == image.shape
    assert (image == 90).all()
    assert drawn[35, 10].tolist() == [255, 0, 0]  # the left edge
    assert drawn[45, 25].tolist() == [90, 90, 90]  # inside
    np.testing.assert_array_equal(draw_boxes(image, np.zeros((0, 4)), [], []), image)


def test_a_mask_tints_and_ignored_pixels_stay():
    image = np.full((6, 6, 3), 100, np.uint8)
    mask = np.zeros((6, 6), np.uint8)
    mask[:, 3:] = 1
    mask[0] = IGNORED
    drawn = draw_mask(image, mask, [(0, 0, 200), (200, 0, 0)], opacity=0.5)
    assert drawn[3, 1].tolist() == [50, 50, 150]
    assert drawn[3, 5].tolist() == [150, 50, 50]
    assert drawn[3, 3].tolist() == [200, 0, 0]  # the line between classes
    assert (drawn[0] == 100).all()


def test_captions_do_not_hide_one_another():
    image = np.full((120, 160, 3), 90, np.uint8)
    boxes = np.array([[20, 40, 120, 100], [24, 42, 110, 90], [22, 41, 115, 95]], np.float32)
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    alone = [draw_boxes(image, boxes[k : k + 1], ["cat 0.90"], colours[k : k + 1]) for k in range(3)]
    together = draw_boxes(image, boxes, ["cat 0.90"] * 3, colours)
    for colour, single in zip(colours, alone, strict=True):
        # The boxes cross each other in some pixels; captions would hide most of one another.
        count = (together == colour).all(axis=-1).sum()
        assert count > 0.85 * (single == colour).all(axis=-1).sum()


def test_a_background_is_not_tinted():
    image = np.full((6, 6, 3), 100, np.uint8)
    mask = np.zeros((6, 6), np.uint8)
    mask[:, 3:], mask[0, 0] = 1, IGNORED
    drawn = draw_classes(image, mask, ["background", "cell"], legend=False)
    assert (drawn[:, :3] == 100).all()
    assert (drawn[:, 3:] != 100).any(axis=-1).all()
    assert draw_classes(image, mask, ["background", "cell"]).shape[1] > 6
    assert (draw_classes(image, mask, ["sea", "cell"], legend=False)[1:] != 100).any(axis=-1).all()


def test_a_legend_is_beside_the_picture(tmp_path):
    picture = np.full((10, 20, 3), 7, np.uint8)
    sheet = with_legend(picture, ["road", "car"], [(1, 2, 3), (200, 0, 0)])
    np.testing.assert_array_equal(sheet[:10, :20], picture)
    assert (sheet == (200, 0, 0)).all(axis=-1).any()
    write_png(tmp_path / "sheet.png", sheet)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "sheet.png"))[..., ::-1], sheet)
