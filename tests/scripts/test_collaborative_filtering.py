from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.recsys.tastes import tastes

_ROOT = Path(__file__).parents[2]


def script(name: str) -> Any:
    """A script as a module."""
    sys.path.insert(0, str(_ROOT / "scripts"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(_ROOT / "scripts"))


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """The script's main function in this process."""
    try:
        code = script("recommender").main(
            script("collaborative_filtering").COMMAND, [str(argument) for argument in arguments]
        )
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tastes()
    assert data.ratings is not None
    assert data.timestamps is not None
    rows = zip(data.users, data.items, data.ratings, data.timestamps, strict=True)
    path = tmp_path_factory.mktemp("data") / "ratings.csv"
    path.write_text("user,item,rating,timestamp\n" + "".join(f"{u},{i},{r},{t}\n" for u, i, r, t in rows))
    return path


@pytest.fixture
def model(ratings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    code, _, err = call(capsys, "train", "--train", ratings, "--output", tmp_path / "model", "--ease-l2", 5)
    assert code == 0, err
    return tmp_path / "model"


@pytest.mark.parametrize("holdout", ["leave_one_out", "temporal:0.2", "users:0.25"])
def test_train_prints_baselines_beside_the_model(
    holdout: str, ratings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(
        capsys, "train", "--train", ratings, "--holdout", holdout, "--output", tmp_path / "model", "--model", "ials",
        "--factors", 8, "--epochs", 3, "--min-rating", 3,
    )  # fmt: skip
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].startswith(f"held out: {holdout}, ")
    assert [line.split()[0] for line in lines[1:]] == ["ials", "saved", "popularity", "item_knn", "ease"]
    assert all("ndcg@10" in line for line in lines if not line.startswith(("held", "saved")))
    assert "weighting" in lines[4]
    assert not (tmp_path / "model.checkpoint").exists()


def test_recommend_and_predict(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "recommend", "--model", model, "--users", "u000,nobody", "--k", 3)
    answers = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [(answer["user"], answer["origin"], len(answer["items"])) for answer in answers] == [
        ("u000", "model", 3),
        ("nobody", "popularity", 3),
    ]
    best = answers[0]["items"][0]
    _, out, _ = call(capsys, "recommend", "--model", model, "--users", "u000", "--k", 2, "--exclude", best)
    assert json.loads(out)["items"] == answers[0]["items"][1:]
    file = tmp_path / "scores.jsonl"
    assert call(capsys, "predict", "--model", model, f"u000,{best}", "--output", file)[:2] == (0, "")
    assert json.loads(file.read_text())["scores"] == answers[0]["scores"][:1]


def test_evaluate(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held, seen = tmp_path / "test.csv", tmp_path / "seen.csv"
    held.write_text("user,item\nnew,105\n")
    seen.write_text("user,item,rating\nnew,101,5\nnew,102,5\n")
    code, out, _ = call(capsys, "evaluate", "--model", model, "--data", held, "--json", tmp_path / "m.json")
    assert code == 0
    assert "users_without_history 1" in out
    code, out, _ = call(
        capsys,
        "evaluate",
        "--model",
        model,
        "--data",
        held,
        "--seen",
        seen,
        "--cutoffs",
        "8,30",
        "--json",
        tmp_path / "m.json",
    )
    assert "users_without_history 0" in out
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert metrics["hit@30"] == 1.0  # among all 28 that are left
    code, out, _ = call(capsys, "evaluate", "--model", model, "--data", held, "--negatives", 5)
    assert "sampled_5_ndcg@10" in out
    assert "not comparable" in out


def test_columns_by_name_and_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r.csv"
    file.write_text("who;what\n" + "".join(f"{user};{item}\n" for user in range(4) for item in range(user + 1)))
    code, _, err = call(
        capsys, "train", "--train", file, "--user-column", "who", "--item-column", "what", "--output", tmp_path / "m"
    )
    assert code == 0, err
    code, out, _ = call(capsys, "recommend", "--model", tmp_path / "m", "--users", "0,77", "--k", 2)
    assert [json.loads(line)["user"] for line in out.splitlines()] == [0, 77]
    code, out, _ = call(capsys, "export", "--model", tmp_path / "m", "--output", tmp_path / "saved")
    assert code == 0
    assert "largest difference to predict" in out
    assert (tmp_path / "saved" / "saved_model.pb").exists()


def test_mistakes_are_one_line_and_code_2(
    model: Path, ratings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ("train", "--train", ratings, "--output", tmp_path / "other")
    for arguments, part in [
        ((*train, "--holdout", "sometimes"), "leave_one_out, temporal:SHARE"),
        ((*train, "--model", "magic"), "magic"),
        (("train", "--train", tmp_path / "nowhere.csv", "--output", tmp_path / "o"), "nowhere.csv"),
        (("predict", "--model", model, "u000"), "USER,ITEM"),
        (("predict", "--model", model, "u000,x"), "whole numbers; received 'x'"),
        (("recommend", "--model", model, "--users", "u000", "--k", 0), "`k` must be"),
        (("export", "--model", model, "--format", "onnx", "--output", tmp_path / "x.onnx"), "saved_model"),
        (("recommend", "--model", tmp_path / "none", "--users", "a"), "no saved pipeline"),
    ]:
        code, out, err = call(capsys, *arguments)
        assert code == 2, (arguments, err)
        assert part in err
        assert len([line for line in err.splitlines() if line.startswith("error")]) == 1
        assert "Traceback" not in err
        assert not out


def test_help_of_each_verb_fits_a_screen_and_needs_no_tensorflow() -> None:
    script = str(_ROOT / "scripts" / "collaborative_filtering.py")
    environment = os.environ | {"PYTHONPATH": str(_ROOT), "COLUMNS": "110"}
    for verb in ("train", "evaluate", "recommend", "predict", "export"):
        command = [sys.executable, "-X", "importtime", script, verb, "--help"]
        child = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
        assert child.returncode == 0
        assert child.stdout.count("\n") <= 55, verb
        assert " tensorflow" not in child.stderr


def test_users_may_stand_in_a_file(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script("recommender"), "_PORTION", 2)
    users = ["u000", "u001", "nobody", "u002", "u003"]
    (tmp_path / "users.txt").write_text("\n".join(users) + "\n\n")
    asked = ("recommend", "--model", model, "--k", 3, "--users")
    code, out, err = call(capsys, *asked, f"@{tmp_path / 'users.txt'}")
    assert code == 0, err
    assert out == call(capsys, *asked, ",".join(users))[1]
    assert [json.loads(line)["user"] for line in out.splitlines()] == users
    code, _, err = call(capsys, *asked, "@absent.txt")
    assert code == 2
    assert "absent.txt" in err


def test_a_process_of_a_cluster_recommends_as_the_script_does(model, capsys):
    arguments = ["recommend", "--model", str(model), "--k", "3", "--exclude", "103", "--users", "x"]
    answers = script("collaborative_filtering").COMMAND.answering(arguments)(["u005", "nobody"])
    _, out, _ = call(capsys, *arguments[:-1], "u005,nobody")
    assert [answer.to_dict() for answer in answers] == [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize(("name", "epochs"), [("ease", [1]), ("ials", [1, 2, 3])])
def test_a_trial_reports_what_it_is_chosen_by(name, epochs, ratings):
    arguments = ["tune", "--train", str(ratings), "--holdout", "leave_one_out", "--output", "x", "--search", "x=1"]
    records: list[dict[str, Any]] = []
    values = {"model": name, "factors": "4", "epochs": "3"}
    trained = script("collaborative_filtering").COMMAND.trained([*arguments, "--seed", "5"], values, records.append)
    assert [record["epoch"] for record in records] == epochs
    assert all(0 < record["validation_ndcg@10"] <= 1 for record in records)
    assert (trained.config.model, trained.config.factors, trained.config.seed) == (name, 4, 5)
    assert len(trained.recommend(["u000"], 3)[0].items) == 3


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("tune", "--search", "model=ease"), "needs --validation PATH, or --holdout"),
        (
            ("tune", "--holdout", "leave_one_out", "--search", "modl=ease"),
            "no flag 'modl' to search. Did you mean 'mod",
        ),
        (("tune", "--holdout", "leave_one_out", "--search", "factors=0,8"), "factors"),
    ],
)
def test_what_tune_refuses_is_one_line(arguments, part, ratings, tmp_path, capsys):
    code, _, err = call(capsys, *arguments, "--train", ratings, "--output", tmp_path / "best")
    assert code == 2
    assert part in err
    assert len(err.splitlines()) == 1


def test_recommendations_of_several_processes_need_a_file(model, capsys):
    code, _, err = call(capsys, "recommend", "--engine", "ray", "--model", model, "--users", "u000")
    assert code == 2
    assert "`recommend --engine ray` needs --output FILE" in err
