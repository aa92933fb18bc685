from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

_ROOT = Path(__file__).parents[2]
_SCRIPT = str(_ROOT / "scripts" / "image_classification.py")


def run(*arguments: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, _SCRIPT, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(_ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """The script's main function in this process, where TensorFlow is loaded already."""
    from shared.cli import main

    sys.path.insert(0, str(_ROOT / "scripts"))
    try:
        command = importlib.import_module("image_classification").COMMAND
    finally:
        sys.path.remove(str(_ROOT / "scripts"))
    try:
        code = main(command, [str(argument) for argument in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures in two classes: bright and dark."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(40):
        name = "bright" if number % 2 else "dark"
        (root / name).mkdir(exist_ok=True)
        level = 200 if number % 2 else 40
        image = np.random.default_rng(number).normal(level, 15, (24, 30, 3)).clip(0, 255).astype(np.uint8)
        cv2.imwrite(str(root / name / f"{number}.jpg"), image)
    return root


_TINY = ("--image-size", 16, "--width", 4, "--epochs", 4, "--batch-size", 8, "--learning-rate", 0.01)


@pytest.fixture(scope="module")
def model(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run") / "model"
    result = run("train", "--train", photos, "--validation", photos, "--output", output, *_TINY)
    assert result.returncode == 0, result.stderr
    assert "saved" in result.stdout
    assert "epoch 4/4" in result.stderr
    assert not output.with_name("model.checkpoint").exists()
    assert len((output.parent / "model.log.jsonl").read_text().splitlines()) == 4
    return output


def test_evaluate_prints_the_table_and_writes_json(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = call(
        capsys, "evaluate", "--model", model, "--data", photos, "--json", tmp_path / "m.json", "--pictures", tmp_path
    )
    assert code == 0, err
    assert "bright" in out
    assert "accuracy" in out
    assert json.loads((tmp_path / "m.json").read_text())["accuracy"] >= 0.9
    assert cv2.imread(str(tmp_path / "confusion_matrix.png")) is not None


def test_predict_gives_one_json_line_an_input(model: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted((photos / "dark").iterdir())[:3]
    code, out, err = call(capsys, "predict", "--model", model, *files)
    assert code == 0, err
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["input"] for answer in answers] == [str(file) for file in files]
    assert all(answer["labels"][0] == "dark" for answer in answers)


def test_export(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "export", "--model", model, "--format", "onnx", "--output", tmp_path / "model.onnx")
    assert code == 0, err
    assert "largest difference" in out


_MISTAKES = [
    (("train", "--train", "NOWHERE", "--output", "OUT"), "nowhere"),
    (("train", "--train", "PHOTOS", "--output", "OUT", "--epochs", 0), "epochs"),
    (("train", "--train", "PHOTOS", "--output", "OUT", "--preset", "efficientnet_light0"), "efficientnet_lite0"),
    (("train", "--train", "PHOTOS", "--output", "OUT", "--nonsense", 1), "--nonsense"),
    (("predict", "--model", "MODEL", "TEXT"), "note.jpg: not a JPEG"),
    (("predict", "--model", "NOWHERE", "TEXT"), "no saved pipeline"),
    (("predict", "TEXT"), "--model DIR or --preset REF"),
    (("evaluate", "--model", "MODEL"), "--data"),
    (("juggle",), "juggle"),
]


@pytest.mark.parametrize(("arguments", "part"), _MISTAKES, ids=[part for _, part in _MISTAKES])
def test_user_mistakes_are_one_line_and_exit_code_2(
    arguments: tuple[object, ...],
    part: str,
    model: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = tmp_path / "note.jpg"
    text.write_text("no picture")
    places = {"NOWHERE": tmp_path / "nowhere", "OUT": tmp_path / "m", "PHOTOS": photos, "MODEL": model, "TEXT": text}
    code, _, err = call(capsys, *(places.get(str(argument), argument) for argument in arguments))
    assert code == 2, err
    (message,) = [line for line in err.splitlines() if line.startswith("error:")]
    assert part in message
    assert "Traceback" not in err


def test_help_fits_a_screen_and_does_not_wait_for_tensorflow() -> None:
    for verb in ("train", "predict"):
        start = time.monotonic()
        result = run(verb, "--help")
        assert result.returncode == 0
        # Importing TensorFlow alone takes longer than this on any machine that was tried.
        assert time.monotonic() - start < 4
        assert len(result.stdout.splitlines()) <= 66
    assert "--crop-scale" in run("train", "--help-all").stdout


def test_interrupted_run_names_the_command_that_resumes(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--train", photos, "--output", tmp_path / "model", *_TINY]
    arguments[arguments.index("--epochs") + 1] = 400
    environment = os.environ | {"PYTHONPATH": str(_ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    with subprocess.Popen(
        [sys.executable, _SCRIPT, *map(str, arguments)], stderr=subprocess.PIPE, text=True, env=environment
    ) as child:
        assert child.stderr is not None
        for line in child.stderr:
            if line.startswith("epoch 2/"):
                break
        child.send_signal(signal.SIGINT)
        rest = child.stderr.read()
        assert child.wait(timeout=120) == 130
    assert "SIGINT received" in rest
    assert "--resume" in rest.splitlines()[-1]
    code, _, err = call(capsys, *arguments)
    assert code == 2
    assert "--resume" in err
    code, _, err = call(capsys, *arguments, "--resume", "--momentum", 0.5)
    assert code == 2
    assert "training.momentum" in err


def test_several_labels_an_image(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, model = tmp_path / "table.csv", tmp_path / "model"
    lines = [f"{file},photo|{file.parent.name}" for file in sorted(photos.glob("*/*.jpg"))]
    table.write_text("\n".join(["image,label", *lines]))
    labels = ("--label-separator", "|")
    code, _, err = call(capsys, "train", "--train", table, "--output", model, "--multi-label", *labels, *_TINY)
    assert code == 0, err
    code, out, err = call(capsys, "evaluate", "--model", model, "--data", table, *labels)
    assert code == 0, err
    assert "macro_f1" in out
    assert (model / "labels.vocab.txt").read_text().split() == ["bright", "dark", "photo"]


def test_precision_is_picked_by_a_measurement_and_a_run_profiled(photos, tmp_path, capsys, monkeypatch):
    import keras

    import shared.runtime

    monkeypatch.setattr(shared.runtime, "_current", None)
    monkeypatch.setattr("shared.measuring._ROUNDS", 1)
    flags = [*_TINY, "--epochs", 1, "--precision", "auto", "--xla", "auto", "--profile"]
    code, out, err = call(capsys, "train", "--train", photos, "--output", tmp_path / "model", *flags)
    keras.config.set_dtype_policy("float32")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0].split() == ["precision", "xla", "ms/step", "relative", "first", "step", "loss"]
    assert sum(line.endswith("  picked") for line in lines) == 1
    assert any(line.startswith("picked ") and "for 5 steps" in line for line in lines)
    assert any(line.startswith("profile of 5 steps, 40 examples") for line in lines)
    assert (tmp_path / "model.profile" / "summary.txt").read_text() in out
