"""Features in files of JSON lines: an object a line, by whose keys columns are known."""

from __future__ import annotations

import json
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from recsys.feature_columns import BadRows, TextColumn, as_cell, ids_of, joined_features, no_rows, target_of, usual
from recsys.features import Column, Features, Kind, column_of

if TYPE_CHECKING:
    from recsys.feature_tables import Table

_KINDS: dict[type, Kind] = {str: "categorical", bool: "categorical", int: "numeric", float: "numeric"}


def read_json_features(table: Table, stream: IO[str]) -> Features:
    """The rows of a file; a key that a row lacks is a missing value."""
    bad = BadRows(table.file)
    rows, lines = [], []
    for line, text in enumerate(stream, start=1):
        if text.strip():
            row = _row(text, line, bad)
            if row is not None:
                rows.append(row)
                lines.append(line)
    bad.lines = np.array(lines, np.int64)
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        return no_rows(bad)
    table.checked_names(names)
    columns: dict[str, Column] = {}
    for name in names:
        if table.is_feature(name):
            values = [_known(row.get(name), table.missing) for row in rows]
            kind = table.kinds.get(name) or _kind_of(values)
            columns[name] = column_of(_checked(values, kind, name, bad), kind, name)
    cells = {name: _texts(rows, name, table.missing) for name in (table.id, table.target) if name is not None}
    ids = None if table.id is None else ids_of(cells[table.id], table.id, bad, table.ids)
    targets = None
    if table.target is not None:
        targets = target_of(cells[table.target], table.target, table.positive, bad, table.max_bad_share)
    return joined_features(columns, ids, targets, bad)


def _row(text: str, line: int, bad: BadRows) -> dict[str, Any] | None:
    try:
        text.encode()
        row = json.loads(text)
    except UnicodeEncodeError:
        bad.refuse_line(line, "not valid UTF-8")
        return None
    except json.JSONDecodeError as error:
        bad.refuse_line(line, f"not valid JSON: {error}")
        return None
    if not isinstance(row, dict):
        bad.refuse_line(line, f"expected a JSON object, received {text.strip()[:40]}")
        return None
    return row


def _known(value: Any, missing: Any) -> Any:
    return None if isinstance(value, str) and value in missing else value


def _kind_of(values: list[Any]) -> Kind:
    """The kind of most values."""
    counts: dict[Kind, int] = {}
    for value in values:
        kind = _kind_of_value(value)
        if kind is not None:
            counts[kind] = counts.get(kind, 0) + 1
    # Whole numbers in some lists and others in others: vectors, some of which happen to be whole.
    if "embedding" in counts:
        counts["embedding"] += counts.pop("multi_valued", 0)
    return max(counts, key=lambda kind: counts[kind]) if counts else "numeric"


def _kind_of_value(value: Any) -> Kind | None:
    if isinstance(value, list):
        return ("embedding" if any(isinstance(item, float) for item in value) else "multi_valued") if value else None
    return _KINDS.get(type(value))


def _checked(values: list[Any], kind: Kind, name: str, bad: BadRows) -> list[Any]:
    """Values of one kind; rows with others are noted in `bad`, and missing here."""
    width = 0
    if kind == "embedding":
        widths = [len(value) for value in values if isinstance(value, list)]
        width = usual(widths)
    checked = []
    for row, value in enumerate(values):
        reason = None if value is None else _objection(value, kind, width)
        if reason is not None:
            bad.refuse(row, f"column {name!r} {reason}; it is {json.dumps(value)[:40]}")
        checked.append(None if reason is not None else value)
    return checked


def _objection(value: Any, kind: Kind, width: int) -> str | None:
    """What is wrong with a value."""
    if kind == "numeric":
        if not isinstance(value, int | float):
            return "must be a number"
        return "must be finite, within float32" if abs(value) > np.finfo(np.float32).max else None
    if kind == "categorical":
        fine = isinstance(value, str | int) or (isinstance(value, float) and (value != value or value.is_integer()))
        return None if fine else "must be a text, a whole number or a bool"
    if not isinstance(value, list):
        return "must be a list"
    if kind == "multi_valued":
        fine = all(isinstance(item, str | int) or item is None for item in value)
        return None if fine else "must be a list of texts or whole numbers"
    fine = len(value) == width and all(isinstance(item, int | float) and np.isfinite(item) for item in value)
    return None if fine else f"must be a list of {width} finite numbers"


def _texts(rows: list[dict[str, Any]], name: str, missing: Any) -> TextColumn:
    """Ids or targets as cells."""
    column = TextColumn()
    column.add([as_cell(row.get(name)) for row in rows])
    column.finish(missing)
    return column
