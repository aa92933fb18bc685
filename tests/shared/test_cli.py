from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import types
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import pytest

from shared.cli import AnswerOption, TaskCommand, main, run_script
from shared.config import Config, option
from shared.examples import BadRecord, Examples, tolerated
from shared.flags import add_flags, config_from_flags, given_flags
from shared.pipeline import History, Metrics, NotFittedError, TrainingInterrupted
from shared.runtime import RuntimeConfig
from shared.training_config import TrainingConfig
from vision.classification import ImageClassifierConfig


@dataclass(frozen=True, kw_only=True)
class ToyConfig(Config):
    size: int = option(3, "a size", minimum=1, unit="px")
    share: float = option(0.5, "100 % of a share")
    kind: Literal["plain", "fancy"] = option("plain", "a choice")
    on: bool = option(True, "a switch")
    labels: tuple[str, ...] = option((), "names")
    sizes: tuple[int, ...] = option((), "numbers")


class ToyPipeline:
    """Counts; an error to raise may be planted in `trouble`."""

    trouble: BaseException | None = None

    def __init__(self, config=None):
        self.config = config or ToyConfig()

    def fit(self, train, validation=None, *, training, checkpoint, resume, log, profile):
        if ToyPipeline.trouble is not None:
            raise ToyPipeline.trouble
        return History(records=(), best_epoch=None, wall_seconds=0.0, stopped_early=False, bad_records=())

    def evaluate(self, data, *, max_bad_share):
        return Metrics({"accuracy": 0.75, "share": max_bad_share})

    def predict(self, inputs, *, at_most=9):
        return [types.SimpleNamespace(to_dict=lambda item=item: {"length": min(len(item), at_most)}) for item in inputs]

    def save(self, path):
        Path(path).write_text(self.config.to_json())

    @classmethod
    def load(cls, path):
        return cls(ToyConfig.from_json(Path(path).read_text()))


def read(path, split, *, max_bad_share):
    text = path.read_text()
    bad = (BadRecord("line 2", "empty"),) * 2 if "bad" in path.name else ()
    return tolerated(Examples([text], [0], bad), path, max_bad_share, things="lines")


@pytest.fixture
def toy(monkeypatch):
    module = types.ModuleType("toy_task")
    module.Pipeline, module.Config = ToyPipeline, ToyConfig  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_task", module)
    monkeypatch.setattr(RuntimeConfig, "apply", lambda self: None)
    monkeypatch.setattr(ToyPipeline, "trouble", None)
    monkeypatch.setattr(sys, "argv", ["toy.py"])
    return TaskCommand(
        name="toy",
        description="A toy.",
        pipeline="toy_task:Pipeline",
        config="toy_task:Config",
        read=read,
        common=("size", "epochs"),
        answer_options=(AnswerOption("at_most", "the longest length"),),
    )


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("some examples")
    return path


