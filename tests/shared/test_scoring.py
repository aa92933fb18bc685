from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from shared.data import Arrays, InputPipeline, Loading, Stages
from shared.distribution import Portion, Workers
from shared.examples import BadExampleError, Examples
from shared.pipeline import Metrics
from shared.scoring import joined, measured, measured_examples
from tests.contract import WorkerInTurn


def encode(value: Any, target: Any) -> Arrays:
    if target < 0:
        raise BadExampleError("unreadable")
    return {"value": np.array(value)}


def pipeline(data: Any, portion: Portion, **loading: Any) -> InputPipeline:
    return InputPipeline(data, Stages(encode=encode), Loading(batch_size=4, portion=portion, **loading))


def read(batches: InputPipeline, epoch: int = 0) -> list[int]:
    return [int(value) for batch in batches.epoch(epoch) for value in batch["value"]]


@pytest.mark.parametrize("count", [1, 2, 3, 30])
@pytest.mark.parametrize("make", [list, tf.data.Dataset.from_tensor_slices], ids=["examples", "dataset"])
def test_portions_are_all_examples_and_each_once(make, count):
    numbers = np.arange(23)
    data = Examples(numbers, numbers) if make is list else make((numbers, numbers))
    parts = [read(pipeline(data, Portion(count, index, 1))) for index in range(count)]
    assert sorted(itertools.chain(*parts)) == numbers.tolist()
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    if make is list:
        assert list(itertools.chain(*parts)) == numbers.tolist()


def test_a_cache_holds_after_more_were_found_bad():
    targets = np.arange(12)
    targets[[2, 9]] = -1
    pipelines = [
        pipeline(Examples(np.arange(12), targets), Portion(2, index, 1), max_bad_share=0.5, cache_bytes=1 << 20)
        for index in range(2)
    ]
    assert [read(each) for each in pipelines] == [[0, 1, 3, 4, 5], [6, 7, 8, 10, 11]]
    found = [each.found_bad() for each in pipelines]
    for each in pipelines:
        each.agree(found)
        assert len(each.bad_records) == 2
    assert [read(each, 1) for each in pipelines] == [[0, 1, 3, 4, 5], [6, 7, 8, 10, 11]]


def test_rows_are_joined_in_order():
    parts = [{"x": np.zeros((2, 3)), "y": np.arange(2)}, {}, {"y": np.arange(1), "x": np.ones((1, 3))}]
    found = joined(parts)
    assert found["x"].tolist() == [[0] * 3, [0] * 3, [1] * 3]
    assert found["y"].tolist() == [0, 1, 0]
    assert joined([]) == {}
    assert joined(iter([{}])) == {}


def mean(rows: Arrays) -> Metrics:
    return Metrics({"mean": float(rows["x"].mean())}, details={"rows": len(rows["x"])})


def test_alone_ones_own_rows_are_measured():
    metrics = measured({"x": np.array([1.0, 3.0])}, mean, Portion(), lambda: "")
    assert metrics == {"mean": 2.0}
    assert metrics.details == {"rows": 2}


def test_the_first_measures_the_rows_of_all(monkeypatch):
    sent: list[Any] = []
    for index, own, expected in [(1, [9.0], {}), (0, [1.0, 2.0], {"mean": 4.0})]:
        workers = WorkerInTurn(index, sent)
        monkeypatch.setattr("shared.scoring.current_runtime", lambda workers=workers: SimpleNamespace(workers=workers))
        assert measured({"x": np.array(own)}, mean, workers.portion, lambda: "same") == expected


def test_a_worker_without_examples_gives_no_rows(monkeypatch):
    sent: list[Any] = []
    for index in (1, 0):
        workers = WorkerInTurn(index, sent)
        monkeypatch.setattr("shared.scoring.current_runtime", lambda workers=workers: SimpleNamespace(workers=workers))
        batches = pipeline(Examples([5], [5]), workers.portion)
        metrics = measured_examples(batches, joined({"x": batch["value"]} for batch in batches.epoch()), mean)
    # The shares of one example among two: the second has it.
    assert sent == [{"x": np.array([5])}]
    assert metrics == {"mean": 5.0}


def test_workers_agree_on_what_cannot_be_read(monkeypatch):
    class Group(Workers):
        count = 2

        def exchange(self, value: Any = None) -> list[Any]:
            return [value, value if isinstance(value, str) else {"7": ["example 7", "unreadable"]}]

        def to_first(self, arrays: Any) -> list[Arrays]:
            return [dict(arrays), {"x": np.array([6.0])}]

    monkeypatch.setattr("shared.scoring.current_runtime", lambda: SimpleNamespace(workers=Group()))
    targets = np.array([0, -1, 2, 3, 4, 5, 6, -1])
    for tolerated in (0.25, 0.1):
        batches = pipeline(Examples(np.arange(8), targets), Portion(2, 0, 1), max_bad_share=tolerated)
        own = joined({"x": batch["value"]} for batch in batches.epoch())
        if tolerated == 0.25:
            metrics = measured_examples(batches, own, mean)
            assert metrics["mean"] == pytest.approx((0 + 2 + 3 + 6) / 4)
            assert [bad.where for bad in metrics.details["bad_records"]] == ["example 1", "example 7"]
        else:
            with pytest.raises(ValueError, match="2 of 8 examples cannot be read"):
                measured_examples(batches, own, mean)


@pytest.mark.parametrize("make", [list, tf.data.Dataset.from_tensor_slices], ids=["examples", "dataset"])
def test_workers_with_data_in_different_orders_are_refused(monkeypatch, make):
    numbers = np.arange(20)
    orders = [numbers, np.random.default_rng(1).permutation(20)]
    prints = []

    class Other(Workers):
        count = 2

        def exchange(self, value: Any = None) -> list[Any]:
            if isinstance(value, str):
                prints.append(value)
                return prints if len(prints) == 2 else [value]
            return [value]

        def to_first(self, arrays: Any) -> list[Arrays]:
            return [dict(arrays)]

    monkeypatch.setattr("shared.scoring.current_runtime", lambda: SimpleNamespace(workers=Other()))
    for index, order in enumerate(orders):
        data = Examples(order, order) if make is list else make((order, order))
        batches = pipeline(data, Portion(2, index, 1))
        own = joined({"x": batch["value"]} for batch in batches.epoch())
        if index == 0:
            measured_examples(batches, own, mean)
        else:
            with pytest.raises(ValueError, match="same in different orders"):
                measured_examples(batches, own, mean)


def test_a_shuffled_dataset_is_no_part_of_a_whole():
    data = tf.data.Dataset.from_tensor_slices((np.arange(40), np.arange(40))).shuffle(40)
    with pytest.raises(ValueError, match="another order"):
        read(pipeline(data, Portion(2, 0, 1)))
