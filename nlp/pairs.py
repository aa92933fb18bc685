"""Pairs of texts on their way into an encoder-decoder: as token ids, padded in batches for training.

Shapes: B examples, S source tokens, T target tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nlp.inputs import decoded_text
from nlp.windows import padded_length
from shared.data import Arrays
from shared.examples import BadExampleError

# What padding holds where a token would be an answer: none.
NO_TARGET = -1


def text_pair(source: Any, target: Any) -> tuple[str, str]:
    """A text and its translation.

    Raises:
        BadExampleError: for bytes that are not UTF-8, and where a side is empty.
        TypeError: for what is no text.
    """
    pair = decoded_text(source), decoded_text(target)
    for name, text in zip(("source", "target"), pair, strict=True):
        if not text.strip():
            raise BadExampleError(f"the {name} is empty")
    return pair


def pair_arrays(source_ids: Sequence[int], target_ids: Sequence[int], *, max_length: int) -> Arrays:
    """A pair of token ids, each with its end token, as `source_ids` (S,) and `targets` (T,), int32.

    Raises:
        BadExampleError: where one has more than `max_length` tokens.
    """
    longest = max(len(source_ids), len(target_ids))
    if longest > max_length:
        raise BadExampleError(f"{longest} tokens, more than `max_length` {max_length}")
    return {"source_ids": np.asarray(source_ids, np.int32), "targets": np.asarray(target_ids, np.int32)}


def longer_side(arrays: Arrays) -> int:
    """Tokens to which the longer side is padded, by which pairs are brought together in batches."""
    return padded_length(max(len(arrays["source_ids"]), len(arrays["targets"])))


def stack_pairs(examples: Sequence[Arrays], *, start_id: int, pad_id: int, limit: int | None = None) -> Arrays:
    """A batch for training: `source_ids` (B, S), `source_mask` (B, S), `target_ids` (B, T) and `targets` (B, T).

    `target_ids` are what the decoder reads, the targets behind `start_id`; padding of `targets` is -1.
    S and T are at most `limit`, the most tokens that the model takes, of which no example has more.
    """
    sources = padded_ids([example["source_ids"] for example in examples], pad_id, limit=limit)
    targets = padded_ids([example["targets"] for example in examples], NO_TARGET, limit=limit)
    read = np.full_like(targets, start_id)
    read[:, 1:] = np.where(targets[:, :-1] == NO_TARGET, pad_id, targets[:, :-1])
    lengths = np.asarray([len(example["source_ids"]) for example in examples])
    mask = np.arange(sources.shape[1]) < lengths[:, None]
    return {"source_ids": sources, "source_mask": mask, "target_ids": read, "targets": targets}


def padded_ids(rows: Sequence[Sequence[int] | np.ndarray], fill: int, *, limit: int | None = None) -> np.ndarray:
    """Rows of ids as one array (B, T) int32, T one of a few lengths, and at most `limit`, the longest a row may be."""
    width = padded_length(max(len(row) for row in rows))
    padded = np.full((len(rows), width if limit is None else min(width, limit)), fill, np.int32)
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = row
    return padded
