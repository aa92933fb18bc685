from __future__ import annotations

import gzip
import struct

import cv2
import numpy as np
import pytest

from vision.data import read_idx, read_image_csv, read_image_folder, read_images


def write_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((6, 6, 3), 90, np.uint8))
    return path


def empty_file(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def idx(array):
    return struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


IMAGES = np.arange(3 * 4 * 5).reshape(3, 4, 5)
LABELS = np.array([2, 0, 1])


# A folder per class.


def test_folders_are_classes_in_sorted_order(tmp_path):
    for name in ("dog/2.jpg", "dog/10.png", "cat/deep/er/1.JPG", "cat/.hidden.jpg", ".git/x.jpg", "cat/notes.txt"):
        path = tmp_path / name
        if path.suffix == ".txt":
            path.write_text("no image")
        else:
            write_image(path)
    examples = read_image_folder(tmp_path)
    assert [path.removeprefix(str(tmp_path)) for path in examples.inputs] == [
        "/cat/deep/er/1.JPG",
        "/dog/10.png",
        "/dog/2.jpg",
    ]
    assert list(examples.targets) == ["cat", "dog", "dog"]
    assert examples.bad_records == ()


def test_an_empty_file_is_reported_and_left_out(tmp_path, caplog):
    write_image(tmp_path / "cat" / "1.jpg")
    (tmp_path / "cat" / "2.jpg").touch()
    examples = read_image_folder(tmp_path)
    assert len(examples) == 1
    assert str(examples.bad_records[0]) == f"{tmp_path}/cat/2.jpg: the file is empty (0 bytes)"
    assert f"1 of 2 images cannot be used, the first: {tmp_path}/cat/2.jpg: the file is empty" in caplog.text


def test_a_broken_link_is_reported(tmp_path):
    write_image(tmp_path / "cat" / "1.jpg")
    (tmp_path / "cat" / "2.jpg").symlink_to(tmp_path / "gone.jpg")
    assert [record.reason for record in read_image_folder(tmp_path).bad_records] == ["there is no such file"]


def test_too_many_bad_images_are_an_error(tmp_path):
    write_image(tmp_path / "cat" / "1.jpg")
    for name in ("2.jpg", "3.jpg"):
        (tmp_path / "cat" / name).touch()
    with pytest.raises(ValueError, match=r"2 of 3 images cannot be used; the first: .*/cat/2\.jpg"):
        read_image_folder(tmp_path)
    assert len(read_image_folder(tmp_path, max_bad_share=0.7)) == 1


def test_splits_are_not_taken_for_classes(tmp_path):
    for name in ("train/cat/1.jpg", "test/cat/1.jpg"):
        write_image(tmp_path / name)
    with pytest.raises(ValueError, match=r"holds splits \(test, train\) and not classes. Read one of them, such as"):
        read_image_folder(tmp_path)
    # A railway is no split.
    write_image(tmp_path / "bus" / "1.jpg")
    assert set(read_image_folder(tmp_path).targets) == {"bus", "train", "test"}


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda root: root / "missing", FileNotFoundError, "There is nothing at"),
        (lambda root: write_image(root / "a.jpg"), ValueError, "is a file; expected a directory"),
        (lambda root: root, ValueError, "has no class folders"),
        (lambda root: (root / "cat").mkdir() or root, ValueError, "has no image"),
        (
            lambda root: empty_file(root / "cat" / "1.jpg").parent.parent,
            ValueError,
            "cat has no image that can be used",
        ),
    ],
)
def test_folders_that_cannot_be_read(tmp_path, make, error, words):
    with pytest.raises(error, match=words):
        read_image_folder(make(tmp_path))


# CSV.


