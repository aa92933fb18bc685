"""Interactions in Parquet files, read with pyarrow batch by batch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from recsys.columns import Place, find_columns
from recsys.interactions import Interactions
from shared.examples import BadRecord

logger = logging.getLogger(__name__)

_BATCH = 1 << 20


def read_parquet(file: Path, given: dict[str, Place]) -> Interactions:
    """Interactions in a Parquet file; ids are int where the column is of integers, else str.

    Args:
        file: the path.
        given: columns by role, a name or a number, or None.

    Raises:
        ImportError: without pyarrow; the message says how to install it.
        ValueError: for a file that is no Parquet, or whose columns are not found.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"Reading {file} needs pyarrow: pip install 'triptych[parquet]'") from error
    try:
        table = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{file} cannot be read as Parquet: {error}") from error
    names = table.schema_arrow.names
    columns = find_columns(names, len(names), given, str(file))
    logger.info("%s: %s", file, columns.describe())
    places = {"users": columns.user, "items": columns.item, "ratings": columns.rating, "timestamps": columns.timestamp}
    wanted = {role: names[place] for role, place in places.items() if place is not None}
    parts: dict[str, list[np.ndarray]] = {role: [] for role in wanted}
    shared: dict[str, str] = {}  # one str object for each distinct id, however often it occurs
    bad: list[BadRecord] = []
    first = 0
    for batch in table.iter_batches(_BATCH, columns=list(wanted.values())):
        arrays = {role: _plain(batch.column(name), shared) for role, name in wanted.items()}
        reasons = _reasons(arrays)
        bad += [BadRecord(f"{file}, row {first + row}", reason) for row, reason in sorted(reasons.items())]
        good = np.ones(len(batch), bool)
        good[list(reasons)] = False
        for role, (values, _) in arrays.items():
            parts[role].append(values[good])
        first += len(batch)
    joined: dict[str, Any] = {role: np.concatenate(arrays) if arrays else [] for role, arrays in parts.items()}
    for role in {"users", "items"}:
        joined[role] = _ids(joined[role])
    if "timestamps" in joined:
        joined["timestamps"] = np.asarray(joined["timestamps"], np.int64)
    return Interactions(**joined, bad_records=tuple(bad))


def _plain(column: Any, shared: dict[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """A column's values, and which of them are missing; empty texts are."""
    import pyarrow
    from pyarrow import types

    if types.is_string(column.type) or types.is_large_string(column.type):
        column = column.dictionary_encode()
    missing = column.is_null().to_numpy(zero_copy_only=False)
    if types.is_dictionary(column.type):
        entries = column.dictionary.to_numpy(zero_copy_only=False)
        if entries.dtype == object:
            texts: list[str | None] = [shared.setdefault(entry, entry) for entry in entries.tolist()]
            entries = np.array(texts or [None], object)
        places = column.indices.fill_null(0).to_numpy(zero_copy_only=False)
        values = entries[places]
        if entries.dtype == object:
            missing = missing | np.array([entry is None or entry == "" for entry in entries.tolist()], bool)[places]
        return values, missing
    if types.is_temporal(column.type):
        column = column.cast(pyarrow.int64())
    if missing.any() and types.is_integer(column.type):
        column = column.fill_null(0)
    return column.to_numpy(zero_copy_only=False), missing


def _reasons(arrays: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[int, str]:
    """Why a row cannot be used, by its number in the batch."""
    reasons: dict[int, str] = {}
    for role, (values, missing) in arrays.items():
        wrong = missing.copy()
        if values.dtype.kind == "f":
            wrong |= ~np.isfinite(values)
            if role != "ratings":
                wrong |= values != np.floor(values)
        for row in np.flatnonzero(wrong).tolist():
            shown = "" if missing[row] else f": {values[row]}"
            reasons.setdefault(row, f"the {role[:-1]} is missing or cannot be used{shown}")
    return reasons


def _ids(column: Any) -> Any:
    if isinstance(column, np.ndarray) and column.dtype.kind == "f":  # integers with gaps, as pandas writes them
        return column.astype(np.int64)
    return column
