"""Suppression, assignment and losses of the light detector."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from vision.boxes import box_iou, suppressed
from vision.models.detection_loss import _best_cells, detection_loss, giou_loss
from vision.models.light_detector import cells, decoded
from vision.models.pyramid import feature_trunk, new_feature_trunk
from vision.models.suppression import best_detections, pairwise_iou


def _random_boxes(rng: np.random.Generator, *shape: int) -> np.ndarray:
    corner = rng.random((*shape, 2)) * 60
    return np.concatenate([corner, corner + 5 + rng.random((*shape, 2)) * 40], axis=-1).astype(np.float32)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("iou", [0.2, 0.5, 0.8])
def test_suppression_in_the_graph_is_the_greedy_one(seed, iou):
    rng = np.random.default_rng(seed)
    boxes, scores = _random_boxes(rng, 60), rng.random((60, 3)).astype(np.float32)
    rows = best_detections(boxes[None], scores[None], iou=iou, max_detections=200, max_candidates=180).numpy()[0]
    rows = rows[rows[:, 4] > 0]
    flat, classes = scores.reshape(-1), np.tile(np.arange(3), 60)
    kept = suppressed(np.repeat(boxes, 3, axis=0), flat, classes, iou=iou)
    np.testing.assert_array_equal(rows[:, 4], flat[kept])
    np.testing.assert_array_equal(rows[:, 5], classes[kept])
    np.testing.assert_array_equal(rows[:, :4], np.repeat(boxes, 3, axis=0)[kept])


def test_the_best_are_kept_where_room_is_short():
    rng = np.random.default_rng(0)
    boxes, scores = _random_boxes(rng, 2, 30), rng.random((2, 30, 1)).astype(np.float32)
    few = best_detections(boxes, scores, iou=1.0, max_detections=5).numpy()
    assert few.shape == (2, 5, 6)
    np.testing.assert_array_equal(few[..., 4], -np.sort(-scores[..., 0], axis=1)[:, :5])


def test_boxes_that_overlap_vote_by_their_scores():
    boxes = tf.constant([[[0, 0, 10, 10], [2, 0, 12, 10], [0, 0, 10, 10.0], [50, 50, 60, 60], [5, 5, 5, 5]]])
    # The third is sure of another class, the last has no area.
    scores = tf.constant([[[0.6, 0], [0.2, 0], [0, 0.5], [0.3, 0], [0.1, 0]]])
    rows = best_detections(boxes, scores, iou=0.5, max_detections=6, voting=0.6).numpy()[0]
    np.testing.assert_allclose(rows[0], [0.5, 0, 10.5, 10, 0.6, 0], atol=1e-5)
    np.testing.assert_allclose(rows[1], [0, 0, 10, 10, 0.5, 1], atol=1e-5)
    np.testing.assert_allclose(rows[2], [50, 50, 60, 60, 0.3, 0], atol=1e-5)
    np.testing.assert_allclose(rows[3], [5, 5, 5, 5, 0.1, 0], atol=1e-5)
    silent = best_detections(boxes, scores, iou=0.5, max_detections=6, voting=0.9).numpy()
    np.testing.assert_allclose(silent, best_detections(boxes, scores, iou=0.5, max_detections=6), atol=1e-5)


def test_overlaps_are_those_of_numpy():
    rng = np.random.default_rng(0)
    first, second = _random_boxes(rng, 20), _random_boxes(rng, 30)
    np.testing.assert_allclose(pairwise_iou(first, second), box_iou(first, second), atol=1e-6)


def test_cells_are_in_the_order_of_the_levels():
    centres, sizes = cells(16, 24, (4, 8))
    assert centres.shape == (4 * 6 + 2 * 3, 2)
    assert centres[0].numpy().tolist() == [2, 2]
    assert centres[1].numpy().tolist() == [6, 2]  # along a row first
    assert centres[24].numpy().tolist() == [4, 4]
    assert sizes.numpy()[:, 0].tolist() == [4] * 24 + [8] * 6
    boxes, logits = decoded(tf.fill((1, 30, 7), np.log(np.expm1(1.0)).astype(np.float32)), centres, sizes)
    assert boxes[0, 0].numpy().tolist() == pytest.approx([-2, -2, 6, 6])  # one cell to each side
    assert logits.shape == (1, 30, 3)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([0, 0, 2, 2], [0, 0, 2, 2], 0.0),
        ([0, 0, 2, 2], [2, 0, 4, 2], 1.0),  # they touch: IoU 0, nothing but them in the hull
        ([0, 0, 1, 1], [3, 0, 4, 1], 1.5),  # half of the hull is empty
        ([0, 0, 2, 2], [1, 0, 3, 2], 2 / 3),
    ],
)
def test_generalised_iou(first, second, expected):
    assert float(giou_loss(tf.constant([first], tf.float32), tf.constant([second], tf.float32))[0]) == pytest.approx(
        expected
    )


def test_giou_pulls_boxes_together_even_where_they_do_not_overlap():
    box = tf.Variable([[0.0, 0, 1, 1]])
    with tf.GradientTape() as tape:
        loss = giou_loss(box, tf.constant([[3.0, 0, 4, 1]]))
    assert tape.gradient(loss, box).numpy()[0, 2] < 0  # the right edge wants to go right


def _loss(logits, objects, size=32):
    centres, sizes = cells(size, size, (8, 16))
    raw = tf.concat([tf.fill((1, 20, 4), 1.0), logits], axis=-1)
    predicted, class_logits = decoded(raw, centres, sizes)
    return float(detection_loss(predicted, class_logits, centres, sizes, objects))


def _objects(boxes, classes, crowd=None):
    count = len(classes)
    crowd = np.zeros(count, bool) if crowd is None else np.array(crowd)
    return tf.constant([boxes], tf.float32), tf.constant([classes], tf.int32), tf.constant([crowd.tolist()])


def test_padding_costs_nothing():
    logits = tf.constant(np.random.default_rng(0).normal(-3, 1, (1, 20, 2)), tf.float32)
    alone = _loss(logits, _objects([[4, 4, 20, 20]], [1]))
    padded = _loss(logits, _objects([[4, 4, 20, 20], [0, 0, 0, 0], [0, 0, 0, 0]], [1, -1, -1]))
    assert padded == pytest.approx(alone, rel=1e-6)


def test_without_objects_scores_are_pressed_down():
    none = _objects([[0, 0, 0, 0]], [-1])
    assert _loss(tf.fill((1, 20, 2), -5.0), none) < _loss(tf.fill((1, 20, 2), 0.0), none)
    assert np.isfinite(_loss(tf.fill((1, 20, 2), -5.0), none))


def test_what_lies_in_a_crowd_is_not_pressed_down():
    high = tf.fill((1, 20, 2), 2.0)
    crowd = _objects([[0, 0, 32, 32]], [0], crowd=[True])
    assert _loss(high, crowd) == 0.0
    assert _loss(high, _objects([[0, 0, 0, 0]], [-1])) > 1.0


def test_an_object_smaller_than_a_cell_finds_one():
    # Between the centres of all cells: no centre lies in it.
    small = _objects([[7, 7, 9, 9]], [0])
    logits = tf.Variable(tf.fill((1, 20, 2), -6.0))
    centres, sizes = cells(32, 32, (8, 16))
    with tf.GradientTape() as tape:
        predicted, classes = decoded(tf.concat([tf.fill((1, 20, 4), 0.5), logits], -1), centres, sizes)
        loss = detection_loss(predicted, classes, centres, sizes, small)
    gradient = tape.gradient(loss, logits).numpy()
    assert (gradient[..., 0] < 0).any()  # some cell shall say more of class 0


def test_the_best_cells_of_an_object_are_those_of_highest_alignment():
    alignment = tf.constant(np.random.default_rng(0).random((1, 2, 40)), tf.float32)
    chosen = _best_cells(alignment).numpy()
    assert chosen.sum(axis=-1).tolist() == [[13, 13]]
    assert alignment.numpy()[chosen].min() > np.sort(alignment.numpy(), axis=-1)[..., -14].min()
    assert not _best_cells(tf.zeros((1, 1, 40))).numpy().any()


def test_gradient_descent_on_one_image_finds_the_objects():
    centres, sizes = cells(64, 64, (8, 16))
    raw = tf.Variable(tf.concat([tf.fill((1, 80, 4), 1.0), tf.fill((1, 80, 2), -4.0)], -1))
    objects = _objects([[5, 6, 30, 40], [33, 20, 60, 61]], [0, 1])
    optimizer = keras.optimizers.Adam(0.1)
    step = tf.function(lambda: _descend(raw, optimizer, centres, sizes, objects), autograph=False)
    for _ in range(150):
        step()
    boxes, logits = decoded(raw, centres, sizes)
    best = best_detections(boxes, tf.sigmoid(logits), iou=0.5, max_detections=5).numpy()[0]
    found = best[best[:, 4] > 0.5]
    assert sorted(found[:, 5].tolist()) == [0, 1]
    for row in found:
        assert box_iou(row[None, :4], objects[0].numpy()[0, int(row[5])][None])[0, 0] > 0.9


def _descend(raw, optimizer, centres, sizes, objects):
    with tf.GradientTape() as tape:
        predicted, logits = decoded(raw, centres, sizes)
        loss = detection_loss(predicted, logits, centres, sizes, objects)
    optimizer.apply([tape.gradient(loss, raw)], [raw])
    return loss


# Trunks.


def test_a_residual_trunk_gives_its_resolutions_at_any_size():
    trunk, strides = new_feature_trunk({"family": "residual", "width": 4, "depth": 1})
    assert strides == (2, 4, 8, 16)
    maps = trunk(np.zeros((1, 48, 80, 3), np.float32))
    assert [tuple(x.shape[1:3]) for x in maps] == [(24, 40), (12, 20), (6, 10), (3, 5)]


def test_efficientnet_lite_gives_the_maps_made_for_it():
    trunk, strides = new_feature_trunk({"family": "efficientnet_lite", "variant": "lite0"})
    assert strides == (2, 4, 8, 16, 32)
    assert [x.shape[-1] for x in trunk.outputs] == [16, 24, 40, 112, 320]


def test_the_feature_trunk_has_the_weights_of_the_trunk():
    from vision.models.residual import residual_network

    whole = residual_network(64, 3, width=4)
    features, _ = feature_trunk(whole, "residual")
    image = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    np.testing.assert_allclose(features(image)[-1], whole(image), atol=1e-6)


def test_a_trunk_of_tokens_is_refused():
    tokens = keras.Sequential([keras.Input((64, 64, 3)), keras.layers.Reshape((64, 192))])
    with pytest.raises(ValueError, match="feature maps at 0 resolutions"):
        feature_trunk(tokens, "keras_hub")
