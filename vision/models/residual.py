"""A small residual network for small images, trained from scratch.

Pre-activation blocks (He et al. 2016, arXiv:1603.05027) under a strided stem: most of the arithmetic happens at a
quarter of the pixels, where convolutions are wide enough to keep a CPU busy and batch normalisation costs little.

Shapes: B images, S image size, C channels, W width.
"""

from __future__ import annotations

import keras
from keras import layers

from vision.models.normalization import FusedBatchNormalization

# The network ends at about this resolution; larger images get more stages, up to this many.
_FINAL_SIZE = 7
_MAX_STAGES = 4


def residual_network(image_size: int, channels: int, *, width: int = 32, depth: int = 1) -> keras.Model:
    """Trunk (B, S, S, C) normalised -> (B, h, w, D).

    The stem halves the resolution; each further stage halves it again and doubles the channels (W, 2W, 4W, ...),
    down to about 7 x 7.

    Args:
        image_size: S, at least 16.
        channels: C.
        width: W, channels of the first stage.
        depth: residual blocks per stage.
    """
    images = keras.Input((image_size, image_size, channels), name="normalised")
    x = layers.Conv2D(width, 3, padding="same", use_bias=False, name="stem")(images)
    # Pooled before it is normalised: the largest of four stays the largest, and the rest has a quarter of the work.
    x = _activated(layers.MaxPooling2D(2, name="stem_pool")(x), "stem")
    stages = _num_stages(x.shape[1])
    for stage in range(stages):
        for block in range(depth):
            stride = 2 if stage > 0 and block == 0 else 1
            x = _block(x, width * 2 ** (stage + 1), stride=stride, name=f"stage{stage + 1}_block{block + 1}")
    return keras.Model(images, _activated(x, "final"), name="residual_network")


def _num_stages(size: int) -> int:
    stages = 1
    while size > _FINAL_SIZE and stages < _MAX_STAGES:
        size, stages = (size + 1) // 2, stages + 1
    return stages


def _activated(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    x = FusedBatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_norm")(x)
    return layers.Activation("relu", name=f"{name}_relu")(x)


def _block(x: keras.KerasTensor, filters: int, *, stride: int, name: str) -> keras.KerasTensor:
    """(B, h, w, D) -> (B, h / stride, w / stride, filters)."""
    y = _activated(x, f"{name}_1")
    shortcut = x
    if stride > 1 or x.shape[-1] != filters:
        # Pixels are left out before the convolution: oneDNN's gradient of one with strides writes beyond its memory
        # on processors with AVX-512, for fewer than 16 channels.
        kept = layers.MaxPooling2D(1, strides=stride, name=f"{name}_kept")(y) if stride > 1 else y
        shortcut = layers.Conv2D(filters, 1, use_bias=False, name=f"{name}_shortcut")(kept)
    y = layers.Conv2D(filters, 3, strides=stride, padding="same", use_bias=False, name=f"{name}_conv1")(y)
    y = _activated(y, f"{name}_2")
    y = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"{name}_conv2")(y)
    return layers.Add(name=f"{name}_add")([shortcut, y])
