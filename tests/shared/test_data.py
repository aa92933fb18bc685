from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from shared.data import _BUCKET_WINDOW, Arrays, InputPipeline, Loading, Stages, _Streams, prefetch, stack
from shared.distribution import BatchShares, Portion
from shared.examples import BadExampleError, BadRecord, Examples

COUNT = 41


def encode(value: Any, target: Any) -> Arrays:
    """An example is its number; those that end in 7 take longer, so that threads finish out of order."""
    if value % 10 == 7:
        time.sleep(0.002)
    return {"x": np.asarray(value, np.int64), "y": np.asarray(target, np.int64)}


def encode_most(value: Any, target: Any) -> Arrays:
    if value in {3, 11, 30}:
        raise BadExampleError("cannot be read", f"file-{value}")
    return encode(value, target)


def add_noise(arrays: Arrays, rng: np.random.Generator) -> Arrays:
    return {**arrays, "noise": rng.random(2)}


def add_batch_noise(batch: Arrays, rng: np.random.Generator) -> Arrays:
    return {**batch, "batch_noise": rng.random(3)}


RANDOM = Stages(encode=encode, augment=add_noise, augment_batch=add_batch_noise)
BUCKETED = replace(RANDOM, length=lambda arrays: int(arrays["x"]) % 5)
SHUFFLED = Loading(batch_size=4, shuffle=True, seed=1, num_threads=2)


def numbers(count: int = COUNT) -> Examples:
    return Examples(np.arange(count), np.arange(count) * 2)


def dataset(count: int = COUNT) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((np.arange(count), np.arange(count) * 2))


def dataset_of_unknown_length() -> tf.data.Dataset:
    return dataset(2 * COUNT).filter(lambda x, _: x < COUNT)


def values(batches: Any) -> list[int]:
    """The examples' numbers in the order in which they come."""
    return [int(x) for batch in batches for x in batch["x"]]


def assert_equal_batches(actual: list[Arrays], expected: list[Arrays]) -> None:
    assert len(actual) == len(expected)
    for left, right in zip(actual, expected, strict=True):
        assert left.keys() == right.keys()
        for key in left:
            np.testing.assert_array_equal(left[key], right[key], err_msg=key)


@pytest.mark.parametrize("make", [numbers, dataset, dataset_of_unknown_length])
def test_counts(make):
    pipeline = InputPipeline(make(), RANDOM, Loading(batch_size=4))
    assert (pipeline.num_examples, pipeline.num_batches) == (41, 11)
    assert len(list(pipeline.epoch())) == 11


# Order and randomness.


@pytest.mark.parametrize("make", [numbers, dataset])
def test_without_shuffling_the_order_is_kept(make):
    assert values(InputPipeline(make(), Stages(encode=encode), Loading(batch_size=4)).epoch()) == list(range(COUNT))


@pytest.mark.parametrize("stages", [RANDOM, BUCKETED], ids=["plain", "bucketed"])
@pytest.mark.parametrize("make", [numbers, dataset])
def test_an_epoch_shuffles_and_loses_nothing(make, stages):
    pipeline = InputPipeline(make(), stages, SHUFFLED)
    first, second = values(pipeline.epoch(0)), values(pipeline.epoch(1))
    assert sorted(first) == sorted(second) == list(range(COUNT))
    assert list(range(COUNT)) != first != second
    assert values(InputPipeline(make(), stages, replace(SHUFFLED, seed=2)).epoch(0)) != first


@pytest.mark.parametrize("stages", [RANDOM, BUCKETED], ids=["plain", "bucketed"])
def test_batches_do_not_depend_on_threads_cache_or_prefetching(stages):
    expected = list(InputPipeline(numbers(), stages, replace(SHUFFLED, num_threads=1, prefetch=0)).epoch(3))
    pipeline = InputPipeline(numbers(), stages, replace(SHUFFLED, num_threads=4, cache_bytes=1 << 20, prefetch=5))
    for _ in range(2):
        assert_equal_batches(list(pipeline.epoch(3)), expected)


