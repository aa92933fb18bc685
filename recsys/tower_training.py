"""From interactions and features to towers in training, and from these to what answers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from recsys.audience import Audience, Signals
from recsys.feature_encoder import FeatureEncoder
from recsys.features import Features
from recsys.fitted import Fitted, fingerprint_of
from recsys.ids import IdIndex, numbered
from recsys.interactions import Interactions, pair_matrix
from recsys.models.scorers import Arrays, PopularityScorer
from recsys.pairs import PairBatches, Sampling, Side
from recsys.recipes import popularity_of

if TYPE_CHECKING:
    from recsys.models.two_tower import TwoTowers
    from recsys.retrieval import TwoTowerRetrieverConfig
    from shared.training import TrainingTask
    from shared.training_config import TrainingConfig

logger = logging.getLogger(__name__)

SIDES = ("user", "item")
# Items from which a user's own is told, below which the estimate of the softmax is poor.
_FEW_NEGATIVES = 64


@dataclass(frozen=True, eq=False)
class TowerRun:
    """One training: the numbered data, the sides with their encoded features, and the network.

    `described`, bool (U,) and (I,) by side, says whom the feature tables have a row for.
    """

    config: TwoTowerRetrieverConfig
    signals: Signals
    users: IdIndex
    items: IdIndex
    histories: sp.csr_matrix
    matrix: sp.csr_matrix
    sides: dict[str, Side]
    encoders: dict[str, FeatureEncoder]
    described: dict[str, np.ndarray]
    network: TwoTowers = field(repr=False)

    @classmethod
    def start(cls, config: TwoTowerRetrieverConfig, data: Interactions, features: Mapping[str, Features]) -> TowerRun:
        """An untrained network for `data`.

        Raises:
            ValueError: where nothing is rated at least `min_rating`, and for features of none of the ids.
            TypeError: for features by ids of another kind.
        """
        signals = Signals(False, config.min_rating, False, data.ratings is not None)
        users, items, histories = numbered_histories(data, signals)
        encoders: dict[str, FeatureEncoder] = {}
        described, sides = {}, {}
        for side, index in zip(SIDES, (users, items), strict=True):
            arrays: Arrays = {}
            described[side] = np.zeros(len(index), bool)
            if side in features:
                encoders[side], arrays, described[side] = _encoded(features[side], index, config.min_count)
            sides[side] = Side(len(index), arrays)
        network = tower_network(
            config, {side: len(index) for side, index in zip(SIDES, (users, items), strict=True)}, encoders
        )
        return cls(config, signals, users, items, histories, signals(histories), sides, encoders, described, network)

    @property
    def data_hash(self) -> str:
        """A short hash of all that training sees, features included."""
        import hashlib

        digest = hashlib.sha256(fingerprint_of(self.users, self.items, self.histories).encode())
        for side in self.sides.values():
            for name in sorted(side.features):
                digest.update(name.encode() + np.ascontiguousarray(side.features[name]).tobytes())
        return digest.hexdigest()[:16]

    def task(self, training: TrainingConfig) -> TrainingTask:
        """What the training loop needs."""
        from recsys.models.two_tower import in_batch_loss
        from shared.runtime import current_runtime
        from shared.training import TrainingTask, training_loading

        if training.batch_tokens:
            raise ValueError("`batch_tokens` is for texts. Use `batch_size`.")
        config, runtime = self.config, current_runtime()
        sampling = Sampling(
            uniform_negatives=config.uniform_negatives,
            log_q=config.log_q,
            id_dropout=config.id_dropout,
            fixed_width=runtime.few_shapes,
        )
        rows = np.repeat(np.arange(len(self.users), dtype=np.int32), np.diff(self.matrix.indptr))
        batches = PairBatches(
            rows,
            self.matrix.indices.astype(np.int32, copy=False),
            self.sides["user"],
            self.sides["item"],
            sampling,
            training_loading(training),
        )
        told_from = min(training.batch_size, len(rows)) + config.uniform_negatives
        if told_from < min(_FEW_NEGATIVES, len(self.items)):
            logger.warning(
                "each item is told from %d others at most: take a larger `batch_size` (1024 and more), or "
                "`uniform_negatives`",
                told_from - 1,
            )
        towers = (self.network.users, self.network.items)
        return TrainingTask(
            model=self.network,
            loss=in_batch_loss(self.network, temperature=config.temperature, hard_negatives=config.hard_negatives),
            batches=batches,
            row_wise=[table for tower in towers for table in tower.large_tables],
            fingerprint={
                **config.to_dict(),
                "num_examples": batches.num_examples,
                "data": self.data_hash,
                "num_replicas": runtime.num_replicas,
                "precision": runtime.precision,
                "xla": runtime.xla,
            },
            varying_shapes=True,
        )

    def fitted(self) -> Fitted:
        """What answers with the weights as they are now."""
        from recsys.models.two_tower import TowerScorer

        chose = np.diff(self.matrix.indptr) > 0
        # Users who liked nothing were never trained: their features speak, where there are any.
        by_features = ~chose & self.described["user"]
        rows = np.where(chose, np.arange(len(chose)), len(chose))
        users = self.network.users.vectors(rows, self.sides["user"].features)
        items = self.network.items.vectors(np.arange(len(self.items)), self.sides["item"].features)
        scorer = TowerScorer.of(users, items, chose, self.config.temperature, self.config.normalize)
        audience = Audience(
            self.users, self.histories, users, chose | by_features, by_features if self.encoders.get("user") else None
        )
        return Fitted(self.items, scorer, audience, PopularityScorer(popularity_of(self.matrix)), self.signals)

    def without_ids(self) -> TwoTowers:
        """A copy of the network that knows no id: what describes newcomers by their features."""
        bare = tower_network(self.config, dict.fromkeys(SIDES, 0), self.encoders)
        trained = self.network.named_weights()
        for name, weight in bare.named_weights().items():
            values = np.asarray(trained[name])
            weight.assign(values[-1:] if weight is bare.users.table or weight is bare.items.table else values)
        return bare


def tower_network(
    config: TwoTowerRetrieverConfig, counts: Mapping[str, int], encoders: Mapping[str, FeatureEncoder]
) -> TwoTowers:
    """An untrained network for so many users and items, with its weights made."""
    from recsys.models.two_tower import TwoTowers
    from shared.runtime import current_runtime, seeded

    layouts = {side: encoders[side].layout if side in encoders else None for side in SIDES}
    with current_runtime().scope(), seeded(config.seed):
        network = TwoTowers(
            counts["user"],
            counts["item"],
            user_layout=layouts["user"],
            item_layout=layouts["item"],
            dim=config.dim,
            hidden_dims=config.hidden_dims,
            normalize=config.normalize,
        )
        network(network.smallest_batch())
        if not config.id_dropout:
            for tower in (network.users, network.items):
                tower.silence_unknown_ids()
    return network


def numbered_histories(
    data: Interactions, signals: Signals, *, all_items: bool = False
) -> tuple[IdIndex, IdIndex, sp.csr_matrix]:
    """Users, items that somebody liked, or all of them, and who interacted with which of these (U, I).

    Raises:
        ValueError: where nobody liked anything.
    """
    (user_ids, rows), (item_ids, columns) = numbered(data.users), numbered(data.items)
    if data.ratings is not None:
        liked = np.bincount(columns[data.ratings >= signals.min_rating], minlength=len(item_ids)) > 0
        if not liked.any():
            raise ValueError(f"No interaction has a rating of at least {signals.min_rating:g}. Lower `min_rating`.")
        if not all_items:
            columns = np.where(liked, np.cumsum(liked) - 1, -1)[columns]
            item_ids = item_ids[liked]
    users, items = IdIndex(user_ids, "user"), IdIndex(item_ids, "item")
    shape = (len(users), len(items))
    return users, items, pair_matrix(rows, columns, shape, values=data.ratings, timestamps=data.timestamps)


def _encoded(features: Features, index: IdIndex, min_count: int) -> tuple[FeatureEncoder, Arrays, np.ndarray]:
    """What was learned of a table, its rows in the order of `index`, and which of them it has."""
    assert features.ids is not None
    described = IdIndex(features.ids, index.what).numbers(index.entries) >= 0
    if not described.any():
        raise ValueError(
            f"The features are of none of the {len(index)} {index.what}s in training: their ids are such as "
            f"{features.ids[:1].tolist()}, those of training such as {index.entries[:1].tolist()}. Check the id column."
        )
    table = features.aligned(index.entries)
    encoder = FeatureEncoder.fit(table.take(described), min_count=min_count)
    return encoder, encoder.encode(table), described
