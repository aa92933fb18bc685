"""What segmenters are trained by: cross-entropy over pixels, and losses over regions.

Shapes: B images, H and W size, K classes, P pixels that count.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from shared.distribution import mean_over_batch, sum_over_batch
from vision.annotations import IGNORED

# The smallest normal number of float32: logarithms of what is rounded to 0 stay finite.
_SMALLEST = float(np.finfo(np.float32).tiny)


def segmentation_loss(
    logits: tf.Tensor,
    masks: tf.Tensor,
    *,
    region: str,
    region_weight: float,
    class_weights: np.ndarray | None = None,
    label_smoothing: float = 0.0,
) -> tf.Tensor:
    """Mean cross-entropy over pixels, plus `region_weight` times a loss over regions; a scalar.

    Args:
        logits: (B, H, W, K).
        masks: class numbers int32 (B, H, W); IGNORED pixels have no part in any loss.
        region: "none", "dice" or "lovasz".
        region_weight: of the second loss.
        class_weights: (K,); a pixel counts as much as its class in the cross-entropy.
        label_smoothing: share of the target that is spread over all classes (cross-entropy only).
    """
    logits = tf.cast(logits, tf.float32)
    num_classes = logits.shape[-1]
    counted = tf.not_equal(masks, IGNORED)
    numbers = tf.where(counted, masks, 0)
    weights = tf.cast(counted, tf.float32)
    if class_weights is not None:
        weights *= tf.gather(tf.constant(class_weights, tf.float32), numbers)
    if region != "lovasz" and not label_smoothing:
        sums = _sums_over_pixels(logits, masks, weights)
        loss = mean_over_batch(sums[0], tf.reduce_sum(weights))
        return loss if region == "none" else loss + region_weight * _dice_loss_of_sums(*sums[1:])
    targets = tf.one_hot(numbers, num_classes)
    smooth = targets * (1 - label_smoothing) + label_smoothing / num_classes
    losses = tf.nn.softmax_cross_entropy_with_logits(smooth, logits)
    loss = mean_over_batch(tf.reduce_sum(losses * weights), tf.reduce_sum(weights))
    if region == "none":
        return loss
    probabilities, inside = tf.nn.softmax(logits), tf.cast(counted, tf.float32)[..., None]
    if region == "dice":
        return loss + region_weight * dice_loss(probabilities * inside, targets * inside)
    return loss + region_weight * lovasz_loss(
        tf.boolean_mask(probabilities, counted), tf.boolean_mask(targets, counted)
    )


def _sums_over_pixels(
    logits: tf.Tensor, masks: tf.Tensor, weights: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """What cross-entropy and Dice coefficient are made of, from one softmax and with its gradient in closed form.

    On processors the many passes over (B, H, W, K) of the single operations take longer than a convolution of the
    decoder. With p the probabilities and t the targets, both of N pixels, the gradient of
    g sum(w ce) + a . sum(p t) + b . sum(p) for logits is g w (p - t) + p (a t + b) - p (p . (a t + b)).

    Args:
        logits: float32 (B, H, W, K).
        masks: class numbers int32 (B, H, W); IGNORED pixels have no part.
        weights: float32 (B, H, W) of the cross-entropy, 0 where a pixel is ignored.

    Returns:
        The weighted sum of the cross-entropies (of which one is at most 87, the logarithm of float32's smallest
        number); by class (K,) the sum of the probabilities of its own pixels, their number, and the sum of its
        probabilities over all pixels that count.
    """
    num_classes = logits.shape[-1]
    flat_masks = tf.reshape(masks, [-1])
    counted = tf.cast(tf.not_equal(flat_masks, IGNORED), tf.float32)
    targets = tf.one_hot(tf.where(tf.equal(flat_masks, IGNORED), -1, flat_masks), num_classes)  # -1: all are 0
    flat_weights = tf.reshape(weights, [-1])

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def sums(flat: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], Callable[..., tf.Tensor]]:
        probabilities = tf.nn.softmax(flat)
        own = probabilities * targets
        entropies = -tf.math.log(tf.maximum(tf.reduce_sum(own, axis=1), _SMALLEST))
        predicted = tf.linalg.matvec(probabilities, counted, transpose_a=True)

        def gradient(of_entropy: tf.Tensor, of_own: tf.Tensor, of_predicted: tf.Tensor) -> tf.Tensor:
            scaled = of_entropy * flat_weights
            mean = tf.linalg.matvec(own, of_own) + counted * tf.linalg.matvec(probabilities, of_predicted)
            of_all = counted[:, None] * of_predicted + (scaled - mean)[:, None]
            return probabilities * of_all + own * of_own - targets * scaled[:, None]

        return (tf.reduce_sum(entropies * flat_weights), tf.reduce_sum(own, axis=0), predicted), gradient

    cross_entropy, shared, predicted = sums(tf.reshape(logits, [-1, num_classes]))
    return cross_entropy, shared, tf.reduce_sum(targets, axis=0), predicted


def dice_loss(probabilities: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """1 - the soft Dice coefficient of the batch, mean over classes that occur in it.

    Milletari et al. 2016 (V-Net, arXiv:1606.04797, section 3), with first powers in the denominator.

    Args:
        probabilities: (B, H, W, K), 0 where pixels do not count.
        targets: one-hot, the same shape.
    """
    axes = [0, 1, 2]
    return _dice_loss_of_sums(
        tf.reduce_sum(probabilities * targets, axis=axes),
        tf.reduce_sum(targets, axis=axes),
        tf.reduce_sum(probabilities, axis=axes),
    )


def _dice_loss_of_sums(shared: tf.Tensor, there: tf.Tensor, predicted: tf.Tensor) -> tf.Tensor:
    """The same from a device's sums over pixels (K,): of p t, of t and of p."""
    shared, there, predicted = sum_over_batch(shared, there, predicted)
    sizes = predicted + there
    occurs = tf.cast(there > 0, tf.float32)
    losses = 1 - (2 * shared + 1) / (sizes + 1)
    return tf.reduce_sum(losses * occurs) / tf.maximum(tf.reduce_sum(occurs), 1.0)


def lovasz_loss(probabilities: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """Lovasz-softmax: a convex extension of 1 - IoU, mean over classes that occur.

    Berman et al. 2018 (arXiv:1705.08790, section 3).

    Args:
        probabilities: (P, K).
        targets: one-hot, the same shape.
    """
    errors = tf.transpose(tf.abs(targets - probabilities))  # (K, P)
    falling, order = tf.math.top_k(errors, tf.shape(errors)[1])
    sorted_targets = tf.gather(tf.transpose(targets), order, batch_dims=1)
    there = tf.reduce_sum(sorted_targets, axis=1, keepdims=True)
    # The Jaccard distance when the first pixels of this order are wrong (algorithm 1 of the paper), and its steps.
    shared = there - tf.cumsum(sorted_targets, axis=1)
    union = there + tf.cumsum(1 - sorted_targets, axis=1)
    jaccard = 1 - shared / tf.maximum(union, 1.0)
    steps = tf.concat([jaccard[:, :1], jaccard[:, 1:] - jaccard[:, :-1]], axis=1)
    losses = tf.reduce_sum(falling * tf.stop_gradient(steps), axis=1)
    occurs = tf.cast(there[:, 0] > 0, tf.float32)
    return tf.reduce_sum(losses * occurs) / tf.maximum(tf.reduce_sum(occurs), 1.0)
