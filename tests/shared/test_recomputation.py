"""Gradient checkpointing changes memory and time, and no number."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import shared.runtime as runtime_module
from shared.recomputation import recomputable, recomputing
from shared.runtime import RuntimeConfig, seeded
from shared.training_config import TrainingConfig
from tests.shared.test_training import assert_close_weights, assert_equal_weights, fit, toy

TRAINING = TrainingConfig(epochs=2, batch_size=8, learning_rate=0.01)


@pytest.fixture(autouse=True)
def _put_back(monkeypatch):
    monkeypatch.setattr(runtime_module, "_current", None)
    yield
    keras.config.set_dtype_policy("float32")


class Block(keras.layers.Layer):
    """A layer with a product, dropout, and a norm that keeps statistics; counts how often it is traced."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        policy = self.dtype_policy
        self.inner = keras.layers.Dense(5, activation="tanh", dtype=policy)
        self.norm, self.dropout = keras.layers.BatchNormalization(dtype=policy), keras.layers.Dropout(0.4, dtype=policy)
        self.calls = 0

    def build(self, shape):
        self.inner.build(shape)
        self.scale = self.add_weight(shape=(5,), initializer="random_normal", name="scale")
        self.norm.build((*shape[:-1], 5))

    @recomputable
    def call(self, x, offset, *, factor=1.0, training=None):
        self.calls += 1
        return self.dropout(
            self.norm(self.inner(x) * factor + offset * self.scale, training=training), training=training
        )


def stepped(recompute: bool, *, policy: str = "float32", jit: bool = False, steps: int = 3) -> list[np.ndarray]:
    """Losses, gradients of inputs and of weights, and all variables after some training calls of two blocks."""
    with seeded(1):
        blocks = [Block(dtype=policy), Block(dtype=policy)]
    rng = np.random.default_rng(0)
    x, offset = (tf.constant(rng.normal(size=(6, 5)).astype(np.float32)) for _ in range(2))
    with seeded(2):
        for block in blocks:
            block.build((None, 5))

    def step(x: tf.Tensor, offset: tf.Tensor) -> Any:
        weights = [w for block in blocks for w in block.trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch([x, offset])
            with recomputing(recompute):
                hidden = blocks[0](x, offset, factor=2.0, training=True)
                # Twice the same weights, as ALBERT has them.
                hidden = blocks[1](blocks[1](hidden, offset, training=True), offset, training=True)
            loss = tf.reduce_sum(tf.square(tf.cast(hidden, tf.float32)))
        return loss, tape.gradient(loss, [x, offset, *[w.value for w in weights]])

    compiled = tf.function(step, autograph=False, jit_compile=jit)
    found = [np.asarray(value) for _ in range(steps) for value in tf.nest.flatten(compiled(x, offset))]
    return [*found, *[np.asarray(v.value) for block in blocks for v in block.variables]]


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_values_gradients_seeds_and_statistics_are_the_same(policy):
    assert_close_weights(stepped(True, policy=policy), stepped(False, policy=policy), 1e-5)


def test_the_same_under_xla():
    assert_close_weights(stepped(True, jit=True), stepped(False, jit=True), 1e-4)


def test_activations_are_computed_again_in_training_only():
    block = Block()
    block.build((None, 5))
    x = tf.ones((2, 5))

    def calls(**options: Any) -> int:
        before = block.calls
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = block(x, x, **options)
        tape.gradient(y, x)
        return block.calls - before

    assert calls(training=True) == 1
    with recomputing():
        assert calls(training=True) == 2
        assert calls(training=False) == 1
        assert calls() == 1
    with recomputing(False):
        assert calls(training=True) == 1


def test_a_network_without_such_layers_is_refused():
    with pytest.raises(ValueError, match="`gradient_checkpointing` has no effect on this network"):
        fit(toy(), TRAINING.replace(gradient_checkpointing=True))


# Real pipelines.


def text_classifier() -> tuple[Any, Any]:
    from nlp import TextClassifier, TextClassifierConfig

    config = TextClassifierConfig(hidden_size=8, num_layers=2, num_heads=2, vocab_size=100, dropout=0.2)
    texts = [f"a text of {n} words " + "word " * n for n in range(16)]
    return TextClassifier(config), (texts, ["a", "b"] * 8)


def translator() -> tuple[Any, Any]:
    from nlp import Translator, TranslatorConfig

    config = TranslatorConfig(
        hidden_size=8, intermediate_size=16, num_layers=1, num_heads=2, vocab_size=320, dropout=0.2
    )
    sources = [f"a text of {n} words" for n in range(16)]
    return Translator(config), (sources, [text.upper() for text in sources])


def sequential_recommender() -> tuple[Any, Any]:
    from recsys import Interactions, SequentialRecommender, SequentialRecommenderConfig

    config = SequentialRecommenderConfig(dim=8, num_layers=2, max_length=6, dropout=0.2)
    users, items = np.repeat(np.arange(16), 6), np.tile(np.arange(12), 8)
    return SequentialRecommender(config), Interactions(users, items, timestamps=np.arange(96))


@pytest.mark.parametrize("pipeline", [text_classifier, translator, sequential_recommender])
def test_pipelines_train_to_the_same_weights(pipeline):
    trained = []
    for on in (False, True):
        fitted, train = pipeline()
        history = fitted.fit(train, training=TRAINING.replace(gradient_checkpointing=on))
        trained.append([*fitted.model.get_weights(), np.array(history.losses)])
    assert_close_weights(trained[1], trained[0], 2e-5)


def test_it_goes_along_with_loss_scaling():
    trained = []
    for on in (False, True):
        RuntimeConfig(precision="mixed_float16", devices="cpu").apply()
        fitted, train = sequential_recommender()
        fitted.fit(train, training=TRAINING.replace(gradient_checkpointing=on))
        trained.append(fitted.model.get_weights())
    assert_close_weights(trained[1], trained[0], 5e-3)
    assert_equal_weights([np.isfinite(w) for w in trained[1]], [np.ones_like(w, bool) for w in trained[1]])
