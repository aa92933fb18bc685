"""Rankings of held-out items, from the answers of a recommender to metrics. NumPy only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from recsys.metrics import bootstrap_intervals, coverage, hits_at, novelty, ranking_by_user, sampled_places

# Rows of users and items of pairs -> scores.
PairScores: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Held-out pairs by number, sorted by user: `rows` says which user of `num_users`, `items` is -1 for unknown ones.

    `num_items` is the size of the catalogue, `popularity` (I,) the number of training users by item.
    """

    rows: np.ndarray
    items: np.ndarray
    num_users: int
    num_items: int
    popularity: np.ndarray
    num_training_users: int

    @property
    def num_relevant(self) -> np.ndarray:
        """Held-out items of each user, unknown ones included: no ranking can find these."""
        return np.bincount(self.rows, minlength=self.num_users)

    def hits(self, answers: np.ndarray) -> np.ndarray:
        """Whether each answer (U, K) is held out, bool."""
        keys = self.rows * (self.num_items + 1) + self.items
        asked = np.arange(self.num_users)[:, None] * (self.num_items + 1) + answers
        return np.isin(asked, keys[self.items >= 0]) & (answers >= 0)


def full_ranking(
    held: HeldOut, answers: np.ndarray, cutoffs: tuple[int, ...]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics of the ranking of the whole catalogue, and details: their intervals, and how much was scored.

    Args:
        held: what is to be found.
        answers: item numbers (U, K) best first, -1 where there is no answer; K at least the largest cutoff, or all.
        cutoffs: how many answers count.
    """
    hits, relevant = held.hits(answers), held.num_relevant
    by_user: dict[str, np.ndarray] = {}
    for k in cutoffs:
        by_user |= ranking_by_user(hits, relevant, k)
    values = {name: float(figures.mean()) for name, figures in by_user.items()}
    for k in cutoffs:
        values[f"coverage@{k}"] = coverage(answers, held.num_items, k)
    values["novelty"] = novelty(answers, held.popularity, held.num_training_users, cutoffs[0])
    return values, {"protocol": "full ranking", "intervals": bootstrap_intervals(by_user)}


def sampled_ranking(
    held: HeldOut, scores: PairScores, cutoffs: tuple[int, ...], *, negatives: int, seen_keys: np.ndarray, seed: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics of the place of each held-out item among itself and `negatives` items drawn at random.

    The drawn items are neither seen by the user (`seen_keys`: row * I + item, sorted) nor held out; they may repeat. A
    held-out item that is not in the catalogue has the last place. Such figures depend on how many are drawn and do not
    rank models as full rankings do (Krichene and Rendle 2020).
    """
    known = held.items >= 0
    rows, items = held.rows[known], held.items[known]
    taken = np.union1d(seen_keys, rows * held.num_items + items)
    drawn = np.random.default_rng(seed).integers(0, held.num_items, (len(rows), negatives))
    rng = np.random.default_rng([seed, 1])
    for _ in range(64):
        wrong = np.isin(rows[:, None] * held.num_items + drawn, taken)
        if not wrong.any():
            break
        drawn[wrong] = rng.integers(0, held.num_items, int(wrong.sum()))
    own = scores(rows, items)
    others = scores(np.repeat(rows, negatives), drawn.ravel()).reshape(drawn.shape)
    places = np.full(len(held.items), negatives + 1)
    places[known] = sampled_places(own, others)
    by_pair: dict[str, np.ndarray] = {}
    for k in cutoffs:
        figures = ranking_by_user(hits_at(places, k), np.ones(len(places), np.int64), k, prefix=f"sampled_{negatives}_")
        by_pair |= figures
    values = {name: float(figure.mean()) for name, figure in by_pair.items()}
    protocol = f"each held-out item among {negatives} sampled ones; not comparable with full rankings"
    return values, {"protocol": protocol, "intervals": bootstrap_intervals(by_pair)}
