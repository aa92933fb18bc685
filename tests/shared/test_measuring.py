from __future__ import annotations

import gc
import logging
import random
import weakref
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import shared.measuring as measuring
import shared.runtime as runtime_module
from shared.checkpoint import CheckpointDirectory, TrainingState
from shared.measuring import Trial, choose_runtime
from shared.runtime import RuntimeConfig, current_runtime
from shared.training import TrainingTask
from tests.shared.test_training import PLAIN, assert_equal_weights, fit, toy, weights

BOTH = RuntimeConfig(precision="auto", xla="auto", devices="cpu")
HALF = "mixed_bfloat16"


@pytest.fixture(autouse=True)
def _short_and_put_back(monkeypatch):
    monkeypatch.setattr(runtime_module, "_current", None)
    monkeypatch.setattr(measuring, "_ROUNDS", 1)
    monkeypatch.setattr(measuring, "_HOPELESS", 1e9)  # a busy machine may stop for any step
    yield
    keras.config.set_dtype_policy("float32")


class Toy:
    """A pipeline around the toy task; `change(task)` may make it a worse one."""

    def __init__(self, change=lambda task: task, dropout=0.0):
        self.change, self.dropout = change, dropout

    def training_task(self, train: Any, training: Any) -> TrainingTask:
        return self.change(toy(dropout=self.dropout))


# Picking.


def trials(*rows: tuple[str, bool, float, float, str]) -> list[Trial]:
    return [Trial(p, x, first, 0.1 * relative, relative, 1.0, note) for p, x, first, relative, note in rows]


F32, BF16 = ("float32", False, 1.0, 1.0, ""), ("mixed_bfloat16", False, 1.0, 0.6, "")


@pytest.mark.parametrize(
    ("rows", "steps", "picked"),
    [
        ([F32], 100, ("float32", False)),
        ([F32, BF16], 100, (HALF, False)),
        ([F32, (HALF, False, 1.0, 0.97, "")], 100, ("float32", False)),  # a tie
        ([F32, (HALF, False, 1.0, 1.3, "")], 100, ("float32", False)),
        ([F32, (HALF, False, 1.0, 0.5, "loss differs")], 100, ("float32", False)),
        # Compiling takes 9 s for each of two shapes, a step takes 0.05 s less.
        ([F32, ("float32", True, 9.0, 0.5, "")], 100, ("float32", False)),
        ([F32, ("float32", True, 9.0, 0.5, "")], 10_000, ("float32", True)),
        # Both together gain no more than one alone, which is simpler; or they do.
        ([F32, BF16, (HALF, True, 1.0, 0.59, "")], 10_000, (HALF, False)),
        ([F32, BF16, (HALF, True, 1.0, 0.4, "")], 10_000, (HALF, True)),
    ],
)
def test_the_pick(rows, steps, picked):
    found = measuring._picked(trials(*rows), steps, num_shapes=2)
    assert (found.precision, found.xla) == picked


# Measuring.


def test_real_steps_are_timed_and_the_choice_is_in_effect():
    choice = choose_runtime(Toy, None, training=PLAIN, config=BOTH, precisions=[HALF])
    assert [(t.precision, t.xla) for t in choice.trials] == [
        ("float32", False), (HALF, False), ("float32", True), (HALF, True)
    ]  # fmt: skip
    default = choice.trials[0]
    assert default.relative == 1.0
    assert default.step_seconds > 0
    for trial in choice.trials:
        assert trial.loss == pytest.approx(default.loss, rel=0.1)
    assert choice.planned_steps == 12  # 2 epochs of 24 examples in batches of 4
    assert current_runtime() is choice.runtime
    assert keras.config.dtype_policy().name == choice.runtime.precision
    assert choice.runtime.config is BOTH
    # So few steps are not worth a compilation, whatever it gains.
    assert not choice.runtime.xla
    table = str(choice).splitlines()
    assert len(table) == 6
    assert table[-1].startswith(f"picked {choice.runtime.precision}, xla off, for 12 steps")
    assert sum("  picked" in line for line in table[1:-1]) == 1


