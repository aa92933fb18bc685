"""The reference for pixels is pycocotools, run here on the same polygons and run lengths."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from shared import TrainingConfig
from shared.examples import BadExampleError
from tests.vision.test_detection_data import annotation, coco, image, reasons
from vision import ImageSegmenter, ImageSegmenterConfig
from vision.annotations import IGNORED
from vision.coco_masks import MaskObject, compressed_runs, read_coco_masks
from vision.segmentation_data import read_masks

_DATA = Path(os.environ.get("TRIPTYCH_DATA", Path(__file__).parents[2].parent / "shared" / "data"))

SQUARE = [[10, 10, 30, 10, 30, 30, 10, 30]]


def thing(number, where, shape, category=3, **more):
    return annotation(number, where, [1, 1, 5, 5], category, segmentation=shape, **more)


def runs_of(pixels):
    """Uncompressed run lengths of a bool (H, W)."""
    flat = pixels.T.reshape(-1)
    counts = np.diff([0, *(np.flatnonzero(flat[1:] != flat[:-1]) + 1), flat.size]).tolist()
    return {"size": list(pixels.shape), "counts": [0, *counts] if flat[0] else counts}


def reference(shape, height, width):
    from pycocotools import mask

    parts = mask.frPyObjects(shape, height, width)
    return mask.decode(mask.merge(parts) if isinstance(parts, list) else parts).astype(bool)


def random_polygons(rng, height, width):
    count = int(rng.integers(1, 4))
    points = [rng.uniform(-5, 1.1 * max(height, width), (int(rng.integers(3, 9)), 2)) for _ in range(count)]
    return [np.round(part, 2).reshape(-1).tolist() for part in points]


@pytest.mark.parametrize("seed", range(8))
def test_pixels_are_those_of_pycocotools(seed):
    from pycocotools import mask

    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(20, 60, 2))
    polygons = random_polygons(rng, height, width)
    ours = MaskObject(1, polygons=tuple(map(tuple, polygons))).pixels(height, width)
    np.testing.assert_array_equal(ours, reference(polygons, height, width))
    pixels = cv2.blur(rng.random((height, width)), (5, 5)) > 0.5
    plain = runs_of(pixels)
    np.testing.assert_array_equal(MaskObject(1, runs=tuple(plain["counts"])).pixels(height, width), pixels)
    np.testing.assert_array_equal(reference(plain, height, width), pixels)
    packed = mask.encode(np.asfortranarray(pixels.astype(np.uint8)))["counts"].decode()
    assert compressed_runs(packed) == plain["counts"]


@pytest.mark.parametrize("text", ["\x10", "o", "2o", "p", "é"])
def test_strings_that_are_no_runs_are_refused(text):
    with pytest.raises(BadExampleError, match=r"no string of run lengths|ends within a number"):
        compressed_runs(text)


def test_instances_become_classes(tmp_path):
    inside = [[15, 15, 20, 15, 20, 20, 15, 20]]
    examples = read_coco_masks(coco(tmp_path, [thing(5, 2, inside, 7), thing(6, 2, SQUARE)]))
    assert [Path(path).name for path in examples.inputs] == ["1.jpg", "2.jpg"]
    assert examples.targets[0].labels == ("background", "cat", "dog", "unused")
    empty, mask = (target.read((80, 100)) for target in examples.targets)
    assert not empty.any()
    assert (mask.dtype, mask[12, 12], mask[17, 17], mask[40, 40]) == (np.uint8, 1, 2, 0)  # the smaller one on top
    assert ((mask > 0).sum(), (mask == 2).sum()) == (400, 25)


def test_crowds_are_ignored_or_filled(tmp_path):
    pixels = np.zeros((80, 100), bool)
    pixels[5:50, 5:50] = True
    file = coco(tmp_path, [thing(5, 1, SQUARE), thing(6, 1, runs_of(pixels), 7, iscrowd=1)])
    ignored = read_coco_masks(file).targets[0].read()
    assert (ignored[7, 7], ignored[20, 20], ignored[60, 60]) == (IGNORED, 1, 0)
    filled = read_coco_masks(file, crowds="fill").targets[0].read()
    assert (filled[7, 7], filled[20, 20], filled[60, 60]) == (2, 1, 0)
    with pytest.raises(ValueError, match="must be 'ignore' or 'fill'; received 'drop'"):
        read_coco_masks(file, crowds="drop")


def test_some_categories_may_be_chosen(tmp_path):
    file = coco(tmp_path, [thing(5, 1, SQUARE), thing(6, 2, SQUARE, 7)])
    examples = read_masks(file, classes=["dog"])
    assert examples.targets[0].labels == ("background", "dog")
    assert [target.read()[20, 20] for target in examples.targets] == [0, 1]
    with pytest.raises(ValueError, match=r"no category 'horse'\. Categories: cat, dog, unused"):
        read_coco_masks(file, classes=["horse"])
    with pytest.raises(ValueError, match="`colours` would have no effect"):
        read_masks(file, colours=[0, 255])


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (None, "must be polygons or run lengths; there is none"),
        ([], "there is none"),
        ("polygon", "there is none"),
        ([[1, 2, 3, 4]], "three or more finite points"),
        ([[1, 2, 3, 4, 5, 6, 7]], "three or more finite points"),
        ([[1, 2, 3, 4, 5, "6"]], "three or more finite points"),
        ([[1, 2, 3, 4, 5, float("nan")]], "three or more finite points"),
        ([[1, 2, 3, 4, 5, 1e9]], "lies far outside the image of 100x80 pixels"),
        ({"size": [100, 80], "counts": [8000]}, "`segmentation.size` must be that of the image, [80, 100]"),
        ({"size": [80, 100], "counts": [0, 7999]}, "cover 7999 pixels of 8000"),
        ({"size": [80, 100], "counts": [9000, -1000]}, "must be whole numbers of pixels"),
        ({"size": [80, 100], "counts": [1.5]}, "must be whole numbers of pixels"),
        ({"size": [80, 100]}, "must be whole numbers of pixels"),
        ({"size": [80, 100], "counts": "o"}, "ends within a number"),
    ],
)
def test_an_image_with_a_bad_annotation_is_left_out_by_name(tmp_path, shape, reason):
    file = coco(tmp_path, [thing(9, 1, shape), thing(8, 2, SQUARE)])
    examples = read_coco_masks(file)
    assert [Path(path).name for path in examples.inputs] == ["2.jpg"]
    assert reasons(examples)[0].startswith(f"{tmp_path}/tiny/1.jpg: {file}, annotation 9: ")
    assert reason in reasons(examples)[0]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (thing(9, 5, SQUARE), "annotation 9: its image 5 is not in `images`"),
        (thing(9, 1, SQUARE, 4), "annotation 9: its category 4 is not in `categories`"),
        (thing(9, 1, SQUARE, iscrowd=2), "annotation 9: `iscrowd` must be 0 or 1; it is 2"),
        ("nonsense", "annotation without id at place 1: its image None is not in `images`"),
    ],
)
def test_bad_entries_are_reported(tmp_path, bad, reason):
    examples = read_coco_masks(coco(tmp_path, [thing(8, 2, SQUARE), bad]), max_bad_share=0.5)
    assert reason in reasons(examples)[0]


def test_a_file_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"instances_tiny\.json has no images"):
        read_coco_masks(coco(tmp_path, [], images=[]))


def test_bad_images_are_reported(tmp_path):
    entries = [1, 2, image(1, file_name="x.jpg"), image(4), {"id": 5}]
    examples = read_coco_masks(coco(tmp_path, [], entries), max_bad_share=0.7)
    assert len(examples) == 2
    assert [text.rpartition(": ")[2] for text in reasons(examples)] == [
        "the id is that of 1.jpg",
        "it must have `id` and `file_name`",
        "there is no such file",
    ]


def test_an_image_of_another_size_is_named(tmp_path):
    target = read_coco_masks(coco(tmp_path, [])).targets[0]
    with pytest.raises(BadExampleError, match=r"tiny\.json, image 1: the mask has 100x80 pixels and its image 4x3"):
        target.read((3, 4))


def test_too_many_categories_need_a_choice(tmp_path):
    categories = [{"id": number, "name": f"c{number}"} for number in range(300)]
    file = coco(tmp_path, [], categories=categories)
    with pytest.raises(ValueError, match="300 categories; a mask has at most 254"):
        read_coco_masks(file)
    assert len(read_coco_masks(file, classes=["c7"]).targets[0].labels) == 2


def test_a_segmenter_learns_from_a_coco_file(tmp_path):
    """Bright squares on dark ground, as polygons."""
    (tmp_path / "images").mkdir()
    content = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "square"}]}
    for number in range(8):
        picture, x = np.full((48, 64, 3), 40, np.uint8), 4 + 4 * number
        picture[10:34, x : x + 24] = (60, 60, 230)
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), picture)
        content["images"].append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 48})
        polygon = [x, 10, x + 24, 10, x + 24, 34, x, 34]
        content["annotations"].append(
            {"id": number, "image_id": number, "category_id": 1, "segmentation": [polygon], "iscrowd": 0}
        )
    (tmp_path / "squares.json").write_text(json.dumps(content))
    data = read_coco_masks(tmp_path / "squares.json")
    segmenter = ImageSegmenter(
        ImageSegmenterConfig(image_height=48, image_width=64, width=8, decoder_channels=8, scale_jitter=1.0)
    )
    segmenter.fit(data, training=TrainingConfig(epochs=10, batch_size=4, learning_rate=4e-3))
    assert tuple(segmenter.labels) == ("background", "square")
    assert segmenter.evaluate(data).first > 0.8


@pytest.mark.skipif(not (_DATA / "coco-tiny").is_dir(), reason="needs coco-tiny in TRIPTYCH_DATA")
@pytest.mark.parametrize("split", ["train", "val"])
def test_coco_tiny(split):
    from pycocotools import mask

    file = _DATA / "coco-tiny" / "annotations" / f"instances_{split}2017.json"
    examples = read_coco_masks(file)
    assert (len(examples), len(examples.targets[0].labels), examples.bad_records) == (80, 81, ())
    content = json.loads(file.read_text())
    stated = {entry["id"]: (entry["height"], entry["width"]) for entry in content["images"]}
    crowds = [thing for thing in content["annotations"] if thing["iscrowd"]]
    assert crowds
    for target in examples.targets[::8]:
        drawn = target.read()
        number = int(target.path.rpartition(" ")[2])
        covered = np.zeros(stated[number], bool)
        for entry in content["annotations"]:
            if entry["image_id"] == number:
                parts = mask.frPyObjects(entry["segmentation"], *stated[number])
                covered |= mask.decode(mask.merge(parts) if isinstance(parts, list) else parts).astype(bool)
        np.testing.assert_array_equal(drawn > 0, covered)
