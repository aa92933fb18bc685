"""From boxes and scores of many cells to a few answers, inside the graph.

Shapes: B images, A cells, K classes, T candidates, M answers.
"""

from __future__ import annotations

import tensorflow as tf

# Pairs of cell and class that go into non-maximum suppression, per image.
MAX_CANDIDATES = 512


def pairwise_iou(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """Intersection over union (..., N, M) of boxes (..., N, 4) with boxes (..., M, 4), xyxy."""
    # Edge by edge: an axis of two at the end would cost several times as much.
    left, top, right, bottom = (edge[..., :, None] for edge in tf.unstack(first, axis=-1))
    to_left, to_top, to_right, to_bottom = (edge[..., None, :] for edge in tf.unstack(second, axis=-1))
    width = tf.maximum(tf.minimum(right, to_right) - tf.maximum(left, to_left), 0.0)
    height = tf.maximum(tf.minimum(bottom, to_bottom) - tf.maximum(top, to_top), 0.0)
    area = tf.maximum(right - left, 0.0) * tf.maximum(bottom - top, 0.0)
    to_area = tf.maximum(to_right - to_left, 0.0) * tf.maximum(to_bottom - to_top, 0.0)
    shared = width * height
    return shared / tf.maximum(area + to_area - shared, 1e-9)


def best_detections(
    boxes: tf.Tensor,
    scores: tf.Tensor,
    *,
    iou: float,
    max_detections: int,
    max_candidates: int = MAX_CANDIDATES,
    voting: float = 0.0,
) -> tf.Tensor:
    """The answers of a batch (B, M, 6): xyxy, score, class number, by falling score.

    Candidates are the T best pairs of cell and class. Of those of one class that overlap by more than `iou` the best
    stays (greedy non-maximum suppression, exactly). Rows that are left over have score 0. With `voting`, what stays is
    moved to the mean of the candidates of its class that overlap it by that much or more, weighted by their scores
    (Gidaris and Komodakis 2015, arXiv:1505.01749, "bounding box voting").

    Args:
        boxes: (B, A, 4) xyxy.
        scores: (B, A, K), 0 to 1.
        iou: overlap from which on two boxes are taken for one object.
        max_detections: M.
        max_candidates: T, or all pairs where they are fewer.
        voting: overlap from which on candidates have a say in where a box is; 0 is off.
    """
    num_classes = scores.shape[-1]
    flat = tf.reshape(scores, (-1, tf.shape(scores)[1] * num_classes))
    candidates = tf.minimum(max_candidates, tf.shape(flat)[1])
    best, places = tf.math.top_k(flat, candidates)
    classes = places % num_classes
    chosen = tf.gather(boxes, places // num_classes, batch_dims=1)
    overlaps = pairwise_iou(chosen, chosen)
    same = classes[:, :, None] == classes[:, None, :]
    kept = _kept(tf.logical_and(overlaps > iou, same))
    if voting:
        votes = tf.where(tf.logical_and(overlaps >= voting, same), best[:, None, :], 0.0)
        total = tf.reduce_sum(votes, axis=-1, keepdims=True)
        # Boxes without area overlap nothing, not even themselves.
        chosen = tf.where(total > 0, tf.math.divide_no_nan(tf.matmul(votes, chosen), total), chosen)
    best = tf.where(kept, best, 0.0)
    rows = tf.minimum(max_detections, candidates)
    scores, order = tf.math.top_k(best, rows)
    answers = [tf.gather(chosen, order, batch_dims=1), scores[..., None]]
    answers.append(tf.cast(tf.gather(classes, order, batch_dims=1), tf.float32)[..., None])
    return tf.concat(answers, axis=-1)


def _kept(overlapping: tf.Tensor) -> tf.Tensor:
    """Which candidates (B, T), by falling score, greedy suppression keeps; `overlapping` is bool (B, T, T).

    Greedy suppression keeps a candidate when no kept one before it overlaps. Applied to all candidates at once, again
    and again, this rule settles: after n rounds it is right for every candidate whose answer hangs on a chain of less
    than n others, and chains are short. What has settled is the greedy answer itself.
    """
    size = tf.shape(overlapping)[1]
    before = tf.range(size)[None, :] < tf.range(size)[:, None]
    hides = tf.cast(tf.logical_and(overlapping, before), tf.float32)  # (B, T, T): [i, j] = j hides i

    def goes_on(kept: tf.Tensor, previous: tf.Tensor) -> tf.Tensor:
        return tf.reduce_any(tf.not_equal(kept, previous))

    def settle(kept: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        hidden = tf.linalg.matvec(hides, kept)
        return tf.cast(hidden < 0.5, tf.float32), kept

    everything = tf.ones_like(hides[:, :, 0])
    kept, _ = tf.while_loop(goes_on, settle, (everything, tf.zeros_like(everything)))
    return kept > 0.5
