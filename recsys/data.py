"""Readers: files of interactions to `Interactions`.

Text files are read in parts, so that their size shows in the columns only. Ids that are all written as whole numbers
("7", not "007") become int; with any other among them, all of that column are str.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal, TypeAlias

import numpy as np

from recsys.columns import (
    BadCellError,
    Columns,
    IdKind,
    IdParts,
    Place,
    find_columns,
    is_header,
    ratings_of,
    timestamps_of,
)
from recsys.interactions import Interactions
from shared.examples import BadRecord, tolerated

logger = logging.getLogger(__name__)

Layout: TypeAlias = Literal["auto", "table", "sequences"]
_Row: TypeAlias = Sequence[str]

# Rows that are turned into arrays together, and lines by which the layout is found out.
_PART, _PEEKED = 100_000, 1000
# What separates cells, in the order in which it is looked for; white space otherwise.
_DELIMITERS = ("::", "\t", ",", ";", "|")
# Files of ratings in the directories that MovieLens comes in.
_IN_DIRECTORIES = ("ratings.csv", "ratings.dat", "u.data")


def read_interactions(
    path: str | Path,
    *,
    user: Place = None,
    item: Place = None,
    rating: Place = None,
    timestamp: Place = None,
    header: bool | None = None,
    delimiter: str | None = None,
    layout: Layout = "auto",
    ids: IdKind = "auto",
    max_bad_share: float = 0.01,
) -> Interactions:
    """Interactions in a file: CSV, TSV, Parquet, MovieLens (`u.data`, `ratings.dat`), or one sequence a line.

    What is not said is found out, and logged. Columns are known by their usual names (userId, movieId, item, rating,
    timestamp, ...); without a header they are user, item, rating, timestamp in this order. A file separated by white
    space whose lines differ in length has one user a line: `user item item item ...`, in the order of time. Duplicate
    rows are kept: `Interactions.unique` and the pipelines count the last one.

    Args:
        path: the file, `.gz` or not; or a MovieLens directory.
        user: column of the users, by name or by number from 0; so for `item`, `rating`, `timestamp`.
        item: column of the items.
        rating: column of the ratings, finite numbers.
        timestamp: column of the timestamps, whole numbers.
        header: whether the first line holds names.
        delimiter: between the cells of a line.
        layout: "table" (an interaction a line) or "sequences" (a user a line).
        ids: "str" or "int" where ids shall be of this kind; a cell that is not is then a bad record.
        max_bad_share: share of unusable lines (no such cell, NaN, not UTF-8, ...) that is tolerated. They are left
            out, logged, and kept in `bad_records` with file, line and reason.

    Raises:
        FileNotFoundError: where there is nothing at `path`.
        ValueError: for a file without interactions, columns that are not found, or too many bad lines.
        ImportError: for Parquet without pyarrow.
    """
    file = _resolved(Path(path))
    given = {"user": user, "item": item, "rating": rating, "timestamp": timestamp}
    if file.suffix in (".parquet", ".pq"):
        from recsys.parquet import read_parquet

        read = read_parquet(file, given)
    else:
        with _opened(file) as stream:
            read = _read_text(stream, file, given, header=header, delimiter=delimiter, layout=layout, ids=ids)
    return tolerated(read, file, max_bad_share, things="interactions")


def _resolved(path: Path) -> Path:
    if path.is_dir():
        found = [path / name for name in _IN_DIRECTORIES if (path / name).is_file()]
        if not found:
            raise ValueError(f"{path} is a directory without {', '.join(_IN_DIRECTORIES)}. Give the path of a file.")
        return found[0]
    if not path.exists():
        raise FileNotFoundError(f"There is nothing at {path}. Check the path.")
    return path


def _opened(file: Path) -> IO[str]:
    # Bytes that are no UTF-8 come as surrogates, by which their row is then known as bad.
    if file.suffix == ".gz":
        return gzip.open(file, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="")
    return file.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _read_text(
    stream: IO[str],
    file: Path,
    given: dict[str, Place],
    *,
    header: bool | None,
    delimiter: str | None,
    layout: Layout,
    ids: IdKind,
) -> Interactions:
    first = list(itertools.islice(stream, _PEEKED))
    mark = delimiter or _delimiter_of(next((line for line in first if line.strip()), ""))
    rows = _Rows(itertools.chain(first, stream), mark, file)
    peeked = rows.part(_PEEKED)
    start = next((row for row in peeked if row), None)
    if start is None:
        return Interactions([], [])  # type: ignore[arg-type]  # lists become columns
    if header is None:
        header = is_header(start) or any(isinstance(place, str) for place in given.values())
    if layout == "auto":
        layout = "table" if mark.strip() or header or any(p is not None for p in given.values()) else _layout(peeked)
    place = peeked.index(start) + header
    if layout == "sequences":
        columns = Columns(0, 1)
        logger.info("%s: a user and their items on each line", file)
    else:
        columns = find_columns(start if header else None, len(start), given, str(file))
        logger.info("%s: %s%s", file, columns.describe(), "" if header else " (no header)")
    reading = _Reading(file, columns, IdParts(ids, "user"), IdParts(ids, "item"))
    first_line = place + 1
    part = peeked[place:]
    while part:
        reading.add_part(part, first_line, exact=rows.exact, sequences=layout == "sequences")
        first_line += len(part)
        part = rows.part(_PART)
    return reading.interactions()


def _delimiter_of(line: str) -> str:
    return next((mark for mark in _DELIMITERS if mark in line), " ")


def _layout(rows: Sequence[_Row]) -> Layout:
    widths = {len(row) for row in rows if row}
    return "table" if len(widths) == 1 and widths <= {2, 3, 4} else "sequences"


class _Rows:
    """The rows of a text, part by part; `exact` as long as each row is one line."""

    def __init__(self, lines: Iterator[str], delimiter: str, file: Path) -> None:
        self._file, self._count = file, 0
        self._reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True) if len(delimiter) == 1 else None
        if delimiter == " ":
            self._reader = None
            self._rows: Iterator[_Row] = (line.split() for line in lines)
        elif self._reader is not None:
            self._rows = self._reader
        else:
            self._rows = (line.strip().split(delimiter) if line.strip() else [] for line in lines)

    def part(self, size: int) -> list[_Row]:
        """The next `size` rows, or what is left of them."""
        try:
            rows = list(itertools.islice(self._rows, size))
        except csv.Error as error:
            assert self._reader is not None
            raise ValueError(f"{self._file}:{self._reader.line_num}: not readable as a table ({error}).") from error
        self._count += len(rows)
        return rows

    @property
    def exact(self) -> bool:
        """Whether the number of a row is that of its line."""
        return self._reader is None or self._reader.line_num == self._count


@dataclass
class _Reading:
    """Columns as they grow; rows that cannot be used go to `bad`."""

    file: Path
    columns: Columns
    users: IdParts
    items: IdParts
    ratings: list[np.ndarray] = field(default_factory=list)
    timestamps: list[np.ndarray] = field(default_factory=list)
    bad: list[BadRecord] = field(default_factory=list)

    def add_part(self, rows: Sequence[_Row], first_line: int, *, exact: bool, sequences: bool) -> None:
        """Add rows that begin at `first_line`; empty ones are passed over."""
        width = 2 if sequences else self.columns.width
        lines: Sequence[int] = range(first_line, first_line + len(rows))
        if min(map(len, rows)) < width:
            for row, line in zip(rows, lines, strict=True):
                if 0 < len(row) < width:
                    self._refuse(f"expected at least {width} cells, received {len(row)}", line, exact)
            lines = [line for row, line in zip(rows, lines, strict=True) if len(row) >= width]
            rows = [row for row in rows if len(row) >= width]
        if sequences:
            lines = [line for row, line in zip(rows, lines, strict=True) for _ in row[1:]]
            rows = [(row[0], item) for row in rows for item in row[1:]]
        if rows:
            self._add(rows, lines, exact)

    def _add(self, rows: Sequence[_Row], lines: Sequence[int], exact: bool) -> None:
        try:
            self._add_good(rows)
        except BadCellError as error:
            if len(rows) == 1:
                self._refuse(str(error), lines[0], exact)
                return
            half = len(rows) // 2
            self._add(rows[:half], lines[:half], exact)
            self._add(rows[half:], lines[half:], exact)

    def _add_good(self, rows: Sequence[_Row]) -> None:
        columns = self.columns
        users, items = ([row[place] for row in rows] for place in (columns.user, columns.item))
        self.users.check(users)
        self.items.check(items)
        ratings = None if columns.rating is None else ratings_of([row[columns.rating] for row in rows])
        if columns.timestamp is not None:
            self.timestamps.append(timestamps_of([row[columns.timestamp] for row in rows]))
        if ratings is not None:
            self.ratings.append(ratings)
        self.users.add(users)
        self.items.add(items)

    def _refuse(self, reason: str, line: int, exact: bool) -> None:
        self.bad.append(BadRecord(f"{self.file}:{line}" if exact else f"{self.file}, record {line}", reason))

    def interactions(self) -> Interactions:
        """All that was added."""
        return Interactions(
            self.users.column(),
            self.items.column(),
            np.concatenate(self.ratings) if self.ratings else None,
            np.concatenate(self.timestamps) if self.timestamps else None,
            tuple(sorted(self.bad, key=lambda record: int(record.where.rsplit(":", 1)[-1].rsplit(" ", 1)[-1]))),
        )