def test_noise_differs_by_example_batch_and_epoch():
    pipeline = InputPipeline(numbers(), RANDOM, SHUFFLED)
    batches = [*pipeline.epoch(0), *pipeline.epoch(1)]
    noise = np.concatenate([batch["noise"] for batch in batches])
    assert len(np.unique(noise)) == noise.size == 2 * 2 * COUNT
    batch_noise = np.stack([batch["batch_noise"] for batch in batches])
    assert len(np.unique(batch_noise)) == batch_noise.size


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
@pytest.mark.parametrize("stages", [RANDOM, BUCKETED], ids=["plain", "bucketed"])
def test_each_seed_that_a_config_accepts_gives_other_orders(seed, stages):
    pipeline = InputPipeline(numbers(), stages, replace(SHUFFLED, seed=seed))
    orders = {tuple(values(pipeline.epoch(epoch))) for epoch in range(4)}
    assert len(orders) == 4
    assert all(sorted(order) == list(range(COUNT)) for order in orders)


def test_each_window_of_buckets_is_shuffled_in_its_own_order(monkeypatch):
    monkeypatch.setattr(InputPipeline, "_order", lambda self, epoch, count: np.arange(count))
    stages = Stages(encode=encode, length=lambda arrays: 0)
    batches = InputPipeline(numbers(4 * _BUCKET_WINDOW), stages, replace(SHUFFLED, batch_size=2)).epoch()
    order = np.array(values(batches)).reshape(2, 2 * _BUCKET_WINDOW)
    assert sorted(order[0]) == list(range(2 * _BUCKET_WINDOW))
    assert list(order[0] + 2 * _BUCKET_WINDOW) != list(order[1])


def test_a_stream_longer_than_its_buffer_is_shuffled_whole(monkeypatch):
    monkeypatch.setattr("shared.data._SHUFFLE_BUFFER", 8)
    order = values(InputPipeline(dataset(), RANDOM, SHUFFLED).epoch())
    assert sorted(order) == list(range(COUNT)) != order
    # An example can stay long in the buffer, but cannot leave it before it came.
    assert all(value <= position + 8 for position, value in enumerate(order))


def test_buckets_hold_examples_of_like_length():
    stages = Stages(encode=lambda x, y: {"x": np.zeros(x % 8)}, length=lambda arrays: len(arrays["x"]))
    batches = list(InputPipeline(numbers(40), stages, Loading(batch_size=5, shuffle=True)).epoch())
    widths = [batch["x"].shape[1] for batch in batches]  # `stack` refuses unequal lengths
    assert sorted(widths) == list(range(8)) != widths


# Batches of so many tokens.


def words(count: int = 60) -> tuple[Examples, Stages]:
    """Examples of 1 to 7 tokens, and one of 30; padded with -1."""

    def encode(x: int, y: Any) -> Arrays:
        return {"x": np.full(30 if x == 17 else 1 + 5 * x % 7, x)}

    def collate(examples: Sequence[Arrays]) -> Arrays:
        padded = np.full((len(examples), max(len(example["x"]) for example in examples)), -1)
        for row, example in zip(padded, examples, strict=True):
            row[: len(example["x"])] = example["x"]
        return {"x": padded}

    return numbers(count), Stages(encode=encode, collate=collate, length=lambda arrays: len(arrays["x"]))


IN_TOKENS = replace(SHUFFLED, batch_tokens=20, drop_remainder=True)


def test_batches_are_filled_up_with_tokens_and_lose_nothing():
    data, stages = words()
    pipeline = InputPipeline(data, stages, IN_TOKENS)
    batches = [batch["x"] for batch in pipeline.epoch()]
    assert sorted(x for batch in batches for x in set(batch[:, 0])) == list(range(60))
    assert [batch.shape for batch in batches if batch.size > 20] == [(1, 30)]
    assert np.mean([batch.size for batch in batches]) > 15
    assert pipeline.num_batches == len(batches)


def test_batches_of_tokens_are_the_same_each_time_and_can_be_entered_in_the_middle():
    data, stages = words()
    expected = list(InputPipeline(data, stages, IN_TOKENS).epoch(3))
    assert_equal_batches(list(InputPipeline(data, stages, replace(IN_TOKENS, num_threads=1)).epoch(3)), expected)
    assert_equal_batches(list(InputPipeline(data, stages, IN_TOKENS).epoch(3, 4)), expected[4:])
    assert [b["x"].shape for b in InputPipeline(data, stages, IN_TOKENS).epoch(4)] != [b["x"].shape for b in expected]


def test_tokens_are_counted_only_where_examples_have_lengths():
    with pytest.raises(ValueError, match="Use `batch_size`"):
        InputPipeline(numbers(), RANDOM, IN_TOKENS)


# Entering an epoch in the middle.


