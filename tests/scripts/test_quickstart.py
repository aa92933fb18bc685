from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def quickstart(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import quickstart

    return quickstart


def test_the_demo_trains_scores_saves_and_draws(quickstart, capsys, tmp_path, monkeypatch):
    real = quickstart.TrainingConfig
    monkeypatch.setattr(quickstart, "TrainingConfig", lambda **options: real(**{**options, "epochs": 3}))
    quickstart.main(["--output", str(tmp_path / "demo")])
    out = capsys.readouterr().out
    (row,) = [line for line in out.splitlines() if line.startswith("vision")]
    accuracy = float(row.partition("accuracy ")[2].split()[0])
    assert accuracy > 0.8
    assert "logistic regression 0.9" in row
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {
        "digits-classifier", "digits-confusion.png", "digits-answers.png",
        "messages-classifier", "messages-answers.txt",
    }  # fmt: skip
    (row,) = [line for line in out.splitlines() if line.startswith("text")]
    assert float(row.partition("accuracy ")[2].split()[0]) > 0.3
    assert "TF-IDF and logistic regression 0." in row
    manifest = json.loads((tmp_path / "demo" / "digits-classifier" / "pipeline.json").read_text())
    assert manifest["task"] == "image_classification"
    assert manifest["metrics"]["accuracy"] == pytest.approx(accuracy, abs=1e-4)
