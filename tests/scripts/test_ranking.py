from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recsys import Ranker
from tests.recsys.test_ranking import clicks

_ROOT = Path(__file__).parents[2]
_SMALL = ("--dim", 4, "--hidden", 16, "--epochs", 8, "--batch-size", 20, "--learning-rate", 0.02)


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """The script's main function in this process."""
    sys.path.insert(0, str(_ROOT / "scripts"))
    try:
        ranking = importlib.import_module("ranking")
    finally:
        sys.path.remove(str(_ROOT / "scripts"))
    try:
        code = ranking.main(ranking.COMMAND, [str(argument) for argument in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.csv with a header, test.txt without one."""
    directory = tmp_path_factory.mktemp("data")
    for name, data in (("train.csv", clicks(200)), ("test.txt", clicks(80, seed=1))):
        assert data.targets is not None
        lines = [
            ";".join(["" if v is None else "|".join(v) if isinstance(v, list) else str(v) for v in row.values()])
            + (";click." if target else ";none")
            for row, target in zip(data.rows(), data.targets, strict=True)
        ]
        header = ["hour;ad;zip;price;tags;clicked"] if name == "train.csv" else []
        (directory / name).write_text("\n".join(header + lines) + "\n")
    return directory


def test_train_evaluate_predict_export(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, train = tmp_path / "model", files / "train.csv"
    kinds = ("--kinds", "zip=categorical")
    labels = ("--target", "clicked", "--positive", "click")
    told = ("--validation", train, "--output", model, "--model", "dlrm", *_SMALL, *kinds, *labels)
    code, out, err = call(capsys, "train", "--train", train, *told)
    assert code == 0, err
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == ["validation", "saved", "baseline", "baseline"]
    assert "logistic regression" in lines[2]
    assert "gradient boosting" in lines[3]
    assert float(lines[0].split("auc")[1].split()[0]) > 0.8
    names = ("--names", "hour, ad, zip, price, tags, clicked")
    told = ("--data", files / "test.txt", "--json", tmp_path / "m.json", *names, *kinds, *labels)
    code, out, err = call(capsys, "evaluate", "--model", model, *told)
    assert code == 0, err
    assert out.startswith("80 rows, ")
    assert json.loads((tmp_path / "m.json").read_text())["auc"] > 0.7
    row = '{"hour": 3, "ad": "ad0", "zip": 101, "price": null, "tags": ["a"]}'
    code, out, err = call(capsys, "predict", "--model", model, row, f"@{files / 'test.txt'}", *names)
    assert code == 0, err
    answers = [json.loads(line) for line in out.splitlines()]
    assert answers[0]["input"] == json.loads(row)
    assert [answer["input"] for answer in answers[1:]] == list(range(1, 81))
    expected = Ranker.load(model).scores(clicks(80, seed=1))
    np.testing.assert_allclose([answer["score"] for answer in answers[1:]], expected, atol=1e-4)
    assert call(capsys, "export", "--model", model, "--output", tmp_path / "saved")[0] == 0
    # Kinds are those of training: one tag is a list, and a code with e between digits no number.
    rows = tmp_path / "rows.csv"
    rows.write_text("hour,ad,zip,price,tags,clicked\n3,ad0,1234e567,2,a,click\n3,ad0,1234e567,2,a,none\n")
    code, out, err = call(capsys, "predict", "--model", model, f"@{rows}")
    assert code == 0, err
    expected = Ranker.load(model).scores([{"hour": 3, "ad": "ad0", "zip": "1234e567", "price": 2, "tags": ["a"]}] * 2)
    np.testing.assert_allclose([json.loads(line)["score"] for line in out.splitlines()], expected, atol=1e-6)
    assert call(capsys, "evaluate", "--model", model, "--data", rows, *labels)[1].startswith("2 rows, 1 clicks")
    with rows.open("a") as stream:
        stream.write("3,ad0,1\n")
    code, _, err = call(capsys, "predict", "--model", model, f"@{rows}")
    assert code == 2
    assert "1 of 3 rows cannot be used; the first:" in err
    assert "rows.csv:4: expected 6 cells, received 3" in err
    code, _, err = call(
        capsys, "predict", "--model", model, row, "--engine", "ray", "--output", tmp_path / "answers.jsonl"
    )
    assert code == 2
    assert "not rows of tables or frames of films" in err


def test_mistakes_are_one_line_and_code_2(files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = ("train", "--train", files / "train.csv", "--output", tmp_path / "model")
    for arguments, part in [
        (train, "`train` has no targets to learn. Read it with `target=` (on the command line --target)"),
        ((*train, "--target", "clicked"), "targets are texts: click, none. Say which of them counts as 1"),
        ((*train, "--target", "bought"), "no column 'bought'"),
        ((*train, "--layout", "magic"), "must be table or criteo; received 'magic'"),
        ((*train, "--layout", "criteo"), "expected Criteo's 39 columns"),
        ((*train, "--crosses", "ad"), "A cross is two columns"),
        ((*train, "--preset", "x"), "unrecognized arguments: --preset"),
        (("predict", "row"), "`predict` needs --model DIR"),
    ]:
        code, out, err = call(capsys, *arguments)
        assert code == 2, (arguments, err)
        assert part in err
        assert "Traceback" not in err
        assert not out


def test_help_of_each_verb_fits_a_screen_and_needs_no_tensorflow() -> None:
    script = str(_ROOT / "scripts" / "ranking.py")
    environment = os.environ | {"PYTHONPATH": str(_ROOT), "COLUMNS": "110"}
    for verb in ("train", "predict"):
        command = [sys.executable, "-X", "importtime", script, verb, "--help"]
        child = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
        assert child.returncode == 0
        assert child.stdout.count("\n") <= 55, verb
        assert " tensorflow" not in child.stderr