@pytest.mark.parametrize("start", [0, 1, 5, 10, 11])
@pytest.mark.parametrize("stages", [RANDOM, BUCKETED], ids=["plain", "bucketed"])
@pytest.mark.parametrize("make", [numbers, dataset, dataset_of_unknown_length])
def test_entering_in_the_middle_equals_skipping(make, stages, start):
    whole = list(InputPipeline(make(), stages, SHUFFLED).epoch(2))
    assert_equal_batches(list(InputPipeline(make(), stages, SHUFFLED).epoch(2, start)), whole[start:])


@pytest.mark.parametrize("after", [1, 4, 9])
@pytest.mark.parametrize("stages", [RANDOM, BUCKETED], ids=["plain", "bucketed"])
@pytest.mark.parametrize("make", [numbers, dataset_of_unknown_length])
def test_bad_examples_do_not_shift_what_comes_after(make, stages, after):
    stages = replace(stages, encode=encode_most)
    tolerant = replace(SHUFFLED, max_bad_share=0.5)
    unbroken = InputPipeline(make(), stages, tolerant)
    expected = [list(unbroken.epoch(0)), list(unbroken.epoch(1))]

    interrupted = InputPipeline(make(), stages, tolerant)
    batches = interrupted.epoch(0)
    for _ in range(after):
        next(batches)
    state = interrupted.state()
    resumed = InputPipeline(make(), stages, tolerant)
    resumed.restore(state)
    assert_equal_batches(list(resumed.epoch(0, after)), expected[0][after:])
    assert_equal_batches(list(resumed.epoch(1)), expected[1])
    assert {bad.where for bad in resumed.bad_records} == {"file-3", "file-11", "file-30"}


def test_examples_skipped_at_the_start_are_not_encoded():
    seen: list[int] = []
    stages = Stages(encode=lambda x, y: seen.append(x) or {"x": np.asarray(x)})
    assert values(InputPipeline(numbers(), stages, Loading(batch_size=4)).epoch(0, 9)) == [36, 37, 38, 39, 40]
    assert sorted(seen) == [36, 37, 38, 39, 40]


# Bad examples.


@pytest.mark.parametrize("make", [numbers, dataset])
def test_bad_examples_are_skipped_and_reported(make, caplog):
    pipeline = InputPipeline(make(), Stages(encode=encode_most), Loading(batch_size=4, max_bad_share=0.1))
    assert pipeline.bad_records == ()
    expected = [x for x in range(COUNT) if x not in {3, 11, 30}]
    assert values(pipeline.epoch(0)) == values(pipeline.epoch(1)) == expected
    reason = "cannot be read"
    assert pipeline.bad_records == tuple(BadRecord(f"file-{x}", reason) for x in (3, 11, 30))
    assert (pipeline.num_examples, pipeline.num_batches) == (38, 10)
    assert [record.getMessage() for record in caplog.records] == [
        f"skipped example {x}: file-{x}: cannot be read" for x in (3, 11, 30)
    ]  # once each, not in every epoch


@pytest.mark.parametrize("make", [numbers, dataset, dataset_of_unknown_length])
def test_too_many_bad_examples_end_an_epoch(make):
    pipeline = InputPipeline(make(), Stages(encode=encode_most), Loading(max_bad_share=0.04))
    with pytest.raises(ValueError, match=r"3 of 41 examples cannot be read, more than the 2 .* file-30"):
        list(pipeline.epoch())


@pytest.mark.parametrize("make", [numbers, dataset, dataset_of_unknown_length])
def test_the_share_is_one_of_the_whole_set_wherever_the_bad_ones_stand(make):
    def encode_tail(value: Any, target: Any) -> Arrays:
        if value < 3:
            raise BadExampleError("cannot be read", f"file-{value}")
        return encode(value, target)

    pipeline = InputPipeline(make(), Stages(encode=encode_tail), Loading(max_bad_share=0.06))
    assert values(pipeline.epoch()) == list(range(3, COUNT))


def test_no_tolerance_raises_the_first():
    with pytest.raises(BadExampleError, match="file-3: cannot be read"):
        list(InputPipeline(numbers(), Stages(encode=encode_most), Loading(max_bad_share=0.0)).epoch())


def test_an_error_in_encode_surfaces():
    stages = Stages(encode=lambda x, y: {"x": np.asarray([1, 2][x])})
    batches = InputPipeline(numbers(), stages, Loading(batch_size=2, num_threads=3)).epoch()
    assert next(batches)["x"].tolist() == [1, 2]
    with pytest.raises(IndexError, match="out of range"):
        next(batches)


