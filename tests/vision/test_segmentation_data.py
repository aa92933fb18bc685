from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from vision.annotations import IGNORED
from vision.segmentation_data import read_mask_folder

_DATA = Path(os.environ.get("TRIPTYCH_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def write(path, pixels=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((4, 6), np.uint8) if pixels is None else np.asarray(pixels, np.uint8))
    return path


def folders(root, names=("a", "b")):
    for name in names:
        write(root / "images" / f"{name}.jpg")
        write(root / "masks" / f"{name}.png")
    return root / "images", root / "masks"


def reasons(examples):
    return [str(bad) for bad in examples.bad_records]


def test_pairs_by_name_in_folders_of_any_depth(tmp_path):
    images, masks = folders(tmp_path, ["b", "deep/er/b", "a"])
    (masks / "notes.txt").write_text("no mask")
    examples = read_mask_folder(images, masks, classes=["sky", "road"])
    assert [Path(path).relative_to(images).as_posix() for path in examples.inputs] == [
        "a.jpg",
        "b.jpg",
        "deep/er/b.jpg",
    ]
    assert [Path(mask.path).relative_to(masks).as_posix() for mask in examples.targets] == [
        "a.png",
        "b.png",
        "deep/er/b.png",
    ]
    assert {mask.labels for mask in examples.targets} == {("sky", "road")}
    assert examples.bad_records == ()
    assert examples.targets[0].read((4, 6)).tolist() == np.zeros((4, 6)).tolist()


def test_what_has_no_partner_is_reported(tmp_path):
    images, masks = folders(tmp_path)
    write(images / "c.jpg")
    write(masks / "d.png")
    examples = read_mask_folder(images, masks, classes=["sky"], max_bad_share=0.5)
    assert len(examples) == 2
    assert reasons(examples) == [
        f"{images}/c.jpg: it has no mask, expected {masks}/c.png",
        f"{masks}/d.png: the mask has no image in {images}",
    ]
    with pytest.raises(ValueError, match=r"2 of 4 images and masks cannot be used; the first: .*c\.jpg: it has"):
        read_mask_folder(images, masks, classes=["sky"])


def test_files_that_cannot_be_used_are_reported(tmp_path):
    images, masks = folders(tmp_path, ["a", "b", "c", "d"])
    (masks / "a.png").write_bytes(b"")
    (masks / "b.png").rename(masks / "b.jpg")
    (images / "c.jpg").write_bytes(b"")
    write(images / "d.png")
    examples = read_mask_folder(images, masks, classes=["sky"], max_bad_share=0.9)
    assert len(examples) == 1
    assert reasons(examples) == [
        f"{images}/d.png: d.jpg has the same name without its suffix",
        f"{images}/a.jpg: its mask {masks}/a.png: the file is empty (0 bytes)",
        f"{images}/b.jpg: its mask {masks}/b.jpg is no PNG; convert it, from a format without loss",
        f"{images}/c.jpg: the file is empty (0 bytes)",
    ]


@pytest.mark.parametrize("place", ["masks/classes.txt", "classes.txt", "../classes.txt"])
def test_classes_are_found_near_the_masks(tmp_path, place):
    images, masks = folders(tmp_path / "train")
    (tmp_path / "train" / place).write_text("0 sky\n1 traffic light\n\n11 rest (ignore)\n")
    coding = read_mask_folder(images, masks).targets[0].coding
    assert (coding.labels, coding.values, coding.ignored) == (("sky", "traffic light"), (0, 1), (11,))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sky\nroad\n", (("sky", "road"), (0, 1), ())),
        ("\ufeffsky\r\nroad (ignored)\r\ncar", (("sky", "car"), (0, 2), (1,))),
        ("7 sky\n26 car 2\n", (("sky", "car 2"), (7, 26), ())),
        ("128 64 128\tsky\n0 0 0 void (Ignore)", (("sky",), ((128, 64, 128),), ((0, 0, 0),))),
    ],
)
def test_lists_of_classes(tmp_path, text, expected):
    images, masks = folders(tmp_path)
    (tmp_path / "names.txt").write_text(text, encoding="utf-8")
    coding = read_mask_folder(images, masks, classes=tmp_path / "names.txt").targets[0].coding
    assert (coding.labels, coding.values, coding.ignored) == expected


def test_a_class_that_is_ignored_is_left_out(tmp_path):
    images, masks = folders(tmp_path, ["a"])
    write(masks / "a.png", [[0, 1, 2], [2, 255, 1]])
    mask = read_mask_folder(images, masks, classes=["void", "cat", "dog"], ignore=(0, 255)).targets[0]
    assert mask.labels == ("cat", "dog")
    assert mask.read().tolist() == [[IGNORED, 0, 1], [1, IGNORED, 0]]