@pytest.mark.parametrize("note", ["", "slower"])
def test_what_is_faster_is_picked(monkeypatch, note):
    monkeypatch.setattr(measuring, "_ROUNDS", 3)
    monkeypatch.setattr(measuring, "_HOPELESS", 1.5)

    def run(contender, batches):
        half = contender.runtime.precision == HALF
        seconds = (2.0 if note else 0.5) if half else 1.0
        for batch in batches:
            contender._step([batch])
        return seconds * len(batches)

    monkeypatch.setattr(measuring._Contender, "_run", run)
    config = replace(BOTH, xla="off")
    choice = choose_runtime(Toy, None, training=PLAIN, config=config, precisions=[HALF])
    assert choice.runtime.precision == ("float32" if note else HALF)
    assert choice.trials[1].note == note
    assert choice.trials[1].relative == (2.0 if note else 0.5)


def test_losses_that_go_wrong_are_out():
    def under_half(task: TrainingTask) -> TrainingTask:
        spoilt = keras.config.dtype_policy().name == HALF
        return replace(task, loss=lambda batch: task.loss(batch) * (bad if spoilt else 1.0))

    for bad, note in ((float("nan"), "loss not finite"), (2.0, "loss differs")):  # noqa: B007
        choice = choose_runtime(
            lambda: Toy(under_half), None, training=PLAIN, config=replace(BOTH, xla="off"), precisions=[HALF]
        )
        assert choice.trials[1].note == note
        assert choice.runtime.precision == "float32"


def test_what_fails_is_out_unless_it_is_the_default():
    def fails(task: TrainingTask) -> TrainingTask:
        if keras.config.dtype_policy().name != failing:
            return task
        return replace(task, loss=lambda batch: task.loss(batch) + tf.debugging.assert_all_finite(np.inf, "no room"))

    failing = HALF
    config = replace(BOTH, xla="off")
    choice = choose_runtime(lambda: Toy(fails), None, training=PLAIN, config=config, precisions=[HALF])
    assert choice.trials[1].note.startswith("failed: ")
    failing = "float32"
    with pytest.raises(tf.errors.InvalidArgumentError, match="no room"):
        choose_runtime(lambda: Toy(fails), None, training=PLAIN, config=config, precisions=[HALF])


def test_a_run_after_it_is_the_run_without_it_and_nothing_stays():
    made: list[weakref.ref[Any]] = []

    def remembered(task: TrainingTask) -> TrainingTask:
        made.append(weakref.ref(task.model))
        return task

    RuntimeConfig(devices="cpu").apply()
    expected = toy(dropout=0.3)
    fit(expected, PLAIN)
    random.seed(3)
    np.random.seed(3)
    numbers = random.random(), np.random.random()
    random.seed(3)
    np.random.seed(3)
    # So that the pick is float32 on any machine.
    config = replace(BOTH, xla="off")
    choose_runtime(lambda: Toy(remembered, 0.3), None, training=PLAIN, config=config, precisions=[HALF], max_seconds=0)
    assert (random.random(), np.random.random()) == numbers
    assert logging.root.manager.disable == logging.NOTSET
    task = toy(dropout=0.3)
    fit(task, PLAIN)
    assert_equal_weights(weights(task), weights(expected))
    gc.collect()
    assert made
    assert [model() for model in made] == [None] * len(made)


def test_time_runs_out():
    choice = choose_runtime(Toy, None, training=PLAIN, config=BOTH, precisions=[HALF], max_seconds=0)
    assert [trial.note for trial in choice.trials] == ["", *["not timed: no time left"] * 3]
    assert choice.runtime.precision == "float32"


# What needs no measurement.


def unbuildable() -> Any:
    raise AssertionError("nothing should be built")


def test_named_choices_are_taken_as_they_are():
    choice = choose_runtime(unbuildable, None, config=RuntimeConfig(precision=HALF, xla="on", devices="cpu"))
    assert (choice.runtime.precision, choice.runtime.xla, choice.trials) == (HALF, True, ())
    assert str(choice) == "precision mixed_bfloat16, xla on: as it was asked for"


