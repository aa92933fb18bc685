"""Ranking: config and pipeline. Rows of features in, the probability of a click (or a rating) out.

The tables that it takes are `recsys.features.Features`; how columns become arrays is in `recsys.feature_encoder`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np

from recsys.answers import Recommendations, RowScore
from recsys.feature_encoder import Arrays, FeatureEncoder
from recsys.features import Column, Features, features_of_rows
from recsys.metrics import auc, calibration_error, log_loss, rmse
from recsys.row_batches import RowBatches
from recsys.top_k import top_k
from shared.config import Config, option
from shared.data import Loading
from shared.examples import listed
from shared.pipeline import ExportFormat, FitOptions, History, Metrics, Pipeline
from shared.runtime import current_runtime
from shared.scoring import measured

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from recsys.models.ranking_network import RankingNetwork
    from shared.export import ExportReport
    from shared.training import TrainingTask
    from shared.training_config import TrainingConfig

_ENCODER, _WEIGHTS = "features.json", "model.safetensors"
# Rows of a table from which on a step updates only those that its batch has: with a million, whole tables take nearly
# all of a step's time.
_ROW_WISE = 50_000
# Rows that are encoded and scored at a time.
_ENCODED, _SCORED = 65_536, 4096


@dataclass(frozen=True, kw_only=True)
class RankerConfig(Config):
    """Which network, how large, and how features become numbers; settings of other networks have no effect."""

    model: Literal["dlrm", "dcn_v2", "deepfm", "wide_deep"] = option("dcn_v2", "network")
    objective: Literal["click", "rating"] = option("click", "what is learned: 0 or 1 (log loss), any number (squares)")
    dim: int = option(16, "numbers by which a category is described", minimum=1)
    hidden: tuple[int, ...] = option((256, 128), "widths of the dense layers")
    bottom: tuple[int, ...] = option((64,), "widths of the dense layers over numbers (dlrm)")
    cross_layers: int = option(2, "cross layers (dcn_v2)", minimum=1)
    cross_rank: int = option(0, "rank of a cross layer's matrix, 0: full (dcn_v2)", minimum=0)
    crosses: tuple[str, ...] = option((), "pairs of columns, as job*sex, that get weights together (wide_deep)")
    cross_buckets: int = option(10_000, "weights for each cross (wide_deep)", minimum=1)
    dropout: float = option(0.1, "share of values that are dropped in training", minimum=0.0, maximum=0.95)
    min_count: int = option(2, "rows from which on a category gets numbers of its own", minimum=1)
    max_vocabulary: int = option(100_000, "most categories of a column with numbers of their own", minimum=1)
    hash_buckets: int = option(0, "hash columns with more, into so many; 0: rarer ones are unknown", minimum=0)
    hashed: tuple[str, ...] = option((), "columns that are hashed into hash_buckets however many they have")
    max_values: int = option(20, "categories of a row of a multi-valued column that are read", minimum=1)
    buckets: int = option(32, "quantile ranges of a number that are categories, too; 0: none", minimum=0)
    seed: int = option(0, "seed of the initial weights and of dropout", minimum=0, maximum=2**32 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("hidden", "bottom"):
            if any(width < 1 for width in getattr(self, name)):
                raise ValueError(f"`{name}` must hold widths of at least 1; received {getattr(self, name)}.")
        for cross in self.crosses:
            if len([part for part in cross.split("*") if part]) != 2:
                raise ValueError(f"A cross is two columns with * between, as job*sex; received {cross!r}.")
        if self.hashed and not self.hash_buckets:
            raise ValueError("`hashed` needs `hash_buckets`, the number of buckets. Set it to 10000, say.")


class Ranker(Pipeline):
    """Rows of features in, scores out.

    A row is what is known when something is shown to somebody: features of user, item and moment, as a table has them
    (`Features`), or as dicts. Unknown categories, missing values and numbers out of range have answers of their own:
    see `recsys.feature_encoder`.

    Example:
        >>> table = Features({"hour": [8, 9, 20, 21] * 8, "ad": ["tea", "beer"] * 16}, targets=[1, 0, 0, 1] * 8)
        >>> ranker = Ranker(RankerConfig(model="dlrm", hidden=(16,), dropout=0.0))
        >>> history = ranker.fit(table, training=TrainingConfig(epochs=60, learning_rate=0.02))
        >>> [round(row.score) for row in ranker.predict([{"hour": 8, "ad": "tea"}, {"hour": 20, "ad": "tea"}])]
        [1, 0]
    """

    task: ClassVar[str] = "ranking"
    config_class: ClassVar[type[Config]] = RankerConfig
    config: RankerConfig

    def __init__(self, config: RankerConfig | None = None) -> None:
        super().__init__(config)
        self._encoder: FeatureEncoder | None = None
        self._network: RankingNetwork | None = None
        self._function: Any = None
        self._trained = False

    # Answers.

    @property
    def is_fitted(self) -> bool:
        """Whether the pipeline can answer."""
        return self._trained

    @property
    def encoder(self) -> FeatureEncoder:
        """How columns become arrays; `encoder.kinds` has the columns and their kinds."""
        self._require_fitted("encoder")
        return self._known_encoder

    @property
    def model(self) -> keras.Model:
        """The network: arrays as `encoder.encode` makes them -> logits, or ratings, float32 (B,)."""
        self._require_fitted("model")
        return self._known_network

    def predict(self, inputs: Any) -> list[RowScore]:
        """The score of each row, in their order.

        Args:
            inputs: rows as dicts with every feature, None for what is not known; or `Features`; or columns by name.
                Further columns are not looked at.

        Raises:
            NotFittedError: before `fit`.
            ValueError: for a feature that is missing as a whole, and infinite numbers.
            TypeError: for values of another kind than the column's.
        """
        self._require_fitted("predict")
        if not isinstance(inputs, Features | Mapping):
            inputs = listed(inputs, "rows (dicts of features)")
        ids: Any = inputs.ids if isinstance(inputs, Features) else None
        scores = self.scores(inputs).tolist()
        return [
            RowScore(*pair) for pair in zip(scores, [None] * len(scores) if ids is None else ids.tolist(), strict=True)
        ]

    def scores(self, data: Any) -> np.ndarray:
        """The same as an array, float32 (N,): for many rows.

        Args:
            data: what `predict` takes.
        """
        self._require_fitted("scores")
        return self._scores_of(self._known_encoder.table(data))

    def rank(self, contexts: Sequence[Mapping[str, Any]], candidates: Features, k: int = 10) -> list[Recommendations]:
        """The best `k` candidates for each context: what comes after retrieval.

        Args:
            contexts: features of user and moment, as dicts; what candidates have, too, is taken from these.
            candidates: features of items, with ids.
            k: at least 1.

        Returns:
            One answer for each context, `user` its place in the list; of equal scores the earlier candidate first.

        Raises:
            NotFittedError: before `fit`.
            ValueError: for features that neither side has, and candidates without ids.
        """
        self._require_fitted("rank")
        if not isinstance(candidates, Features) or candidates.ids is None:
            raise ValueError("`candidates` must be Features with ids, by which they are named. Give `ids=`.")
        if k < 1:
            raise ValueError(f"`k` must be at least 1; received {k}.")
        encoder = self._known_encoder
        own = {name: kind for name, kind in encoder.kinds.items() if name not in candidates.columns}
        asked = listed(contexts, "contexts (dicts of features)")
        table = features_of_rows(asked, own) if own else None
        answers = []
        for place in range(len(asked)):
            repeated = np.full(len(candidates), place)
            columns: dict[str, Column] = {} if table is None else dict(table.take(repeated).columns)
            scores = self.scores({**columns, **candidates.columns})
            found, best = top_k(scores[None, :], k)
            ids = tuple(candidates.ids[found[0]].tolist())
            answers.append(Recommendations(place, ids, tuple(best[0].tolist())))
        return answers

    def _scores_of(self, table: Features) -> np.ndarray:
        parts = [np.zeros(0, np.float32)]
        for start in range(0, len(table), _ENCODED):
            rows = np.arange(start, min(start + _ENCODED, len(table)))
            parts.append(self._answers(self._known_encoder.encode(table.take(rows))))
        return np.concatenate(parts)

    def _answers(self, arrays: Arrays) -> np.ndarray:
        """Probabilities, or ratings, of encoded rows."""
        count = len(next(iter(arrays.values())))
        function = self._served()
        parts = [np.zeros(0, np.float32)]
        for start in range(0, count, _SCORED):
            part = {name: array[start : start + _SCORED] for name, array in arrays.items()}
            parts.append(function(part).numpy())
        return np.concatenate(parts)

    def _served(self) -> Any:
        """The network with what comes behind it, as one graph for batches of any size."""
        if self._function is None:
            import tensorflow as tf

            signature = [array_specs(self._known_encoder)]
            serve = self._serving(self._known_network)
            self._function = tf.function(serve, input_signature=signature, autograph=False)
        return self._function

    def _serving(self, network: RankingNetwork) -> Callable[[Mapping[str, tf.Tensor]], tf.Tensor]:
        """A network with what comes behind it."""
        import tensorflow as tf

        def serve(arrays: Mapping[str, tf.Tensor]) -> tf.Tensor:
            logits = network(arrays, training=False)
            return tf.sigmoid(logits) if self.config.objective == "click" else logits

        return serve

    # Training.

    def training_task(self, train: Any, training: TrainingConfig) -> TrainingTask:
        """What the training loop, and the learning-rate finder, need: network, loss and batches for `train`."""
        from shared.training import TrainingTask, run_fingerprint, training_loading

        table, targets = self._labelled(train, "train")
        self._prepare(table, targets)
        arrays = {**self._known_encoder.encode(table), "targets": targets}
        batches = RowBatches(arrays, training_loading(training))
        fingerprint = run_fingerprint(self, batches) | {"data": batches.fingerprint()}
        self.provenance["data"] |= {"fingerprint": fingerprint["data"]}
        return TrainingTask(
            model=self._known_network,
            loss=self._loss(training),
            batches=batches,
            fingerprint=fingerprint,
            row_wise=[table for table in self._known_network.tables if table.shape[0] >= _ROW_WISE],
        )

    def _fit(self, train: Any, validation: Any, options: FitOptions) -> History:
        from shared.training import run_training

        table, _ = self._labelled(train, "train")
        held = None if validation is None else self._labelled(validation, "validation")
        task = self.training_task(table, options.training)
        if held is not None:
            task = replace(task, validate=self._validation(*held))
        history = run_training(task, options)
        self._trained = True
        return replace(history, bad_records=tuple(map(str, table.bad_records)))

    def _validation(self, table: Features, targets: np.ndarray) -> Callable[[], Metrics]:
        """Metrics of a table; several workers score a part of its rows each."""
        portion = current_runtime().workers.portion
        rows = np.arange(len(targets))[portion.span(len(targets))]
        own = self._known_encoder.encode(table if portion.is_all else table.take(rows))
        return lambda: measured(
            {"scores": self._answers(own)},
            lambda found: self._metrics(found["scores"], targets),
            portion,
            lambda: hashlib.sha256(targets.tobytes()).hexdigest(),
        )

    def _labelled(self, data: Any, name: str) -> tuple[Features, np.ndarray]:
        """A table with its targets, which fit the config.

        Raises:
            TypeError: for something else.
            ValueError: where there are no rows or targets, or where they are not 0 and 1 with both among them.
        """
        table = as_labelled(data, name)
        targets = table.targets
        assert targets is not None
        if self.config.objective == "click":
            odd = np.flatnonzero((targets != 0) & (targets != 1))
            if len(odd):
                raise ValueError(
                    f"Targets of `{name}` must be 0 or 1; received {targets[odd[0]]:g} at row {odd[0]}. For ratings, "
                    "set objective=rating."
                )
            if len(np.unique(targets)) < 2:
                raise ValueError(
                    f"All targets of `{name}` are {targets[0]:g}: there is nothing to tell apart. Give rows with 0 and "
                    "with 1."
                )
        return table, targets

    def _prepare(self, table: Features, targets: np.ndarray) -> None:
        """A fresh encoder, and an untrained network around it that answers with the mean target."""
        config = self.config
        self._encoder = FeatureEncoder.fit(
            table,
            min_count=config.min_count,
            max_vocabulary=config.max_vocabulary,
            hash_buckets=config.hash_buckets,
            hashed=dict.fromkeys(config.hashed, config.hash_buckets),
            max_values=config.max_values,
            buckets=config.buckets,
        )
        self._trained, self._function = False, None
        self._network = self._new_network()
        mean = float(targets.mean())
        self._network.start_from(float(np.log(mean / (1 - mean))) if config.objective == "click" else mean)

    def _new_network(self) -> RankingNetwork:
        from recsys.models.ranking_network import DcnNetwork, DeepFmNetwork, DlrmNetwork, WideDeepNetwork
        from shared.runtime import seeded

        config, encoder = self.config, self._known_encoder
        fields: dict[str, Any] = {"dim": config.dim, "hidden": config.hidden, "dropout": config.dropout}
        with current_runtime().scope(), seeded(config.seed):
            network: RankingNetwork
            if config.model == "dlrm":
                network = DlrmNetwork(encoder.layout, bottom=config.bottom, **fields)
            elif config.model == "dcn_v2":
                fields |= {"cross_layers": config.cross_layers, "rank": config.cross_rank}
                network = DcnNetwork(encoder.layout, **fields)
            elif config.model == "deepfm":
                network = DeepFmNetwork(encoder.layout, **fields)
            else:
                crosses = [_places(cross, encoder) for cross in config.crosses]
                network = WideDeepNetwork(encoder.layout, crosses=crosses, cross_buckets=config.cross_buckets, **fields)
            network(encoder.encode(encoder.examples(2)))
        return network

    def _loss(self, training: TrainingConfig) -> Any:
        import tensorflow as tf

        network, smoothing = self._known_network, training.label_smoothing
        if self.config.objective == "rating":
            return lambda batch: tf.reduce_mean(tf.square(network(batch, training=True) - batch["targets"]))

        def loss(batch: dict[str, tf.Tensor]) -> tf.Tensor:
            wanted = batch["targets"] * (1 - smoothing) + smoothing / 2
            logits = network(batch, training=True)
            return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(wanted, logits))

        return loss

    def _evaluate(self, data: Any, loading: Loading) -> Metrics:
        table, targets = self._labelled(data, "data")
        return self._metrics(self.scores(table), targets)

    def _metrics(self, scores: np.ndarray, targets: np.ndarray) -> Metrics:
        """What `evaluate` gives: of clicks auc first, of ratings r2, for more is better."""
        if self.config.objective == "rating":
            spread = float(np.mean(np.square(targets - targets.mean())))
            error = rmse(scores, targets)
            r2 = 1 - error**2 / spread if spread else 0.0
            return Metrics({"r2": r2, "rmse": error}, details={"rows": len(targets)})
        values = {
            "auc": auc(scores, targets),
            "log_loss": log_loss(scores, targets),
            "accuracy": float(np.mean((scores >= 0.5) == (targets == 1))),
            "calibration_error": calibration_error(scores, targets),
        }
        details = {"rows": len(targets), "clicks": int(targets.sum()), "mean_score": float(scores.mean())}
        return Metrics(values, details=details)

    @property
    def _known_encoder(self) -> FeatureEncoder:
        """The encoder, in training too."""
        assert self._encoder is not None
        return self._encoder

    @property
    def _known_network(self) -> RankingNetwork:
        """The network, in training too."""
        assert self._network is not None
        return self._network

    # Files.

    def _manifest(self) -> dict[str, Any]:
        return {"columns": list(self.encoder.names)}

    def _write(self, directory: Path) -> None:
        from safetensors.numpy import save_file

        self.encoder.save(directory / _ENCODER)
        weights = {weight.path: np.ascontiguousarray(weight.numpy()) for weight in self.model.weights}
        save_file(weights, directory / _WEIGHTS)

    @classmethod
    def _from_directory(cls, directory: Path, config: RankerConfig, manifest: Mapping[str, Any]) -> Self:
        from safetensors.numpy import load_file

        ranker = cls(config)
        ranker._encoder = FeatureEncoder.load(directory / _ENCODER)
        if list(ranker._encoder.names) != manifest["columns"]:
            raise ValueError(f"{directory} is damaged: its encoder has other columns than its manifest.")
        ranker._network = ranker._new_network()
        arrays = load_file(directory / _WEIGHTS)
        wanted = {weight.path: tuple(weight.shape) for weight in ranker._network.weights}
        found = {path: array.shape for path, array in arrays.items()}
        if wanted != found:
            odd = sorted(path for path in wanted.keys() | found.keys() if wanted.get(path) != found.get(path))
            raise ValueError(f"{directory} is damaged: its weights are not those of its config ({odd[0]}).")
        for weight in ranker._network.weights:
            weight.assign(arrays[weight.path])
        ranker._trained = True
        return ranker

    def _export(self, path: Path, format: ExportFormat) -> ExportReport:
        from recsys.models.ranking_serving import export_ranker

        network = self._known_network if format == "saved_model" else self._in_float32()
        return export_ranker(path, format, self.encoder, network, self._serving(network), self._answers)

    def _in_float32(self) -> RankingNetwork:
        """The network itself, or one with its weights: the small formats have no operations in mixed precision."""
        from shared.runtime import float32_policy

        if self._known_network.compute_dtype == "float32":
            return self._known_network
        with float32_policy():
            twin = self._new_network()
        twin.set_weights(self._known_network.get_weights())
        return twin


def as_labelled(data: Any, name: str) -> Features:
    """Features with targets: what `fit` and `evaluate` take; or a pair of columns by name, and targets.

    Raises:
        TypeError: for anything else.
        ValueError: where there are no rows, or no targets.
    """
    if isinstance(data, tuple) and len(data) == 2 and hasattr(data[0], "__len__"):
        columns, targets = data
        if not len(columns) or not len(targets):
            raise ValueError(f"`{name}` has no examples: there is not one row in it. Check the file or the filter.")
        given = columns.columns if isinstance(columns, Features) else columns
        data = Features(given, targets=targets)
    if not isinstance(data, Features):
        raise TypeError(
            f"`{name}` must be Features with targets, as `read_features(path, target=...)` gives them, or a pair "
            f"(columns by name, targets); received {type(data).__name__}."
        )
    if not len(data):
        raise ValueError(f"`{name}` has no examples: there is not one row in it. Check the file or the filter.")
    if data.targets is None:
        raise ValueError(
            f"`{name}` has no targets to learn. Read it with `target=` (on the command line --target), or give "
            "Features `targets=`."
        )
    return data


def array_specs(encoder: FeatureEncoder) -> dict[str, tf.TensorSpec]:
    """What the arrays of an encoder are, for batches of any size."""
    import tensorflow as tf

    return {
        name: tf.TensorSpec([None, *array.shape[1:]], array.dtype, name=name)
        for name, array in encoder.encode(encoder.examples(1)).items()
    }


def _places(cross: str, encoder: FeatureEncoder) -> tuple[int, int]:
    """The places of two crossed columns among the categories.

    Raises:
        ValueError: for a column that is none.
    """
    crossable = encoder.field_names[: encoder.layout.num_categories]
    names = cross.split("*")
    for name in names:
        if name not in crossable:
            raise ValueError(
                f"The cross {cross!r} names {name!r}, which is no categorical or bucketed column; there are "
                f"{', '.join(crossable)}."
            )
    return crossable.index(names[0]), crossable.index(names[1])
