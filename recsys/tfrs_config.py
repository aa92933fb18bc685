"""Configs of the pipelines in `recsys.tfrs`; in a file of their own, for command lines need them before TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shared.config import Config, option


@dataclass(frozen=True, kw_only=True)
class TFRSRetrieverConfig(Config):
    """Two embedding towers in TensorFlow Recommenders, and what they learn."""

    dim: int = option(64, "numbers by which users and items are described", minimum=1)
    hidden_dims: tuple[int, ...] = option((), "widths of dense layers in each tower")
    update_rule: Literal["adagrad", "adam"] = option("adagrad", "Keras 2's; rates of 0.05 to 0.5 suit adagrad")
    temperature: float = option(1.0, "divides scores in training", minimum=1e-3)
    log_q: bool = option(False, "correct for how often an item comes into a batch")
    remove_accidental_hits: bool = option(True, "a user's own item is no negative where it is in the batch again")
    hard_negatives: int = option(0, "only so many negatives count, the best scored; 0: all", minimum=0)
    retrieval_weight: float = option(1.0, "weight of the retrieval loss, a sum over the batch", minimum=0.0)
    rating_weight: float = option(
        0.0, "weight of the mean squared error of ratings; above 0 data needs them", minimum=0.0
    )
    min_rating: float = option(0.0, "ratings below are no sign of liking")
    seed: int = option(0, "seed of the initial weights", minimum=0, maximum=2**31 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(width < 1 for width in self.hidden_dims):
            raise ValueError(f"`hidden_dims` must be widths of at least 1; received {list(self.hidden_dims)}.")
        if not self.retrieval_weight + self.rating_weight:
            raise ValueError("`retrieval_weight` and `rating_weight` are both 0: there is nothing to learn. Raise one.")


@dataclass(frozen=True, kw_only=True)
class TFRSRankerConfig(Config):
    """Embeddings of user and item, and dense layers over both that give a rating."""

    dim: int = option(32, "numbers by which users and items are described", minimum=1)
    hidden_dims: tuple[int, ...] = option((64, 32), "widths of the dense layers")
    update_rule: Literal["adagrad", "adam"] = option("adam", "Keras 2's")
    seed: int = option(0, "seed of the initial weights", minimum=0, maximum=2**31 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(width < 1 for width in self.hidden_dims):
            raise ValueError(f"`hidden_dims` must be widths of at least 1; received {list(self.hidden_dims)}.")
