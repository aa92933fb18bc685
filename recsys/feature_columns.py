"""Cells of files as columns of features, and rows that cannot be used."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from recsys.features import (
    MISSING,
    Categories,
    Column,
    Embeddings,
    Features,
    Kind,
    Lists,
    Numbers,
    form_of_texts,
    plain_text,
)
from shared.examples import BadRecord

IdKind: TypeAlias = Literal["auto", "str", "int"]

# Cells that say that nothing is known.
MISSING_TEXTS = ("", "?", "NA", "NaN", "nan", "null", "NULL", "\\N")
# Numbers as they are commonly written; 007 is a code.
_NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)?(\.\d*)?([eE][+-]?\d+)?|[+-]?(inf|infinity)", re.IGNORECASE)
_WORDS = {"true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0}


def is_number(text: str) -> bool:
    """Whether a cell is a number, infinite ones too, and not a code such as 007."""
    try:
        float(text)
    except ValueError:
        return False
    return _NUMBER.fullmatch(text) is not None


class BadRows:
    """Rows of a table that cannot be used, with the first reason of each.

    `lines` are the lines of the rows that are in columns; `word` stands between the file's name and a line's number.
    """

    def __init__(self, file: Path, word: str = ":") -> None:
        self.file = file
        self.lines = np.zeros(0, np.int64)
        self._word = word
        self._reasons: dict[int, str] = {}
        self._rows: set[int] = set()

    def refuse_line(self, line: int, reason: str) -> None:
        """Note a line that is in no column."""
        self._reasons.setdefault(line, reason)

    def refuse(self, row: int, reason: str) -> None:
        """Note a row of the columns, which will be left out."""
        self._rows.add(row)
        self._reasons.setdefault(int(self.lines[row]), reason)

    @property
    def good(self) -> np.ndarray:
        """Which rows of the columns can be used, bool (N,)."""
        good = np.ones(len(self.lines), bool)
        good[list(self._rows)] = False
        return good

    def records(self) -> tuple[BadRecord, ...]:
        """All of them, in the order of the file."""
        return tuple(
            BadRecord(f"{self.file}{self._word}{line}", reason) for line, reason in sorted(self._reasons.items())
        )


class TextColumn:
    """A column of cells: distinct texts, and the number of each row's, as it grows part by part."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._parts: list[np.ndarray] = []
        self.entries: list[str] = []
        self.codes = np.zeros(0, np.int32)

    def add(self, cells: Sequence[str]) -> None:
        """Append cells."""
        places = self._places
        for cell in set(cells) - places.keys():
            places[cell] = len(places)
        self._parts.append(np.fromiter(map(places.__getitem__, cells), np.int32, len(cells)))

    def finish(self, missing: Sequence[str]) -> None:
        """Take off white space around texts; those in `missing` get the code -1."""
        codes = np.concatenate(self._parts) if self._parts else self.codes
        none = set(missing)
        stripped: dict[str, int] = {}
        numbers = np.full(len(self._places) + 1, MISSING, np.int32)
        for text, place in self._places.items():
            plain = text.strip()
            if plain not in none:
                numbers[place] = stripped.setdefault(plain, len(stripped))
        self.entries, self.codes = list(stripped), numbers[codes]
        self._places, self._parts = {}, []

    def kind(self, separator: str, tolerance: float) -> Kind:
        """What the column looks like; numeric also where at most `tolerance` of its cells are no numbers."""
        odd = np.array([not is_number(entry) for entry in self.entries], bool)
        known = self.codes[self.codes >= 0]
        if np.count_nonzero(odd[known]) <= tolerance * len(known) and not odd.all():
            return "numeric"
        return "multi_valued" if separator and any(separator in entry for entry in self.entries) else "categorical"

    def made(self, kind: Kind, separator: str, name: str, bad: BadRows) -> Column:
        """The column as one of a kind; rows whose cells it cannot hold are noted in `bad`."""
        if kind == "numeric":
            return Numbers(self.numbers(name, bad))
        self._refuse_no_text(name, bad)
        if kind == "categorical":
            return self._categories()
        if kind == "multi_valued":
            return self._lists(separator)
        return self._embeddings(separator, name, bad)

    def numbers(self, name: str, bad: BadRows) -> np.ndarray:
        """Numbers of all rows, float64, NaN for missing ones."""
        values = np.full(len(self.entries) + 1, np.nan)
        for place, entry in enumerate(self.entries):
            try:
                values[place] = float(entry)
            except ValueError:
                self._refuse(place, f"column {name!r} must be a number; it is {entry!r}", bad)
        limit = np.finfo(np.float32).max
        for place in np.flatnonzero(np.abs(values) > limit).tolist():
            self._refuse(place, f"column {name!r} must be finite, within float32; it is {self.entries[place]!r}", bad)
            values[place] = np.nan
        return values[self.codes]

    def refuse_missing(self, name: str, what: str, bad: BadRows) -> None:
        """Note rows without a cell."""
        for row in np.flatnonzero(self.codes < 0).tolist():
            bad.refuse(row, f"the {what} (column {name!r}) is missing")

    def _refuse_no_text(self, name: str, bad: BadRows) -> None:
        try:
            "".join(self.entries).encode()
        except UnicodeEncodeError:
            for place, entry in enumerate(self.entries):
                if any("\ud800" <= character <= "\udfff" for character in entry):
                    self._refuse(place, f"column {name!r} is not valid UTF-8", bad)
                    self.entries[place] = entry.encode("utf-8", "replace").decode()

    def _refuse(self, place: int, reason: str, bad: BadRows) -> None:
        for row in np.flatnonzero(self.codes == place).tolist():
            bad.refuse(row, reason)

    def _categories(self) -> Categories:
        form = form_of_texts(self.entries)
        if form == "str":
            return Categories(tuple(self.entries), self.codes)
        places: dict[str, int] = {}
        numbers = [places.setdefault(plain_text(entry), len(places)) for entry in self.entries]
        return Categories(tuple(places), np.array([*numbers, MISSING], np.int32)[self.codes], form)

    def _lists(self, separator: str) -> Lists:
        places: dict[str, int] = {}
        rows = [
            [places.setdefault(part.strip(), len(places)) for part in entry.split(separator) if part.strip()]
            for entry in self.entries
        ]
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)])
        flat = np.fromiter((code for row in rows for code in row), np.int32, int(offsets[-1]))
        return Lists(tuple(places), flat, offsets).take(self.codes.astype(np.int64))

    def _embeddings(self, separator: str, name: str, bad: BadRows) -> Embeddings:
        widths = [len(entry.split(separator)) for entry in self.entries]
        width = usual(widths)
        values = np.full((len(self.entries) + 1, width), np.nan, np.float32)
        for place, entry in enumerate(self.entries):
            try:
                vector = [float(part) for part in entry.split(separator)]
                if len(vector) != width or not all(map(math.isfinite, vector)):
                    raise ValueError
                values[place] = vector
            except ValueError:
                self._refuse(place, f"column {name!r} must be {width} finite numbers with {separator!r} between", bad)
        return Embeddings(values[self.codes])


