"""Recommending what comes next: config and pipeline. It reads what a user chose in the order of time.

Scores are those of `collaborative_filtering`; what differs is that order counts, and that the model reads histories
which it was not trained on as it reads all others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from recsys.answering import recommendations
from recsys.answers import Id, Recommendations
from recsys.audience import Audience, Signals
from recsys.fitted import Fitted, fingerprint_of
from recsys.ids import IdIndex, numbered
from recsys.interactions import Interactions, as_interactions, pair_matrix
from recsys.models.scorers import Arrays, PopularityScorer
from recsys.recipes import popularity_of
from recsys.recommender import Recommender
from recsys.sequences import NO_ITEM, Sequences
from shared.config import Config, option
from shared.data import Arrays as Batch
from shared.data import InputPipeline, Loading, Stages
from shared.examples import Examples, listed
from shared.pipeline import ExportFormat, FitOptions, History, Metrics
from shared.runtime import current_runtime

if TYPE_CHECKING:
    import keras

    from recsys.models.next_item import Loss, SequenceScorer
    from recsys.models.sequence_network import SequenceNetwork
    from shared.export import ExportReport
    from shared.training import TrainingTask
    from shared.training_config import TrainingConfig

# Lengths of training batches are multiples of this where each shape costs a compilation.
_FEW_LENGTHS = 10
# Histories on which an export is compared with `recommend_next`, and how many items each is given.
_COMPARED = 10


@dataclass(frozen=True, kw_only=True)
class SequentialRecommenderConfig(Config):
    """Which network, and how large."""

    model: Literal["sasrec", "gru4rec"] = option("sasrec", "self-attention, or gated recurrent units")
    max_length: int = option(50, "items of a user that are read, the last ones", minimum=1, unit="items")
    dim: int = option(64, "numbers by which an item is described", minimum=1)
    num_layers: int = option(2, "layers", minimum=1)
    num_heads: int = option(2, "heads of attention; divides dim (sasrec)", minimum=1)
    hidden_dim: int = option(0, "width of the feed-forward part, 0: four times dim (sasrec)", minimum=0)
    dropout: float = option(0.3, "share of values that are dropped in training", minimum=0.0, maximum=0.95)
    loss: Literal["softmax", "sampled_softmax"] = option(
        "softmax", "over all items, or over `num_sampled` of them: for catalogues beyond some 100,000"
    )
    num_sampled: int = option(2048, "items drawn for each batch (sampled_softmax)", minimum=1)
    min_rating: float = option(0.0, "ratings below are no sign of liking: such items are not read")
    seed: int = option(0, "seed of the initial weights and of dropout", minimum=0, maximum=2**32 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model == "sasrec" and self.dim % self.num_heads:
            raise ValueError(f"`num_heads` must divide `dim`; received {self.num_heads} heads and dim {self.dim}.")


class SequentialRecommender(Recommender):
    """Interactions in the order of time in, the next items out.

    Users and items are the caller's own ids. A user's answer depends on what they chose, not on who they are: users
    who come after training get the model's answer once their history is known (`fold_in`, or `recommend_next` for
    histories without users). Those without one get the most popular items (`origin` says so). Items that training did
    not have are not read, never recommended, and score 0.

    Example:
        >>> data = Interactions(["ann", "ann", "ann", "bob", "bob", "eve"], ["tea", "jam", "bun", "tea", "jam", "tea"])
        >>> recommender = SequentialRecommender(SequentialRecommenderConfig(dim=8, num_layers=1, dropout=0.0))
        >>> history = recommender.fit(data, training=TrainingConfig(epochs=60, learning_rate=0.05))
        >>> recommender.recommend(["eve"], 1)[0].items
        ('jam',)
    """

    task: ClassVar[str] = "sequential_recommendation"
    config_class: ClassVar[type[Config]] = SequentialRecommenderConfig
    config: SequentialRecommenderConfig

    def __init__(self, config: SequentialRecommenderConfig | None = None) -> None:
        super().__init__(config)
        self._fitted: Fitted | None = None
        self._trained = False
        self._served: keras.Model | None = None

    # Answers.

    @property
    def is_fitted(self) -> bool:
        """Whether the pipeline can answer."""
        return self._trained

    def recommend_next(
        self,
        histories: Sequence[Sequence[Id]],
        k: int = 10,
        *,
        seen: bool = True,
        exclude: Iterable[Id] = (),
        candidates: Iterable[Id] | None = None,
    ) -> list[Recommendations]:
        """The best `k` next items after each history, whoever's it is: nothing is kept.

        Args:
            histories: item ids, oldest first. Unknown items are not read; a history without known ones gets the most
                popular items.
            k: at least 1.
            seen: leave out the items of the history.
            exclude: items that are left out for everybody.
            candidates: the only items that may be recommended; None: the whole catalogue.

        Returns:
            One answer for each history; `user` is its place in the list.

        Raises:
            NotFittedError: before `fit`.
            TypeError: for item ids of another kind than those of the training set, or one string as a history.
        """
        fitted = self._parts("recommend_next")
        lists = [listed(history, "item ids") for history in listed(histories, "histories")]
        rows = np.repeat(np.arange(len(lists)), [len(history) for history in lists])
        columns = fitted.items.numbers([item for history in lists for item in history])
        users = IdIndex(np.arange(len(lists)), "user")
        shape = (len(lists), len(fitted.items))
        sequences = Sequences.of_pairs(rows, columns, len(lists), None)
        audience = Audience(users, pair_matrix(rows, columns, shape), sequences, sequences.lengths > 0)
        places = list(range(len(lists)))
        asked = replace(fitted, audience=audience)
        return recommendations(asked, places, k, seen=seen, exclude=exclude, candidates=candidates)

    def fold_in(self, interactions: Any) -> None:
        """Take in interactions that came after training, of new users or known ones; the model stays as it is.

        They follow, in their own order of time, what is known of their users. `save` keeps them. Items that training
        did not have are left out.
        """
        fitted = self._parts("fold_in")
        self._fitted = fitted.joined_by(as_interactions(interactions, name="interactions"))
        self._served = None

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
            seen: what users chose after the training set and before `data`, such as the validation set.
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
        """A Keras model around the trained network: user numbers (B,) -> scores of all items (B, I), float32."""
        fitted = self._parts("model")
        if self._served is None:
            from recsys.models.network import SequenceRecommenderNetwork

            assert isinstance(fitted.audience.represented, Sequences)
            self._served = SequenceRecommenderNetwork(
                self._scorer.network, fitted.audience.represented, self.config.max_length, fitted.popular.popularity
            )
            self._served(np.zeros(1, np.int64))
        return self._served

    # Training.

    def training_task(self, train: Any, training: TrainingConfig) -> TrainingTask:
        """What the training loop, and the learning-rate finder, need: network, loss and batches for `train`."""
        from shared.training import TrainingTask, run_fingerprint, training_loading

        data = as_interactions(train, name="train")
        fitted = self._prepare(data)
        assert isinstance(fitted.audience.represented, Sequences)
        windows = fitted.audience.represented.windows(self.config.max_length + 1)
        if not windows:
            raise ValueError(
                "Nobody has two interactions, and so nothing comes after anything. Check the users' ids, and "
                f"`min_rating` ({self.config.min_rating:g})."
            )
        drawn = self._draw_items if self.config.loss == "sampled_softmax" else None
        stages = Stages(
            encode=lambda window, _: {"sequence": window},
            collate=self._collate,
            augment_batch=drawn,
            length=lambda example: len(example["sequence"]),
        )
        # Windows are in memory already: nothing is cached.
        loading = replace(training_loading(training), cache_bytes=0)
        batches = InputPipeline(Examples(windows, np.zeros(len(windows), np.int8)), stages, loading)
        fingerprint = run_fingerprint(self, batches)
        data_hash = fingerprint_of(fitted.audience.users, fitted.items, fitted.audience.histories)
        self.provenance["data"] |= {"fingerprint": data_hash, "num_examples": len(data)}
        return TrainingTask(
            model=self._scorer.network,
            loss=self._loss(training),
            batches=batches,
            fingerprint={**fingerprint, "data": f"{fingerprint['data']} {data_hash}"},
            varying_shapes=True,
        )

    def _fit(self, train: Any, validation: Any, options: FitOptions) -> History:
        from shared.training import run_training

        held = None if validation is None else as_interactions(validation, name="validation")
        data = as_interactions(train, name="train")
        task = self.training_task(data, options.training)
        if held is not None:
            portion = current_runtime().workers.portion
            task = replace(task, validate=lambda: self._known.metrics(held, (10,), portion=portion))
        history = run_training(task, options)
        self._trained = True
        return replace(history, bad_records=(*map(str, data.bad_records), *history.bad_records))

    def _prepare(self, data: Interactions) -> Fitted:
        """An untrained network and everything around it."""
        from recsys.models.next_item import SequenceScorer

        signals = Signals(False, self.config.min_rating, False, data.ratings is not None)
        (user_ids, rows), (item_ids, columns) = numbered(data.users), numbered(data.items)
        users, items = IdIndex(user_ids, "user"), IdIndex(item_ids, "item")
        shape = (len(users), len(items))
        histories = pair_matrix(rows, columns, shape, values=data.ratings, timestamps=data.timestamps)
        sequences = Sequences.of(signals.liked(data), users, items)
        scorer = SequenceScorer(self._network(len(items)), self.config.max_length)
        audience = Audience(users, histories, sequences, sequences.lengths > 0)
        popular = PopularityScorer(popularity_of(signals(histories)))
        self._fitted, self._served, self._trained = Fitted(items, scorer, audience, popular, signals), None, False
        return self._fitted

    def _network(self, num_items: int) -> SequenceNetwork:
        from recsys.models.sequence_network import AttentionNetwork, RecurrentNetwork
        from shared.runtime import seeded

        config = self.config
        fields: dict[str, Any] = {"dim": config.dim, "num_layers": config.num_layers, "dropout": config.dropout}
        network: SequenceNetwork
        with current_runtime().scope(), seeded(config.seed):
            if config.model == "gru4rec":
                network = RecurrentNetwork(num_items, **fields)
            else:
                network = AttentionNetwork(
                    num_items,
                    **fields,
                    num_heads=config.num_heads,
                    hidden_dim=config.hidden_dim or 4 * config.dim,
                    max_length=config.max_length,
                )
            network(np.zeros((1, 1), np.int32), np.ones(1, np.int32))
        return network

    def _collate(self, examples: Sequence[Batch]) -> Batch:
        """Windows of B users: items and, one place on, targets (B, T), int32; -1 where there is none."""
        lengths = np.array([len(example["sequence"]) - 1 for example in examples], np.int32)
        width = int(lengths.max())
        if current_runtime().few_shapes:
            width = min(-(-width // _FEW_LENGTHS) * _FEW_LENGTHS, max(self.config.max_length, width))
        items, targets = (np.full((len(examples), width), NO_ITEM, np.int32) for _ in range(2))
        for row, (example, length) in enumerate(zip(examples, lengths.tolist(), strict=True)):
            items[row, :length], targets[row, :length] = example["sequence"][:-1], example["sequence"][1:]
        return {"items": items, "lengths": lengths, "targets": targets}

    def _draw_items(self, batch: Batch, rng: np.random.Generator) -> Batch:
        num_items = len(self._known.items)
        return {**batch, "sampled": rng.integers(0, num_items, self.config.num_sampled, np.int32)}

    def _loss(self, training: TrainingConfig) -> Loss:
        from recsys.models.next_item import sampled_softmax_loss, softmax_loss

        network = self._scorer.network
        if self.config.loss == "softmax":
            return softmax_loss(network, training.label_smoothing)
        if training.label_smoothing:
            raise ValueError("`label_smoothing` is for the loss over all items. Set it to 0, or take loss=softmax.")
        return sampled_softmax_loss(network)

    @property
    def _scorer(self) -> SequenceScorer:
        from recsys.models.next_item import SequenceScorer

        scorer = self._known.scorer
        assert isinstance(scorer, SequenceScorer)
        return scorer

    def _evaluate(self, data: Any, loading: Loading) -> Metrics:
        return self.evaluate(data)

    @property
    def _known(self) -> Fitted:
        """The parts, in training too."""
        assert self._fitted is not None
        return self._fitted

    # Files.

    def _manifest(self) -> dict[str, Any]:
        return {"rated": self._parts("save").signals.rated}

    def _write(self, directory: Path) -> None:
        self._parts("save").write(directory)

    @classmethod
    def _from_directory(cls, directory: Path, config: SequentialRecommenderConfig, manifest: Mapping[str, Any]) -> Self:
        recommender = cls(config)
        signals = Signals(False, config.min_rating, False, bool(manifest["rated"]))
        recommender._fitted = Fitted.read(directory, signals, recommender._scorer_from)
        recommender._trained = True
        return recommender

    def _scorer_from(self, arrays: Arrays) -> SequenceScorer:
        from recsys.models.next_item import SequenceScorer

        network = self._network(len(arrays["network/table"]))
        for weight in network.weights:
            weight.assign(arrays[weight.path])
        return SequenceScorer(network, self.config.max_length)

    def _export(self, path: Path, format: ExportFormat) -> ExportReport:
        if format != "saved_model":
            raise ValueError(
                f"Recommenders are exported as saved_model, which takes raw ids and k; {format} has no tables for "
                "them. For tensors, convert `.model`."
            )
        from recsys.models.serving import HistoryServing, export_recommender, history_endpoint

        network, fitted = self.model, self._parts("export")
        histories = _examples_of_histories(fitted)
        k = min(_COMPARED, len(fitted.items))
        answers = self.recommend_next(histories, k)
        after = history_endpoint(HistoryServing(network, fitted.items.entries), histories, answers, k)
        return export_recommender(path, fitted, network, more={"serve_histories": after})


def _examples_of_histories(fitted: Fitted) -> list[list[Id]]:
    """Histories of a few users, and one that is empty."""
    sequences = fitted.audience.represented
    assert isinstance(sequences, Sequences)
    chosen = np.unique(np.linspace(0, sequences.shape[0] - 1, _COMPARED).astype(int))
    return [*(fitted.items.ids(sequences[[row]].items) for row in chosen.tolist()), []]
