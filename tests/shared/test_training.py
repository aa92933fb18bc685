from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import shared.training as training_module
from shared.checkpoint import CheckpointDirectory
from shared.data import Arrays, InputPipeline, Loading, Stages
from shared.examples import BadExampleError
from shared.fingerprint import data_fingerprint
from shared.optimizers import build_optimizer
from shared.pipeline import FitOptions, History, Metrics, TrainingInterrupted
from shared.runtime import current_runtime, seeded
from shared.training import TrainingTask, TrainStep, _check_fingerprint, run_fingerprint, run_training
from shared.training_config import TrainingConfig

ROOT = Path(__file__).parents[2]
PLAIN = TrainingConfig(
    epochs=2, optimizer="sgd", momentum=0.0, learning_rate=0.1, warmup=0.0, weight_decay=0.0, clip_norm=0.0
)
# All that a state has to carry: moments, averages, dropout's seed, half an epoch.
FULL = PLAIN.replace(epochs=3, optimizer="adamw", learning_rate=0.02, ema_decay=0.9, accumulation_steps=2, warmup=0.2)


def toy(
    *,
    count: int = 24,
    batch_size: int = 4,
    dropout: float = 0.0,
    norm: bool = False,
    validate: Callable[[keras.Model], float] | None = None,
) -> TrainingTask:
    """Least squares on a linear function of three numbers, by a network of 21 weights."""
    inputs = np.random.default_rng(0).normal(size=(count, 3)).astype(np.float32)
    targets = inputs @ np.array([[1.0], [-2.0], [0.5]], np.float32) + 0.3
    with current_runtime().scope(), seeded(0):
        layers = [keras.Input((3,)), keras.layers.Dense(4, activation="tanh", name="trunk")]
        layers += [keras.layers.BatchNormalization()] if norm else []
        model = keras.Sequential([*layers, keras.layers.Dropout(dropout), keras.layers.Dense(1, name="head")])
    loading = Loading(batch_size=batch_size, shuffle=True, num_threads=2)
    return TrainingTask(
        model=model,
        loss=lambda batch: tf.reduce_mean(
            tf.square(tf.cast(model(batch["x"], training=True), tf.float32) - batch["y"])
        ),
        batches=InputPipeline((inputs, targets), Stages(encode=lambda x, y: {"x": x, "y": y}), loading),
        validate=None if validate is None else lambda: Metrics({"score": validate(model)}),
        fingerprint={"labels": ("a", "b"), "num_examples": count},
    )


def fit(task: TrainingTask, config: TrainingConfig, **options: Any) -> History:
    return run_training(task, FitOptions(training=config, **options))


def weights(task: TrainingTask) -> list[np.ndarray]:
    return [np.array(variable) for variable in task.model.get_weights()]


def assert_equal_weights(left: list[np.ndarray], right: list[np.ndarray]) -> None:
    for mine, other in zip(left, right, strict=True):
        np.testing.assert_array_equal(mine, other)


def assert_close_weights(left: list[np.ndarray], right: list[np.ndarray], tolerance: float) -> None:
    for mine, other in zip(left, right, strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=tolerance)


def without_times(history: History) -> list[dict[str, Any]]:
    times = {"seconds", "examples_per_second"}
    return [{key: value for key, value in record.items() if key not in times} for record in history.records]


def step_of(task: TrainingTask, config: TrainingConfig, **factors: Any) -> TrainStep:
    optimizer = build_optimizer(config, task.model.trainable_variables, config.learning_rate, **factors)
    return TrainStep(task, optimizer, config)


def signal_after(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGTERM) -> None:
    """This process sends itself a signal during the optimizer step `step` (from 1)."""
    calls = []
    original = TrainStep.__call__

    def call(train_step: TrainStep, batches: list[Arrays]) -> None:
        calls.append(1)
        original(train_step, batches)
        if len(calls) == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(TrainStep, "__call__", call)


# What a step does.


