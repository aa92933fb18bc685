"""Splits of interactions into what is learned from and what is predicted, none of which lets the second into the first.

Each split first keeps one interaction of each pair of user and item, the last (`Interactions.unique`): a pair on both
sides would be known before it is asked for. Where there are no timestamps, the order of rows is the order in time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from recsys.ids import numbered
from recsys.interactions import Interactions

HoldoutKind: TypeAlias = Literal["leave_one_out", "temporal", "users"]


@dataclass(frozen=True, eq=False)
class Split:
    """Parts of a data set: `train` to learn from, `test` to predict.

    `seen` holds what is known, when it comes to predicting, of users that `train` does not have; None where all users
    of `test` may be in `train`.
    """

    train: Interactions
    test: Interactions
    seen: Interactions | None = None


def leave_one_out(data: Interactions) -> Split:
    """The last interaction of each user is for the test; users with only one stay in training.

    Of equal timestamps the later row is the last. Other users' interactions after it are in training: for figures
    without that, use `temporal`.

    Raises:
        ValueError: where no user has two interactions.
    """
    data = data.unique()
    users = numbered(data.users)[1]
    time = np.arange(len(data)) if data.timestamps is None else data.timestamps
    order = np.lexsort((time, users))
    last = np.ones(len(order), bool)
    last[:-1] = users[order][1:] != users[order][:-1]
    last &= (np.bincount(users) > 1)[users[order]] if len(users) else last
    held = np.zeros(len(data), bool)
    held[order[last]] = True
    return _checked(Split(data.take(~held), data.take(held)), "No user has two interactions to leave one out.")


def temporal(data: Interactions, share: float) -> Split:
    """About the last `share` of interactions in time, of all users together, is for the test.

    Interactions of equal timestamp stay together: all at the cut go to the test, so everything in training happened
    before everything in the test.

    Raises:
        ValueError: for a share that is not between 0 and 1, or leaves one part empty.
    """
    _check_share(share)
    data = data.unique()
    time = np.arange(len(data)) if data.timestamps is None else data.timestamps
    place = len(data) - max(1, round(share * len(data)))
    held = time >= np.sort(time)[max(0, place)] if len(data) else np.zeros(0, bool)
    split = Split(data.take(~held), data.take(held))
    if data.timestamps is not None and len(split.train) and len(split.test):
        assert split.train.timestamps is not None
        assert split.test.timestamps is not None
        assert split.train.timestamps.max() < split.test.timestamps.min()
    return _checked(split, "All interactions have one timestamp, or too few are there, so no cut in time divides them.")


def by_user(data: Interactions, share: float, *, seed: int = 0, held_out: float = 0.2) -> Split:
    """A `share` of the users is for the test as a whole (strong generalisation).

    The last `held_out` of each test user's interactions, at least one, are to be predicted from the others, which are
    in `seen`. Users with one interaction are never drawn.

    Raises:
        ValueError: for shares that are not between 0 and 1, or where no user or not all users can be drawn.
    """
    _check_share(share)
    _check_share(held_out)
    data = data.unique()
    users = numbered(data.users)[1]
    counts = np.bincount(users)
    able = np.flatnonzero(counts > 1)
    wanted = min(len(able), max(1, round(share * len(counts)))) if len(counts) else 0
    drawn = np.zeros(len(counts), bool)
    drawn[np.random.default_rng(seed).permutation(able)[:wanted]] = True
    time = np.arange(len(data)) if data.timestamps is None else data.timestamps
    order = np.lexsort((time, users))
    place = np.empty(len(data), np.int64)  # of an interaction among those of its user
    place[order] = np.arange(len(data)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = np.minimum(counts - 1, np.ceil(counts * (1 - held_out)).astype(np.int64))
    later = place >= kept[users]
    parts = (~drawn[users], drawn[users] & later, drawn[users] & ~later)
    train, test, seen = (data.take(part) for part in parts)
    return _checked(Split(train, test, seen), "Too few users have two interactions.")


def random_rows(data: Interactions, share: float, *, seed: int = 0) -> Split:
    """A random `share` of interactions is for the test, whoever's they are: for ratings, not for rankings.

    The first rows of a permutation by `numpy.random.RandomState(seed)` are for training.

    Raises:
        ValueError: for a share that is not between 0 and 1, or leaves one part empty.
    """
    _check_share(share)
    data = data.unique()
    order = np.random.RandomState(seed).permutation(len(data))
    cut = int((1 - share) * len(data))
    return _checked(Split(data.take(order[:cut]), data.take(order[cut:])), "Too few interactions.")


def k_fold(data: Interactions, folds: int, *, seed: int = 0) -> Iterator[Split]:
    """Random parts of equal size, each once the test.

    Raises:
        ValueError: for fewer than 2 folds, or more than there are interactions.
    """
    data = data.unique()
    if not 2 <= folds <= len(data):
        raise ValueError(f"`folds` must be from 2 to the number of interactions, {len(data)}; received {folds}.")
    order = np.random.default_rng(seed).permutation(len(data))
    for held in np.array_split(order, folds):
        kept = np.ones(len(data), bool)
        kept[held] = False
        yield Split(data.take(kept), data.take(~kept))


def of_some_users(data: Interactions, count: int, *, seed: int = 0) -> Interactions:
    """All interactions of `count` users who are drawn at random; of all users where there are no more.

    For validation sets and tests of very many users, whose rankings take longer than they are worth.

    Raises:
        ValueError: for a count below 1.
    """
    if count < 1:
        raise ValueError(f"`count` must be at least 1; received {count}.")
    users = numbered(data.users)[1]
    drawn = np.zeros(int(users.max(initial=-1)) + 1, bool)
    drawn[np.random.default_rng(seed).permutation(len(drawn))[:count]] = True
    return data.take(drawn[users])


@dataclass(frozen=True)
class Holdout:
    """A way to split, as the command line says it: `leave_one_out`, `temporal:0.1` or `users:0.1`."""

    kind: HoldoutKind
    share: float = 0.0
    seed: int = 0

    @classmethod
    def parse(cls, text: str, *, seed: int = 0) -> Holdout:
        """The holdout in a text.

        Raises:
            ValueError: for anything else than the three ways.
        """
        name, colon, number = text.partition(":")
        if name == "leave_one_out" and not colon:
            return cls("leave_one_out", seed=seed)
        if name in ("temporal", "users") and colon:
            try:
                share = float(number)
            except ValueError:
                share = 0.0
            if 0 < share < 1:
                return cls("temporal" if name == "temporal" else "users", share, seed)
        raise ValueError(
            f"A holdout is leave_one_out, temporal:SHARE or users:SHARE with a share between 0 and 1, such as "
            f"temporal:0.1; received {text!r}."
        )

    def __call__(self, data: Interactions) -> Split:
        """Split `data`."""
        if self.kind == "leave_one_out":
            return leave_one_out(data)
        if self.kind == "temporal":
            return temporal(data, self.share)
        return by_user(data, self.share, seed=self.seed)

    def __str__(self) -> str:
        return self.kind if self.kind == "leave_one_out" else f"{self.kind}:{self.share:g}"


def check_no_leak(split: Split) -> None:
    """Refuse a split, of whatever origin, whose test is known from its training.

    Raises:
        ValueError: where a pair of user and item is on both sides; where `seen` is given and its users, or the test's,
            are in training.
    """
    known = split.train if split.seen is None else split.train.joined(split.seen)
    both = set(known) & set(split.test)
    if both:
        user, item = min(both, key=repr)
        raise ValueError(f"{len(both)} pairs are in training and in the test, such as user {user!r}, item {item!r}.")
    if split.seen is not None:
        trained = set(split.train.users.tolist())
        for name, part in (("seen", split.seen), ("test", split.test)):
            shared = trained & set(part.users.tolist())
            if shared:
                raise ValueError(f"{len(shared)} users of `{name}` are in training too, such as {min(shared)!r}.")


def _checked(split: Split, reason: str) -> Split:
    for name in ("train", "test"):
        if not len(getattr(split, name)):
            raise ValueError(f"The split leaves nothing in `{name}`. {reason}")
    return split


def _check_share(share: float) -> None:
    if not 0 < share < 1:
        raise ValueError(f"A share must be between 0 and 1, neither of them; received {share!r}.")