@pytest.mark.parametrize(
    "text",
    [
        "image,label\na.jpg,cat\nb.jpg,dog\n",
        "Label;FileName\r\ncat;a.jpg\r\ndog;b.jpg\r\n",
        "\ufeffpath\tclass\na.jpg\tcat\nb.jpg\tdog",
        'image,label\n"a.jpg","cat"\n\n"b.jpg", dog \n',
    ],
)
def test_csv_dialects(tmp_path, text):
    for name in ("a.jpg", "b.jpg"):
        write_image(tmp_path / name)
    (tmp_path / "list.csv").write_text(text, encoding="utf-8")
    examples = read_image_csv(tmp_path / "list.csv")
    assert list(examples.inputs) == [str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")]
    assert list(examples.targets) == ["cat", "dog"]


def test_csv_with_several_labels(tmp_path):
    write_image(tmp_path / "a.jpg")
    (tmp_path / "list.csv").write_text("image,labels\na.jpg,cat| dog\na.jpg,\n")
    assert list(read_image_csv(tmp_path / "list.csv", label_separator="|").targets) == [("cat", "dog"), ()]


def test_csv_columns_may_be_named(tmp_path):
    write_image(tmp_path / "a.jpg")
    (tmp_path / "list.csv").write_text("photo,kind,label\na.jpg,cat,7\n")
    examples = read_image_csv(tmp_path / "list.csv", image_column="photo", label_column="kind")
    assert list(examples.targets) == ["cat"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("gone.jpg,cat", "gone.jpg: there is no such file"),
        (f"{'x' * 300}.jpg,cat", "there is no such file"),
        (",cat", "no image path"),
        ("a.jpg,", "no label"),
        ("a.jpg", "no label"),
        ("empty.jpg,cat", "the file is empty (0 bytes)"),
    ],
)
def test_bad_csv_lines_are_named_and_tolerated_up_to_a_share(tmp_path, line, reason):
    write_image(tmp_path / "a.jpg")
    (tmp_path / "empty.jpg").touch()
    file = tmp_path / "list.csv"
    file.write_text("image,label\n" + "a.jpg,cat\n" * 3 + line + "\n")
    examples = read_image_csv(file, max_bad_share=0.25)
    assert len(examples) == 3
    assert examples.bad_records[0].where == f"{file}:5"
    assert reason in examples.bad_records[0].reason
    file.write_text("image,label\na.jpg,cat\n" + (line + "\n") * 2)
    with pytest.raises(ValueError, match=r"2 of 3 lines cannot be used; the first: .*list\.csv:3"):
        read_image_csv(file)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "has no column image or path"),
        (b"image,label\n", "no lines of data"),
        (b"picture,label\na.jpg,cat\n", "no column image or path .*its header line has picture, label"),
        (b"image,name\na.jpg,cat\n", "no column label or labels"),
        (b"image,label\n\xff\xfe.jpg,cat\n", "is not UTF-8"),
        (b"image,label\n" + b"x" * 200_000 + b",cat\n", "is no CSV text after line 1"),
    ],
)
def test_csv_files_that_cannot_be_read(tmp_path, content, words):
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_image_csv(tmp_path / "list.csv")


def test_a_missing_csv(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"list\.csv"):
        read_image_csv(tmp_path / "list.csv")


# IDX.


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_plain_and_zipped(tmp_path, ending):
    pack = gzip.compress if ending else bytes
    (tmp_path / f"train-images-idx3-ubyte{ending}").write_bytes(pack(idx(IMAGES)))
    (tmp_path / f"train-labels-idx1-ubyte{ending}").write_bytes(pack(idx(LABELS)))
    examples = read_idx(tmp_path)
    assert np.shape(examples.inputs) == (3, 4, 5, 1)
    np.testing.assert_array_equal(np.asarray(examples.inputs)[..., 0], IMAGES)
    assert list(examples.targets) == ["2", "0", "1"]
    assert list(read_idx(tmp_path, labels=["shirt", "shoe", "bag"]).targets) == ["bag", "shirt", "shoe"]
    with pytest.raises(ValueError, match="has class 2, but only 1 `labels`"):
        read_idx(tmp_path, labels=["shirt"])
    with pytest.raises(FileNotFoundError, match="t10k-images-idx3-ubyte"):
        read_idx(tmp_path, split="test")
    with pytest.raises(ValueError, match="must be 'train' or 'test'"):
        read_idx(tmp_path, split="validation")


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (idx(IMAGES)[:-1], idx(LABELS), "has 75 bytes; its header promises 76"),
        (idx(IMAGES) + b"x", idx(LABELS), "has 77 bytes"),
        (idx(IMAGES)[:7], idx(LABELS), "no IDX file of 3 dimensions"),
        (b"", idx(LABELS), "no IDX file"),
        (idx(LABELS), idx(LABELS), "no IDX file of 3 dimensions"),
        (idx(IMAGES), idx(LABELS[:2]), "3 images and .* 2 labels"),
        (gzip.compress(idx(IMAGES), mtime=0)[:-9], idx(LABELS), "truncated or damaged gzip"),
        (gzip.compress(idx(IMAGES), mtime=0)[:12] + b"\xff" * 40, idx(LABELS), "truncated or damaged gzip"),
    ],
)
def test_idx_files_that_cannot_be_read(tmp_path, images, labels, words):
    (tmp_path / "images").write_bytes(images)
    (tmp_path / "labels").write_bytes(labels)
    with pytest.raises(ValueError, match=words):
        read_idx(tmp_path / "images", tmp_path / "labels")


def test_idx_needs_its_labels(tmp_path):
    (tmp_path / "images").write_bytes(idx(IMAGES))
    with pytest.raises(ValueError, match="`labels_path` is needed"):
        read_idx(tmp_path / "images")


# Whatever is there.


def test_the_layout_is_found_out(tmp_path):
    write_image(tmp_path / "folders" / "cat" / "1.jpg")
    (tmp_path / "list.tsv").write_text("image\tlabel\nfolders/cat/1.jpg\tdog\n")
    (tmp_path / "idx").mkdir()
    (tmp_path / "idx" / "t10k-images-idx3-ubyte").write_bytes(idx(IMAGES))
    (tmp_path / "idx" / "t10k-labels-idx1-ubyte").write_bytes(idx(LABELS))
    assert list(read_images(tmp_path / "folders").targets) == ["cat"]
    assert list(read_images(tmp_path / "list.tsv").targets) == ["dog"]
    assert list(read_images(tmp_path / "idx", split="test").targets) == ["2", "0", "1"]
    with pytest.raises(FileNotFoundError, match="There is nothing at"):
        read_images(tmp_path / "nowhere")
