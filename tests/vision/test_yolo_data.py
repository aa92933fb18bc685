from __future__ import annotations

import cv2
import numpy as np
import pytest

from vision.yolo_data import read_yolo


def write_image(path, width=100, height=80):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((height, width, 3), np.uint8))
    return path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def yolo(root, labels, *, split="train", names="names: [cat, dog]\n"):
    """A data file in `root` and images with these label files (texts by name; None: none) in its usual folders."""
    for name, text in labels.items():
        write_image(root / "images" / split / f"{name}.jpg")
        if text is not None:
            write(root / "labels" / split / f"{name}.txt", text)
    return write(root / "data.yaml", f"path: .\n{split}: images/{split}\n{names}")


def reasons(examples):
    return [str(bad) for bad in examples.bad_records]


BOX = "1 0.5 0.5 0.2 0.5\n"


def test_shares_become_pixels(tmp_path):
    file = yolo(tmp_path, {"a": f"{BOX}\n0 0.1 0.25 0.2 0.5\r\n", "b": "", "c": None})
    examples = read_yolo(file)
    assert list(examples.inputs) == [f"{tmp_path}/images/train/{name}.jpg" for name in "abc"]
    np.testing.assert_allclose(examples.targets[0].boxes, [[40, 20, 60, 60], [0, 0, 20, 40]], atol=1e-5)
    assert examples.targets[0].labels == ("dog", "cat")
    # Without a label file, and with an empty one.
    assert [len(objects) for objects in examples.targets] == [2, 0, 0]
    assert examples.bad_records == ()


def test_polygons_become_the_boxes_around_them(tmp_path):
    file = yolo(tmp_path, {"a": "0 0.1 0.5 0.4 0.25 0.3 0.75\n"})
    np.testing.assert_allclose(read_yolo(file).targets[0].boxes, [[10, 20, 40, 60]], atol=1e-5)


def test_a_turned_photograph_is_measured_as_it_is_seen(tmp_path):
    file = yolo(tmp_path, {"a": BOX})
    path = tmp_path / "images" / "train" / "a.jpg"
    data = path.read_bytes()
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    segment = b"Exif\0\0" + tiff
    path.write_bytes(data[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + data[2:])
    # 80 pixels wide and 100 high.
    np.testing.assert_allclose(read_yolo(file).targets[0].boxes, [[32, 25, 48, 75]], atol=1e-5)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("cat 0.5 0.5 0.1 0.1", "expected a class number and shares of the image, received 'cat 0.5 0.5 0.1 0.1'"),
        ("0 0.5 0.5 0.1", "(a polygon), received 3 numbers"),
        ("0", "received 0 numbers"),
        ("0 0.5 0.5 0.1 0.1 0.9", "(a polygon), received 5 numbers"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "received 7 numbers"),
        ("2 0.5 0.5 0.1 0.1", "class 2 has no name; there are 2 names"),
        ("-1 0.5 0.5 0.1 0.1", "class -1 has no name"),
        ("0.5 0.5 0.5 0.1 0.1", "class 0.5 has no name"),
        ("nan 0.5 0.5 0.1 0.1", "class nan has no name"),
        ("0 50 40 10 10", "numbers must be shares of the image, 0 to 1, received '0 50 40 10 10'"),
        ("0 0.5 0.5 -0.1 0.1", "numbers must be shares"),
        ("0 0.5 0.5 nan 0.1", "numbers must be shares"),
        ("0 0.5 0.5 0 0.1", "has no area in the image of 100x80 pixels"),
        ("0 1.0 0.5 0.2 0.1", "box (90, 36, 110, 44) overruns the image of 100x80 pixels by 10; clipped"),
    ],
)
def test_a_bad_line_is_reported_and_others_kept(tmp_path, line, reason):
    file = yolo(tmp_path, {"a": f"{BOX}\n{line}\n"})
    examples = read_yolo(file)
    assert len(examples.targets[0]) == (2 if "clipped" in reason else 1)
    assert len(examples.bad_records) == 1
    assert reasons(examples)[0].startswith(f"{tmp_path}/labels/train/a.txt:3: ")
    assert reason in reasons(examples)[0]


