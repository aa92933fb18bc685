from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from shared import load_pipeline
from shared.ray_cluster import Job
from shared.ray_prediction import Answerer, Parts

pytest.importorskip("ray", reason="the extra ray is not installed")

_ROOT = Path(__file__).parents[2]
_SCRIPT = _ROOT / "scripts" / "text_classification.py"
_SMALL = ["--encoder", "gru", "--hidden-size", "8", "--vocab-size", "200", "--batch-size", "16"]


def run(
    directory: Path, *arguments: str, script: Path = _SCRIPT, **options: object
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(script), *arguments]
    environment = os.environ | {"PYTHONPATH": str(_ROOT)}
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, **options)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with texts, and a classifier of them called `model`."""
    directory = tmp_path_factory.mktemp("ray")
    rng = random.Random(0)
    rows = [f"{' '.join(rng.choices(['film', 'book', 'day'], k=4))} {label},{label}" for label in ("good", "bad") * 30]
    (directory / "train.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    (directory / "many.txt").write_text("".join(f"a good film {number}\n" for number in range(1500)))
    trained = run(directory, "train", "--train", "train.csv", "--output", "model", "--epochs", "2", *_SMALL)
    assert trained.returncode == 0, trained.stderr
    return directory


def test_a_worker_answers_its_parts_as_the_local_engine_does(place):
    texts = (place / "many.txt").read_text().splitlines()[:5]
    arguments = ("predict", "--model", "model", "--top-k", "1", "x")
    parts = Parts(place / "own.parts")
    job = Job(str(_SCRIPT), arguments, str(place))
    counts = parts.spool(job, texts, 3)
    before = os.getcwd()
    try:
        answerer = Answerer(job, parts.directory)
        assert answerer({"number": [0, 1]}) == {"number": [0, 1], "error": ["", ""]}
    finally:
        os.chdir(before)
    parts.join(counts, place / "own.jsonl")
    local = run(place, "predict", "--model", "model", "--top-k", "1", "--output", "local.jsonl", *texts)
    assert local.returncode == 0, local.stderr
    own, expected = ((place / name).read_text() for name in ("own.jsonl", "local.jsonl"))
    assert [json.loads(line)["input"] for line in own.splitlines()] == texts
    for mine, theirs in zip(own.splitlines(), expected.splitlines(), strict=True):
        assert json.loads(mine)["labels"] == json.loads(theirs)["labels"]
        assert json.loads(mine)["probabilities"] == pytest.approx(json.loads(theirs)["probabilities"], abs=1e-5)


def test_a_worker_says_what_it_refuses(place):
    job = Job(str(_SCRIPT), ("predict", "--model", "absent", "x"), str(place))
    parts = Parts(place / "refused.parts")
    parts.spool(job, ["a"], 1)
    before = os.getcwd()
    try:
        (error,) = Answerer(job, parts.directory)({"number": [0]})["error"]
    finally:
        os.chdir(before)
    assert "absent" in error
    assert not parts.answers(0).exists()


def test_answers_of_several_processes_need_a_file(place):
    asked = run(place, "predict", "--engine", "ray", "--model", "model", "a text")
    assert asked.returncode == 2
    assert asked.stderr.strip().splitlines()[-1].startswith("error: `predict --engine ray` needs --output FILE")


@pytest.mark.slow
def test_each_input_is_answered_once_when_a_worker_is_killed(place):
    psutil = pytest.importorskip("psutil")
    flags = ["--engine", "ray", "--workers", "2", "--model", "model", "--output", "out.jsonl", "@many.txt"]
    process = subprocess.Popen(
        [sys.executable, str(_SCRIPT), "predict", *flags], cwd=place, env=os.environ | {"PYTHONPATH": str(_ROOT)}
    )
    killed = 0
    while process.poll() is None:
        time.sleep(0.05)
        if killed or not list((place / "out.jsonl.parts").glob("answers-*.jsonl")):
            continue
        for child in psutil.Process(process.pid).children(recursive=True):
            if any("ray::MapWorker" in part for part in child.cmdline()):
                child.send_signal(signal.SIGKILL)
                killed += 1
                break
    assert process.returncode == 0
    assert killed == 1
    answered = [json.loads(line)["input"] for line in (place / "out.jsonl").read_text().splitlines()]
    assert answered == (place / "many.txt").read_text().splitlines()
    assert not (place / "out.jsonl.parts").exists()


@pytest.mark.slow
def test_tune_keeps_the_best_trial(place):
    searched = run(
        place,
        *("tune", "--train", "train.csv", "--validation", "train.csv", "--output", "best", "--epochs", "3", *_SMALL),
        *("--search", "learning_rate=1e-7,0.03", "--search", "dropout=0..0.3", "--trials", "3", "--workers", "2"),
    )
    assert searched.returncode == 0, searched.stderr
    trials = [json.loads(line) for line in (place / "best.trials.jsonl").read_text().splitlines()]
    assert len(trials) == 3
    assert trials[0]["score"] == max(trial["score"] for trial in trials if not trial["ended_early"])
    saved = json.loads((place / "best" / "training.json").read_text())
    assert saved["training"]["learning_rate"] == float(trials[0]["values"]["learning_rate"])
    assert not (place / "best.trials").exists()


def test_tune_refuses_flags_that_do_not_exist(place):
    searched = run(
        place,
        "tune",
        "--train",
        "train.csv",
        "--validation",
        "train.csv",
        "--output",
        "b",
        "--search",
        "learningrate=1,2",
    )
    assert searched.returncode == 2
    assert "There is no flag 'learningrate' to search. Did you mean 'learning_rate'?" in searched.stderr


@pytest.mark.slow
def test_training_on_ray_is_that_of_the_same_workers_without(place):
    import numpy as np

    from nlp import TextClassifier

    flags = ["--train", "train.csv", "--epochs", "2", *_SMALL]
    weights = []
    for name, workers in (("local", ["--workers", "local:2"]), ("ray", ["--engine", "ray", "--workers", "2"])):
        trained = run(place, "train", "--output", name, *flags, *workers)
        assert trained.returncode == 0, trained.stderr
        assert "epoch 2/2" in trained.stderr
        weights.append(TextClassifier.load(place / name).model.get_weights())
    for local, on_ray in zip(*weights, strict=True):
        np.testing.assert_allclose(on_ray, local, atol=1e-5)
    assert not (place / "ray.ray").exists()


@pytest.mark.slow
def test_what_the_workers_refuse_is_one_line(place):
    refused = run(
        place, "train", "--train", "absent.csv", "--output", "x", "--engine", "ray", "--workers", "2", *_SMALL
    )
    assert refused.returncode == 2
    assert refused.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "absent.csv" in refused.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_recommenders_are_tuned_and_asked(tmp_path):
    from tests.recsys.tastes import tastes

    script = _ROOT / "scripts" / "collaborative_filtering.py"
    data = tastes()
    rows = "".join(f"{user},{item}\n" for user, item in zip(data.users, data.items, strict=True))
    (tmp_path / "train.csv").write_text("user,item\n" + rows)
    users = [f"u{number:03d}" for number in range(60)] * 10
    (tmp_path / "users.txt").write_text("\n".join(users))
    searched = run(
        tmp_path,
        *("tune", "--train", "train.csv", "--holdout", "leave_one_out", "--workers", "2", "--output", "best"),
        *("--search", "model=popularity,item_knn,ease", "--trials", "4"),
        script=script,
    )
    assert searched.returncode == 0, searched.stderr
    trials = [json.loads(line) for line in (tmp_path / "best.trials.jsonl").read_text().splitlines()]
    assert [trial["score"] for trial in trials] == sorted((trial["score"] for trial in trials), reverse=True)
    best: Any = load_pipeline(tmp_path / "best").config
    assert best.model == trials[0]["values"]["model"]
    asked = ("recommend", "--model", "best", "--users", "@users.txt", "--k", "3", "--output")
    for flags in (("local.jsonl",), ("ray.jsonl", "--engine", "ray", "--workers", "2")):
        answered = run(tmp_path, *asked, *flags, script=script)
        assert answered.returncode == 0, answered.stderr
    local, ray = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        for name in ("local.jsonl", "ray.jsonl")
    )
    assert [answer.pop("input") for answer in ray] == users
    assert ray == local
