"""The loss of a decoder that is told the right token before each position.

Shapes: B texts, T target positions, V tokens.
"""

from __future__ import annotations

import tensorflow as tf


def token_cross_entropy(logits: tf.Tensor, targets: tf.Tensor, *, label_smoothing: float = 0.0) -> tf.Tensor:
    """Mean cross-entropy of logits (B, T, V) and token ids (B, T), -1 where there is none; a float32 scalar.

    `label_smoothing` is that of Szegedy et al. 2016 (arXiv:1512.00567, section 7): (1 - e) times the loss of the token
    and e times the mean loss of all V, both from one logarithm of a sum.
    """
    logits = tf.cast(logits, tf.float32)
    real = targets >= 0
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.maximum(targets, 0), logits)
    if label_smoothing:
        # The mean loss is the loss of the token plus its logit less the mean logit.
        own = tf.gather(logits, tf.maximum(targets, 0), batch_dims=2)
        losses += label_smoothing * (own - tf.reduce_mean(logits, axis=-1))
    weights = tf.cast(real, tf.float32)
    return tf.reduce_sum(losses * weights) / tf.maximum(tf.reduce_sum(weights), 1.0)