def test_bad_images_are_reported(tmp_path):
    file = yolo(tmp_path, {"a": BOX, "b": BOX, "c": BOX, "d": BOX, "e": "0 9 9 9 9"})
    images, labels = tmp_path / "images" / "train", tmp_path / "labels" / "train"
    (images / "b.jpg").write_bytes(b"")
    (images / "c.jpg").write_bytes(b"no picture")
    (labels / "d.txt").write_bytes(b"\xff\xfe")
    examples = read_yolo(file, max_bad_share=0.9)
    assert list(examples.inputs) == [f"{images}/a.jpg"]
    assert reasons(examples)[:2] == [
        f"{images}/b.jpg: the file is empty (0 bytes)",
        f"{images}/c.jpg: not a JPEG, PNG, GIF, BMP, WebP or TIFF image (it begins with b'no pictu')",
    ]
    assert reasons(examples)[2] == f"{images}/d.jpg: its label file {labels}/d.txt is not UTF-8 text (byte 0)"
    assert reasons(examples)[3] == f"{images}/e.jpg: none of its 1 boxes can be used"
    with pytest.raises(ValueError, match=r"4 of 5 images cannot be used; the first: .*b\.jpg"):
        read_yolo(file)


def test_too_many_bad_lines_are_an_error(tmp_path):
    file = yolo(tmp_path, {"a": BOX + "9 0 0 0 0\n9 0 0 0 0\n"})
    with pytest.raises(ValueError, match=r"2 of 3 boxes cannot be used; the first: .*a\.txt:2: class 9 has no name"):
        read_yolo(file)
    assert len(read_yolo(file, max_bad_share=0.7)) == 1


# Data files.


@pytest.mark.parametrize(
    ("names", "label"),
    [
        ("names: [cat, dog]\nnc: 2\n", "dog"),
        ("names:\n  0: cat\n  1: dog\n", "dog"),
        ("names: {7: cat, 1: 5}\n", "5"),
    ],
)
def test_names_are_a_list_or_by_number(tmp_path, names, label):
    assert read_yolo(yolo(tmp_path, {"a": BOX}, names=names)).targets[0].labels == (label,)
    assert read_yolo(tmp_path, labels=["one", "two"]).targets[0].labels == ("two",)


@pytest.mark.parametrize(
    "text",
    [
        "train: images/train\n",
        "path: {root}\ntrain: images/train\n",
        "path: ../somewhere/else\ntrain: images/train\n",
        "train: [images/train]\n",
        "train: ../images/train\n",
        "train: list.txt\n",
        "train: images/train/a.jpg\n",
        "val: none\ntrain: {root}/images/train\n",
    ],
)
def test_images_of_a_split_are_found(tmp_path, text):
    root = tmp_path / "data"
    yolo(root, {"a": BOX})
    write(root / "list.txt", "./images/train/a.jpg\n\n")
    write(root / "data.yaml", text.format(root=root) + "names: [cat, dog]\n")
    examples = read_yolo(root)
    assert [str(path).replace("/./", "/") for path in examples.inputs] == [f"{root}/images/train/a.jpg"]
    assert examples.targets[0].labels == ("dog",)


@pytest.mark.parametrize("split", ["val", "valid", "validation"])
def test_the_validation_split_has_several_names(tmp_path, split):
    assert len(read_yolo(yolo(tmp_path, {"a": BOX}, split="valid"), split=split)) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("names: [cat", r"data\.yaml is no YAML"),
        ("!!python/object/apply:os.getcwd []", r"data\.yaml is no YAML \(could not determine a constructor"),
        ("- train", r"data\.yaml must hold keys such as train, val and names; it is list"),
        ("val: images\nnames: [cat]", "has no images for 'train'; its keys are val, names"),
        ("train: images/train", "`names` must be a list of class names, or names by number; it is None"),
        ("train: images/train\nnames: {cat: 0}", "`names` must be a list"),
        ("train: images/train\nnames: [cat, cat]", "class names must differ; they are cat, cat"),
        ("train: images/train\nnc: 3\nnames: [cat, dog]", "`nc` is 3, but `names` has 2"),
    ],
)
def test_data_files_that_are_refused(tmp_path, text, words):
    yolo(tmp_path, {"a": BOX})
    with pytest.raises(ValueError, match=words):
        read_yolo(write(tmp_path / "data.yaml", text))


