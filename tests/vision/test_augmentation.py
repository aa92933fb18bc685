from __future__ import annotations

import numpy as np
import pytest

import vision.augmentation as augmentation_module
from vision.augmentation import (
    Augmentation,
    Crop,
    cutmix,
    erased,
    mixup,
    rand_augment,
    random_resized_crop,
    shifted,
    smallest_useful_side,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def image(height=40, width=56, channels=3):
    return rng(1).integers(0, 256, (height, width, channels), np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"crop": "shift"},
        {"crop": "none", "flip": False},
        {"erasing": 1.0},
        {"rand_augment": 3, "rand_augment_magnitude": 30},
    ],
)
def test_a_seed_gives_one_variation_another_seed_another(options, channels):
    augmentation = Augmentation(image_size=24, **options)
    source = image(24, 24, channels) if options.get("crop") else image(channels=channels)
    before = source.copy()
    once, again = augmentation(source, rng(3)), augmentation(source, rng(3))
    assert (once.shape, once.dtype) == ((24, 24, channels), np.uint8)
    np.testing.assert_array_equal(once, again)
    np.testing.assert_array_equal(source, before)
    different = {augmentation(source, rng(seed)).tobytes() for seed in range(8)}
    assert len(different) == 1 if options.get("crop") == "none" else len(different) > 1


def test_crops_stay_inside_and_cover_the_areas_asked_for():
    areas, mirrored = [], 0
    for seed in range(300):
        crop = random_resized_crop(40, 60, rng(seed), min_area=0.25)
        assert crop.top >= 0
        assert crop.left >= 0
        assert crop.top + crop.height <= 40
        assert crop.left + crop.width <= 60
        areas.append(crop.height * crop.width / 2400)
        mirrored += crop.mirror
    assert min(areas) > 0.22
    assert min(areas) < 0.3
    assert max(areas) > 0.9
    assert 110 < mirrored < 190
    assert not any(random_resized_crop(40, 60, rng(s), mirror=False).mirror for s in range(20))


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (3, 2)])
def test_tiny_images_can_be_cropped(shape):
    crop = random_resized_crop(*shape, rng())
    assert crop.resized(image(*shape), 8).shape == (8, 8, 3)


def test_a_crop_is_its_pixels_mirrored_where_it_says_so():
    source = image(20, 20)
    np.testing.assert_array_equal(Crop(2, 3, 8, 8).resized(source, 8), source[2:10, 3:11])
    np.testing.assert_array_equal(Crop(2, 3, 8, 8, mirror=True).resized(source, 8), source[2:10, 3:11][:, ::-1])


def test_shrinking_much_averages():
    checkers = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)[..., None]
    assert np.abs(Crop(0, 0, 256, 256).resized(checkers, 32).astype(int) - 128).max() <= 2


@pytest.mark.parametrize(("size", "min_area"), [(224, 0.35), (224, 1.0), (64, 0.08)])
def test_smallest_useful_side_is_enough_for_the_smallest_crop(size, min_area):
    side = smallest_useful_side(size, min_area)
    crops = [random_resized_crop(side, side, rng(seed), min_area=min_area) for seed in range(500)]
    assert size - 1 <= min(min(crop.height, crop.width) for crop in crops) < 1.25 * size


