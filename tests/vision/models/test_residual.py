from __future__ import annotations

import keras
import numpy as np
import pytest

from vision.models.residual import residual_network


@pytest.mark.parametrize(("size", "width", "shape"), [(16, 4, (4, 4, 16)), (28, 24, (7, 7, 96)), (128, 4, (8, 8, 64))])
def test_maps_have_about_seven_pixels_a_side(size, width, shape):
    assert residual_network(size, 1, width=width).output_shape == (None, *shape)


def test_pixels_that_a_shortcut_leaves_out_are_left_out_before_its_convolution():
    # oneDNN's gradient of a strided convolution of single pixels writes beyond its memory where channels are few.
    network = residual_network(64, 3, width=4)
    pointwise = [
        layer for layer in network.layers if isinstance(layer, keras.layers.Conv2D) and layer.kernel_size == (1, 1)
    ]
    assert pointwise
    assert {layer.strides for layer in pointwise} == {(1, 1)}
    maps = np.arange(25, dtype=np.float32).reshape(1, 5, 5, 1)
    kept = network.get_layer("stage2_block1_kept")
    np.testing.assert_array_equal(kept(maps), maps[:, ::2, ::2])
