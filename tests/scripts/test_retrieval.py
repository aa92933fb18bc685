from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.recsys.tastes import tastes

_ROOT = Path(__file__).parents[2]
_SMALL = ("--dim", 8, "--batch-size", 64, "--learning-rate", 0.05, "--id-dropout", 0.3)


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """The script's main function in this process."""
    sys.path.insert(0, str(_ROOT / "scripts"))
    try:
        main = importlib.import_module("recommender").main
        command = importlib.import_module("retrieval").COMMAND
    finally:
        sys.path.remove(str(_ROOT / "scripts"))
    try:
        code = main(command, [str(argument) for argument in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tastes()
    assert data.timestamps is not None
    directory = tmp_path_factory.mktemp("data")
    rows = zip(data.users, data.items, data.timestamps, strict=True)
    (directory / "chosen.csv").write_text("user,item,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    items = sorted(set(data.items.tolist()))
    table = "".join(f"{item},name {item},{item // 100}|any\n" for item in items)
    (directory / "items.csv").write_text("movieId,title,taste\n" + table)
    people = "".join(f"u{user:03d},t{user % 3 + 1}\n" for user in range(60))
    (directory / "users.csv").write_text("userId,group\n" + people)
    (directory / "new-items.csv").write_text("movieId,title,taste\n210,new,2|any\n")
    (directory / "new-users.csv").write_text("userId,group\nnova,t2\n")
    return directory


def test_train_with_features_and_ask_for_newcomers(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    code, out, err = call(
        capsys, "train", "--train", files / "chosen.csv", "--holdout", "leave_one_out", "--output", model,
        "--epochs", 15, "--item-features", files / "items.csv", "--item-features-drop", "title",
        "--user-features", files / "users.csv", *_SMALL,
    )  # fmt: skip
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("held out: leave_one_out, 60 users")
    assert [line.split()[0] for line in lines[1:]] == [
        "retrieval",
        "saved",
        "baselines",
        "popularity",
        "item_knn",
        "ease",
    ]
    ndcg = [float(line.split("ndcg@10")[1].split()[0]) for line in lines[1:] if "ndcg@10" in line]
    assert ndcg[0] > 1.5 * ndcg[1]  # popularity
    code, out, err = call(
        capsys, "recommend", "--model", model, "--users", "u001,nova,nobody", "--k", 4,
        "--user-features", files / "new-users.csv", "--item-features", files / "new-items.csv",
    )  # fmt: skip
    assert code == 0, err
    assert "1 items added by their features" in err
    known, nova, nobody = (json.loads(line) for line in out.splitlines())
    assert [answer["origin"] for answer in (known, nova, nobody)] == ["model", "features", "popularity"]
    assert [item // 100 for item in nova["items"][:3]] == [2, 2, 2]
    assert call(capsys, "export", "--model", model, "--output", tmp_path / "saved")[0] == 0
    code, out, _ = call(capsys, "evaluate", "--model", model, "--data", files / "chosen.csv")
    assert code == 0
    assert "full ranking" in out


def test_ids_of_features_are_of_the_kind_of_the_interactions(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = call(
        capsys, "train", "--train", files / "chosen.csv", "--ids", "str", "--output", tmp_path / "model", "--epochs", 1,
        "--item-features", files / "items.csv", "--item-features-drop", "title", *_SMALL,
    )  # fmt: skip
    assert code == 0, err
    code, out, err = call(
        capsys, "recommend", "--model", tmp_path / "model", "--users", "u001", "--k", 2,
        "--item-features", files / "new-items.csv",
    )  # fmt: skip
    assert code == 0, err
    assert "1 items added by their features" in err
    assert all(isinstance(item, str) for item in json.loads(out)["items"])


def test_mistakes_are_one_line_and_code_2(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = ("train", "--train", files / "chosen.csv", "--output", tmp_path / "model")
    nameless = tmp_path / "nameless.csv"
    nameless.write_text("what,else\n1,2\n")
    for arguments, part in [
        ((*train, "--item-features", files / "nothing.csv"), "nothing at"),
        ((*train, "--item-features", nameless), "no column is known to hold ids of items. Name it with --item-fea"),
        ((*train, "--user-features", files / "users.csv", "--user-features-id", "who"), "there is no column 'who'"),
        ((*train, "--item-features", files / "users.csv", "--item-features-id", "userId"), "id 'u000' must be a whole"),
        ((*train, "--temperature", 0), "temperature"),
    ]:
        code, out, err = call(capsys, *arguments)
        assert code == 2, (arguments, err)
        assert part in err
        assert "Traceback" not in err
        assert not out


def test_help_of_each_verb_fits_a_screen_and_needs_no_tensorflow() -> None:
    script = str(_ROOT / "scripts" / "retrieval.py")
    environment = os.environ | {"PYTHONPATH": str(_ROOT), "COLUMNS": "110"}
    for verb in ("train", "recommend"):
        command = [sys.executable, "-X", "importtime", script, verb, "--help"]
        child = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
        assert child.returncode == 0
        assert child.stdout.count("\n") <= 60, verb
        assert " tensorflow" not in child.stderr
