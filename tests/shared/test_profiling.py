from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.data import Arrays, InputPipeline, Loading, Stages
from shared.pipeline import Metrics
from shared.profiling import Profile, Profiler, _peak_memory, read_profile
from shared.training import TrainingTask
from tests.shared.test_training import FULL, PLAIN, assert_equal_weights, fit, toy, weights


def slow(task: TrainingTask, *, reading: float, scoring: float) -> TrainingTask:
    """The same task with examples that take so many seconds to read, and a validation that takes so many."""

    def encode(x: Any, y: Any) -> Arrays:
        time.sleep(reading)
        return {"x": x, "y": y}

    def validate() -> Metrics:
        time.sleep(scoring)
        return Metrics({"score": 1.0})

    loading = Loading(batch_size=4, num_threads=1, prefetch=0, cache_bytes=0)
    batches = InputPipeline(task.batches.source, Stages(encode=encode), loading)
    return replace(task, batches=batches, validate=validate)


@pytest.fixture(scope="module")
def profiled(tmp_path_factory) -> tuple[Path, Profile, Any]:
    directory = tmp_path_factory.mktemp("run") / "profile"
    task = slow(toy(count=48), reading=0.02, scoring=0.3)
    history = fit(task, PLAIN, profile=directory, checkpoint=directory.with_name("state"))
    return directory, read_profile(directory), history


def test_phases_add_up_to_the_wall_time(profiled):
    _, profile, history = profiled
    assert sum(profile.phases.values()) == pytest.approx(profile.wall_seconds, rel=1e-6)
    assert profile.wall_seconds == pytest.approx(history.wall_seconds, rel=0.03, abs=0.2)


def test_each_phase_has_what_belongs_to_it(profiled):
    _, profile, _ = profiled
    # Two epochs of 48 examples that take 0.02 s each; of all but the first batch the next is read in time for the step.
    assert profile.phases["input"] > 0.9
    assert 0.6 <= profile.phases["validation"] < 2.0
    assert {"set-up", "compilation", "compute", "checkpoint", "logging", "trace"} < profile.phases.keys()
    assert profile.phases["other"] < 0.2 * profile.wall_seconds
    assert (profile.num_steps, profile.num_examples) == (24, 96)
    assert profile.input_ms > 10
    assert 0 < profile.examples_per_second < 90  # 50, and what was read during slow steps
    assert profile.peak_memory > 50


def test_products_are_counted(profiled):
    _, profile, _ = profiled
    assert profile.flops_per_step == 3 * 4 * 2 * (3 * 4 + 4 * 1)
    assert profile.achieved_flops == pytest.approx(profile.flops_per_step / (profile.compute_ms / 1e3))
    assert profile.utilisation is None  # no known card


def test_a_trace_and_a_summary_are_written(profiled):
    directory, profile, _ = profiled
    assert list(directory.glob("plugins/profile/*/*.xplane.pb"))
    text = (directory / "summary.txt").read_text()
    assert text == f"{profile}\n"
    assert len(text.splitlines()) < 24
    for words in (
        "profile of 24 steps, 96 examples",
        "  validation",
        "a step: input",
        "peak memory: process",
        "trace: ",
    ):
        assert words in text


def test_a_profiled_run_ends_with_equal_weights(tmp_path):
    plain, profiled = toy(dropout=0.3), toy(dropout=0.3)
    history = fit(plain, FULL)
    same = fit(profiled, FULL, profile=tmp_path / "profile")
    assert_equal_weights(weights(profiled), weights(plain))
    assert same.losses == history.losses
    assert read_profile(tmp_path / "profile").num_steps == 9


def test_a_run_shorter_than_the_trace_has_a_summary(tmp_path):
    fit(toy(count=8), PLAIN.replace(epochs=1), profile=tmp_path)
    profile = read_profile(tmp_path)
    assert (profile.num_steps, profile.trace) == (2, "")
    assert "trace" not in str(profile)


def test_a_run_that_fails_ends_its_trace(tmp_path):
    task = toy(count=48)
    for _ in range(2):  # a trace that still ran would make the second one fail
        bad = replace(task, loss=lambda batch: task.loss(batch) * np.float32("nan"))
        with pytest.raises(FloatingPointError):
            fit(bad, PLAIN.replace(checkpoint_steps=5), profile=tmp_path / "profile", checkpoint=tmp_path / "state")


def test_inner_phases_are_not_counted_twice(tmp_path):
    profiler = Profiler(tmp_path)
    with profiler.phase("outer"):
        time.sleep(0.05)
        with profiler.phase("inner"):
            time.sleep(0.2)
    assert profiler._phases["inner"] >= 0.2
    assert 0.05 <= profiler._phases["outer"] < 0.2


def test_utilisation_is_a_share_of_the_peak():
    fields: dict[str, Any] = {"wall_seconds": 2.0, "phases": {"compute": 2.0}, "num_steps": 10, "num_examples": 40}
    fields |= {"input_ms": 1.0, "compute_ms": 100.0, "examples_per_second": 20.0, "peak_memory": 1.0}
    profile = Profile(
        **fields,
        precision="mixed_bfloat16",
        xla=False,
        num_replicas=2,
        device="A",
        flops_per_step=4e12,
        peak_flops=1e14,
    )
    assert profile.utilisation == pytest.approx(0.2)
    assert "20.0 % of the card's 200 TFLOP/s" in str(profile)


def test_a_system_that_does_not_tell_memory_is_said(monkeypatch):
    assert _peak_memory() > 50
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert _peak_memory() is None
    profile = Profile(1.0, {}, 1, 1, 1.0, 1.0, 1.0, peak_memory=_peak_memory(), precision="float32", xla=False)
    assert "peak memory: process unknown" in str(profile)


def test_nothing_is_measured_unless_asked_for():
    profiler = Profiler(None)
    with profiler.phase("a"):
        pass
    assert list(profiler.timed(iter([[{}]]))) == [[{}]]
    assert profiler._phases == {}
    with pytest.raises(FileNotFoundError):
        read_profile("nowhere")


def test_solved_models_are_not_profiled(tmp_path):
    from recsys import CollaborativeFilter
    from tests.recsys.tastes import tastes

    with pytest.raises(ValueError, match="`profile` is for pipelines that train a network in steps"):
        CollaborativeFilter().fit(tastes(), profile=tmp_path)
