"""TensorFlow Recommenders (TFRS) behind the same verbs: `TFRSRetriever` and `TFRSRanker`.

TFRS runs on Keras 2, everything else here on Keras 3. Both live in one process where TF_USE_LEGACY_KERAS=1 is in the
environment before TensorFlow is first imported; without it, importing this module is an error, and nothing else imports
it. Data, answers and files are those of the other recommenders. Of `TrainingConfig`, epochs, batch_size, learning_rate
(constant), patience and seed have an effect; a state is saved after each epoch.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import scipy.sparse as sp

from recsys.answering import pair_answers, plain
from recsys.answers import Id, Scores
from recsys.audience import Audience, Signals
from recsys.fitted import Fitted, fingerprint_of
from recsys.ids import IdIndex
from recsys.interactions import Interactions, as_interactions
from recsys.metrics import rmse
from recsys.models.network import recommender_network
from recsys.models.rating_layers import RatingLayers, RatingNetwork, RatingScorer
from recsys.models.scorers import Arrays, PopularityScorer, Scorer
from recsys.models.serving import export_recommender
from recsys.models.tfrs_models import RankerModel, RetrieverModel, TfrsTrainer, factorized_top_k, top_k_index
from recsys.models.two_tower import TowerScorer
from recsys.recipes import popularity_of
from recsys.recommender import Recommender
from recsys.rounds import run_epochs
from recsys.tfrs_config import TFRSRankerConfig, TFRSRetrieverConfig
from recsys.tower_training import numbered_histories
from shared.config import Config
from shared.data import Loading
from shared.export import ExportReport
from shared.pipeline import ExportFormat, FitOptions, History, Metrics

if TYPE_CHECKING:
    import keras

__all__ = ["TFRSRanker", "TFRSRankerConfig", "TFRSRetriever", "TFRSRetrieverConfig"]

_LAYERS = "rating_layers.safetensors"


@dataclass(frozen=True, eq=False)
class _Numbered:
    """A training set in numbers: histories (U, I), and `matrix`, those of them that are signs of liking."""

    users: IdIndex
    items: IdIndex
    histories: sp.csr_matrix
    matrix: sp.csr_matrix
    signals: Signals

    @classmethod
    def of(cls, data: Interactions, min_rating: float, *, all_items: bool) -> _Numbered:
        """The numbers of `data`; items that nobody liked are left out, unless `all_items` are learned."""
        signals = Signals(False, min_rating, False, data.ratings is not None)
        users, items, histories = numbered_histories(data, signals, all_items=all_items)
        return cls(users, items, histories, signals(histories), signals)

    def pairs(self, matrix: sp.csr_matrix) -> Arrays:
        """The entries of a matrix as columns of user and item numbers."""
        rows = np.repeat(np.arange(matrix.shape[0], dtype=np.int32), np.diff(matrix.indptr))
        return {"user": rows, "item": matrix.indices.astype(np.int32)}

    def fitted(self, scorer: Scorer, users: np.ndarray) -> Fitted:
        """What answers with a scorer and vectors of the users."""
        audience = Audience(self.users, self.histories, users, np.diff(self.matrix.indptr) > 0)
        return Fitted(self.items, scorer, audience, PopularityScorer(popularity_of(self.matrix)), self.signals)


class _TFRSPipeline(Recommender):
    """What both have in common: all but the model, its scorer, and what is said of ratings."""

    def __init__(self, config: Config | None = None) -> None:
        super().__init__(config)
        self._fitted: Fitted | None = None
        self._network: keras.Model | None = None

    def evaluate(
        self,
        data: Any,
        *,
        max_bad_share: float = 0.01,
        seen: Interactions | None = None,
        cutoffs: Sequence[int] = (10,),
        negatives: int = 0,
        seed: int = 0,
    ) -> Metrics:
        """How well held-out interactions are found again, and ratings predicted; see `CollaborativeFilter.evaluate`.

        Args:
            data: held-out `Interactions`.
            max_bad_share: has no effect here: readers refuse bad rows.
            seen: what is known of users beside the training set.
            cutoffs: the k of `recall@k` and so on.
            negatives: rank each held-out item among so many sampled ones instead.
            seed: of the sampled items.
        """
        fitted = self._parts("evaluate")
        fitted = fitted if seen is None else fitted.joined_by(seen)
        self.metrics = self._metrics(fitted, as_interactions(data), tuple(cutoffs), negatives=negatives, seed=seed)
        return self.metrics

    @property
    def model(self) -> keras.Model:
        """A Keras 3 model with a copy of the weights: user numbers (B,) -> scores of all items (B, I), float32."""
        fitted = self._parts("model")
        if self._network is None:
            self._network = self._keras_model(fitted)
        return self._network

    # What differs.

    def _metrics(
        self, fitted: Fitted, held: Interactions, cutoffs: tuple[int, ...], *, negatives: int = 0, seed: int = 0
    ) -> Metrics:
        metrics = fitted.metrics(held, cutoffs, negatives=negatives, seed=seed)
        if held.ratings is not None and self._predicts_ratings:
            held = held.unique()
            assert held.ratings is not None
            pairs = fitted.audience.users.numbers(held.users), fitted.items.numbers(held.items)
            return Metrics(
                {**metrics, "rmse": rmse(self._ratings(fitted, *pairs), held.ratings)}, details=metrics.details
            )
        return metrics

    @property
    @abc.abstractmethod
    def _predicts_ratings(self) -> bool: ...

    @abc.abstractmethod
    def _trainer(self, data: _Numbered, training: Any) -> tuple[TfrsTrainer, Callable[[], Fitted]]:
        """A model in training, and what answers with its weights as they are."""

    @abc.abstractmethod
    def _ratings(self, fitted: Fitted, users: np.ndarray, items: np.ndarray) -> np.ndarray: ...

    @abc.abstractmethod
    def _keras_model(self, fitted: Fitted) -> keras.Model: ...

    # Training.

    def _fit(self, train: Any, validation: Any, options: FitOptions) -> History:
        if options.profile is not None:
            raise ValueError("`profile` is for pipelines that train by this project's own loop. Leave it out here.")
        held = None if validation is None else as_interactions(validation, name="validation")
        rows = as_interactions(train, name="train")
        if self._predicts_ratings and rows.ratings is None:
            raise ValueError(
                "This model learns from ratings, and `train` has none. Give them, or set `rating_weight` to 0."
            )
        min_rating = getattr(self.config, "min_rating", -np.inf)
        data = _Numbered.of(rows, min_rating, all_items=self._predicts_ratings)
        fingerprint = fingerprint_of(data.users, data.items, data.histories)
        self.provenance["data"] = {"fingerprint": fingerprint, "num_examples": len(rows)}
        trainer, fitted = self._trainer(data, options.training)

        def validated() -> tuple[float, Metrics]:
            assert held is not None
            metrics = self._metrics(fitted(), held, (10,))
            return (-metrics["rmse"] if isinstance(self, TFRSRanker) else metrics.first), metrics

        training = options.training
        history = run_epochs(
            trainer,
            options,
            num_examples=len(trainer.columns["user"]),
            fingerprint={
                **self.config.to_dict(),
                "data": fingerprint,
                "training": [training.learning_rate, training.batch_size, training.seed],
            },
            validate=None if held is None else validated,
        )
        self._fitted, self._network = fitted(), None
        return replace(history, bad_records=tuple(map(str, rows.bad_records)))

    def _evaluate(self, data: Any, loading: Loading) -> Metrics:
        return self.evaluate(data)

    def _export(self, path: Path, format: ExportFormat) -> ExportReport:
        if format != "saved_model":
            raise ValueError(
                f"Recommenders are exported as saved_model, which takes raw ids and k; {format} has no tables for "
                "them. For tensors, convert `.model`."
            )
        return export_recommender(path, self._parts("export"), self.model)


class TFRSRetriever(_TFRSPipeline):
    """Two embedding towers trained with TFRS's retrieval task, and with its ranking task beside it (`rating_weight`).

    Example:
        >>> retriever = TFRSRetriever(TFRSRetrieverConfig(dim=8))
        >>> history = retriever.fit(data, training=TrainingConfig(epochs=20, batch_size=256, learning_rate=0.1))
        >>> retriever.recommend(["ann"], 3)
    """

    task: ClassVar[str] = "tfrs_retrieval"
    config_class: ClassVar[type[Config]] = TFRSRetrieverConfig
    config: TFRSRetrieverConfig

    def __init__(self, config: TFRSRetrieverConfig | None = None) -> None:
        super().__init__(config)
        self._layers: RatingLayers | None = None

    def fold_in(self, interactions: Any) -> None:
        """Take in interactions that came after training; see `TwoTowerRetriever.fold_in`."""
        self._fitted = self._parts("fold_in").joined_by(as_interactions(interactions, name="interactions"))
        self._network = None

    def predict_ratings(self, pairs: Sequence[tuple[Id, Id]]) -> list[float]:
        """Ratings of (user, item) pairs by the ranking task; of unknown ones the mean of known ratings.

        Raises:
            ValueError: where `rating_weight` is 0.
        """
        fitted = self._parts("predict_ratings")
        if not self._predicts_ratings:
            raise ValueError("This retriever learned no ratings: its `rating_weight` is 0. Train it with another.")
        users, items = ([plain(pair[side]) for pair in pairs] for side in range(2))
        found = self._ratings(fitted, fitted.audience.users.numbers(users), fitted.items.numbers(items))
        return [float(rating) for rating in found]

    def index(self, kind: Literal["brute_force", "streaming"] = "brute_force", k: int = 10) -> Any:
        """A top-k layer of TFRS over the catalogue: vectors of users (B, D) in, scores and item ids (B, k) out.

        It leaves nothing out; `recommend` does.

        Raises:
            ValueError: for another kind.
        """
        fitted = self._parts("index")
        if kind not in ("brute_force", "streaming"):
            raise ValueError(f"`kind` must be brute_force or streaming; received {kind!r}.")
        ids = fitted.items.entries
        ids = np.array(ids.tolist()) if ids.dtype == object else ids
        return top_k_index(kind, self._tower_scorer.items, ids, min(k, len(ids)))

    def user_vectors(self, users: Sequence[Id]) -> np.ndarray:
        """Vectors of known users, float32 (B, D): what `index` takes.

        Raises:
            ValueError: for users whom it does not know.
        """
        fitted = self._parts("user_vectors")
        numbers = fitted.audience.users.numbers(users)
        if (numbers < 0).any():
            raise ValueError(f"User {users[int(np.argmax(numbers < 0))]!r} was not in the training set.")
        vectors: np.ndarray = np.asarray(fitted.audience.represented)[numbers]
        return vectors

    def factorized_top_k(self, data: Any, ks: tuple[int, ...] = (1, 5, 10, 50, 100)) -> dict[str, float]:
        """TFRS's FactorizedTopK on held-out pairs: the share whose item is among the best k of all, seen ones included.

        Pairs with an unknown user or item are left out. The figures are lower than those of `evaluate`, which leaves
        out what was seen.

        Raises:
            ValueError: where the catalogue has fewer items than any of `ks`.
        """
        fitted, held = self._parts("factorized_top_k"), as_interactions(data)
        users, items = fitted.audience.users.numbers(held.users), fitted.items.numbers(held.items)
        known = fitted.usable(users) & (items >= 0)
        given, ks = ks, tuple(k for k in ks if 1 <= k <= len(fitted.items))
        if not ks:
            raise ValueError(
                f"`ks` must have a number from 1 to {len(fitted.items)}, the items there are; received {list(given)}."
            )
        vectors = np.asarray(fitted.audience.represented)[users[known]]
        return factorized_top_k(vectors, self._tower_scorer.items, items[known], ks)

    @property
    def _tower_scorer(self) -> TowerScorer:
        assert self._fitted is not None
        assert isinstance(self._fitted.scorer, TowerScorer)
        return self._fitted.scorer

    @property
    def _predicts_ratings(self) -> bool:
        return self.config.rating_weight > 0

    def _trainer(self, data: _Numbered, training: Any) -> tuple[TfrsTrainer, Callable[[], Fitted]]:
        counts = np.bincount(data.matrix.indices, minlength=len(data.items))
        columns = data.pairs(data.histories if self._predicts_ratings else data.matrix)
        mean = 0.0
        if self._predicts_ratings:
            liked = (data.histories.data >= self.config.min_rating).astype(np.float32)
            columns |= {"rating": data.histories.data.astype(np.float32), "liked": liked}
            mean = float(data.histories.data.mean())
        chances = np.maximum(counts, 1).astype(np.float32) / data.matrix.nnz
        model = RetrieverModel(len(data.users), len(data.items), self.config, chances, mean)
        trainer = TfrsTrainer(model, columns, self.config.update_rule, training)
        chose = np.diff(data.matrix.indptr) > 0

        def fitted() -> Fitted:
            users, items = trainer.vectors("user"), trainer.vectors("item")
            self._layers = RatingLayers(trainer.rating_weights()) if self._predicts_ratings else None
            return data.fitted(TowerScorer.of(users, items, chose, self.config.temperature, False), users)

        return trainer, fitted

    def _ratings(self, fitted: Fitted, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        assert self._layers is not None
        assert isinstance(fitted.scorer, TowerScorer)
        vectors = np.asarray(fitted.audience.represented)
        return _ratings(fitted, users, items, self._layers, vectors, fitted.scorer.items)

    def _keras_model(self, fitted: Fitted) -> keras.Model:
        audience = fitted.audience
        return recommender_network(fitted.scorer, audience.represented, audience.usable, fitted.popular.popularity)

    def _manifest(self) -> dict[str, Any]:
        return {"rated": self._parts("save").signals.rated}

    def _write(self, directory: Path) -> None:
        self._parts("save").write(directory)
        if self._layers is not None:
            from safetensors.numpy import save_file

            arrays = self._layers.arrays()
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, directory / _LAYERS)

    @classmethod
    def _from_directory(cls, directory: Path, config: TFRSRetrieverConfig, manifest: Mapping[str, Any]) -> Self:
        retriever = cls(config)
        signals = Signals(False, config.min_rating, False, bool(manifest["rated"]))

        def scorer(arrays: Arrays) -> TowerScorer:
            return TowerScorer.from_arrays(arrays, config.temperature, False)

        retriever._fitted = Fitted.read(directory, signals, scorer)
        if config.rating_weight:
            from safetensors.numpy import load_file

            retriever._layers = RatingLayers.from_arrays(load_file(directory / _LAYERS))
        return retriever


class TFRSRanker(_TFRSPipeline):
    """Ratings by TFRS's ranking task: embeddings of user and item, and dense layers over both.

    Scores are ratings, and `recommend` ranks all items by them. Users who were not in training get popular items, and
    for a pair with an unknown user or item `predict` gives the mean rating of the item, or of all. In `evaluate`, users
    whose history is in `seen` alone count as average ones.
    """

    task: ClassVar[str] = "tfrs_ranking"
    config_class: ClassVar[type[Config]] = TFRSRankerConfig
    config: TFRSRankerConfig

    def __init__(self, config: TFRSRankerConfig | None = None) -> None:
        super().__init__(config)

    def predict(self, inputs: Sequence[Any]) -> list[Scores]:
        """Ratings of pairs, in their order; in place of an item there may be a list of items for that user."""
        fitted = self._parts("predict")
        answers = []
        for answer in pair_answers(fitted, inputs):
            users = np.repeat(fitted.audience.users.numbers([answer.user]), len(answer.items))
            ratings = self._ratings(fitted, users, fitted.items.numbers(list(answer.items)))
            answers.append(replace(answer, scores=tuple(ratings.tolist())))
        return answers

    @property
    def _predicts_ratings(self) -> bool:
        return True

    def _trainer(self, data: _Numbered, training: Any) -> tuple[TfrsTrainer, Callable[[], Fitted]]:
        ratings = data.histories.data.astype(np.float32)
        columns = data.pairs(data.histories) | {"rating": ratings}
        model = RankerModel(len(data.users), len(data.items), self.config, float(ratings.mean()))
        trainer = TfrsTrainer(model, columns, self.config.update_rule, training)

        def fitted() -> Fitted:
            users, items = trainer.vectors("user"), trainer.vectors("item")
            return data.fitted(RatingScorer.of(users, items, RatingLayers(trainer.rating_weights())), users)

        return trainer, fitted

    def _ratings(self, fitted: Fitted, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        scorer = fitted.scorer
        assert isinstance(scorer, RatingScorer)
        return _ratings(fitted, users, items, scorer.layers, np.asarray(fitted.audience.represented), scorer.items)

    def _keras_model(self, fitted: Fitted) -> keras.Model:
        assert isinstance(fitted.scorer, RatingScorer)
        network = RatingNetwork(fitted.scorer, fitted.audience.usable, fitted.popular.popularity)
        network(np.zeros(1, np.int64))
        return network

    def _manifest(self) -> dict[str, Any]:
        return {"rated": True}

    def _write(self, directory: Path) -> None:
        self._parts("save").write(directory)

    @classmethod
    def _from_directory(cls, directory: Path, config: TFRSRankerConfig, manifest: Mapping[str, Any]) -> Self:
        ranker = cls(config)
        signals = Signals(False, -np.inf, False, bool(manifest["rated"]))

        def scorer(arrays: Arrays) -> RatingScorer:
            return RatingScorer.of(arrays["users"], arrays["items"], RatingLayers.from_arrays(arrays))

        ranker._fitted = Fitted.read(directory, signals, scorer)
        return ranker


def _ratings(
    fitted: Fitted, users: np.ndarray, items: np.ndarray, layers: RatingLayers, left: np.ndarray, right: np.ndarray
) -> np.ndarray:
    """Ratings of pairs by number, float32 (N,); where one side is unknown, the item's mean rating, or that of all."""
    histories = fitted.audience.histories
    known = (users >= 0) & (items >= 0)
    counts = np.bincount(histories.indices, minlength=histories.shape[1])
    sums = np.bincount(histories.indices, weights=histories.data, minlength=histories.shape[1])
    level = histories.data.mean()
    means = np.append(np.where(counts > 0, sums / np.maximum(counts, 1), level), level).astype(np.float32)
    ratings = means[np.where(items >= 0, items, len(counts))]
    ratings[known] = layers.of_pairs(left[users[known]], right[items[known]])
    return ratings
