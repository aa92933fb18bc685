"""The loss of a decoder that is told the right token before each position.

Shapes: B texts, T target positions, V tokens, N = B T.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from shared.distribution import mean_over_batch


def token_cross_entropy(logits: tf.Tensor, targets: tf.Tensor, *, label_smoothing: float = 0.0) -> tf.Tensor:
    """Mean cross-entropy of logits (B, T, V) and token ids (B, T), -1 where there is none; a float32 scalar.

    `label_smoothing` is that of Szegedy et al. 2016 (arXiv:1512.00567, section 7): (1 - e) times the loss of the token
    and e times the mean loss of all V, both from one logarithm of a sum.
    """
    num_tokens = logits.shape[-1]
    rows = tf.reshape(tf.cast(logits, tf.float32), (-1, num_tokens))
    tokens = tf.reshape(tf.cast(targets, tf.int32), (-1,))
    weights = tf.cast(tokens >= 0, tf.float32)
    losses = _smoothed(rows, tf.maximum(tokens, 0), label_smoothing)
    return mean_over_batch(tf.reduce_sum(losses * weights), tf.reduce_sum(weights))


def _smoothed(logits: tf.Tensor, tokens: tf.Tensor, label_smoothing: float) -> tf.Tensor:
    """Losses (N,) of logits (N, V) and token ids (N,).

    Their gradient, softmax - (1 - e) onehot - e / V, is made at once: one by parts goes over (N, V) four more times.
    The softmax serves the loss too: its largest value p belongs to the largest logit, and logsumexp = logit - log p.
    TensorFlow's cross-entropy took twice the time of both on a CPU.
    """

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def losses(logits: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        probabilities = tf.nn.softmax(logits)
        # The largest probability is at least 1 / V: its logarithm is exact where that of another might be of 0.
        largest, rest = tf.reduce_max(logits, axis=-1), -tf.math.log(tf.reduce_max(probabilities, axis=-1))
        wanted = (1 - label_smoothing) * tf.gather(logits, tokens, batch_dims=1)
        if label_smoothing:
            wanted += label_smoothing * tf.reduce_mean(logits, axis=-1)

        def gradient(upstream: tf.Tensor) -> Any:
            share = label_smoothing / logits.shape[-1]
            whole = ((probabilities - share) if share else probabilities) * upstream[:, None]
            places = tf.stack([tf.range(tf.size(tokens)), tokens], axis=1)
            return tf.tensor_scatter_nd_sub(whole, places, (1 - label_smoothing) * upstream)

        return rest + (largest - wanted), gradient

    return losses(logits)
