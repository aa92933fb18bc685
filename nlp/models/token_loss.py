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
    rows, tokens = tf.reshape(tf.cast(logits, tf.float32), (-1, num_tokens)), tf.reshape(targets, (-1,))
    weights = tf.cast(tokens >= 0, tf.float32)
    losses = _smoothed(rows, tf.maximum(tokens, 0), label_smoothing)
    return mean_over_batch(tf.reduce_sum(losses * weights), tf.reduce_sum(weights))


def _smoothed(logits: tf.Tensor, tokens: tf.Tensor, label_smoothing: float) -> tf.Tensor:
    """Losses (N,) of logits (N, V) and token ids (N,).

    Their gradient, softmax - (1 - e) onehot - e / V, is made at once: one by parts goes over (N, V) four more times.
    """

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def losses(logits: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        plain, slopes = tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits(features=logits, labels=tokens)
        # The mean loss is the loss of the token plus its logit less the mean logit.
        own = tf.gather(logits, tokens, batch_dims=1)
        smoothed = plain + label_smoothing * (own - tf.reduce_mean(logits, axis=-1)) if label_smoothing else plain

        def gradient(upstream: tf.Tensor) -> Any:
            share = label_smoothing / logits.shape[-1]
            whole = (slopes - share) * upstream[:, None]
            places = tf.stack([tf.range(tf.size(tokens)), tokens], axis=1)
            return tf.tensor_scatter_nd_add(whole, places, label_smoothing * upstream) if label_smoothing else whole

        return smoothed, gradient

    return losses(logits)
