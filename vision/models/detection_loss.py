"""What the light detector is trained by: which cells answer for which object, and what their answers cost.

Shapes: B images, A cells, K classes, N objects of an image, padded.
"""

from __future__ import annotations

import tensorflow as tf

from shared.distribution import mean_over_batch
from vision.models.suppression import pairwise_iou

# Weights of score and overlap in the alignment, and cells for an object: Feng et al. 2021 (TOOD, arXiv:2108.07755,
# sections 3.2 and 4.1).
_SCORE_POWER, _OVERLAP_POWER, _CELLS = 1.0, 6.0, 13
# Sixth powers of the overlaps of small objects are far below 1e-12: this is below them, and still a float32.
_TINY = 1e-30
# Li et al. 2020 (arXiv:2006.04388, equation 2).
_FOCUS = 2.0
# Weight of the boxes beside the classes, as in TOOD.
_BOX_WEIGHT = 2.0


def detection_loss(
    predicted: tf.Tensor,
    logits: tf.Tensor,
    centres: tf.Tensor,
    sizes: tf.Tensor,
    objects: tuple[tf.Tensor, tf.Tensor, tf.Tensor],
) -> tf.Tensor:
    """Quality focal loss of the classes plus generalised IoU loss of the boxes, per aligned cell; a scalar.

    Each object is given to the cells within it that are aligned best: score ** 1 * IoU ** 6, thirteen at most. Their
    targets are not 1 but the alignment, scaled per object to its largest IoU (task-aligned learning; Feng et al. 2021,
    TOOD, arXiv:2108.07755). So a score learns to say how well its box fits.

    Args:
        predicted: boxes (B, A, 4) xyxy.
        logits: of the classes (B, A, K).
        centres: of the cells (A, 2).
        sizes: strides of the cells (A, 1).
        objects: boxes (B, N, 4) xyxy, class numbers (B, N) with -1 for padding, crowd (B, N) bool.
    """
    boxes, classes, crowd = objects
    present = tf.logical_and(classes >= 0, tf.logical_not(crowd))
    targets, matched, weights = _assigned(predicted, logits, centres, sizes, boxes, classes, present)
    doubtful = tf.logical_and(classes >= 0, crowd)
    in_crowd = tf.reduce_any(tf.logical_and(_holds(boxes, centres), doubtful[:, :, None]), axis=1)
    counted = tf.logical_or(weights > 0, tf.logical_not(in_crowd))
    class_loss = tf.reduce_sum(_quality_focal(logits, targets) * tf.cast(counted, tf.float32)[..., None])
    box_loss = tf.reduce_sum(giou_loss(predicted, matched) * weights)
    return mean_over_batch(class_loss + _BOX_WEIGHT * box_loss, tf.reduce_sum(weights))


def _assigned(
    predicted: tf.Tensor,
    logits: tf.Tensor,
    centres: tf.Tensor,
    sizes: tf.Tensor,
    boxes: tf.Tensor,
    classes: tf.Tensor,
    present: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Class targets (B, A, K), the box that each cell answers for (B, A, 4), and its weight (B, A), 0 for none."""
    predicted, logits = tf.stop_gradient(predicted), tf.stop_gradient(logits)
    num_classes = logits.shape[-1]
    # Objects smaller than the finest cell may hold no centre: for this question they are as large as one.
    may_answer = tf.logical_and(_holds(_at_least(boxes, tf.reduce_min(sizes)), centres), present[:, :, None])
    overlaps = pairwise_iou(boxes, predicted)  # (B, N, A)
    scores = tf.gather(tf.transpose(tf.sigmoid(logits), (0, 2, 1)), tf.maximum(classes, 0), batch_dims=1)
    alignment = scores**_SCORE_POWER * overlaps**_OVERLAP_POWER
    chosen = _best_cells(tf.where(may_answer, alignment + _TINY, 0.0))
    # A cell that several objects claim answers for the one that it overlaps most.
    claims = tf.where(chosen, overlaps + 1e-6, 0.0)
    owner = tf.argmax(claims, axis=1, output_type=tf.int32)  # (B, A)
    owned = tf.logical_and(chosen, tf.one_hot(owner, tf.shape(boxes)[1], axis=1, on_value=True, off_value=False))
    alignment = tf.where(owned, alignment, 0.0)
    best_overlap = tf.reduce_max(tf.where(owned, overlaps, 0.0), axis=2, keepdims=True)
    scaled = tf.math.divide_no_nan(alignment, tf.reduce_max(alignment, axis=2, keepdims=True)) * best_overlap
    weights = tf.reduce_max(scaled, axis=1)
    kinds = tf.gather(tf.maximum(classes, 0), owner, batch_dims=1)
    targets = tf.one_hot(kinds, num_classes) * weights[..., None]
    return targets, tf.gather(boxes, owner, batch_dims=1), weights


def _best_cells(alignment: tf.Tensor) -> tf.Tensor:
    """Which cells are among the best of an object, bool (B, N, A)."""
    count = tf.minimum(_CELLS, tf.shape(alignment)[2])
    least = tf.math.top_k(alignment, count).values[..., -1:]
    return tf.logical_and(alignment >= least, alignment > 0)


def _holds(boxes: tf.Tensor, centres: tf.Tensor) -> tf.Tensor:
    """Whether the centre of a cell lies within a box, bool (B, N, A)."""
    after = tf.reduce_all(centres > boxes[:, :, None, :2], axis=-1)
    return tf.logical_and(after, tf.reduce_all(centres < boxes[:, :, None, 2:], axis=-1))


def _at_least(boxes: tf.Tensor, side: tf.Tensor) -> tf.Tensor:
    middle = (boxes[..., :2] + boxes[..., 2:]) / 2
    # A little more than the cell: a centre may lie exactly on an edge.
    half = tf.maximum((boxes[..., 2:] - boxes[..., :2]) / 2, 0.501 * side)
    return tf.concat([middle - half, middle + half], axis=-1)


def _quality_focal(logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """|t - s| ** 2 * cross-entropy of the score s with the soft target t (Li et al. 2020, equation 2)."""
    distance = tf.abs(targets - tf.sigmoid(logits))
    return distance**_FOCUS * tf.nn.sigmoid_cross_entropy_with_logits(targets, logits)


def giou_loss(predicted: tf.Tensor, truth: tf.Tensor) -> tf.Tensor:
    """1 - generalised IoU of boxes (..., 4) with boxes (..., 4), 0 to 2 (Rezatofighi et al. 2019, arXiv:1902.09630)."""
    shared = _area(tf.maximum(predicted[..., :2], truth[..., :2]), tf.minimum(predicted[..., 2:], truth[..., 2:]))
    areas = _area(predicted[..., :2], predicted[..., 2:]) + _area(truth[..., :2], truth[..., 2:])
    union = tf.maximum(areas - shared, 1e-9)
    hull = _area(tf.minimum(predicted[..., :2], truth[..., :2]), tf.maximum(predicted[..., 2:], truth[..., 2:]))
    return 1 - shared / union + (hull - union) / tf.maximum(hull, 1e-9)


def _area(top_left: tf.Tensor, bottom_right: tf.Tensor) -> tf.Tensor:
    return tf.reduce_prod(tf.maximum(bottom_right - top_left, 0.0), axis=-1)
