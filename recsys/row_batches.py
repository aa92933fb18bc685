"""Batches of encoded rows for training: whole columns at a time, no Python object for each row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np

from shared.data import Arrays, InputPipeline, Loading, Stages, prefetch
from shared.distribution import BatchShares, Portion
from shared.examples import Examples


class RowBatches(InputPipeline):
    """An input pipeline over arrays that are in memory: a batch is the rows of a part of the epoch's order.

    The order is that of `InputPipeline`, by seed and epoch, and any epoch can be entered at any batch.

    Args:
        arrays: of N rows each, by name.
        loading: batch size, shuffling and seed; the rest has no effect.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], loading: Loading) -> None:
        self.arrays = dict(arrays)
        count = len(next(iter(self.arrays.values())))
        numbers = np.arange(count)
        super().__init__(Examples(numbers, numbers), Stages(encode=lambda row, _: {"row": row}), loading)

    def fingerprint(self) -> str:
        """A short hash of all arrays."""
        digest = hashlib.sha256()
        for name, array in sorted(self.arrays.items()):
            digest.update(f"{name}{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    def shares(self, portion: Portion, epoch: int = 0, start_batch: int = 0) -> Iterator[BatchShares]:
        """The same batches for several devices: of each, the shares that this process prepares."""
        return prefetch(self._row_shares(portion, epoch, start_batch), self.loading.prefetch)

    def _row_shares(self, portion: Portion, epoch: int, start_batch: int) -> Iterator[BatchShares]:
        for rows in self._rows(epoch, start_batch):
            own = [np.asarray(part, np.int64) for part in portion.of(rows.tolist())]
            # A share without rows holds one that is to weigh nothing.
            parts = [self._taken(part if len(part) else rows[:1]) for part in own]
            yield BatchShares(tuple(parts), tuple(map(len, own)), len(rows))

    def _batches(self, epoch: int, start_batch: int) -> Iterator[Arrays]:
        yield from map(self._taken, self._rows(epoch, start_batch))

    def _rows(self, epoch: int, start_batch: int) -> Iterator[np.ndarray]:
        size = self.loading.batch_size
        order = self._order(epoch, self.num_examples)
        for batch in range(start_batch, self.num_batches):
            yield order[batch * size : (batch + 1) * size]

    def _taken(self, rows: np.ndarray) -> Arrays:
        return {name: array[rows] for name, array in self.arrays.items()}
