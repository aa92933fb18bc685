"""Users who are known by features alone, in a SavedModel: raw feature columns and k in, items and scores out."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from recsys.answers import Recommendations
from recsys.feature_encoder import FeatureEncoder
from recsys.features import Features
from recsys.fitted import Fitted
from recsys.models.feature_graph import GraphEncoder
from recsys.models.serving import as_served, best_items
from recsys.models.two_tower import Tower
from shared.export import Endpoint

_COMPARED, _COMPARED_K = 4, 10


class AnswersByFeatures(Protocol):
    """What an export is compared with."""

    def recommend_by_features(self, features: Any, k: int) -> list[Recommendations]:
        """The best items for rows of features."""
        ...


class FeatureServing(tf.Module):
    """The tables of the encoder, the tower without ids, and the vectors of the catalogue."""

    def __init__(self, tower: Tower, encoder: FeatureEncoder, fitted: Fitted) -> None:
        super().__init__()
        self.tower = tower
        self.encoder = GraphEncoder(encoder)
        self.vectors = tf.Variable(fitted.scorer.arrays()["items"], trainable=False)
        entries = fitted.items.entries
        self.missing: Any = "" if entries.dtype == object else -1
        dtype = tf.string if entries.dtype == object else tf.int64
        self.items = tf.constant([*entries.tolist(), self.missing], dtype)

    def serve(self, *columns_and_k: tf.Tensor) -> dict[str, tf.Tensor]:
        """The best items of each row of features and their scores, (B, min(k, I))."""
        *columns, k = columns_and_k
        arrays = self.encoder.encode(*columns)
        rows = tf.fill(tf.shape(columns[0])[:1], self.tower.num_ids)
        users = tf.cast(self.tower(rows, arrays), tf.float32)
        return best_items(tf.matmul(users, self.vectors, transpose_b=True), self.items, k)


def feature_endpoint(tower: Tower, encoder: FeatureEncoder, fitted: Fitted, answers: AnswersByFeatures) -> Endpoint:
    """The endpoint for features, to be compared with what `recommend_by_features` answers to some."""
    serving = FeatureServing(tower, encoder, fitted)
    table = encoder.table(_example_rows(encoder))
    k = min(_COMPARED_K, len(fitted.items))
    found = answers.recommend_by_features(table, k)
    return Endpoint(
        function=serving.serve,
        signature=(*serving.encoder.signature, tf.TensorSpec([], tf.int32, name="k")),
        example=(*serving.encoder.raw(table), np.array(k, np.int32)),
        expected={
            "items": as_served([list(answer.items) for answer in found]),
            "scores": np.array([answer.scores for answer in found], np.float32),
        },
    )


def _example_rows(encoder: FeatureEncoder) -> Features:
    """A few rows with categories and numbers as training had them; in the last everything is missing."""
    columns: dict[str, Any] = {}
    kept = _COMPARED - 1
    for part in (*encoder.categories, *encoder.lists):
        entries = [*part.vocabulary[:kept], *["what"] * kept][:kept]
        columns[part.name] = [[entry] for entry in entries] + [[]] if part.width else [*entries, None]
    for number in encoder.numbers:
        columns[number.name] = [number.mean + place * number.deviation for place in range(kept)] + [None]
    for vector in encoder.embeddings:
        columns[vector.name] = np.vstack([np.eye(kept, vector.width), np.full((1, vector.width), np.nan)])
    return Features({name: columns[name] for name in encoder.names}, kinds=encoder.kinds)
