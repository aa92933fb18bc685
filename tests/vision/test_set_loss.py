"""Matching and losses of detectors of sets; the references are SciPy and keras-hub."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from scipy.optimize import linear_sum_assignment

from vision.models.assignment import cheapest_assignment
from vision.models.set_loss import (
    SetAnswers,
    aligned_iou,
    as_centres,
    as_edges,
    bin_values,
    edge_distances,
    matched_queries,
    set_loss,
)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("shape", [(6, 5, 9), (3, 7, 7), (4, 1, 30), (2, 12, 40)])
def test_the_assignment_is_the_cheapest(shape, jit):
    rng = np.random.default_rng(shape[1])
    costs = rng.normal(size=shape).astype(np.float32)
    costs[0] = np.round(costs[0])  # with ties
    present = rng.random(shape[:2]) < 0.8
    solve = tf.function(cheapest_assignment, jit_compile=jit, autograph=False)
    columns = solve(tf.constant(costs), tf.constant(present)).numpy()
    assert ((columns >= 0) == present).all()
    for cost, there, got in zip(costs, present, columns, strict=True):
        rows, best = linear_sum_assignment(cost[there])
        assert len(set(got[there].tolist())) == there.sum()
        assert cost[there, got[there]].sum() == pytest.approx(cost[there][rows, best].sum(), abs=1e-4)


def test_rows_without_room_are_not_placed():
    columns = cheapest_assignment(tf.zeros((1, 4, 2)), tf.constant([[True, False, True, True]])).numpy()[0]
    assert sorted(columns[[0, 2]].tolist()) == [0, 1]
    assert columns[[1, 3]].tolist() == [-1, -1]
    assert cheapest_assignment(tf.zeros((2, 0, 3)), tf.zeros((2, 0), bool)).shape == (2, 0)


def test_bins_are_those_of_keras_hub():
    from keras_hub.src.models.d_fine.d_fine_utils import distance2bbox, weighting_function

    theirs = weighting_function(32, tf.constant([0.5]), tf.constant([4.0])).numpy()
    ours = bin_values(32, tf.constant(0.5), tf.constant(4.0)).numpy()
    np.testing.assert_allclose(ours, np.ravel(theirs), atol=1e-5)
    # Distances are the way back from what its decoder makes of them.
    reference = tf.constant([[0.5, 0.4, 0.3, 0.2], [0.2, 0.6, 0.1, 0.4]])
    distances = tf.constant([[0.3, -0.2, 1.0, 0.0], [-1.0, 0.5, 0.2, 0.1]])
    boxes = distance2bbox(reference, distances, 4.0)
    got = edge_distances(reference, as_edges(tf.convert_to_tensor(boxes)), tf.constant(4.0))
    np.testing.assert_allclose(got, distances, atol=1e-4)


def test_boxes_there_and_back():
    boxes = tf.constant([[0.2, 0.3, 0.6, 0.9], [0.0, 0.0, 1.0, 0.5]])
    np.testing.assert_allclose(as_edges(as_centres(boxes)), boxes, atol=1e-6)
    assert aligned_iou(boxes, boxes).numpy().tolist() == pytest.approx([1, 1])


_REACH, _SCALE, _COUNT = tf.constant(0.5), tf.constant(4.0), 32


def _answers(boxes, logits, corners=None) -> SetAnswers:
    """Answers of the encoder, a first guess and two layers, all with the same `boxes` (B, Q, 4)."""
    batch, queries = boxes.shape[:2]
    sets = np.repeat(boxes[:, None], 4, axis=1).astype(np.float32)
    if corners is None:
        corners = np.zeros((batch, 2, queries, 4, _COUNT + 1), np.float32)
    return SetAnswers(
        logits=tf.constant(np.repeat(logits[:, None], 4, axis=1).astype(np.float32)),
        boxes=tf.constant(sets),
        corners=tf.constant(corners),
        reference=tf.constant(boxes.astype(np.float32)),
        bins=bin_values(_COUNT, _REACH, _SCALE),
        scale=_SCALE,
    )


_TRUTH = np.array([[[0.3, 0.3, 0.2, 0.2], [0.7, 0.6, 0.3, 0.4]], [[0.5, 0.5, 0.4, 0.4], [0, 0, 0, 0]]], np.float32)
_KINDS = np.array([[0, 1], [1, -1]], np.int32)
_QUERIES = np.array(
    [
        [[0.7, 0.6, 0.3, 0.4], [0.1, 0.9, 0.1, 0.1], [0.3, 0.3, 0.2, 0.2]],
        [[0.5, 0.5, 0.4, 0.4], [0.2, 0.2, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1]],
    ]
)


def test_objects_are_matched_within_their_own_image():
    answers = _answers(_QUERIES, np.zeros((2, 3, 2)))
    kinds = tf.one_hot(_KINDS, 2)
    queries = matched_queries(answers.logits, answers.boxes, tf.constant(_TRUTH), kinds, tf.constant(_KINDS >= 0))
    assert queries.numpy()[:, 0].tolist() == [[2, 0], [0, -1]]
    assert (queries.numpy() == queries.numpy()[:, :1]).all()


@pytest.mark.parametrize("part", ["logits", "boxes"])
def test_the_loss_of_a_network_that_has_diverged_is_nan(part):
    boxes, logits = _QUERIES.copy(), np.zeros((2, 3, 2))
    {"logits": logits, "boxes": boxes}[part][:] = np.nan
    assert np.isnan(_loss(boxes, logits))
    # One broken query leaves the others to the objects.
    boxes[:, 1:], logits[:, 1:] = _QUERIES[:, 1:], 0
    answers = _answers(boxes, logits)
    kinds = tf.one_hot(_KINDS, 2)
    queries = matched_queries(answers.logits, answers.boxes, tf.constant(_TRUTH), kinds, tf.constant(_KINDS >= 0))
    assert sorted(queries.numpy()[0, 0].tolist()) == [1, 2]


def _loss(queries, logits, corners=None, crowd=None) -> float:
    crowd = np.zeros_like(_KINDS, bool) if crowd is None else crowd
    value = set_loss(_answers(queries, logits, corners), tf.constant(_TRUTH), tf.constant(_KINDS), tf.constant(crowd))
    return float(value)


def _sure(found) -> np.ndarray:
    """Logits (B, Q, K) that are sure of class `found` (B, Q), or of none (-1)."""
    return np.where(np.arange(2) == np.array(found)[..., None], 12.0, -12.0)


_RIGHT = [[1, -1, 0], [1, -1, -1]]


def test_the_loss_falls_with_each_part():
    on_edges = np.zeros((2, 2, 3, 4, _COUNT + 1), np.float32)
    # The references are the objects themselves: each edge is where distance 0 is, in the middle bin.
    on_edges[..., _COUNT // 2] = 30.0
    best = _loss(_QUERIES, _sure(_RIGHT), on_edges)
    assert best < 1e-3
    assert _loss(_QUERIES, _sure(_RIGHT)) > best + 0.1  # edges anywhere
    assert _loss(_QUERIES + np.array([0.05, 0, 0, 0]), _sure(_RIGHT), on_edges) > best + 0.1
    assert _loss(_QUERIES, _sure([[0, -1, 1], [1, -1, -1]]), on_edges) > best + 1
    assert _loss(_QUERIES, _sure([[1, 1, 0], [1, -1, -1]]), on_edges) > best + 1  # a query too many


def test_a_query_in_a_crowd_is_not_wrong():
    crowd = np.array([[False, True], [False, False]])
    there = _sure([[1, -1, 0], [1, -1, -1]])
    silent = _sure([[-1, -1, 0], [1, -1, -1]])
    assert _loss(_QUERIES, there, crowd=crowd) == pytest.approx(_loss(_QUERIES, silent, crowd=crowd), rel=1e-3)
    elsewhere = _sure([[-1, 1, 0], [1, -1, -1]])
    assert _loss(_QUERIES, elsewhere, crowd=crowd) > _loss(_QUERIES, silent, crowd=crowd) + 1


def test_without_objects_there_is_a_finite_loss_with_gradients():
    logits = tf.Variable(tf.zeros((1, 4, 3, 2)))
    answers = _answers(_QUERIES[:1], np.zeros((1, 3, 2)))
    with tf.GradientTape() as tape:
        loss = set_loss(
            SetAnswers(logits, answers.boxes, answers.corners, answers.reference, answers.bins, answers.scale),
            tf.zeros((1, 8, 4)),
            tf.fill((1, 8), -1),
            tf.zeros((1, 8), bool),
        )
    assert np.isfinite(float(loss))
    assert (tape.gradient(loss, logits).numpy() > 0).all()


def test_box_losses_are_those_of_keras_hub_for_one_image():
    """For a single image keras-hub's numbers within it are right, so that its losses can be compared."""
    from keras_hub.src.models.d_fine.d_fine_loss import compute_local_losses

    rng = np.random.default_rng(0)
    moved = np.clip(_QUERIES[:1] + rng.normal(0, 0.01, (1, 3, 4)), 0.02, 0.98)
    corners = rng.normal(0, 2, (1, 2, 3, 4, _COUNT + 1)).astype(np.float32)
    answers = _answers(moved, np.zeros((1, 3, 2)), corners)

    class Decoder:
        max_num_bins, reg_scale, upsampling_factor = _COUNT, tf.constant([4.0]), tf.constant([0.5])

    class Backbone:
        decoder = Decoder

    theirs = 0.0
    for layer in range(2):
        outputs = {
            "pred_boxes": answers.boxes[:, 2 + layer],
            "ref_points": answers.reference,
            "pred_corners": tf.reshape(answers.corners[:, layer], (1, 3, -1)),
        }
        indices = (tf.constant([[2, 0, 1]]), tf.constant([[0, 1, 0]]), tf.constant([[True, True, False]]))
        targets = [{"boxes": tf.constant(_TRUTH[0]), "labels": tf.constant([0, 1])}]
        losses = compute_local_losses(outputs, targets, indices, 2.0, Backbone, 5.0, compute_ddf=False)
        theirs += float(losses["loss_fgl"])
    from vision.models.set_loss import _bin_loss

    places = tf.constant([[[2, 0], [2, 0]]])
    truth = tf.broadcast_to(tf.constant(_TRUTH[:1])[:, None], (1, 2, 2, 4))
    found = tf.gather(answers.boxes[:, 2:], places, batch_dims=2)
    overlaps = aligned_iou(as_edges(found), as_edges(truth))
    assert float(_bin_loss(answers, places, truth, overlaps)) / 2 == pytest.approx(theirs, rel=1e-4)
