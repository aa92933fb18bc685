from __future__ import annotations

import numpy as np
import pytest

from shared.classification import Classification, ClassLabels, class_names
from shared.examples import Examples
from shared.vocabulary import Vocabulary

CLASSES = ClassLabels(Vocabulary(("ash", "elm", "oak")))
TAGS = ClassLabels(CLASSES.names, multi_label=True, threshold=0.4)


@pytest.mark.parametrize(
    ("targets", "multi_label", "expected"),
    [
        (["oak", "ash", "oak"], False, ["ash", "oak"]),
        ([b"oak", b"ash"], False, ["ash", "oak"]),
        ([2, 0], False, ["0", "1", "2"]),
        ([("oak",), (), ("elm", "oak")], True, ["elm", "oak"]),
    ],
)
def test_classes_are_those_that_occur(targets, multi_label, expected):
    assert list(class_names(Examples(targets, targets), multi_label=multi_label)) == expected


@pytest.mark.parametrize(("target", "number"), [("elm", 1), (b"oak", 2), (0, 0), (np.int64(2), 2)])
def test_a_target_becomes_its_class_number(target, number):
    encoded = CLASSES.encode(target)
    assert (encoded.dtype, encoded.shape, encoded.item()) == (np.int32, (), number)


@pytest.mark.parametrize("target", ["fir", 3, -1, b"fir"])
def test_an_unknown_label_is_refused_by_name(target):
    with pytest.raises(ValueError, match=r"none of the 3 classes .*ash, elm, oak"):
        CLASSES.encode(target)


def test_multi_label_targets():
    assert TAGS.encode(("oak", "ash")).tolist() == [1, 0, 1]
    assert TAGS.encode(()).tolist() == [0, 0, 0]
    assert TAGS.encode(np.array([0, 1, 1])).tolist() == [0, 1, 1]
    with pytest.raises(TypeError, match="tuple of labels"):
        TAGS.encode("oak")


def test_single_label_scores():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.5, 0.3, 0.2], [0.1, 0.8, 0.1]])
    metrics = CLASSES.score(probabilities, np.array([0, 2, 1, 1]))
    assert list(metrics) == ["accuracy", "top_5_accuracy", "macro_f1"]
    assert metrics.first == 0.75
    assert metrics.details["confusion_matrix"].tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]


def test_multi_label_scores_use_the_threshold():
    probabilities = np.array([[0.45, 0.1, 0.9], [0.3, 0.5, 0.1]])
    metrics = TAGS.score(probabilities, np.array([[1, 0, 1], [1, 1, 0]]))
    assert list(metrics) == ["macro_f1", "accuracy"]
    assert metrics["accuracy"] == 0.5
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 1 + 1) / 3)


def test_answers_are_ranked():
    row = np.array([0.2, 0.5, 0.3], np.float32)
    assert CLASSES.ranked(row, 2) == (("elm", "oak"), (pytest.approx(0.5), pytest.approx(0.3)))
    assert TAGS.ranked(row, 3)[0] == ("elm",)
    answer = Classification(*CLASSES.ranked(row, 1))
    assert (answer.label, answer.probability) == ("elm", pytest.approx(0.5))
    assert Classification((), ()).label is None
