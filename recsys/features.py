"""What is known of users, items or ranking examples: tables of features in columns.

A column is of one of four kinds:

    kind           what a row has                                missing    kept as
    categorical    one text, whole number or bool                None, ""   `Categories`: texts and their numbers
    numeric        a number                                      None, NaN  `Numbers`: float64
    multi_valued   any number of categories, as genres are       nothing    `Lists`: as Categories, with offsets
    embedding      a vector made elsewhere, of fixed width       NaN        `Embeddings`: float32 (N, D)

Categories are texts inside, whatever they were: 7 is "7", True is "true". `FeatureEncoder` (recsys.feature_encoder)
learns vocabularies and scales from a table, and turns tables into the arrays that networks take.

How a two-tower model uses them. Users and items have a table each, with `ids`. `aligned` brings it into the order of an
`IdIndex`; ids that the table lacks get a row where everything is missing. Encoded once, a batch is a matter of rows:

    table = features.aligned(items.entries)                  # row n is item number n
    encoder = FeatureEncoder.fit(table, min_count=2)         # kept with the model: encoder.save(file)
    arrays = encoder.encode(table.take(np.r_[:len(table), -1]))   # one more row: -1 is a row without anything
    batch = {name: array[numbers] for name, array in arrays.items()}  # numbers of items, -1 for unknown ones

and in the tower `FeatureEmbedding(encoder.layout, dim)` (recsys.models.feature_embedding) makes vectors of them:

    flat = embedding.flat(batch)                             # (B, embedding.flat_width), float32; dense layers follow

In an export, `GraphEncoder(encoder)` (recsys.models.feature_graph) does in plain TensorFlow what `encode` does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import numpy as np

from recsys.ids import IdIndex, id_column
from shared.examples import BadRecord

Kind: TypeAlias = Literal["categorical", "numeric", "multi_valued", "embedding"]
# What categories were before they became texts; exports take them in this form.
Form: TypeAlias = Literal["str", "int", "bool"]

KINDS: tuple[Kind, ...] = get_args(Kind)
MISSING = -1


@dataclass(frozen=True, eq=False)
class Categories:
    """One category a row: `entries` are distinct texts, `codes` (N,) int32 their numbers, -1 for missing."""

    entries: tuple[str, ...]
    codes: np.ndarray
    form: Form = "str"
    kind: ClassVar[Kind] = "categorical"

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, rows: np.ndarray) -> Categories:
        """The categories of these rows; row -1 has none."""
        return Categories(self.entries, _taken(self.codes, rows, MISSING), self.form)


@dataclass(frozen=True, eq=False)
class Numbers:
    """One number a row: `values` (N,) float64, finite, NaN for missing."""

    values: np.ndarray
    kind: ClassVar[Kind] = "numeric"

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: np.ndarray) -> Numbers:
        """The numbers of these rows; that of row -1 is missing."""
        return Numbers(_taken(self.values, rows, np.nan))


@dataclass(frozen=True, eq=False)
class Lists:
    """Several categories a row: those of row n are `codes[offsets[n] : offsets[n + 1]]`, numbers of `entries`."""

    entries: tuple[str, ...]
    codes: np.ndarray
    offsets: np.ndarray
    form: Form = "str"
    kind: ClassVar[Kind] = "multi_valued"

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """How many each row has, int64 (N,)."""
        return np.asarray(np.diff(self.offsets))

    def take(self, rows: np.ndarray) -> Lists:
        """The lists of these rows; that of row -1 is empty."""
        lengths = _taken(self.lengths, rows, 0)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        places = np.repeat(self.offsets[np.maximum(rows, 0)] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Lists(self.entries, self.codes[places], offsets, self.form)


@dataclass(frozen=True, eq=False)
class Embeddings:
    """A vector a row: `values` (N, D) float32, finite, or NaN in all of a row for a missing one."""

    values: np.ndarray
    kind: ClassVar[Kind] = "embedding"

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: np.ndarray) -> Embeddings:
        """The vectors of these rows; that of row -1 is missing."""
        return Embeddings(_taken(self.values, rows, np.nan))


Column: TypeAlias = Categories | Numbers | Lists | Embeddings
COLUMN_TYPES = (Categories, Numbers, Lists, Embeddings)


def _taken(values: np.ndarray, rows: np.ndarray, missing: float) -> np.ndarray:
    if len(values) == 0:
        return np.full((len(rows), *values.shape[1:]), missing, values.dtype)
    taken: np.ndarray = values[rows]
    taken[rows < 0] = missing
    return taken


@dataclass(frozen=True, eq=False)
class Features:
    """A table of features: columns by name, and where there are any the rows' ids, or targets to learn.

    Args:
        columns: values by name: lists, arrays, or columns as above. Without `kinds`, texts and bools are categorical,
            numbers numeric, lists of texts or whole numbers multi_valued, and arrays (N, D) of numbers embeddings.
        ids: distinct ids of the rows (of users or items), all str or all int.
        targets: what a ranker learns, one finite number a row: 1 for a click and 0 for none, or a rating.
        kinds: the kind of a column by its name, where it is to be another: whole numbers that are codes, say.
        bad_records: what a reader left out.

    Raises:
        TypeError: for values that are not of their column's kind.
        ValueError: for columns of unequal length, infinite numbers, ids that occur twice, no columns at all.

    Example:
        >>> table = Features({"age": [39, None], "job": ["clerk", "cook"], "tags": [["a", "b"], []]})
        >>> table.kinds
        {'age': 'numeric', 'job': 'categorical', 'tags': 'multi_valued'}
    """

    columns: Mapping[str, Column]
    ids: np.ndarray | None = None
    targets: np.ndarray | None = None
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    bad_records: tuple[BadRecord, ...] = ()

    def __post_init__(self) -> None:
        columns = _columns(self.columns, self.kinds)
        lengths = {name: len(column) for name, column in columns.items()}
        if self.ids is not None:
            ids = id_column(self.ids, "ids")
            lengths["ids"] = len(ids)
            _require_distinct(ids)
            object.__setattr__(self, "ids", ids)
        if self.targets is not None:
            targets = _targets(self.targets)
            lengths["targets"] = len(targets)
            object.__setattr__(self, "targets", targets)
        if len(set(lengths.values())) > 1:
            shown = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise ValueError(f"Columns must have equal lengths; received {shown}.")
        object.__setattr__(self, "columns", MappingProxyType(columns))
        object.__setattr__(self, "kinds", {name: column.kind for name, column in columns.items()})

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name} {kind}" for name, kind in self.kinds.items())
        return f"Features({len(self)} rows: {shown})"

    def take(self, rows: np.ndarray) -> Features:
        """The table with these rows: numbers in the wanted order, or one bool each.

        Row -1 is one where everything is missing; a table with such rows has neither ids nor targets.
        """
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        whole = not (rows < 0).any()
        taken = object.__new__(Features)  # without the checks, which these columns have passed
        columns = {name: column.take(rows) for name, column in self.columns.items()}
        values: dict[str, Any] = {"columns": MappingProxyType(columns), "kinds": self.kinds}
        values["ids"] = None if self.ids is None or not whole else self.ids[rows]
        values["targets"] = None if self.targets is None or not whole else self.targets[rows]
        for name, value in {**values, "bad_records": self.bad_records}.items():
            object.__setattr__(taken, name, value)
        return taken

    def rows(self) -> Iterator[dict[str, Any]]:
        """Each row as a dict: texts, numbers, lists, arrays, None for what is missing."""
        columns = [_listed(column) for column in self.columns.values()]
        for values in zip(*columns, strict=True):
            yield dict(zip(self.columns, values, strict=True))

    def aligned(self, ids: Any) -> Features:
        """The rows of these ids, in their order; an id that the table does not have gets a row with nothing in it.

        Raises:
            ValueError: where the table has no ids.
            TypeError: for ids of another kind than the table's.
        """
        if self.ids is None:
            raise ValueError("This table has no ids to be found by. Give `ids=` to Features, or `id=` to the reader.")
        return self.take(IdIndex(self.ids, "feature table").numbers(ids))


def _listed(column: Column) -> Iterator[Any]:
    """What each row has."""
    if isinstance(column, Numbers):
        return (None if value != value else value for value in column.values.tolist())
    if isinstance(column, Categories):
        return (None if code < 0 else column.entries[code] for code in column.codes.tolist())
    if isinstance(column, Lists):
        parts = np.split(column.codes, column.offsets[1:-1])
        return ([column.entries[code] for code in part.tolist()] for part in parts[: len(column)])
    return (None if np.isnan(vector).any() else vector for vector in column.values)


def features_of_rows(rows: Sequence[Mapping[str, Any]], kinds: Mapping[str, Kind]) -> Features:
    """A table of rows given as dicts: the columns in `kinds`, each of which every row must have.

    Raises:
        TypeError: for a row that is no dict.
        ValueError: for a row without one of the columns.
    """
    for place, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise TypeError(f"Each row must be a dict of features; received {type(row).__name__} at place {place}.")
        absent = kinds.keys() - row.keys()
        if absent:
            raise ValueError(
                f"Row {place} has no {sorted(absent)[0]!r}; the features are {', '.join(kinds)}. Give None for what is "
                "not known."
            )
    columns = {name: column_of([row[name] for row in rows], kind, name) for name, kind in kinds.items()}
    return Features(columns)


# Values to columns.


def column_of(values: Any, kind: Kind | None, name: str) -> Column:
    """Values as a column of a kind; of the kind that they look like where that is None.

    Raises:
        TypeError: for values that are not of this kind.
        ValueError: for infinite numbers, and embeddings of different width.
    """
    if isinstance(values, COLUMN_TYPES):
        return _converted(values, kind, name)
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise TypeError(f"Column {name!r} must be a list or an array; received {type(values).__name__}.")
    if isinstance(values, np.ndarray):
        if values.ndim == 2 and values.dtype.kind in "fiu" and kind in (None, "embedding"):
            return Embeddings(_vectors(values.astype(np.float32), name))
        if values.ndim == 1 and values.dtype.kind in "fiu" and kind in (None, "numeric"):
            return Numbers(_finite(values.astype(np.float64), name))
        values = values.tolist()
    listed = list(values)
    kind = kind or _kind_of(listed, name)
    if kind == "numeric":
        return Numbers(_finite(_numbers(listed, name), name))
    if kind == "categorical":
        return Categories(*_coded(listed, name))
    if kind == "multi_valued":
        return _lists(listed, name)
    return _embeddings(listed, name)


def _columns(columns: Any, kinds: Mapping[str, Kind]) -> dict[str, Column]:
    if not isinstance(columns, Mapping):
        raise TypeError(f"`columns` must be a dict of columns by name; received {type(columns).__name__}.")
    if not columns:
        raise ValueError("A table of features must have a column; received none.")
    for name, kind in kinds.items():
        if name not in columns:
            raise ValueError(f"`kinds` names {name!r}, which is no column; there are {', '.join(map(str, columns))}.")
        if kind not in KINDS:
            raise ValueError(f"A kind must be one of {', '.join(KINDS)}; received {kind!r} for {name!r}.")
    return {str(name): column_of(values, kinds.get(name), str(name)) for name, values in columns.items()}


def _require_distinct(ids: np.ndarray) -> None:
    seen = set()
    for value in ids.tolist():
        if value in seen:
            raise ValueError(f"`ids` must be distinct; {value!r} occurs more than once. Keep one row for each.")
        seen.add(value)


def _targets(values: Any) -> np.ndarray:
    try:
        targets = np.asarray(values, np.float32)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`targets` must be numbers, 0 and 1 or ratings; received {_shown(values)}.") from error
    if targets.ndim != 1:
        raise ValueError(f"`targets` must be one-dimensional; received an array of shape {targets.shape}.")
    wrong = np.flatnonzero(~np.isfinite(targets))
    if len(wrong):
        raise ValueError(
            f"`targets` must be finite; {len(wrong)} are not, the first at row {wrong[0]}. Leave such rows out, or "
            "read the file with `target=`, which does and reports them."
        )
    return targets


def _shown(values: Any) -> str:
    return repr(values[:1] if isinstance(values, list | np.ndarray) else values)


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and value != value)


def _kind_of(values: list[Any], name: str) -> Kind:
    """What a column's first value that is not missing looks like."""
    first = next((value for value in values if not _is_missing(value)), None)
    if isinstance(first, str | bytes | bool | np.bool_):
        return "categorical"
    if first is None or isinstance(first, int | float | np.number):
        return "numeric"
    if isinstance(first, np.ndarray):
        return "embedding" if first.dtype.kind == "f" else "multi_valued"
    if isinstance(first, Iterable) and not isinstance(first, Mapping):
        inner = next((item for value in values if not _is_missing(value) for item in value), "")
        return "embedding" if isinstance(inner, float | np.floating) else "multi_valued"
    raise TypeError(f"Column {name!r} holds {type(first).__name__}; expected texts, numbers, or lists of these.")


