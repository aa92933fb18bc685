"""Losses that several tasks share."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from shared.distribution import mean_over_batch, share_here


def cross_entropy(
    logits: tf.Tensor,
    targets: tf.Tensor,
    *,
    multi_label: bool = False,
    label_smoothing: float = 0.0,
    class_weights: np.ndarray | None = None,
    by_examples: bool = True,
) -> tf.Tensor:
    """Mean cross-entropy of logits (B, K) and targets, class numbers (B,) or shares (B, K); a float32 scalar.

    Softmax for one label, sigmoid per class for many. `label_smoothing` is that of Szegedy et al. 2016
    (arXiv:1512.00567, section 7). `class_weights` (K,) multiply each example's loss by the weight of its classes.
    Without `by_examples` the rows are no examples, but words or the like, of which devices may have unequal numbers.
    """
    logits, num_labels = tf.cast(logits, tf.float32), logits.shape[-1]
    if targets.shape.rank == 1:
        targets = tf.one_hot(targets, num_labels)
    if multi_label:
        smoothed = targets * (1 - label_smoothing) + label_smoothing / 2
        elementwise = tf.nn.sigmoid_cross_entropy_with_logits(smoothed, logits)
        return tf.reduce_mean(elementwise if class_weights is None else elementwise * class_weights)
    smoothed = targets * (1 - label_smoothing) + label_smoothing / num_labels
    losses = tf.nn.softmax_cross_entropy_with_logits(smoothed, logits)
    if class_weights is not None:
        losses *= tf.linalg.matvec(targets, tf.constant(class_weights))
    if by_examples or share_here() is None:
        return tf.reduce_mean(losses)
    return mean_over_batch(tf.reduce_sum(losses), tf.cast(tf.size(losses), tf.float32))


def disagreement(first: tf.Tensor, second: tf.Tensor, *, multi_label: bool = False) -> tf.Tensor:
    """How far two answers to the same examples are apart, logits (B, K) each; a float32 scalar, 0 for equal ones.

    The mean of the Kullback-Leibler divergences of each from the other, as in equation 2 of Liang et al. 2021 (R-Drop,
    arXiv:2106.14448); for many labels their sum over classes.
    """
    first, second = tf.cast(first, tf.float32), tf.cast(second, tf.float32)
    chances = tf.sigmoid if multi_label else tf.nn.softmax
    # Logits in the place of logarithms: what they differ by cancels out.
    divergences = tf.reduce_sum((chances(first) - chances(second)) * (first - second), axis=-1)
    return tf.reduce_mean(divergences) / 2
