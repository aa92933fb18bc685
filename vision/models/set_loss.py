"""What D-FINE is trained by: objects matched with queries one to one, and what the answers of matched queries cost.

Shapes: B images, S sets of answers (the encoder's, the first guess, one of each of L decoder layers), Q queries,
K classes, N objects of an image, padded, W bins of an edge. Boxes are (centre x, centre y, width, height) in shares of
the image, unless they are said to be edges.
"""

from __future__ import annotations

from dataclasses import dataclass

import tensorflow as tf

from shared.distribution import mean_over_batch
from vision.models.assignment import cheapest_assignment
from vision.models.detection_loss import giou_loss
from vision.models.suppression import pairwise_iou

# Weights of the class, of the distance and of the overlap in the costs of matching, and balance of the class's, as in
# RT-DETR (Zhao et al. 2023, arXiv:2304.08069) and D-FINE.
_CLASS_COST, _DISTANCE_COST, _OVERLAP_COST, _COST_ALPHA = 2.0, 5.0, 2.0, 0.25
_HIGHEST_COST = 1e6
# Weights of the losses, temperature of the distillation: Peng et al. 2024 (D-FINE, arXiv:2410.13842).
_CLASS_WEIGHT, _DISTANCE_WEIGHT, _OVERLAP_WEIGHT = 1.0, 5.0, 2.0
_BIN_WEIGHT, _DISTILLATION_WEIGHT, _TEMPERATURE = 0.15, 1.5, 5.0
# Zhang et al. 2021 (VarifocalNet, arXiv:2008.13367, equation 2).
_ALPHA, _GAMMA = 0.75, 2.0
# A query of whose box more lies in a crowd is not wrong there.
_IN_CROWD = 0.5


@dataclass(frozen=True)
class SetAnswers:
    """What D-FINE gives: for the sets `logits` (B, S, Q, K) and `boxes` (B, S, Q, 4); for the layers alone `corners`.

    `corners` (B, L, Q, 4, W) are logits over the bins of each edge, `reference` (B, Q, 4) the boxes from which they
    count, `bins` (W,) the distances that they stand for, in units of the box's side over `scale`.
    """

    logits: tf.Tensor
    boxes: tf.Tensor
    corners: tf.Tensor
    reference: tf.Tensor
    bins: tf.Tensor
    scale: tf.Tensor


def set_loss(answers: SetAnswers, boxes: tf.Tensor, classes: tf.Tensor, crowd: tf.Tensor) -> tf.Tensor:
    """The loss of all sets of answers, per object; a scalar.

    Each set is matched on its own. Crowds are not matched, and queries that lie in them do not count as wrong. The
    denoising queries of the paper have no part in it.

    Args:
        answers: of the network.
        boxes: of the objects (B, N, 4).
        classes: (B, N), -1 for padding.
        crowd: bool (B, N).
    """
    present = tf.logical_and(classes >= 0, tf.logical_not(crowd))
    kinds = tf.one_hot(tf.where(present, classes, -1), answers.logits.shape[-1])  # (B, N, K)
    queries = matched_queries(answers.logits, answers.boxes, boxes, kinds, present)  # (B, S, N)
    matched = tf.cast(queries >= 0, tf.float32)
    places = tf.maximum(queries, 0)
    found = tf.gather(answers.boxes, places, batch_dims=2)  # (B, S, N, 4)
    truth = tf.broadcast_to(boxes[:, None], tf.shape(found))
    overlaps = tf.stop_gradient(aligned_iou(as_edges(found), as_edges(truth))) * matched
    is_matched = tf.one_hot(queries, tf.shape(answers.logits)[2])  # (B, S, N, Q), nothing for -1
    counted = _counted(answers.boxes, boxes, tf.logical_and(classes >= 0, crowd), is_matched)
    losses = {
        "class": _CLASS_WEIGHT * _varifocal(answers.logits, is_matched, overlaps, kinds, counted),
        "distance": _DISTANCE_WEIGHT * tf.reduce_sum(tf.abs(found - truth) * matched[..., None]),
        "overlap": _OVERLAP_WEIGHT * tf.reduce_sum(giou_loss(as_edges(found), as_edges(truth)) * matched),
        "bins": _BIN_WEIGHT * _bin_loss(answers, places[:, 2:], truth[:, 2:], overlaps[:, 2:]),
    }
    distillation = _DISTILLATION_WEIGHT * _distillation(answers, is_matched[:, 2:], overlaps[:, 2:])
    return mean_over_batch(tf.add_n(list(losses.values())), tf.reduce_sum(tf.cast(present, tf.float32))) + distillation