def _numbers(values: list[Any], name: str) -> np.ndarray:
    try:
        return np.array([np.nan if _is_missing(value) else value for value in values], np.float64).reshape(len(values))
    except (TypeError, ValueError, OverflowError):
        for place, value in enumerate(values):
            if not _is_missing(value) and not isinstance(value, int | float | np.number):
                raise TypeError(
                    f"Column {name!r} is numeric; received {value!r} ({type(value).__name__}) at row {place}."
                ) from None
        raise


def _finite(values: np.ndarray, name: str) -> np.ndarray:
    wrong = np.flatnonzero(np.isinf(values) | (np.abs(values) > np.finfo(np.float32).max))
    if len(wrong):
        raise ValueError(
            f"Column {name!r} must hold finite numbers within float32; {len(wrong)} are not, the first at row "
            f"{wrong[0]}: {values[wrong[0]]:g}. Give None or NaN for what is not known."
        )
    return values


def _text(value: Any, name: str) -> str:
    """A category as text."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))  # whole numbers of a column with gaps, as pandas keeps them
    raise TypeError(
        f"Column {name!r} holds categories: texts, whole numbers or bools; received {value!r} ({type(value).__name__})."
    )


# Whole numbers as pandas writes a column of them that has gaps.
_WHOLE = re.compile(r"(0|-?[1-9]\d{0,17})(\.0+)?")


def plain_text(text: str) -> str:
    """A category as it is spelled where it comes as a value: True as true, 7.0 as 7; other texts as they are."""
    if text.lower() in ("true", "false"):
        return text.lower()
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else text


def form_of_texts(texts: Sequence[str]) -> Form:
    """What a file's categories were: bools, whole numbers (where one is written as 7.0), or texts."""
    if texts and all(text.lower() in ("true", "false") for text in texts):
        return "bool"
    whole = [_WHOLE.fullmatch(text) for text in texts]
    return "int" if all(whole) and any(match and match[2] for match in whole) else "str"


