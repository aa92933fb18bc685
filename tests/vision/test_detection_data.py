from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from vision.detection_data import coco_labels, read_coco, read_pascal_voc

_DATA = Path(os.environ.get("TRIPTYCH_DATA", Path(__file__).parents[2].parent / "shared" / "data"))


def write_image(path, width=100, height=80):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((height, width, 3), np.uint8))
    return path


def reasons(examples):
    return [str(bad) for bad in examples.bad_records]


# COCO.

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 90, "name": "unused"}]


def annotation(number, image, box, category=3, **more):
    return {"id": number, "image_id": image, "bbox": box, "category_id": category, "iscrowd": 0, **more}


def image(number, **more):
    return {"id": number, "file_name": f"{number}.jpg", "width": 100, "height": 80, **more}


def coco(root, annotations, images=(1, 2), *, files=(1, 2), categories=CATEGORIES):
    """A COCO file in `root`/annotations and the images `files` where COCO has them."""
    for number in files:
        write_image(root / "tiny" / f"{number}.jpg")
    file = root / "annotations" / "instances_tiny.json"
    file.parent.mkdir(exist_ok=True)
    entries = [image(entry) if isinstance(entry, int) else entry for entry in images]
    file.write_text(json.dumps({"images": entries, "annotations": annotations, "categories": categories}))
    return file


def test_coco_boxes_become_edges_and_images_without_any_are_kept(tmp_path):
    polygon = {"segmentation": [[1, 2, 3, 4, 5, 6]], "area": 4.5}
    runs = {"segmentation": {"size": [80, 100], "counts": [0, 8000]}}
    boxes = [
        annotation(5, 2, [10, 20, 30.5, 40], **polygon),
        annotation(6, 2, [0, 0, 100, 80], 7, **{**runs, "iscrowd": 1}),
    ]
    file = coco(tmp_path, boxes)
    examples = read_coco(file)
    assert list(examples.inputs) == [f"{tmp_path}/tiny/1.jpg", f"{tmp_path}/tiny/2.jpg"]
    assert len(examples.targets[0]) == 0
    second = examples.targets[1]
    assert second.boxes.tolist() == [[10, 20, 40.5, 60], [0, 0, 100, 80]]
    assert (second.labels, second.crowd.tolist()) == (("cat", "dog"), [False, True])
    assert examples.bad_records == ()


def test_coco_labels_are_in_the_order_of_ids(tmp_path):
    assert coco_labels(coco(tmp_path, [])) == ("cat", "dog", "unused")


@pytest.mark.parametrize(
    "place", ["tiny/{}.jpg", "annotations/{}.jpg", "images/tiny/{}.jpg", "images/{}.jpg", "annotations/images/{}.jpg"]
)
def test_coco_images_are_looked_for(tmp_path, place):
    file = coco(tmp_path, [], files=())
    for number in (1, 2):
        write_image(tmp_path / place.format(number))
    assert list(read_coco(file).inputs) == [str(tmp_path / place.format(number)) for number in (1, 2)]


def test_coco_images_may_be_named(tmp_path):
    file = coco(tmp_path, [], files=())
    with pytest.raises(FileNotFoundError, match=r"None of the images of .* \(such as 1\.jpg\) is in .*as `images`"):
        read_coco(file)
    for number in (1, 2):
        write_image(tmp_path / "elsewhere" / f"{number}.jpg")
    assert len(read_coco(file, tmp_path / "elsewhere")) == 2


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (annotation(9, 5, [1, 1, 5, 5]), "annotation 9: its image 5 is not in `images`"),
        ({"id": 9, "bbox": [1, 1, 5, 5], "category_id": 3}, "annotation 9: its image None is not in `images`"),
        (annotation(9, 1, [1, 1, 5, 5], 4), "annotation 9: its category 4 is not in `categories`"),
        (annotation(9, 5, [1, 1, 5, 5], 4), "annotation 9: its image 5 is not in `images`"),
        (annotation(9, 1, [1, 1, 5]), "annotation 9: `bbox` must be [left, top, width, height], four finite numbers"),
        (annotation(9, 1, [1, 1, 5, float("nan")]), "four finite numbers; it is [1, 1, 5, nan]"),
        (annotation(9, 1, [1, 1, 5, "5"]), "four finite numbers; it is [1, 1, 5, '5']"),
        (annotation(9, 1, None), "four finite numbers; it is None"),
        (annotation(9, 1, [1, 1, 5, 5], iscrowd=2), "annotation 9: `iscrowd` must be 0 or 1; it is 2"),
        (annotation(9, 1, [1, 1, 0, 5]), "annotation 9: box (1, 1, 1, 6) has no area in the image of 100x80 pixels"),
        (annotation(9, 1, [9, 9, -5, 5]), "annotation 9: box (9, 9, 4, 14) has no area"),
        (annotation(9, 1, [200, 1, 5, 5]), "annotation 9: box (200, 1, 205, 6) lies outside the image"),
        ("nonsense", "annotation without id at place 1: its image None"),
    ],
)
def test_a_bad_coco_annotation_is_reported_and_others_kept(tmp_path, bad, reason):
    file = coco(tmp_path, [annotation(8, 1, [1, 1, 5, 5]), bad])
    examples = read_coco(file)
    assert [len(objects) for objects in examples.targets] == [1, 0]
    assert len(examples.bad_records) == 1
    assert reasons(examples)[0].startswith(f"{file}, annotation")
    assert reason in reasons(examples)[0]


