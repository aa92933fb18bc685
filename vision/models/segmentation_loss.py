"""What segmenters are trained by: cross-entropy over pixels, and losses over regions.

Shapes: B images, H and W size, K classes, P pixels that count.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from shared.distribution import mean_over_batch, sum_over_batch
from vision.annotations import IGNORED


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
    targets = tf.one_hot(numbers, num_classes)
    smooth = targets * (1 - label_smoothing) + label_smoothing / num_classes
    losses = tf.nn.softmax_cross_entropy_with_logits(smooth, logits)
    weights = tf.cast(counted, tf.float32)
    if class_weights is not None:
        weights *= tf.gather(tf.constant(class_weights, tf.float32), numbers)
    loss = mean_over_batch(tf.reduce_sum(losses * weights), tf.reduce_sum(weights))
    if region == "none":
        return loss
    probabilities, inside = tf.nn.softmax(logits), tf.cast(counted, tf.float32)[..., None]
    if region == "dice":
        return loss + region_weight * dice_loss(probabilities * inside, targets * inside)
    return loss + region_weight * lovasz_loss(
        tf.boolean_mask(probabilities, counted), tf.boolean_mask(targets, counted)
    )


def dice_loss(probabilities: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """1 - the soft Dice coefficient of the batch, mean over classes that occur in it.

    Milletari et al. 2016 (V-Net, arXiv:1606.04797, section 3), with first powers in the denominator.

    Args:
        probabilities: (B, H, W, K), 0 where pixels do not count.
        targets: one-hot, the same shape.
    """
    axes = [0, 1, 2]
    shared, there, predicted = sum_over_batch(
        tf.reduce_sum(probabilities * targets, axis=axes),
        tf.reduce_sum(targets, axis=axes),
        tf.reduce_sum(probabilities, axis=axes),
    )
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
