"""Windows of texts on their way through a model: laid out in arrays, sorted by length, run, put back in order.

Shapes: B examples, W windows of an example, N windows of all examples, T tokens of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from nlp.tokenization import Window
from shared.data import Arrays

# What padding holds beside 0, in arrays that have something to say of every token: no answer.
_FILL = {"targets": -1, "word_ids": -1}
# Tokens, padding included, that go through a model at once when no gradients are kept.
_TOKENS_PER_BATCH = 2048
# A batch ends before a window of less than this share of its longest, once it has so many rows.
_LEAST_FILL, _FEWEST_ROWS = 0.8, 8
_BATCHES_AT_A_TIME = 2


def padded_length(length: int) -> int:
    """The length to which windows of up to `length` tokens are padded: few different ones, and little padding."""
    step = 4 if length <= 32 else 8 if length <= 128 else 16 if length <= 256 else 64
    return -(-max(length, 1) // step) * step


def window_arrays(windows: Sequence[Window]) -> Arrays:
    """One example's windows as arrays (W, T), T the longest: `token_ids`, `segment_ids` (int32) and `mask` (bool)."""
    length = max(len(window.token_ids) for window in windows)
    arrays = {
        "token_ids": np.zeros((len(windows), length), np.int32),
        "segment_ids": np.zeros((len(windows), length), np.int32),
        "mask": np.zeros((len(windows), length), bool),
    }
    for row, window in enumerate(windows):
        count = len(window.token_ids)
        arrays["token_ids"][row, :count] = window.token_ids
        arrays["segment_ids"][row, :count] = window.segment_ids
        arrays["mask"][row, :count] = True
    return arrays


def stack_windows(examples: Sequence[Arrays], *, limit: int) -> Arrays:
    """A batch for training: (W, T) arrays of each example padded to (B, W, T); other arrays are stacked.

    T is one of a few lengths (`padded_length`), and never above `limit`, the most tokens that the model takes.
    """
    batch: Arrays = {}
    for key in examples[0]:
        parts = [example[key] for example in examples]
        if parts[0].ndim < 2:
            batch[key] = np.stack(parts)
            continue
        rows = max(part.shape[0] for part in parts)
        length = min(limit, padded_length(max(part.shape[1] for part in parts)))
        batch[key] = np.full((len(parts), rows, length), _FILL.get(key, 0), parts[0].dtype)
        for place, part in zip(batch[key], parts, strict=True):
            place[: part.shape[0], : part.shape[1]] = part
    return batch


def num_tokens(arrays: Arrays) -> int:
    """Cost of an example (W, T), by which examples are brought together in batches."""
    return int(arrays["mask"].size)


def flat_windows(examples: Sequence[Arrays]) -> Arrays:
    """The windows of all examples below each other: (W, T) of each -> (N, T), other arrays stacked.

    `num_windows` (B,) says how many of the N belong to each example.
    """
    counts = np.asarray([len(example["mask"]) for example in examples], np.int32)
    shape = (int(counts.sum()), max(example["mask"].shape[1] for example in examples))
    starts = (np.cumsum(counts) - counts).tolist()
    batch: Arrays = {"num_windows": counts}
    for key in examples[0]:
        parts = [example[key] for example in examples]
        if parts[0].ndim < 2:
            batch[key] = np.stack(parts)
            continue
        batch[key] = np.full(shape, _FILL.get(key, 0), parts[0].dtype)
        for start, part in zip(starts, parts, strict=True):
            batch[key][start : start + len(part), : part.shape[1]] = part
    return batch


def run_windows(
    function: Callable[[Arrays], np.ndarray],
    arrays: Arrays,
    *,
    limit: int,
    batch_size: int = 32,
    few_lengths: bool = True,
) -> list[np.ndarray]:
    """What `function` gives for each window, in order.

    Windows are sorted by length, so that little is padded, and go through in batches of at most `batch_size` windows
    and a fixed number of tokens, so that memory stays bounded whatever comes. Without `few_lengths` two batches go
    through at a time: on a CPU one alone leaves cores idle in its many small operations.

    Args:
        function: takes `token_ids`, `segment_ids` and `mask` (n, t) and gives an array whose first axis is n.
        arrays: the same three for all windows, (N, T).
        limit: the most tokens that the model takes.
        batch_size: windows that go through the model together.
        few_lengths: pad to the few lengths of `padded_length`, for what compiles anew for each; without it batches
            are as long as their longest window.
    """
    lengths = arrays["mask"].sum(axis=1)
    results: list[Any] = [None] * len(lengths)

    def run(rows: list[int]) -> None:
        longest = max(1, int(lengths[rows[0]]))
        width = min(limit, padded_length(longest)) if few_lengths else longest
        batch = {key: _with_width(arrays[key][rows], width) for key in ("token_ids", "segment_ids", "mask")}
        for row, output in zip(rows, function(batch), strict=True):
            results[row] = output

    batches = list(_batches(lengths.tolist(), batch_size))
    if few_lengths or len(batches) == 1:
        for rows in batches:
            run(rows)
    else:
        with ThreadPoolExecutor(_BATCHES_AT_A_TIME) as threads:
            for _ in threads.map(run, batches):  # raises what a batch has raised
                pass
    return results


def _with_width(array: np.ndarray, width: int) -> np.ndarray:
    cut = array[:, :width]
    return np.pad(cut, ((0, 0), (0, width - cut.shape[1]))) if cut.shape[1] < width else cut


def _batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Numbers of windows of like length, the longest first."""
    order = np.argsort(-np.asarray(lengths), kind="stable").tolist()
    while order:
        width = padded_length(lengths[order[0]])
        size = max(1, min(batch_size, _TOKENS_PER_BATCH // width))
        # Much shorter ones would be padded to the longest: better a batch of their own.
        near = next((i for i, row in enumerate(order) if lengths[row] < _LEAST_FILL * lengths[order[0]]), len(order))
        size = min(size, max(near, _FEWEST_ROWS))
        yield order[:size]
        order = order[size:]
