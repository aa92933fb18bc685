"""Users and items as their owners call them: strings or integers, one kind to a column.

A column of ids is a one-dimensional NumPy array: int64, or object with str in it. An `IdIndex` numbers the distinct
ids in their sorted order, which is also the order by which ties are broken.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from shared.vocabulary import Vocabulary

UNKNOWN = -1
# A table of integers may have so many entries for each row of the column.
_DENSE = 4


def id_column(values: Any, name: str) -> np.ndarray:
    """Ids as a column: int64, or object with a str each.

    Raises:
        TypeError: for anything that is neither all strings nor all whole numbers; the message shows one.
        ValueError: for an array that is not one-dimensional, an empty string, or a number beyond 64 bits.
    """
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise TypeError(f"`{name}` must be a list or an array of ids; received {type(values).__name__}.")
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise ValueError(f"`{name}` must be one-dimensional; received an array of shape {values.shape}.")
        if values.dtype.kind in "iu":
            return _as_int64(values, name)
        values = values.tolist()
    values = values if isinstance(values, list) else list(values)
    kinds = set(map(type, values))
    if any(issubclass(kind, np.generic) for kind in kinds):
        values = [value.item() if isinstance(value, np.generic) else value for value in values]
        kinds = set(map(type, values))
    if kinds <= {int}:
        return _as_int64(values, name)
    if kinds == {str}:
        return _as_strings(values, name)
    raise TypeError(_mixed(values, kinds, name))


def _as_int64(values: Any, name: str) -> np.ndarray:
    if isinstance(values, np.ndarray) and values.dtype == np.uint64 and (values > np.iinfo(np.int64).max).any():
        raise ValueError(f"`{name}` holds a number beyond 64 bits with sign: {values.max()}. Use strings.")
    try:
        return np.asarray(values, np.int64)
    except OverflowError as error:
        raise ValueError(f"`{name}` holds a number beyond 64 bits with sign. Use strings.") from error


def _as_strings(values: list[str], name: str) -> np.ndarray:
    if "" in values:
        raise ValueError(f"`{name}` holds an empty id, at place {values.index('')}. Leave such rows out.")
    column = np.empty(len(values), object)
    column[:] = values
    return column


def _mixed(values: list[Any], kinds: set[type], name: str) -> str:
    if kinds - {int, str}:
        odd = next(value for value in values if type(value) not in (int, str))
        return f"`{name}` must be all strings or all whole numbers; received {odd!r} ({type(odd).__name__})."
    first = next(value for value in values if type(value) is not type(values[0]))
    return (
        f"`{name}` must be all strings or all whole numbers; received {values[0]!r} and {first!r}. Convert one kind, "
        "such as with `[str(value) for value in values]`."
    )


def kind_of(column: np.ndarray) -> type[int] | type[str]:
    """The type of a column's ids."""
    return str if column.dtype == object else int


def numbered(column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct ids of a column, sorted, and for each row the number of its id (int64)."""
    if kind_of(column) is int:
        return _numbered_integers(column)
    listed = column.tolist()
    ordered = sorted(set(listed))
    places = dict(zip(ordered, range(len(ordered)), strict=True))
    entries = np.empty(len(ordered), object)
    entries[:] = ordered
    return entries, np.fromiter((places[value] for value in listed), np.int64, len(listed))


def _numbered_integers(column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = (int(column.min()), int(column.max())) if len(column) else (0, 0)
    if high - low >= _DENSE * len(column):
        entries, numbers = np.unique(column, return_inverse=True)
        return entries, numbers.astype(np.int64, copy=False)
    # Ids without large gaps between them: a table of all that lie in between takes less than sorting.
    present = np.zeros(high - low + 1, bool)
    present[column - low] = True
    table = np.cumsum(present)
    table -= 1
    return np.flatnonzero(present) + low, table[column - low]


class IdIndex:
    """Distinct ids, numbered from 0 in their order.

    Args:
        entries: a column of distinct ids.
        what: what they are, for messages: "user" or "item".
    """

    def __init__(self, entries: np.ndarray, what: str) -> None:
        self.entries = entries
        self.what = what
        self.kind = kind_of(entries)

    def __len__(self) -> int:
        return len(self.entries)

    @cached_property
    def _places(self) -> dict[Any, int]:
        return dict(zip(self.entries.tolist(), range(len(self)), strict=True))

    @cached_property
    def _rising(self) -> np.ndarray:
        """The numbers of integer entries in the order of these: new ones stand at the end."""
        return np.argsort(self.entries, kind="stable")

    def numbers(self, ids: Any) -> np.ndarray:
        """The number of each id, int64; -1 for one that is not known.

        Raises:
            TypeError: for ids of another kind than those of the index.
        """
        column = ids if isinstance(ids, np.ndarray) and ids.dtype in (object, np.int64) else id_column(ids, self._name)
        if len(column) == 0:
            return np.zeros(0, np.int64)
        if len(self) and kind_of(column) is not self.kind:
            first = column[:1].tolist()[0]
            raise TypeError(
                f"The {self.what} ids of this data are {_WORDS[self.kind]}; received {first!r}. Give them as "
                f"{self.kind.__name__}."
            )
        if len(self) and self.kind is int:
            return self._integer_numbers(column)
        places = self._places
        return np.fromiter((places.get(value, UNKNOWN) for value in column.tolist()), np.int64, len(column))

    def _integer_numbers(self, column: np.ndarray) -> np.ndarray:
        order = self._rising
        found = order[np.minimum(np.searchsorted(self.entries, column, sorter=order), len(order) - 1)]
        return np.where(self.entries[found] == column, found, UNKNOWN)

    def ids(self, numbers: np.ndarray | Sequence[int]) -> list[Any]:
        """The ids with these numbers, as str or int."""
        listed: list[Any] = self.entries[np.asarray(numbers, np.int64)].tolist()
        return listed

    def extended(self, column: np.ndarray) -> IdIndex:
        """An index that has the new ids of `column` too, after the old ones."""
        fresh = numbered(column[self.numbers(column) == UNKNOWN])[0]
        return IdIndex(np.concatenate([self.entries, fresh]) if len(self) else fresh, self.what)

    def save(self, path: Path) -> None:
        """Write a vocabulary file: one id a line."""
        Vocabulary(self.entries.tolist()).save(path)

    @classmethod
    def load(cls, path: Path, what: str) -> Self:
        """The index that `save` wrote."""
        return cls(id_column(list(Vocabulary.load(path)), f"{what}s"), what)

    @property
    def _name(self) -> str:
        return f"{self.what}s"


_WORDS: dict[type, str] = {int: "whole numbers", str: "strings"}