def code_of(command, *arguments):
    try:
        return main(command, [str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code


def test_flags_become_a_config(toy, data, tmp_path):
    flags = ["--size", "5", "--kind", "fancy", "--no-on", "--labels", "a, b", "--sizes", "1,2", "--share", "0.25"]
    assert code_of(toy, "train", "--train", data, "--output", tmp_path / "out", *flags) == 0
    assert json.loads((tmp_path / "out").read_text()) == {
        "size": 5, "share": 0.25, "kind": "fancy", "on": False, "labels": ["a", "b"], "sizes": [1, 2],
    }  # fmt: skip


def test_a_profile_that_cannot_be_read_costs_no_trained_pipeline(toy, data, tmp_path, capsys):
    assert code_of(toy, "train", "--train", data, "--output", tmp_path / "out", "--profile") == 2
    assert "profile" in capsys.readouterr().err
    assert (tmp_path / "out").exists()


def test_evaluate_prints_and_writes_metrics(toy, data, tmp_path, capsys):
    ToyPipeline().save(tmp_path / "model")
    result = tmp_path / "metrics.json"
    assert code_of(toy, "evaluate", "--model", tmp_path / "model", "--data", data, "--json", result) == 0
    assert capsys.readouterr().out.split() == ["accuracy", "0.7500", "share", "0.0100"]
    assert json.loads(result.read_text()) == {"accuracy": 0.75, "share": 0.01}


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_the_tolerated_share_of_bad_records_reaches_reader_and_scores(toy, data, tmp_path, capsys, verb):
    ToyPipeline().save(tmp_path / "model")
    bad = data.rename(tmp_path / "bad.txt")
    arguments = {
        "train": ["--train", bad, "--validation", bad, "--output", tmp_path / "out"],
        "evaluate": ["--model", tmp_path / "model", "--data", bad],
    }[verb]
    assert code_of(toy, verb, *arguments) == 2
    assert "2 of 3 lines cannot be used" in capsys.readouterr().err
    assert code_of(toy, verb, *arguments, "--max-bad-share", "0.6") == 0
    assert "0.6000" in capsys.readouterr().out


def test_predict_writes_json_lines(toy, tmp_path, capsys):
    ToyPipeline().save(tmp_path / "model")
    assert code_of(toy, "predict", "--model", tmp_path / "model", "one", "three") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in lines] == [{"input": "one", "length": 3}, {"input": "three", "length": 5}]
    assert code_of(toy, "predict", "--model", tmp_path / "model", "--output", tmp_path / "answers", "one") == 0
    assert (tmp_path / "answers").read_text() == lines[0] + "\n"
    assert code_of(toy, "predict", "--model", tmp_path / "model", "--at-most", "4", "three") == 0
    assert json.loads(capsys.readouterr().out) == {"input": "three", "length": 4}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required"),
        (["fly"], "invalid choice: 'fly'"),
        (["train", "--output", "o"], "required: --train"),
        (["train", "--train", "missing", "--output", "o"], "No such file"),
        (["train", "--train", "DATA", "--output", "o", "--size", "x"], "invalid int value: 'x'"),
        (["train", "--train", "DATA", "--output", "o", "--size", "0"], "`ToyConfig.size` must be at least 1"),
        (["train", "--train", "DATA", "--output", "o", "--kind", "odd"], "invalid choice: 'odd'"),
        (["train", "--train", "DATA", "--output", "o", "--siz", "3"], "unrecognized arguments: --siz"),
        (["predict", "x"], "needs either --model DIR or --preset REF"),
        (["predict", "--model", "m"], "required: INPUT"),
    ],
)
def test_mistakes_are_one_line_and_code_2(toy, data, capsys, arguments, words):
    assert code_of(toy, *[str(data) if argument == "DATA" else argument for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert words in captured.err


@pytest.mark.parametrize(
    ("trouble", "code", "words"),
    [
        (ValueError("a\nb"), 2, "error: a b\n"),
        (TypeError("wrong kind"), 2, "error: wrong kind\n"),
        (NotFittedError("not yet"), 2, "error: not yet\n"),
        (FloatingPointError("loss is nan"), 2, "error: loss is nan\n"),
        (PermissionError(13, "Permission denied", "x"), 2, "Permission denied"),
        (OSError(28, "No space left on device", "x"), 2, "error: [Errno 28] No space left on device"),
        (OSError(36, "File name too long", "x"), 2, "error: [Errno 36] File name too long"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (TrainingInterrupted("stopped"), 130, "stopped\nresume: python toy.py train"),
        (RuntimeError("our fault"), 1, "Traceback"),
        (AssertionError(), 1, "Traceback"),
    ],
)
def test_exit_codes(toy, data, capsys, monkeypatch, trouble, code, words):
    # The toy stands for a module of ours: mistakes are told by where they were raised.
    monkeypatch.setitem(ToyPipeline.fit.__globals__, "__name__", "shared.toy")
    monkeypatch.setattr(ToyPipeline, "trouble", trouble)
    assert code_of(toy, "train", "--train", data, "--output", "o") == code
    assert words in capsys.readouterr().err


def test_an_error_from_the_depths_of_a_library_keeps_its_traceback(toy, data, capsys, monkeypatch):
    monkeypatch.setitem(ToyPipeline.fit.__globals__, "__name__", "somelibrary.core")
    monkeypatch.setattr(ToyPipeline, "trouble", ValueError("shapes differ"))
    assert code_of(toy, "train", "--train", data, "--output", "o") == 1
    assert "Traceback" in capsys.readouterr().err


def test_the_resume_command_can_be_pasted(toy, data, capsys, monkeypatch):
    monkeypatch.setattr(ToyPipeline, "trouble", TrainingInterrupted("stopped"))
    arguments = ["train", "--train", str(data), "--output", "my model"]
    assert code_of(toy, *arguments) == 130
    assert capsys.readouterr().err.endswith(
        f"resume: python toy.py train --train {data} --output 'my model' --resume\n"
    )


def test_help_is_short_and_help_all_is_whole(toy, capsys):
    assert code_of(toy, "train", "--help") == 0
    short = capsys.readouterr().out
    assert "--size N" in short
    assert "(default: 3 px)" in short
    assert "--share" not in short
    assert code_of(toy, "train", "--help-all") == 0
    whole = capsys.readouterr().out
    for name in ("--share", "--labels", "--data-seed", "--memory-growth", "100 % of a share"):
        assert name in whole


def test_run_script_maps_errors(capsys):
    def trouble():
        raise FileNotFoundError("no data here")

    assert run_script(lambda: None) == 0
    assert run_script(trouble) == 2
    assert capsys.readouterr().err == "error: no data here\n"


def test_no_two_configs_of_a_task_share_a_flag():
    parser = argparse.ArgumentParser()
    for config_class in (ImageClassifierConfig, TrainingConfig, RuntimeConfig):
        add_flags(parser, config_class)
    options = parser.parse_args([])
    assert config_from_flags(TrainingConfig, options) == TrainingConfig()
    assert given_flags(ImageClassifierConfig, options) == {}
    flags = parser.format_help()
    for field in fields(TrainingConfig):
        assert f"--{'data-seed' if field.name == 'seed' else field.name.replace('_', '-')}" in flags


def test_help_needs_no_tensorflow():
    root = Path(__file__).parents[2]
    program = (
        "import runpy, sys\n"
        "sys.argv = ['image_classification.py', 'train', '--help']\n"
        "try:\n    runpy.run_path('scripts/image_classification.py', run_name='__main__')\n"
        "except SystemExit as stop:\n    assert stop.code == 0, stop.code\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(root)}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "--image-size" in result.stdout
