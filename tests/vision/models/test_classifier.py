from __future__ import annotations

import numpy as np
import pytest

from vision.models.classifier import grid_head, pooled_head
from vision.models.residual import residual_network


@pytest.mark.parametrize("size", [(3, 3), (4, 4), (5, 5), (6, 7), (8, 8), (14, 9)])
def test_a_grid_is_three_by_three_and_covers_all_pixels(size):
    head = grid_head((*size, 2), 5, dropout=0.0)
    assert head.get_layer("logits").kernel.shape == (3 * 3 * 2, 5)
    features = np.zeros((np.prod(size), *size, 2), np.float32)
    for number, (row, column) in enumerate(np.ndindex(*size)):
        features[number, row, column] = 1.0
    logits = np.asarray(head(features))
    assert (np.abs(logits).max(axis=1) > 0).all()


@pytest.mark.parametrize("size", [(2, 3), (1, 1)])
def test_a_grid_needs_three_pixels(size):
    with pytest.raises(ValueError, match="needs larger features"):
        grid_head((*size, 2), 5, dropout=0.0)


def test_pooled_head_takes_features_of_any_size():
    head = pooled_head(4, 3, dropout=0.5)
    for size in (1, 5):
        assert head(np.zeros((2, size, size, 4), np.float32)).shape == (2, 3)


@pytest.mark.parametrize(
    ("image_size", "channels", "final"), [(16, 1, 4), (28, 1, 7), (32, 3, 4), (64, 3, 4), (128, 3, 8), (224, 3, 14)]
)
def test_the_residual_network_ends_small(image_size, channels, final):
    trunk = residual_network(image_size, channels, width=4)
    assert trunk.input_shape == (None, image_size, image_size, channels)
    assert trunk.output_shape[1:3] == (final, final)


def test_depth_adds_blocks_and_width_channels():
    def count(**options):
        return residual_network(28, 1, **options).count_params()

    assert count(width=8) < count(width=8, depth=2) < count(width=16, depth=2)
    assert residual_network(28, 1, width=8).output_shape[-1] == 32