def test_the_loss_falls_and_each_epoch_is_recorded():
    task = toy()
    history = fit(task, PLAIN.replace(epochs=4))
    assert history.losses == sorted(history.losses, reverse=True)
    assert history.losses[-1] < 0.5 * history.losses[0]
    assert [record["epoch"] for record in history.records] == [1, 2, 3, 4]
    assert [record["step"] for record in history.records] == [6, 12, 18, 24]
    assert set(history.records[0]) == {"epoch", "step", "loss", "learning_rate", "seconds", "examples_per_second"}
    assert (history.best_epoch, history.stopped_early, history.bad_records) == (None, False, ())
    assert history.wall_seconds > 0


def test_a_plain_step_is_gradient_descent():
    task = toy()
    batch = next(task.batches.epoch())
    with tf.GradientTape() as tape:
        loss = task.loss({key: tf.constant(array) for key, array in batch.items()})
    gradients = tape.gradient(loss, [v.value for v in task.model.trainable_variables])
    expected = [before - 0.1 * gradient.numpy() for before, gradient in zip(weights(task), gradients, strict=True)]
    step = step_of(task, PLAIN)
    step([batch])
    assert float(step.loss_sum) == pytest.approx(float(loss), abs=1e-6)
    assert_close_weights(weights(task), expected, 1e-6)


@pytest.mark.parametrize("count", [4, 24, 20, 22])  # at 20 and 22 the last group is short
def test_accumulated_batches_are_one_large_batch(count):
    config = PLAIN.replace(momentum=0.9, clip_norm=0.5, weight_decay=0.1)
    small, large = toy(count=count, batch_size=2), toy(count=count, batch_size=8)
    histories = [fit(small, config.replace(accumulation_steps=4)), fit(large, config)]
    assert_close_weights(weights(small), weights(large), 1e-6)
    np.testing.assert_allclose(histories[0].losses, histories[1].losses, atol=1e-6)
    assert histories[0].records[-1]["step"] == histories[1].records[-1]["step"]


def test_averaged_weights_follow_their_formula():
    task = toy()
    step = step_of(task, PLAIN.replace(ema_decay=0.5))
    expected = weights(task)
    for number, batch in enumerate(task.batches.epoch(), start=1):
        step([batch])
        decay = min(0.5, (1 + number) / (10 + number))
        expected = [decay * mine + (1 - decay) * raw for mine, raw in zip(expected, weights(task), strict=True)]
    assert_close_weights([average.numpy() for average in step.averages], expected, 1e-6)
    raw = weights(task)
    with step.averaged_weights():
        assert_close_weights(weights(task), expected, 1e-6)
    assert_equal_weights(weights(task), raw)


def test_averaged_weights_are_validated_and_kept():
    seen: list[list[np.ndarray]] = []
    task = toy(norm=True, validate=lambda model: seen.append(model.get_weights()) or len(seen))
    fit(task, PLAIN.replace(ema_decay=0.9))
    assert_equal_weights(weights(task), seen[-1])
    unvalidated = toy(norm=True)
    fit(unvalidated, PLAIN.replace(ema_decay=0.9))
    assert_equal_weights(weights(unvalidated), seen[-1])
    raw = toy(norm=True)
    fit(raw, PLAIN)
    assert not np.allclose(weights(raw)[0], seen[-1][0], atol=1e-4)


def test_a_frozen_trunk_stays_as_it_is_and_then_trains():
    trunks: list[np.ndarray] = []
    heads: list[np.ndarray] = []

    def validate(model: keras.Model) -> float:
        trunks.append(model.get_layer("trunk").kernel.numpy())
        heads.append(model.get_layer("head").kernel.numpy())
        return len(trunks)

    task = toy(validate=validate)
    trunk = task.model.get_layer("trunk")
    before = trunk.kernel.numpy()
    task = replace(task, set_head_only=lambda on: setattr(trunk, "trainable", not on))
    fit(task, FULL.replace(freeze_epochs=2))
    assert [np.array_equal(kernel, before) for kernel in trunks] == [True, True, False]
    assert not np.array_equal(heads[0], heads[1])
    assert trunk.trainable