def _form_of(values: Iterable[Any]) -> Form:
    kinds = {type(value) for value in values}
    if kinds and kinds <= {bool, np.bool_}:
        return "bool"
    numeric = all(issubclass(kind, int | float | np.number) and kind is not bool for kind in kinds)
    return "int" if kinds and numeric else "str"


def _coded(values: list[Any], name: str) -> tuple[tuple[str, ...], np.ndarray, Form]:
    """Distinct texts in the order of their first occurrence, the number of each value (-1 for missing), and the form.

    True, 1 and 1.0 are equal as keys: a column that mixes them is taken by what comes first.
    """
    try:
        distinct = dict.fromkeys(values)
    except TypeError:
        odd = next(value for value in values if isinstance(value, list | dict | set | np.ndarray))
        raise TypeError(f"Column {name!r} holds one category a row; received {odd!r}.") from None
    given = [value for value in distinct if not _is_missing(value)]
    entries: dict[str, int] = {}
    places: dict[Any, int] = {value: entries.setdefault(_text(value, name), len(entries)) for value in given}
    codes = np.fromiter((places.get(value, MISSING) for value in values), np.int32, len(values))
    return tuple(entries), codes, _form_of(given)


def _lists(values: list[Any], name: str) -> Lists:
    rows: list[list[Any]] = []
    for place, value in enumerate(values):
        if isinstance(value, str | bytes) and value:
            raise TypeError(
                f"Column {name!r} is multi_valued: a list a row; received {value!r} at row {place}. Split it first."
            )
        if not _is_missing(value) and not isinstance(value, Iterable):
            raise TypeError(f"Column {name!r} is multi_valued: a list a row; received {value!r} at row {place}.")
        rows.append([] if _is_missing(value) else [item for item in value if not _is_missing(item)])
    entries, codes, form = _coded([item for row in rows for item in row], name)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)])
    return Lists(entries, codes, offsets, form)


