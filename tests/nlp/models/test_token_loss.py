from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from nlp.models.token_loss import token_cross_entropy
from shared.losses import cross_entropy

LOGITS = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
TARGETS = np.array([[0, 4, -1], [2, -1, -1]], np.int32)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_it_is_the_cross_entropy_of_the_real_positions(label_smoothing):
    real = TARGETS >= 0
    expected = cross_entropy(LOGITS[real], tf.constant(TARGETS[real]), label_smoothing=label_smoothing)
    found = token_cross_entropy(LOGITS, tf.constant(TARGETS), label_smoothing=label_smoothing)
    assert float(found) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_its_gradient_is_that_of_the_plain_formula(label_smoothing):
    real = TARGETS >= 0
    gradients = []
    for loss in (
        lambda x: 3 * token_cross_entropy(x, tf.constant(TARGETS), label_smoothing=label_smoothing),
        lambda x: 3 * cross_entropy(x[real], tf.constant(TARGETS[real]), label_smoothing=label_smoothing),
    ):
        logits = tf.constant(LOGITS)
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = loss(logits)
        gradients.append(tf.convert_to_tensor(tape.gradient(value, logits)).numpy())
    assert gradients[0] == pytest.approx(gradients[1], abs=1e-6)


def test_padding_has_no_gradient_and_nothing_but_padding_no_loss():
    logits = tf.constant(LOGITS)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = token_cross_entropy(logits, tf.constant(TARGETS), label_smoothing=0.1)
    gradient = tape.gradient(loss, logits).numpy()
    assert np.all(gradient[TARGETS < 0] == 0)
    assert np.all(np.abs(gradient[TARGETS >= 0]).sum(axis=-1) > 0)
    assert float(token_cross_entropy(LOGITS, tf.constant(np.full((2, 3), -1)))) == 0.0


def test_a_token_of_probability_zero_has_the_loss_of_its_logit():
    logits = np.array([[[0.0, 1000.0, -500.0]]], np.float32)
    assert float(token_cross_entropy(logits, tf.constant([[2]]))) == pytest.approx(1500.0)
