from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.recsys.test_sequential import RING, ring

_ROOT = Path(__file__).parents[2]
_SMALL = ("--dim", 16, "--num-layers", 1, "--max-length", 6, "--dropout", 0, "--weight-decay", 0, "--batch-size", 16,
          "--learning-rate", 0.02)  # fmt: skip


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """The script's main function in this process."""
    sys.path.insert(0, str(_ROOT / "scripts"))
    try:
        main = importlib.import_module("recommender").main
        command = importlib.import_module("sequential_recommendation").COMMAND
    finally:
        sys.path.remove(str(_ROOT / "scripts"))
    try:
        code = main(command, [str(argument) for argument in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = ring()
    assert data.timestamps is not None
    rows = zip(data.users, data.items, data.timestamps, strict=True)
    path = tmp_path_factory.mktemp("data") / "chosen.csv"
    path.write_text("user,item,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in rows))
    return path


def test_train_with_a_holdout_chooses_the_epoch_on_items_before_it(
    sequences: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    train = ("train", "--train", sequences, "--holdout", "leave_one_out", "--output", model, "--epochs", 20, *_SMALL)
    code, out, err = call(capsys, *train)
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].startswith("held out: leave_one_out, 45 users")
    assert [line.split()[0] for line in lines[1:]] == ["sasrec", "saved", "baselines", "popularity", "item_knn", "ease"]
    ndcg = [float(line.split("ndcg@10")[1].split()[0]) for line in lines[1:] if "ndcg@10" in line]
    assert ndcg[0] > 0.8
    assert ndcg[0] > ndcg[1]  # popularity
    log = [json.loads(line) for line in (tmp_path / "model.log.jsonl").read_text().splitlines()]
    assert "validation_ndcg@10" in log[-1]
    # The validation item is not in what was learned, and so it can be recommended.
    code, out, _ = call(capsys, "recommend", "--model", model, "--users", "u00,nobody", "--k", 2)
    answers = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert (answers[0]["items"][0], answers[0]["origin"]) == (RING[4], "model")
    assert answers[1]["origin"] == "popularity"
    assert call(capsys, "export", "--model", model, "--output", tmp_path / "saved")[0] == 0


def test_mistakes_are_one_line_and_code_2(sequences: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = ("train", "--train", sequences, "--output", tmp_path / "model")
    for arguments, part in [
        ((*train, "--dim", 10, "--num-heads", 4), "must divide `dim`"),
        ((*train, "--model", "magic"), "magic"),
        ((*train, "--loss", "sampled_softmax", "--label-smoothing", 0.1), "`label_smoothing` is for the loss over all"),
    ]:
        code, out, err = call(capsys, *arguments)
        assert code == 2, (arguments, err)
        assert part in err
        assert "Traceback" not in err
        assert not out


def test_help_of_each_verb_fits_a_screen_and_needs_no_tensorflow() -> None:
    script = str(_ROOT / "scripts" / "sequential_recommendation.py")
    environment = os.environ | {"PYTHONPATH": str(_ROOT), "COLUMNS": "110"}
    for verb in ("train", "recommend"):
        command = [sys.executable, "-X", "importtime", script, verb, "--help"]
        child = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
        assert child.returncode == 0
        assert child.stdout.count("\n") <= 55, verb
        assert " tensorflow" not in child.stderr