def test_one_choice_may_be_named():
    choice = choose_runtime(Toy, None, training=PLAIN, config=replace(BOTH, precision=HALF))
    assert [(t.precision, t.xla) for t in choice.trials] == [(HALF, False), (HALF, True)]
    assert choice.runtime.precision == HALF


def test_a_run_goes_on_as_it_began(tmp_path):
    values = {"fingerprint": {"precision": HALF, "xla": False}}
    CheckpointDirectory(tmp_path).write(TrainingState(3, {"a": np.zeros(1)}, values))
    choice = choose_runtime(unbuildable, None, config=BOTH, checkpoint=tmp_path)
    assert choice.runtime.precision == HALF
    assert "resumed" in str(choice)


def test_what_is_named_stays_as_it_is_named(tmp_path):
    CheckpointDirectory(tmp_path).write(
        TrainingState(3, {"a": np.zeros(1)}, {"fingerprint": {"precision": HALF, "xla": True}})
    )
    choice = choose_runtime(unbuildable, None, config=BOTH.replace(precision="float32"), checkpoint=tmp_path)
    assert (choice.runtime.precision, choice.runtime.xla) == ("float32", True)
    choice = choose_runtime(unbuildable, None, config=BOTH.replace(xla="off"), checkpoint=tmp_path)
    assert (choice.runtime.precision, choice.runtime.xla) == (HALF, False)


def test_pipelines_without_steps_are_refused():
    with pytest.raises(ValueError, match="SimpleNamespace does not: name the precision"):
        choose_runtime(SimpleNamespace, None, config=BOTH)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (set(), ("no instructions", "for GPUs")),
        ({"avx512_bf16"}, ("", "for GPUs")),
        ({"amx_bf16"}, ("", "for GPUs")),
    ],
)
def test_a_cpu_says_what_it_has(monkeypatch, flags, expected):
    monkeypatch.setattr(measuring, "_cpu_flags", lambda: flags)
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [])
    reasons = measuring._hardware_without()
    for reason, word in zip(reasons.values(), expected, strict=True):
        assert word in reason
        assert bool(reason) == bool(word)


@pytest.mark.parametrize(
    ("capability", "usable"), [((6, 1), []), ((7, 5), ["mixed_float16"]), ((9, 0), [HALF, "mixed_float16"])]
)
def test_a_gpu_is_asked_for_its_capability(monkeypatch, capability, usable):
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: ["gpu"])
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: ["gpu"])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: {"compute_capability": capability})
    assert [precision for precision, reason in measuring._hardware_without().items() if not reason] == usable


# Real pipelines, one of each domain.


def image_classifier() -> tuple[Any, Any]:
    from vision import ImageClassifier, ImageClassifierConfig

    images = np.random.default_rng(0).integers(0, 256, (16, 16, 16, 3), np.uint8)
    return lambda: ImageClassifier(ImageClassifierConfig(image_size=16, width=4)), (list(images), ["a", "b"] * 8)


def text_classifier() -> tuple[Any, Any]:
    from nlp import TextClassifier, TextClassifierConfig

    config = TextClassifierConfig(hidden_size=8, num_layers=1, num_heads=2, vocab_size=100)
    texts = [f"a text of {n} words " + "word " * n for n in range(16)]
    return lambda: TextClassifier(config), (texts, ["a", "b"] * 8)


def sequential_recommender() -> tuple[Any, Any]:
    from recsys import Interactions, SequentialRecommender, SequentialRecommenderConfig

    config = SequentialRecommenderConfig(dim=8, num_layers=1, max_length=6)
    users, items = np.repeat(np.arange(16), 6), np.tile(np.arange(12), 8)
    return lambda: SequentialRecommender(config), Interactions(users, items, timestamps=np.arange(96))


@pytest.mark.parametrize("pipeline", [image_classifier, text_classifier, sequential_recommender])
def test_pipelines_of_each_domain_can_be_measured(pipeline):
    build, train = pipeline()
    training = PLAIN.replace(batch_size=8)
    choice = choose_runtime(build, train, training=training, config=replace(BOTH, xla="off"), precisions=[HALF])
    assert [trial.note for trial in choice.trials] == ["", ""]
    assert choice.planned_steps == 4
    fitted = build()
    assert len(fitted.fit(train, training=training).records) == 2
