"""Batches of encoded rows for training: whole columns at a time, no Python object for each row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from shared.data import Arrays, InputPipeline, Loading, Stages
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
        stages = Stages(encode=lambda row, _: {"row": row}, collate=self._collect)
        super().__init__(Examples(numbers, numbers), stages, loading)

    def fingerprint(self) -> str:
        """A short hash of all arrays."""
        digest = hashlib.sha256()
        for name, array in sorted(self.arrays.items()):
            digest.update(f"{name}{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    def _batches(self, epoch: int, start_batch: int) -> Iterator[Arrays]:
        size = self.loading.batch_size
        order = self._order(epoch, self.num_examples)
        for batch in range(start_batch, self.num_batches):
            yield self._rows(order[batch * size : (batch + 1) * size])

    def _collect(self, examples: Sequence[Arrays]) -> Arrays:
        return self._rows(np.array([example["row"] for example in examples]))

    def _rows(self, rows: np.ndarray) -> Arrays:
        return {name: array[rows] for name, array in self.arrays.items()}
