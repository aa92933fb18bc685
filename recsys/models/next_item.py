"""Losses of the next item over a whole catalogue, and sequences as a scorer of items.

Legend: B sequences, T items of each, N places in them that have a next item, D width, I items, M sampled items.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
import tensorflow as tf

from recsys.models.ials import pair_products
from recsys.models.scorers import Arrays, FactorScorer, Scorer, Users
from recsys.models.sequence_network import SequenceNetwork
from recsys.sequences import Sequences
from shared.distribution import mean_over_batch
from shared.runtime import current_runtime

Loss: TypeAlias = Callable[[dict[str, tf.Tensor]], tf.Tensor]
# Users that are read at once, and the multiple to which their lengths are padded where shapes are to be few.
_READ_AT_ONCE, _FEW_LENGTHS = 256, 10
# Rows whose scores of all items are there at a time.
_ROWS_AT_ONCE = 512


def vectors_and_targets(
    network: SequenceNetwork, batch: dict[str, tf.Tensor]
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Vectors float32 (N, D) at the places that have a next item, these items (N,), and a weight of each (N,).

    The weights are 1. Under XLA, which needs shapes that are known, N is B x T, and places without a next item weigh 0.
    """
    vectors = tf.reshape(network(batch["items"], batch["lengths"], training=True), (-1, network.dim))
    targets = tf.reshape(batch["targets"], (-1,))
    if not current_runtime().xla:
        # Before the scores of all items, which cost most: padding gets none.
        places = tf.where(targets >= 0)[:, 0]
        vectors, targets = tf.gather(vectors, places), tf.gather(targets, places)
    weights = tf.cast(targets >= 0, tf.float32)
    return tf.cast(vectors, tf.float32), tf.maximum(targets, 0), weights


def _mean(losses: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    return mean_over_batch(tf.reduce_sum(losses * weights), tf.reduce_sum(weights))


def softmax_loss(network: SequenceNetwork, label_smoothing: float = 0.0) -> Loss:
    """Cross-entropy of the next item among all I, the mean over places."""

    def loss(batch: dict[str, tf.Tensor]) -> tf.Tensor:
        vectors, targets, weights = vectors_and_targets(network, batch)
        table = tf.cast(tf.convert_to_tensor(network.table), tf.float32)
        if current_runtime().xla:
            # It fuses the steps by itself, and wants no loop.
            return _mean(_cross_entropies(vectors, table, targets, label_smoothing), weights)
        return mean_cross_entropy(vectors, table, targets, label_smoothing)

    return loss


def _cross_entropies(vectors: tf.Tensor, table: tf.Tensor, targets: tf.Tensor, label_smoothing: float) -> tf.Tensor:
    logits = tf.matmul(vectors, table, transpose_b=True)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits)
    uniform = tf.reduce_logsumexp(logits, axis=1) - tf.reduce_mean(logits, axis=1)
    return (1 - label_smoothing) * losses + label_smoothing * uniform if label_smoothing else losses


def mean_cross_entropy(
    vectors: tf.Tensor, table: tf.Tensor, targets: tf.Tensor, label_smoothing: float = 0.0
) -> tf.Tensor:
    """The mean cross-entropy of softmax(vectors x table') against `targets`, differentiable in the first two.

    Block by block of rows, the loss and both of its gradients are computed together, in half the time of TensorFlow's
    operation and its gradient (docs/results.md: sasrec), and the scores of only one block are there at a time. With
    p = softmax(s) and q = 1 - e at the target plus e / I everywhere, the gradients of a row are (p - q) x table, and
    its vector times p - q.

    Args:
        vectors: float32 (N, D).
        table: float32 (I, D).
        targets: int32 (N,), rows of `table`.
        label_smoothing: e, the share of the target that is spread over all I.

    Returns:
        A scalar, float32.
    """

    def loss(vectors: tf.Tensor, table: tf.Tensor) -> Any:
        total, vector_slopes, table_slopes = _summed_by_blocks(vectors, table, targets, label_smoothing)
        return total, lambda above: (vector_slopes * above, table_slopes * above)

    return mean_over_batch(tf.custom_gradient(loss)(vectors, table), tf.cast(tf.shape(vectors)[0], tf.float32))


