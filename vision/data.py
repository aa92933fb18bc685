"""Readers: image files on disk to raw (image, label) examples.

A reader lists and checks; pixels are decoded when they are needed. Images come as paths (or as arrays, from IDX),
labels as the user's own names; a tuple of names where an image has several.
"""

from __future__ import annotations

import csv
import gzip
import logging
import math
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shared.examples import BadRecord, Examples, existing_directory, existing_file, tolerated
from vision.images import SUFFIXES

logger = logging.getLogger(__name__)

_IMAGE_COLUMNS = ("image", "path", "file", "filename", "image_path", "file_name")
_LABEL_COLUMNS = ("label", "labels", "class", "category", "target")
_IDX_IMAGES, _IDX_LABELS = 2051, 2049
_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
_IDX_PREFIXES = {"train": ("train",), "test": ("t10k", "test")}


def read_images(
    path: str | Path, *, split: str = "train", label_separator: str | None = None, max_bad_share: float = 0.01
) -> Examples:
    """Examples at `path`, whatever its layout: a folder per class, a CSV file, or a directory of IDX files.

    Args:
        path: the directory or the CSV file.
        split: "train" or "test", for IDX directories, which hold both.
        label_separator: what separates several labels in a CSV field.
        max_bad_share: share of unusable records above which a folder or a CSV file is refused.

    Raises:
        FileNotFoundError: where there is nothing at `path`.
        ValueError: for a layout that is none of these.
    """
    path = Path(path)
    if path.is_file() and path.suffix.lower() in (".csv", ".tsv"):
        return read_image_csv(path, label_separator=label_separator, max_bad_share=max_bad_share)
    if path.is_dir() and any("-ubyte" in file.name for file in path.iterdir()):
        return read_idx(path, split=split)
    return read_image_folder(path, max_bad_share=max_bad_share)


def read_image_folder(path: str | Path, *, max_bad_share: float = 0.01) -> Examples:
    """Examples of a directory with one folder per class, whose name is the label; deeper folders belong to it.

    Files are taken in sorted order. Hidden files and those without an image suffix are passed over.

    Args:
        path: the directory.
        max_bad_share: share of empty files and broken links above which the directory is refused; below, they are
            reported as bad records.

    Raises:
        FileNotFoundError: where `path` is no directory.
        ValueError: where there are no class folders but splits or nothing, one of them has no image, or too many
            images are bad.
    """
    root = existing_directory(path)
    images: list[str] = []
    labels: list[str] = []
    bad: list[BadRecord] = []
    for folder in _class_folders(root):
        usable = len(images)
        for file in image_files(folder):
            reason = reason_to_skip_file(file)
            if reason:
                bad.append(BadRecord(str(file), reason))
                continue
            images.append(str(file))
            labels.append(folder.name)
        if len(images) == usable:
            raise ValueError(
                f"Class folder {folder} has no image that can be used ({', '.join(sorted(SUFFIXES))}). "
                "Fill or remove it."
            )
    return tolerated(Examples(images, labels, tuple(bad)), root, max_bad_share, things="images")


def _class_folders(root: Path) -> list[Path]:
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise ValueError(f"{root} has no class folders. Expected one folder of images per class, as in {root / 'cat'}.")
    if all(folder.name.lower() in _SPLITS and any(entry.is_dir() for entry in folder.iterdir()) for folder in folders):
        names = ", ".join(folder.name for folder in folders)
        raise ValueError(f"{root} holds splits ({names}) and not classes. Read one of them, such as {folders[0]}.")
    return folders


