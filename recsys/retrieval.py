"""Retrieval with two towers: config and pipeline. It knows users and items by their ids, and by features of either.

Scores are those of `collaborative_filtering`; what differs is that users and items who come after training are known by
their features, and that training goes by batches of interactions, whatever the size of the catalogue.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import scipy.sparse as sp

from recsys.answering import recommendations
from recsys.answers import Id, Recommendations
from recsys.audience import Audience, Signals
from recsys.feature_encoder import FeatureEncoder
from recsys.features import Features
from recsys.fitted import Fitted
from recsys.ids import IdIndex
from recsys.interactions import Interactions, as_interactions
from recsys.models.scorers import Arrays, PopularityScorer
from recsys.recommender import Recommender
from recsys.tower_training import SIDES, TowerRun, tower_network
from shared.config import Config, option
from shared.data import Loading
from shared.pipeline import AfterEpoch, ExportFormat, FitOptions, History, Metrics
from shared.runtime import current_runtime

if TYPE_CHECKING:
    import keras

    from recsys.models.two_tower import TowerScorer, TwoTowers
    from shared.export import ExportReport
    from shared.training import TrainingTask
    from shared.training_config import TrainingConfig

_TOWERS = "towers.safetensors"


@dataclass(frozen=True, kw_only=True)
class TwoTowerRetrieverConfig(Config):
    """How large the towers are, and what a user's own item is told from."""

    dim: int = option(64, "numbers by which users and items are described", minimum=1)
    hidden_dims: tuple[int, ...] = option((), "widths of dense layers in each tower; none: sums of embeddings")
    normalize: bool = option(False, "vectors of length 1: scores are cosines")
    temperature: float = option(1.0, "divides scores in training; 0.05 to 0.2 with normalize", minimum=1e-3)
    log_q: bool = option(True, "correct for how often an item comes into a batch")
    uniform_negatives: int = option(0, "items drawn uniformly for each batch, beside its own", minimum=0)
    hard_negatives: int = option(0, "only so many items count beside a user's own, the best scored; 0: all", minimum=0)
    id_dropout: float = option(
        0.1, "share of ids left out in training, where there are features", minimum=0.0, maximum=1.0
    )
    min_count: int = option(2, "rows from which on a category of a feature counts", minimum=1)
    min_rating: float = option(0.0, "ratings below are no sign of liking")
    seed: int = option(0, "seed of the initial weights", minimum=0, maximum=2**32 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(width < 1 for width in self.hidden_dims):
            raise ValueError(f"`hidden_dims` must be widths of at least 1; received {list(self.hidden_dims)}.")


class TwoTowerRetriever(Recommender):
    """Interactions in, and features of users and items where there are any; items for users out.

    Users and items are the caller's own ids. The ladder for users: who was in training gets the model's answer; so does
    who came later with a history (`fold_in`); who is known by features alone gets the answer for these (`add_users`,
    `recommend_by_features`; `origin` "features"); everybody else gets the most popular items ("popularity"). Items that
    came later are recommended once their features are known (`add_items`); all others are not, and score 0.

    Example:
        >>> data = Interactions(["ann", "ann", "bob", "bob", "eve"], ["tea", "jam", "tea", "jam", "tea"])
        >>> retriever = TwoTowerRetriever(TwoTowerRetrieverConfig(dim=8))
        >>> history = retriever.fit(data, training=TrainingConfig(epochs=50, batch_size=5, learning_rate=0.05))
        >>> retriever.recommend(["eve"], 1)[0].items
        ('jam',)
    """

    task: ClassVar[str] = "retrieval"
    config_class: ClassVar[type[Config]] = TwoTowerRetrieverConfig
    config: TwoTowerRetrieverConfig

    def __init__(self, config: TwoTowerRetrieverConfig | None = None) -> None:
        super().__init__(config)
        self._fitted: Fitted | None = None
        self._encoders: dict[str, FeatureEncoder] = {}
        # The towers less the ids of training: what newcomers are described by.
        self._towers: TwoTowers | None = None
        self._num_items = 0  # of training; those after them came later
        self._network: keras.Model | None = None
        self._features: dict[str, Features] = {}

    # Answers.

    def recommend_by_features(
        self, features: Any, k: int = 10, *, exclude: Iterable[Id] = (), candidates: Iterable[Id] | None = None
    ) -> list[Recommendations]:
        """The best `k` items for users of whom only features are known; nothing is kept.

        Args:
            features: a row for each user: `Features`, columns by name, or a list of dicts.
            k: at least 1.
            exclude: items that are left out for everybody.
            candidates: the only items that may be recommended; None: the whole catalogue.

        Returns:
            One answer for each row; `user` is its place.

        Raises:
            NotFittedError: before `fit`.
            ValueError: where training had no features of users, and for columns that are missing.
        """
        fitted = self._parts("recommend_by_features")
        vectors = self._newcomers("user", self._encoder("user").encode(features))
        count = len(vectors)
        nothing = sp.csr_matrix((count, len(fitted.items)), dtype=np.float32)
        yes = np.ones(count, bool)
        audience = Audience(IdIndex(np.arange(count), "user"), nothing, vectors, yes, yes)
        asked = replace(fitted, audience=audience)
        return recommendations(asked, list(range(count)), k, exclude=exclude, candidates=candidates)

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
        """How well held-out interactions are found again; see `CollaborativeFilter.evaluate`.

        Args:
            data: held-out `Interactions`; those below `min_rating` are left out.
            max_bad_share: has no effect here: readers refuse bad rows.
            seen: what is known of users beside the training set; as with `fold_in`, vectors of new users come from it.
            cutoffs: the k of `recall@k` and so on.
            negatives: rank each held-out item among so many sampled ones instead.
            seed: of the sampled items.
        """
        fitted = self._parts("evaluate")
        held = as_interactions(data)
        fitted = fitted if seen is None else fitted.joined_by(seen)
        self.metrics = fitted.metrics(held, tuple(cutoffs), negatives=negatives, seed=seed)
        return self.metrics

    @property
    def model(self) -> keras.Model:
        """A Keras model with a copy of the vectors: user numbers (B,) -> scores of all items (B, I), float32."""
        fitted = self._parts("model")
        if self._network is None:
            from recsys.models.network import recommender_network

            audience = fitted.audience
            self._network = recommender_network(
                fitted.scorer, audience.represented, audience.usable, fitted.popular.popularity
            )
        return self._network

    # Newcomers.

    def fold_in(self, interactions: Any) -> None:
        """Take in interactions that came after training, of new users or known ones; the model stays as it is.

        New users, and those of the training set who liked nothing there, get the vectors that their histories make
        likeliest (`recsys.models.two_tower.softmax_users`); all others of the training set keep theirs, and their new
        items count as seen. `save` keeps them. Items that are not in the catalogue are left out.
        """
        fitted = self._parts("fold_in")
        self._set(fitted.joined_by(as_interactions(interactions, name="interactions")))

    def add_items(self, features: Features) -> tuple[Id, ...]:
        """Put items that came after training into the catalogue, described by their features; nothing is trained.

        They are recommended like others from now on, and `save` keeps them. Items of the training set stay as they are;
        those that were added before take their new features.

        Args:
            features: a table with `ids` and the columns of training.

        Returns:
            The ids that were added or described anew.

        Raises:
            NotFittedError: before `fit`.
            ValueError: where training had no features of items, for a table without ids, and for missing columns.
            TypeError: for ids of another kind than those of the training set.
        """
        fitted = self._parts("add_items")
        ids, vectors = self._described("item", features, fitted.items, self._num_items)
        items = fitted.items.extended(ids)
        scorer = self._scorer
        merged = _with_rows(scorer.items, items.numbers(ids), vectors, len(items))
        histories = fitted.audience.histories
        wider = sp.csr_matrix((histories.data, histories.indices, histories.indptr), (histories.shape[0], len(items)))
        popularity = np.zeros(len(items), np.float32)
        popularity[: len(fitted.items)] = fitted.popular.popularity
        self._set(
            replace(
                fitted,
                items=items,
                scorer=self._with_items(scorer, merged),
                audience=replace(fitted.audience, histories=wider),
                popular=PopularityScorer(popularity),
            )
        )
        return tuple(ids.tolist())

    def add_users(self, features: Features) -> tuple[Id, ...]:
        """Make users known by their features who have no history; see `add_items`.

        Their answers have the `origin` "features", until `fold_in` gives them a history. Users with a history stay as
        they are.
        """
        fitted = self._parts("add_users")
        audience = fitted.audience
        before = np.zeros(len(audience.users), bool) if audience.by_features is None else audience.by_features
        ids, vectors = self._described("user", features, audience.users, audience.usable & ~before)
        users = audience.users.extended(ids)
        numbers = users.numbers(ids)
        by_features = np.append(before, np.zeros(len(users) - len(before), bool))
        by_features[numbers] = True
        usable = np.append(audience.usable, np.zeros(len(users) - len(before), bool)) | by_features
        histories = audience.histories
        offsets = np.append(histories.indptr, np.full(len(users) - len(before), histories.indptr[-1]))
        taller = sp.csr_matrix((histories.data, histories.indices, offsets), (len(users), len(fitted.items)))
        merged = _with_rows(np.asarray(audience.represented), numbers, vectors, len(users))
        self._set(replace(fitted, audience=Audience(users, taller, merged, usable, by_features)))
        return tuple(ids.tolist())

    def _described(
        self, side: str, features: Any, index: IdIndex, kept: int | np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ids and vectors of those rows of a table whose ids are new, or not among the `kept` ones of the index."""
        encoder = self._encoder(side)
        if not isinstance(features, Features) or features.ids is None:
            raise TypeError(
                f"`features` must be a Features table with `ids`, those of the {side}s; received "
                f"{'one without' if isinstance(features, Features) else type(features).__name__}."
            )
        numbers = index.numbers(features.ids)
        stays = numbers < kept if isinstance(kept, int) else np.append(kept, False)[numbers]
        rows = np.flatnonzero((numbers < 0) | ~stays)
        return features.ids[rows], self._newcomers(side, encoder.encode(features.take(rows)))

    def _encoder(self, side: str) -> FeatureEncoder:
        if side not in self._encoders:
            raise ValueError(
                f"This retriever was trained without features of {side}s, so it cannot tell new {side}s apart. Train "
                f"it with `fit(..., {side}_features=...)`."
            )
        return self._encoders[side]

    def _newcomers(self, side: str, arrays: Arrays) -> np.ndarray:
        """Vectors of rows of encoded features, without ids."""
        assert self._towers is not None
        tower = self._towers.users if side == "user" else self._towers.items
        count = len(next(iter(arrays.values())))
        return tower.vectors(np.full(count, tower.num_ids), arrays)

    def _with_items(self, scorer: TowerScorer, items: np.ndarray) -> TowerScorer:
        from recsys.models.two_tower import TowerScorer

        assert scorer.mean is not None
        assert scorer.factor is not None
        parts = scorer.mean, scorer.factor, scorer.fixed
        return TowerScorer.with_prior(scorer.users, items, *parts, self.config.temperature, self.config.normalize)

    # Training.

    def fit(
        self,
        train: Any,
        validation: Any = None,
        *,
        user_features: Features | None = None,
        item_features: Features | None = None,
        training: TrainingConfig | None = None,
        checkpoint: str | Path | None = None,
        resume: bool = False,
        log: str | Path | None = None,
        profile: str | Path | None = None,
        after_epoch: AfterEpoch | None = None,
    ) -> History:
        """Train on `train`, keeping the weights that are best on `validation` by ndcg@10.

        Args:
            train: `Interactions`, or (users, items).
            validation: the same; None: the last weights are kept.
            user_features: a table with the users' ids; users whom it lacks have a row without anything.
            item_features: the same of items. Ids that `train` does not have are left out: `add_items` afterwards.
            training: epochs, batch size (1024 to 4096 here: the batch is what an item is told from), learning rate.
            checkpoint: directory of states to resume from.
            resume: go on with the state there.
            log: file for one JSON line per epoch.
            profile: directory for a trace and a summary of where the time goes.
            after_epoch: is called after each epoch with its record.

        Raises:
            TypeError, ValueError: for data, features or options that do not fit; the message says what was expected.
            TrainingInterrupted: after a signal, once the state is saved.
        """
        self._features = _given(user_features, item_features)
        try:
            return super().fit(
                train,
                validation,
                training=training,
                checkpoint=checkpoint,
                resume=resume,
                log=log,
                after_epoch=after_epoch,
                profile=profile,
            )
        finally:
            self._features = {}

    def training_task(
        self,
        train: Any,
        training: TrainingConfig,
        *,
        user_features: Features | None = None,
        item_features: Features | None = None,
    ) -> TrainingTask:
        """What the training loop, and the learning-rate finder, need: network, loss and batches for `train`."""
        data = as_interactions(train, name="train")
        return TowerRun.start(self.config, data, _given(user_features, item_features)).task(training)

    def _fit(self, train: Any, validation: Any, options: FitOptions) -> History:
        from shared.training import run_training

        held = None if validation is None else as_interactions(validation, name="validation")
        data = as_interactions(train, name="train")
        run = TowerRun.start(self.config, data, self._features)
        task = run.task(options.training)
        self.provenance["data"] = {"fingerprint": task.fingerprint["data"], "num_examples": len(data)}
        if held is not None:
            portion = current_runtime().workers.portion
            task = replace(task, validate=lambda: run.fitted().metrics(held, (10,), portion=portion))
        history = run_training(task, options)
        self._encoders, self._num_items = run.encoders, len(run.items)
        self._towers = run.without_ids() if run.encoders else None
        self._set(run.fitted())
        return replace(history, bad_records=(*map(str, data.bad_records), *history.bad_records))

    def _set(self, fitted: Fitted) -> None:
        self._fitted, self._network = fitted, None

    def _evaluate(self, data: Any, loading: Loading) -> Metrics:
        return self.evaluate(data)

    @property
    def _scorer(self) -> TowerScorer:
        from recsys.models.two_tower import TowerScorer

        assert self._fitted is not None
        assert isinstance(self._fitted.scorer, TowerScorer)
        return self._fitted.scorer

    # Files.

    def _manifest(self) -> dict[str, Any]:
        features = sorted(self._encoders)
        return {"rated": self._parts("save").signals.rated, "num_items": self._num_items, "features": features}

    def _write(self, directory: Path) -> None:
        self._parts("save").write(directory)
        for side, encoder in self._encoders.items():
            encoder.save(directory / f"{side}_features.json")
        if self._towers is not None:
            from safetensors.numpy import save_file

            weights = self._towers.named_weights()
            save_file({name: np.ascontiguousarray(w.numpy()) for name, w in weights.items()}, directory / _TOWERS)

    @classmethod
    def _from_directory(cls, directory: Path, config: TwoTowerRetrieverConfig, manifest: Mapping[str, Any]) -> Self:
        retriever = cls(config)
        signals = Signals(False, config.min_rating, False, bool(manifest["rated"]))
        retriever._num_items = int(manifest["num_items"])
        for side in manifest["features"]:
            retriever._encoders[side] = FeatureEncoder.load(directory / f"{side}_features.json")
        if retriever._encoders:
            from safetensors.numpy import load_file

            arrays = load_file(directory / _TOWERS)
            retriever._towers = tower_network(config, dict.fromkeys(SIDES, 0), retriever._encoders)
            for name, weight in retriever._towers.named_weights().items():
                weight.assign(arrays[name])
        retriever._fitted = Fitted.read(directory, signals, retriever._scorer_from)
        return retriever

    def _scorer_from(self, arrays: Arrays) -> TowerScorer:
        from recsys.models.two_tower import TowerScorer

        return TowerScorer.from_arrays(arrays, self.config.temperature, self.config.normalize)

    def _export(self, path: Path, format: ExportFormat) -> ExportReport:
        if format != "saved_model":
            raise ValueError(
                f"Recommenders are exported as saved_model, which takes raw ids and k; {format} has no tables for "
                "them. For tensors, convert `.model`."
            )
        from recsys.models.serving import export_recommender

        fitted, more = self._parts("export"), {}
        if "user" in self._encoders:
            from recsys.models.tower_serving import feature_endpoint

            assert self._towers is not None
            more["serve_features"] = feature_endpoint(self._towers.users, self._encoders["user"], fitted, self)
        return export_recommender(path, fitted, self.model, more=more)


def _given(user_features: Any, item_features: Any) -> dict[str, Features]:
    """The tables that are there, by side.

    Raises:
        TypeError: for what is no table, or one without ids.
    """
    given = {
        side: table for side, table in zip(SIDES, (user_features, item_features), strict=True) if table is not None
    }
    for side, table in given.items():
        if not isinstance(table, Features) or table.ids is None:
            raise TypeError(
                f"`{side}_features` must be a Features table with `ids`, those of the {side}s; received "
                f"{'one without' if isinstance(table, Features) else type(table).__name__}."
            )
    return given


def _with_rows(vectors: np.ndarray, numbers: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """A table of `count` vectors that begins with `vectors`, with `rows` at `numbers`."""
    merged = np.zeros((count, vectors.shape[1]), np.float32)
    merged[: len(vectors)] = vectors
    merged[numbers] = rows
    return merged
