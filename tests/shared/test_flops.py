from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from shared.flops import forward_flops, peak_flops

layers = keras.layers


def spec(*shape: int | None) -> dict[str, tf.TensorSpec]:
    return {"x": tf.TensorSpec(shape, tf.float32)}


def flops_of(layer: keras.layers.Layer, *shape: int | None) -> int | None:
    return forward_flops(lambda batch: tf.reduce_sum(layer(batch["x"])), spec(*shape))


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (layers.Flatten(), (2, 3), 0),
        (layers.Dense(5), (2, 3), 2 * 2 * 3 * 5),
        (layers.Dense(5), (2, 7, 3), 2 * 2 * 7 * 3 * 5),
        (layers.EinsumDense("btd,dhe->bthe", (None, 2, 4)), (2, 7, 3), 2 * 2 * 7 * 3 * 2 * 4),
        (layers.Conv2D(4, 3, padding="same"), (2, 8, 8, 3), 2 * 2 * 64 * 9 * 3 * 4),
        (layers.Conv2D(4, 3, strides=2), (2, 9, 9, 3), 2 * 2 * 16 * 9 * 3 * 4),
        (layers.Conv2D(4, 1, groups=2), (2, 8, 8, 6), 2 * 2 * 64 * 3 * 4),
        (layers.DepthwiseConv2D(3, padding="same"), (2, 8, 8, 3), 2 * 2 * 64 * 9 * 3),
        (layers.Dense(5), (None, 3), None),
    ],
)
def test_layers(layer, shape, expected):
    assert flops_of(layer, *shape) == expected


def test_what_is_compiled_within_counts_too():
    inner = tf.function(lambda x: tf.matmul(x, x, transpose_b=True))
    assert forward_flops(lambda batch: tf.reduce_sum(inner(batch["x"])), spec(4, 6)) == 2 * 4 * 4 * 6


def test_repetitions_that_the_graph_leaves_open_are_not_guessed():
    def loss(batch):
        return tf.reduce_sum(tf.while_loop(lambda x: tf.reduce_sum(x) < 9.0, lambda x: (x @ x,), [batch["x"]])[0])

    assert forward_flops(loss, spec(3, 3)) is None


def test_tensorflows_own_count_of_a_network_is_ours():
    network = keras.Sequential([layers.Conv2D(4, 3), layers.Conv2D(8, 3, strides=2), layers.Flatten(), layers.Dense(3)])
    network.build((2, 16, 16, 3))
    graph = tf.Graph()
    weights = [np.asarray(weight) for weight in network.get_weights()]
    with graph.as_default():
        x = tf.compat.v1.placeholder(tf.float32, (2, 16, 16, 3))
        x = tf.nn.conv2d(x, weights[0], 1, "VALID")
        x = tf.reshape(tf.nn.conv2d(x, weights[2], 2, "VALID"), (2, -1))
        tf.matmul(x, weights[4])
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    theirs = tf.compat.v1.profiler.profile(graph, options=options).total_float_ops
    assert flops_of(network, 2, 16, 16, 3) == theirs


def test_an_encoder_is_what_its_formula_gives():
    from nlp.models.encoder import EncoderConfig, build_encoder

    config = EncoderConfig(vocab_size=50, num_layers=2, hidden_size=16, num_heads=2, intermediate_size=32)
    encoder, (b, t, d) = build_encoder(config), (3, 10, 16)
    batch = {name: tf.TensorSpec((b, t), tf.int32) for name in ("token_ids", "segment_ids")}
    batch["mask"] = tf.TensorSpec((b, t), tf.bool)
    found = forward_flops(lambda inputs: tf.reduce_sum(encoder(inputs, training=True)), batch)
    assert found == b * 2 * (2 * t * (4 * d * d + 2 * d * 32) + 4 * t * t * d)


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "mixed_bfloat16", 989e12),
        ("NVIDIA H100 PCIe", "mixed_bfloat16", 756e12),
        ("NVIDIA A100-SXM4-40GB", "mixed_float16", 312e12),
        ("NVIDIA A100-SXM4-40GB", "float32", 156e12),
        ("NVIDIA A10G", "float32", None),
        ("NVIDIA L4", "mixed_bfloat16", 121e12),
        ("NVIDIA L40S", "mixed_bfloat16", 362e12),
        ("Tesla V100-SXM2-16GB", "mixed_float16", 125e12),
        ("Tesla V100-PCIE-16GB", "float32", 14e12),
        ("Tesla V100-SXM2-16GB", "mixed_bfloat16", None),
        ("Tesla T4", "float32", 8.1e12),
        ("NVIDIA GeForce RTX 4090", "mixed_bfloat16", 165.2e12),
        ("A card of tomorrow", "float32", None),
        ("", "float32", None),
    ],
)
def test_peaks_of_cards(name, precision, expected):
    found = peak_flops(name, precision)
    assert found == (None if expected is None else pytest.approx(expected))
