"""Two towers, one of users and one of items, whose vectors' inner products are scores; and what they answer with.

Legend: B rows, U users, I items, D width of the vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import scipy.sparse as sp
import tensorflow as tf

from recsys.feature_encoder import FeatureLayout
from recsys.models.feature_embedding import FeatureEmbedding
from recsys.models.in_batch import in_batch_softmax
from recsys.models.scorers import Arrays, FactorScorer
from recsys.top_k import block_size
from shared.dense import Dense
from shared.runtime import current_runtime

# Rows of a tower that are computed at once when answers are prepared.
_AT_ONCE = 8192
# Steps by which the vector of a user who came later is found.
_FOLD_STEPS = 60


class Tower(keras.layers.Layer):
    """Rows of ids, and their features, to vectors (B, D): id's vector + features' vector, then dense layers.

    The last row of the table is that of unknown ids: with features a share of the ids counts as unknown in training, so
    that it is trained, and the features learn to do without an id (Volkovs et al. 2017, DropoutNet). With a share of 0
    it is zero (`silence_unknown_ids`).

    Args:
        num_ids: ids that have a row of their own.
        dim: D.
        layout: of the encoded features; None without any.
        hidden_dims: widths of dense layers over the sum, with ReLU; a linear one to D follows. None: the sum itself.
        normalize: vectors of length 1.
        name: of the layer.
    """

    def __init__(
        self,
        num_ids: int,
        *,
        dim: int,
        layout: FeatureLayout | None,
        hidden_dims: Sequence[int],
        normalize: bool,
        name: str,
    ) -> None:
        super().__init__(name=name)
        self.num_ids = num_ids
        self.normalize = normalize
        # Not cast as a whole in mixed precision, and read by rows: a batch costs what its rows cost.
        self.table = self.add_weight(
            shape=(num_ids + 1, dim), initializer=_initial(dim), name="table", dtype="float32", autocast=False
        )
        self.features: FeatureEmbedding | None = None
        if layout is not None:
            self.features = FeatureEmbedding(layout, dim, name="features")
            self.projection = Dense(dim, use_bias=False, kernel_initializer=_initial(dim), name="features_out")
            self.features.build()
            self.projection.build((None, self.features.flat_width))
        self.hidden = [
            Dense(width, activation="relu", name=f"hidden_{number}") for number, width in enumerate(hidden_dims)
        ]
        self.out = Dense(dim, name="out") if hidden_dims else None
        signature = [tf.TensorSpec((None,), tf.int32), feature_specs(layout)]
        self._read = tf.function(self._float32, input_signature=signature, autograph=False)

    def call(self, rows: tf.Tensor, features: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Vectors, in the precision of the layer, or float32 where they are normalised."""
        x = tf.cast(tf.gather(self.table.value, rows), self.compute_dtype)
        if self.features is not None:
            x += self.projection(self.features.flat(features))
        for layer in self.hidden:
            x = layer(x)
        x = x if self.out is None else self.out(x)
        return tf.math.l2_normalize(tf.cast(x, tf.float32), axis=1) if self.normalize else x

    def _float32(self, rows: tf.Tensor, features: dict[str, tf.Tensor]) -> tf.Tensor:
        return tf.cast(self(rows, features), tf.float32)

    def vectors(self, rows: np.ndarray, features: Arrays) -> np.ndarray:
        """Vectors (B, D), float32, of rows of the table and as many of the encoded features; in parts."""
        parts = [np.zeros((0, self.table.shape[1]), np.float32)]
        for start in range(0, len(rows), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            some = {name: tf.constant(array[part]) for name, array in features.items()}
            parts.append(self._read(tf.constant(rows[part].astype(np.int32)), some).numpy())
        return np.concatenate(parts)

    def silence_unknown_ids(self) -> None:
        """Make the row of unknown ids zero, for where it is not trained: features then speak for themselves."""
        values = np.array(self.table)
        values[-1] = 0
        self.table.assign(values)

    @property
    def large_tables(self) -> list[Any]:
        """Weights of which a batch reads a few rows."""
        tables = [self.table]
        if self.features is not None and self.features.layout.num_fields:
            tables.append(self.features.table)
        return tables


def feature_specs(layout: FeatureLayout | None) -> dict[str, tf.TensorSpec]:
    """What `FeatureEncoder.encode` gives, for any number of rows."""
    if layout is None:
        return {}
    widths = {"categories": layout.num_categories, "lists": sum(layout.list_widths), "numbers": layout.num_numbers}
    types = {"categories": tf.int32, "lists": tf.int32, "numbers": tf.float32}
    return {name: tf.TensorSpec((None, width), types[name]) for name, width in widths.items() if width}


def _initial(dim: int) -> keras.initializers.Initializer:
    """Vectors of length about 0.3: scores begin near 0."""
    return keras.initializers.RandomNormal(stddev=0.3 / dim**0.5)


class TwoTowers(keras.Model):
    """The towers `users` and `items` of one network."""

    def __init__(
        self,
        num_users: int,
        num_items: int,
        *,
        user_layout: FeatureLayout | None,
        item_layout: FeatureLayout | None,
        dim: int,
        hidden_dims: Sequence[int],
        normalize: bool,
    ) -> None:
        super().__init__(name="two_towers")
        fields: dict[str, Any] = {"dim": dim, "hidden_dims": hidden_dims, "normalize": normalize}
        self.users = Tower(num_users, layout=user_layout, **fields, name="user_tower")
        self.items = Tower(num_items, layout=item_layout, **fields, name="item_tower")

    def call(self, batch: Mapping[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        """Vectors of a batch's users (B, D) and of its columns (C, D)."""
        users = self.users(batch["user_rows"], features_of("user", batch))
        return users, self.items(batch["item_rows"], features_of("item", batch))

    def named_weights(self) -> dict[str, keras.Variable]:
        """Weights by names that are the same for towers of any number of ids."""
        sides = {"user": self.users, "item": self.items}
        return {f"{side}/{n:02d}": weight for side, tower in sides.items() for n, weight in enumerate(tower.weights)}

    def smallest_batch(self) -> Arrays:
        """One row of each side, to make the weights with."""
        batch: Arrays = {}
        for side, tower in (("user", self.users), ("item", self.items)):
            batch[f"{side}_rows"] = np.zeros(1, np.int32)
            for name, spec in feature_specs(None if tower.features is None else tower.features.layout).items():
                batch[f"{side}/{name}"] = np.zeros((1, spec.shape[1]), spec.dtype.as_numpy_dtype)
        return batch


def features_of(side: str, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The encoded features of one side in a batch, by their names in the encoder."""
    prefix = f"{side}/"
    return {key.removeprefix(prefix): value for key, value in batch.items() if key.startswith(prefix)}


def in_batch_loss(
    network: TwoTowers, *, temperature: float, hard_negatives: int
) -> Callable[[dict[str, tf.Tensor]], tf.Tensor]:
    """The loss of a batch, as the training loop takes it."""

    def loss(batch: dict[str, tf.Tensor]) -> tf.Tensor:
        users, items = network(batch)
        return in_batch_softmax(
            users,
            items,
            batch["targets"],
            batch["shifts"],
            batch["log_counts"],
            temperature=temperature,
            hard_negatives=hard_negatives,
            fused=not current_runtime().xla,
        )

    return loss


# Answers.


@dataclass(frozen=True, eq=False)
class TowerScorer(FactorScorer):
    """Scores by inner products of trained vectors; those of `fixed` users stay, whatever follows.

    `mean` (D,) and `factor` (D, D) describe the vectors of the users of training: they are about normal with this mean,
    and covariance factor x factor'. Vectors of all others are found by `softmax_users` from their histories.
    """

    mean: np.ndarray | None = None
    factor: np.ndarray | None = None

    @classmethod
    def of(
        cls, users: np.ndarray, items: np.ndarray, trained: np.ndarray, temperature: float, normalize: bool
    ) -> TowerScorer:
        """The scorer of vectors of users and items; `trained`, bool (U,), are the users who liked something."""
        some = users[trained] if trained.any() else users
        mean = some.mean(axis=0, dtype=np.float64)
        covariance = np.cov(some.astype(np.float64), rowvar=False, bias=True).reshape(len(mean), len(mean))
        ridge = 1e-3 * max(float(np.trace(covariance)) / len(mean), 1e-6)
        factor = np.linalg.cholesky(covariance + ridge * np.eye(len(mean)))
        return cls.with_prior(
            users, items, mean.astype(np.float32), factor.astype(np.float32), trained, temperature, normalize
        )

    @classmethod
    def with_prior(
        cls,
        users: np.ndarray,
        items: np.ndarray,
        mean: np.ndarray,
        factor: np.ndarray,
        fixed: np.ndarray,
        temperature: float,
        normalize: bool,
    ) -> TowerScorer:
        """The scorer with these parts."""

        def fold(histories: sp.csr_matrix) -> np.ndarray:
            found = softmax_users(histories, items, mean, factor, temperature)
            return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12) if normalize else found

        return cls(users, items, fold, fixed=fixed, mean=mean, factor=factor)

    @classmethod
    def from_arrays(cls, arrays: Arrays, temperature: float, normalize: bool) -> TowerScorer:
        """The scorer whose `arrays` these are."""
        users, items, mean, factor = (arrays[name] for name in ("users", "items", "mean", "factor"))
        return cls.with_prior(users, items, mean, factor, arrays["fixed"], temperature, normalize)

    def arrays(self) -> Arrays:
        """Vectors, which of them stay, and what the others are found by."""
        assert self.mean is not None
        assert self.factor is not None
        sides = {"users": self.users, "items": self.items}
        return {**sides, "mean": self.mean, "factor": self.factor, "fixed": self.fixed}


def softmax_users(
    histories: sp.csr_matrix, items: np.ndarray, mean: np.ndarray, factor: np.ndarray, temperature: float
) -> np.ndarray:
    """The likeliest vectors of users by their histories, the items' vectors given: float32 (B, D).

    Each item of a history is a draw from the softmax over the whole catalogue, for which the in-batch softmax of
    training stands, and the vector a draw from the normal distribution of `mean` and factor x factor'. The logarithm of
    that is concave; Nesterov's accelerated ascent in the coordinates z, vector = mean + factor z, comes close to its
    highest point in some steps.
    """
    counts = np.diff(histories.indptr).astype(np.float32)
    scaled = np.asarray(items @ factor / temperature, np.float32)
    level = np.asarray(items @ mean / temperature, np.float32)
    # The curvature of n draws is at most n times the largest variance of the items' vectors, and 1 of the prior.
    centred = scaled - scaled.mean(axis=0)
    spread = float(np.square(centred).sum(axis=1).max(initial=0.0))
    answers = np.empty((histories.shape[0], len(mean)), np.float32)
    step = block_size(len(items))
    for start in range(0, histories.shape[0], step):
        part = histories[start : start + step]
        ones = sp.csr_matrix((np.ones_like(part.data, np.float32), part.indices, part.indptr), shape=part.shape)
        wanted = np.asarray(ones @ scaled)
        number = counts[start : start + step, None]
        rate = 1 / (1 + number * spread)
        z = ahead = np.zeros_like(wanted)
        for turn in range(_FOLD_STEPS):
            logits = ahead @ scaled.T + level
            logits -= logits.max(axis=1, keepdims=True)
            np.exp(logits, out=logits)
            expected = logits @ scaled / logits.sum(axis=1, keepdims=True)
            after = ahead + rate * (wanted - number * expected - ahead)
            ahead = after + turn / (turn + 3) * (after - z)
            z = after
        answers[start : start + step] = mean + z @ factor.T
    return answers