def matched_queries(
    logits: tf.Tensor, found: tf.Tensor, boxes: tf.Tensor, kinds: tf.Tensor, present: tf.Tensor
) -> tf.Tensor:
    """The query of each object in each set, int32 (B, S, N), -1 for none (Carion et al. 2020, arXiv:2005.12872, 3.1).

    Args:
        logits: (B, S, Q, K).
        found: boxes (B, S, Q, 4).
        boxes: of the objects (B, N, 4).
        kinds: one-hot classes of the objects (B, N, K).
        present: bool (B, N).
    """
    logits, found = tf.stop_gradient(logits), tf.stop_gradient(found)
    scores = tf.sigmoid(logits)
    right = _COST_ALPHA * (1 - scores) ** 2 * -tf.math.log(scores + 1e-8)
    wrong = (1 - _COST_ALPHA) * scores**2 * -tf.math.log(1 - scores + 1e-8)
    class_cost = tf.einsum("bsqk,bnk->bsnq", right - wrong, kinds)
    distance = tf.reduce_sum(tf.abs(boxes[:, None, :, None] - found[:, :, None]), axis=-1)
    truth = tf.broadcast_to(boxes[:, None], tf.concat([tf.shape(found)[:2], tf.shape(boxes)[1:]], axis=0))
    first, second = as_edges(truth)[:, :, :, None], as_edges(found)[:, :, None]
    costs = _CLASS_COST * class_cost + _DISTANCE_COST * distance + _OVERLAP_COST * giou_loss(first, second)
    # Where the network has diverged, costs are NaN, over which no assignment would end. The loss stays NaN and tells.
    costs = tf.where(costs < _HIGHEST_COST, costs, _HIGHEST_COST)
    shape = tf.shape(costs)
    everyone = tf.repeat(present, shape[1], axis=0)  # the sets of an image lie side by side
    queries = cheapest_assignment(tf.reshape(costs, (-1, shape[2], shape[3])), everyone)
    return tf.reshape(queries, shape[:3])


def as_edges(boxes: tf.Tensor) -> tf.Tensor:
    """Boxes (..., 4) by centre and size -> by edges, xyxy."""
    half = boxes[..., 2:] / 2
    return tf.concat([boxes[..., :2] - half, boxes[..., :2] + half], axis=-1)


def as_centres(boxes: tf.Tensor) -> tf.Tensor:
    """Boxes (..., 4) by edges, xyxy -> by centre and size."""
    return tf.concat([(boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]], axis=-1)


