"""Readers: COCO JSON, Pascal VOC and YOLO text to raw (image path, `ObjectBoxes`) examples.

Whatever a format counts from or divides by, boxes come out as `vision.annotations` has them: xyxy in pixels. Image
files are looked for, and opened only where a format does not say how large an image is.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree
from xml.parsers import expat

from shared.examples import BadExampleError, BadRecord, Examples, existing_directory, existing_file
from vision.annotations import AnnotatedImages, Box, RawBox
from vision.data import image_files, reason_to_skip_file
from vision.images import read_image_size


def read_objects(path: str | Path, *, split: str | None = None, max_bad_share: float = 0.01) -> Examples:
    """Examples at `path`, whatever its layout: COCO JSON, a Pascal VOC directory, a YOLO data file or directory.

    Args:
        path: the JSON file, the directory or the YAML file; `PATH#SPLIT` names a split, as `VOC2007#val`.
        split: the one that is meant where `path` names none; left out, or not there, "train".
        max_bad_share: as for the readers.

    Raises:
        FileNotFoundError: where there is nothing at `path`, or no such split.
        ValueError: for a layout that is none of these.
    """
    place, _, named = str(path).partition("#")
    root = Path(place)
    if root.suffix.lower() == ".json":
        if named:
            raise ValueError(f"{root} is one COCO file, which has no splits; leave {'#' + named!r} out.")
        return read_coco(root, max_bad_share=max_bad_share)
    if (root / "Annotations").is_dir():
        return read_pascal_voc(root, split=named or _voc_split(root, split), max_bad_share=max_bad_share)
    if root.is_dir() or root.suffix.lower() in (".yaml", ".yml"):
        from vision.yolo_data import read_yolo

        return read_yolo(root, split=named or _YOLO_SPLITS.get(split or "train", "train"), max_bad_share=max_bad_share)
    existing_file(root)
    raise ValueError(
        f"{root} is no COCO JSON file, no YOLO YAML file and no directory. Give one of these, or the directory of a "
        "Pascal VOC set (with Annotations in it)."
    )


# What is scored while training, where a path names no split.
_YOLO_SPLITS = {"train": "train", "test": "val"}


def _voc_split(root: Path, split: str | None) -> str:
    wanted = {"test": ("val", "test")}.get(split or "", ("train",))
    lists = root / "ImageSets" / "Main"
    return next((name for name in wanted if (lists / f"{name}.txt").is_file()), wanted[0])


# COCO JSON.


def read_coco(annotations: str | Path, images: str | Path | None = None, *, max_bad_share: float = 0.01) -> Examples:
    """Examples of a COCO JSON file of instances (https://cocodataset.org/#format-data).

    Images without annotations are kept, as images without objects. `iscrowd` becomes `ObjectBoxes.crowd`; masks
    (polygons, run lengths) are passed over. Sizes of images are those in the file.

    Args:
        annotations: the JSON file.
        images: directory of the images; left out, it is looked for as COCO has it (`../train2017` of
            `annotations/instances_train2017.json`), beside the file, and in `images`.
        max_bad_share: share of unusable images, and of unusable boxes, above which the file is refused; below, they
            are reported as bad records.

    Raises:
        FileNotFoundError: where the file is missing, or no directory has the images.
        ValueError: for another format, or too many bad records.
    """
    file = existing_file(annotations)
    content = coco_content(file)
    labels = coco_categories(file, content)
    found = AnnotatedImages()
    entries = coco_entries(file, content, found.skip)
    directory = coco_directory(file, entries) if images is None else existing_directory(images)
    boxes: dict[Any, list[RawBox]] = defaultdict(list)
    bad: dict[Any, list[BadRecord]] = defaultdict(list)
    seen: dict[Any, Any] = {}
    for place, annotation in enumerate(content["annotations"]):
        image = entry_key(annotation, "image_id")
        where = f"{file}, {entry_name('annotation', annotation, place)}"
        key = entry_key(annotation, "id")
        # Ids have no part here, so that different objects may share one; the same object twice is one too many.
        if key is not None and seen.setdefault(key, annotation) is not annotation and seen[key] == annotation:
            bad[image].append(BadRecord(where, "it is there twice"))
            continue
        try:
            boxes[image].append(_coco_box(where, annotation, labels))
        except BadExampleError as error:
            bad[image].append(BadRecord(where, error.reason))
    for key, entry in entries.items():
        path, size = directory / entry["file_name"], (entry_key(entry, "width"), entry_key(entry, "height"))
        _add(found, path, size, boxes.pop(key, []), bad.pop(key, []))
    # What is left belongs to no image of the file.
    for key in (*boxes, *bad):
        places = [raw.where for raw in boxes.pop(key, [])] + [record.where for record in bad.pop(key, [])]
        for where in places:
            found.skip_box(BadRecord(where, f"its image {key!r} is not in `images`"))
    return found.examples(file, max_bad_share)


def coco_labels(annotations: str | Path) -> tuple[str, ...]:
    """Names of the categories of a COCO JSON file in the order of their ids, used or not.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: for another format.
    """
    file = existing_file(annotations)
    labels = coco_categories(file, coco_content(file))
    return tuple(labels[key] for key in sorted(labels))


def coco_content(file: Path) -> dict[str, Any]:
    """What a COCO file holds, once it is known to have the lists that it must have."""
    try:
        content = json.loads(file.read_bytes())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}:{error.lineno} is no JSON ({error.msg}).") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text (byte {error.start}). Convert it first.") from error
    keys = ("images", "annotations", "categories")
    lists = content if isinstance(content, dict) else {}
    missing = [key for key in keys if not isinstance(lists.get(key), list)]
    if missing:
        raise ValueError(
            f"{file} is no COCO file of instances: expected an object with the lists {', '.join(keys)}; "
            f"{'it lacks ' + ', '.join(missing) if lists else 'it is a JSON ' + type(content).__name__}."
        )
    return lists


def coco_categories(file: Path, content: Mapping[str, Any]) -> dict[int, str]:
    """Names of the categories of a COCO file by id."""
    labels: dict[int, str] = {}
    for place, category in enumerate(content["categories"]):
        key, name = entry_key(category, "id"), entry_key(category, "name")
        if not isinstance(key, int) or not isinstance(name, str):
            raise ValueError(f"{file}: category {place} must have an integer `id` and a `name`; it is {category!r}.")
        if key in labels or name in labels.values():
            raise ValueError(f"{file}: category {key} {name!r} has the id or the name of another. Merge or rename one.")
        labels[key] = name
    return labels


def coco_entries(file: Path, content: Mapping[str, Any], skip: Callable[[str, str], None]) -> dict[Any, dict[str, Any]]:
    """Images of a COCO file by id; `skip(where, reason)` is told of those that cannot be used."""
    entries: dict[Any, dict[str, Any]] = {}
    for place, entry in enumerate(content["images"]):
        key, name = entry_key(entry, "id"), entry_key(entry, "file_name")
        if key is None or not isinstance(name, str) or not name:
            skip(f"{file}, {entry_name('image', entry, place)}", "it must have `id` and `file_name`")
        elif key in entries:
            skip(f"{file}, image {key}", f"{name}: the id is that of {entries[key]['file_name']}")
        else:
            entries[key] = entry
    return entries


def entry_key(entry: Any, name: str) -> int | str | None:
    """An id or name in `entry`, None where there is none that can be one."""
    value = entry.get(name) if isinstance(entry, dict) else None
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def entry_name(thing: str, entry: Any, place: int) -> str:
    """What an entry of a list is called in a report, by its id, or by its place where it has none."""
    key = entry_key(entry, "id")
    return f"{thing} {key}" if key is not None else f"{thing} without id at place {place}"


def coco_directory(file: Path, entries: Mapping[Any, Mapping[str, Any]]) -> Path:
    """Where the images of a COCO file are.

    Raises:
        FileNotFoundError: where no known place has one of them.
    """
    split = file.stem.removeprefix("instances_")
    root = file.parent.parent
    candidates = [root / split, file.parent, root / "images" / split, root / "images", file.parent / "images"]
    names = [entry["file_name"] for entry in entries.values()][:50]
    if not names:
        return file.parent  # what is wrong is said where images are counted
    for candidate in candidates:
        if any((candidate / name).is_file() for name in names):
            return candidate
    raise FileNotFoundError(
        f"None of the images of {file} (such as {names[0]}) is in "
        f"{', '.join(str(candidate) for candidate in candidates)}. Give their directory as `images`."
    )


def _coco_box(where: str, annotation: Any, labels: Mapping[int, str]) -> RawBox:
    category = entry_key(annotation, "category_id")
    if not isinstance(category, int) or category not in labels:
        raise BadExampleError(f"its category {category!r} is not in `categories`")
    left, top, width, height = _finite(annotation.get("bbox"), "bbox", "[left, top, width, height]")
    crowd = annotation.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise BadExampleError(f"`iscrowd` must be 0 or 1; it is {crowd!r}")
    return RawBox(where, labels[category], (left, top, left + width, top + height), bool(crowd))


def _finite(values: Any, name: str, expected: str) -> Box:
    numbers = values if isinstance(values, list) else []
    good = [value for value in numbers if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) != 4 or len(good) != 4 or not all(math.isfinite(value) for value in good):
        raise BadExampleError(f"`{name}` must be {expected}, four finite numbers; it is {values!r}")
    return (float(good[0]), float(good[1]), float(good[2]), float(good[3]))


# Pascal VOC.


def read_pascal_voc(
    directory: str | Path,
    *,
    split: str | None = "train",
    difficult: Literal["ignore", "keep", "drop"] = "ignore",
    first_pixel: Literal[0, 1] = 1,
    max_bad_share: float = 0.01,
) -> Examples:
    """Examples of a directory in the layout of Pascal VOC: Annotations, ImageSets/Main and JPEGImages.

    Args:
        directory: the directory that holds these three (`VOCdevkit/VOC2007`).
        split: the list of images, as in `ImageSets/Main/train.txt`; None: every file of Annotations.
        difficult: what becomes of objects that are marked so: "ignore" makes them `ObjectBoxes.crowd`, which neither
            train nor count, as VOC scores them; "keep" takes them as any other; "drop" leaves them out.
        first_pixel: 1 where the first pixel is number 1 and `xmax` is the last pixel of an object, as in VOC itself
            (development kit, section 4.3.2): (xmin - 1, ymin - 1, xmax, ymax). 0 takes the numbers as edges.
        max_bad_share: share of unusable images, and of unusable boxes, above which the set is refused; below, they
            are reported as bad records.

    Raises:
        FileNotFoundError: where the directory, a part of it, or the list of the split is missing.
        ValueError: for an unknown option, or too many bad records.
    """
    if difficult not in ("ignore", "keep", "drop"):
        raise ValueError(f"`difficult` must be 'ignore', 'keep' or 'drop'; received {difficult!r}.")
    if first_pixel not in (0, 1):
        raise ValueError(f"`first_pixel` must be 0 or 1; received {first_pixel!r}.")
    root = existing_directory(directory)
    annotations, pictures = existing_directory(root / "Annotations"), existing_directory(root / "JPEGImages")
    images = {file.stem: file for file in image_files(pictures)}
    found = AnnotatedImages()
    for name in _voc_names(root, annotations, split):
        file = annotations / f"{name}.xml"
        try:
            tree = _voc_tree(file)
        except BadExampleError as error:
            found.skip(file, error.reason)
            continue
        boxes, bad = _voc_boxes(file, tree, first_pixel, difficult)
        size = (_whole_number(tree.findtext("size/width")), _whole_number(tree.findtext("size/height")))
        _add(found, images.get(name, pictures / f"{name}.jpg"), size, boxes, bad)
    return found.examples(root, max_bad_share)


def _voc_names(root: Path, annotations: Path, split: str | None) -> list[str]:
    if split is None:
        return sorted(file.stem for file in annotations.glob("*.xml"))
    lists = root / "ImageSets" / "Main"
    file = lists / f"{split}.txt"
    if not file.is_file():
        there = ", ".join(sorted(entry.stem for entry in lists.glob("*.txt"))) or "none"
        raise FileNotFoundError(f"There is no list {file}. Lists that are there: {there}; split=None takes all images.")
    lines = (line.strip() for line in _text(file).split("\n"))
    # A list of one class has 1, 0 or -1 behind each name: present, difficult, absent.
    names = (line.rpartition(" ")[0].strip() if line.endswith((" 1", " 0", " -1")) else line for line in lines)
    return list(dict.fromkeys(name for name in names if name))


def _voc_tree(file: Path) -> ElementTree.Element:
    """The elements of an XML file. Entities are never expanded: a file that could declare some is refused."""
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = _refuse_doctype
    try:
        parser.Parse(file.read_bytes(), True)
    except FileNotFoundError as error:
        raise BadExampleError("there is no such file") from error
    except expat.ExpatError as error:
        raise BadExampleError(f"is no XML ({error})") from error
    tree = builder.close()
    if tree.tag != "annotation":
        raise BadExampleError(f"its root is <{tree.tag}>, expected <annotation>")
    return tree


def _refuse_doctype(name: str, *_: object) -> None:
    raise BadExampleError(f"it has a document type ({name}), which could expand without end. Remove <!DOCTYPE>")


def _voc_boxes(
    file: Path, tree: ElementTree.Element, first_pixel: int, difficult: str
) -> tuple[list[RawBox], list[BadRecord]]:
    boxes, bad = [], []
    for number, thing in enumerate(tree.findall("object"), start=1):
        marked = (thing.findtext("difficult") or "0").strip() == "1"
        if marked and difficult == "drop":
            continue
        where = f"{file}, object {number}"
        try:
            label, box = _voc_object(thing, first_pixel)
        except BadExampleError as error:
            bad.append(BadRecord(where, error.reason))
            continue
        boxes.append(RawBox(where, label, box, crowd=marked and difficult == "ignore"))
    return boxes, bad


def _voc_object(thing: ElementTree.Element, first_pixel: int) -> tuple[str, Box]:
    label = (thing.findtext("name") or "").strip()
    if not label:
        raise BadExampleError("it has no <name>")
    texts = [(thing.findtext(f"bndbox/{name}") or "").strip() for name in ("xmin", "ymin", "xmax", "ymax")]
    try:
        left, top, right, bottom = (float(text) for text in texts)
    except ValueError as error:
        raise BadExampleError(f"<bndbox> must have xmin, ymin, xmax and ymax, numbers; they are {texts}") from error
    if not all(math.isfinite(value) for value in (left, top, right, bottom)):
        raise BadExampleError(f"<bndbox> must be finite; it is {texts}")
    # As written: counted in whole pixels, an empty box would become one of a pixel.
    if right <= left or bottom <= top:
        raise BadExampleError(f"the box ({', '.join(texts)}) has no area")
    return label, (left - first_pixel, top - first_pixel, right, bottom)


def _whole_number(text: str | None) -> int | None:
    return int(text) if text is not None and text.strip().isdecimal() else None


# What the readers share.


def _add(
    found: AnnotatedImages,
    image: Path,
    size: tuple[object, object],
    boxes: Sequence[RawBox],
    bad: Sequence[BadRecord],
) -> None:
    """Add an image, or what is wrong with its file. Where its stated `size` is none, the file is asked."""
    try:
        found.add(image, checked_size(image, *size), boxes, bad)
    except BadExampleError as error:
        found.skip(image, error.reason)


def checked_size(image: Path, width: object = None, height: object = None) -> tuple[int, int]:
    """(width, height) as stated, or where they are not, as the file has them.

    Raises:
        BadExampleError: for a file that is missing, empty or, where it is asked, no image.
    """
    reason = reason_to_skip_file(image)
    if reason:
        raise BadExampleError(reason)
    if isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0:
        return width, height
    return read_image_size(image)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text (byte {error.start}). Convert it first.") from error