# Batches.


@pytest.mark.parametrize("stages", [RANDOM, BUCKETED], ids=["plain", "bucketed"])
@pytest.mark.parametrize(
    ("count", "drop_remainder", "sizes"),
    [(1, True, [1]), (3, True, [3]), (3, False, [3]), (4, True, [4]), (10, True, [4, 4]), (10, False, [4, 4, 2])],
)
def test_the_last_batch(count, drop_remainder, sizes, stages):
    loading = replace(SHUFFLED, drop_remainder=drop_remainder)
    pipeline = InputPipeline(numbers(count), stages, loading)
    assert [len(batch["x"]) for batch in pipeline.epoch()] == sizes
    assert pipeline.num_batches == len(sizes)


def test_a_bad_example_in_a_set_smaller_than_a_batch():
    loading = Loading(batch_size=64, drop_remainder=True, max_bad_share=0.1)
    pipeline = InputPipeline(numbers(), Stages(encode=encode_most), loading)
    assert [len(batch["x"]) for batch in pipeline.epoch()] == [38]


def test_collate_may_be_the_tasks_own():
    stages = Stages(encode=encode, collate=lambda group: {"x": stack(group)["x"][::-1]})
    assert values(InputPipeline(numbers(4), stages, Loading(batch_size=2)).epoch()) == [1, 0, 3, 2]


@pytest.mark.parametrize(("room", "kept"), [(0, 0), (15, 0), (16, 1), (16 * 10 + 3, 10), (1 << 20, COUNT)])
def test_the_cache_keeps_to_its_bound(room, kept):
    seen: list[int] = []

    def counted(value: Any, target: Any) -> Arrays:
        seen.append(value)
        return encode(value, target)  # 16 bytes

    pipeline = InputPipeline(numbers(), Stages(encode=counted), Loading(cache_bytes=room))
    first = values(pipeline.epoch(0))
    seen.clear()
    assert values(pipeline.epoch(1)) == first
    assert len(seen) == COUNT - kept


def test_the_cache_counts_the_texts_that_its_arrays_refer_to():
    seen: list[int] = []

    def spelled(value: Any, target: Any) -> Arrays:
        seen.append(value)
        return {"x": np.array(str(value).ljust(10_000), object)}

    pipeline = InputPipeline(numbers(), Stages(encode=spelled), Loading(cache_bytes=50_000))
    first = values(pipeline.epoch(0))
    seen.clear()
    assert values(pipeline.epoch(1)) == first
    assert len(seen) == COUNT - 4


# Background work.


class Counted:
    """A long sequence that counts how often it was read."""

    reads = 0

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> int:
        self.reads += 1
        return index


def threads() -> int:
    return threading.active_count()


@pytest.mark.parametrize("depth", [0, 2])
def test_reading_ahead_is_bounded(depth):
    source = Counted()
    loading = Loading(batch_size=4, num_threads=2, prefetch=depth)
    batches = InputPipeline(Examples(source, source), Stages(encode=encode), loading).epoch()
    next(batches)
    time.sleep(0.2)
    assert 4 <= source.reads / 2 <= 100
    batches.close()


@pytest.mark.parametrize("depth", [0, 1, 2])
@pytest.mark.parametrize("taken", [0, 1, 3])
def test_leaving_early_ends_the_threads(taken, depth):
    before = threads()
    loading = Loading(batch_size=4, num_threads=3, prefetch=depth)
    batches = InputPipeline(numbers(2000), RANDOM, loading).epoch()
    for _ in range(taken):
        next(batches)
    batches.close()
    assert threads() == before


