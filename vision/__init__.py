"""Vision: image classification; detection and segmentation are on their way.

Conventions
    images        uint8 RGB (H, W, 3), or (H, W, 1) for grey, between decoding and the model; paths and bytes as input
    `.model`      takes (B, S, S, C) with values 0..255 and normalises inside; gives logits (B, K), float32
    labels        class names in a `Vocabulary`; class numbers only inside
    targets       a class name, or a class number where a dataset has them; a tuple of names for multi-label classes
    probabilities float32 (B, K); softmax for one label, a sigmoid each for many

Names are loaded when they are first used, so `import vision` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shared.classification import Classification
    from vision.classification import ImageClassifier, ImageClassifierConfig
    from vision.data import read_idx, read_image_csv, read_image_folder, read_images

_HOMES = {
    "Classification": "shared.classification",
    "ImageClassifier": "vision.classification",
    "ImageClassifierConfig": "vision.classification",
    "read_idx": "vision.data",
    "read_image_csv": "vision.data",
    "read_image_folder": "vision.data",
    "read_images": "vision.data",
}

__all__ = [
    "Classification",
    "ImageClassifier",
    "ImageClassifierConfig",
    "read_idx",
    "read_image_csv",
    "read_image_folder",
    "read_images",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'vision' has no attribute {name!r}")