def _embeddings(values: list[Any], name: str) -> Embeddings:
    widths = {len(value) for value in values if not _is_missing(value)}
    if len(widths) > 1:
        raise ValueError(f"The vectors of column {name!r} must have one width; received {sorted(widths)}.")
    width = widths.pop() if widths else 0
    array = np.full((len(values), width), np.nan, np.float32)
    for row, value in enumerate(values):
        if not _is_missing(value):
            array[row] = value
    return Embeddings(_vectors(array, name))


def _vectors(values: np.ndarray, name: str) -> np.ndarray:
    """Vectors whose rows are finite or NaN as a whole."""
    bad = ~np.isfinite(values)
    mixed = np.flatnonzero(bad.any(axis=1) & ~np.isnan(values).all(axis=1))
    if len(mixed):
        raise ValueError(
            f"The vectors of column {name!r} must be finite; {len(mixed)} are not, the first at row {mixed[0]}. Give "
            "None for one that is not known."
        )
    return values


def _converted(column: Column, kind: Kind | None, name: str) -> Column:
    """A column as one of another kind, where nothing is lost by it."""
    if kind is None or column.kind == kind:
        return column
    if isinstance(column, Numbers) and kind == "categorical":
        return Categories(*_coded(column.values.tolist(), name))
    if isinstance(column, Categories) and kind == "multi_valued":
        lengths = (column.codes >= 0).astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return Lists(column.entries, column.codes[column.codes >= 0], offsets, column.form)
    if isinstance(column, Categories) and kind == "numeric" and set(column.codes.tolist()) <= {MISSING}:
        return Numbers(np.full(len(column), np.nan))
    if isinstance(column, Categories) and kind == "numeric" and column.form != "str":
        words = {"true": 1.0, "false": 0.0}
        values = np.array([*(words[e] if e in words else float(e) for e in column.entries), np.nan])
        return Numbers(values[column.codes])
    raise TypeError(f"Column {name!r} must be {kind}; received {column.kind} values.")
