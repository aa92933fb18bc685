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
    bad: list[BadRecord] = []
    first = 0
    for batch in table.iter_batches(_BATCH, columns=list(wanted.values())):
        arrays = {role: _plain(batch.column(name)) for role, name in wanted.items()}
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


def _plain(column: Any) -> tuple[np.ndarray, np.ndarray]:
    """A column's values, and which of them are missing."""
    import pyarrow

    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pyarrow.types.is_temporal(column.type):
        column = column.cast(pyarrow.int64())
    missing = column.is_null().to_numpy(zero_copy_only=False)
    if missing.any() and pyarrow.types.is_integer(column.type):
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
        elif values.dtype == object and role in ("users", "items"):
            wrong |= np.array([value is None or value == "" for value in values], bool)
        for row in np.flatnonzero(wrong).tolist():
            reasons.setdefault(row, f"the {role[:-1]} is missing or cannot be used: {values[row]!r}")
    return reasons


def _ids(column: Any) -> Any:
    if isinstance(column, np.ndarray) and column.dtype.kind == "f":  # integers with gaps, as pandas writes them
        return column.astype(np.int64)
    return column