def aligned_iou(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """Overlap (...) of each of `first` (..., 4) with its partner in `second` (..., 4), edges."""
    return pairwise_iou(first[..., None, :], second[..., None, :])[..., 0, 0]


def bin_values(count: int, reach: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """The distances (count + 1,) that the bins stand for: fine around 0, coarse far from it (D-FINE, section 4.1).

    Args:
        count: W - 1, an even number.
        reach: scalar; the last but one bins are at `reach` * `scale`, the last at twice that.
        scale: scalar.
    """
    bound = tf.abs(reach) * tf.abs(scale)
    step = (bound + 1) ** (2 / (count - 2))
    right = step ** tf.range(1, count // 2, dtype=tf.float32) - 1
    return tf.concat([[-2 * bound], -right[::-1], [0.0], right, [2 * bound]], axis=0)


def _counted(found: tf.Tensor, boxes: tf.Tensor, doubtful: tf.Tensor, is_matched: tf.Tensor) -> tf.Tensor:
    """1 (B, S, Q) for queries whose scores count: those that are matched, and those that do not lie in a crowd."""
    queries, crowds = as_edges(tf.stop_gradient(found))[..., None, :], as_edges(boxes)[:, None, None]
    sides = tf.minimum(queries[..., 2:], crowds[..., 2:]) - tf.maximum(queries[..., :2], crowds[..., :2])
    shared = tf.reduce_prod(tf.maximum(sides, 0.0), axis=-1)  # (B, S, Q, N)
    areas = tf.maximum(tf.reduce_prod(tf.stop_gradient(found)[..., 2:], axis=-1), 1e-9)
    inside = tf.logical_and(shared > _IN_CROWD * areas[..., None], doubtful[:, None, None])
    free = 1 - tf.cast(tf.reduce_any(inside, axis=-1), tf.float32)
    return tf.maximum(free, tf.reduce_sum(is_matched, axis=2))


def _varifocal(
    logits: tf.Tensor, is_matched: tf.Tensor, overlaps: tf.Tensor, kinds: tf.Tensor, counted: tf.Tensor
) -> tf.Tensor:
    """Cross-entropy with the overlap of a matched query as its target; easy queries without an object weigh little."""
    positive = tf.einsum("bsnq,bnk->bsqk", is_matched, kinds)
    targets = tf.einsum("bsnq,bsn,bnk->bsqk", is_matched, overlaps, kinds)
    scores = tf.sigmoid(tf.stop_gradient(logits))
    weights = _ALPHA * scores**_GAMMA * (1 - positive) + targets
    losses = tf.nn.sigmoid_cross_entropy_with_logits(targets, logits)
    return tf.reduce_sum(losses * weights * counted[..., None])


def _bin_loss(answers: SetAnswers, places: tf.Tensor, truth: tf.Tensor, overlaps: tf.Tensor) -> tf.Tensor:
    """Fine-grained localisation (D-FINE, section 4.1): cross-entropy with the two bins beside each true edge."""
    corners = tf.gather(answers.corners, places, batch_dims=2)  # (B, L, N, 4, W)
    reference = tf.gather(
        tf.broadcast_to(answers.reference[:, None], tf.shape(answers.boxes[:, 2:])), places, batch_dims=2
    )
    distances = edge_distances(tf.stop_gradient(reference), as_edges(truth), answers.scale)
    count = tf.shape(answers.bins)[0]
    left = tf.reduce_sum(tf.cast(answers.bins <= distances[..., None], tf.int32), axis=-1) - 1
    left = tf.clip_by_value(left, 0, count - 2)
    low, high = tf.gather(answers.bins, left), tf.gather(answers.bins, left + 1)
    share = tf.clip_by_value((distances - low) / (high - low), 0.0, 1.0)
    targets = tf.one_hot(left, count) * (1 - share)[..., None] + tf.one_hot(left + 1, count) * share[..., None]
    losses = tf.nn.softmax_cross_entropy_with_logits(tf.stop_gradient(targets), corners)
    return tf.reduce_sum(losses * overlaps[..., None])


def edge_distances(reference: tf.Tensor, edges: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """How far left, top, right and bottom of `edges` (..., 4) lie outside of `reference` boxes (..., 4).

    In units of the reference's side over `scale` (D-FINE, section 4.1).
    """
    centre, unit = reference[..., :2], tf.maximum(reference[..., 2:], 1e-6) / scale
    before, after = (centre - edges[..., :2]) / unit, (edges[..., 2:] - centre) / unit
    return tf.concat([before, after], axis=-1) - 0.5 * scale


def _distillation(answers: SetAnswers, is_matched: tf.Tensor, overlaps: tf.Tensor) -> tf.Tensor:
    """What the layers before the last differ from it in their distributions over bins (D-FINE, section 4.2).

    Matched queries weigh by their overlap, others by the last layer's score; either group counts by the root of its
    size.
    """
    teacher = tf.stop_gradient(answers.corners[:, -1:]) / _TEMPERATURE
    students = answers.corners[:, :-1] / _TEMPERATURE
    log_teacher = tf.nn.log_softmax(teacher)
    divergence = tf.reduce_sum(tf.exp(log_teacher) * (log_teacher - tf.nn.log_softmax(students)), axis=-1)
    is_matched, overlaps = is_matched[:, :-1], overlaps[:, :-1]
    taken = tf.reduce_sum(is_matched, axis=2)  # (B, L - 1, Q)
    confidence = tf.reduce_max(tf.sigmoid(tf.stop_gradient(answers.logits[:, -1:])), axis=-1)
    weights = tf.where(taken > 0, tf.einsum("blnq,bln->blq", is_matched, overlaps), confidence)
    losses = weights * _TEMPERATURE**2 * tf.reduce_mean(divergence, axis=-1)
    sizes, means = [], []
    for group in (taken, 1 - taken):
        size = tf.reduce_sum(group, axis=(0, 2))  # (L - 1,)
        sizes.append(tf.sqrt(size))
        means.append(tf.reduce_sum(losses * group, axis=(0, 2)) / tf.maximum(size, 1.0))
    return tf.reduce_sum((means[0] * sizes[0] + means[1] * sizes[1]) / tf.maximum(sizes[0] + sizes[1], 1e-9))