def test_a_folder_without_images_is_refused(tmp_path):
    file = yolo(tmp_path, {"a": BOX})
    (tmp_path / "images" / "train" / "a.jpg").unlink()
    with pytest.raises(ValueError, match=r"data\.yaml has no images. Check the path"):
        read_yolo(file)


def test_lists_in_another_encoding_are_refused(tmp_path):
    file = yolo(tmp_path, {"a": BOX}, names="names: [cat, dog]\ntest: list.txt\n")
    (tmp_path / "list.txt").write_bytes(b"./images/Stra\xdfe.jpg")
    with pytest.raises(ValueError, match=r"list\.txt is not UTF-8 text \(byte 13\)"):
        read_yolo(file, split="test")


def test_what_must_be_there(tmp_path):
    file = yolo(tmp_path, {"a": None})
    with pytest.raises(FileNotFoundError, match=r"None of the 1 images of .* has a label file, such as .*train/a\.txt"):
        read_yolo(file)
    with pytest.raises(FileNotFoundError, match="names images/gone, but there is nothing at"):
        read_yolo(write(tmp_path / "data.yaml", "train: images/gone\nnames: [cat]"))
    with pytest.raises(FileNotFoundError, match="There is nothing at"):
        read_yolo(tmp_path / "gone.yaml")
    with pytest.raises(ValueError, match="is no YAML file and no directory"):
        read_yolo(tmp_path / "images" / "train" / "a.jpg")
    with pytest.raises(ValueError, match="`split` must be 'train', 'val' or 'test'; received 'all'"):
        read_yolo(tmp_path, split="all")
    write(tmp_path / "other.yml", "")
    with pytest.raises(ValueError, match=r"several YAML files \(data\.yaml, other\.yml\)"):
        read_yolo(tmp_path)


# Directories without a data file.


@pytest.mark.parametrize(
    ("images", "labels"),
    [("images/train", "labels/train"), ("train/images", "train/labels"), ("images", "labels")],
)
@pytest.mark.parametrize("classes", ["classes.txt", "labels/classes.txt"])
def test_directories_are_read_by_their_layout(tmp_path, images, labels, classes):
    write_image(tmp_path / images / "a.jpg")
    write(tmp_path / labels / "a.txt", BOX)
    write(tmp_path / classes, "cat\ndog\n")
    examples = read_yolo(tmp_path)
    assert list(examples.inputs) == [f"{tmp_path}/{images}/a.jpg"]
    assert examples.targets[0].labels == ("dog",)


def test_directories_that_are_refused(tmp_path):
    write_image(tmp_path / "images" / "val" / "a.jpg")
    write(tmp_path / "labels" / "val" / "a.txt", BOX)
    with pytest.raises(FileNotFoundError, match=r"no YAML file and no images for 'train', as in .*images/train"):
        read_yolo(tmp_path, labels=["cat", "dog"])
    with pytest.raises(FileNotFoundError, match=r"neither a YAML file nor classes\.txt with the class names"):
        read_yolo(tmp_path, split="val")
    assert len(read_yolo(tmp_path, split="val", labels=["cat", "dog"])) == 1


def test_only_the_last_folder_of_images_has_labels_beside_it(tmp_path):
    root = tmp_path / "images" / "set"
    write_image(root / "images" / "a.jpg")
    write(root / "labels" / "a.txt", BOX)
    assert len(read_yolo(root, labels=["cat", "dog"]).targets[0]) == 1
