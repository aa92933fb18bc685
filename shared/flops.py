"""Floating-point operations of a model, counted in its graph, and what graphics cards can do of them.

A multiplication and an addition count as two operations; only matrix products and convolutions are counted, which is
nearly all in the networks here. Training is taken as three forward passes, as is usual (Chowdhery et al. 2022,
arXiv:2204.02311, appendix B): the backward pass computes two products for each of the forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

TRAINING_PASSES = 3

# Peak 10^12 operations/s without sparsity: in bfloat16 or float16 with sums in float32, and in what TensorFlow takes
# float32 for: TF32 from Ampere on, float32 proper before. By the part of a device's name that tells it, longer parts
# first. Sources: NVIDIA's data sheets of these cards (the figures with sparsity halved where they give only those); for
# GeForce cards appendix A of the whitepapers of GA102 and AD102.
_PEAKS: dict[str, tuple[float, float]] = {
    "H100 PCIe": (756.0, 378.0),
    "H100 NVL": (835.0, 417.0),
    "H100": (989.0, 494.0),
    "H200": (989.0, 494.0),
    "A100": (312.0, 156.0),
    "A30": (165.0, 82.0),
    "A10": (125.0, 62.5),
    "A40": (149.7, 74.8),
    "L40S": (362.0, 183.0),
    "L40": (181.0, 90.5),
    "L4": (121.0, 60.0),
    "T4": (65.0, 8.1),
    "V100-SXM": (125.0, 15.7),
    "V100": (112.0, 14.0),
    "RTX 3090": (71.0, 35.6),
    "RTX 4090": (165.2, 82.6),
}


def peak_flops(device_name: str, precision: str) -> float | None:
    """Peak operations per second of a graphics card in a Keras precision; None for a card that is not in the table.

    >>> peak_flops("NVIDIA H100 80GB HBM3", "mixed_bfloat16")
    989000000000000.0
    """
    words = device_name.replace("-", " ").split()
    for name in sorted(_PEAKS, key=len, reverse=True):
        parts = name.replace("-", " ").split()
        found = any(_begins(words[i : i + len(parts)], parts) for i in range(len(words)))
        if found:
            reduced, single = _PEAKS[name]
            if (precision, parts[0]) == ("mixed_bfloat16", "V100") or (precision, name) == ("mixed_bfloat16", "T4"):
                return None  # no matrix units for bfloat16
            return 1e12 * (single if precision == "float32" else reduced)
    return None


def _begins(words: list[str], parts: list[str]) -> bool:
    """Whether the words are those of a name; the last may go on after it with letters, as SXM2 does."""
    if len(words) < len(parts) or words[: len(parts) - 1] != parts[:-1]:
        return False
    rest = words[len(parts) - 1].removeprefix(parts[-1])
    return words[len(parts) - 1].startswith(parts[-1]) and (rest == "" or (parts[-1] == "SXM" and rest.isdigit()))


def forward_flops(loss: Callable[[dict[str, tf.Tensor]], tf.Tensor], batch: Mapping[str, tf.TensorSpec]) -> int | None:
    """Operations of `loss` on a batch of these shapes; None where the graph leaves sizes, or repetitions, open.

    Nothing is computed: the function is traced, and its graph read.
    """
    traced = tf.function(loss, autograph=False).get_concrete_function(dict(batch))
    try:
        return _graph_flops(traced.graph)
    except _UncountableError:
        return None


class _UncountableError(Exception):
    """The graph does not say how much is computed."""


def _graph_flops(graph: Any) -> int:
    return sum(_operation_flops(operation, graph) for operation in graph.get_operations())


def _operation_flops(operation: Any, graph: Any) -> int:
    count = _COUNTS.get(operation.type)
    if count is not None:
        return count(operation)
    if operation.type in {"PartitionedCall", "StatefulPartitionedCall"}:
        return _graph_flops(_function(graph, operation.get_attr("f").name))
    if operation.type in {"While", "StatelessWhile"}:
        if _graph_flops(_function(graph, operation.get_attr("body").name)):
            raise _UncountableError
    return 0


def _function(graph: Any, name: str) -> Any:
    from tensorflow.python.framework.function_def_to_graph import function_def_to_graph

    found = graph._get_function(name)
    inner = getattr(found, "graph", None)
    return inner if inner is not None else function_def_to_graph(found.cached_definition)


def _size(shape: tf.TensorShape) -> int:
    if not shape.is_fully_defined():
        raise _UncountableError
    return math.prod(shape.as_list())


def _product(operation: Any) -> int:
    """(..., m, k) x (..., k, n): every number of the result takes k multiplications and additions."""
    transposed = operation.get_attr("transpose_a" if operation.type == "MatMul" else "adj_x")
    inner = operation.inputs[0].shape[-2 if transposed else -1]
    return 2 * _size(operation.outputs[0].shape) * _size(tf.TensorShape([inner]))


def _einsum(operation: Any) -> int:
    """All indices of the equation, each once."""
    if len(operation.inputs) != 2:
        return 0
    sides = operation.get_attr("equation").decode().partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for letters, tensor in zip(sides, operation.inputs, strict=True):
        if "..." in letters:
            raise _UncountableError
        _size(tensor.shape)
        sizes |= dict(zip(letters, tensor.shape.as_list(), strict=True))
    return 2 * math.prod(sizes.values())


def _convolution(operation: Any) -> int:
    """Filter (h, w, inputs of a group, outputs): every number of the result takes one of its columns."""
    height, width, inputs, _ = operation.inputs[1].shape.as_list()
    return 2 * _size(operation.outputs[0].shape) * int(height * width * inputs)


def _depthwise(operation: Any) -> int:
    height, width, _, _ = operation.inputs[1].shape.as_list()
    return 2 * _size(operation.outputs[0].shape) * int(height * width)


_COUNTS: dict[str, Callable[[Any], int]] = {
    "MatMul": _product,
    "BatchMatMul": _product,
    "BatchMatMulV2": _product,
    "BatchMatMulV3": _product,
    "Einsum": _einsum,
    "Conv2D": _convolution,
    "DepthwiseConv2dNative": _depthwise,
}