def test_rate_factors_reach_the_optimizer():
    task = toy()
    before = weights(task)
    fit(replace(task, rate_factors=[0.0, 0.0, 1.0, 1.0]), PLAIN)
    assert [np.array_equal(new, old) for new, old in zip(weights(task), before, strict=True)] == [
        True, True, False, False
    ]  # fmt: skip


def test_losses_of_layers_count():
    task = toy()
    batch = next(task.batches.epoch())
    plain, penalised = step_of(task, PLAIN.replace(learning_rate=0.0)), step_of(task, PLAIN)
    plain([batch])
    task.model.get_layer("head").activity_regularizer = lambda outputs: 12.0 + 0.0 * tf.reduce_sum(outputs)
    penalised([batch])
    # Keras divides what an activity costs by the number of examples, here 4.
    assert float(penalised.loss_sum) == pytest.approx(float(plain.loss_sum) + 3.0, abs=1e-5)


# Choosing weights.


def scripted(*scores: float) -> tuple[TrainingTask, list[list[np.ndarray]]]:
    """A task whose validation gives these scores, and the weights that each of them was given to."""
    seen: list[list[np.ndarray]] = []

    def validate(model: keras.Model) -> float:
        seen.append(model.get_weights())
        return scores[len(seen) - 1]

    return toy(validate=validate), seen


@pytest.mark.parametrize(
    ("scores", "patience", "epochs", "best"),
    [
        ((0.5,), 0, 1, 1),
        ((0.1, 0.9, 0.5), 0, 3, 2),
        ((0.5, 0.5, 0.5), 0, 3, 1),
        ((0.1, 0.2, 0.3), 1, 3, 3),
        ((0.3, 0.2, 0.9), 1, 2, 1),
        ((0.3, 0.2, 0.4, 0.4, 0.4, 0.9), 2, 5, 3),
        ((float("nan"), 0.2, 0.1), 0, 3, 2),
    ],
)
def test_the_best_weights_are_kept(scores, patience, epochs, best):
    task, seen = scripted(*scores)
    history = fit(task, PLAIN.replace(epochs=len(scores), patience=patience))
    assert (len(history.records), history.best_epoch) == (epochs, best)
    assert history.stopped_early is (epochs < len(scores))
    assert_equal_weights(weights(task), seen[best - 1])
    np.testing.assert_equal([record["validation_score"] for record in history.records], list(scores[:epochs]))


# Stopping and resuming.


@pytest.fixture(scope="module")
def unbroken() -> tuple[list[np.ndarray], History]:
    task = toy(dropout=0.3)
    history = fit(task, FULL)
    return weights(task), history


@pytest.mark.parametrize(("step", "number"), [(1, signal.SIGTERM), (3, signal.SIGINT), (5, signal.SIGTERM)])
def test_stopped_by_a_signal_and_resumed_equals_unbroken(unbroken, tmp_path, monkeypatch, step, number):
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with monkeypatch.context() as patch:
        signal_after(patch, step, number)
        with pytest.raises(TrainingInterrupted, match=rf"{number.name} received.* after step {step} .*resume=True"):
            fit(toy(dropout=0.3), FULL, checkpoint=tmp_path / "state", log=tmp_path / "log.jsonl")
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    resumed = toy(dropout=0.3)
    history = fit(resumed, FULL, checkpoint=tmp_path / "state", resume=True, log=tmp_path / "log.jsonl")
    assert_equal_weights(weights(resumed), unbroken[0])
    assert without_times(history) == without_times(unbroken[1])
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert logged == list(history.records)


