from __future__ import annotations

import numpy as np
import pytest

from recsys import Holdout, Interactions, Split
from recsys.splitting import by_user, check_no_leak, k_fold, leave_one_out, of_some_users, random_rows, temporal
from tests.recsys.tastes import tastes

DATA = Interactions(["a", "b", "a", "c", "b", "a"], [1, 1, 2, 3, 2, 3], timestamps=[5, 6, 3, 9, 7, 5])


def test_leave_one_out_takes_the_last_in_time() -> None:
    split = leave_one_out(DATA)
    assert list(split.test) == [("b", 2), ("a", 3)]  # of the two at time 5 the later row
    assert list(split.train) == [("a", 1), ("b", 1), ("a", 2), ("c", 3)]
    without = Interactions(DATA.users, DATA.items)
    assert list(leave_one_out(without).test) == [("b", 2), ("a", 3)]


def test_a_repeated_pair_is_never_on_both_sides() -> None:
    data = Interactions(["a", "a", "a", "b", "b"], [1, 2, 1, 1, 2])
    split = leave_one_out(data)
    assert list(split.train) == [("a", 2), ("b", 1)]
    assert list(split.test) == [("a", 1), ("b", 2)]
    check_no_leak(split)


def test_temporal_keeps_equal_times_together() -> None:
    split = temporal(DATA, 0.3)
    assert list(split.test) == [("c", 3), ("b", 2)]
    together = temporal(DATA, 0.6)  # the fourth last is at time 5, as is another
    assert sorted(together.test.timestamps.tolist()) == [5, 5, 6, 7, 9]  # type: ignore[union-attr]
    assert list(temporal(Interactions(["a", "b", "c"], [1, 2, 3]), 0.3).test) == [("c", 3)]


@pytest.mark.parametrize("seed", [0, 1])
def test_by_user_holds_out_whole_users(seed: int) -> None:
    split = by_user(tastes(), 0.25, seed=seed)
    assert split.seen is not None
    check_no_leak(split)
    held = set(split.test.users.tolist())
    assert len(held) == 15
    assert held == set(split.seen.users.tolist())
    for user in held:  # 2 of 7 each, the last ones
        rows = split.test.timestamps[split.test.users == user]  # type: ignore[index]
        assert len(rows) == 1
        assert rows.min() > split.seen.timestamps[split.seen.users == user].max()  # type: ignore[index]
    again = by_user(tastes(), 0.25, seed=seed)
    assert list(again.test) == list(split.test)
    assert set(by_user(tastes(), 0.25, seed=seed + 1).test.users) != held


def test_by_user_never_draws_who_has_one_interaction() -> None:
    data = Interactions(["a", "a", "b", "c", "d"], [1, 2, 1, 1, 1])
    split = by_user(data, 0.9)
    assert list(split.test) == [("a", 2)]
    with pytest.raises(ValueError, match="nothing in `train`"):
        by_user(Interactions(["a", "a"], [1, 2]), 0.5)


def test_k_fold_covers_everything_once() -> None:
    data = tastes(9)
    folds = list(k_fold(data, 4, seed=3))
    assert sorted(pair for fold in folds for pair in fold.test) == sorted(data)
    for fold in folds:
        check_no_leak(fold)
        assert len(fold.train) + len(fold.test) == len(data)
    assert [list(fold.test) for fold in k_fold(data, 4, seed=3)] == [list(fold.test) for fold in folds]


def test_random_rows_are_those_of_the_permutation() -> None:
    data = tastes(10)
    order = np.random.RandomState(0).permutation(len(data))
    cut = int(0.8 * len(data))
    split = random_rows(data, 0.2)
    assert list(split.train) == list(data.take(order[:cut]))
    assert list(split.test) == list(data.take(order[cut:]))


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda: leave_one_out(Interactions([], [])), "No user has two"),
        (lambda: leave_one_out(Interactions(["a", "b"], [1, 1])), "No user has two"),
        (lambda: temporal(Interactions([], []), 0.1), "nothing in `train`"),
        (lambda: temporal(Interactions(["a", "b"], [1, 1], timestamps=[4, 4]), 0.5), "one timestamp"),
        (lambda: temporal(DATA, 1.0), r"between 0 and 1, neither of them; received 1\.0"),
        (lambda: by_user(Interactions([], []), 0.1), "Too few users"),
        (lambda: random_rows(Interactions(["a"], [1]), 0.5), "Too few"),
        (lambda: next(k_fold(DATA, 1)), "received 1"),
        (lambda: next(k_fold(DATA, 7)), "number of interactions, 6; received 7"),
    ],
)
def test_what_cannot_be_split_is_refused(call: object, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        call()  # type: ignore[operator]


@pytest.mark.parametrize("text", ["leave_one_out", "temporal:0.1", "users:0.25"])
def test_holdouts_are_parsed(text: str) -> None:
    holdout = Holdout.parse(text)
    assert str(holdout) == text
    split = holdout(tastes())
    check_no_leak(split)
    assert (split.seen is not None) == text.startswith("users")


@pytest.mark.parametrize(
    "text", ["", "temporal", "temporal:", "temporal:x", "temporal:0", "users:1", "leave_one_out:1", "nan:nan"]
)
def test_other_holdouts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="leave_one_out, temporal:SHARE or users:SHARE"):
        Holdout.parse(text)


def test_leaks_are_found() -> None:
    one, other = Interactions(["a"], [1]), Interactions(["b"], [1])
    with pytest.raises(ValueError, match="1 pairs are in training and in the test, such as user 'a', item 1"):
        check_no_leak(Split(one, one))
    with pytest.raises(ValueError, match="users of `seen` are in training too, such as 'a'"):
        check_no_leak(Split(one, other, seen=Interactions(["a"], [2])))
    with pytest.raises(ValueError, match="users of `test` are in training too"):
        check_no_leak(Split(one, Interactions(["a"], [2]), seen=other))


def test_of_some_users_keeps_all_that_they_did() -> None:
    data = tastes()
    some = of_some_users(data, 7, seed=1)
    users = sorted(set(some.users.tolist()))
    assert len(users) == 7
    assert list(some) == [pair for pair in data if pair[0] in users]
    assert list(of_some_users(data, 7, seed=1)) == list(some) != list(of_some_users(data, 7, seed=2))
    assert list(of_some_users(data, 10**6)) == list(data)
    assert len(of_some_users(data.take(np.zeros(0, np.int64)), 3)) == 0
    with pytest.raises(ValueError, match="`count` must be at least 1; received 0"):
        of_some_users(data, 0)
