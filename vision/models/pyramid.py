"""Features of a classifier's trunk at several resolutions, and the pyramid built on them (detection, segmentation).

Shapes: B images, H and W image size in pixels (multiples of the largest stride), C channels of the pyramid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from vision.models.backbones import build_trunk
from vision.models.normalization import CUSTOM_LAYERS, FusedBatchNormalization, fuse_normalization

# Trunks are built at this size to see where their resolution changes; their weights fit any other.
_PROBE = 256
# The maps that are meant, where they are not the last of each resolution: the last of EfficientNet-Lite are the inner,
# six times wider ones of the next stage, and a convolution made for classification.
_MAPS = {"efficientnet_lite": frozenset(f"stage{number}_out" for number in (1, 2, 3, 5, 7))}


def feature_trunk(trunk: keras.Model, family: str) -> tuple[keras.Model, tuple[int, ...]]:
    """`trunk` as a network for images of any size that gives all its resolutions: (model, strides).

    The model takes normalised images (B, H, W, 3) and gives feature maps (B, H / s, W / s, D) for the strides s, which
    are powers of two; of each resolution the last map, or the one that is made to be used so.

    Raises:
        ValueError: for a trunk without feature maps, such as a transformer of tokens.
    """
    taps: dict[int, keras.KerasTensor] = {}
    size, meant = trunk.input_shape[1], _MAPS.get(family)
    for layer in trunk.layers[1:]:
        shape: tuple[int | None, ...] = getattr(layer.output, "shape", ())
        side = shape[1] if len(shape) == 4 and shape[1] == shape[2] else None
        if side and size % side == 0 and (meant is None or layer.name in meant):
            taps[size // side] = layer.output
    strides = tuple(stride for stride in sorted(taps) if stride > 1 and stride & (stride - 1) == 0)
    if len(strides) < 3:
        raise ValueError(
            f"The network {trunk.name!r} has feature maps at {len(strides)} resolutions; detection and segmentation "
            "need 3 at least. Take a convolutional preset, such as 'efficientnet_lite0'."
        )
    part = keras.Model(trunk.input, [taps[stride] for stride in strides], name="trunk")
    config = part.get_config()
    config["layers"][0]["config"]["batch_shape"] = [None, None, None, trunk.input_shape[-1]]
    # Blocks of layers are built anew, with Keras's own normalisation.
    anywhere = fuse_normalization(keras.Model.from_config(config, custom_objects=CUSTOM_LAYERS))
    anywhere.set_weights(part.get_weights())
    return anywhere, strides


def new_feature_trunk(architecture: dict[str, Any]) -> tuple[keras.Model, tuple[int, ...]]:
    """The same for the trunk that `architecture` describes, with random weights."""
    return feature_trunk(build_trunk(architecture, _PROBE), architecture["family"])


def convolved(x: keras.KerasTensor, channels: int, name: str, *, kernel: int = 3) -> keras.KerasTensor:
    """Convolution, batch normalisation, ReLU: (B, h, w, D) -> (B, h, w, channels)."""
    x = layers.Conv2D(channels, kernel, padding="same", use_bias=False, name=f"{name}_conv")(x)
    return activated(x, name)


def activated(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    """Batch normalisation and ReLU."""
    x = FusedBatchNormalization(momentum=0.97, epsilon=1e-3, name=f"{name}_norm")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def feature_pyramid(features: Sequence[keras.KerasTensor], channels: int) -> list[keras.KerasTensor]:
    """Feature maps of falling resolution, each half of the one before -> as many of C channels.

    What is known at low resolution is added to the maps of higher ones (Lin et al. 2017, arXiv:1612.03144), and what
    is seen at high resolution to the lower ones (Liu et al. 2018, arXiv:1803.01534, section 3.1).
    """
    maps = [convolved(x, channels, f"lateral{i}", kernel=1) for i, x in enumerate(features)]
    for i in reversed(range(len(maps) - 1)):
        above = layers.UpSampling2D(2, name=f"up{i}")(maps[i + 1])
        maps[i] = convolved(layers.Add(name=f"merge{i}")([maps[i], above]), channels, f"down{i}")
    for i in range(1, len(maps)):
        below = layers.MaxPooling2D(2, name=f"pool{i}")(maps[i - 1])
        maps[i] = convolved(layers.Add(name=f"join{i}")([maps[i], below]), channels, f"out{i}")
    return maps
