"""How each model of a `CollaborativeFilterConfig` comes about: solved at once, or trained epoch by epoch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp

from recsys.models.biased_mf import BiasedMf
from recsys.models.bpr import BprState, bpr_epoch
from recsys.models.ease import ease_weights
from recsys.models.ials import Ials
from recsys.models.item_knn import item_similarities
from recsys.models.least_squares import BatchedRows
from recsys.models.scorers import Arrays, FactorScorer, ItemScorer, PopularityScorer, Scorer
from recsys.models.slim import slim_weights
from shared.training_config import TrainingConfig

if TYPE_CHECKING:
    from recsys.collaborative_filtering import CollaborativeFilterConfig

SOLVED = ("popularity", "item_knn", "ease", "slim")
# Passes over the histories of users who are folded into a BPR model, and their steps.
_FOLD_EPOCHS, _FOLD_RATE, _FOLD_BATCH = 30, 0.1, 256


def popularity_of(matrix: sp.csr_matrix) -> np.ndarray:
    """The share of users who chose each item, float32 (I,)."""
    counts = np.bincount(matrix.indices, minlength=matrix.shape[1])
    return np.asarray(counts / max(1, matrix.shape[0]), np.float32)


def solved(config: CollaborativeFilterConfig, matrix: sp.csr_matrix) -> Scorer:
    """The scorer of a model that is computed in one go."""
    if config.model == "item_knn":
        similarities = item_similarities(
            matrix,
            neighbours=config.neighbours,
            weighting=config.weighting,
            shrinkage=config.shrinkage,
            k1=config.bm25_k1,
            b=config.bm25_b,
        )
        return ItemScorer(similarities)
    if config.model == "ease":
        return ItemScorer(ease_weights(matrix, config.ease_l2))
    if config.model == "slim":
        return ItemScorer(slim_weights(matrix, l1=config.slim_l1, l2=config.slim_l2, candidates=config.slim_candidates))
    return PopularityScorer(popularity_of(matrix))


@dataclass
class IalsTrainer:
    """Items, then users, in each epoch."""

    recipe: Ials
    matrix: sp.csr_matrix
    arrays: Arrays
    sides: tuple[BatchedRows, BatchedRows] = field(init=False)

    def __post_init__(self) -> None:
        dim = self.arrays["users"].shape[1]
        self.sides = BatchedRows(self.matrix, dim), BatchedRows(self.matrix.T.tocsr(), dim)

    def epoch(self, number: int) -> float:
        """Solve both sides once."""
        users, items = self.recipe.epoch(*self.sides, self.arrays["users"], self.arrays["items"])
        self.arrays = {"users": users, "items": items}
        return self.recipe.loss(self.matrix, users, items)


@dataclass
class BiasedMfTrainer:
    """The same for ratings."""

    recipe: BiasedMf
    matrix: sp.csr_matrix
    arrays: Arrays
    mean: float
    transposed: sp.csr_matrix = field(init=False)

    def __post_init__(self) -> None:
        self.transposed = self.matrix.T.tocsr()

    def epoch(self, number: int) -> float:
        """Solve both sides once."""
        users, items = self.recipe.epoch(self.matrix, self.transposed, self.mean, self.arrays["users"])
        self.arrays = {"users": users, "items": items}
        return self.recipe.loss(self.matrix, self.mean, users, items)


@dataclass
class BprTrainer:
    """Steps over all interactions in random order."""

    matrix: sp.csr_matrix
    arrays: Arrays
    l2: float
    training: TrainingConfig

    def epoch(self, number: int) -> float:
        """One pass."""
        state = BprState(**self.arrays)
        return bpr_epoch(
            state,
            self.matrix,
            learning_rate=self.training.learning_rate,
            l2=self.l2,
            batch_size=self.training.batch_size,
            rng=np.random.default_rng([self.training.seed, number]),
        )


def trainer(
    config: CollaborativeFilterConfig, matrix: sp.csr_matrix, training: TrainingConfig
) -> IalsTrainer | BiasedMfTrainer | BprTrainer:
    """A model that is trained epoch by epoch, at its start."""
    if config.model == "ials":
        recipe = _ials(config)
        users, items = recipe.start(matrix, config.factors, config.seed)
        return IalsTrainer(recipe, matrix, {"users": users, "items": items})
    if config.model == "biased_mf":
        mf = _biased_mf(config)
        users, items = mf.start(matrix, config.factors, config.seed)
        return BiasedMfTrainer(mf, matrix, {"users": users, "items": items}, float(matrix.data.mean()))
    state = BprState.start(matrix, config.factors, config.seed, config.init_scale)
    return BprTrainer(matrix, dict(vars(state)), config.bpr_l2, training)


def factor_scorer(config: CollaborativeFilterConfig, arrays: Arrays) -> FactorScorer:
    """The scorer of trained factors: `users`, `items` and, for ratings, `offset`."""
    items = arrays["items"]
    offset = float(arrays["offset"][0]) if "offset" in arrays else 0.0
    fold: Callable[[sp.csr_matrix], np.ndarray]
    if config.model == "ials":
        fold, num_biases = (lambda rows: _ials(config).solve(rows, items)), 0
    elif config.model == "biased_mf":
        fold, num_biases = (lambda rows: _biased_mf(config).solve_users(rows, offset, items)), 2
    else:
        fold, num_biases = (lambda rows: _fold_into_bpr(rows, items, config)), 1
    return FactorScorer(arrays["users"], items, fold, offset, num_biases)


def scorer_from_arrays(config: CollaborativeFilterConfig, arrays: Arrays) -> Scorer:
    """The scorer whose `arrays` were saved."""
    if config.model == "popularity":
        return PopularityScorer(arrays["popularity"])
    return ItemScorer.from_arrays(arrays) if config.model in SOLVED else factor_scorer(config, arrays)


def _ials(config: CollaborativeFilterConfig) -> Ials:
    return Ials(
        config.ials_l2, config.unobserved_weight, config.frequency_exponent, config.init_scale, config.ials_solver
    )


def _biased_mf(config: CollaborativeFilterConfig) -> BiasedMf:
    return BiasedMf(config.mf_l2, config.mf_bias_l2, config.mf_frequency_exponent, config.init_scale)


def _fold_into_bpr(rows: sp.csr_matrix, items: np.ndarray, config: CollaborativeFilterConfig) -> np.ndarray:
    """Users' vectors by BPR's own steps, with the items left as they are; the drawings depend on the seed alone."""
    users = np.zeros((rows.shape[0], items.shape[1]), np.float32)
    users[:, -1] = 1
    state = BprState(users, items, np.zeros_like(users), np.zeros((0, 0), np.float32))
    for number in range(_FOLD_EPOCHS):
        bpr_epoch(
            state,
            rows,
            learning_rate=_FOLD_RATE,
            l2=config.bpr_l2,
            batch_size=_FOLD_BATCH,
            rng=np.random.default_rng([config.seed, number]),
            fixed_items=True,
        )
    return state.users