def test_a_coco_box_that_overruns_is_clipped_and_reported(tmp_path):
    file = coco(tmp_path, [annotation(8, 1, [90, 70, 20, 20])])
    examples = read_coco(file)
    assert examples.targets[0].boxes.tolist() == [[90, 70, 100, 80]]
    assert reasons(examples) == [
        f"{file}, annotation 8: box (90, 70, 110, 90) overruns the image of 100x80 pixels by 10; clipped"
    ]


def test_an_image_whose_annotations_are_all_bad_is_left_out(tmp_path):
    file = coco(tmp_path, [annotation(8, 1, [1, 1, 0, 0]), annotation(9, 2, [1, 1, 5, 5])])
    examples = read_coco(file)
    assert list(examples.inputs) == [f"{tmp_path}/tiny/2.jpg"]
    assert reasons(examples)[0] == f"{tmp_path}/tiny/1.jpg: none of its 1 boxes can be used"


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (image(4), "tiny/4.jpg: there is no such file"),
        ({"id": 4}, "image 4: it must have `id` and `file_name`"),
        ({"file_name": "4.jpg"}, "image without id at place 2: it must have `id` and `file_name`"),
        (image(1, file_name="x.jpg"), "image 1: x.jpg: the id is that of 1.jpg"),
        (image(3, width=0), "tiny/3.jpg: the file is empty (0 bytes)"),
    ],
)
def test_a_bad_coco_image_is_reported(tmp_path, entry, reason):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "3.jpg").touch()
    examples = read_coco(coco(tmp_path, [annotation(8, 1, [1, 1, 5, 5])], [1, 2, entry]))
    assert len(examples) == 2
    assert len(examples.bad_records) == 1
    assert reasons(examples)[0].endswith(reason)


def test_without_a_stated_size_the_image_tells(tmp_path):
    entries = [{"id": 1, "file_name": "1.jpg"}, 2]
    examples = read_coco(coco(tmp_path, [annotation(8, 1, [90, 70, 20, 20])], entries))
    assert examples.targets[0].boxes.tolist() == [[90, 70, 100, 80]]
    (tmp_path / "tiny" / "1.jpg").write_bytes(b"no picture")
    assert "not a JPEG, PNG" in reasons(read_coco(tmp_path / "annotations" / "instances_tiny.json"))[0]


def test_too_many_bad_coco_annotations_are_an_error(tmp_path):
    bad = [annotation(number, 5, [1, 1, 5, 5]) for number in (8, 9)]
    file = coco(tmp_path, [annotation(7, 1, [1, 1, 5, 5]), *bad])
    with pytest.raises(ValueError, match=r"2 of 3 boxes cannot be used; the first: .*, annotation 8: its image 5"):
        read_coco(file)
    assert len(read_coco(file, max_bad_share=0.7)) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"images": [],\n "annotations": }', r"tiny\.json:2 is no JSON"),
        ("[]", "no COCO file of instances: .*; it is a JSON list"),
        ('{"images": [], "categories": []}', "it lacks annotations"),
        ('{"images": [], "annotations": [], "categories": {}}', "it lacks categories"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": "1", "name": "a"}]}',
            "category 0 must have",
        ),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}',
            "category 1 'b' has the id or the name of another",
        ),
        (b"\xff\xfe\xfd\xfc", r"tiny\.json is not UTF-8 text|is no JSON"),
    ],
)
def test_coco_files_that_are_refused(tmp_path, text, words):
    file = tmp_path / "tiny.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=words):
        read_coco(file)


def test_an_annotation_that_is_there_twice_is_reported(tmp_path):
    one, other = annotation(7, 1, [1, 1, 5, 5]), annotation(7, 2, [2, 2, 5, 5])
    examples = read_coco(coco(tmp_path, [one, dict(one), other]))
    assert [objects.boxes.tolist() for objects in examples.targets] == [[[1, 1, 6, 6]], [[2, 2, 7, 7]]]
    assert reasons(examples) == [f"{tmp_path}/annotations/instances_tiny.json, annotation 7: it is there twice"]


