from __future__ import annotations

import numpy as np
import pytest

from shared.vocabulary import Vocabulary

HARD_STRINGS = [
    "", " ", "a", "a b ", "\n", "\r\n", "\\", "\\n", "\\\\n", "tab\t", "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029",
    "\\integers", "\\unknown x", "ünïcode", "🙂", "\ud800", "0", "None",
]  # fmt: skip


@pytest.mark.parametrize(
    "vocabulary",
    [
        Vocabulary([]),
        Vocabulary(["b", "a"]),
        Vocabulary(HARD_STRINGS),
        Vocabulary(HARD_STRINGS, unknown="\n"),
        Vocabulary([3, -1, 2**40]),
        Vocabulary([3, 0], unknown=0),
        Vocabulary([""]),
    ],
)
def test_a_file_gives_the_same_vocabulary(tmp_path, vocabulary):
    vocabulary.save(tmp_path / "labels.txt")
    loaded = Vocabulary.load(tmp_path / "labels.txt")
    assert loaded == vocabulary
    assert [type(entry) for entry in loaded] == [type(entry) for entry in vocabulary]


def test_entries_are_numbered_in_order():
    vocabulary = Vocabulary(["dog", "cat"])
    assert vocabulary.encode(["cat", "dog", "cat"]).tolist() == [1, 0, 1]
    assert vocabulary.encode([]).tolist() == []
    assert vocabulary.decode([1, 0]) == ["cat", "dog"]
    assert (len(vocabulary), "cat" in vocabulary, "cow" in vocabulary) == (2, True, False)


@pytest.mark.parametrize(
    ("entries", "error", "words"),
    [
        (["a", "b", "a"], ValueError, "'a' occurs more than once"),
        (["a", 1], TypeError, "all strings or all integers"),
        ([True, False], TypeError, "all strings or all integers"),
        ([1.5], TypeError, "all strings or all integers"),
        ([None], TypeError, "all strings or all integers"),
    ],
)
def test_unfit_entries_are_refused(entries, error, words):
    with pytest.raises(error) as caught:
        Vocabulary(entries)
    assert words in str(caught.value)


def test_values_outside_are_named_or_stand_as_unknown():
    with pytest.raises(ValueError, match=r"2 values are not in the vocabulary of 1: \['b', 'c'\]"):
        Vocabulary(["a"]).encode(["a", "b", "c"])
    assert Vocabulary(["a", "?"], unknown="?").encode(["b", "a"]).tolist() == [1, 0]
    with pytest.raises(ValueError, match="must be one of the entries"):
        Vocabulary(["a"], unknown="?")


@pytest.mark.parametrize("number", [-1, 2])
def test_numbers_outside_are_refused(number):
    with pytest.raises(IndexError, match=f"from 0 to 1; received {number}"):
        Vocabulary(["a", "b"]).decode([number])


def test_numpy_scalars_are_entries_like_others():
    vocabulary = Vocabulary(np.array([5, 3]))
    assert list(vocabulary) == [5, 3]
    assert vocabulary.kind is int
    assert vocabulary.encode(np.array([3])).tolist() == [1]
    assert Vocabulary(np.array(["x"])) == Vocabulary(["x"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["a", "b", "c"]),
        ({"order": "first_seen"}, ["c", "b", "a"]),
        ({"order": "frequency"}, ["b", "c", "a"]),
        ({"min_count": 2}, ["b", "c"]),
        ({"max_size": 1}, ["b"]),
        ({"max_size": 2, "order": "first_seen"}, ["c", "b"]),
        ({"min_count": 4}, []),
    ],
)
def test_from_values(options, expected):
    assert list(Vocabulary.from_values(["c", "b", "a", "b", "c", "b"], **options)) == expected
