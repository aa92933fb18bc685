from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from shared.examples import (
    BadRecord,
    Examples,
    StreamedExamples,
    as_source,
    existing_directory,
    existing_file,
    tolerated,
)


def dataset(count: int = 41) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((np.arange(count), np.arange(count) * 2))


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (([], []), ValueError, "`train` has no examples"),
        (Examples([], []), ValueError, "`train` has no examples"),
        (([1], [1, 2]), ValueError, "1 inputs and 2 targets"),
        (None, TypeError, "received NoneType"),
        ([1, 2], TypeError, "received list"),
        (([1], [2], [3]), TypeError, "received tuple"),
        ((iter([1]), iter([2])), TypeError, "received tuple"),
        (lambda: dataset(0), ValueError, "`train` has no examples"),
        (lambda: dataset().repeat(), ValueError, "endless. Remove `.repeat"),
        (lambda: dataset().map(lambda x, _: x), TypeError, "must yield pairs"),
        (lambda: dataset().map(lambda x, y: {"x": x, "y": y}), TypeError, "must yield pairs"),
        (lambda: dataset().map(lambda x, y: (x, y, y)), TypeError, "must yield pairs"),
    ],
)
def test_what_is_no_data_is_refused(data, error, message):
    with pytest.raises(error, match=message):
        as_source(data() if callable(data) else data, name="train")


def test_examples_by_index():
    examples = Examples(["a", "b", "c"], [0, 1, 2], (BadRecord("x.txt, line 4", "empty"),))
    assert (len(examples), examples[1]) == (3, ("b", 1))
    taken = examples.take([2, 0])
    assert (list(taken.inputs), list(taken.targets), taken.bad_records) == (["c", "a"], [2, 0], examples.bad_records)
    assert str(examples.bad_records[0]) == "x.txt, line 4: empty"


def test_a_dataset_gives_plain_values_again_and_again():
    source = as_source(tf.data.Dataset.from_tensor_slices((["a", "b"], [1, 2])))
    assert isinstance(source, StreamedExamples)
    assert list(source) == list(source) == [(b"a", 1), (b"b", 2)]


# What readers check.


def test_paths_must_be_of_the_kind_that_is_read(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("x")
    assert (existing_file(str(file)), existing_directory(tmp_path)) == (file, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nothing at .*b\.txt"):
        existing_file(tmp_path / "b.txt")
    with pytest.raises(ValueError, match="is a directory; expected a file"):
        existing_file(tmp_path)
    with pytest.raises(ValueError, match="is a file; expected a directory"):
        existing_directory(file)


def examples_with_bad(good: int, bad: int) -> Examples:
    records = tuple(BadRecord(f"line {number}", "empty") for number in range(bad))
    return Examples([*range(good)], [*range(good)], records)


@pytest.mark.parametrize(
    ("good", "bad", "share", "message"),
    [
        (0, 0, 1.0, "has no lines"),
        (0, 2, 1.0, "2 of 2 lines cannot be used; the first: line 0: empty"),
        (9, 2, 0.1, None),  # one record is always within a share
        (9, 3, 0.1, "3 of 12 lines"),
        (99, 1, 0.0, "1 of 100 lines"),
    ],
)
def test_the_share_of_bad_records_that_is_tolerated(good, bad, share, message, caplog):
    examples = examples_with_bad(good, bad)
    if message is None:
        assert tolerated(examples, Path("t.csv"), share, things="lines") is examples
        assert "t.csv: 2 of 11 lines cannot be used, the first: line 0: empty" in caplog.text
    else:
        with pytest.raises(ValueError, match=message):
            tolerated(examples, Path("t.csv"), share, things="lines")
