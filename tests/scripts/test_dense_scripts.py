"""The scripts of detection and segmentation, from files to files."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.vision.test_detection import shapes
from tests.vision.test_segmentation import scenes

_ROOT = Path(__file__).parents[2]


@pytest.fixture
def call(capsys, monkeypatch):
    """Run a script's main function in this process: (exit code, stdout, stderr)."""
    from shared.cli import main

    monkeypatch.syspath_prepend(str(_ROOT / "scripts"))

    def run(script, *arguments):
        try:
            code = main(importlib.import_module(script).COMMAND, [str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def coco(tmp_path):
    """A COCO file with a bad box, an unused class, an image twice."""
    root = tmp_path / "coco"
    (root / "images").mkdir(parents=True)
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 1, "name": "disc"}, {"id": 2, "name": "square"}, {"id": 9, "name": "ring"}],
    }
    examples = shapes(12)
    for number, (image, target) in enumerate(zip(examples.inputs, examples.targets, strict=True)):
        cv2.imwrite(str(root / "images" / f"{number}.png"), image[..., ::-1])
        content["images"].append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 64})
        x, y, right, bottom = target.boxes[0].tolist()
        kind = 1 if target.labels[0] == "disc" else 2
        content["annotations"].append(
            {"id": number, "image_id": number, "category_id": kind, "bbox": [x, y, right - x, bottom - y]}
        )
    content["annotations"].append({"id": 99, "image_id": 0, "category_id": 1, "bbox": [5, 5, 0, 4]})
    (root / "images" / "12.png").write_bytes((root / "images" / "0.png").read_bytes())
    content["images"].append({"id": 12, "file_name": "12.png", "width": 64, "height": 64})
    (root / "shapes.json").write_text(json.dumps(content))
    return root / "shapes.json"


_TINY = ("--image-height", 64, "--image-width", 64, "--width", 4, "--epochs", 1, "--batch-size", 4)


def test_detection_from_files_to_pictures(call, coco, tmp_path):
    code, out, err = call("object_detection", "check", "--data", coco, "--pictures", tmp_path / "sheet")
    assert code == 0, err
    assert "13 images, 1 of them without an object; 12 objects" in out
    assert "1 classes without an object:\n  ring" in out
    assert "1 files that are equal byte for byte" in out
    assert "annotation 99" in out
    assert cv2.imread(str(tmp_path / "sheet" / "examples.png")).shape[2] == 3

    model = tmp_path / "model"
    options = ("--pyramid-channels", 8, "--head-depth", 0, "--max-bad-share", 0.2, "--threshold", 0.0)
    code, out, err = call(
        "object_detection", "train", "--train", coco, "--validation", coco, "--output", model, *_TINY, *options
    )
    assert code == 0, err
    assert "map_50" in out
    log = json.loads((tmp_path / "model.log.jsonl").read_text())
    assert {"validation_map", "validation_map_50", "validation_map_75"} <= log.keys()

    code, out, err = call("object_detection", "evaluate", "--model", model, "--data", coco, "--max-bad-share", 0.2)
    assert code == 0, err
    assert "6 objects" in out

    film = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter_fourcc(*"MJPG"), 5.0, (64, 64))
    for _ in range(3):
        writer.write(np.zeros((64, 64, 3), np.uint8))
    writer.release()
    code, out, err = call(
        "object_detection", "predict", "--model", model, "--pictures", tmp_path / "drawn", "--threshold", 0.05,
        coco.parent / "images" / "1.png", coco.parent / "images", film,
    )  # fmt: skip
    assert code == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert len(lines) == 1 + 13 + 3 == len(list((tmp_path / "drawn").iterdir()))
    assert lines[-1]["input"] == {"video": str(film), "seconds": 0.4}
    assert lines[0].keys() == {"input", "boxes", "labels", "scores"}
    assert {key: value for key, value in lines[0].items() if key != "input"} == {
        key: value for key, value in lines[2].items() if key != "input"
    }


def test_segmentation_from_files_to_pictures(call, tmp_path):
    data = tmp_path / "scenes"
    for name in ("images", "masks"):
        (data / name).mkdir(parents=True)
    examples = scenes(8)
    for number, (image, mask) in enumerate(zip(examples.inputs, examples.targets, strict=True)):
        cv2.imwrite(str(data / "images" / f"{number}.png"), image[..., ::-1])
        cv2.imwrite(str(data / "masks" / f"{number}.png"), mask)
    classes = ("--classes", "ground,square,disc,ring")
    code, out, err = call("image_segmentation", "check", "--data", data, *classes, "--pictures", tmp_path / "sheet")
    assert code == 0, err
    assert "8 images with masks, 4 classes" in out
    assert "1 classes that never occur:\n  ring" in out

    model = tmp_path / "model"
    options = (*_TINY, "--decoder-channels", 8, *classes)
    code, out, err = call(
        "image_segmentation", "train", "--train", data, "--validation", data, "--output", model, *options
    )
    assert code == 0, err
    assert "mean_iou" in out
    code, out, err = call("image_segmentation", "evaluate", "--model", model, "--data", data, *classes)
    assert code == 0, err
    assert "square" in out
    code, out, err = call(
        "image_segmentation", "predict", "--model", model, "--pictures", tmp_path / "drawn", data / "images"
    )
    assert code == 0, err
    assert [json.loads(line)["size"] for line in out.splitlines()] == [[48, 64]] * 8
    assert len(list((tmp_path / "drawn").iterdir())) == 8


def test_segmentation_from_a_coco_file(call, coco, tmp_path):
    content = json.loads(coco.read_text())
    content["annotations"] = [entry for entry in content["annotations"] if entry["id"] != 99]
    for entry in content["annotations"]:
        x, y, width, height = entry["bbox"]
        entry["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    coco.write_text(json.dumps(content))
    code, out, err = call("image_segmentation", "check", "--data", coco, "--pictures", tmp_path / "sheet")
    assert code == 0, err
    assert "13 images with masks, 4 classes" in out
    assert "background" in out
    assert "1 classes that never occur:\n  ring" in out
    options = ("--decoder-channels", 8, "--classes", "square,disc")
    code, out, err = call(
        "image_segmentation", "train", "--train", coco, "--output", tmp_path / "model", *_TINY, *options
    )
    assert code == 0, err
    labels = (tmp_path / "model" / "labels.vocab.txt").read_text().split()
    assert labels == ["background", "square", "disc"]


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("object_detection", ("check", "--data", "nowhere.json"), "nowhere.json"),
        ("object_detection", ("check", "--data", __file__), "no COCO JSON file"),
        ("object_detection", ("predict", "--preset", "efficientnet_lite0", "a.jpg"), "the classes must be given"),
        ("image_segmentation", ("check", "--data", "nowhere"), "nowhere"),
        ("image_segmentation", ("check", "--data", str(Path(__file__).parent)), "no folder of masks"),
    ],
)
def test_mistakes_are_one_line(call, script, arguments, message):
    code, _, err = call(script, *arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1


def test_colours_are_numbers():
    script = str(_ROOT / "scripts" / "image_segmentation.py")
    command = [sys.executable, script, "check", "--data", str(_ROOT), "--masks", str(_ROOT), "--colours", "a,b"]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(_ROOT)}
    )
    assert result.returncode == 2
    assert "numbers with commas between them" in result.stderr
