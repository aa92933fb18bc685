"""Readers: files of features to `Features`.

Cells become texts with numbers first, part by part; what kind a column is, is decided on its distinct texts when all of
the file is read. So the memory that a file takes shows in its columns only.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, get_args

import numpy as np

from recsys.feature_columns import (
    MISSING_TEXTS,
    BadRows,
    IdKind,
    TextColumn,
    ids_of,
    is_number,
    joined_features,
    no_rows,
    target_of,
)
from recsys.features import KINDS, Column, Features, Kind
from shared.examples import existing_file, tolerated

logger = logging.getLogger(__name__)

# Rows that are turned into arrays together.
_PART = 50_000
_DELIMITERS = ("\t", ",", ";", "|")

CRITEO_NUMBERS = tuple(f"I{number}" for number in range(1, 14))
CRITEO_CATEGORIES = tuple(f"C{number}" for number in range(1, 27))


@dataclass(frozen=True, kw_only=True)
class Table:
    """How a file is to be read: see `read_features`."""

    file: Path
    id: str | None = None
    target: str | None = None
    positive: str | None = None
    names: Sequence[str] | None = None
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    drop: Sequence[str] = ()
    delimiter: str | None = None
    separator: str = "|"
    missing: Sequence[str] = MISSING_TEXTS
    max_bad_share: float = 0.01
    ids: IdKind = "auto"

    def checked_names(self, names: Sequence[str]) -> Sequence[str]:
        """The names of the columns, which must have all that the caller speaks of.

        Raises:
            ValueError: for a name that is not there, that occurs twice, or a kind that does not exist.
        """
        twice = sorted({name for name in names if list(names).count(name) > 1})
        if twice:
            raise ValueError(f"{self.file}: the name {twice[0]!r} stands over more than one column.")
        asked = {"id": self.id, "target": self.target} | {f"drop: {name}": name for name in self.drop}
        asked |= {f"kinds: {name}": name for name in self.kinds}
        for role, name in asked.items():
            if name is not None and name not in names:
                raise ValueError(
                    f"{self.file}: there is no column {name!r} (`{role.partition(':')[0]}`); there are "
                    f"{', '.join(map(str, names))}."
                )
        for name, kind in self.kinds.items():
            if kind not in KINDS:
                raise ValueError(f"A kind must be one of {', '.join(KINDS)}; received {kind!r} for {name!r}.")
        return names

    def is_feature(self, name: str) -> bool:
        """Whether a column is one of the features."""
        return name not in (self.id, self.target, *self.drop)


def read_features(
    path: str | Path,
    *,
    id: str | None = None,
    target: str | None = None,
    positive: str | None = None,
    names: Sequence[str] | None = None,
    kinds: Mapping[str, Kind] | None = None,
    drop: Sequence[str] = (),
    delimiter: str | None = None,
    separator: str = "|",
    missing: Sequence[str] = MISSING_TEXTS,
    max_bad_share: float = 0.01,
    ids: IdKind = "auto",
) -> Features:
    """Features in a file: CSV, TSV, JSON lines or Parquet, `.gz` or not.

    Each row is a user, an item, or an example for a ranker. Kinds are found out, and logged: a column is numeric where
    its cells are numbers (but for as many as are tolerated as bad), multi_valued where `separator` occurs, else
    categorical. A cell with a needless 0, as 007, is a code and no number. Whole numbers that are codes must be called
    so, also where fewer than are tolerated have such a 0: `kinds={"zip": "categorical"}`. In JSON lines and Parquet,
    lists of texts or whole numbers are multi_valued, and lists of other numbers embeddings.

    Args:
        path: the file.
        id: column of the rows' ids, distinct.
        target: column of what a ranker learns: 0 and 1, true and false, ratings, or with `positive` texts. It is no
            feature. Rows without it are bad: they cannot be learned from.
        positive: the text of `target` that counts as 1; every other counts as 0. A full stop at the end of a label is
            not looked at.
        names: of the columns, for a file whose first line is data.
        kinds: kinds of columns by name.
        drop: columns that are left out.
        delimiter: between the cells of a line; tab, comma, semicolon or bar where it is not said.
        separator: between the categories of a multi-valued cell.
        missing: cells that say that nothing is known.
        max_bad_share: share of unusable rows that is tolerated: of another number of cells, not UTF-8, a text or an
            infinite number in a numeric column, no id or target. They are left out, logged, and kept in
            `bad_records` with file, line and reason.
        ids: their kind, "str" or "int", as the interactions have it; "auto": all int where each is written as a whole
            number, else str.

    Raises:
        FileNotFoundError: where there is nothing at `path`.
        ValueError: for a file without rows, columns that are not there, or too many bad rows.
        ImportError: for Parquet without pyarrow.
    """
    if ids not in get_args(IdKind):
        raise ValueError(f"`ids` must be one of {', '.join(get_args(IdKind))}; received {ids!r}.")
    table = Table(
        file=existing_file(path), id=id, ids=ids, target=target, positive=positive, names=names, kinds=kinds or {},
        drop=drop, delimiter=delimiter, separator=separator, missing=missing, max_bad_share=max_bad_share,
    )  # fmt: skip
    suffix = Path(table.file.stem).suffix if table.file.suffix == ".gz" else table.file.suffix
    if suffix in (".parquet", ".pq"):
        from recsys.feature_parquet import read_parquet_features

        read = read_parquet_features(table)
    elif suffix in (".jsonl", ".ndjson"):
        from recsys.feature_json import read_json_features

        with _opened(table.file) as stream:
            read = read_json_features(table, stream)
    else:
        with _opened(table.file) as stream:
            read = _read_text(table, stream)
    logger.info("%s: %r", table.file, read)
    return tolerated(read, table.file, max_bad_share, things="rows")


def read_criteo(path: str | Path, *, max_bad_share: float = 0.01) -> Features:
    """Clicks in one of the layouts of Criteo's display advertising data: 13 numbers I1 ... and 26 codes C1 ...

    With a header (label or Label, I1, ..., C26, maybe Id) or, as it was published, tab-separated without one: 40
    columns with the label first, or 39 without it. An empty cell is a missing value. Targets are 1 for a click.

    Raises:
        FileNotFoundError: where there is nothing at `path`.
        ValueError: for a file of another layout, or with more than `max_bad_share` of bad rows.
    """
    file = existing_file(path)
    with _opened(file) as stream:
        first = stream.readline()
    delimiter = "\t" if "\t" in first else ","
    cells = [cell.strip() for cell in first.split(delimiter)]
    columns = (*CRITEO_NUMBERS, *CRITEO_CATEGORIES)
    by_name = {cell.lower(): cell for cell in cells}
    names = None
    target: str | None = by_name.get("label")
    if "i1" not in by_name:
        if len(cells) not in (39, 40):
            raise ValueError(
                f"{file}: expected Criteo's 39 columns, 40 with the label, or a header with I1 to C26; its first line "
                f"has {len(cells)} cells."
            )
        target = "label" if len(cells) == 40 else None
        names = (*(["label"] if target else []), *columns)
    elif not set(columns) <= set(cells):
        raise ValueError(f"{file}: its header lacks {', '.join(sorted(set(columns) - set(cells))[:3])}.")
    kinds: dict[str, Kind] = dict.fromkeys(CRITEO_NUMBERS, "numeric")
    kinds |= dict.fromkeys(CRITEO_CATEGORIES, "categorical")
    drop = [cell for cell in names or cells if cell not in columns and cell != target]
    table = Table(
        file=file, target=target, names=names, kinds=kinds, drop=drop, delimiter=delimiter, missing=("",)
    )  # fmt: skip
    with _opened(file) as stream:
        return tolerated(_read_text(table, stream), file, max_bad_share, things="rows")


def _opened(file: Path) -> IO[str]:
    # Bytes that are no UTF-8 come as surrogates, by which their row is then known as bad.
    if file.suffix == ".gz":
        return gzip.open(file, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="")
    return file.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _read_text(table: Table, stream: IO[str]) -> Features:
    first = next((line for line in stream if line.strip()), "")
    before = 1  # lines before the reader's second
    mark = table.delimiter or next((mark for mark in _DELIMITERS if mark in first), ",")
    reader = csv.reader(itertools.chain([first], stream), delimiter=mark, skipinitialspace=True)
    rows = _numbered_rows(reader, table.file)
    names = table.names
    if names is None:
        names = [cell.strip() for cell in next(rows, (before, []))[1]]
        _check_header(names, table.file)
    if not names:
        return no_rows(BadRows(table.file))
    table.checked_names(names)
    columns = {name: TextColumn() for name in names if name not in table.drop}
    lines: list[np.ndarray] = []
    bad = BadRows(table.file)
    while part := list(itertools.islice(rows, _PART)):
        _add_rows(part, names, columns, lines, bad)
    numbers = np.concatenate(lines) if lines else np.zeros(0, np.int64)
    return _features_of_text(table, columns, numbers, bad)


def _numbered_rows(reader: Any, file: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows with the lines where they end; empty ones are passed over."""
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{file}:{reader.line_num}: not readable as a table ({error}).") from error