def test_an_error_ends_the_threads_too():
    before = threads()
    stages = Stages(encode=lambda x, y: {"x": np.asarray(1 // (50 - int(x)))})
    with pytest.raises(ZeroDivisionError):
        list(InputPipeline(numbers(2000), stages, Loading(batch_size=4, num_threads=3)).epoch())
    assert threads() == before


@pytest.mark.parametrize("depth", [0, 1, 5])
def test_prefetching_changes_nothing(depth):
    assert list(prefetch(iter([]), depth)) == []
    assert list(prefetch(iter([{"x": i} for i in range(10)]), depth)) == [{"x": i} for i in range(10)]


@pytest.mark.parametrize("depth", [0, 2])
def test_prefetched_errors_come_where_the_batch_would_have_come(depth):
    def two_then_error():
        yield {"x": 1}
        yield {"x": 2}
        raise RuntimeError("disk is gone")

    batches = prefetch(two_then_error(), depth)
    assert [next(batches), next(batches)] == [{"x": 1}, {"x": 2}]
    with pytest.raises(RuntimeError, match="disk is gone"):
        next(batches)


def test_two_epochs_may_run_at_once():
    pipeline = InputPipeline(numbers(), RANDOM, SHUFFLED)
    expected = list(pipeline.epoch(0))
    pairs = list(zip(pipeline.epoch(0), pipeline.epoch(0), strict=True))
    assert_equal_batches([left for left, _ in pairs], expected)
    assert_equal_batches([right for _, right in pairs], expected)


@pytest.mark.parametrize("key", [[0, 0], [3, 5], [(7 << 32) + 2, (1 << 63) + 9]])
def test_a_stream_is_that_of_a_new_generator(key: list[int]) -> None:
    streams, key = _Streams(), np.array(key, np.uint64)
    streams.generator(np.array([1, 1], np.uint64)).integers(0, 9, 3, np.uint8)  # leaves half a word behind
    for _ in range(2):
        rng, new = streams.generator(key), np.random.Generator(np.random.Philox(key=key))
        assert rng.random(5).tolist() == new.random(5).tolist()
        assert rng.integers(0, 99, 3, np.uint8).tolist() == new.integers(0, 99, 3, np.uint8).tolist()


def test_a_dataset_that_reshuffles_is_refused():
    pipeline = InputPipeline(dataset().shuffle(COUNT), Stages(encode=encode), Loading(shuffle=True))
    with pytest.raises(ValueError, match=r"Remove `\.shuffle\(\)`"):
        list(pipeline.epoch())
    fixed = dataset().shuffle(COUNT, reshuffle_each_iteration=False)
    assert sorted(values(InputPipeline(fixed, Stages(encode=encode), Loading(shuffle=True)).epoch())) == [*range(COUNT)]


def test_an_empty_dataset_of_unknown_length_is_refused():
    nothing = dataset().filter(lambda *_: False)
    with pytest.raises(ValueError, match="no examples"):
        list(InputPipeline(nothing, Stages(encode=encode)).epoch())
    with pytest.raises(ValueError, match="no examples"):
        _ = InputPipeline(nothing, Stages(encode=encode)).num_examples


def test_a_set_of_bad_examples_only_is_never_tolerated():
    def fail(*_: Any) -> Arrays:
        raise BadExampleError("unreadable", "x")

    with pytest.raises(ValueError, match="None of the 1 examples"):
        list(InputPipeline(([1], [1]), Stages(encode=fail), Loading(max_bad_share=1.0)).epoch())


def test_what_the_reader_left_out_is_reported_but_not_counted():
    left_out = BadRecord("table.csv:7", "no label")
    pipeline = InputPipeline(replace(numbers(), bad_records=(left_out,)), Stages(encode=encode))
    assert pipeline.bad_records == (left_out,)
    assert pipeline.num_examples == COUNT
    assert pipeline.state() == {"bad": {}}


# Shares of batches, for several devices and workers.


def of_workers(pipelines: Sequence[InputPipeline], epoch: int = 0, start_batch: int = 0) -> list[list[BatchShares]]:
    """For each batch, what each worker has of it; worker w of n has share w of n."""
    count = len(pipelines)
    parts = [list(p.shares(Portion(count, w, 1), epoch, start_batch)) for w, p in enumerate(pipelines)]
    return [list(shares) for shares in zip(*parts, strict=True)]


def counting(batch: BatchShares) -> list[dict[str, Any]]:
    """The examples of a worker's shares that count, without what is drawn for a whole batch."""
    return [
        {key: array[row].tolist() for key, array in part.items() if key != "batch_noise"}
        for part, size in zip(batch.parts, batch.sizes, strict=True)
        for row in range(size)
    ]


@pytest.mark.parametrize("source", [numbers, dataset, dataset_of_unknown_length])
@pytest.mark.parametrize("stages", [RANDOM, BUCKETED])
@pytest.mark.parametrize("loading", [SHUFFLED, replace(SHUFFLED, shuffle=False, drop_remainder=True)])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_workers_have_each_batch_of_one_process_between_them(source, stages, loading, count):
    alone = list(InputPipeline(source(), stages, loading).epoch(1, 2))
    shared = of_workers([InputPipeline(source(), stages, loading) for _ in range(count)], 1, 2)
    assert len(shared) == len(alone)
    for shares, batch in zip(shared, alone, strict=True):
        rows = [{k: a[i].tolist() for k, a in batch.items() if k != "batch_noise"} for i in range(len(batch["x"]))]
        assert [example for share in shares for example in counting(share)] == rows
        assert [share.num_examples for share in shares] == [len(rows)] * count
        # What is drawn for a batch is the same for all shares.
        assert all((part["batch_noise"] == batch["batch_noise"]).all() for share in shares for part in share.parts)


def test_a_process_with_all_devices_has_all_shares():
    portion = Portion(3, 0, 3)
    batches = list(InputPipeline(numbers(), RANDOM, SHUFFLED).shares(portion))
    assert [[e["x"] for e in counting(batch)] for batch in batches] == [
        batch["x"].tolist() for batch in InputPipeline(numbers(), RANDOM, SHUFFLED).epoch()
    ]
    # The last batch has one example for three devices: two of them are given one that is to weigh nothing.
    assert (batches[-1].sizes, [len(part["x"]) for part in batches[-1].parts]) == ((0, 0, 1), [1, 1, 1])


def test_a_worker_reads_its_own_examples_only():
    read: list[set[int]] = [set(), set()]

    def pipeline(worker: int) -> InputPipeline:
        def noted(value: Any, target: Any) -> Arrays:
            read[worker].add(int(value))
            return encode(value, target)

        return InputPipeline(numbers(40), replace(RANDOM, encode=noted), SHUFFLED)

    of_workers([pipeline(0), pipeline(1)])
    assert [len(part) for part in read] == [20, 20]
    assert read[0] | read[1] == set(range(40))


def test_bad_examples_are_left_out_by_all_workers_from_the_next_epoch_on():
    loading = replace(SHUFFLED, max_bad_share=0.2)
    stages = replace(RANDOM, encode=encode_most)
    pipelines = [InputPipeline(numbers(), stages, loading) for _ in range(2)]
    first = of_workers(pipelines)
    # Their places stay empty, and the totals of sizes say so.
    assert sum(sum(share.sizes) for shares in first for share in shares) == COUNT - 3
    assert sum(len(p.found_bad()) for p in pipelines) == 3
    saved = pipelines[0].state()
    found = [p.found_bad() for p in pipelines]
    for p in pipelines:
        p.agree(found)
    expected = [f"file-{i}: cannot be read" for i in (3, 11, 30)]
    assert [[str(bad) for bad in p.bad_records] for p in pipelines] == [expected, expected]
    second = [[e["x"] for share in shares for e in counting(share)] for shares in of_workers(pipelines, 1)]
    alone = InputPipeline(numbers(), stages, loading)
    list(alone.epoch(0))
    assert second == [batch["x"].tolist() for batch in alone.epoch(1)]
    # In the middle of the first epoch nothing was agreed yet: a resumed run forms the same batches.
    assert saved == {"bad": {}}
    resumed = [InputPipeline(numbers(), stages, loading) for _ in range(2)]
    for p in resumed:
        p.restore(saved)
    again = of_workers(resumed, 0, 4)
    assert [[counting(s) for s in shares] for shares in again] == [[counting(s) for s in x] for x in first[4:]]


def test_a_share_whose_examples_are_all_bad_holds_a_stand_in():
    def encode_two(value: Any, target: Any) -> Arrays:
        if value >= 2:
            raise BadExampleError("cannot be read")
        return encode(value, target)

    loading = Loading(batch_size=4, max_bad_share=0.9, num_threads=2)
    second = InputPipeline(numbers(8), Stages(encode=encode_two), loading)
    batches = list(second.shares(Portion(2, 1, 1)))
    assert [batch.sizes for batch in batches] == [(0,), (0,)]
    assert [batch.parts[0]["x"].tolist() for batch in batches] == [[0], [0]]


def test_workers_agree_that_too_much_is_bad():
    loading = replace(SHUFFLED, max_bad_share=0.05)
    pipelines = [InputPipeline(numbers(20), replace(RANDOM, encode=encode_most), loading) for _ in range(2)]
    found = [{"3": ["example 3", "cannot be read"]}, {"11": ["example 11", "cannot be read"]}]
    for pipeline in pipelines:
        with pytest.raises(ValueError, match="2 of 20 examples cannot be read, more than the 1 that are tolerated"):
            pipeline.agree(found)
