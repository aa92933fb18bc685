"""What `FeatureEncoder.encode` does, in plain TensorFlow: for exports that take raw features.

An input for each column, named as the column is, with "_" for what a tensor's name cannot hold:

    kind           input                         missing
    categorical    string (B,), or int64 (B,)    "", or the smallest int64; int64 where training had whole numbers
    numeric        float32 (B,)                  NaN; so count infinite ones
    multi_valued   string or int64 (B, T)        fills up, at any place
    embedding      float32 (B, D)                NaN in the vector

Bools are the strings "true" and "false".
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import tensorflow as tf

from recsys.feature_encoder import (
    LIMIT,
    PADDING,
    CategoryEncoding,
    FeatureEncoder,
    NumberEncoding,
)
from recsys.features import Categories, Embeddings, Features, Lists, Numbers

NO_INTEGER = np.iinfo(np.int64).min


class GraphEncoder(tf.Module):
    """The tables of a `FeatureEncoder`; an export has to track it."""

    def __init__(self, encoder: FeatureEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.categories = {part.name: part for part in (*encoder.categories, *encoder.lists)}
        self.numbers = {number.name: number for number in encoder.numbers}
        self.embeddings = {embedding.name: embedding for embedding in encoder.embeddings}
        self.tables = {name: _table(part) for name, part in self.categories.items() if part.vocabulary}
        self.signature = self._signature()

    def _signature(self) -> tuple[tf.TensorSpec, ...]:
        names = input_names(self.encoder.names)
        shapes = {"categorical": [None], "numeric": [None], "multi_valued": [None, None]}
        specs = []
        for column, name in names.items():
            kind = self.encoder.kinds[column]
            shape = [None, self.embeddings[column].width] if kind == "embedding" else shapes[kind]
            dtype = self._dtype(column) if kind in ("categorical", "multi_valued") else tf.float32
            specs.append(tf.TensorSpec(shape, dtype, name=name))
        return tuple(specs)

    def _dtype(self, column: str) -> tf.DType:
        return tf.int64 if self.categories[column].form == "int" else tf.string

    def encode(self, *columns: tf.Tensor) -> dict[str, tf.Tensor]:
        """Arrays of raw columns, which come in the order of `signature`."""
        raw = dict(zip(self.encoder.names, columns, strict=True))
        encoder, layout = self.encoder, self.encoder.layout
        arrays: dict[str, tf.Tensor] = {}
        values = {name: _finite(raw[name]) for name in self.numbers}
        if layout.num_categories:
            parts = [self._looked_up(part, raw[part.name]) for part in encoder.categories]
            parts += [_ranges(number, values[number.name]) for number in encoder.bucketed]
            arrays["categories"] = tf.stack(parts, axis=1)
        if encoder.lists:
            arrays["lists"] = tf.concat([self._padded(part, raw[part.name]) for part in encoder.lists], axis=1)
        if layout.num_numbers:
            scaled = [_scaled(number, values[number.name])[:, None] for number in encoder.numbers]
            missing = [tf.math.is_nan(values[n.name]) for n in encoder.numbers if n.indicator]
            vectors = []
            for embedding in encoder.embeddings:
                given = raw[embedding.name]
                gone = ~tf.reduce_all(tf.math.is_finite(given), axis=1)
                vectors.append(tf.where(gone[:, None], 0.0, given / np.float32(embedding.scale)))
                missing += [gone] if embedding.indicator else []
            indicators = [tf.cast(column, tf.float32)[:, None] for column in missing]
            arrays["numbers"] = tf.concat([*scaled, *indicators, *vectors], axis=1)
        return arrays

    def _looked_up(self, part: CategoryEncoding, given: tf.Tensor) -> tf.Tensor:
        texts, gone = _texts(given)
        start = part.first + part.missing_rows
        if part.hashed:
            numbers = tf.cast(start + tf.strings.to_hash_bucket_fast(texts, part.hashed), tf.int32)
        elif part.vocabulary:
            numbers = self.tables[part.name].lookup(texts)
        else:
            numbers = tf.fill(tf.shape(texts), start)
        return tf.where(gone, PADDING if part.width else part.first, numbers)

    def _padded(self, part: CategoryEncoding, given: tf.Tensor) -> tf.Tensor:
        """(B, T) -> (B, width): the real ones first, in their order."""
        numbers = self._looked_up(part, given)
        order = tf.argsort(tf.cast(numbers == PADDING, tf.int32), axis=1, stable=True)
        numbers = tf.gather(numbers, order, batch_dims=1)
        return tf.pad(numbers, [[0, 0], [0, part.width]], constant_values=PADDING)[:, : part.width]

    def raw(self, table: Features) -> tuple[np.ndarray, ...]:
        """The columns of a table (`FeatureEncoder.table`) as `encode` takes them."""
        return tuple(self._raw(name, table.columns[name]) for name in self.encoder.names)

    def _raw(self, name: str, column: Any) -> np.ndarray:
        if isinstance(column, Numbers):
            return np.asarray(column.values, np.float32)
        if isinstance(column, Embeddings):
            width = self.embeddings[name].width
            return column.values if column.values.shape[1] else np.full((len(column), width), np.nan, np.float32)
        entries = self._entries(name, column.entries)
        if isinstance(column, Categories):
            return np.asarray(entries[column.codes])
        assert isinstance(column, Lists)
        padded = np.full((len(column), int(column.lengths.max(initial=0))), -1)
        padded[np.arange(padded.shape[1]) < column.lengths[:, None]] = column.codes
        return np.asarray(entries[padded])

    def _entries(self, name: str, entries: tuple[str, ...]) -> np.ndarray:
        """Distinct categories as the graph takes them, and one more for missing."""
        if self._dtype(name) == tf.int64:
            # A text that is no whole number is none that training had: any number without an entry does for it.
            return np.array([*(_integer(entry) for entry in entries), NO_INTEGER], np.int64)
        return np.array([*(entry.encode("utf-8", "surrogatepass") for entry in entries), b""], object)


def _integer(entry: str) -> int:
    try:
        number = int(entry)
    except ValueError:
        return NO_INTEGER + 1
    return number if str(number) == entry and abs(number) < 1 << 63 else NO_INTEGER + 1


def input_names(columns: tuple[str, ...]) -> dict[str, str]:
    """The name of each column's input: letters, digits, "_"; numbered where two would be the same."""
    names: dict[str, str] = {}
    for column in columns:
        plain = re.sub(r"[^A-Za-z0-9_]", "_", column) or "feature"
        plain = plain if re.match(r"[A-Za-z]", plain) else f"feature_{plain}"
        name, count = plain, 1
        while name in names.values():
            count += 1
            name = f"{plain}_{count}"
        names[column] = name
    return names


