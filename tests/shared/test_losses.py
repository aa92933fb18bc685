from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from shared.losses import cross_entropy, disagreement

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


@pytest.mark.parametrize("multi_label", [False, True])
def test_disagreement_is_the_mean_of_both_divergences(multi_label):
    others = np.array([[1.0, 1.0, -2.0], [0.5, 0.0, 3.0]], np.float32)
    if multi_label:
        first, second = (np.stack([s, 1 - s]) for s in (1 / (1 + np.exp(-LOGITS)), 1 / (1 + np.exp(-others))))
        axes = (0, 2)
    else:
        first, second = (np.exp(log_softmax(logits)) for logits in (LOGITS, others))
        axes = (1,)
    there, back = ((p * np.log(p / q)).sum(axis=axes).mean() for p, q in ((first, second), (second, first)))
    found = disagreement(tf.constant(LOGITS), tf.constant(others), multi_label=multi_label)
    assert float(found) == pytest.approx((there + back) / 2, rel=1e-5)


def test_equal_answers_do_not_disagree_however_they_are_shifted():
    assert float(disagreement(tf.constant(LOGITS), tf.constant(LOGITS))) == 0
    assert float(disagreement(tf.constant(LOGITS), tf.constant(LOGITS + 7))) == pytest.approx(0, abs=1e-6)
