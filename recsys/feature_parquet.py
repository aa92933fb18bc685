"""Features in Parquet files, whose columns have types of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys.feature_columns import BadRows, TextColumn, as_cell, ids_of, joined_features, target_of, usual
from recsys.features import Categories, Column, Embeddings, Features, Lists, Numbers, column_of

if TYPE_CHECKING:
    from recsys.feature_tables import Table


def read_parquet_features(table: Table) -> Features:
    """The rows of a file.

    Raises:
        ImportError: without pyarrow; the message says how to install it.
        ValueError: for a file that is no Parquet, that lacks columns, or has a column of times or durations.
        TypeError: for a column of a type that is no feature, such as a struct.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"Reading {table.file} needs pyarrow: pip install 'triptych[parquet]'") from error
    try:
        names = pyarrow.parquet.ParquetFile(table.file).schema_arrow.names
        table.checked_names(names)
        read = pyarrow.parquet.read_table(table.file, columns=[name for name in names if name not in table.drop])
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{table.file} cannot be read as Parquet: {error}") from error
    bad = BadRows(table.file, ", row ")
    bad.lines = np.arange(read.num_rows)
    columns: dict[str, Column] = {}
    for name in read.column_names:
        if table.is_feature(name):
            made = _column(read.column(name).combine_chunks(), name, table.missing, bad)
            columns[name] = column_of(made, table.kinds.get(name), name)
    cells = {name: _texts(read.column(name)) for name in (table.id, table.target) if name is not None}
    for column in cells.values():
        column.finish(table.missing)
    ids = None if table.id is None else ids_of(cells[table.id], table.id, bad, table.ids)
    targets = None
    if table.target is not None:
        targets = target_of(cells[table.target], table.target, table.positive, bad, table.max_bad_share)
    return joined_features(columns, ids, targets, bad)


def _column(array: Any, name: str, missing: Sequence[str], bad: BadRows) -> Column:
    import pyarrow
    import pyarrow.types as types

    kind = array.type
    if types.is_null(kind):
        return Numbers(np.full(len(array), np.nan))
    if types.is_dictionary(kind) or types.is_string(kind) or types.is_large_string(kind) or types.is_boolean(kind):
        return _categories(array, missing)
    if types.is_time(kind) or types.is_duration(kind):
        raise ValueError(
            f"{bad.file}: column {name!r} is of type {kind}, which is no feature. Leave it out with `drop`, or make a "
            "number of it, such as seconds."
        )
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_temporal(kind):
        if types.is_temporal(kind):
            array = array.cast(pyarrow.timestamp("s"), safe=False).cast(pyarrow.int64())
        values = array.cast(pyarrow.float64(), safe=False).to_numpy(zero_copy_only=False)
        return Numbers(_finite(np.array(values), name, bad))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _vectors(array, name, bad) if types.is_floating(kind.value_type) else _lists(array)
    raise TypeError(f"{bad.file}: column {name!r} is of type {kind}, which is no feature. Leave it out with `drop`.")


def _categories(array: Any, missing: Sequence[str]) -> Categories:
    import pyarrow

    form = "bool" if pyarrow.types.is_boolean(array.type) else "str"
    if not pyarrow.types.is_dictionary(array.type):
        array = array.cast(pyarrow.string()).dictionary_encode()
    codes = array.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    entries = ["" if entry is None else entry for entry in array.dictionary.cast(pyarrow.string()).to_pylist()]
    known: dict[str, int] = {}
    none = {"", *missing}
    numbers = [-1 if entry in none else known.setdefault(entry, len(known)) for entry in entries]
    return Categories(tuple(known), np.array([*numbers, -1], np.int32)[codes], form)  # type: ignore[arg-type]


def _finite(values: np.ndarray, name: str, bad: BadRows) -> np.ndarray:
    for row in np.flatnonzero(np.abs(values) > np.finfo(np.float32).max).tolist():
        bad.refuse(row, f"column {name!r} must be finite, within float32; it is {values[row]}")
        values[row] = np.nan
    return values


def _lists(array: Any) -> Lists:
    made = column_of(array.to_pylist(), "multi_valued", "lists")
    assert isinstance(made, Lists)
    return made


def _vectors(array: Any, name: str, bad: BadRows) -> Embeddings:
    rows = array.to_pylist()
    widths = [len(row) for row in rows if row is not None]
    width = usual(widths)
    values = np.full((len(rows), width), np.nan, np.float32)
    for place, row in enumerate(rows):
        if row is not None and len(row) == width and None not in row and np.isfinite(row).all():
            values[place] = row
        elif row is not None:
            bad.refuse(place, f"column {name!r} must be a list of {width} finite numbers")
    return Embeddings(values)


def _texts(array: Any) -> TextColumn:
    """Ids or targets as cells."""
    column = TextColumn()
    column.add([as_cell(value) for value in array.to_pylist()])
    return column
