"""Pictures of noise, to compare an export with `predict` on."""

from __future__ import annotations

import cv2
import numpy as np


def encoded_pictures(height: int, width: int) -> list[bytes]:
    """Three encoded pictures (JPEG, JPEG, PNG), somewhat larger than `height` x `width` pixels and of other shapes."""
    rng = np.random.default_rng(0)
    pictures = []
    for shape, suffix in (((3, 4), ".jpg"), ((5, 3), ".jpg"), ((4, 4), ".png")):
        noise = rng.integers(0, 256, (*shape, 3), np.uint8)
        picture = cv2.resize(noise, (width * 5 // 4, height * 3 // 2), interpolation=cv2.INTER_CUBIC)
        pictures.append(cv2.imencode(suffix, picture)[1].tobytes())
    return pictures