@pytest.mark.parametrize("channels", [1, 3])
def test_shifted_is_a_crop_of_the_reflected_image(channels):
    source = image(16, 16, channels)
    padded = np.pad(source, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    windows = {padded[y : y + 16, x : x + 16].tobytes() for y in range(5) for x in range(5)}
    seen = {shifted(source, rng(seed)).tobytes() for seed in range(200)}
    assert seen <= windows
    assert len(seen) > 15


def test_erasing_fills_one_rectangle_within_bounds():
    for seed in range(50):
        source = np.zeros((32, 32, 3), np.uint8)
        result = erased(source, rng(seed))
        assert not source.any()
        touched = result.any(axis=-1)
        rows, columns = np.flatnonzero(touched.any(axis=1)), np.flatnonzero(touched.any(axis=0))
        box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert 0.01 * 1024 < box <= 0.30 * 1024
        assert touched.sum() > 0.95 * box


@pytest.mark.parametrize("mix", [mixup, cutmix])
def test_mixing_keeps_shapes_and_shares(mix):
    images = np.stack([np.full((8, 8, 3), value, np.uint8) for value in (0, 80, 160, 240)])
    targets = np.eye(4, dtype=np.float32)
    for seed in range(20):
        mixed, shares = mix(images, targets, rng(seed), 1.0)
        assert (mixed.shape, mixed.dtype) == (images.shape, np.uint8)
        assert (shares.shape, shares.dtype) == ((4, 4), np.float32)
        np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)
        # Each image's brightness is that of its parents in the proportions that the targets give.
        expected = shares @ np.array([0, 80, 160, 240])
        np.testing.assert_allclose(mixed.mean(axis=(1, 2, 3)), expected, atol=1.0)
    again, _ = mix(images, targets, rng(19), 1.0)
    np.testing.assert_array_equal(mixed, again)


@pytest.mark.parametrize("mix", [mixup, cutmix])
def test_a_batch_of_one_stays_itself(mix):
    images = image(8, 8)[None]
    mixed, shares = mix(images, np.ones((1, 1), np.float32), rng(), 0.4)
    np.testing.assert_allclose(mixed, images, atol=1)
    assert shares.tolist() == [[1.0]]


@pytest.mark.parametrize("shape", [(9, 7, 1), (9, 7, 3), (1, 1, 3)])
@pytest.mark.parametrize("operation", augmentation_module._OPERATIONS, ids=lambda f: f.__name__)
def test_operations_keep_shape_and_type_at_any_strength(operation, shape):
    source = rng().integers(0, 256, shape, np.uint8)
    before = source.copy()
    for strength in (-1.0, -0.3, 0.0, 0.3, 1.0):
        result = operation(source, strength)
        assert (result.shape, result.dtype) == (shape, np.uint8)
    np.testing.assert_array_equal(source, before)


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "brightness", "contrast", "colour"])
def test_strength_zero_changes_nothing(name):
    source = image(12, 12)
    result = getattr(augmentation_module, f"_{name}")(source, 0.0)
    assert np.abs(result.astype(int) - source).max() <= 1


@pytest.mark.parametrize(
    ("name", "strength", "source", "expected"),
    [
        ("brightness", 1.0, [10, 100, 200], [19, 190, 255]),
        ("solarize", 0.5, [10, 127, 128, 200], [10, 127, 127, 55]),
        ("posterize", 1.0, [15, 16, 255], [0, 16, 240]),
        ("auto_contrast", 0.0, [50, 100, 150], [0, 128, 255]),
        ("contrast", -1.0, [50, 150], [95, 105]),
    ],
)
def test_point_operations_by_hand(name, strength, source, expected):
    pixels = np.array(source, np.uint8).reshape(1, -1, 1)
    result = getattr(augmentation_module, f"_{name}")(pixels, strength)
    assert np.abs(result.ravel().astype(int) - expected).max() <= 1


def test_rand_augment_uses_every_operation():
    assert len(augmentation_module._OPERATIONS) == 14
    results = {rand_augment(image(), rng(seed), num_ops=1, magnitude=15).tobytes() for seed in range(200)}
    assert len(results) >= 20


def test_colours_vary_within_their_ranges():
    from vision.augmentation import colour_jittered

    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    still = colour_jittered(image, np.random.default_rng(1), hue=0.0, saturation=0.0, brightness=0.0)
    assert np.abs(still.astype(int) - image).max() <= 6  # there and back through 180 steps of hue
    pair = [colour_jittered(image, np.random.default_rng(2), hue=0.1, saturation=0.5, brightness=0.5) for _ in range(2)]
    np.testing.assert_array_equal(*pair)
    assert (pair[0] != image).any()
    grey = np.full((4, 4, 3), 100, np.uint8)
    levels = [
        int(colour_jittered(grey, np.random.default_rng(s), hue=0.5, saturation=1.0, brightness=0.3)[0, 0].max())
        for s in range(50)
    ]
    assert 69 <= min(levels) < 90
    assert 110 < max(levels) <= 131
