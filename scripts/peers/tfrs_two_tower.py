"""Two embedding towers in TensorFlow Recommenders, for comparison: answers lines on stdin with lines of JSON on stdout.

    TF_USE_LEGACY_KERAS=1 python scripts/peers/tfrs_two_tower.py JOB.npz THREADS

The job has columns `users` and `items` (numbers from 0), `num_users`, `num_items`, `dim`, `batch_size`, `optimizer`
("adagrad", as in TFRS's own tutorials, or "adam") and `learning_rate`. Each line on stdin trains for one epoch and is
answered with {"seconds": S}. Batches are made once and cached, as in the tutorials. Needs tensorflow-recommenders and
tf-keras.
"""

from __future__ import annotations

import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # before TensorFlow is imported

import json
import sys
import time
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs
import tf_keras


class TwoTowers(tfrs.Model):
    """A table of users, a table of items, and the retrieval task."""

    def __init__(self, job: Any) -> None:
        super().__init__()
        dim = int(job["dim"])
        self.user_model = tf_keras.layers.Embedding(int(job["num_users"]), dim)
        self.item_model = tf_keras.layers.Embedding(int(job["num_items"]), dim)
        self.task = tfrs.tasks.Retrieval()

    def compute_loss(self, features: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """The in-batch softmax."""
        users, items = self.user_model(features["user"]), self.item_model(features["item"])
        return self.task(users, items, compute_metrics=False)


def main(job_file: str, threads: str) -> None:
    """Answer lines until stdin ends."""
    tf.config.threading.set_intra_op_parallelism_threads(int(threads))
    job = np.load(job_file, allow_pickle=False)
    model = TwoTowers(job)
    kinds = {"adagrad": tf_keras.optimizers.Adagrad, "adam": tf_keras.optimizers.Adam}
    model.compile(optimizer=kinds[str(job["optimizer"])](float(job["learning_rate"])))
    columns = {"user": job["users"], "item": job["items"]}
    size = int(job["batch_size"])
    data = tf.data.Dataset.from_tensor_slices(columns).shuffle(100_000, seed=0).batch(size, drop_remainder=True)
    data = data.cache().prefetch(2)
    for _ in sys.stdin:
        start = time.perf_counter()
        model.fit(data, epochs=1, verbose=0)
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