def test_a_coco_file_without_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"instances_tiny\.json has no images"):
        read_coco(coco(tmp_path, [], images=[]))


def test_a_coco_file_must_be_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is nothing at"):
        read_coco(tmp_path / "gone.json")


# Pascal VOC.


def voc_object(box=(11, 21, 40, 60), name="cat", difficult="0"):
    names = ("xmin", "ymin", "xmax", "ymax")
    edges = "".join(f"<{key}>{value}</{key}>" for key, value in zip(names, box, strict=True))
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{edges}</bndbox></object>"


SIZE = "<size><width>100</width><height>80</height><depth>3</depth></size>"


def voc(root, annotations, lists=None):
    """A VOC directory with images of all `annotations` (texts within <annotation>, by name)."""
    (root / "Annotations").mkdir()
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for name, text in annotations.items():
        write_image(root / "JPEGImages" / f"{name}.jpg")
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{text}</annotation>", encoding="utf-8")
    for split, names in (lists or {"train": "\n".join(annotations)}).items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(names)
    return root


def test_voc_counts_from_one(tmp_path):
    root = voc(tmp_path, {"a": SIZE + voc_object() + voc_object((1, 1, 100, 80), "dög"), "b": SIZE})
    examples = read_pascal_voc(root)
    assert list(examples.inputs) == [f"{root}/JPEGImages/a.jpg", f"{root}/JPEGImages/b.jpg"]
    assert examples.targets[0].boxes.tolist() == [[10, 20, 40, 60], [0, 0, 100, 80]]
    assert examples.targets[0].labels == ("cat", "dög")
    assert len(examples.targets[1]) == 0
    assert read_pascal_voc(root, first_pixel=0).targets[0].boxes.tolist() == [[11, 21, 40, 60], [1, 1, 100, 80]]


def test_voc_lists(tmp_path):
    lists = {"train": "b\r\na\n\nb\n", "cat_val": "a  1\nb -1\n", "one": "two words\n"}
    root = voc(tmp_path, {"a": SIZE, "b": SIZE, "two words": SIZE}, lists)

    def names(split):
        return [Path(path).stem for path in read_pascal_voc(root, split=split).inputs]

    assert names("train") == ["b", "a"]
    assert names("cat_val") == ["a", "b"]
    assert names("one") == ["two words"]
    assert names(None) == ["a", "b", "two words"]
    with pytest.raises(FileNotFoundError, match=r"no list .*test\.txt\. Lists that are there: cat_val, one, train"):
        names("test")


def test_an_empty_list_is_refused(tmp_path):
    root = voc(tmp_path, {"a": SIZE}, {"train": "\n"})
    with pytest.raises(ValueError, match=r"has no images\. Check the path"):
        read_pascal_voc(root)


def test_voc_difficult_objects(tmp_path):
    root = voc(tmp_path, {"a": SIZE + voc_object() + voc_object((1, 1, 9, 9), difficult="1")})
    assert read_pascal_voc(root).targets[0].crowd.tolist() == [False, True]
    assert read_pascal_voc(root, difficult="keep").targets[0].crowd.tolist() == [False, False]
    assert read_pascal_voc(root, difficult="drop").targets[0].boxes.tolist() == [[10, 20, 40, 60]]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (voc_object((50, 50, 50, 50)), "object 2: the box (50, 50, 50, 50) has no area"),
        (voc_object((50, 50, 40, 60)), "object 2: the box (50, 50, 40, 60) has no area"),
        (voc_object((1, 2, 3, "four")), "object 2: <bndbox> must have xmin, ymin, xmax and ymax, numbers"),
        (voc_object((1, 2, 3, "inf")), "object 2: <bndbox> must be finite; it is ['1', '2', '3', 'inf']"),
        (voc_object(name=" "), "object 2: it has no <name>"),
        ("<object><name>cat</name></object>", "object 2: <bndbox> must have"),
        (voc_object((200, 1, 210, 9)), "object 2: box (199, 0, 210, 9) lies outside the image of 100x80 pixels"),
        (
            voc_object((91, 1, 110, 9)),
            "object 2: box (90, 0, 110, 9) overruns the image of 100x80 pixels by 10; clipped",
        ),
    ],
)
def test_a_bad_voc_object_is_reported_and_others_kept(tmp_path, bad, reason):
    root = voc(tmp_path, {"a": SIZE + voc_object() + bad})
    examples = read_pascal_voc(root)
    assert examples.targets[0].boxes[0].tolist() == [10, 20, 40, 60]
    assert len(examples.targets[0]) == (2 if "clip" in reason else 1)
    assert len(examples.bad_records) == 1
    assert reasons(examples)[0].startswith(f"{root}/Annotations/a.xml, {reason}")


