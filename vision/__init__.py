"""Vision: image classification, object detection, image segmentation.

Conventions
    images        uint8 RGB (H, W, 3), or (H, W, 1) for grey, between decoding and the model; paths and bytes as input
    `.model`      takes (B, H, W, C) with values 0..255 and normalises inside; gives logits, float32: (B, K) of
                  classes, (B, H, W, K) of masks, (B, A, 4 + K) of cells with the edges of boxes before the classes
    labels        class names in a `Vocabulary`; class numbers only inside
    targets       a class name, or a class number where a dataset has them; a tuple of names for multi-label classes;
                  `ObjectBoxes` for detection, a mask for segmentation
    boxes         float32 (N, 4), xyxy in pixels of the raw image after EXIF orientation, in `ObjectBoxes`
    masks         uint8 (H, W) class numbers, 255 where pixels do not count; arrays, PNG files that `MaskFile` reads, or
                  instances of a COCO file that `CocoMask` draws
    probabilities float32 (B, K); softmax for one label, a sigmoid each for many

Names are loaded when they are first used, so `import vision` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shared.classification import Classification
    from vision.annotations import MaskCoding, MaskFile, ObjectBoxes
    from vision.classification import ImageClassifier, ImageClassifierConfig
    from vision.coco_masks import CocoMask, read_coco_masks
    from vision.data import read_idx, read_image_csv, read_image_folder, read_images
    from vision.detection import Detections, ObjectDetector, ObjectDetectorConfig
    from vision.detection_data import read_coco, read_pascal_voc
    from vision.segmentation import ImageSegmenter, ImageSegmenterConfig, Segmentation
    from vision.segmentation_data import read_mask_folder
    from vision.yolo_data import read_yolo

_HOMES = {
    "Classification": "shared.classification",
    "CocoMask": "vision.coco_masks",
    "Detections": "vision.detection",
    "ImageClassifier": "vision.classification",
    "ImageClassifierConfig": "vision.classification",
    "ImageSegmenter": "vision.segmentation",
    "ImageSegmenterConfig": "vision.segmentation",
    "MaskCoding": "vision.annotations",
    "MaskFile": "vision.annotations",
    "ObjectBoxes": "vision.annotations",
    "ObjectDetector": "vision.detection",
    "ObjectDetectorConfig": "vision.detection",
    "Segmentation": "vision.segmentation",
    "read_coco": "vision.detection_data",
    "read_coco_masks": "vision.coco_masks",
    "read_idx": "vision.data",
    "read_image_csv": "vision.data",
    "read_image_folder": "vision.data",
    "read_images": "vision.data",
    "read_mask_folder": "vision.segmentation_data",
    "read_pascal_voc": "vision.detection_data",
    "read_yolo": "vision.yolo_data",
}

__all__ = [
    "Classification",
    "CocoMask",
    "Detections",
    "ImageClassifier",
    "ImageClassifierConfig",
    "ImageSegmenter",
    "ImageSegmenterConfig",
    "MaskCoding",
    "MaskFile",
    "ObjectBoxes",
    "ObjectDetector",
    "ObjectDetectorConfig",
    "Segmentation",
    "read_coco",
    "read_coco_masks",
    "read_idx",
    "read_image_csv",
    "read_image_folder",
    "read_images",
    "read_mask_folder",
    "read_pascal_voc",
    "read_yolo",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'vision' has no attribute {name!r}")
