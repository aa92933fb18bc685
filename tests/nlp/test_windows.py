from __future__ import annotations

import numpy as np
import pytest

from nlp.tokenization import TextTokenizer
from nlp.windows import flat_windows, num_tokens, padded_length, run_windows, stack_windows, window_arrays

TOKENIZER = TextTokenizer.train(["the cat sat on the mat and looked at me"] * 5, 200)


def arrays(num_words: int, *, max_length: int = 16):
    text = " ".join(["cat", "mat", "me"][i % 3] for i in range(num_words))
    return window_arrays(TOKENIZER.windows(text, max_length=max_length, overlap=2))


@pytest.mark.parametrize("length", [1, 8, 9, 63, 64, 65, 100, 128, 200, 257, 500, 512])
def test_padded_lengths_are_few_and_near(length):
    padded = padded_length(length)
    assert length <= padded <= max(8, length * 1.25 + 8)
    assert padded_length(padded) == padded
    assert len({padded_length(n) for n in range(1, 513)}) <= 32


def test_window_arrays_hold_every_window():
    windows = TOKENIZER.windows("cat mat me " * 10, max_length=16, overlap=2)
    example = window_arrays(windows)
    assert example["token_ids"].shape == example["mask"].shape == (len(windows), 16)
    for row, window in enumerate(windows):
        np.testing.assert_array_equal(example["token_ids"][row][example["mask"][row]], window.token_ids)


def test_stacked_batches_are_padded_in_both_directions():
    examples = [{**arrays(3), "targets": np.int32(1)}, {**arrays(40), "targets": np.int32(0)}]
    batch = stack_windows(examples, limit=16)
    assert batch["token_ids"].shape == (2, len(examples[1]["mask"]), 16)
    assert batch["targets"].tolist() == [1, 0]
    assert batch["mask"].sum() == sum(example["mask"].sum() for example in examples)
    assert not batch["mask"][0, 1:].any()


def test_padding_stops_at_the_longest_that_the_model_takes():
    assert stack_windows([arrays(9, max_length=11)], limit=11)["mask"].shape == (1, 1, 11)


def test_the_cost_of_an_example_grows_with_its_windows():
    assert num_tokens(arrays(40)) > num_tokens(arrays(10)) > num_tokens(arrays(3))


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_windows_run_in_order_whatever_their_lengths(batch_size):
    batch = flat_windows([arrays(n) for n in (5, 40, 1, 12, 3, 40)])
    assert batch["num_windows"].sum() == len(batch["mask"])
    shapes = []

    def sums(part):
        shapes.append(part["mask"].shape)
        return (part["token_ids"] * part["mask"]).sum(axis=1)

    results = run_windows(sums, batch, limit=16, batch_size=batch_size)
    assert results == (batch["token_ids"] * batch["mask"]).sum(axis=1).tolist()
    assert all(rows <= batch_size and width in (4, 8, 16) for rows, width in shapes)
    assert [width for _, width in shapes] == sorted((width for _, width in shapes), reverse=True)


def test_a_batch_ends_before_windows_that_would_mostly_be_padding():
    lengths = [40] * 10 + [39] * 2 + [10] * 30
    mask = np.arange(40) < np.array(lengths)[:, None]
    shapes = []

    def count(part):
        shapes.append(part["mask"].shape)
        return part["mask"].sum(axis=1)

    ids = np.ones(mask.shape, np.int32)
    run_windows(count, {"token_ids": ids, "segment_ids": ids, "mask": mask}, limit=64, batch_size=32)
    assert shapes == [(12, 40), (30, 12)]


def test_where_any_length_will_do_nothing_is_padded_to_one_of_few():
    batch = flat_windows([arrays(n) for n in (5, 13, 1)])
    shapes = []

    def sums(part):
        shapes.append(part["mask"].shape)
        return (part["token_ids"] * part["mask"]).sum(axis=1)

    assert (
        run_windows(sums, batch, limit=16, batch_size=1, few_lengths=False) == batch["token_ids"].sum(axis=1).tolist()
    )
    assert shapes == [(1, 15), (1, 7), (1, 3)]


def test_memory_is_bounded_by_tokens_not_by_windows():
    ones = np.ones((100, 512), np.int32)
    widest = []

    def count(part):
        widest.append(part["mask"].size)
        return part["mask"].sum(axis=1)

    run_windows(count, {"token_ids": ones, "segment_ids": ones, "mask": ones.astype(bool)}, limit=512, batch_size=64)
    assert max(widest) <= 2048


def test_padding_never_answers():
    examples = []
    for count in (2, 30):
        example = arrays(count)
        example["targets"] = np.where(example["mask"], 3, -1).astype(np.int32)
        examples.append(example)
    batch = stack_windows(examples, limit=16)
    assert (batch["targets"][~batch["mask"]] == -1).all()
    assert (batch["targets"][batch["mask"]] == 3).all()
    flat = flat_windows(examples)
    assert (flat["targets"][~flat["mask"]] == -1).all()
