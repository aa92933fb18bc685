"""EfficientNet-Lite: EfficientNet (Tan and Le 2019, arXiv:1905.11946, table 1) made for integer hardware.

Against EfficientNet: no squeeze-and-excitation, ReLU6 for swish, and stem and head of the same size in all variants
(tensorflow/tpu, models/official/efficientnet/lite). Layer names follow the paper's stages.

Shapes: B images, S image size, D features of the head convolution (1280).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import keras
import numpy as np
from keras import layers

from vision.models.normalization import FusedBatchNormalization

# Width and depth multipliers, and the image size each variant was trained at.
VARIANTS: dict[str, tuple[float, float, int]] = {
    "lite0": (1.0, 1.0, 224),
    "lite1": (1.0, 1.1, 240),
    "lite2": (1.1, 1.2, 260),
    "lite3": (1.2, 1.4, 280),
    "lite4": (1.4, 1.8, 300),
}
# Kernel, stride, expansion, output channels, repeats (table 1 of the paper).
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_STEM, _HEAD = 32, 1280
_EPSILON = 1e-3


def efficientnet_lite(variant: str, image_size: int) -> keras.Model:
    """Trunk (B, S, S, 3) normalised -> (B, ceil(S/32), ceil(S/32), 1280).

    The layers `stage1_out` (stride 2), `stage2_out` (4), `stage3_out` (8), `stage5_out` (16) and `stage7_out` (32) are
    the last of their resolution, for tasks that need a feature pyramid.

    Raises:
        ValueError: for an unknown variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"`variant` must be one of {', '.join(VARIANTS)}; received {variant!r}.")
    width, depth, _ = VARIANTS[variant]
    images = keras.Input((image_size, image_size, 3), name="normalised")
    x = _convolved(images, _STEM, "stem", kernel=3, stride=2)
    for number, (kernel, stride, expansion, channels, repeats) in enumerate(_STAGES, start=1):
        # First and last stage are not deepened: lite/efficientnet_lite_builder.py, fix_head_stem.
        count = repeats if number in (1, len(_STAGES)) else math.ceil(depth * repeats)
        for block in range(1, count + 1):
            x = _inverted_residual(
                x,
                _rounded(channels * width),
                f"stage{number}_block{block}",
                kernel=kernel,
                stride=stride if block == 1 else 1,
                expansion=expansion,
            )
        x = layers.Identity(name=f"stage{number}_out")(x)
    return keras.Model(images, _convolved(x, _HEAD, "head", kernel=1), name=f"efficientnet_{variant}")


def _rounded(channels: float) -> int:
    """The multiple of 8 next to `channels`, never more than 10 % below it."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def _convolved(x: keras.KerasTensor, channels: int, name: str, *, kernel: int, stride: int = 1) -> keras.KerasTensor:
    x = layers.Conv2D(channels, kernel, strides=stride, padding="same", use_bias=False, name=f"{name}_conv")(x)
    return layers.ReLU(6.0, name=f"{name}_relu")(_normalised(x, name))


def _normalised(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    return FusedBatchNormalization(momentum=0.95, epsilon=_EPSILON, name=f"{name}_norm")(x)


def _inverted_residual(
    x: keras.KerasTensor, channels: int, name: str, *, kernel: int, stride: int, expansion: int
) -> keras.KerasTensor:
    """(B, h, w, C) -> (B, ceil(h / stride), ceil(w / stride), channels)."""
    y = x
    if expansion > 1:
        y = _convolved(y, x.shape[-1] * expansion, f"{name}_expand", kernel=1)
    y = layers.DepthwiseConv2D(kernel, strides=stride, padding="same", use_bias=False, name=f"{name}_depthwise_conv")(y)
    y = layers.ReLU(6.0, name=f"{name}_depthwise_relu")(_normalised(y, f"{name}_depthwise"))
    y = layers.Conv2D(channels, 1, use_bias=False, name=f"{name}_project_conv")(y)
    y = _normalised(y, f"{name}_project")
    return layers.Add(name=f"{name}_add")([x, y]) if stride == 1 and x.shape[-1] == channels else y


def load_torch_weights(trunk: keras.Model, head: keras.Model, state: Mapping[str, np.ndarray]) -> None:
    """Put the weights of the PyTorch port (EfficientNet-PyTorch's names) into trunk and classifier head.

    Raises:
        ValueError: where a tensor finds no place, or a place no tensor of its shape; the message names them.
    """
    from shared.pretrained import assign_weights

    weights = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    dense = head.get_layer("logits")
    targets = _torch_names(trunk) | {"_fc.weight": dense.kernel, "_fc.bias": dense.bias}
    assign_weights(targets, {name: _in_keras_order(name, value) for name, value in weights.items()})


def _torch_names(trunk: keras.Model) -> dict[str, keras.Variable]:
    """Variables by the name that the PyTorch port gives them."""
    blocks = sorted({_block_key(layer.name) for layer in trunk.layers if "_block" in layer.name})
    numbers = {f"stage{stage}_block{block}": i for i, (stage, block) in enumerate(blocks)}
    names: dict[str, keras.Variable] = {}
    for layer in trunk.layers:
        part, _, kind = layer.name.rpartition("_")
        if kind == "conv":
            names[f"{_torch_conv(part, numbers)}.weight"] = layer.kernel
        elif kind == "norm":
            prefix = _torch_norm(part, numbers)
            names |= {f"{prefix}.weight": layer.gamma, f"{prefix}.bias": layer.beta}
            names |= {f"{prefix}.running_mean": layer.moving_mean, f"{prefix}.running_var": layer.moving_variance}
    return names


def _block_key(name: str) -> tuple[int, int]:
    stage, block = name.split("_")[:2]
    return int(stage.removeprefix("stage")), int(block.removeprefix("block"))


def _torch_conv(part: str, numbers: Mapping[str, int]) -> str:
    if part in ("stem", "head"):
        return f"_conv_{part}"
    block, _, kind = part.rpartition("_")
    return f"_blocks.{numbers[block]}._{kind}_conv"


def _torch_norm(part: str, numbers: Mapping[str, int]) -> str:
    if part in ("stem", "head"):
        return {"stem": "_bn0", "head": "_bn1"}[part]
    block, _, kind = part.rpartition("_")
    return f"_blocks.{numbers[block]}._bn{('expand', 'depthwise', 'project').index(kind)}"


def _in_keras_order(name: str, value: np.ndarray) -> np.ndarray:
    """PyTorch kernels (out, in, h, w) -> Keras (h, w, in, out); depthwise (in, 1, h, w) -> (h, w, in, 1)."""
    if value.ndim == 4:
        return value.transpose((2, 3, 0, 1) if "depthwise" in name else (2, 3, 1, 0))
    return value.T if value.ndim == 2 else value