def _summed_by_blocks(
    vectors: tf.Tensor, table: tf.Tensor, targets: tf.Tensor, label_smoothing: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The sum of losses over rows, and its gradients in `vectors` and `table`."""
    count, width = tf.shape(vectors)[0], table.shape[1]
    num_blocks = (count + _ROWS_AT_ONCE - 1) // _ROWS_AT_ONCE
    mean = tf.reduce_mean(table, axis=0)

    def block(number: tf.Tensor, total: tf.Tensor, table_slopes: tf.Tensor, parts: tf.TensorArray) -> Any:
        rows = slice(number * _ROWS_AT_ONCE, (number + 1) * _ROWS_AT_ONCE)
        some = vectors[rows]
        # What the target pulls towards: q x table.
        pull = (1 - label_smoothing) * tf.gather(table, targets[rows]) + label_smoothing * mean
        scores = tf.matmul(some, table, transpose_b=True)
        highest = tf.reduce_max(scores, axis=1, keepdims=True)
        powers = tf.exp(scores - highest)
        sums = tf.reduce_sum(powers, axis=1, keepdims=True)
        total += tf.reduce_sum(tf.math.log(sums) + highest - tf.reduce_sum(some * pull, axis=1, keepdims=True))
        table_slopes += tf.matmul(powers, some / sums, transpose_a=True)
        return number + 1, total, table_slopes, parts.write(number, tf.matmul(powers, table) / sums - pull)

    parts = tf.TensorArray(tf.float32, size=num_blocks, infer_shape=False, element_shape=(None, width))
    start = (tf.constant(0), tf.constant(0.0), tf.zeros_like(table), parts)
    _, total, table_slopes, parts = tf.while_loop(
        lambda number, *_: number < num_blocks, block, start, parallel_iterations=1
    )
    table_slopes -= label_smoothing / tf.cast(tf.shape(table)[0], tf.float32) * tf.reduce_sum(vectors, axis=0)
    table_slopes = tf.tensor_scatter_nd_sub(table_slopes, targets[:, None], (1 - label_smoothing) * vectors)
    return total, parts.concat(), table_slopes


def sampled_softmax_loss(network: SequenceNetwork) -> Loss:
    """Cross-entropy of the next item among itself and the batch's M sampled items, the mean over places.

    Samples are drawn uniformly, and the target itself among them does not count.
    """

    def loss(batch: dict[str, tf.Tensor]) -> tf.Tensor:
        vectors, targets, weights = vectors_and_targets(network, batch)
        sampled = batch["sampled"]
        # One gather for both: its gradient is one sparse sum.
        rows = tf.gather(tf.convert_to_tensor(network.table), tf.concat([targets, sampled], axis=0))
        own, others = rows[: tf.size(targets)], rows[tf.size(targets) :]
        positive = tf.reduce_sum(vectors * own, axis=1, keepdims=True)
        negative = tf.matmul(vectors, others, transpose_b=True)
        negative = tf.where(targets[:, None] == sampled[None, :], -1e9, negative)
        # The M stand for all I: each counts I / M times (Bengio and Senecal 2008, with uniform probabilities).
        share = tf.math.log(float(network.table.shape[0]) / tf.cast(tf.size(sampled), tf.float32))
        logits = tf.concat([positive, negative + share], axis=1)
        return _mean(tf.reduce_logsumexp(logits, axis=1) - positive[:, 0], weights)

    return loss


@dataclass(frozen=True, eq=False)
class SequenceScorer(Scorer):
    """Scores by a network that reads the last `max_length` items of each user when it is asked."""

    network: SequenceNetwork
    max_length: int

    def __post_init__(self) -> None:
        items = tf.TensorSpec((None, None), tf.int32)
        read = tf.function(self._read, input_signature=[items, tf.TensorSpec((None,), tf.int32)], autograph=False)
        object.__setattr__(self, "_compiled", read)

    def _read(self, items: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        vectors = self.network(items, lengths, training=False)
        return tf.cast(tf.gather(vectors, tf.maximum(lengths - 1, 0), batch_dims=1), tf.float32)

    def vectors(self, users: Sequences) -> np.ndarray:
        """Vectors after the last item of each, float32 (B, D); those of like length are read together."""
        answers = np.empty((users.shape[0], self.network.dim), np.float32)
        order = np.argsort(np.minimum(users.lengths, self.max_length), kind="stable")
        multiple = _FEW_LENGTHS if current_runtime().few_shapes else 1
        for start in range(0, len(order), _READ_AT_ONCE):
            rows = order[start : start + _READ_AT_ONCE]
            items, lengths = users[rows].last(self.max_length, multiple=multiple)
            answers[rows] = self._compiled(items, lengths).numpy()  # type: ignore[attr-defined]
        return answers

    @property
    def table(self) -> np.ndarray:
        """Vectors of the items, (I, D), as they are now."""
        return np.asarray(self.network.table.numpy(), np.float32)

    def _factors(self, users: Users) -> FactorScorer:
        assert isinstance(users, Sequences)
        return FactorScorer(self.vectors(users), self.table, lambda rows: self.vectors(_in_item_order(rows)))

    def represent(self, histories: sp.csr_matrix) -> Users:
        """Histories in the order of items, for want of another."""
        return _in_item_order(histories)

    def scores(self, users: Users) -> np.ndarray:
        """Inner products with all items."""
        factors = self._factors(users)
        return factors.scores(factors.users)

    def pair_scores(self, users: Users, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Inner products of the pairs; each user is read once."""
        assert isinstance(users, Sequences)
        distinct, places = np.unique(rows, return_inverse=True)
        return pair_products(self.vectors(users[distinct]), places, self.table, items)

    def best(
        self, users: Users, k: int, *, hidden: sp.csr_matrix | None = None, blocked: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As of factors, by blocks of users and items."""
        factors = self._factors(users)
        return factors.best(factors.users, k, hidden=hidden, blocked=blocked)

    def similar(self, items: np.ndarray) -> np.ndarray:
        """Cosines of the items' vectors."""
        table = self.table
        return FactorScorer(table, table, lambda rows: table).similar(items)

    def arrays(self) -> Arrays:
        """The network's weights by their paths."""
        return {weight.path: np.asarray(weight.numpy()) for weight in self.network.weights}

    @property
    def num_items(self) -> int:
        """I."""
        return int(self.network.table.shape[0])


def _in_item_order(histories: sp.csr_matrix) -> Sequences:
    return Sequences(histories.indptr.astype(np.int64), histories.indices.astype(np.int32))
