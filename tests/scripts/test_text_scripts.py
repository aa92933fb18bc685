from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]
_SMALL = ("--hidden-size", 16, "--num-layers", 1, "--num-heads", 2, "--vocab-size", 200, "--batch-size", 8)


def call(capsys: pytest.CaptureFixture[str], script: str, *arguments: object) -> tuple[int, str, str]:
    """A script's main function in this process, where TensorFlow is loaded already."""
    from shared.cli import main

    sys.path.insert(0, str(_ROOT / "scripts"))
    try:
        command = importlib.import_module(script).COMMAND
    finally:
        sys.path.remove(str(_ROOT / "scripts"))
    try:
        code = main(command, [str(argument) for argument in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    good, bad = ("a fine film", "i liked it, truly", "warm and funny"), ("a dull film", "i hated it", "cold, slow")
    rows = [
        f'"{text} {i}",{label}' for i in range(4) for label, texts in (("good", good), ("bad", bad)) for text in texts
    ]
    path = tmp_path / "reviews.csv"
    path.write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def names(tmp_path: Path) -> Path:
    lines = []
    for person in ("Ada", "Alan", "Grace", "Emmy"):
        for place in ("London", "Paris", "Rome"):
            lines += [f"{person} B-PER", "saw O", f"{place} B-LOC", ". O", ""]
    path = tmp_path / "names.conll"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_text_classification_from_train_to_predict(capsys, tmp_path, reviews):
    script, model = "text_classification", tmp_path / "model"
    training = ("--epochs", 25, "--learning-rate", 0.01, "--output", model)
    code, out, err = call(capsys, script, "train", "--train", reviews, "--validation", reviews, *_SMALL, *training)
    assert code == 0, err
    assert "validation  accuracy" in out
    assert "baseline    accuracy" in out
    assert "logistic regression on TF-IDF" in out

    scores = tmp_path / "scores.json"
    code, out, err = call(capsys, script, "evaluate", "--model", model, "--data", reviews, "--json", scores)
    assert code == 0, err
    assert "precision" in out
    assert json.loads(scores.read_text())["accuracy"] > 0.9

    (tmp_path / "more.txt").write_text("a fine film\n\ncold, slow\n", encoding="utf-8")
    code, out, err = call(capsys, script, "predict", "--model", model, "warm and funny", f"@{tmp_path / 'more.txt'}")
    assert code == 0, err
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["input"] for answer in answers] == ["warm and funny", "a fine film", "", "cold, slow"]
    assert [answers[i]["labels"][0] for i in (0, 1, 3)] == ["good", "good", "bad"]


@pytest.mark.parametrize(
    ("flag", "labels", "name"),
    [
        ("--multi-label", ("warm|short", "short", "warm", "none"), "logistic regression"),
        ("--regression", ("0.5", "1", "4.5", "3"), "ridge regression"),
    ],
)
def test_other_targets_have_a_baseline_too(capsys, tmp_path, flag, labels, name):
    table, model = tmp_path / "table.tsv", tmp_path / "model"
    rows = [f"a film number {i} of kind {i % 4}\t{labels[i % 4]}" for i in range(40)]
    table.write_text("text\tlabel\n" + "\n".join(rows) + "\n", encoding="utf-8")
    data = ("--train", table, "--validation", table, "--output", model)
    separator = ("--label-separator", "|") if flag == "--multi-label" else ()
    code, out, err = call(
        capsys, "text_classification", "train", *data, flag, *separator, "--epochs", 1, "--learning-rate", 0.01, *_SMALL
    )
    assert code == 0, err
    (line,) = [line for line in out.splitlines() if line.startswith("baseline")]
    assert name in line
    assert ("pearson" if flag == "--regression" else "macro_f1") in line
    code, _, err = call(capsys, "text_classification", "predict", "--model", model, "a film")
    assert code == 0, err


def test_a_baseline_that_fails_costs_no_model(capsys, tmp_path, reviews, monkeypatch):
    def fail(*_, **__):
        raise ValueError("empty vocabulary")

    monkeypatch.setattr("nlp.baselines.tfidf_baseline", fail)
    data = ("--train", reviews, "--validation", reviews, "--output", tmp_path / "model")
    code, out, err = call(capsys, "text_classification", "train", *data, "--epochs", 1, *_SMALL)
    assert code == 0, err
    assert "baseline    not measured: empty vocabulary" in out
    code, _, err = call(capsys, "text_classification", "predict", "--model", tmp_path / "model", "a film")
    assert code == 0, err


def test_a_table_without_labels_says_which_flag_names_them(capsys, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("id,text,kind_of\n1,fine,a\n2,poor,b\n", encoding="utf-8")
    code, _, err = call(capsys, "text_classification", "train", "--train", table, "--output", tmp_path / "m", *_SMALL)
    assert code == 2
    assert "--label-column" in err


def test_columns_of_a_table_are_named_by_flags(capsys, tmp_path):
    table, model = tmp_path / "table.csv", tmp_path / "model"
    table.write_text("id;remark;kind\n1;fine;a|b\n2;poor;b\n3;good;a\n", encoding="utf-16")
    flags = ("--text-column", "remark", "--label-column", "kind", "--label-separator", "|", "--encoding", "utf-16")
    training = ("--multi-label", "--epochs", 1, *_SMALL)
    code, _, err = call(capsys, "text_classification", "train", "--train", table, "--output", model, *flags, *training)
    assert code == 0, err


def test_named_entity_recognition_from_train_to_predict(capsys, tmp_path, names):
    script, model = "named_entity_recognition", tmp_path / "model"
    training = ("--epochs", 12, "--learning-rate", 0.01, "--output", model)
    code, out, err = call(capsys, script, "train", "--train", names, "--validation", names, *_SMALL, *training)
    assert code == 0, err
    assert "validation  f1" in out

    code, out, err = call(capsys, script, "evaluate", "--model", model, "--data", names)
    assert code == 0, err
    assert "PER" in out

    code, out, err = call(capsys, script, "predict", "--model", model, "Emmy saw Rome.")
    assert code == 0, err
    found = json.loads(out)["entities"]
    assert [(entity["text"], entity["label"]) for entity in found] == [("Emmy", "PER"), ("Rome", "LOC")]


def test_translation_from_train_to_predict(capsys, tmp_path):
    english, german = ("one", "two", "three", "four"), ("eins", "zwei", "drei", "vier")
    for language, words in (("en", english), ("de", german)):
        lines = [f"{words[i]} {words[j]}." for i in range(4) for j in range(4) for _ in range(4)]
        (tmp_path / f"data.{language}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    script, model = "translation", tmp_path / "model"
    data = (tmp_path / "data", "--source-language", "en", "--target-language", "de")
    sizes = (*_SMALL[:-4], "--vocab-size", 300, "--max-length", 32, "--num-beams", 2, "--batch-tokens", 128)
    training = ("--epochs", 80, "--learning-rate", 0.01, "--dropout", 0, "--output", model)
    code, out, err = call(
        capsys, script, "train", "--train", data[0], "--validation", *data, *sizes, "--hidden-size", 32, *training
    )
    assert code == 0, err
    assert "validation  bleu" in out
    assert "IBM model 1" in out

    code, out, err = call(capsys, script, "evaluate", "--model", model, "--data", *data)
    assert code == 0, err
    assert "bleu: nrefs:1|case:mixed" in out

    code, _, err = call(capsys, script, "predict", "--model", model, "--language", "fra", "two three.")
    assert code == 2
    assert "fra" in err
    code, out, err = call(capsys, script, "predict", "--model", model, "--num-answers", 2, "two three.")
    assert code == 0, err
    answer = json.loads(out)
    assert answer["text"] == "zwei drei."
    assert len(answer["alternatives"]) == 1


@pytest.mark.parametrize("script", ["text_classification", "named_entity_recognition", "translation"])
@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("train", "--train", "nowhere.csv", "--output", "x"), "nowhere.csv"),
        (("predict", "--model", "nowhere", "text"), "nowhere"),
        (("predict", "--preset", "minilm_l7", "text"), "minilm_l6"),
        (("predict", "--preset", "marian_tiny_pt", "text"), "marian_tiny_pt_en"),
        (("train", "--train", "x"), "--output"),
        (("train", "--train", "x", "--output", "y", "--epochs", "0"), "epochs"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(capsys, script, arguments, part):
    code, _, err = call(capsys, script, *arguments)
    assert code == 2
    assert part in err
    assert "Traceback" not in err


@pytest.mark.parametrize("script", ["text_classification", "named_entity_recognition", "translation"])
def test_help_is_short(capsys, script):
    code, out, _ = call(capsys, script, "train", "--help")
    assert code == 0
    assert "--preset" in out
    assert len(out.splitlines()) <= 62