def _check_header(names: Sequence[str], file: Path) -> None:
    odd = [name for name in names if not name or is_number(name)]
    if odd:
        raise ValueError(
            f"{file}: the first line is no header: {odd[0]!r} cannot be a name. Give the names of the columns "
            "(`names=`, on the command line --names)."
        )


def _add_rows(
    part: list[tuple[int, list[str]]],
    names: Sequence[str],
    columns: dict[str, TextColumn],
    lines: list[np.ndarray],
    bad: BadRows,
) -> None:
    width = len(names)
    if any(len(row) != width for _, row in part):
        for line, row in part:
            if len(row) != width:
                bad.refuse_line(line, f"expected {width} cells, received {len(row)}")
        part = [pair for pair in part if len(pair[1]) == width]
    if not part:
        return
    lines.append(np.array([line for line, _ in part], np.int64))
    for name, cells in zip(names, zip(*(row for _, row in part), strict=True), strict=True):
        if name in columns:
            columns[name].add(cells)


def _features_of_text(table: Table, columns: dict[str, TextColumn], lines: np.ndarray, bad: BadRows) -> Features:
    bad.lines = lines
    for column in columns.values():
        column.finish(table.missing)
    made: dict[str, Column] = {}
    for name, column in columns.items():
        if table.is_feature(name):
            kind = table.kinds.get(name) or column.kind(table.separator, table.max_bad_share)
            made[name] = column.made(kind, table.separator, name, bad)
    ids = None if table.id is None else ids_of(columns[table.id], table.id, bad, table.ids)
    targets = None
    if table.target is not None:
        targets = target_of(columns[table.target], table.target, table.positive, bad, table.max_bad_share)
    return joined_features(made, ids, targets, bad)
