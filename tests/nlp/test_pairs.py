from __future__ import annotations

import numpy as np
import pytest

from nlp.pairs import longer_side, pair_arrays, stack_pairs, text_pair
from shared.examples import BadExampleError


def test_a_batch_for_a_decoder_that_is_told_the_tokens_before():
    examples = [pair_arrays([5, 6, 1], [7, 1], max_length=8), pair_arrays([5, 1], [7, 8, 9, 1], max_length=8)]
    assert [longer_side(example) for example in examples] == [4, 4]
    batch = stack_pairs(examples, start_id=2, pad_id=0)
    assert batch["source_ids"].tolist() == [[5, 6, 1, 0], [5, 1, 0, 0]]
    assert batch["source_mask"].tolist() == [[True, True, True, False], [True, True, False, False]]
    assert batch["targets"].tolist() == [[7, 1, -1, -1], [7, 8, 9, 1]]
    assert batch["target_ids"].tolist() == [[2, 7, 1, 0], [2, 7, 8, 9]]
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int32), np.dtype(bool)}


def test_padding_ends_where_the_model_does():
    examples = [pair_arrays([5] * 33, [7] * 34, max_length=34)]
    assert stack_pairs(examples, start_id=2, pad_id=0)["targets"].shape == (1, 40)
    batch = stack_pairs(examples, start_id=2, pad_id=0, limit=34)
    assert (batch["targets"].shape, batch["source_ids"].shape) == ((1, 34), (1, 34))


@pytest.mark.parametrize(
    ("source", "target", "part"),
    [("", "ein", "source is empty"), ("one", " \t", "target is empty"), ("one", b"\xff", "not UTF-8: byte 0xff")],
)
def test_pairs_that_teach_nothing_are_bad_examples(source, target, part):
    with pytest.raises(BadExampleError, match=part):
        text_pair(source, target)


def test_too_long_a_side_is_a_bad_example():
    with pytest.raises(BadExampleError, match="9 tokens, more than `max_length` 8"):
        pair_arrays([3] * 2, [3] * 9, max_length=8)
