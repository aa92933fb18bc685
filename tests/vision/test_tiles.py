from __future__ import annotations

import itertools

import numpy as np
import pytest

from vision.tiles import tile_corners


def test_a_small_image_is_one_tile():
    assert tile_corners(10, 20, 32) == [(0, 0)]


@pytest.mark.parametrize(("height", "width", "tile"), [(100, 100, 32), (33, 200, 32), (1000, 64, 64), (97, 131, 40)])
def test_tiles_cover_the_image_and_overlap(height, width, tile):
    seen = np.zeros((height, width), int)
    corners = tile_corners(height, width, tile)
    for top, left in corners:
        assert top + tile <= max(height, tile)
        assert left + tile <= max(width, tile)
        seen[top : top + tile, left : left + tile] += 1
    assert seen.min() >= 1
    lefts = sorted({left for _, left in corners})
    assert all(after - before <= 0.75 * tile + 1 for before, after in itertools.pairwise(lefts))


def test_tiles_without_pixels_are_refused():
    with pytest.raises(ValueError, match="must have pixels"):
        tile_corners(10, 10, 0)
