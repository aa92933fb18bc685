"""Tables of features as the arrays that networks take: vocabularies, hashes and scales, learned from training data.

The arrays of N rows, of which there are those that the table has columns for:

    categories  int32 (N, C)    a number for each categorical column and each bucketed numeric one
    lists       int32 (N, L)    numbers of the multi-valued columns side by side, each filled up with 0
    numbers     float32 (N, W)  numeric columns, their missing indicators, then embedding columns

All numbers of categories are rows of one table, in which each column has a range of its own:

    0                           fills up lists
    first                       missing (lists have no such row: an empty one is 0)
    first + 1                   a category that the vocabulary does not have, or that was rarer than `min_count`
    first + 2 ...               the vocabulary; of a hashed column (first + 1 ...) the buckets

What is hashed goes by `tf.strings.to_hash_bucket_fast` (FarmHash Fingerprint64 modulo buckets), which is the same in
every version and on every machine, and in an exported graph.

A numeric column is standardised, (x - mean) / deviation, within +-10; skewed ones as sign(x) log(1 + |x|) first. What
is missing counts as the mean, with an indicator of 1 where training had such rows. With `buckets`, the number of the
quantile range is a category beside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np

from recsys.features import (
    Categories,
    Column,
    Embeddings,
    Features,
    Form,
    Kind,
    Lists,
    Numbers,
    features_of_rows,
    plain_text,
)

Arrays: TypeAlias = dict[str, np.ndarray]

PADDING = 0
# Standardised numbers are cut off there: one value out of all range must not decide alone.
LIMIT = 10.0
# Skewness (third standardised moment) from which on logarithms are taken, where they are less skewed.
_SKEWED = 2.0
_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class CategoryEncoding:
    """How a categorical or multi-valued column becomes numbers, from `first` on.

    `vocabulary` are the entries with numbers of their own; with `hashed` there are so many buckets instead. `width` is
    the number of places of a multi-valued column, 0 for a categorical one.
    """

    name: str
    form: Form
    vocabulary: tuple[str, ...] = ()
    hashed: int = 0
    width: int = 0
    first: int = 1

    @property
    def missing_rows(self) -> int:
        """Rows of the table for what is missing: 1, or 0 in lists."""
        return 0 if self.width else 1

    @property
    def size(self) -> int:
        """Rows of the table that this column has."""
        return self.missing_rows + (self.hashed or 1 + len(self.vocabulary))

    @cached_property
    def places(self) -> dict[str, int]:
        """The row of each entry of the vocabulary, also by its plain spelling: true for True, 7 for 7.0."""
        start = self.first + self.missing_rows + 1
        rows = dict(zip(self.vocabulary, range(start, start + len(self.vocabulary)), strict=True))
        return {plain_text(entry): row for entry, row in rows.items()} | rows


@dataclass(frozen=True, kw_only=True)
class NumberEncoding:
    """How a numeric column is scaled; `boundaries` of its quantile ranges, whose numbers are from `first` on."""

    name: str
    logarithm: bool
    mean: float
    deviation: float
    indicator: bool
    boundaries: tuple[float, ...] = ()
    first: int = 1

    @property
    def size(self) -> int:
        """Rows of the table that this column has: missing, and the ranges."""
        return 2 + len(self.boundaries) if self.boundaries else 0

    @cached_property
    def cuts(self) -> np.ndarray:
        """The boundaries as an array, float32."""
        return np.array(self.boundaries, np.float32)


@dataclass(frozen=True, kw_only=True)
class EmbeddingEncoding:
    """How an embedding column is scaled: divided by `scale`, the root mean square of the training data."""

    name: str
    width: int
    scale: float
    indicator: bool


@dataclass(frozen=True)
class FeatureLayout:
    """What the arrays hold: all that a network must know of an encoder.

    `num_rows` of the table of categories, `num_categories` (C), `list_widths` (their sum is L), `num_numbers` (W).
    """

    num_rows: int
    num_categories: int
    list_widths: tuple[int, ...]
    num_numbers: int

    @property
    def num_fields(self) -> int:
        """Vectors a row: one for each categorical, bucketed and multi-valued column."""
        return self.num_categories + len(self.list_widths)


@dataclass(frozen=True)
class FeatureEncoder:
    """What was learned of each column; `encode` makes arrays of tables that have the same columns.

    Example:
        >>> table = Features({"age": [39, None, 50], "job": ["clerk", "cook", "clerk"]})
        >>> encoder = FeatureEncoder.fit(table, min_count=2)
        >>> encoder.encode(table)["categories"].tolist()  # missing 1, unknown 2, clerk 3
        [[3], [2], [3]]
    """

    categories: tuple[CategoryEncoding, ...] = ()
    lists: tuple[CategoryEncoding, ...] = ()
    numbers: tuple[NumberEncoding, ...] = ()
    embeddings: tuple[EmbeddingEncoding, ...] = ()
    kinds: Mapping[str, Kind] = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        features: Features,
        *,
        min_count: int = 1,
        max_vocabulary: int = 100_000,
        hash_buckets: int = 0,
        hashed: Mapping[str, int] | None = None,
        max_values: int = 50,
        buckets: int = 0,
    ) -> Self:
        """Learn from training data.

        Args:
            features: the training table; its ids and targets are not looked at.
            min_count: rows (of lists: occurrences) from which on a category gets a number of its own; rarer ones share
                one, which is thereby trained for categories that come later.
            max_vocabulary: the most frequent so many of a column get numbers of their own.
            hash_buckets: columns with more categories than `max_vocabulary` are hashed into so many buckets instead;
                0: their rarer ones are unknown.
            hashed: buckets by column, for columns that are to be hashed however many categories training has.
            max_values: categories of a row of a multi-valued column that are read, the first ones.
            buckets: quantile ranges of a numeric column, whose number is a category beside; 0: none. A value of so
                many rows that it fills a range alone gets one more.

        Raises:
            ValueError: for a table without rows, and for columns in `hashed` that have no categories.
        """
        if not len(features):
            raise ValueError("Features are learned from rows; the table has none.")
        hashed = hashed or {}
        for name in hashed:
            if not isinstance(features.columns.get(name), Categories | Lists):
                raise ValueError(f"`hashed` names {name!r}, which is no column of categories. Leave it out.")
        encodings: dict[type, list[Any]] = {Categories: [], Lists: [], Numbers: [], Embeddings: []}
        first = 1
        for name, column in features.columns.items():
            learned: Any
            if isinstance(column, Categories | Lists):
                learned = _category_encoding(
                    name, column, first, min_count, max_vocabulary, hash_buckets, hashed.get(name, 0), max_values
                )
            elif isinstance(column, Numbers):
                learned = _number_encoding(name, column.values, first, buckets)
            else:
                learned = _embedding_encoding(name, column.values)
            encodings[type(column)].append(learned)
            first += getattr(learned, "size", 0)
        return cls(
            categories=tuple(encodings[Categories]),
            lists=tuple(encodings[Lists]),
            numbers=tuple(encodings[Numbers]),
            embeddings=tuple(encodings[Embeddings]),
            kinds=dict(features.kinds),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that `encode` needs."""
        return tuple(self.kinds)

    @cached_property
    def bucketed(self) -> tuple[NumberEncoding, ...]:
        """The numeric columns that have a range as a category, too."""
        return tuple(number for number in self.numbers if number.boundaries)

    @cached_property
    def layout(self) -> FeatureLayout:
        """What the arrays hold."""
        sizes = [part.size for part in (*self.categories, *self.lists)] + [part.size for part in self.numbers]
        indicators = sum(part.indicator for part in self.numbers) + sum(part.indicator for part in self.embeddings)
        return FeatureLayout(
            num_rows=1 + sum(sizes),
            num_categories=len(self.categories) + len(self.bucketed),
            list_widths=tuple(part.width for part in self.lists),
            num_numbers=len(self.numbers) + indicators + sum(part.width for part in self.embeddings),
        )

    @property
    def field_names(self) -> tuple[str, ...]:
        """The column of each vector, in the order of the vectors."""
        return (
            *(category.name for category in self.categories),
            *(number.name for number in self.bucketed),
            *(category.name for category in self.lists),
        )

    def table(self, data: Any) -> Features:
        """`data` as a table with the encoder's columns in their kinds: a `Features`, columns by name, or rows as dicts.

        Other columns are left out, as are ids.

        Raises:
            TypeError: for something else, and for values that are not of their column's kind.
            ValueError: for a column that is missing.
        """
        if isinstance(data, Features | Mapping):
            columns: Mapping[str, Any] = data.columns if isinstance(data, Features) else data
            absent = [name for name in self.kinds if name not in columns]
            if absent:
                raise ValueError(
                    f"The features lack {', '.join(map(repr, absent))}; there are {', '.join(map(str, columns))}. Give "
                    "the columns of the training set."
                )
            table = Features({name: columns[name] for name in self.kinds}, kinds=self.kinds)
        else:
            table = features_of_rows(data, self.kinds)
        for encoding in self.embeddings:
            column = table.columns[encoding.name]
            assert isinstance(column, Embeddings)
            missing = not column.values.shape[1] and not np.isfinite(column.values).any()
            if column.values.shape[1] != encoding.width and not missing:
                raise ValueError(
                    f"The vectors of column {encoding.name!r} must have width {encoding.width}; received "
                    f"{column.values.shape[1]}."
                )
        return table

    def encode(self, data: Any) -> Arrays:
        """Arrays for the rows of `data`, as the head of this module says.

        Args:
            data: what `table` takes.
        """
        table = self.table(data)
        arrays: Arrays = {}
        if self.layout.num_categories:
            numbers = np.empty((len(table), self.layout.num_categories), np.int32)
            for place, category in enumerate(self.categories):
                column = table.columns[category.name]
                assert isinstance(column, Categories)
                numbers[:, place] = np.append(_entry_numbers(category, column.entries), category.first)[column.codes]
            for place, number in enumerate(self.bucketed, start=len(self.categories)):
                numbers[:, place] = _ranges(number, _values(table, number.name))
            arrays["categories"] = numbers
        if self.lists:
            parts = [_padded(encoding, table.columns[encoding.name]) for encoding in self.lists]
            arrays["lists"] = np.concatenate(parts, axis=1)
        if self.layout.num_numbers:
            arrays["numbers"] = self._numbers(table)
        return arrays

    def _numbers(self, table: Features) -> np.ndarray:
        """Scaled numbers, indicators of missing ones, embeddings: float32 (N, W)."""
        values = [_values(table, number.name) for number in self.numbers]
        parts = [_scaled(number, column)[:, None] for number, column in zip(self.numbers, values, strict=True)]
        missing = [np.isnan(c) for number, c in zip(self.numbers, values, strict=True) if number.indicator]
        vectors = []
        for encoding in self.embeddings:
            column = table.columns[encoding.name]
            assert isinstance(column, Embeddings)
            given = column.values if column.values.shape[1] else np.full((len(table), encoding.width), np.nan)
            gone = np.isnan(given[:, 0])
            vectors.append(np.where(gone[:, None], 0, given / np.float32(encoding.scale)))
            missing += [gone] if encoding.indicator else []
        indicators = [column[:, None] for column in missing]
        return np.concatenate([*parts, *indicators, *vectors], axis=1).astype(np.float32, copy=False)

    def examples(self, count: int) -> Features:
        """Rows made up of what training had, and of what it had not: to try out a network or an export."""
        places = range(count)
        columns: dict[str, Any] = {}
        for category in self.categories:
            known: list[Any] = [*category.vocabulary[: count // 2], None, "0"]
            columns[category.name] = [known[place % len(known)] for place in places]
        for category in self.lists:
            known = [*category.vocabulary[: count // 2], "0"]
            columns[category.name] = [known[: place % (category.width + 2)] for place in places]
        for number in self.numbers:
            spread = number.mean + number.deviation * np.linspace(-2, 2, count)
            values = np.sign(spread) * np.expm1(np.abs(spread)) if number.logarithm else spread
            columns[number.name] = np.where(np.arange(count) % 7 == 6, np.nan, values)
        for embedding in self.embeddings:
            waves = np.sin(np.arange(count * embedding.width)).reshape(count, -1) * embedding.scale
            columns[embedding.name] = np.where(np.arange(count)[:, None] % 5 == 4, np.nan, waves)
        return self.table(columns)

    # Files.

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        groups = {name: getattr(self, name) for name in _ENCODINGS}
        learned = {name: [asdict(encoding) for encoding in group] for name, group in groups.items()}
        return {"schema_version": _SCHEMA, **learned, "kinds": dict(self.kinds)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The encoder with these values.

        Raises:
            ValueError: for values that `to_dict` did not make.
        """
        if values.get("schema_version") != _SCHEMA:
            raise ValueError(
                f"This version of Triptych reads feature encoders of schema version {_SCHEMA}; received "
                f"{values.get('schema_version')!r}."
            )
        try:
            groups = {
                name: tuple(encoding(**_with_tuples(each)) for each in values[name])
                for name, encoding in _ENCODINGS.items()
            }
            return cls(**groups, kinds=dict(values["kinds"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"This is no feature encoder, or a damaged one: {error}.") from error

    def save(self, path: Path) -> None:
        """Write a JSON file."""
        path.write_bytes(json.dumps(self.to_dict(), indent=1).encode())

    @classmethod
    def load(cls, path: Path) -> Self:
        """The encoder that `save` wrote.

        Raises:
            ValueError: for another file.
        """
        try:
            values = json.loads(path.read_bytes())
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is damaged: it is not valid JSON ({error}).") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path} is damaged: it holds no JSON object.")
        return cls.from_dict(values)


_ENCODINGS: dict[str, type[Any]] = {
    "categories": CategoryEncoding,
    "lists": CategoryEncoding,
    "numbers": NumberEncoding,
    "embeddings": EmbeddingEncoding,
}


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


# Learning.


def _category_encoding(
    name: str,
    column: Categories | Lists,
    first: int,
    min_count: int,
    max_vocabulary: int,
    hash_buckets: int,
    hashed: int,
    max_values: int,
) -> CategoryEncoding:
    counts = np.bincount(column.codes[column.codes >= 0], minlength=len(column.entries))
    kept = [(count, entry) for entry, count in zip(column.entries, counts.tolist(), strict=True) if count >= min_count]
    width = 0
    if isinstance(column, Lists):
        width = int(np.clip(column.lengths.max(initial=0), 1, max_values))
    if len(kept) > max_vocabulary:
        hashed = hashed or hash_buckets
        kept = sorted(kept, key=lambda pair: (-pair[0], pair[1]))[:max_vocabulary]
    vocabulary = () if hashed else tuple(sorted(entry for _, entry in kept))
    return CategoryEncoding(name=name, form=column.form, vocabulary=vocabulary, hashed=hashed, width=width, first=first)


def _number_encoding(name: str, values: np.ndarray, first: int, buckets: int) -> NumberEncoding:
    missing = np.isnan(values)
    known = values[~missing].astype(np.float32).astype(np.float64)
    logarithms = signed_log(known)
    skewness = abs(_skewness(known))
    logarithm = skewness > _SKEWED and abs(_skewness(logarithms)) < skewness
    scaled = logarithms if logarithm else known
    deviation = float(scaled.std()) if len(scaled) else 0.0
    boundaries = _boundaries(known, buckets) if buckets > 1 and len(known) else ()
    return NumberEncoding(
        name=name,
        logarithm=bool(logarithm),
        mean=float(scaled.mean()) if len(scaled) else 0.0,
        deviation=deviation if deviation > 1e-12 else 1.0,
        indicator=bool(missing.any()),
        boundaries=boundaries,
        first=first,
    )


def _boundaries(values: np.ndarray, buckets: int) -> tuple[float, ...]:
    """Cuts between quantile ranges; a value that alone fills a range gets one, and the others share the rest."""
    distinct, counts = np.unique(values, return_counts=True)
    heavy = counts > len(values) / buckets
    rest = values[np.isin(values, distinct[~heavy])]
    cuts = np.quantile(rest, np.linspace(0, 1, buckets + 1)[1:-1]) if len(rest) else np.zeros(0)
    # A range begins with the value itself, and the next one with the value after it.
    after = distinct[1:][heavy[:-1]]
    cuts = np.unique(np.concatenate([cuts, distinct[heavy], after]).astype(np.float32))
    return tuple(cuts[cuts > np.float32(distinct[0])].tolist())  # below the first there is nothing


def _embedding_encoding(name: str, values: np.ndarray) -> EmbeddingEncoding:
    missing = np.isnan(values).any(axis=1)
    scale = float(np.sqrt(np.mean(np.square(values[~missing], dtype=np.float64)))) if (~missing).any() else 1.0
    if not values.shape[1]:
        raise ValueError(f"Column {name!r} has no vector in any row. Leave it out.")
    return EmbeddingEncoding(
        name=name, width=values.shape[1], scale=scale if scale > 1e-12 else 1.0, indicator=bool(missing.any())
    )


def _skewness(values: np.ndarray) -> float:
    if len(values) < 3 or values.std() == 0:
        return 0.0
    return float(np.mean(((values - values.mean()) / values.std()) ** 3))


# Encoding.


def signed_log(values: np.ndarray) -> np.ndarray:
    """sign(x) log(1 + |x|)."""
    return np.asarray(np.sign(values) * np.log1p(np.abs(values)))


def _values(table: Features, name: str) -> np.ndarray:
    """A numeric column as float32: what an exported graph is given."""
    column = table.columns[name]
    assert isinstance(column, Numbers)
    return column.values.astype(np.float32)


def _scaled(number: NumberEncoding, values: np.ndarray) -> np.ndarray:
    scaled = signed_log(values) if number.logarithm else values
    scaled = (scaled - np.float32(number.mean)) / np.float32(number.deviation)
    return np.where(np.isnan(values), np.float32(0), np.clip(scaled, -LIMIT, LIMIT))


def _ranges(number: NumberEncoding, values: np.ndarray) -> np.ndarray:
    places = np.searchsorted(number.cuts, values, side="right")
    return np.where(np.isnan(values), number.first, number.first + 1 + places)


def _entry_numbers(encoding: CategoryEncoding, entries: Sequence[str]) -> np.ndarray:
    """The number of each distinct category of a table, int32."""
    start = encoding.first + encoding.missing_rows
    if encoding.hashed:
        return (start + hash_buckets_of(entries, encoding.hashed)).astype(np.int32)
    places = encoding.places
    rows = (places.get(entry) or places.get(plain_text(entry), start) for entry in entries)
    return np.fromiter(rows, np.int32, len(entries))


def _padded(encoding: CategoryEncoding, column: Column) -> np.ndarray:
    """Numbers of a multi-valued column, int32 (N, width), the first ones of each row."""
    assert isinstance(column, Lists)
    numbers = _entry_numbers(encoding, column.entries)
    padded = np.full((len(column), encoding.width), PADDING, np.int32)
    lengths = column.lengths
    rows = np.repeat(np.arange(len(column)), lengths)
    places = np.arange(len(column.codes)) - np.repeat(column.offsets[:-1], lengths)
    read = places < encoding.width
    padded[rows[read], places[read]] = numbers[column.codes[read]]
    return padded


def hash_buckets_of(texts: Sequence[str], num_buckets: int) -> np.ndarray:
    """The bucket of each text, int64: FarmHash Fingerprint64 of its UTF-8 bytes, modulo `num_buckets`."""
    if not len(texts):
        return np.zeros(0, np.int64)
    import tensorflow as tf

    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    return np.asarray(tf.strings.to_hash_bucket_fast(tf.constant(encoded, tf.string), num_buckets))
