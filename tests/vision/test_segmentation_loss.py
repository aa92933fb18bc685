from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from vision.annotations import IGNORED
from vision.models.segmentation_loss import dice_loss, lovasz_loss, segmentation_loss


def _data(seed: int = 0) -> tuple[tf.Tensor, tf.Tensor]:
    rng = np.random.default_rng(seed)
    logits = tf.constant(rng.normal(size=(2, 4, 5, 3)), tf.float32)
    return logits, tf.constant(rng.integers(0, 3, (2, 4, 5)), tf.int32)


def test_cross_entropy_is_the_mean_over_pixels():
    logits, masks = _data()
    expected = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(masks, logits))
    assert float(segmentation_loss(logits, masks, region="none", region_weight=0.0)) == pytest.approx(float(expected))


@pytest.mark.parametrize("region", ["none", "dice", "lovasz"])
def test_ignored_pixels_have_no_part(region):
    logits, masks = _data()
    holes = tf.where(tf.range(5)[None, None] < 2, IGNORED, masks)
    other = tf.where((tf.range(5) < 2)[None, None, :, None], 100.0 * logits, logits)
    losses = [float(segmentation_loss(x, holes, region=region, region_weight=1.0)) for x in (logits, other)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = segmentation_loss(logits, holes, region=region, region_weight=1.0)
    assert not tape.gradient(loss, logits).numpy()[:, :, :2].any()


@pytest.mark.parametrize("region", ["none", "dice", "lovasz"])
def test_all_ignored_is_finite(region):
    logits, masks = _data()
    assert float(segmentation_loss(logits, tf.fill(masks.shape, IGNORED), region=region, region_weight=1.0)) == 0.0


@pytest.mark.parametrize("region", ["none", "dice"])
def test_sums_in_closed_form_are_those_of_single_operations(region):
    logits, masks = _data()
    holes = tf.where(tf.range(5)[None, None] < 2, IGNORED, masks)
    weights = np.array([0.5, 2.0, 3.0], np.float32)

    def by_single_operations(x: tf.Tensor) -> tf.Tensor:
        counted = tf.not_equal(holes, IGNORED)
        kept, answers = tf.boolean_mask(holes, counted), tf.boolean_mask(x, counted)
        each = tf.gather(weights, kept)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(kept, answers) * each
        loss = tf.reduce_sum(losses) / tf.reduce_sum(each)
        if region == "none":
            return loss
        inside = tf.cast(counted, tf.float32)[..., None]
        return loss + 0.7 * dice_loss(tf.nn.softmax(x) * inside, tf.one_hot(holes, 3))

    def in_closed_form(x: tf.Tensor) -> tf.Tensor:
        return segmentation_loss(x, holes, region=region, region_weight=0.7, class_weights=weights)

    losses, gradients = [], []
    for function in (by_single_operations, in_closed_form):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            losses.append(function(logits))
        gradients.append(tape.gradient(losses[-1], logits).numpy())
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-6)
    np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-7)


def test_wrong_beyond_float32_is_finite_and_still_pulls():
    logits, masks = tf.constant([[[[0.0, 200.0]]]]), tf.constant([[[0]]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = segmentation_loss(logits, masks, region="dice", region_weight=0.5)
    assert 80 < float(loss) < 90
    np.testing.assert_allclose(tape.gradient(loss, logits), [[[[-1.0, 1.0]]]], atol=1e-6)


def test_class_weights():
    logits, masks = _data()
    alone = tf.where(masks == 1, masks, IGNORED)
    weighted = segmentation_loss(
        logits, masks, region="none", region_weight=0.0, class_weights=np.array([0, 2.0, 0], np.float32)
    )
    expected = segmentation_loss(logits, alone, region="none", region_weight=0.0)
    assert float(weighted) == pytest.approx(float(expected), rel=1e-6)


def test_dice_of_hard_answers():
    truth = tf.one_hot([[[0, 0, 1, 1]]], 3)
    assert float(dice_loss(truth, truth)) == pytest.approx(0, abs=1e-6)
    wrong = tf.one_hot([[[1, 1, 0, 0]]], 3)
    assert float(dice_loss(wrong, truth)) == pytest.approx(1 - 1 / 5)  # smoothed: 1 - (0 + 1) / (4 + 1)


def test_lovasz_of_hard_answers_is_1_minus_iou():
    truth = np.array([0, 0, 1, 1, 1, 2, 2, 0])
    answer = np.array([0, 1, 1, 1, 0, 2, 0, 0])
    ious = [np.sum((truth == k) & (answer == k)) / np.sum((truth == k) | (answer == k)) for k in range(3)]
    loss = lovasz_loss(tf.one_hot(answer, 4), tf.one_hot(truth, 4))  # the fourth class does not occur
    assert float(loss) == pytest.approx(1 - np.mean(ious), rel=1e-6)