def as_cell(value: Any) -> str:
    """An id or a target that is no text yet as a cell."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # whole numbers of a column with gaps, as pandas keeps them
    return "" if value is None else str(value)


def ids_of(column: TextColumn, name: str, bad: BadRows, kind: IdKind = "auto") -> np.ndarray:
    """Distinct ids of all rows: of one kind, or int64 where each is written as Python would write it, else str."""
    column.refuse_missing(name, "id", bad)
    whole = [re.fullmatch(r"0|-?[1-9]\d{0,17}", entry) is not None for entry in column.entries]
    if kind == "int":
        for place in np.flatnonzero(~np.array(whole, bool)).tolist():
            column._refuse(place, f"the id {column.entries[place]!r} must be a whole number", bad)
            column.entries[place] = "0"  # left out with its row
    seen = np.zeros(len(column.entries), bool)
    for row, code in enumerate(column.codes.tolist()):
        if code >= 0 and seen[code]:
            bad.refuse(row, f"the id {column.entries[code]!r} was there before; the first row counts")
        elif code >= 0:
            seen[code] = True
    column._refuse_no_text(name, bad)
    canonical = kind == "int" or (kind == "auto" and all(whole))
    entries: list[Any] = [*(map(int, column.entries) if canonical else column.entries), 0 if canonical else "-"]
    array = np.empty(len(entries), np.int64 if canonical else object)
    array[:] = entries
    return array[column.codes]


def target_of(column: TextColumn, name: str, positive: str | None, bad: BadRows, tolerance: float) -> np.ndarray:
    """Targets of all rows, float32.

    Raises:
        ValueError: for texts without `positive`, and for a `positive` that does not occur.
    """
    column.refuse_missing(name, "target", bad)
    labels = [entry.rstrip(".").strip() if not is_number(entry) else entry for entry in column.entries]
    if positive is not None:
        if positive not in labels:
            raise ValueError(f"{bad.file}: no target is {positive!r}; there are {', '.join(sorted(set(labels))[:9])}.")
        values = [float(label == positive) for label in labels]
        return np.array([*values, np.nan], np.float32)[column.codes]
    words = all(label.lower() in _WORDS for label in labels)
    if words and labels:
        return np.array([*(_WORDS[label.lower()] for label in labels), np.nan], np.float32)[column.codes]
    if column.kind("", tolerance) != "numeric":
        raise ValueError(
            f"{bad.file}: the targets are texts: {', '.join(sorted(set(labels))[:9])}. Say which of them counts as 1 "
            "(`positive=`, on the command line --positive)."
        )
    return column.numbers(name, bad).astype(np.float32)


def usual(widths: Sequence[int]) -> int:
    """The width of most vectors, the first of several; 0 where there are none."""
    return Counter(widths).most_common(1)[0][0] if widths else 0


def no_rows(bad: BadRows) -> Features:
    """What a file without a row gives."""
    return Features({"none": Numbers(np.zeros(0))}, bad_records=bad.records())


def joined_features(
    columns: Mapping[str, Column], ids: np.ndarray | None, targets: np.ndarray | None, bad: BadRows
) -> Features:
    """A table of the rows that can be used.

    Raises:
        ValueError: where no column is left that is a feature.
    """
    if not columns:
        raise ValueError(f"{bad.file} has no column of features beside ids, targets and what is dropped.")
    rows = np.flatnonzero(bad.good)
    taken = {name: column.take(rows) for name, column in columns.items()}
    return Features(
        taken,
        ids=None if ids is None else ids[rows],
        targets=None if targets is None else targets[rows],
        bad_records=bad.records(),
    )
