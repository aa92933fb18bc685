"""Batches of user and item pairs for the in-batch softmax, made of columns: no Python for each example."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from shared.data import Arrays, InputPipeline, Loading, Stages, prefetch
from shared.distribution import BatchShares, Portion
from shared.examples import Examples

_ORDER_STREAM, _BATCH_STREAM = 1 << 63, 1 << 62
# The shift of a column that is padding.
_NEVER = np.float32(-1e9)


@dataclass(frozen=True, eq=False)
class Side:
    """Users or items of the training set: how many, and their encoded features, row n those of number n."""

    count: int
    features: Arrays

    def batch(self, name: str, numbers: np.ndarray, without_id: np.ndarray | None) -> Arrays:
        """Rows of the tower's table and of the features, for these numbers; `without_id` (B,) count as unknown ids."""
        rows = numbers if without_id is None else np.where(without_id, np.int32(self.count), numbers)
        return {f"{name}_rows": rows, **{f"{name}/{key}": array[numbers] for key, array in self.features.items()}}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which items a batch tells a user's own from.

    `uniform_negatives` items are drawn uniformly for each device's batch (Yang et al. 2020, mixed negative sampling).
    With `log_q` the scores are corrected for how often an item comes into a batch, either way. `id_dropout` is the
    share of ids that count as unknown, of sides that have features. With `fixed_width` all batches have as many columns
    as the largest could have.
    """

    uniform_negatives: int = 0
    log_q: bool = True
    id_dropout: float = 0.0
    fixed_width: bool = False


class PairBatches(InputPipeline):
    """Batches of pairs in random order, epoch by epoch.

    Each has, of B pairs and C columns (the distinct items among theirs and the drawn ones):

        user_rows   int32 (B,)    rows of the user tower; user/... their encoded features
        item_rows   int32 (C,)    rows of the item tower; item/... their encoded features
        targets     int32 (B,)    the column of each user's own item
        shifts      float32 (C,)  log c - log q: drawn c times, q times by expectation; c alone without `log_q`
        log_counts  float32 (C,)  log c

    Args:
        users: user numbers of all pairs, int32 (N,).
        items: item numbers, the same.
        user_side: users of the tower.
        item_side: items of the tower.
        sampling: negatives.
        loading: batch size of all devices together, seed.
    """

    def __init__(
        self,
        users: np.ndarray,
        items: np.ndarray,
        user_side: Side,
        item_side: Side,
        sampling: Sampling,
        loading: Loading,
    ) -> None:
        super().__init__(Examples(users, items), Stages(encode=_not_used), loading)
        self.users, self.items = users, items
        self.user_side, self.item_side = user_side, item_side
        self.sampling = sampling
        self.counts = np.bincount(items, minlength=item_side.count)

    def shares(self, portion: Portion, epoch: int = 0, start_batch: int = 0) -> Iterator[BatchShares]:
        """The same batches for several devices, each of which has columns of its own, of its pairs."""
        return prefetch(self._pair_shares(portion, epoch, start_batch), self.loading.prefetch)

    def _pair_shares(self, portion: Portion, epoch: int, start_batch: int) -> Iterator[BatchShares]:
        for number, rows in self._rows(epoch, start_batch):
            own: list[Any] = portion.of(rows)  # type: ignore[arg-type]
            parts = []
            for share, part in enumerate(own, start=portion.first):
                rng = self._generator(epoch, _BATCH_STREAM + number * portion.num_shares + share)
                # A share without pairs holds one that is to weigh nothing.
                parts.append(self._part(part if len(part) else rows[:1], rng, fixed_width=True))
            yield BatchShares(tuple(parts), tuple(map(len, own)), len(rows))

    def _batches(self, epoch: int, start_batch: int) -> Iterator[Arrays]:
        for number, rows in self._rows(epoch, start_batch):
            yield self._part(
                rows, self._generator(epoch, _BATCH_STREAM + number), fixed_width=self.sampling.fixed_width
            )

    def _rows(self, epoch: int, start_batch: int) -> Iterator[tuple[int, np.ndarray]]:
        """The pairs of each batch, with its number."""
        order = self._generator(epoch, _ORDER_STREAM).permutation(len(self.users))
        size = self.loading.batch_size
        for number in range(start_batch, self.num_batches):
            yield number, order[number * size : (number + 1) * size]

    def _part(self, rows: np.ndarray, rng: np.random.Generator, *, fixed_width: bool) -> Arrays:
        """What one device trains on."""
        users, items = self.users[rows], self.items[rows]
        sampling, num_items = self.sampling, self.item_side.count
        drawn = rng.integers(0, num_items, sampling.uniform_negatives, np.int32)
        columns, places, counts = np.unique(np.concatenate([items, drawn]), return_inverse=True, return_counts=True)
        log_counts = np.log(counts, dtype=np.float32)
        shifts = log_counts
        if sampling.log_q:
            expected = len(items) * self.counts[columns] / len(self.items) + sampling.uniform_negatives / num_items
            shifts = (log_counts - np.log(expected)).astype(np.float32)
        if fixed_width:
            missing = len(items) + len(drawn) - len(columns)
            columns = np.append(columns, np.zeros(missing, np.int32))
            log_counts = np.append(log_counts, np.zeros(missing, np.float32))
            shifts = np.append(shifts, np.full(missing, _NEVER))
        return {
            **self.user_side.batch("user", users, self._without_id(self.user_side, len(users), rng)),
            **self.item_side.batch("item", columns, self._without_id(self.item_side, len(columns), rng)),
            "targets": places[: len(items)].astype(np.int32),
            "shifts": shifts,
            "log_counts": log_counts,
        }

    def _without_id(self, side: Side, count: int, rng: np.random.Generator) -> np.ndarray | None:
        share = self.sampling.id_dropout
        return rng.random(count, np.float32) < share if side.features and share else None


def _not_used(example_input: Any, target: Any) -> Arrays:
    raise AssertionError("columns are taken as they are")
