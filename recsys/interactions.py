"""Who did what: interactions of users with items, in columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from recsys.ids import IdIndex, id_column, kind_of, numbered
from shared.examples import BadRecord


@dataclass(frozen=True, eq=False)
class Interactions:
    """Interactions in columns of equal length; row n of each belongs to the same interaction.

    Any sequence will do for a column; it is kept as an array that cannot be written to. Rows may repeat a pair of user
    and item; `unique` says which one counts.

    Attributes:
        users: ids, all str (object array) or all int (int64).
        items: ids, the same; users and items may differ in kind.
        ratings: float32, finite, or None where there are none.
        timestamps: int64, in any unit (datetime64 is taken too), or None. Without them the order of rows is the order
            in time.
        bad_records: what a reader left out.

    Raises:
        TypeError: for ids that are neither all strings nor all whole numbers.
        ValueError: for columns of unequal length, and for ratings that are NaN or infinite.

    Example:
        >>> len(Interactions(["ann", "bob"], [10, 10], ratings=[4, 5]))
        2
    """

    users: np.ndarray
    items: np.ndarray
    ratings: np.ndarray | None = None
    timestamps: np.ndarray | None = None
    bad_records: tuple[BadRecord, ...] = ()

    def __post_init__(self) -> None:
        columns = {"users": id_column(self.users, "users"), "items": id_column(self.items, "items")}
        if self.ratings is not None:
            columns["ratings"] = _ratings(self.ratings)
        if self.timestamps is not None:
            columns["timestamps"] = _timestamps(self.timestamps)
        if len(set(map(len, columns.values()))) > 1:
            lengths = ", ".join(f"{len(column)} {name}" for name, column in columns.items())
            raise ValueError(f"Columns must have equal lengths; received {lengths}.")
        self._keep(columns)

    def _keep(self, columns: dict[str, np.ndarray]) -> None:
        for name, column in columns.items():
            view = column.view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)

    def __len__(self) -> int:
        return len(self.users)

    def __repr__(self) -> str:
        extras = [name for name in ("ratings", "timestamps") if getattr(self, name) is not None]
        return f"Interactions({len(self)} rows{''.join(f', {name}' for name in extras)})"

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return iter(zip(self.users.tolist(), self.items.tolist(), strict=True))

    def take(self, rows: np.ndarray) -> Interactions:
        """The interactions in these rows: numbers in the wanted order, or one bool each."""
        taken = object.__new__(Interactions)  # without the checks, which these columns have passed
        for name in ("ratings", "timestamps"):
            object.__setattr__(taken, name, None)
        object.__setattr__(taken, "bad_records", self.bad_records)
        taken._keep({name: column[rows] for name, column in self._columns().items()})
        return taken

    def _columns(self) -> dict[str, np.ndarray]:
        columns = {name: getattr(self, name) for name in ("users", "items", "ratings", "timestamps")}
        return {name: column for name, column in columns.items() if column is not None}

    def joined(self, other: Interactions) -> Interactions:
        """These rows and then those of `other`; ratings or timestamps that only one side has are dropped."""
        if not len(self) or not len(other):
            return other if not len(self) else self
        for name in ("users", "items"):
            mine, theirs = kind_of(getattr(self, name)), kind_of(getattr(other, name))
            if mine is not theirs:
                raise TypeError(f"`{name}` are {mine.__name__} on one side and {theirs.__name__} on the other.")
        return Interactions(
            np.concatenate([self.users, other.users]),
            np.concatenate([self.items, other.items]),
            _both(self.ratings, other.ratings),
            _both(self.timestamps, other.timestamps),
            self.bad_records + other.bad_records,
        )

    def in_time_order(self) -> Interactions:
        """Sorted by timestamp; rows of equal timestamp keep their order."""
        return self if self.timestamps is None else self.take(np.argsort(self.timestamps, kind="stable"))

    def unique(self) -> Interactions:
        """Each pair of user and item once, as its last interaction in time; the others keep their order."""
        users, items = numbered(self.users)[1], numbered(self.items)[1]
        pairs = users * (items.max(initial=0) + 1) + items
        return self.take(np.sort(_last_of_each(pairs, self.timestamps)))


def _last_of_each(keys: np.ndarray, timestamps: np.ndarray | None) -> np.ndarray:
    """The row of the last occurrence of each key: by timestamp, and among equal ones by row."""
    order = np.lexsort((keys,) if timestamps is None else (timestamps, keys))
    last = np.ones(len(order), bool)
    last[:-1] = keys[order][1:] != keys[order][:-1]
    return order[last]


def _both(first: np.ndarray | None, second: np.ndarray | None) -> np.ndarray | None:
    return None if first is None or second is None else np.concatenate([first, second])


def _ratings(values: Any) -> np.ndarray:
    try:
        ratings = np.asarray(values, np.float32)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`ratings` must be numbers ({error}). Convert them, or leave such rows out.") from error
    _check_flat(ratings, "ratings")
    wrong = np.flatnonzero(~np.isfinite(ratings))
    if len(wrong):
        raise ValueError(
            f"`ratings` must be finite; {len(wrong)} are not, the first at row {wrong[0]}: {ratings[wrong[0]]}. Leave "
            "such rows out, or read the file with `read_interactions`, which does and reports them."
        )
    return ratings


def _timestamps(values: Any) -> np.ndarray:
    timestamps = np.asarray(values)
    _check_flat(timestamps, "timestamps")
    if timestamps.dtype.kind == "M":
        if np.isnat(timestamps).any():
            raise ValueError(f"`timestamps` lack a time at row {int(np.argmax(np.isnat(timestamps)))}. Leave it out.")
    elif timestamps.dtype.kind not in "iu" and len(timestamps):
        raise TypeError(f"`timestamps` must be whole numbers; received {timestamps.dtype}. Take seconds, say.")
    return timestamps.astype(np.int64)


def _check_flat(column: np.ndarray, name: str) -> None:
    if column.ndim != 1:
        raise ValueError(f"`{name}` must be one-dimensional; received an array of shape {column.shape}.")


def as_interactions(data: Any, *, name: str = "data") -> Interactions:
    """What `fit` and `evaluate` take, as `Interactions`: those, or a tuple (users, items[, ratings[, timestamps]]).

    Raises:
        TypeError: for anything else.
        ValueError: where there are none.
    """
    if isinstance(data, tuple) and 2 <= len(data) <= 4:
        data = Interactions(*data)
    if not isinstance(data, Interactions):
        raise TypeError(
            f"`{name}` must be Interactions, as `read_interactions` gives them, or (users, items); received "
            f"{type(data).__name__}."
        )
    if not len(data):
        raise ValueError(f"`{name}` has no examples: there is not one interaction in it. Check the file or the filter.")
    return data


def interaction_matrix(
    data: Interactions, users: IdIndex, items: IdIndex, *, values: np.ndarray | None = None
) -> sp.csr_matrix:
    """Interactions as a sparse matrix, float32 (number of users, number of items), columns sorted in each row.

    Pairs with an unknown user or item are left out. A pair that occurs often counts once, as its last interaction.

    Args:
        data: the interactions.
        users: numbers of the rows.
        items: numbers of the columns.
        values: one value for each interaction; left out, each is 1.
    """
    return pair_matrix(
        users.numbers(data.users),
        items.numbers(data.items),
        (len(users), len(items)),
        values=values,
        timestamps=data.timestamps,
    )


def pair_matrix(
    rows: np.ndarray,
    columns: np.ndarray,
    shape: tuple[int, int],
    *,
    values: np.ndarray | None = None,
    timestamps: np.ndarray | None = None,
) -> sp.csr_matrix:
    """The same from numbers of users and items, -1 for those that are left out."""
    known = np.flatnonzero((rows >= 0) & (columns >= 0))
    keys = rows[known] * max(1, shape[1]) + columns[known]
    last = known[_last_of_each(keys, None if timestamps is None else timestamps[known])]
    entries = np.ones(len(last), np.float32) if values is None else np.asarray(values, np.float32)[last]
    # `last` is sorted by row and then by column: the offsets are counts.
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows[last], minlength=shape[0]))])
    return sp.csr_matrix((entries, columns[last], offsets), shape=shape)
