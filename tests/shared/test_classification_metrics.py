from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from shared.classification_metrics import (
    accuracy,
    confusion_matrix,
    draw_confusion_matrix,
    macro_f1,
    multi_label_table,
    per_class_table,
    top_k_accuracy,
)

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("num_examples", "num_classes"), [(1, 2), (50, 2), (200, 7), (30, 20)])
def test_single_label_metrics_equal_scikit_learn(num_examples, num_classes):
    probabilities = RNG.dirichlet(np.ones(num_classes), size=num_examples)
    targets = RNG.integers(0, num_classes, num_examples)
    predicted = probabilities.argmax(axis=1)
    everything = list(range(num_classes))
    assert accuracy(probabilities, targets) == pytest.approx(reference.accuracy_score(targets, predicted))
    matrix = confusion_matrix(targets, predicted, num_classes)
    np.testing.assert_array_equal(matrix, reference.confusion_matrix(targets, predicted, labels=everything))
    table = per_class_table(matrix, [str(n) for n in everything])
    columns = reference.precision_recall_fscore_support(targets, predicted, labels=everything, zero_division=0)
    for name, column in zip(("precision", "recall", "f1", "support"), columns, strict=True):
        assert [row[name] for row in table] == pytest.approx(column.tolist())
    # Over the classes that occur, as scikit-learn takes them where it is not told otherwise.
    assert macro_f1(table) == pytest.approx(reference.f1_score(targets, predicted, average="macro", zero_division=0))


def test_multi_label_table_equals_scikit_learn():
    chosen, targets = RNG.integers(0, 2, (40, 5)), RNG.integers(0, 2, (40, 5))
    table = multi_label_table(chosen, targets, list("abcde"))
    columns = reference.precision_recall_fscore_support(targets, chosen, zero_division=0)
    for name, column in zip(("precision", "recall", "f1", "support"), columns, strict=True):
        assert [row[name] for row in table] == pytest.approx(column.tolist())


@pytest.mark.parametrize("k", [1, 2, 5, 6])
def test_top_k_equals_scikit_learn(k):
    probabilities = RNG.dirichlet(np.ones(6), size=100)
    targets = RNG.integers(0, 6, 100)
    expected = 1.0 if k == 6 else reference.top_k_accuracy_score(targets, probabilities, k=k, labels=range(6))
    assert top_k_accuracy(probabilities, targets, k) == pytest.approx(expected)


def test_ties_count_against_top_k():
    even = np.full((3, 4), 0.25)
    assert top_k_accuracy(even, np.array([0, 1, 3]), 3) == 0.0


def test_a_model_that_answers_nan_is_not_perfect():
    assert top_k_accuracy(np.full((3, 9), np.nan), np.array([0, 1, 3]), 5) == 0.0


@pytest.mark.parametrize("metric", [accuracy, lambda p, t: top_k_accuracy(p, t, 5)])
def test_no_examples_have_no_score(metric):
    with pytest.raises(ValueError, match="no examples to score"):
        metric(np.zeros((0, 3)), np.zeros(0, int))


def test_a_class_that_is_only_predicted_counts():
    matrix = np.array([[1, 1, 0], [0, 0, 0], [0, 0, 0]])
    table = per_class_table(matrix, ["cat", "dog", "cow"])
    assert macro_f1(table) == pytest.approx((2 / 3 + 0) / 2)


def ink(picture):
    return (picture < 128).any(axis=-1)


@pytest.mark.parametrize("count", [1, 2, 10, 60])
def test_the_picture_names_every_class_and_cuts_nothing_off(count):
    matrix = RNG.integers(0, 5, (count, count)) + 90 * np.eye(count, dtype=int)
    picture = draw_confusion_matrix(matrix, [f"class number {n}" for n in range(count)])
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    border = np.concatenate([ink(picture)[[0, -1]].ravel(), ink(picture)[:, [0, -1]].ravel()])
    assert not border.any()
    names = ink(picture)[60:, :100].any(axis=1)
    lines = np.count_nonzero(np.diff(names.astype(int)) == 1) + int(names[0])
    assert lines >= count


def test_a_thousand_classes_make_no_giant():
    picture = draw_confusion_matrix(np.eye(1000, dtype=int), [str(n) for n in range(1000)])
    assert max(picture.shape) < 2000
    # The diagonal is there.
    assert (picture == (8, 48, 107)).all(axis=-1).sum() == 1000


def test_names_beyond_ascii_are_drawn_as_well_as_can_be():
    matrix = np.array([[3, 1, 0], [0, 4, 0], [0, 0, 5]])
    np.testing.assert_array_equal(
        draw_confusion_matrix(matrix, ["Käse", "猫", ""]), draw_confusion_matrix(matrix, ["Kase", "class 1", "class 2"])
    )


def test_a_class_that_never_occurs_divides_nothing_by_zero():
    assert draw_confusion_matrix(np.zeros((2, 2), int), ["a", "b"]).dtype == np.uint8


@pytest.mark.parametrize(("matrix", "labels"), [(np.zeros((0, 0), int), []), (np.eye(2, dtype=int), ["one"])])
def test_a_picture_needs_a_label_for_each_row(matrix, labels):
    with pytest.raises(ValueError, match="one label for each row"):
        draw_confusion_matrix(matrix, labels)


def test_darker_is_a_larger_share_of_its_row():
    picture = draw_confusion_matrix(np.array([[50, 50], [0, 9]]), ["a", "b"])
    blues = {tuple(colour) for colour in picture.reshape(-1, 3).tolist() if colour[2] > colour[0] + 60}
    assert (8, 48, 107) in blues