BOMB = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;">]><annotation><object><name>&y;</name></object></annotation>'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB.encode(), "it has a document type (a), which could expand without end. Remove <!DOCTYPE>"),
        (BOMB.encode("utf-16"), "it has a document type (a)"),
        (b"<annotation><object></annotation>", "is no XML (mismatched tag"),
        (b"<annotation>&y;</annotation>", "is no XML (undefined entity"),
        (b"", "is no XML (no element found"),
        (b"<html></html>", "its root is <html>, expected <annotation>"),
        (None, "there is no such file"),
    ],
)
def test_a_voc_file_that_cannot_be_read_is_reported(tmp_path, text, reason):
    root = voc(tmp_path, {"a": SIZE + voc_object(), "b": SIZE})
    file = root / "Annotations" / "b.xml"
    file.unlink() if text is None else file.write_bytes(text)
    examples = read_pascal_voc(root)
    assert list(examples.inputs) == [f"{root}/JPEGImages/a.jpg"]
    assert reasons(examples)[0].startswith(f"{file}: {reason}")


def test_voc_images_that_are_missing_empty_or_without_stated_size(tmp_path):
    root = voc(tmp_path, {name: voc_object((91, 1, 110, 9)) for name in "abc"})
    (root / "JPEGImages" / "a.jpg").unlink()
    (root / "JPEGImages" / "b.jpg").write_bytes(b"")
    examples = read_pascal_voc(root, max_bad_share=0.9)
    assert reasons(examples)[:2] == [
        f"{root}/JPEGImages/a.jpg: there is no such file",
        f"{root}/JPEGImages/b.jpg: the file is empty (0 bytes)",
    ]
    # The image itself is 100 pixels wide.
    assert examples.targets[0].boxes.tolist() == [[90, 0, 100, 9]]


def test_voc_images_of_another_format(tmp_path):
    root = voc(tmp_path, {"a": SIZE})
    (root / "JPEGImages" / "a.jpg").unlink()
    write_image(root / "JPEGImages" / "a.PNG")
    assert list(read_pascal_voc(root).inputs) == [f"{root}/JPEGImages/a.PNG"]


def test_too_many_bad_voc_objects_are_an_error(tmp_path):
    bad = voc_object((50, 50, 50, 50))
    root = voc(tmp_path, {"a": SIZE + voc_object() + bad + bad})
    with pytest.raises(ValueError, match=r"2 of 3 boxes cannot be used; the first: .*a\.xml, object 2: the box"):
        read_pascal_voc(root)
    assert len(read_pascal_voc(root, max_bad_share=0.7).targets[0]) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"difficult": "maybe"}, "`difficult` must be 'ignore', 'keep' or 'drop'; received 'maybe'"),
        ({"first_pixel": 2}, "`first_pixel` must be 0 or 1; received 2"),
    ],
)
def test_voc_options(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        read_pascal_voc(voc(tmp_path, {"a": SIZE}), **options)


def test_a_voc_directory_must_have_its_parts(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is nothing at .*Annotations"):
        read_pascal_voc(tmp_path)


# Real data.


@pytest.mark.skipif(not (_DATA / "bccd").is_dir(), reason="needs bccd in TRIPTYCH_DATA")
def test_bccd():
    splits = {split: read_pascal_voc(_DATA / "bccd", split=split) for split in ("train", "val", "test")}
    assert [len(examples) for examples in splits.values()] == [205, 87, 72]
    # Two of the 4,888 have no area.
    assert sum(len(objects) for examples in splits.values() for objects in examples.targets) == 4888 - 2
    places = [bad.where for examples in splits.values() for bad in examples.bad_records]
    assert [Path(place).name for place in places] == [
        "BloodImage_00343.xml, object 4",
        "BloodImage_00338.xml, object 13",
    ]
    assert {label for objects in splits["test"].targets for label in objects.labels} == {"RBC", "WBC", "Platelets"}


@pytest.mark.skipif(not (_DATA / "coco-tiny").is_dir(), reason="needs coco-tiny in TRIPTYCH_DATA")
@pytest.mark.parametrize(("split", "count", "crowds"), [("train", 705, 6), ("val", 815, 11)])
def test_coco_tiny(split, count, crowds):
    file = _DATA / "coco-tiny" / "annotations" / f"instances_{split}2017.json"
    examples = read_coco(file)
    assert (len(examples), examples.bad_records) == (80, ())
    assert sum(len(objects) for objects in examples.targets) == count
    assert sum(int(objects.crowd.sum()) for objects in examples.targets) == crowds
    labels = coco_labels(file)
    assert (len(labels), labels[0], labels[-1]) == (80, "person", "toothbrush")
