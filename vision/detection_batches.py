"""A detector's training batches: objects as arrays, variation of image and boxes together, padding.

Shapes: H and W size of an image or frame, N objects, B images of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from shared.data import Arrays, stack
from shared.vocabulary import Vocabulary
from vision.annotations import as_objects
from vision.augmentation import colour_jittered
from vision.frame import Frame
from vision.geometry import GeometryRange
from vision.mosaic import TrainingObjects, mosaic, within

# Numbers of objects that batches are padded to: few, so that shapes repeat.
_PADDED_TO = 8
# Objects that are lower or narrower in a training image, in pixels, are dropped.
_MIN_SIDE = 2.0


def encoded_objects(target: Any, labels: Vocabulary) -> TrainingObjects:
    """The objects of a target with class numbers for names.

    Raises:
        TypeError: for a target that is none.
        ValueError: for a label that is none of the classes.
    """
    objects = as_objects(target, labels)
    strange = [label for label in objects.labels if label not in labels]
    if strange:
        known = ", ".join(map(str, list(labels)[:5])) + (", ..." if len(labels) > 5 else "")
        raise ValueError(
            f"Label {strange[0]!r} is none of the {len(labels)} classes of this detector ({known}). Correct the data, "
            'or give `labels=` ("from_data" learns them).'
        )
    classes = np.asarray(labels.encode(objects.labels), np.int32).reshape(-1)
    return TrainingObjects(objects.boxes, classes, objects.crowd)


@dataclass(frozen=True, kw_only=True)
class TrainingVariation:
    """How a training image and its objects are varied; see `ObjectDetectorConfig` for the amounts."""

    frame: Frame
    geometry: GeometryRange
    hue: float
    saturation: float
    brightness: float
    mosaic: float
    multi_scale: float
    min_visible: float

    def encoded(self, pixels: np.ndarray, objects: TrainingObjects) -> Arrays:
        """An image uint8 (H, W, 3) with its objects, no larger than its largest variation needs."""
        height, width = pixels.shape[:2]
        shrunk = min(1.0, self.geometry.max_scale * self.frame.scale(height, width))
        boxes = objects.boxes
        if shrunk < 0.7:  # by less it saves little
            size = (max(1, round(width * shrunk)), max(1, round(height * shrunk)))
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
            boxes = boxes * np.array([size[0] / width, size[1] / height] * 2, np.float32)
        return {"images": pixels, "boxes": boxes, "classes": objects.classes, "crowd": objects.crowd}

    def vary(self, arrays: Arrays, rng: np.random.Generator) -> Arrays:
        """One random view of an image, uint8 (*frame.shape, 3), with what of its objects is seen."""
        image = arrays["images"]
        height, width = self.frame.shape
        scale = self.frame.scale(*image.shape[:2])
        geometry = self.geometry.draw(image.shape, (height, width), rng, scale=scale)
        view = geometry.image(image)
        if self.hue or self.saturation or self.brightness:
            view = colour_jittered(view, rng, hue=self.hue, saturation=self.saturation, brightness=self.brightness)
        moved = TrainingObjects(geometry.boxes(arrays["boxes"]), arrays["classes"], arrays["crowd"])
        seen = within(moved, width, height, min_visible=self.min_visible, min_side=_MIN_SIDE)
        return {"images": view, "boxes": seen.boxes, "classes": seen.classes, "crowd": seen.crowd}

    def vary_batch(self, batch: Arrays, rng: np.random.Generator) -> Arrays:
        """Mosaics of a padded batch, and the whole batch at another size."""
        images, objects = batch["images"], _unpadded(batch)
        if self.mosaic:
            images, objects = mosaic(
                images, objects, rng, share=self.mosaic, min_visible=self.min_visible, min_side=_MIN_SIDE
            )
        if self.multi_scale:
            images, objects = self._resized(images, objects, rng)
        views = [
            {"images": image, "boxes": seen.boxes, "classes": seen.classes, "crowd": seen.crowd}
            for image, seen in zip(images, objects, strict=True)
        ]
        return collated(views)

    def _resized(
        self, images: np.ndarray, objects: list[TrainingObjects], rng: np.random.Generator
    ) -> tuple[np.ndarray, list[TrainingObjects]]:
        factor = rng.uniform(1 - self.multi_scale, 1 + self.multi_scale)
        multiple = self.frame.multiple
        height, width = (max(1, round(side * factor / multiple)) * multiple for side in images.shape[1:3])
        by = np.array([width / images.shape[2], height / images.shape[1]] * 2, np.float32)
        resized = np.stack([cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR) for image in images])
        return resized, [TrainingObjects(seen.boxes * by, seen.classes, seen.crowd) for seen in objects]


def collated(examples: Sequence[Arrays]) -> Arrays:
    """Images of one size with their objects as a batch: boxes (B, N, 4), classes (B, N) with -1 for none, crowd."""
    most = max(len(example["classes"]) for example in examples)
    padded = -(-max(1, most) // _PADDED_TO) * _PADDED_TO
    return stack([_padded(example, padded) for example in examples])


def _padded(example: Arrays, count: int) -> Arrays:
    missing = count - len(example["classes"])
    return {
        **example,
        "boxes": np.pad(example["boxes"], ((0, missing), (0, 0))),
        "classes": np.pad(example["classes"], (0, missing), constant_values=-1),
        "crowd": np.pad(example["crowd"], (0, missing)),
    }


def _unpadded(batch: Arrays) -> list[TrainingObjects]:
    parts = zip(batch["boxes"], batch["classes"], batch["crowd"], strict=True)
    return [TrainingObjects(*part).take(part[1] >= 0) for part in parts]
