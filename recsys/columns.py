"""Which column of a table holds users, items, ratings and timestamps, and how its cells become arrays."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

Place: TypeAlias = str | int | None
IdKind: TypeAlias = Literal["auto", "str", "int"]

ROLES = ("user", "item", "rating", "timestamp")
# Names by which columns are recognised, in lower case and without marks.
_NAMES = {
    "user": {"user", "userid", "uid", "users", "userindex", "reviewerid", "customer", "customerid", "visitorid"},
    "item": {"item", "itemid", "iid", "items", "itemindex", "movie", "movieid", "product", "productid", "asin", "book",
             "bookid", "artist", "artistid", "track", "trackid", "song", "songid"},
    "rating": {"rating", "ratings", "score", "stars", "overall", "value", "weight", "preference"},
    "timestamp": {"timestamp", "time", "ts", "unixtime", "unixreviewtime", "datetime", "date"},
}  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """The place of each column, from 0; None where there is none."""

    user: int
    item: int
    rating: int | None = None
    timestamp: int | None = None

    @property
    def width(self) -> int:
        """Cells that a row needs."""
        return 1 + max(place for place in (self.user, self.item, self.rating, self.timestamp) if place is not None)

    def describe(self) -> str:
        """Which is which, in words."""
        places: dict[str, int | None] = {role: getattr(self, role) for role in ROLES}
        return ", ".join(f"{role} in column {place}" for role, place in places.items() if place is not None)


def role_of(name: str) -> str | None:
    """What a column of this name holds."""
    plain = re.sub(r"[^a-z]", "", name.lower())
    return next((role for role, names in _NAMES.items() if plain in names), None)


def find_columns(names: Sequence[str] | None, num_columns: int, given: dict[str, Place], where: str) -> Columns:
    """The places of the columns.

    Args:
        names: the header, or None: user, item, rating, timestamp in this order, as many as there are.
        num_columns: cells in the first row.
        given: what the caller said, by role: a name, a number from 0, or None.
        where: the file, for messages.

    Raises:
        ValueError: for a name that is not in the header, a number beyond the last column, or where users or items are
            not found.
    """
    places: dict[str, int] = {}
    for role, place in given.items():
        if place is not None:
            places[role] = _given_place(role, place, names, num_columns, where)
    free = [place for place in range(num_columns) if place not in places.values()]
    if names is not None:
        for place in free:
            known = role_of(names[place])
            if known is not None and known not in places:
                places[known] = place
    elif not places:
        places = dict(zip(ROLES, free, strict=False))
    missing = [role for role in ("user", "item") if role not in places]
    if missing:
        shown = "it has no header" if names is None else f"its header is {', '.join(names)}"
        raise ValueError(
            f"{where}: no column of {missing[0]}s was found; {shown}. Name the columns with `user=` and `item=` (a "
            "name, or a number from 0)."
        )
    return Columns(**places)


def _given_place(role: str, place: str | int, names: Sequence[str] | None, num_columns: int, where: str) -> int:
    if isinstance(place, str):
        if names is None or place not in names:
            shown = "no header" if names is None else f"the header {', '.join(names)}"
            raise ValueError(f"{where}: there is no column {place!r} for `{role}`; the file has {shown}.")
        return list(names).index(place)
    if not 0 <= place < num_columns:
        raise ValueError(f"{where}: `{role}` must be a column from 0 to {num_columns - 1}; received {place}.")
    return place


def is_header(row: Sequence[str]) -> bool:
    """Whether a first row holds names: two of them are known, or it has words where ratings are numbers."""
    known = {role_of(cell) for cell in row} - {None}
    return len(known) >= min(2, len(row)) or (len(row) in (3, 4) and not any(map(_is_number, row[2:])))


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


class BadCellError(ValueError):
    """A cell that is not what its column holds; the message says what was expected and what came."""


@dataclass
class IdParts:
    """A column of ids as it grows, part by part: integers as long as each is written as Python would write it.

    "007" and "7.0" are then texts, and with one of them in the column so is every other id of it.
    """

    kind: IdKind
    role: str
    _parts: list[np.ndarray] = field(default_factory=list)
    _shared: dict[str, str] = field(default_factory=dict)

    def check(self, cells: list[str]) -> None:
        """Refuse cells that cannot be ids of this column.

        Raises:
            BadCellError: for the first of them.
        """
        _check_cells(cells, self.role)
        if self.kind == "int" and _canonical_integers(cells) is None:
            odd = next(cell for cell in cells if _canonical_integers([cell]) is None)
            raise BadCellError(f"the {self.role} must be a whole number; it is {odd!r}")

    def add(self, cells: list[str]) -> None:
        """Append cells that `check` has let pass."""
        if self.kind != "str":
            numbers = _canonical_integers(cells)
            if numbers is not None:
                self._parts.append(numbers)
                return
            self.kind = "str"
            self._parts = [self._texts(list(map(str, part.tolist()))) for part in self._parts]
        self._parts.append(self._texts(cells))

    def column(self) -> np.ndarray:
        """All that was added."""
        return np.concatenate(self._parts) if self._parts else np.zeros(0, np.int64)

    def _texts(self, cells: list[str]) -> np.ndarray:
        # One str object for each distinct id, however often it occurs.
        share = self._shared.setdefault
        texts = np.empty(len(cells), object)
        texts[:] = [share(cell, cell) for cell in cells]
        return texts


def _canonical_integers(cells: list[str]) -> np.ndarray | None:
    try:
        numbers = list(map(int, cells))
        return np.array(numbers, np.int64) if list(map(str, numbers)) == cells else None
    except (ValueError, OverflowError):
        return None


def _check_cells(cells: list[str], role: str) -> None:
    if "" in cells:
        raise BadCellError(f"the {role} is empty")
    try:
        "".join(cells).encode()
    except UnicodeEncodeError as error:
        raise BadCellError(f"the {role} is not valid UTF-8") from error


def ratings_of(cells: list[str]) -> np.ndarray:
    """Cells as float32.

    Raises:
        BadCellError: for a cell that is no finite number.
    """
    return _numbers(cells, "rating").astype(np.float32)


def timestamps_of(cells: list[str]) -> np.ndarray:
    """Cells as int64; whole numbers may be written with a decimal point.

    Raises:
        BadCellError: for a cell that is no whole number of 64 bits.
    """
    try:
        return np.array(list(map(int, cells)), np.int64)
    except (ValueError, OverflowError):
        numbers = _numbers(cells, "timestamp")
    odd = np.flatnonzero((numbers != np.floor(numbers)) | (np.abs(numbers) > 2.0**62))
    if len(odd):
        raise BadCellError(f"the timestamp must be a whole number, such as seconds; it is {cells[odd[0]]!r}")
    return numbers.astype(np.int64)


def _numbers(cells: list[str], role: str) -> np.ndarray:
    try:
        numbers = np.array(list(map(float, cells)), np.float64)
    except ValueError:
        odd = next(cell for cell in cells if not _is_number(cell))
        raise BadCellError(f"the {role} must be a number; it is {odd!r}") from None
    finite = np.isfinite(numbers) & (np.abs(numbers) < np.finfo(np.float32).max if role == "rating" else True)
    if not finite.all():
        raise BadCellError(f"the {role} must be finite; it is {cells[int(np.argmin(finite))]!r}")
    return numbers