def _table(part: CategoryEncoding) -> tf.lookup.StaticHashTable:
    start = part.first + part.missing_rows
    keys = tf.constant([entry.encode("utf-8", "surrogatepass") for entry in part.places], tf.string)
    values = tf.constant(list(part.places.values()), tf.int32)
    return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), start)


def _texts(given: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Categories as texts, and which of them are missing."""
    if given.dtype == tf.string:
        return given, given == ""
    return tf.strings.as_string(given), given == NO_INTEGER


def _finite(values: tf.Tensor) -> tf.Tensor:
    return tf.where(tf.math.is_finite(values), values, np.float32(np.nan))


def _ranges(number: NumberEncoding, values: tf.Tensor) -> tf.Tensor:
    gone = tf.math.is_nan(values)
    boundaries = tf.constant(number.boundaries, tf.float32)
    places = tf.searchsorted(boundaries, tf.where(gone, 0.0, values), side="right")
    return tf.where(gone, number.first, number.first + 1 + places)


def _scaled(number: NumberEncoding, values: tf.Tensor) -> tf.Tensor:
    scaled = tf.sign(values) * tf.math.log1p(tf.abs(values)) if number.logarithm else values
    scaled = (scaled - np.float32(number.mean)) / np.float32(number.deviation)
    return tf.where(tf.math.is_nan(values), 0.0, tf.clip_by_value(scaled, -LIMIT, LIMIT))