def test_black_and_white_masks(tmp_path):
    images, masks = folders(tmp_path, ["a"])
    write(masks / "a.png", [[0, 255]])
    mask = read_mask_folder(images, masks, classes=["background", "nucleus"], colours=(0, 255)).targets[0]
    assert mask.read().tolist() == [[0, 1]]


def test_colours_with_one_that_is_ignored(tmp_path):
    images, masks = folders(tmp_path, ["a"])
    # OpenCV writes blue first.
    write(masks / "a.png", [[[0, 0, 128], [192, 224, 224], [0, 0, 0]]])
    colours, border = [(0, 0, 0), (128, 0, 0)], (224, 224, 192)
    mask = read_mask_folder(images, masks, classes=["none", "plane"], colours=colours, ignore=[border]).targets[0]
    assert mask.read().tolist() == [[1, IGNORED, 0]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\n", r"names\.txt has no classes"),
        ("sky\n3\n", r"names\.txt:2: expected a class name, .*; received '3'"),
        ("1 2 sky", r"names\.txt:1: expected a class name"),
        ("1 2 256 sky", r"names\.txt:1: expected a class name, .* up to 255"),
        ("sky\nsky", "`labels` must differ from one another; 'sky' is given twice"),
        ("1 sky\n1 road", "`values` must differ from one another; 1 is given twice"),
        ("sky\n1 2 3 road", "all pixel values or all colours"),
        ("0 rest (ignore)", "1 to 255 classes; received 0"),
    ],
)
def test_lists_of_classes_that_are_refused(tmp_path, text, words):
    images, masks = folders(tmp_path)
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(ValueError, match=words):
        read_mask_folder(images, masks, classes=tmp_path / "names.txt")


def test_a_list_of_classes_in_another_encoding(tmp_path):
    images, masks = folders(tmp_path)
    (tmp_path / "names.txt").write_bytes("Stra\xdfe".encode("latin-1"))
    with pytest.raises(ValueError, match=r"names\.txt is not UTF-8 text \(byte 4\)"):
        read_mask_folder(images, masks, classes=tmp_path / "names.txt")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"colours": [0, 1, 2]}, "2 classes need as many `colours`; received 3"),
        ({"colours": [0, (1, 2)]}, r"A colour must be \(red, green, blue\) or a grey, .*; received \(1, 2\)"),
        ({"colours": [0, 256]}, "A colour must be .*; received 256"),
        ({"colours": [0, 255], "ignore": (224, 224, 192)}, r"received \(224, 224, 192\). Put one colour in a list"),
        ({"ignore": [(224, 224, 192)]}, "`ignore` must be pixel values, for classes have no colours"),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, words):
    images, masks = folders(tmp_path)
    with pytest.raises(ValueError, match=words):
        read_mask_folder(images, masks, classes=["sky", "road"], **options)


def test_folders_and_classes_must_be_there(tmp_path):
    images, masks = folders(tmp_path / "train" / "one")
    with pytest.raises(FileNotFoundError, match=r"There is no classes\.txt in .*masks, beside it"):
        read_mask_folder(images, masks)
    with pytest.raises(FileNotFoundError, match=r"There is nothing at .*gone"):
        read_mask_folder(images, tmp_path / "gone", classes=["sky"])
    with pytest.raises(FileNotFoundError, match=r"There is nothing at .*names\.txt"):
        read_mask_folder(images, masks, classes=tmp_path / "names.txt")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="none has no images and masks"):
        read_mask_folder(tmp_path / "none", tmp_path / "none", classes=["sky"])


# Real data.


@pytest.mark.skipif(not (_DATA / "camvid").is_dir(), reason="needs camvid in TRIPTYCH_DATA")
@pytest.mark.parametrize(("split", "count"), [("train", 367), ("val", 101), ("test", 233)])
def test_camvid(split, count):
    examples = read_mask_folder(_DATA / "camvid" / split, _DATA / "camvid" / f"{split}annot")
    assert (len(examples), examples.bad_records) == (count, ())
    mask = examples.targets[0]
    assert (len(mask.labels), mask.labels[0], mask.labels[10], mask.coding.ignored) == (11, "Sky", "Bicyclist", (11,))
    assert set(np.unique(mask.read((360, 480)))) <= {*range(11), IGNORED}


@pytest.mark.skipif(not (_DATA / "nuclei-dsb2018").is_dir(), reason="needs nuclei-dsb2018 in TRIPTYCH_DATA")
@pytest.mark.parametrize(("split", "count"), [("train", 265), ("test", 69)])
def test_nuclei(split, count):
    root = _DATA / "nuclei-dsb2018" / split
    examples = read_mask_folder(root / "images", root / "masks", classes=["background", "nucleus"], colours=(0, 255))
    assert (len(examples), examples.bad_records) == (count, ())
    read = examples.targets[0].read((256, 256))
    # The objects are numbered in 16 bits in a folder of their own.
    instances = cv2.imread(str(root / "instances" / Path(examples.targets[0].path).name), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(read == 1, instances > 0)
