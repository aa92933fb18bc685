"""The models of TensorFlow Recommenders that `recsys.tfrs` trains, on Keras 2, and their training epoch by epoch."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from recsys.legacy_keras import tf_keras, tfrs
from recsys.models.scorers import Arrays
from recsys.tfrs_config import TFRSRankerConfig, TFRSRetrieverConfig
from shared.training_config import TrainingConfig


def _embedding(count: int, dim: int, seed: int) -> Any:
    initial = tf_keras.initializers.RandomUniform(-0.05, 0.05, seed=seed)
    return tf_keras.layers.Embedding(count, dim, embeddings_initializer=initial)


def _dense(width: int, seed: int, activation: str | None = None) -> Any:
    initial = tf_keras.initializers.GlorotUniform(seed=seed)
    return tf_keras.layers.Dense(width, activation=activation, kernel_initializer=initial)


def _tower(count: int, dim: int, hidden_dims: tuple[int, ...], seed: int) -> Any:
    """Numbers (B,) to vectors (B, D)."""
    layers = [_embedding(count, dim, seed)]
    layers += [_dense(width, seed + place, "relu") for place, width in enumerate(hidden_dims, start=1)]
    return tf_keras.Sequential([*layers, _dense(dim, seed + 9)] if hidden_dims else layers)


def _rating_layers(hidden_dims: tuple[int, ...], seed: int) -> Any:
    """Vectors of user and item side by side, (B, 2 D), to ratings (B, 1)."""
    layers = [_dense(width, seed + place, "relu") for place, width in enumerate(hidden_dims)]
    return tf_keras.Sequential([*layers, _dense(1, seed + 9)])


class RetrieverModel(tfrs.Model):
    """Two towers with the retrieval task, the ranking task, or both by their weights.

    Args:
        num_users: rows of the user tower.
        num_items: rows of the item tower.
        config: widths, weights, options of the task.
        chances: how often an item is drawn, float32 (I,), where the task is to correct for it.
        mean_rating: from which ratings start.
    """

    def __init__(
        self, num_users: int, num_items: int, config: TFRSRetrieverConfig, chances: np.ndarray, mean_rating: float
    ) -> None:
        super().__init__()
        self.config = config
        self.user_model = _tower(num_users, config.dim, config.hidden_dims, 20 * config.seed)
        self.item_model = _tower(num_items, config.dim, config.hidden_dims, 20 * config.seed + 10)
        self.rating_model = _rating_layers((64,), 20 * config.seed + 15) if config.rating_weight else None
        self.chances = tf.constant(chances, tf.float32)
        self.mean_rating = mean_rating
        self.retrieval = tfrs.tasks.Retrieval(
            temperature=config.temperature,
            num_hard_negatives=config.hard_negatives or None,
            remove_accidental_hits=config.remove_accidental_hits,
        )
        self.ranking = tfrs.tasks.Ranking(loss=tf_keras.losses.MeanSquaredError())
        self.mean_loss = tf_keras.metrics.Mean(name="mean_loss")

    def compute_loss(self, features: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """The weighted sum of both losses, as TFRS reduces them: a sum over the batch, and a mean."""
        users, items = self.user_model(features["user"]), self.item_model(features["item"])
        loss = tf.constant(0.0)
        if self.config.retrieval_weight:
            summed = self.retrieval(
                users,
                items,
                sample_weight=features.get("liked"),
                candidate_sampling_probability=tf.gather(self.chances, features["item"]) if self.config.log_q else None,
                candidate_ids=features["item"],
                compute_metrics=False,
            )
            loss += self.config.retrieval_weight * summed
        if self.rating_model is not None:
            ratings = self.mean_rating + self.rating_model(tf.concat([users, items], axis=1))
            loss += self.config.rating_weight * self.ranking(labels=features["rating"], predictions=ratings[:, 0])
        self.mean_loss.update_state(loss)
        return loss


class RankerModel(tfrs.Model):
    """Embeddings and dense layers with the ranking task."""

    def __init__(self, num_users: int, num_items: int, config: TFRSRankerConfig, mean_rating: float) -> None:
        super().__init__()
        self.user_model = _tower(num_users, config.dim, (), 20 * config.seed)
        self.item_model = _tower(num_items, config.dim, (), 20 * config.seed + 10)
        self.rating_model = _rating_layers(config.hidden_dims, 20 * config.seed + 15)
        self.mean_rating = mean_rating
        self.ranking = tfrs.tasks.Ranking(loss=tf_keras.losses.MeanSquaredError())
        self.mean_loss = tf_keras.metrics.Mean(name="mean_loss")

    def compute_loss(self, features: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        """The mean squared error."""
        both = tf.concat([self.user_model(features["user"]), self.item_model(features["item"])], axis=1)
        ratings = self.mean_rating + self.rating_model(both)
        loss = self.ranking(labels=features["rating"], predictions=ratings[:, 0])
        self.mean_loss.update_state(loss)
        return loss


class TfrsTrainer:
    """A model in training, for `recsys.rounds.run_epochs`: its arrays are the weights and the optimizer's state."""

    def __init__(self, model: Any, columns: Arrays, optimizer: str, training: TrainingConfig) -> None:
        self.model, self.columns, self.training = model, columns, training
        kinds = {"adagrad": tf_keras.optimizers.Adagrad, "adam": tf_keras.optimizers.Adam}
        model.compile(optimizer=kinds[optimizer](training.learning_rate))
        users, items = (tower(tf.zeros(1, tf.int32)) for tower in (model.user_model, model.item_model))
        if model.rating_model is not None:
            model.rating_model(tf.concat([users, items], axis=1))
        model.optimizer.build(model.trainable_variables)  # before a state is put into it

    @property
    def arrays(self) -> Arrays:
        """Weights, then the optimizer's variables, as they are now."""
        return {f"{n:03d}": np.asarray(variable) for n, variable in enumerate(self._variables())}

    @arrays.setter
    def arrays(self, values: Arrays) -> None:
        """Put them back; a state has vectors of one number where there were single numbers."""
        for name, variable in zip(sorted(values), self._variables(), strict=True):
            variable.assign(np.reshape(values[name], variable.shape))

    def _variables(self) -> list[Any]:
        optimizer = self.model.optimizer.variables
        return [*self.model.trainable_variables, *(optimizer() if callable(optimizer) else optimizer)]

    def epoch(self, number: int) -> float:
        """One pass in an order that depends on the seed and the number of the epoch; the mean loss."""
        count = len(self.columns["user"])
        order = np.random.default_rng([self.training.seed, number]).permutation(count)
        shuffled = {name: column[order] for name, column in self.columns.items()}
        size = min(self.training.batch_size, count)
        data = tf.data.Dataset.from_tensor_slices(shuffled).batch(size, drop_remainder=True).prefetch(2)
        history = self.model.fit(data, epochs=1, verbose=0)
        return float(history.history["mean_loss"][0])

    def vectors(self, side: str) -> np.ndarray:
        """Vectors of all users or items, float32."""
        tower = self.model.user_model if side == "user" else self.model.item_model
        count = tower.layers[0].input_dim
        parts = [tower(tf.range(start, min(start + 8192, count))).numpy() for start in range(0, count, 8192)]
        return np.concatenate(parts)

    def rating_weights(self) -> tuple[np.ndarray, ...]:
        """Kernels and biases of the rating layers, the mean rating in the last bias."""
        *weights, last = (np.asarray(weight) for weight in self.model.rating_model.get_weights())
        return (*weights, last + np.float32(self.model.mean_rating))


def top_k_index(kind: str, vectors: np.ndarray, ids: Any, k: int) -> Any:
    """A layer of TFRS that finds the best items for vectors of users: `brute_force` or `streaming`."""
    layers = tfrs.layers.factorized_top_k
    if kind == "streaming":
        parts = tf.data.Dataset.from_tensor_slices((ids, vectors)).batch(4096)
        return layers.Streaming(k=k).index_from_dataset(parts)
    return layers.BruteForce(k=k).index(vectors, identifiers=tf.constant(ids))


def factorized_top_k(users: np.ndarray, items: np.ndarray, found: np.ndarray, ks: tuple[int, ...]) -> dict[str, float]:
    """TFRS's own FactorizedTopK of pairs: vectors of users (N, D), numbers `found` (N,) of their items in (I, D)."""
    index = top_k_index("brute_force", items, np.arange(len(items)), max(ks))
    metric = tfrs.metrics.FactorizedTopK(candidates=index, ks=ks)
    for start in range(0, len(users), 1024):
        part = slice(start, start + 1024)
        metric.update_state(users[part], items[found[part]], true_candidate_ids=tf.constant(found[part]))
    return {f"factorized_top_k@{k}": float(value) for k, value in zip(ks, metric.result(), strict=True)}
