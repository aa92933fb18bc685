from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys import Interactions
from recsys.ids import IdIndex, id_column, numbered
from recsys.interactions import as_interactions, interaction_matrix


def test_no_rows() -> None:
    empty = Interactions([], [])
    assert (len(empty), list(empty), len(empty.unique()), len(empty.in_time_order())) == (0, [], 0, 0)
    assert list(empty.joined(Interactions(["a"], [1]))) == [("a", 1)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], []),
        (["b", "a"], ["b", "a"]),
        (np.array(["b", "a"]), ["b", "a"]),
        ([2, np.int32(1)], [2, 1]),
        (np.array([2, 1], np.uint8), [2, 1]),
        (range(3), [0, 1, 2]),
    ],
)
def test_ids_keep_their_kind(values: Any, expected: list[Any]) -> None:
    column = id_column(values, "users").tolist()
    assert column == expected
    assert [type(value) for value in column] == [type(value) for value in expected]


@pytest.mark.parametrize(
    ("values", "error", "part"),
    [
        (["a", 1], TypeError, "received 'a' and 1. Convert one kind"),
        ([1.0, 2.0], TypeError, r"received 1\.0 \(float\)"),
        ([True], TypeError, r"received True \(bool\)"),
        ([None, "a"], TypeError, r"received None \(NoneType\)"),
        ("abc", TypeError, "received str"),
        (3, TypeError, "received int"),
        (["a", ""], ValueError, "empty id, at place 1"),
        ([2**63], ValueError, "beyond 64 bits"),
        (np.array([2**63], np.uint64), ValueError, "beyond 64 bits"),
        (np.zeros((2, 2), int), ValueError, r"shape \(2, 2\)"),
    ],
)
def test_what_is_no_id_is_refused(values: Any, error: type[Exception], part: str) -> None:
    with pytest.raises(error, match=part):
        Interactions(values, [1])


def test_columns_must_fit_and_ratings_be_finite() -> None:
    with pytest.raises(ValueError, match="received 2 users, 1 items"):
        Interactions(["a", "b"], [1])
    with pytest.raises(ValueError, match="2 are not, the first at row 1: nan"):
        Interactions(["a", "b", "c"], [1, 2, 3], [1.0, np.nan, np.inf])
    with pytest.raises(TypeError, match="timestamps` must be whole numbers; received float64"):
        Interactions(["a"], [1], timestamps=[1.5])


def test_ratings_and_timestamps_of_other_kinds() -> None:
    with pytest.raises(TypeError, match="`ratings` must be numbers"):
        Interactions(["a"], [1], ["high"])
    for name in ("ratings", "timestamps"):
        with pytest.raises(ValueError, match=rf"`{name}` must be one-dimensional; received an array of shape \(1, 1\)"):
            Interactions(["a"], [1], **{name: [[1]]})
    days = np.array(["2020-01-02", "2020-01-01"], "datetime64[D]")
    assert list(Interactions(["a", "b"], [1, 2], timestamps=days).in_time_order()) == [("b", 2), ("a", 1)]
    with pytest.raises(ValueError, match="lack a time at row 1"):
        Interactions(["a", "b"], [1, 2], timestamps=np.array(["2020-01-02", "NaT"], "datetime64[D]"))


def test_columns_cannot_be_written_to_and_the_callers_array_still_can() -> None:
    ratings = np.array([1, 2], np.float32)
    data = Interactions(["a", "b"], [1, 2], ratings)
    assert data.ratings is not None
    with pytest.raises(ValueError, match="read-only"):
        data.ratings[0] = 5
    ratings[0] = 3


@pytest.mark.parametrize(
    ("timestamps", "expected"),
    [
        (None, [("b", 1, 2.0), ("a", 1, 4.0)]),
        ([9, 5, 8, 7], [("a", 1, 1.0), ("b", 1, 2.0)]),
        ([1] * 4, [("b", 1, 2.0), ("a", 1, 4.0)]),
    ],
)
def test_of_duplicates_the_last_in_time_counts(timestamps: list[int] | None, expected: list[Any]) -> None:
    data = Interactions(["a", "b", "a", "a"], [1, 1, 1, 1], [1, 2, 3, 4], timestamps).unique()
    assert data.ratings is not None
    assert [(*pair, rating) for pair, rating in zip(data, data.ratings.tolist(), strict=True)] == expected


def test_matrix_counts_duplicates_once_and_leaves_out_what_is_unknown() -> None:
    data = Interactions(["a", "b", "a", "z"], ["x", "y", "x", "x"], [1, 0, 3, 4])
    users, items = IdIndex(id_column(["a", "b", "c"], "users"), "user"), IdIndex(id_column(["x", "y"], "items"), "item")
    assert interaction_matrix(data, users, items).toarray().tolist() == [[1, 0], [0, 1], [0, 0]]
    rated = interaction_matrix(data, users, items, values=data.ratings)
    assert rated.nnz == 2  # a rating of 0 is a rating
    assert rated.toarray().tolist() == [[3, 0], [0, 0], [0, 0]]


def test_index_numbers_ids_and_refuses_another_kind(tmp_path: Path) -> None:
    index = IdIndex(numbered(id_column([30, 10, 20, 10], "users"))[0], "user")
    assert index.numbers([10, 30, 99]).tolist() == [0, 2, -1]
    assert index.ids([2, 0]) == [30, 10]
    with pytest.raises(TypeError, match="user ids of this data are whole numbers; received '10'"):
        index.numbers(["10"])
    longer = index.extended(id_column([40, 10, 5], "users"))
    assert longer.entries.tolist() == [10, 20, 30, 5, 40]
    for entries in (["b\n", "a\\"], [3, -1]):
        index = IdIndex(id_column(entries, "users"), "user")
        index.save(tmp_path / "users.txt")
        assert IdIndex.load(tmp_path / "users.txt", "user").entries.tolist() == entries


def test_joined_refuses_ids_of_two_kinds() -> None:
    with pytest.raises(TypeError, match="`items` are int on one side and str on the other"):
        Interactions(["a"], [1]).joined(Interactions(["a"], ["1"]))


def test_a_tuple_of_columns_will_do() -> None:
    assert list(as_interactions((["a"], [1]))) == [("a", 1)]
    with pytest.raises(TypeError, match=r"`train` must be Interactions.* received list"):
        as_interactions([("a", 1)], name="train")


@pytest.mark.parametrize(
    "column",
    [[], [5], [3, 1, 3, 2], [-2, 7, -2, 0], [10**15, 1, 10**15], [-(2**63), 2**63 - 1, 0], ["b", "a", "b"]],
)
def test_distinct_ids_are_numbered_in_their_order(column: list[Any]) -> None:
    entries, numbers = numbered(id_column(column, "users"))
    assert entries.tolist() == sorted(set(column))
    assert entries[numbers].tolist() == column
    assert numbers.dtype == np.int64


def test_index_finds_integers_that_came_later_and_none_that_are_not_there() -> None:
    index = IdIndex(id_column([10, 30, 5, 40, -7], "users"), "user")  # as `extended` leaves them
    assert index.numbers([5, 40, 10, 41, -8, 6, -7]).tolist() == [2, 3, 0, -1, -1, -1, 4]
    assert index.numbers(np.array([], np.int64)).tolist() == []
    assert IdIndex(np.zeros(0, np.int64), "user").numbers([1]).tolist() == [-1]
