from __future__ import annotations

import numpy as np
import pytest

from vision.frame import Frame, frame_image, framed, inner_size, stretched_image, stretched_values
from vision.geometry import GREY


def test_the_frame_is_padded_to_whole_cells():
    assert Frame(height=360, width=480).shape == (384, 480)
    assert Frame(height=96, width=100, multiple=16).shape == (96, 112)


@pytest.mark.parametrize("shape", [(100, 50), (50, 100), (7, 900), (64, 96), (33, 47), (301, 299)])
def test_an_image_is_fitted_into_the_upper_left_corner(shape):
    import tensorflow as tf

    frame = Frame(height=60, width=90, multiple=32)
    image = np.full((*shape, 3), 200, np.uint8)
    pixels = framed(image, frame)
    height, width = frame.inner(*shape)
    assert inner_size(tf.constant([*shape, 3]), frame).numpy().tolist() == [height, width]
    assert pixels.shape == (64, 96, 3)
    assert (pixels[:height, :width] == 200).all()
    assert (pixels[height:] == GREY).all()
    assert (pixels[:, width:] == GREY).all()
    assert height == 60 or width == 90
    np.testing.assert_array_equal(pixels, frame_image(tf.constant(image), frame))


def test_an_image_of_the_frame_is_left_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    assert framed(image, Frame(height=64, width=96)) is image


@pytest.mark.parametrize(("low", "high"), [(0, 255), (3, 61), (100, 101), (7, 7), (0, 254)])
def test_values_are_spread_over_the_whole_range_the_same_in_exports(low, high):
    import tensorflow as tf

    image = np.random.default_rng(0).integers(low, high + 1, (32, 64, 3), np.uint8)
    image[0, 0, 0], image[-1, -1, -1] = low, high
    stretched = stretched_values(image)
    np.testing.assert_array_equal(stretched_image(tf.constant(image)), stretched)
    assert (stretched.min(), stretched.max()) == ((0, 255) if high > low else (7, 7))
    exact = np.rint((image.astype(float) - low) * 255 / max(1, high - low)) if high > low else image
    assert np.abs(stretched - exact).max() <= 1
    frame = Frame(height=32, width=64, stretch=True)
    np.testing.assert_array_equal(framed(image, frame), stretched)
    assert framed(image, Frame.from_dict({**frame.to_dict(), "stretch": False})) is image


def test_a_frame_survives_json():
    frame = Frame(height=60, width=90, mean=(1.0, 2.0, 3.0))
    assert Frame.from_dict(frame.to_dict()) == frame
