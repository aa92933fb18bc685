from __future__ import annotations

import numpy as np
import pytest

from vision.annotations import IGNORED
from vision.geometry import GREY, Geometry, GeometryRange, fitted, stretched, visible_shares

_FAR = GeometryRange(min_scale=0.6, max_scale=1.7, aspect=1.4, rotation=40.0, flip=True, flip_vertically=True)
_UPRIGHT = GeometryRange(min_scale=0.6, max_scale=1.7, aspect=1.4, flip=True, flip_vertically=True)


def _box_of(mask: np.ndarray) -> np.ndarray:
    y, x = np.nonzero(mask == 1)
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1], float)


def test_the_identity_changes_nothing():
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (7, 9, 3), np.uint8), rng.integers(0, 5, (7, 9), np.uint8)
    geometry = Geometry.identity(7, 9)
    np.testing.assert_array_equal(geometry.image(image), image)
    np.testing.assert_array_equal(geometry.mask(mask), mask)
    assert geometry.boxes(np.array([[1, 2, 3, 4.0]])).tolist() == [[1, 2, 3, 4]]


def test_a_mirrored_image_is_numpy_s():
    rng = np.random.default_rng(0)
    image, mask = rng.integers(0, 256, (6, 8, 3), np.uint8), rng.integers(0, 5, (6, 8), np.uint8)
    mirror = Geometry(np.array([[-1, 0, 8], [0, 1, 0.0]]), 6, 8)
    np.testing.assert_array_equal(mirror.image(image), image[:, ::-1])
    np.testing.assert_array_equal(mirror.mask(mask), mask[:, ::-1])
    assert mirror.boxes(np.array([[1, 2, 3, 4.0]])).tolist() == [[5, 2, 7, 4]]


@pytest.mark.parametrize("seed", range(20))
def test_there_and_back_is_where_it_was(seed):
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(20, 90, 2))
    geometry = _FAR.draw((height, width), (64, 80), rng)
    back = geometry.inverse(height, width)
    points = rng.random((30, 2)) * [width, height]
    np.testing.assert_allclose(back.points(geometry.points(points)), points, atol=1e-8)
    np.testing.assert_allclose(geometry.then(back).matrix, np.eye(2, 3), atol=1e-10)
    upright = _UPRIGHT.draw((height, width), (64, 80), rng)
    boxes = np.concatenate([points[:15], points[:15] + rng.random((15, 2)) * 20 + 1], axis=1)
    np.testing.assert_allclose(upright.inverse(height, width).boxes(upright.boxes(boxes)), boxes, atol=1e-3)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("ways", [_UPRIGHT, _FAR])
def test_the_box_of_the_moved_mask_is_the_moved_box(ways, seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros((60, 70), np.uint8)
    left, top, right, bottom = 12, 9, 45, 38
    mask[top:bottom, left:right] = 1
    geometry = ways.draw(mask.shape, (200, 200), rng)  # large, so that nothing is cut off
    moved = geometry.boxes(np.array([[left, top, right, bottom]], float))[0]
    # Nearest neighbour puts an edge on the next pixel: half a pixel, and at the tip of a corner one and a half.
    np.testing.assert_allclose(_box_of(geometry.mask(mask)), moved, atol=0.51 if ways is _UPRIGHT else 1.5)


@pytest.mark.parametrize("seed", range(10))
def test_image_and_mask_move_together(seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros((60, 70), np.uint8)
    mask[10:40, 20:60] = 1
    image = np.repeat(mask[..., None] * np.uint8(200), 3, axis=2)
    geometry = _FAR.draw(mask.shape, (64, 64), rng)
    seen = geometry.image(image, fill=0)[..., 0] > 100
    inside = geometry.mask(mask, fill=0) == 1
    assert np.mean(seen != inside) < 0.03  # pixels on the edge


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("ways", [_UPRIGHT, _FAR])
def test_one_map_moves_image_boxes_and_mask_together(ways, seed):
    rng = np.random.default_rng(seed)
    left, top, right, bottom = 22, 14, 51, 40
    mask, image = np.zeros((60, 70), np.uint8), np.full((60, 70, 3), 10, np.uint8)
    mask[top:bottom, left:right], image[top:bottom, left:right] = 1, 250
    geometry = ways.draw(mask.shape, (180, 200), rng)
    box = geometry.boxes(np.array([[left, top, right, bottom]], float))[0]
    seen = (geometry.image(image, fill=0)[..., 0] > 130).astype(np.uint8)
    for found in (seen, geometry.mask(mask)):
        # As above: half a pixel where edges stay upright, one and a half at the tip of a corner.
        np.testing.assert_allclose(_box_of(found), box, atol=0.51 if ways is _UPRIGHT else 1.5)


@pytest.mark.parametrize("seed", range(10))
def test_pixels_there_and_back_are_what_they_were(seed):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:60, :70]
    wave = 128 + 60 * np.sin(x / 9 + rng.random() * 6) * np.cos(y / 7)
    image = np.repeat(wave[..., None], 3, axis=2).astype(np.uint8)
    mask = (wave > 128).astype(np.uint8)
    geometry = GeometryRange(min_scale=1.5, max_scale=2.0, rotation=40.0, flip=True, flip_vertically=True).draw(
        mask.shape, (260, 260), rng
    )
    back = geometry.inverse(60, 70)
    inner = np.s_[3:-3, 3:-3]  # the rim is blended with what is outside
    returned = back.image(geometry.image(image)).astype(int)
    assert np.abs(returned - image)[inner].max() <= 6  # of 255: twice rounded and linearly sampled
    changed = back.mask(geometry.mask(mask)) != mask
    assert changed[inner].mean() < 0.05  # pixels on the edge, of which there are many


def test_labels_are_never_blended_and_what_is_outside_is_ignored():
    mask = np.array([[0, 7], [7, 0]], np.uint8).repeat(8, 0).repeat(8, 1)
    geometry = _FAR.draw(mask.shape, (40, 40), np.random.default_rng(3))
    assert set(np.unique(geometry.mask(mask)).tolist()) <= {0, 7, IGNORED}
    away = Geometry(np.array([[1, 0, 100], [0, 1, 100.0]]), 4, 4)
    assert (away.mask(mask) == IGNORED).all()
    assert (away.image(np.zeros((16, 16, 3), np.uint8)) == GREY).all()


def test_large_images_are_averaged_not_sampled():
    checks = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    small = fitted(256, 256, 16, 16).image(checks)
    assert np.abs(small.astype(int) - 127).max() <= 1


def test_fitted_and_stretched():
    assert fitted(100, 50, 20, 40).boxes(np.array([[0, 0, 50, 100.0]])).tolist() == [[0, 0, 10, 20]]
    assert stretched(100, 50, 20, 40).boxes(np.array([[0, 0, 50, 100.0]])).tolist() == [[0, 0, 40, 20]]


def test_the_same_generator_draws_the_same():
    draws = [_FAR.draw((50, 60), (40, 40), np.random.default_rng(5)).matrix for _ in range(2)]
    np.testing.assert_array_equal(*draws)


def test_a_map_without_a_way_back_is_refused():
    with pytest.raises(ValueError, match="no way back"):
        Geometry(np.array([[1, 1, 0], [1, 1, 0.0]]), 4, 4).inverse(4, 4)


def test_visible_shares():
    boxes = np.array([[0, 0, 10, 10], [-5, 0, 5, 10], [20, 20, 30, 30], [3, 3, 3, 3]], np.float32)
    assert visible_shares(boxes, 10, 10).tolist() == pytest.approx([1, 0.5, 0, 0])
