"""A recommender as a SavedModel: raw user ids and k in, item ids and scores out, what users have seen left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import tensorflow as tf

from recsys.models.network import RecommenderNetwork, SequenceRecommenderNetwork, expanded
from shared.export import Endpoint, ExportReport, export_saved_model

# Users on whom an export is compared with `recommend`, and how many items each is given.
_COMPARED, _COMPARED_K = 16, 10


class Serving(tf.Module):
    """The tables of ids and the histories around a network."""

    def __init__(
        self, network: RecommenderNetwork, users: np.ndarray, items: np.ndarray, histories: sp.csr_matrix
    ) -> None:
        super().__init__()
        self.network = network
        keys = tf.constant(users.tolist(), tf.string if users.dtype == object else tf.int64)
        numbers = tf.range(len(users), dtype=tf.int64)
        self.users = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, numbers), -1)
        missing: Any = "" if items.dtype == object else -1
        # One more than there are items: no answer is the last.
        self.items = tf.constant([*items.tolist(), missing], tf.string if items.dtype == object else tf.int64)
        self.offsets = tf.Variable(np.append(histories.indptr, histories.indptr[-1]).astype(np.int64), trainable=False)
        self.seen = tf.Variable(histories.indices.astype(np.int64), trainable=False)
        self.user_type = keys.dtype

    def serve(self, users: tf.Tensor, k: tf.Tensor) -> dict[str, tf.Tensor]:
        """The best items of each user and their scores, (B, min(k, I)); "" or -1, and -inf, where no more are there."""
        numbers = self.users.lookup(users)
        scores = self.network(numbers)
        rows = tf.where(numbers < 0, tf.size(self.offsets, tf.int64) - 2, numbers)
        owners, places = expanded(self.offsets, rows)
        hidden = tf.stack([owners, tf.gather(self.seen, places)], axis=1)
        worst = tf.fill([tf.shape(hidden)[0]], -np.inf)
        scores = tf.tensor_scatter_nd_update(scores, hidden, worst)
        return best_items(scores, self.items, k)


class HistoryServing(tf.Module):
    """The table of items around a network that reads sequences: for histories of whomever."""

    def __init__(self, network: SequenceRecommenderNetwork, items: np.ndarray) -> None:
        super().__init__()
        self.network = network
        self.missing: Any = "" if items.dtype == object else -1
        keys = tf.constant(items.tolist(), tf.string if items.dtype == object else tf.int64)
        numbers = tf.range(len(items), dtype=tf.int64)
        self.table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, numbers), -1)
        self.items = tf.constant([*items.tolist(), self.missing], keys.dtype)
        self.item_type = keys.dtype

    def serve(self, histories: tf.Tensor, k: tf.Tensor) -> dict[str, tf.Tensor]:
        """The best next items, as `Serving.serve`, after histories (B, T), oldest first; "" or -1 is no item."""
        numbers = self.table.lookup(histories)
        known = numbers >= 0
        # Known items first, in their order; then the last of them that the network reads.
        order = tf.argsort(tf.cast(~known, tf.int32), axis=1, stable=True)
        numbers = tf.gather(numbers, order, batch_dims=1)
        counts = tf.reduce_sum(tf.cast(known, tf.int32), axis=1)
        lengths = tf.minimum(counts, self.network.max_length)
        steps = tf.range(tf.maximum(tf.reduce_max(lengths), 1))
        # One more place, so that histories of no width at all have one to look at.
        wide = tf.pad(tf.cast(numbers, tf.int32), [[0, 0], [0, 1]], constant_values=-1)
        places = tf.where(steps < lengths[:, None], (counts - lengths)[:, None] + steps, tf.shape(wide)[1] - 1)
        scores = self.network.scores_after(tf.gather(wide, places, batch_dims=1), lengths)
        scores = tf.where(lengths[:, None] > 0, scores, tf.convert_to_tensor(self.network.popularity)[None, :])
        rows = tf.where(numbers >= 0)
        hidden = tf.stack([rows[:, 0], tf.gather_nd(numbers, rows)], axis=1)
        scores = tf.tensor_scatter_nd_update(scores, hidden, tf.fill([tf.shape(hidden)[0]], -np.inf))
        return best_items(scores, self.items, k)


def best_items(scores: tf.Tensor, items: tf.Tensor, k: tf.Tensor) -> dict[str, tf.Tensor]:
    """The best `k` of scores (B, I), by the ids in `items` (I + 1), the last of which says that there are no more."""
    num_items = tf.shape(scores)[1]
    best, found = tf.math.top_k(scores, tf.minimum(k, num_items))
    found = tf.where(tf.math.is_inf(best), num_items, found)
    return {"items": tf.gather(items, found), "scores": best}


def history_endpoint(serving: HistoryServing, histories: list[list[Any]], answers: Sequence[Any], k: int) -> Endpoint:
    """The endpoint for histories, to be compared with what `recommend_next` answers to some."""
    width = max(map(len, histories))
    count = min(k, len(serving.items) - 1)
    padded = [[*history, *[serving.missing] * (width - len(history))] for history in histories]
    items = [[*answer.items, *[serving.missing] * (count - len(answer))] for answer in answers]
    scores = [[*answer.scores, *[-np.inf] * (count - len(answer))] for answer in answers]
    return Endpoint(
        function=serving.serve,
        signature=(
            tf.TensorSpec([None, None], serving.item_type, name="histories"),
            tf.TensorSpec([], tf.int32, name="k"),
        ),
        example=(as_served(padded), np.array(k, np.int32)),
        expected={"items": as_served(items), "scores": np.array(scores, np.float32)},
    )


def as_served(rows: list[list[Any]]) -> np.ndarray:
    """Ids as a served model gives them: bytes, or int64."""
    encoded = [[value.encode() if isinstance(value, str) else value for value in row] for row in rows]
    return np.array(encoded, object if isinstance(encoded[0][0], bytes) else np.int64)


def export_recommender(
    path: Path, fitted: Any, network: RecommenderNetwork, *, more: Mapping[str, Endpoint] | None = None
) -> ExportReport:
    """Write a SavedModel whose `serve` gives what `recommend` does, compared with that on a few users.

    `more` has further endpoints by name, whose functions are methods of modules that they keep alive.
    """
    audience = fitted.audience
    serving = Serving(network, audience.users.entries, fitted.items.entries, audience.histories)
    chosen = np.unique(np.linspace(0, len(audience.users) - 1, min(_COMPARED, len(audience.users))).astype(np.int64))
    k = min(_COMPARED_K, len(fitted.items))
    found, scores = fitted.ranked(chosen, k)
    items = np.append(fitted.items.entries, "" if fitted.items.entries.dtype == object else -1)[found]
    users = audience.users.entries[chosen]
    if users.dtype == object:
        users = np.array([user.encode() for user in users.tolist()], object)
    if items.dtype == object:
        items = np.array([[item.encode() for item in row] for row in items.tolist()], object)
    endpoint = Endpoint(
        function=serving.serve,
        signature=(tf.TensorSpec([None], serving.user_type, name="users"), tf.TensorSpec([], tf.int32, name="k")),
        example=(users, np.array(k, np.int32)),
        expected={"items": items, "scores": scores},
    )
    endpoints = {"serve": endpoint, **(more or {})}
    track = [network, serving, *(end.function.__self__ for end in endpoints.values())]  # type: ignore[attr-defined]
    return export_saved_model(path, endpoints, track=track)
