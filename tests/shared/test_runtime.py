from __future__ import annotations

import dataclasses
import os
import random
import subprocess
import sys
from pathlib import Path

import keras
import pytest
import tensorflow as tf

import shared.runtime as runtime_module
from shared.runtime import RuntimeConfig, activated, current_runtime, float32_policy, seeded

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _put_back(monkeypatch):
    monkeypatch.setattr(runtime_module, "_current", None)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("devices", ["gpu:9", "tpu", "cpu:0,cpu:7", "nonsense"])
def test_a_device_that_is_not_there_is_named(devices):
    with pytest.raises(ValueError, match=f"asks for '{devices}'; this machine has .*cpu:0"):
        RuntimeConfig(devices=devices).apply()


def test_memory_that_is_taken_already_is_no_error(monkeypatch, caplog):
    class Gpu:
        name = "/physical_device:GPU:0"

    def too_late(gpu, enable):
        raise RuntimeError("Physical devices cannot be modified after being initialized")

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [Gpu()])
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", too_late)
    RuntimeConfig(devices="gpu:0").apply()
    assert "memory_growth=True has no effect on /physical_device:GPU:0" in caplog.text


def test_nothing_applied_is_the_process_as_it_is():
    runtime = current_runtime()
    assert (runtime.precision, runtime.xla, runtime.strategy, runtime.num_replicas) == ("float32", False, None, 1)
    with runtime.scope():
        pass


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_precision_holds_for_models_built_afterwards(precision):
    applied = RuntimeConfig(precision=precision, devices="cpu").apply()
    assert applied is current_runtime()
    assert keras.layers.Dense(1).dtype_policy.name == precision
    with float32_policy():
        assert keras.layers.Dense(1).dtype_policy.name == "float32"
    assert keras.layers.Dense(1).dtype_policy.name == precision


@pytest.mark.parametrize("auto", [("precision",), ("xla",), ("precision", "xla")])
def test_auto_without_a_model_to_time_is_the_default_and_says_so(caplog, auto):
    runtime = RuntimeConfig(devices="cpu", **dict.fromkeys(auto, "auto")).apply()
    assert (runtime.precision, runtime.xla) == ("float32", False)
    assert " and ".join(f"{name}=auto" for name in auto) + ": picked by timing a model" in caplog.text


def test_activated_holds_for_the_block():
    before = RuntimeConfig(devices="cpu").apply()
    other = dataclasses.replace(before, precision="mixed_bfloat16", xla=True)
    with activated(other):
        assert current_runtime() is other
        assert keras.layers.Dense(1).dtype_policy.name == "mixed_bfloat16"
    assert current_runtime() is before
    assert keras.layers.Dense(1).dtype_policy.name == "float32"


def test_seeded_fixes_initial_weights_and_puts_the_state_back():
    random.seed(5)
    expected = random.random()
    random.seed(5)
    kernels = []
    for seed in (1, 1, 2):
        with seeded(seed):
            layer = keras.layers.Dense(3)
            layer.build((None, 2))
        kernels.append(layer.kernel.numpy().tolist())
    assert kernels[0] == kernels[1] != kernels[2]
    assert random.random() == expected


@pytest.mark.parametrize(
    ("before", "config", "expected"),
    [({}, "", "1"), ({}, "onednn='off'", "0"), ({"TF_ENABLE_ONEDNN_OPTS": "0"}, "", "0"),
     ({"TF_ENABLE_ONEDNN_OPTS": "0"}, "onednn='on'", "1")],
)  # fmt: skip
def test_the_environment_is_prepared_before_tensorflow(before, config, expected):
    program = (
        "import os, platform\nplatform.machine = lambda: 'x86_64'\n"
        "from shared.runtime import RuntimeConfig\n"
        f"RuntimeConfig({config}).prepare_environment()\nprint(os.environ['TF_ENABLE_ONEDNN_OPTS'])"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TF_")} | before | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stdout.strip() == expected


def test_a_choice_that_comes_too_late_is_said(caplog, monkeypatch):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")
    RuntimeConfig().prepare_environment()
    assert caplog.text == ""
    RuntimeConfig(onednn="off").prepare_environment()
    assert "onednn=off has no effect" in caplog.text
