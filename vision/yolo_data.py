"""Reader: YOLO text files (https://docs.ultralytics.com/datasets/detect/) to (image path, `ObjectBoxes`) examples.

A line of `labels/x.txt` is one object of `images/x.jpg`: its class number and its box (centre x, centre y, width,
height), or the corners of a polygon, as shares of the image's width and height.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from shared.examples import BadExampleError, BadRecord, Examples
from vision.annotations import AnnotatedImages, Box, RawBox
from vision.data import image_files, reason_to_skip_file
from vision.images import read_image_size

_SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}

# Shares may leave 0..1 by this much: edges of rounded numbers do. Further out, a line is in pixels, or wrong.
_SLACK = 0.01


def read_yolo(
    path: str | Path, *, split: str = "train", labels: Sequence[str] | None = None, max_bad_share: float = 0.01
) -> Examples:
    """Examples of a YOLO data file, or of a directory with `images` and `labels`.

    Polygons become the boxes around them. An image without a label file, or with an empty one, has no objects.

    Args:
        path: the YAML file with `path`, `train`, `val`, `test` and `names` (a list, or names by number); a directory
            with such a file; or one with images/train and labels/train, train/images and train/labels, or images and
            labels, whose names are in `classes.txt`.
        split: "train", "val" or "test".
        labels: class names by number, instead of those found.
        max_bad_share: share of unusable images, and of unusable boxes, above which the set is refused; below, they
            are reported as bad records.

    Raises:
        FileNotFoundError: where the file, the images of the split, all label files or the class names are missing.
        ValueError: for another format, an unknown split, or too many bad records.
    """
    known = next((name for name, aliases in _SPLITS.items() if split in aliases), None)
    if known is None:
        raise ValueError(f"`split` must be 'train', 'val' or 'test'; received {split!r}.")
    data = _described(Path(path), known, None if labels is None else tuple(labels))
    found = AnnotatedImages()
    label_files = [_label_file(image) for image in data.images]
    if data.images and not any(file.is_file() for file in label_files):
        raise FileNotFoundError(
            f"None of the {len(data.images)} images of {path} has a label file, such as {label_files[0]} for "
            f"{data.images[0]}."
        )
    for image, file in zip(data.images, label_files, strict=True):
        try:
            _add(found, image, file, data.labels)
        except BadExampleError as error:
            found.skip(image, error.reason)
    return found.examples(Path(path), max_bad_share)


@dataclass(frozen=True)
class _Described:
    """What a data file or a directory says: the images of the split, and class names by number."""

    images: list[Path]
    labels: Mapping[int, str]


def _described(path: Path, split: str, labels: tuple[str, ...] | None) -> _Described:
    if path.is_dir():
        files = sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
        if len(files) > 1:
            raise ValueError(f"{path} has several YAML files ({', '.join(f.name for f in files)}). Name one of them.")
        if not files:
            return _described_by_layout(path, split, labels)
        path = files[0]
    if not path.is_file():
        raise FileNotFoundError(f"There is nothing at {path}. Check the path.")
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise ValueError(f"{path} is no YAML file and no directory. Give the data file, or the directory above images.")
    return _described_by_yaml(path, split, labels)


# Data files.


def _described_by_yaml(file: Path, split: str, labels: tuple[str, ...] | None) -> _Described:
    try:
        content = yaml.safe_load(file.read_bytes())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no YAML ({' '.join(str(error).split())}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold keys such as train, val and names; it is {type(content).__name__}.")
    entry = next((content[name] for name in _SPLITS[split] if content.get(name)), None)
    if entry is None:
        there = ", ".join(str(key) for key in content)
        raise ValueError(f"{file} has no images for {split!r}; its keys are {there or 'none'}.")
    root = file.parent / str(content.get("path") or "")
    roots = [root if root.is_dir() else file.parent, file.parent]
    images = [image for part in (entry if isinstance(entry, list) else [entry]) for image in _images(part, roots, file)]
    return _Described(images, _named(labels, file) if labels else _yaml_names(content, file))


def _yaml_names(content: Mapping[str, Any], file: Path) -> Mapping[int, str]:
    names = content.get("names")
    numbered = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(numbered, dict) or not numbered or not all(isinstance(key, int) for key in numbered):
        raise ValueError(f"{file}: `names` must be a list of class names, or names by number; it is {names!r}.")
    count = content.get("nc")
    if isinstance(count, int) and count != len(numbered):
        raise ValueError(f"{file}: `nc` is {count}, but `names` has {len(numbered)}. Correct one of them.")
    return _distinct({key: str(name) for key, name in numbered.items()}, file)


def _images(part: Any, roots: Sequence[Path], file: Path) -> Iterator[Path]:
    """The images that one entry of a split names: a directory, a list in a text file, or one file."""
    place = _place(str(part), roots, file)
    if place.is_dir():
        yield from image_files(place)
    elif place.suffix.lower() == ".txt":
        for line in _lines(place):
            yield place.parent / line if line.startswith("./") else roots[0] / line
    else:
        yield place


def _place(part: str, roots: Sequence[Path], file: Path) -> Path:
    # Some tools write `../train/images` for what lies beside the file.
    candidates = [root / name for name in (part, part.removeprefix("../")) for root in roots]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    raise FileNotFoundError(f"{file} names {part}, but there is nothing at {candidates[0]}. Correct it, or `path`.")


# Directories.


def _described_by_layout(root: Path, split: str, labels: tuple[str, ...] | None) -> _Described:
    aliases = _SPLITS[split]
    candidates = [*(root / "images" / name for name in aliases), *(root / name / "images" for name in aliases)]
    whole = root / "images"
    others = [root / "images" / name for names in _SPLITS.values() for name in names]
    folder = next((candidate for candidate in candidates if candidate.is_dir()), None)
    if folder is None and whole.is_dir() and not any(other.is_dir() for other in others):
        folder = whole
    if folder is None:
        raise FileNotFoundError(f"{root} has no YAML file and no images for {split!r}, as in {candidates[0]}.")
    return _Described(list(image_files(folder)), _named(labels, root) if labels else _listed_names(root))


def _listed_names(root: Path) -> Mapping[int, str]:
    for file in (root / "classes.txt", root / "labels" / "classes.txt"):
        if file.is_file():
            return _named(tuple(_lines(file)), file)
    raise FileNotFoundError(f"{root} has neither a YAML file nor classes.txt with the class names. Give `labels`.")


def _named(labels: Sequence[str], where: Path) -> Mapping[int, str]:
    return _distinct(dict(enumerate(labels)), where)


def _distinct(names: Mapping[int, str], where: Path) -> Mapping[int, str]:
    if len(set(names.values())) < len(names):
        raise ValueError(f"{where}: class names must differ; they are {', '.join(names.values())}.")
    return names


def _lines(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text (byte {error.start}). Convert it first.") from error
    return [line.strip() for line in text.split("\n") if line.strip()]


# Labels.


def _label_file(image: Path) -> Path:
    """`labels/x.txt` for `images/x.jpg`, where the last folder of that name counts; else beside the image."""
    parts = list(image.parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _add(found: AnnotatedImages, image: Path, file: Path, names: Mapping[int, str]) -> None:
    reason = reason_to_skip_file(image)
    if reason:
        raise BadExampleError(reason)
    width, height = read_image_size(image)
    boxes, bad = [], []
    for number, line in _numbered_lines(file):
        where = f"{file}:{number}"
        try:
            label, (left, top, right, bottom) = _object(line, names)
        except BadExampleError as error:
            bad.append(BadRecord(where, error.reason))
            continue
        boxes.append(RawBox(where, label, (left * width, top * height, right * width, bottom * height)))
    found.add(image, (width, height), boxes, bad)


def _numbered_lines(file: Path) -> list[tuple[int, str]]:
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        return []
    except UnicodeDecodeError as error:
        raise BadExampleError(f"its label file {file} is not UTF-8 text (byte {error.start})") from error
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _object(line: str, names: Mapping[int, str]) -> tuple[str, Box]:
    """Class name and box, xyxy in shares of the image, of one line."""
    fields = line.split()
    try:
        number, shares = float(fields[0]), [float(text) for text in fields[1:]]
    except ValueError as error:
        raise BadExampleError(f"expected a class number and shares of the image, received {line.strip()!r}") from error
    if number not in names:
        raise BadExampleError(f"class {fields[0]} has no name; there are {len(names)} names")
    if not all(-_SLACK <= share <= 1 + _SLACK for share in shares):
        raise BadExampleError(f"numbers must be shares of the image, 0 to 1, received {line.strip()!r}")
    return names[int(number)], _box(shares)


def _box(shares: Sequence[float]) -> Box:
    if len(shares) == 4:
        x, y, width, height = shares
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    if len(shares) < 6 or len(shares) % 2:
        raise BadExampleError(
            f"expected a class number with 4 numbers (a box) or an even number from 6 on (a polygon), received "
            f"{len(shares)} numbers"
        )
    return min(shares[::2]), min(shares[1::2]), max(shares[::2]), max(shares[1::2])
