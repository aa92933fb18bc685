from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def gpu_benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import gpu_benchmarks

    yield gpu_benchmarks
    for name in ("gpu_benchmarks", "memory_benchmarks", "benchmark"):
        sys.modules.pop(name, None)


@pytest.fixture
def tiny(gpu_benchmarks):
    return gpu_benchmarks.Sizes(
        network="MobileNetV2", image_size=32, image_batch=4, layers=2, width=32, heads=2, tokens=24, texts=16,
        text_batch=4, users=20, items=30, history=6, user_batch=4, rows=64, columns=3, categories=5, row_batch=16,
        steps=2,
    )  # fmt: skip


def test_without_a_gpu_nothing_is_measured_or_claimed(gpu_benchmarks, monkeypatch, capsys, tmp_path):
    import benchmark
    import tensorflow as tf

    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind=None: [])
    benchmark.main(["gpu", "--json", str(tmp_path / "gpu.json")])
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "gpu.json").read_text())
    assert result["card"] is None
    assert "no GPU" in result["note"]
    assert not {"rates", "figures", "checks"} & result.keys()


@pytest.mark.parametrize(
    ("capability", "precision"),
    [((9, 0), "mixed_bfloat16"), ((8, 0), "mixed_bfloat16"), ((7, 5), "mixed_float16"), ((6, 1), "float32")],
)
def test_a_card_is_measured_in_what_it_is_fast_in(gpu_benchmarks, capability, precision):
    assert gpu_benchmarks.mixed_precision(capability) == precision


def test_an_unknown_driver_is_unknown(gpu_benchmarks, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert gpu_benchmarks.driver() == "unknown"


@pytest.fixture
def compiled(gpu_benchmarks, monkeypatch):
    """The steps that were compiled."""
    steps = []
    compile_step = gpu_benchmarks._compile

    def kept(step, batch):
        steps.append(step)
        return compile_step(step, batch)

    monkeypatch.setattr(gpu_benchmarks, "_compile", kept)
    return steps


def test_networks_are_timed_on_both_kinds_of_input_and_under_xla(gpu_benchmarks, monkeypatch, tiny, compiled):
    monkeypatch.setattr(gpu_benchmarks, "CHECKS", {"ranking": gpu_benchmarks.CHECKS["ranking"]})
    few = {name: gpu_benchmarks.NETWORKS[name] for name in ("SASRec", "DLRM")}
    monkeypatch.setattr(gpu_benchmarks, "NETWORKS", few)
    result = gpu_benchmarks.gpu(2, sizes=tiny, precision="float32")
    assert result["checks"]["ranking"]["trains"]
    assert result["failed"] == []
    sides = ("synthetic", "pipeline", "synthetic with XLA")
    assert list(result["rates"]) == [f"{name}, {side}" for name in few for side in sides]
    assert all(len(rate["all"]) == 2 and min(rate["all"]) > 0 for rate in result["rates"].values())
    assert set(result["ratios"]) == {f"{name}, {side} / synthetic" for name in few for side in sides[1:]}
    assert len(compiled) == len(few)
    assert all(step._apply._jit_compile for step in compiled)
    # No card, no peak; and how many positions SASRec's loss takes is left to the data.
    assert set(result["figures"]) == {"DLRM, TFLOP/s", "SASRec, XLA", "DLRM, XLA"}
    assert result["figures"]["DLRM, XLA"].startswith("traced, compiled and first run in ")


def test_without_xla_the_rest_is_timed(gpu_benchmarks, monkeypatch, tiny):
    def broken(step, batch):
        raise OSError("libdevice is missing")

    monkeypatch.setattr(gpu_benchmarks, "CHECKS", {})
    monkeypatch.setattr(gpu_benchmarks, "NETWORKS", {"DLRM": gpu_benchmarks.NETWORKS["DLRM"]})
    monkeypatch.setattr(gpu_benchmarks, "_compile", broken)
    result = gpu_benchmarks.gpu(1, sizes=tiny, precision="float32")
    assert list(result["rates"]) == ["DLRM, synthetic", "DLRM, pipeline"]
    assert result["figures"]["DLRM, XLA"] == "OSError: libdevice is missing"


def test_a_task_that_does_not_train_is_named_and_the_rest_goes_on(gpu_benchmarks, monkeypatch, tiny, capsys):
    import benchmark

    def broken():
        raise OSError("no such kernel")

    monkeypatch.setattr(gpu_benchmarks, "CHECKS", {"broken": broken})
    monkeypatch.setattr(gpu_benchmarks, "NETWORKS", {})

    def measure(repeats):
        return gpu_benchmarks.gpu(repeats, sizes=tiny, precision="float32")

    monkeypatch.setitem(benchmark.BENCHMARKS, "gpu", measure)
    with pytest.raises(RuntimeError, match="These tasks did not train: broken"):
        benchmark.main(["gpu"])
    assert json.loads(capsys.readouterr().out)["checks"]["broken"]["error"] == "OSError: no such kernel"


@pytest.mark.slow
def test_every_task_trains_and_every_network_is_timed(gpu_benchmarks, tiny):
    result = gpu_benchmarks.gpu(1, sizes=tiny, precision="float32")
    assert result["failed"] == []
    assert len(result["rates"]) == 12


def test_checkpointing_is_compared_in_processes_of_their_own(gpu_benchmarks, tiny):
    import memory_benchmarks

    sizes = replace(tiny, tokens=64)
    result = memory_benchmarks.gradient_checkpointing(1, sizes=sizes)
    assert list(result["rates"]) == ["as usual", "gradient checkpointing"]
    assert all(rate["median"] > 0 for rate in result["rates"].values())
    assert all(value > 0 for name, value in result["figures"].items() if name.startswith("peak memory"))
    assert all(value >= 0 for value in result["figures"].values())