def image_files(folder: Path) -> Iterator[Path]:
    """Files with an image suffix in `folder` and below, sorted within each folder; hidden ones are passed over."""
    for directory, subdirectories, files in os.walk(folder):
        subdirectories[:] = sorted(name for name in subdirectories if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                yield Path(directory, name)


def image_inputs(given: Iterable[str]) -> Iterator[str]:
    """The images that inputs of a command line stand for: those of a folder, @FILE for a list of paths, and paths.

    Raises:
        FileNotFoundError: where there is no such list.
    """
    for item in given:
        if item.startswith("@"):
            with Path(item[1:]).open(encoding="utf-8") as lines:
                yield from (path for line in lines if (path := line.rstrip("\r\n")))
        elif Path(item).is_dir():
            yield from map(str, image_files(Path(item)))
        else:
            yield item


def read_image_csv(
    path: str | Path,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    label_separator: str | None = None,
    max_bad_share: float = 0.01,
) -> Examples:
    """Examples of a CSV or TSV file with a header line: one image path and one label field a line.

    Args:
        path: the file; image paths in it are relative to its directory.
        image_column: column of the paths; left out, the first of image, path, file, filename, ...
        label_column: column of the labels; left out, the first of label, labels, class, ...
        label_separator: splits a field into several labels (an empty field: none); the targets are then tuples.
        max_bad_share: share of lines without image file or label above which the file is refused.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for missing columns, no lines, or too many bad ones; the message names file and line.
    """
    file = existing_file(path)
    images: list[str] = []
    targets: list[Any] = []
    bad: list[BadRecord] = []
    for line, image, label in _csv_rows(file, image_column, label_column):
        reason = _reason_to_skip(file.parent / image, image, label, many=label_separator is not None)
        if reason:
            bad.append(BadRecord(f"{file}:{line}", reason))
            continue
        images.append(str(file.parent / image))
        targets.append(label if label_separator is None else _split(label, label_separator))
    if not images and not bad:
        raise ValueError(f"{file} has a header but no lines of data.")
    return tolerated(Examples(images, targets, tuple(bad)), file, max_bad_share, things="lines")


def _csv_rows(file: Path, image_column: str | None, label_column: str | None) -> Iterator[tuple[int, str, str]]:
    with file.open(newline="", encoding="utf-8-sig") as stream:
        rows = csv.DictReader(stream)
        try:
            header = stream.readline()
            stream.seek(0)
            rows = csv.DictReader(stream, delimiter=max(",;\t", key=header.count))
            image_name = _column(file, rows.fieldnames or [], image_column, _IMAGE_COLUMNS)
            label_name = _column(file, rows.fieldnames or [], label_column, _LABEL_COLUMNS)
            for row in rows:
                yield rows.line_num, (row[image_name] or "").strip(), (row[label_name] or "").strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not UTF-8 text (byte {error.start}). Convert it first.") from error
        except csv.Error as error:
            raise ValueError(f"{file} is no CSV text after line {rows.line_num} ({error}).") from error


def _column(file: Path, present: Sequence[str], wanted: str | None, usual: Sequence[str]) -> str:
    candidates = [wanted] if wanted is not None else usual
    # A usual name is found in any case, a wanted one as it is written.
    folded = {name if wanted is not None else name.strip().lower(): name for name in present}
    for name in candidates:
        if name in folded:
            return folded[name]
    raise ValueError(
        f"{file} has no column {' or '.join(candidates)}; its header line has {', '.join(present) or 'nothing'}."
    )


def _reason_to_skip(image_file: Path, image: str, label: str, *, many: bool) -> str | None:
    if not image:
        return "no image path"
    if not label and not many:
        return "no label"
    reason = reason_to_skip_file(image_file)
    return f"image file {image_file}: {reason}" if reason else None


def reason_to_skip_file(file: Path) -> str | None:
    """Why `file` cannot be an image, as far as the file system tells: it is missing or empty. Else None."""
    # Unlike Path.is_file, this takes no name for an error, however long.
    if not os.path.isfile(file):
        return "there is no such file"
    return None if file.stat().st_size else "the file is empty (0 bytes)"


def _split(label: str, separator: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in label.split(separator) if part.strip())


def read_idx(
    path: str | Path,
    labels_path: str | Path | None = None,
    *,
    split: str = "train",
    labels: Sequence[str] | None = None,
) -> Examples:
    """Examples of the IDX format of MNIST, plain or gzipped: uint8 images (H, W, 1) and class names.

    Args:
        path: the image file, or a directory with `train-images-idx3-ubyte[.gz]` and its like.
        labels_path: the label file, where `path` is a file.
        split: "train" or "test", where `path` is a directory.
        labels: class names by number; left out, the numbers themselves ("0", "1", ...).

    Raises:
        FileNotFoundError: where a file is missing.
        ValueError: for another format, a truncated file, or images and labels of unequal number.
    """
    root = Path(path)
    if root.is_dir():
        image_file, label_file = _idx_file(root, split, "images-idx3"), _idx_file(root, split, "labels-idx1")
    elif labels_path is None:
        raise ValueError("`labels_path` is needed where `path` is an image file and not a directory.")
    else:
        image_file, label_file = root, Path(labels_path)
    images = _read_idx_file(image_file, _IDX_IMAGES)[..., None]
    numbers = _read_idx_file(label_file, _IDX_LABELS)
    if len(images) != len(numbers):
        raise ValueError(
            f"{image_file} has {len(images)} images and {label_file} {len(numbers)} labels; they must be equal."
        )
    names = [str(number) for number in range(int(numbers.max(initial=0)) + 1)] if labels is None else list(labels)
    if numbers.size and int(numbers.max()) >= len(names):
        raise ValueError(f"{label_file} has class {int(numbers.max())}, but only {len(names)} `labels` are given.")
    return Examples(images, [names[number] for number in numbers])


def _idx_file(root: Path, split: str, kind: str) -> Path:
    if split not in _IDX_PREFIXES:
        raise ValueError(f"`split` must be 'train' or 'test'; received {split!r}.")
    names = [f"{prefix}-{kind}-ubyte{ending}" for prefix in _IDX_PREFIXES[split] for ending in ("", ".gz")]
    for name in names:
        if (root / name).is_file():
            return root / name
    raise FileNotFoundError(f"{root} has none of {', '.join(names)}.")


def _read_idx_file(file: Path, magic: int) -> np.ndarray:
    existing_file(file)
    data = file.read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{file} is a truncated or damaged gzip file.") from error
    dimensions = magic & 0xFF
    header = struct.Struct(f">{1 + dimensions}I")
    if len(data) < header.size or header.unpack_from(data)[0] != magic:
        raise ValueError(f"{file} is no IDX file of {dimensions} dimensions: it begins with {data[:4]!r}.")
    shape = header.unpack_from(data)[1:]
    expected = header.size + math.prod(shape)
    if len(data) != expected:
        raise ValueError(f"{file} has {len(data)} bytes; its header promises {expected} for shape {shape}.")
    return np.frombuffer(data, np.uint8, offset=header.size).reshape(shape)
