"""Scenes of drawn shapes with their boxes and masks, and what simple image processing makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

if TYPE_CHECKING:
    from shared.examples import Examples

CLASSES = ("background", "square", "disc", "triangle")
_SIZE = 96


def shape_scenes(count: int, *, masks: bool, seed: int = 0) -> Examples:
    """`count` images of 96 x 96 pixels with one to three shapes on a patterned ground.

    Targets are masks uint8 (96, 96) of class numbers, or `ObjectBoxes`.
    """
    from shared.examples import Examples
    from vision.annotations import ObjectBoxes

    rng = np.random.default_rng(seed)
    images: list[np.ndarray] = []
    targets: list[Any] = []
    for _ in range(count):
        image, mask, boxes, labels = _scene(rng)
        images.append(image)
        targets.append(mask if masks else ObjectBoxes(np.array(boxes, np.float32), tuple(labels)))
    return Examples(images, targets)


def _scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, list[list[int]], list[str]]:
    pattern = rng.integers(20, 110, (6, 6, 3), np.uint8)
    image = cv2.resize(pattern, (_SIZE, _SIZE), interpolation=cv2.INTER_CUBIC)
    mask = np.zeros((_SIZE, _SIZE), np.uint8)
    boxes: list[list[int]] = []
    labels: list[str] = []
    for _ in range(int(rng.integers(1, 4))):
        side = int(rng.integers(18, 40))
        left, top = (int(value) for value in rng.integers(0, _SIZE - side, 2))
        if any(left < b[2] + 2 and b[0] < left + side + 2 and top < b[3] + 2 and b[1] < top + side + 2 for b in boxes):
            continue  # shapes do not touch
        kind = int(rng.integers(1, len(CLASSES)))
        colour = [int(value) for value in rng.integers(120, 256, 3)]
        for canvas, value in ((image, colour), (mask, kind)):
            _draw(canvas, kind, left, top, side, value)
        boxes.append([left, top, left + side, top + side])
        labels.append(CLASSES[kind])
    noise = rng.normal(0, 8, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8), mask, boxes, labels


def _draw(canvas: np.ndarray, kind: int, left: int, top: int, side: int, value: Any) -> None:
    last = side - 1
    if CLASSES[kind] == "square":
        cv2.rectangle(canvas, (left, top), (left + last, top + last), value, cv2.FILLED)
    elif CLASSES[kind] == "disc":
        cv2.circle(canvas, (left + side // 2, top + side // 2), side // 2, value, cv2.FILLED)
    else:
        corners = [[left + side // 2, top], [left, top + last], [left + last, top + last]]
        cv2.fillPoly(canvas, [np.array(corners, np.int32)], value)


def _bright(image: np.ndarray) -> np.ndarray:
    """Pixels above Otsu's threshold of the smoothed brightness, 0 or 1."""
    grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (5, 5), 0)
    found: np.ndarray = cv2.threshold(grey, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[1]
    return found


def region_detections(test: Examples) -> dict[str, float]:
    """COCO's scores of bright connected regions as boxes, all of the class that scores best on `test` itself."""
    from vision.detection_metrics import coco_metrics

    names = CLASSES[1:]
    scores = [coco_metrics([_as_scored(i, t, k) for i, t in _pairs(test)], names)[0] for k in range(len(names))]
    return max(scores, key=lambda metrics: metrics["map"])


def _as_scored(image: np.ndarray, target: Any, kind: int) -> Any:
    from vision.detection_metrics import ScoredImage

    _, _, stats, _ = cv2.connectedComponentsWithStats(_bright(image))
    regions = stats[1:][stats[1:, 4] > 100]
    corners = np.concatenate([regions[:, :2], regions[:, :2] + regions[:, 2:4]], axis=1)
    return ScoredImage(
        boxes=target.boxes,
        classes=np.array([CLASSES.index(label) - 1 for label in target.labels], np.int64),
        crowd=target.crowd,
        found_boxes=corners.astype(np.float32),
        found_classes=np.full(len(regions), kind),
        scores=regions[:, 4] / _SIZE**2,
    )


def region_masks(test: Examples) -> dict[str, float]:
    """Scores of bright pixels as a mask, all of the class that scores best on `test` itself."""
    from vision.segmentation_metrics import pixel_counts, segmentation_metrics

    def score(kind: int) -> dict[str, float]:
        counts = sum(pixel_counts(mask, _bright(image) * np.uint8(kind), len(CLASSES)) for image, mask in _pairs(test))
        return segmentation_metrics(np.asarray(counts), CLASSES)[0]

    return max((score(kind) for kind in range(1, len(CLASSES))), key=lambda metrics: metrics["mean_iou"])


def _pairs(examples: Examples) -> list[tuple[Any, Any]]:
    return [examples[number] for number in range(len(examples))]
