"""Readers: images and their masks in two folders, or a COCO file, to raw (image path, mask) examples.

Masks are decoded when they are needed, and compared with the size of their image there (`MaskFile.read`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from shared.examples import BadRecord, Examples, existing_directory, existing_file, tolerated
from vision.annotations import Colour, MaskCoding, MaskFile
from vision.coco_masks import read_coco_masks
from vision.data import image_files, reason_to_skip_file

# A colour, or a grey (of which red, green and blue are equal).
ColourOrGrey: TypeAlias = int | Sequence[int]

_IGNORE = re.compile(r"\s*\(ignored?\)$", re.IGNORECASE)


def read_mask_folder(
    images: str | Path,
    masks: str | Path,
    *,
    classes: str | Path | Sequence[str] | None = None,
    colours: Sequence[ColourOrGrey] | None = None,
    ignore: int | Sequence[ColourOrGrey] = (),
    max_bad_share: float = 0.01,
) -> Examples:
    """Examples of a folder of images and a folder of PNG masks: `images/a/x.jpg` belongs to `masks/a/x.png`.

    A pixel of a mask is the number of its class (of a PNG with a palette: the index), unless there are colours.

    Args:
        images: folder of the images; folders within it are kept apart.
        masks: folder of the masks.
        classes: class names by number, or a text file of them, one a line: `road`, `3 road` (its pixel value) or
            `128 64 128 road` (its colour); where `(ignore)` follows, these pixels are no class. Left out,
            `classes.txt` is looked for in `masks`, beside it, and one folder higher.
        colours: the colour of each class, (red, green, blue) or a grey: (0, 255) for masks of black and white.
        ignore: pixel values, or with colours a list of colours, that neither train nor count (in Pascal VOC 255). A
            class that has one of them is left out.
        max_bad_share: share of images and masks without partner, and of files that cannot be used, above which the
            folders are refused; below, they are reported as bad records.

    Raises:
        FileNotFoundError: where a folder or the file of classes is missing.
        ValueError: for classes and colours that do not fit together, no pair at all, or too many bad records.

    Example:
        >>> read_mask_folder("train/images", "train/masks", classes=["background", "nucleus"], colours=(0, 255))
        ... # doctest: +SKIP
    """
    image_root, mask_root = existing_directory(images), existing_directory(masks)
    coding = _coding(_classes(mask_root, classes), colours, ignore)
    inputs: list[str] = []
    targets: list[MaskFile] = []
    bad: list[BadRecord] = []
    pictures, twice = _by_stem(image_root, image_files(image_root))
    found_masks, twice_masks = _by_stem(mask_root, image_files(mask_root))
    bad += twice + twice_masks
    for stem, image in pictures.items():
        mask = found_masks.pop(stem, None)
        reason = _reason_to_skip_pair(image, mask, mask_root / f"{stem}.png")
        if reason or mask is None:
            bad.append(BadRecord(str(image), reason))
            continue
        inputs.append(str(image))
        targets.append(MaskFile(str(mask), coding))
    bad += [BadRecord(str(mask), f"the mask has no image in {image_root}") for mask in found_masks.values()]
    return tolerated(Examples(inputs, targets, tuple(bad)), image_root, max_bad_share, things="images and masks")


def read_masks(
    path: str | Path,
    *,
    masks: str | Path | None = None,
    classes: str | Path | Sequence[str] | None = None,
    colours: Sequence[ColourOrGrey] | None = None,
    ignore: int | Sequence[ColourOrGrey] = (),
    max_bad_share: float = 0.01,
) -> Examples:
    """Examples at `path`: a folder of images with a folder of masks beside it, the folder that holds both, a COCO file.

    Args:
        path: the folder of images, or one with `images` and `masks` (or `labels`, `annotations`) in it; or a COCO JSON
            file of instances, of which `classes` may name the categories to take (see `read_coco_masks`).
        masks: folder of the masks; left out, it is looked for: `masks` beside `images`, `trainannot` beside `train`.
        classes: as for `read_mask_folder`, and the rest too.
        colours: the same.
        ignore: the same.
        max_bad_share: the same.

    Raises:
        FileNotFoundError: where folders are missing; the message says where they were looked for.
        ValueError: as for `read_mask_folder`, and for options of folders with a COCO file.
    """
    if Path(path).suffix.lower() == ".json":
        given = {"masks": masks, "colours": colours, "ignore": ignore or None}
        useless = [f"`{name}`" for name, value in given.items() if value is not None]
        if useless:
            raise ValueError(f"{' and '.join(useless)} would have no effect: {path} is a COCO file. Leave it out.")
        return read_coco_masks(path, classes=_category_names(classes), max_bad_share=max_bad_share)
    root = existing_directory(path)
    images = root / "images" if (root / "images").is_dir() else root
    if masks is None:
        beside = images.parent
        candidates = [beside / name for name in ("masks", "labels", "annotations", f"{images.name}annot")]
        found = [candidate for candidate in candidates if candidate.is_dir() and candidate != images]
        if not found:
            places = ", ".join(str(candidate) for candidate in candidates)
            raise FileNotFoundError(
                f"There is no folder of masks for {images}: looked for {places}. Give it as `masks`."
            )
        masks = found[0]
    return read_mask_folder(images, masks, classes=classes, colours=colours, ignore=ignore, max_bad_share=max_bad_share)


def _category_names(classes: str | Path | Sequence[str] | None) -> list[str] | None:
    if isinstance(classes, str | Path):
        return [entry.name for entry in _listed_classes(existing_file(classes))]
    return None if classes is None else list(classes)


def _by_stem(root: Path, files: Iterable[Path]) -> tuple[dict[str, Path], list[BadRecord]]:
    """Files by their path within `root` without suffix, and those whose name another has already."""
    found: dict[str, Path] = {}
    twice: list[BadRecord] = []
    for file in files:
        stem = file.relative_to(root).with_suffix("").as_posix()
        if stem in found:
            twice.append(BadRecord(str(file), f"{found[stem].name} has the same name without its suffix"))
        else:
            found[stem] = file
    return found, twice


def _reason_to_skip_pair(image: Path, mask: Path | None, expected: Path) -> str:
    if mask is None:
        return f"it has no mask, expected {expected}"
    if mask.suffix.lower() != ".png":
        return f"its mask {mask} is no PNG; convert it, from a format without loss"
    reason = reason_to_skip_file(mask)
    return f"its mask {mask}: {reason}" if reason else reason_to_skip_file(image) or ""


# Classes.


@dataclass(frozen=True)
class _Class:
    """One line of a list of classes."""

    name: str
    value: int | Colour
    ignored: bool = False


def _classes(masks: Path, given: str | Path | Sequence[str] | None) -> list[_Class]:
    if given is None:
        for folder in (masks, masks.parent, masks.parent.parent):
            if (folder / "classes.txt").is_file():
                return _listed_classes(folder / "classes.txt")
        raise FileNotFoundError(
            f"There is no classes.txt in {masks}, beside it, or one folder higher. Give the class names, or the file "
            "that has them, as `classes`."
        )
    if isinstance(given, str | Path):
        return _listed_classes(existing_file(given))
    return [_Class(name, number) for number, name in enumerate(given)]


def _listed_classes(file: Path) -> list[_Class]:
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text (byte {error.start}). Convert it first.") from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    classes = [_listed_class(f"{file}:{number}", line, place) for place, (number, line) in enumerate(numbered)]
    if not classes:
        raise ValueError(f"{file} has no classes. Write one a line.")
    return classes


def _listed_class(where: str, line: str, place: int) -> _Class:
    fields = line.split()
    count = next((i for i, text in enumerate(fields) if not text.isdecimal()), len(fields))
    numbers = [int(text) for text in fields[:count]]
    name = " ".join(fields[count:])
    ignored = bool(_IGNORE.search(name))
    name = _IGNORE.sub("", name)
    if not name or count not in (0, 1, 3) or (count == 3 and max(numbers) > 255):
        raise ValueError(
            f"{where}: expected a class name, with its pixel value or its colour (three numbers up to 255) before it; "
            f"received {line!r}."
        )
    if count == 3:
        return _Class(name, (numbers[0], numbers[1], numbers[2]), ignored)
    return _Class(name, numbers[0] if count else place, ignored)


# Pixel values.


def _coding(
    classes: Sequence[_Class], colours: Sequence[ColourOrGrey] | None, ignore: int | Sequence[ColourOrGrey]
) -> MaskCoding:
    if colours is not None:
        if len(colours) != len(classes):
            raise ValueError(f"{len(classes)} classes need as many `colours`; received {len(colours)}.")
        pairs = zip(classes, colours, strict=True)
        classes = [_Class(entry.name, _colour(colour), entry.ignored) for entry, colour in pairs]
    in_colours = not isinstance(classes[0].value, int) if classes else False
    ignored = [entry.value for entry in classes if entry.ignored] + _ignored(ignore, in_colours=in_colours)
    counted = [entry for entry in classes if entry.value not in ignored]
    return MaskCoding(
        tuple(entry.name for entry in counted),
        tuple(entry.value for entry in counted),  # type: ignore[arg-type]
        tuple(dict.fromkeys(ignored)),  # type: ignore[arg-type]
    )


def _ignored(given: int | Sequence[ColourOrGrey], *, in_colours: bool) -> list[int | Colour]:
    values = [given] if isinstance(given, int) else list(given)
    if not in_colours:
        for value in values:
            if not isinstance(value, int):
                raise ValueError(f"`ignore` must be pixel values, for classes have no colours; received {value!r}.")
        return [value for value in values if isinstance(value, int)]
    if len(values) == 3 and all(isinstance(value, int) for value in values):
        raise ValueError(f"`ignore` must be a list of colours; received {given!r}. Put one colour in a list.")
    return [_colour(value) for value in values]


def _colour(value: ColourOrGrey) -> Colour:
    parts = [value] * 3 if isinstance(value, int) else list(value)
    if len(parts) != 3 or not all(isinstance(part, int) and 0 <= part <= 255 for part in parts):
        raise ValueError(f"A colour must be (red, green, blue) or a grey, numbers from 0 to 255; received {value!r}.")
    return parts[0], parts[1], parts[2]
