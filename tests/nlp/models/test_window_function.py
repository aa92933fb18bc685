from __future__ import annotations

from collections.abc import Iterator

import keras
import numpy as np
import pytest
import tensorflow as tf

from nlp.models import window_function
from nlp.models.network import build_network
from nlp.models.window_function import WindowFunction
from shared.data import Arrays

RNG = np.random.default_rng(0)
ENCODER = {"vocab_size": 30, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "intermediate_size": 32}
ARCHITECTURE = {
    "kind": "transformer",
    "per_text": True,
    "num_labels": 3,
    "head": {"hidden_activation": "tanh"},
    "encoder": ENCODER,
}


def batch(count: int = 4, length: int = 6) -> Arrays:
    ids = RNG.integers(1, 30, (count, length)).astype(np.int32)
    return {"token_ids": ids, "segment_ids": np.zeros_like(ids), "mask": np.ones(ids.shape, bool)}


def built(precision: str) -> keras.Model:
    """A network whose weights are large enough that its answers differ much, and with norms that are no identities."""
    keras.config.set_dtype_policy(precision)
    try:
        model = build_network(ARCHITECTURE, seed=0).model
    finally:
        keras.config.set_dtype_policy("float32")
    assert model is not None
    for variable in model.trainable_variables:
        variable.assign(RNG.normal(variable.numpy().mean(), 0.3, variable.shape))
    return model


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return built("mixed_bfloat16")


@pytest.fixture
def function(model: keras.Model, monkeypatch: pytest.MonkeyPatch) -> Iterator[WindowFunction]:
    """One that takes ten windows for many."""
    monkeypatch.setattr(window_function, "_ENOUGH_WINDOWS", 10)
    weights = model.get_weights()
    yield WindowFunction(model)
    model.set_weights(weights)


def is_settled(function: WindowFunction, num_windows: int) -> bool:
    return function.settled(num_windows) is not function


def test_it_settles_after_many_windows_and_answers_alike(function: WindowFunction, model: keras.Model):
    assert not is_settled(function, 9)
    assert is_settled(function, 1)
    for length in (1, 6, 11):
        inputs = batch(length=length)
        answers = function.settled(1)(inputs)
        assert answers.shape == (4, 3)
        assert answers.dtype == np.float32
        np.testing.assert_allclose(answers, function(inputs), atol=0.03 * np.abs(answers).max())


def test_kernels_are_constants_in_16_bits_and_tables_stay_variables(function: WindowFunction):
    assert is_settled(function, 10)
    assert function._by_constants is not None
    constants = [op.outputs[0] for op in function._by_constants.graph.get_operations() if op.type == "Const"]
    kernels = [c for c in constants if c.dtype == tf.bfloat16 and c.shape.rank == 2]
    # Of two layers: query, key and value together, output, and the two of the feed-forward part; that of the head.
    assert len(kernels) == 2 * 4 + 1
    assert max(c.shape.num_elements() for c in constants if c.dtype == tf.float32) <= 3 * 16


def test_changed_weights_are_noticed(function: WindowFunction, model: keras.Model):
    inputs = batch()
    before = function.settled(10)(inputs)
    model.trainable_variables[-1].assign_add([1.0, 0.0, -1.0])
    assert not is_settled(function, 9)
    np.testing.assert_allclose(function(inputs) - before, [[1.0, 0.0, -1.0]] * 4, atol=0.1)
    assert is_settled(function, 1)
    np.testing.assert_allclose(function.settled(1)(inputs), function(inputs), atol=0.05)


def test_a_step_of_an_optimizer_is_noticed(function: WindowFunction, model: keras.Model):
    assert is_settled(function, 10)
    optimizer = keras.optimizers.SGD(0.1)

    @tf.function
    def step() -> None:
        optimizer.apply([tf.ones_like(variable.value) for variable in variables], variables)

    variables = model.trainable_variables
    optimizer.build(variables)
    step()
    assert not is_settled(function, 1)


def test_unsettled_it_begins_anew(function: WindowFunction):
    assert is_settled(function, 10)
    function.unsettle()
    assert not is_settled(function, 9)


def test_where_nothing_is_gained_or_there_is_no_room_it_stays_as_it_is(
    function: WindowFunction, monkeypatch: pytest.MonkeyPatch
):
    assert not is_settled(WindowFunction(built("float32")), 100)
    monkeypatch.setattr(window_function, "_MOST_BYTES", 100)
    assert not is_settled(function, 100)
