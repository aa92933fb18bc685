"""A recommender as a SavedModel: raw user ids and k in, item ids and scores out, what users have seen left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import tensorflow as tf

from recsys.models.network import RecommenderNetwork, expanded
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
        num_items = tf.shape(scores)[1]
        best, found = tf.math.top_k(scores, tf.minimum(k, num_items))
        found = tf.where(tf.math.is_inf(best), num_items, found)
        return {"items": tf.gather(self.items, found), "scores": best}


def export_recommender(path: Path, fitted: Any, network: RecommenderNetwork) -> ExportReport:
    """Write a SavedModel whose `serve` gives what `recommend` does, compared with that on a few users."""
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
    return export_saved_model(path, {"serve": endpoint}, track=[network, serving])
