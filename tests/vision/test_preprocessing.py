from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import tensorflow as tf

from vision.preprocessing import Preprocessing, decode_and_prepare, prepare_image


def picture(height=30, width=50):
    return cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8), (0, 0), 2)


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(image_size=16),
        Preprocessing(image_size=8, resize="crop", interpolation="bicubic", crop_fraction=0.875),
        Preprocessing(image_size=8, mean=(1.0,), std=(2.0,)),
    ],
)
def test_json_gives_the_same_recipe(preprocessing):
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (1, 1), (7, 200), (400, 300)])
def test_any_shape_becomes_a_square(resize, interpolation, shape):
    preprocessing = Preprocessing(image_size=24, resize=resize, interpolation=interpolation)
    result = prepare_image(picture(*shape), preprocessing)
    assert (result.shape, result.dtype) == ((24, 24, 3), np.uint8)


def test_an_image_of_the_right_size_stays_as_it_is():
    image = picture(16, 16)
    assert prepare_image(image, Preprocessing(image_size=16)) is image


def test_stretch_shows_all_crop_the_middle_pad_keeps_the_shape():
    image = np.zeros((20, 60, 3), np.uint8)
    image[:, 20:40] = 255
    stretched = prepare_image(image, Preprocessing(image_size=30))
    assert (stretched[:, :8] == 0).all()
    assert (stretched[:, 12:18] == 255).all()
    assert (prepare_image(image, Preprocessing(image_size=10, resize="crop")) == 255).all()
    padded = prepare_image(image, Preprocessing(image_size=30, resize="pad"))
    assert (padded[:9] == 0).all()
    assert (padded[21:] == 0).all()
    assert (padded[12:18, 12:18] == 255).all()


def test_crop_fraction_leaves_a_margin_out():
    image = np.zeros((40, 40, 3), np.uint8)
    image[5:35, 5:35] = 200
    assert (prepare_image(image, Preprocessing(image_size=15, resize="crop", crop_fraction=0.75)) == 200).all()


def test_shrinking_averages_what_it_drops():
    checkers = np.repeat((np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None], 3, axis=-1)
    small = prepare_image(checkers, Preprocessing(image_size=8))
    assert np.abs(small.astype(int) - 128).max() <= 3


def test_grey_models_get_the_luma():
    image = np.zeros((9, 9, 3), np.uint8)
    image[...] = (200, 100, 50)
    grey = prepare_image(image, Preprocessing(image_size=4, mean=(0.0,), std=(1.0,)))
    assert grey.shape == (4, 4, 1)
    assert (grey == round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)).all()


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(image_size=16),
        Preprocessing(image_size=16, resize="pad", interpolation="bicubic"),
        Preprocessing(image_size=16, resize="crop", crop_fraction=0.875),
        Preprocessing(image_size=16, mean=(0.0,), std=(1.0,)),
    ],
)
def test_the_graph_twin_gives_the_same_pixels(preprocessing):
    graph = tf.function(lambda item: decode_and_prepare(item, preprocessing))
    # Of another size than the model's, and of the very size.
    for image in (picture(), picture(16, 16)):
        data = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
        np.testing.assert_array_equal(graph(tf.constant(data)).numpy(), prepare_image(image, preprocessing))