def test_killed_again_and_again_equals_unbroken(unbroken, tmp_path, monkeypatch):
    """Killed after steps 2, 4, ... with a state of two steps before: everything is done one and a half times."""

    class Killed(BaseException):
        pass

    after_step = training_module._Run._after_step

    def dies(run: Any, num_examples: int) -> None:
        after_step(run, num_examples)
        if run.step == deadline:
            raise Killed

    monkeypatch.setattr(training_module._Run, "_after_step", dies)
    for deadline in (2, 5, 7):  # noqa: B007
        with pytest.raises(Killed):
            fit(toy(dropout=0.3), FULL.replace(checkpoint_steps=3), checkpoint=tmp_path / "state", resume=True,
                log=tmp_path / "log.jsonl")  # fmt: skip
    deadline = 0
    resumed = toy(dropout=0.3)
    # How often a state is saved may change.
    history = fit(resumed, FULL, checkpoint=tmp_path / "state", resume=True, log=tmp_path / "log.jsonl")
    assert_equal_weights(weights(resumed), unbroken[0])
    assert without_times(history) == without_times(unbroken[1])
    # An epoch that was trained twice is logged once.
    assert [json.loads(line)["epoch"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2, 3]


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_signal_during_validation_stops_at_the_end_of_the_epoch(tmp_path, epoch):
    def task(signalled: int) -> TrainingTask:
        epochs: list[int] = []

        def validate(model: keras.Model) -> float:
            epochs.append(1)
            if len(epochs) == signalled:
                os.kill(os.getpid(), signal.SIGTERM)
            return -float(np.abs(model.get_weights()[0]).sum())

        return toy(validate=validate)

    expected = task(0)
    history = fit(expected, PLAIN.replace(epochs=3))
    with pytest.raises(TrainingInterrupted, match=f"after step {6 * epoch} "):
        fit(task(epoch), PLAIN.replace(epochs=3), checkpoint=tmp_path)
    resumed = task(0)
    assert without_times(fit(resumed, PLAIN.replace(epochs=3), checkpoint=tmp_path, resume=True)) == without_times(
        history
    )
    assert_equal_weights(weights(resumed), weights(expected))


def test_early_stopping_and_best_weights_survive_a_resume(tmp_path, monkeypatch):
    config = PLAIN.replace(epochs=6, patience=2)
    task, seen = scripted(0.3, 0.9, 0.2, 0.1, 0.0, 0.0)
    with monkeypatch.context() as patch:
        signal_after(patch, 15)
        with pytest.raises(TrainingInterrupted):
            fit(task, config, checkpoint=tmp_path)
    resumed, _ = scripted(0.2, 0.1, 0.0, 0.0)
    for _ in range(2):  # the second time there is nothing left to do
        history = fit(resumed, config, checkpoint=tmp_path, resume=True)
        assert (len(history.records), history.best_epoch, history.stopped_early) == (4, 2, True)
        assert_equal_weights(weights(resumed), seen[1])


def with_bad_examples() -> TrainingTask:
    """Three of 24 examples cannot be read."""

    def encode(value: int, target: int) -> Arrays:
        if value in {2, 9, 17}:
            raise BadExampleError("empty", f"line {value}")
        return {"x": np.full(3, value / 24, np.float32), "y": np.float32([value % 2])}

    task, loading = toy(), Loading(batch_size=4, shuffle=True, max_bad_share=0.5)
    batches = InputPipeline((range(24), range(24)), Stages(encode=encode), loading)
    loss = lambda batch: tf.reduce_mean(tf.square(task.model(batch["x"]) - batch["y"]))  # noqa: E731
    return replace(task, batches=batches, loss=loss)


def test_bad_examples_are_the_same_after_a_resume(tmp_path, monkeypatch):
    expected = with_bad_examples()
    history = fit(expected, PLAIN)
    assert history.bad_records == ("line 2: empty", "line 9: empty", "line 17: empty")
    with monkeypatch.context() as patch:
        signal_after(patch, 2)
        with pytest.raises(TrainingInterrupted):
            fit(with_bad_examples(), PLAIN, checkpoint=tmp_path)
    resumed = with_bad_examples()
    assert fit(resumed, PLAIN, checkpoint=tmp_path, resume=True).bad_records == history.bad_records
    assert_equal_weights(weights(resumed), weights(expected))


def test_resuming_without_a_state_starts_anew(tmp_path, unbroken):
    task = toy(dropout=0.3)
    fit(task, FULL, checkpoint=tmp_path / "state", resume=True)
    assert_equal_weights(weights(task), unbroken[0])


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("finished")
    fit(toy(), PLAIN, checkpoint=directory)
    return directory


@pytest.mark.parametrize(
    ("changes", "fingerprint", "message"),
    [
        ({"learning_rate": 0.2}, {}, r"training.learning_rate \(was 0.1, is 0.2\)"),
        ({"epochs": 3, "seed": 1}, {}, r"training.epochs \(was 2, is 3\), training.seed \(was 0, is 1\)"),
        ({}, {"num_examples": 25}, r"num_examples \(was 24, is 25\)"),
        ({}, {"labels": ("a", "c")}, r"labels \(was \['a', 'b'\], is \['a', 'c'\]\)"),
        ({}, {"width": 4}, r"width \(was None, is 4\)"),
    ],
)
def test_another_runs_state_is_refused_by_field(finished, changes, fingerprint, message):
    task = toy()
    with pytest.raises(ValueError, match=message):
        fit(
            replace(task, fingerprint={**task.fingerprint, **fingerprint}),
            PLAIN.replace(**changes),
            checkpoint=finished,
            resume=True,
        )


def test_a_state_from_before_an_option_resumes_with_its_default():
    present = {"xla": False, "training.gradient_checkpointing": False, "width": 4}
    _check_fingerprint({"width": 4}, present, whose="It is another")
    for name in ("xla", "training.gradient_checkpointing"):
        with pytest.raises(ValueError, match=rf"different: {name} \(was False, is True\)\."):
            _check_fingerprint({"width": 4}, present | {name: True}, whose="It is another")


def test_the_fingerprint_has_preset_data_precision_and_replicas(monkeypatch):
    pipeline = SimpleNamespace(config=PLAIN, provenance={"preset": {"ref": "efficientnet_lite0"}})
    batches = toy().batches
    found = run_fingerprint(pipeline, batches)
    assert found["preset"] == "efficientnet_lite0"
    assert (found["precision"], found["num_replicas"]) == ("float32", 1)
    assert found["data"] == data_fingerprint(batches.source)
    assert pipeline.provenance["data"] == {"fingerprint": found["data"], "num_examples": 24}
    monkeypatch.setattr(
        "shared.training.current_runtime", lambda: SimpleNamespace(num_replicas=2, precision="bfloat16", xla=True)
    )
    changed = {key for key, value in run_fingerprint(pipeline, batches).items() if found[key] != value}
    assert changed == {"precision", "xla", "num_replicas"}


def test_a_state_is_not_overwritten_without_being_asked(finished):
    before = sorted(os.listdir(finished))
    with pytest.raises(ValueError, match=r"stopped at step 12. .*resume=True.* or delete"):
        fit(toy(), PLAIN, checkpoint=finished)
    assert sorted(os.listdir(finished)) == before


def test_without_a_checkpoint_an_interrupt_is_an_interrupt(monkeypatch):
    signal_after(monkeypatch, 2, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(toy(), PLAIN)


def test_training_on_another_thread_needs_no_signals(tmp_path):
    histories: list[History] = []
    thread = threading.Thread(target=lambda: histories.append(fit(toy(), PLAIN, checkpoint=tmp_path)))
    thread.start()
    thread.join()
    assert len(histories[0].records) == 2


# Errors.


def test_a_loss_that_is_not_finite_ends_training_and_is_not_saved(tmp_path):
    inputs = np.ones((24, 3), np.float32)
    inputs[10] = np.nan  # in the third batch
    stages = Stages(encode=lambda x, y: {"x": x, "y": y})
    batches = InputPipeline((inputs, inputs[:, :1]), stages, Loading(batch_size=4))
    with pytest.raises(FloatingPointError, match=r"loss is nan in step 3. Lower the learning rate"):
        fit(replace(toy(), batches=batches), PLAIN.replace(checkpoint_steps=1), checkpoint=tmp_path)
    state = CheckpointDirectory(tmp_path).latest()
    assert state is not None
    assert state.step == 2
    assert all(np.isfinite(array).all() for array in state.arrays.values())


def test_a_loss_that_is_not_finite_is_an_error_without_checkpoints_too():
    task = toy()
    with pytest.raises(FloatingPointError, match=r"loss is nan in step 6."):
        fit(replace(task, loss=lambda batch: task.loss(batch) * float("nan")), PLAIN)


def test_weights_that_do_nothing_are_named():
    task = toy()
    trunk = task.model.get_layer("trunk")
    with pytest.raises(ValueError, match=r"does not depend on .*head/kernel"):
        fit(replace(task, loss=lambda batch: tf.reduce_mean(trunk(batch["x"]))), PLAIN)


# In processes of their own.

_LONG = """
from pathlib import Path
import sys
from tests.shared import test_training as tests

class Told(tests.TrainStep):
    def __call__(self, batches):
        super().__call__(batches)
        print("step", flush=True)

tests.training_module.TrainStep = Told
tests.fit(tests.toy(dropout=0.3), tests.FULL.replace(epochs=10_000), checkpoint=Path(sys.argv[1]))
"""


def test_a_process_stops_at_sigterm_with_its_state_saved(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", _LONG, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert child.stdout is not None
    for _ in range(4):
        assert child.stdout.readline() == "step\n"
    child.terminate()
    _, errors = child.communicate(timeout=300)
    assert child.returncode == 1
    assert "TrainingInterrupted: SIGTERM received" in errors
    state = CheckpointDirectory(tmp_path).latest()
    assert state is not None
    assert state.step >= 4
    assert (state.values["epoch"], state.values["batch"]) == (state.step // 3, 2 * (state.step % 3))


_TWO_DEVICES = """
import json
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from shared.runtime import RuntimeConfig
from tests.shared import test_training as tests

CONFIG = tests.FULL.replace(optimizer="sgd", learning_rate=0.1, momentum=0.9, weight_decay=0.1, clip_norm=0.1)
found = []
for devices in ("cpu:0", "cpu:0,cpu:1"):
    runtime = RuntimeConfig(devices=devices).apply()
    task = tests.toy(batch_size=8)
    history = tests.fit(task, CONFIG)
    found.append([*tests.weights(task), np.array(history.losses)])
report = {
    "difference": max(float(np.abs(one - two).max()) for one, two in zip(*found, strict=True)),
    "replicas": runtime.num_replicas,
}
# Layers with states of their own.
history = tests.fit(tests.toy(count=11, batch_size=4, norm=True, dropout=0.5), tests.FULL)
report["finite"] = bool(np.isfinite(history.losses).all())
# A last batch of three examples, and one of one, for two devices.
for count in (11, 9):
    found = []
    for devices in ("cpu:0", "cpu:0,cpu:1"):
        RuntimeConfig(devices=devices).apply()
        task = tests.toy(count=count, batch_size=4)
        history = tests.fit(task, CONFIG.replace(epochs=2))
        found.append([*tests.weights(task), np.array(history.losses)])
    report[str(count)] = max(float(np.abs(one - two).max()) for one, two in zip(*found, strict=True))
print("REPORT " + json.dumps(report))
"""


def test_two_devices_train_as_one_does():
    child = subprocess.run([sys.executable, "-c", _TWO_DEVICES], capture_output=True, text=True, cwd=ROOT, check=False)
    assert child.returncode == 0, child.stderr[-3000:]
    report = json.loads(child.stdout.rpartition("REPORT ")[2])
    assert report["replicas"] == 2
    assert report["difference"] < 1e-5
    assert report["finite"]
    assert report["11"] < 1e-5
    assert report["9"] < 1e-5
