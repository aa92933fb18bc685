"""The targets of a segmenter, whatever they are: files, instances of a COCO file, arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from shared.examples import BadExampleError, Examples, Source
from shared.vocabulary import Vocabulary
from vision.annotations import IGNORED, MaskFile
from vision.coco_masks import CocoMask


def mask_labels(source: Source) -> Vocabulary:
    """The class names of the masks of `source`.

    Raises:
        ValueError: where masks have no class names, or differ in them.
    """
    for _, target in pairs(source):
        if isinstance(target, MaskFile | CocoMask):
            return Vocabulary(target.labels)
        break
    raise ValueError("The training masks are arrays of class numbers, which have no names: give `labels`.")


def read_mask(target: Any, shape: tuple[int, int], labels: Vocabulary) -> np.ndarray:
    """Class numbers uint8 (H, W) of a target, IGNORED where pixels do not count.

    Args:
        target: a `MaskFile` or `CocoMask` with these labels, or an integer array (H, W) or (H, W, 1).
        shape: (H, W) of the image, which the mask must share.
        labels: the classes.

    Raises:
        BadExampleError: for a mask that cannot be read, of another size, or with numbers that are no class.
        ValueError: for a file whose classes are others.
        TypeError: for another kind of target.
    """
    if isinstance(target, MaskFile | CocoMask):
        if tuple(target.labels) != tuple(map(str, labels)):
            raise ValueError(
                f"{target.path} is coded for the classes {', '.join(target.labels)}; this segmenter has "
                f"{', '.join(map(str, labels))}. Read the masks with the same classes in the same order."
            )
        return target.read(shape)
    mask = np.asarray(target)
    if mask.dtype.kind not in "iu" or mask.ndim not in (2, 3):
        raise TypeError(
            "A segmenter's target is a MaskFile, a CocoMask or an integer array (H, W); received "
            f"{type(target).__name__} {getattr(mask, 'dtype', '')} {mask.shape}."
        )
    mask = mask.reshape(mask.shape[:2]) if mask.shape[2:] in ((), (1,)) else mask
    if mask.shape != tuple(shape):
        raise BadExampleError(f"the mask has shape {mask.shape} and its image {tuple(shape)}; they must be equal")
    strange = (mask != IGNORED) & ((mask < 0) | (mask >= len(labels)))
    if strange.any():
        y, x = (int(place) for place in np.argwhere(strange)[0])
        raise BadExampleError(f"the value {mask[y, x]} at x={x}, y={y} is no class and not {IGNORED} (ignored)")
    return mask.astype(np.uint8)


def pairs(source: Source) -> Iterator[tuple[Any, Any]]:
    """Images and masks of `source`, one after the other."""
    if isinstance(source, Examples):
        return (source[number] for number in range(len(source)))
    return iter(source)
