from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from shared.losses import cross_entropy

LOGITS = np.array([[2.0, -1.0, 0.5], [0.0, 0.0, 3.0]], np.float32)


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weights", [None, np.array([1.0, 2.0, 5.0], np.float32)])
def test_softmax_cross_entropy(smoothing, weights):
    targets = np.array([0, 2])
    shares = np.eye(3)[targets] * (1 - smoothing) + smoothing / 3
    losses = -(shares * log_softmax(LOGITS)).sum(axis=1) * (1 if weights is None else weights[targets])
    found = cross_entropy(tf.constant(LOGITS), tf.constant(targets), label_smoothing=smoothing, class_weights=weights)
    assert float(found) == pytest.approx(losses.mean(), rel=1e-6)


def test_targets_may_be_shares():
    numbers = cross_entropy(tf.constant(LOGITS), tf.constant([1, 0]))
    shares = cross_entropy(tf.constant(LOGITS), tf.constant([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]))
    assert float(numbers) == pytest.approx(float(shares))


@pytest.mark.parametrize("weights", [None, np.array([1.0, 2.0, 5.0], np.float32)])
def test_sigmoid_cross_entropy_for_many_labels(weights):
    targets = np.array([[1, 0, 1], [0, 0, 1]], np.float32)
    share = 1 / (1 + np.exp(-LOGITS))
    smoothed = targets * 0.9 + 0.05
    losses = -(smoothed * np.log(share) + (1 - smoothed) * np.log(1 - share)) * (1 if weights is None else weights)
    found = cross_entropy(
        tf.constant(LOGITS), tf.constant(targets), multi_label=True, label_smoothing=0.1, class_weights=weights
    )
    assert float(found) == pytest.approx(losses.mean(), rel=1e-5)


def test_half_precision_logits_lose_nothing_more():
    half = tf.cast(LOGITS, tf.bfloat16)
    assert cross_entropy(half, tf.constant([0, 2])).dtype == tf.float32
