"""The tests that every pipeline inherits (docs: "The contract").

A test class names its pipeline, tiny data and a floor:

    class TestImageClassifier(PipelineContract):
        pipeline_class = ImageClassifier
        config = ImageClassifierConfig(image_size=16, width=4)
        ...
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import shared.artifact
from shared import Config, NotFittedError, Pipeline, TrainingConfig, load_pipeline
from shared.distribution import Workers
from shared.runtime import activated, current_runtime

_ROOT = Path(__file__).parents[1]

_CHILD = """
import json, sys
from shared import load_pipeline
pipeline = load_pipeline(sys.argv[1])
print("ANSWERS " + json.dumps([answer.to_dict() for answer in pipeline.predict(eval(sys.argv[2]))]))
"""


class _BeforeTrainingError(Exception):
    """Ends a `fit` when all is prepared."""


class WorkerInTurn(Workers):
    """One of two workers, the second of which acts before the first."""

    def __init__(self, index: int, sent: list[dict[str, np.ndarray]]) -> None:
        super().__init__()
        self._index, self._sent = index, sent

    count = property(lambda self: 2)
    index = property(lambda self: self._index)

    def to_first(self, arrays: Any) -> list[dict[str, np.ndarray]]:
        if self._index == 0:
            return [dict(arrays), *self._sent]
        self._sent.append(dict(arrays))
        return []


class PipelineContract:
    """What holds for each pipeline; a subclass fills in the class variables and the two methods."""

    pipeline_class: ClassVar[type[Pipeline]]
    config: ClassVar[Config]
    training: ClassVar[TrainingConfig]
    metric_names: ClassVar[tuple[str, ...]]
    floor: ClassVar[float]
    export_formats: ClassVar[tuple[str, ...]] = ("saved_model", "litert", "onnx")
    export_tolerance: ClassVar[float] = 1e-4
    # Models that are solved at once have no epochs, and so no losses.
    has_epochs: ClassVar[bool] = True
    # Whether several processes can train it together.
    has_workers: ClassVar[bool] = True

    @classmethod
    def data(cls) -> Any:
        """Tiny training data as `fit` takes it."""
        raise NotImplementedError

    @classmethod
    def held_out(cls) -> Any:
        """Data as `evaluate` takes it, where that is not the training data."""
        return cls.data()

    @classmethod
    def alter(cls, pipeline: Pipeline) -> None:
        """Change the weights, and with them the answers."""
        for variable in pipeline.model.trainable_variables:
            variable.assign(-variable)

    @classmethod
    def inputs(cls) -> list[Any]:
        """A few inputs for `predict`."""
        raise NotImplementedError

    @classmethod
    def inputs_as_code(cls) -> str:
        """A Python expression that gives the same inputs in another process."""
        raise NotImplementedError

    @classmethod
    def wrong_inputs(cls) -> list[tuple[Any, type[Exception], str]]:
        """Inputs that `predict` refuses: (inputs, exception, part of the message)."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def fitted(cls) -> Pipeline:
        """One trained pipeline for all tests that only ask it."""
        pipeline = cls.pipeline_class(cls.config)
        pipeline.fit(cls.data(), cls.held_out(), training=cls.training)
        return pipeline

    def answers(self, pipeline: Pipeline, inputs: list[Any] | None = None) -> list[dict[str, Any]]:
        return [answer.to_dict() for answer in pipeline.predict(self.inputs() if inputs is None else inputs)]

    # Configs.

    def test_config_survives_json(self) -> None:
        assert type(self.config).from_json(self.config.to_json()) == self.config

    def test_unknown_field_is_refused_by_name(self) -> None:
        with pytest.raises(ValueError, match="no_such_field"):
            type(self.config).from_dict({"no_such_field": 1})

    def test_config_of_another_kind_is_refused(self) -> None:
        with pytest.raises(TypeError, match="Config"):
            self.pipeline_class(TrainingConfig())

    # Learning.

    def test_learns_tiny_data(self, fitted: Pipeline) -> None:
        assert fitted.history is not None
        losses = fitted.history.losses
        assert losses[-1] < losses[0] if self.has_epochs else losses == []
        assert fitted.evaluate(self.held_out()).first >= self.floor

    def test_same_seeds_same_predictions(self, fitted: Pipeline) -> None:
        again = self.pipeline_class(self.config)
        again.fit(self.data(), self.held_out(), training=self.training)
        assert self.answers(again) == self.answers(fitted)

    def test_evaluate_gives_exactly_its_metrics(self, fitted: Pipeline) -> None:
        metrics = fitted.evaluate(self.held_out())
        assert tuple(metrics) == self.metric_names
        assert all(math.isfinite(value) for value in metrics.values())

    def test_workers_score_as_one_does(self, fitted: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        if not self.has_workers:
            pytest.skip("is trained by one process")
        fitted.save(tmp_path / "model")
        whole = self.validated(tmp_path / "model", monkeypatch, Workers())
        sent: list[Any] = []
        others, figures = (
            self.validated(tmp_path / "model", monkeypatch, WorkerInTurn(index, sent)) for index in (1, 0)
        )
        assert others == {}
        assert len(sent) == 1
        assert figures == pytest.approx(whole, abs=1e-6)

    def validated(self, saved: Path, monkeypatch: pytest.MonkeyPatch, workers: Workers) -> Any:
        """What such a worker gets of the validation set when training goes on, before the first step."""
        found = []

        def run(task: Any, options: Any) -> Any:
            found.append(dict(task.validate()))
            raise _BeforeTrainingError

        pipeline = load_pipeline(saved)
        with monkeypatch.context() as patch, activated(dataclasses.replace(current_runtime(), workers=workers)):
            patch.setattr("shared.training.run_training", run)
            with pytest.raises(_BeforeTrainingError):
                pipeline.fit(self.data(), self.held_out(), training=self.training)
        return found[0]

    # Predicting.

    def test_predict_keeps_order_and_length(self, fitted: Pipeline) -> None:
        inputs = self.inputs()
        assert self.answers(fitted, inputs[::-1]) == self.answers(fitted, inputs)[::-1]
        assert len(fitted.predict(inputs)) == len(inputs)

    def test_predict_accepts_an_empty_list(self, fitted: Pipeline) -> None:
        assert fitted.predict([]) == []

    def test_a_batch_equals_one_by_one(self, fitted: Pipeline) -> None:
        for_all = self.answers(fitted)
        one_by_one = [self.answers(fitted, [item])[0] for item in self.inputs()]
        _assert_close(for_all, one_by_one, 1e-5)

    def test_wrong_inputs_are_refused_in_words(self, fitted: Pipeline) -> None:
        for inputs, exception, part in self.wrong_inputs():
            with pytest.raises(exception, match=part):
                fitted.predict(inputs)

    def test_verbs_too_early_name_the_next_call(self, tmp_path: Path) -> None:
        pipeline = self.pipeline_class(self.config)
        for verb in (
            lambda: pipeline.predict(self.inputs()),
            lambda: pipeline.evaluate(self.held_out()),
            lambda: pipeline.save(tmp_path / "early"),
            lambda: pipeline.export(tmp_path / "early"),
        ):
            with pytest.raises(NotFittedError, match="fit"):
                verb()

    def test_any_iterable_of_inputs_will_do(self, fitted: Pipeline) -> None:
        assert [repr(answer) for answer in fitted.predict(iter(self.inputs()))] == [
            repr(answer) for answer in fitted.predict(self.inputs())
        ]
        with pytest.raises(TypeError, match=r"must be a list of .*; received one int"):
            fitted.predict(3)

    def test_wrong_data_is_refused_in_words(self) -> None:
        with pytest.raises(TypeError, match="received int"):
            self.pipeline_class(self.config).fit(3)
        with pytest.raises(ValueError, match="no examples"):
            self.pipeline_class(self.config).fit(([], []))

    # Files.

    def test_save_and_load(self, fitted: Pipeline, tmp_path: Path) -> None:
        fitted.save(tmp_path / "saved")
        loaded = load_pipeline(tmp_path / "saved")
        assert type(loaded) is self.pipeline_class
        assert loaded.config == fitted.config
        assert self.answers(loaded) == self.answers(fitted)
        record = json.loads((tmp_path / "saved" / "training.json").read_text())
        assert record["training"] == self.training.to_dict()

    def test_loads_in_another_process(self, fitted: Pipeline, tmp_path: Path) -> None:
        fitted.save(tmp_path / "saved")
        child = subprocess.run(
            [sys.executable, "-c", _CHILD, str(tmp_path / "saved"), self.inputs_as_code()],
            capture_output=True,
            text=True,
            cwd=_ROOT,
            env=os.environ | {"PYTHONPATH": str(_ROOT)},
            timeout=300,
        )
        assert child.returncode == 0, child.stderr
        line = next(line for line in child.stdout.splitlines() if line.startswith("ANSWERS "))
        _assert_close(json.loads(line.removeprefix("ANSWERS ")), self.answers(fitted), 1e-5)

    def test_a_save_stopped_half_way_leaves_the_old_version(
        self, fitted: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fitted.save(tmp_path / "saved")
        old = self.answers(fitted)
        newer = load_pipeline(tmp_path / "saved")
        self.alter(newer)
        new = self.answers(newer)
        assert new != old

        def stopped(*_: Any) -> None:
            raise KeyboardInterrupt

        # Real kills at each single operation are in tests/shared/test_artifact.py.
        artifact = shared.artifact
        for place, name in ((newer, "_write"), (artifact, "_write_manifest"), (artifact, "_put_in_place")):
            with monkeypatch.context() as patch:
                patch.setattr(place, name, stopped)
                with pytest.raises(KeyboardInterrupt):
                    newer.save(tmp_path / "saved")
            assert self.answers(load_pipeline(tmp_path / "saved")) == old, name
        newer.save(tmp_path / "saved")
        assert self.answers(load_pipeline(tmp_path / "saved")) == new
        assert os.listdir(tmp_path) == ["saved"]

    def test_another_tasks_directory_is_refused(self, fitted: Pipeline, tmp_path: Path) -> None:
        fitted.save(tmp_path / "saved")
        manifest = tmp_path / "saved" / "pipeline.json"
        manifest.write_text(manifest.read_text().replace(f'"{fitted.task}"', '"juggling"'))
        with pytest.raises(ValueError, match="juggling"):
            self.pipeline_class.load(tmp_path / "saved")
        with pytest.raises(ValueError, match="juggling"):
            load_pipeline(tmp_path / "saved")

    def test_a_manifest_without_the_tasks_own_keys_is_refused(self, fitted: Pipeline, tmp_path: Path) -> None:
        fitted.save(tmp_path / "saved")
        file = tmp_path / "saved" / "pipeline.json"
        manifest = json.loads(file.read_text())
        for key in fitted._manifest().keys() - {"preset"}:
            file.write_text(json.dumps({name: value for name, value in manifest.items() if name != key}))
            with pytest.raises(ValueError, match=f"pipeline.json is damaged: it has no '{key}'"):
                self.pipeline_class.load(tmp_path / "saved")

    def test_missing_directory(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="nowhere"):
            self.pipeline_class.load(tmp_path / "nowhere")

    # Exports.

    def test_exports_equal_predict(self, fitted: Pipeline, tmp_path: Path) -> None:
        for export_format in self.export_formats:
            report = fitted.export(tmp_path / f"as_{export_format}", export_format)
            assert report.max_difference <= self.export_tolerance, report
            assert report.num_bytes > 0

    def test_unknown_export_format_is_refused(self, fitted: Pipeline, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="saved_model, litert, onnx"):
            fitted.export(tmp_path / "export", "pickle")  # type: ignore[arg-type]

    # Resuming.

    def test_stopped_and_resumed_equals_unbroken(
        self, fitted: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import shared.training as loop

        class Killed(BaseException):
            pass

        after_step = loop._Run._after_step

        def dies_in_the_middle(run: Any, num_examples: int) -> None:
            after_step(run, num_examples)
            if run.step == 3:
                raise Killed

        training = self.training.replace(checkpoint_steps=2)
        with monkeypatch.context() as patch:
            patch.setattr(loop._Run, "_after_step", dies_in_the_middle)
            with pytest.raises(Killed):
                self.pipeline_class(self.config).fit(
                    self.data(), self.held_out(), training=training, checkpoint=tmp_path / "state"
                )
        resumed = self.pipeline_class(self.config)
        resumed.fit(self.data(), self.held_out(), training=training, checkpoint=tmp_path / "state", resume=True)
        for mine, unbroken in zip(resumed.model.get_weights(), fitted.model.get_weights(), strict=True):
            np.testing.assert_array_equal(mine, unbroken)
        assert resumed.history is not None
        assert fitted.history is not None
        assert resumed.history.losses == fitted.history.losses


def _assert_close(left: Any, right: Any, tolerance: float) -> None:
    """Equal structures whose numbers differ by no more than `tolerance`."""
    if isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            _assert_close(left[key], right[key], tolerance)
    elif isinstance(left, list):
        assert len(left) == len(right)
        for mine, other in zip(left, right, strict=True):
            _assert_close(mine, other, tolerance)
    elif isinstance(left, float):
        assert left == pytest.approx(right, abs=tolerance)
    else:
        assert left == right
