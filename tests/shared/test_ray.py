import json
import math
import sys
from argparse import Namespace

import pytest

from shared.ray_cluster import Job, largest_share
from shared.ray_prediction import Parts
from shared.ray_search import Dimension, Trial, _worth, as_texts
from shared.ray_verbs import num_workers, ray_job
from shared.runtime import RuntimeConfig


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("batch_size=16,32", Dimension("batch_size", choices=("16", "32"))),
        ("--learning-rate=1e-5..1e-3", Dimension("learning_rate", low=1e-5, high=1e-3)),
        ("epochs=2..5", Dimension("epochs", low=2.0, high=5.0, whole=True)),
        ("dropout=0..0.5", Dimension("dropout", low=0.0, high=0.5)),
        ("encoder=gru, lstm", Dimension("encoder", choices=("gru", "lstm"))),
    ],
)
def test_dimensions(text, expected):
    assert Dimension.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learning_rate", "NAME=A,B,C or NAME=LOW..HIGH"),
        ("=1,2", "NAME=A,B,C or NAME=LOW..HIGH"),
        ("epochs=5..2", "first bound must be below"),
        ("epochs=a..b", "must be numbers"),
        ("dropout=0..inf", "first bound must be below"),
    ],
)
def test_dimensions_that_are_refused(text, said):
    with pytest.raises(ValueError, match=said):
        Dimension.parse(text)


def test_rates_are_drawn_by_magnitude_and_shares_evenly():
    assert Dimension.parse("learning_rate=1e-5..1e-3").by_magnitude
    assert not Dimension.parse("dropout=0.1..0.5").by_magnitude
    assert not Dimension.parse("epochs=1..100").by_magnitude


def test_drawn_values_become_texts():
    assert as_texts({"rate": 0.000123456, "size": 16, "name": "gru"}) == {
        "rate": "0.0001235",
        "size": "16",
        "name": "gru",
    }


def test_finished_trials_come_first_and_those_without_a_number_last(tmp_path):
    ended = Trial({"a": "1"}, 0.9, 1, None)
    unknown = Trial({"a": "2"}, math.nan, 3, tmp_path)
    good = Trial({"a": "3"}, 0.8, 3, tmp_path)
    assert sorted([ended, unknown, good], key=_worth, reverse=True) == [good, unknown, ended]


def test_number_of_workers():
    assert num_workers(RuntimeConfig(workers="3")) == 3
    assert num_workers(RuntimeConfig()) == 1
    with pytest.raises(ValueError, match=r"number of processes; received 'a:1,b:1'"):
        num_workers(RuntimeConfig(workers="a:1,b:1"))


def test_workers_are_given_the_command_line_without_the_cluster(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scripts/text_classification.py"])
    arguments = ["train", "--engine", "ray", "--workers=2", "--train", "a.csv", "--epochs", "3"]
    job = ray_job(Namespace(arguments=arguments))
    assert job.arguments == ("train", "--train", "a.csv", "--epochs", "3")
    assert job.script.endswith("/scripts/text_classification.py")


def test_a_job_needs_a_script(tmp_path):
    with pytest.raises(ValueError, match="needs a script of a task"):
        Job(str(tmp_path / "absent.py"), ()).module()


@pytest.mark.parametrize(
    ("cores", "workers", "share"),
    [([2], 2, 1), ([2], 1, 2), ([8, 8], 3, 4), ([8, 8], 1, 8), ([16, 4], 5, 4), ([1], 2, 0), ([], 1, 0)],
)
def test_workers_ask_for_cores_that_all_can_have(cores, workers, share):
    assert largest_share(cores, workers) == share


# Parts of inputs and answers.


JOB = Job("scripts/text_classification.py", ("predict", "--model", "absent", "@many.txt"))


def answer(parts, number):
    lines = [json.dumps({"input": text}) + "\n" for text in parts.inputs_of(number)]
    parts.answers(number).write_text("".join(lines), encoding="utf-8")


def test_parts_hold_every_input_once_and_are_joined_in_order(tmp_path):
    parts = Parts(tmp_path / "out.jsonl.parts")
    texts = [f"text {number}\u2028é" for number in range(7)]
    counts = parts.spool(JOB, iter(texts), 3)
    assert counts == [3, 3, 1]
    for number in (2, 0, 1):
        answer(parts, number)
    parts.join(counts, tmp_path / "out.jsonl")
    read = (tmp_path / "out.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert [json.loads(line)["input"] for line in read] == texts
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_run_goes_on_where_the_same_command_left_off(tmp_path):
    parts = Parts(tmp_path / "parts")
    parts.spool(JOB, ["a", "b", "c"], 2)
    answer(parts, 0)
    again = Parts(tmp_path / "parts")
    assert again.spool(JOB, ["a", "b", "c"], 2) == [2, 1]
    assert again.answers(0).exists()
    assert not again.answers(1).exists()


def test_parts_of_other_inputs_or_commands_are_refused(tmp_path):
    parts = Parts(tmp_path / "parts")
    parts.spool(JOB, ["a", "b", "c"], 2)
    with pytest.raises(ValueError, match="parts of other inputs"):
        Parts(tmp_path / "parts").spool(JOB, ["a", "x", "c"], 2)
    with pytest.raises(ValueError, match="parts of another run"):
        Parts(tmp_path / "parts").spool(Job(JOB.script, ("predict", "--top-k", "1")), ["a"], 2)


@pytest.mark.parametrize("flags", [("--model", "m"), ("--model=m",)])
def test_parts_answered_by_other_weights_are_refused(tmp_path, flags):
    (tmp_path / "m").mkdir()
    job = Job(JOB.script, ("predict", *flags, "@many.txt"), str(tmp_path))
    (tmp_path / "m" / "pipeline.json").write_text("first")
    Parts(tmp_path / "parts").spool(job, ["a"], 2)
    Parts(tmp_path / "parts").spool(job, ["a"], 2)
    (tmp_path / "m" / "pipeline.json").write_text("second")
    with pytest.raises(ValueError, match="parts of another run"):
        Parts(tmp_path / "parts").spool(job, ["a"], 2)


def test_inputs_that_are_no_texts_are_refused(tmp_path):
    with pytest.raises(TypeError, match="Use --engine local"):
        Parts(tmp_path / "parts").spool(JOB, [object()], 2)


def test_answers_that_are_missing_are_found_out(tmp_path):
    parts = Parts(tmp_path / "out.jsonl.parts")
    counts = parts.spool(JOB, ["a", "b"], 2)
    parts.answers(0).write_text('{"input": "a"}\n', encoding="utf-8")
    with pytest.raises(RuntimeError, match="has 1 answers, expected 2"):
        parts.join(counts, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
