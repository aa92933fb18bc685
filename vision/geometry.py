"""Where the pixels of an image go: one affine map that moves an image, its boxes and its mask together.

Legend
    matrix  float64 (2, 3): a point (x, y, 1) of the source, in pixels with edges between them (an image of W x H
            pixels is 0 <= x <= W, 0 <= y <= H, the centre of its first pixel is (0.5, 0.5)), to a point of the target
    rng     a NumPy generator; every random choice is drawn from the one that is handed in
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np

from vision.annotations import IGNORED

# What lies outside the source: mid-grey in images.
GREY = 128


@dataclass(frozen=True, eq=False)
class Geometry:
    """An affine map from a source image to a target of `height` x `width` pixels."""

    matrix: np.ndarray
    height: int
    width: int

    def image(self, image: np.ndarray, *, fill: int = GREY) -> np.ndarray:
        """uint8 (H, W, C) -> uint8 (height, width, C), linear between pixels; `fill` where there is no source."""
        matrix = self.matrix
        # Linear sampling looks at 2 x 2 pixels: where the target is less than half as large, 2 x 2 blocks are
        # averaged first.
        while _scale(matrix) < 0.5 and min(image.shape[:2]) >= 2:
            smaller = (image.shape[1] // 2, image.shape[0] // 2)
            by = (image.shape[1] / smaller[0], image.shape[0] / smaller[1])
            image = cv2.resize(image, smaller, interpolation=cv2.INTER_AREA)
            matrix = matrix * [by[0], by[1], 1.0]
        return self._warped(image, matrix, cv2.INTER_LINEAR, fill).reshape(self.height, self.width, -1)

    def mask(self, mask: np.ndarray, *, fill: int = IGNORED) -> np.ndarray:
        """Class numbers (H, W) uint8 -> (height, width) uint8, nearest neighbour; `fill` where there is no source."""
        return self._warped(mask, self.matrix, cv2.INTER_NEAREST, fill)

    def _warped(self, pixels: np.ndarray, matrix: np.ndarray, interpolation: int, fill: int) -> np.ndarray:
        warped: np.ndarray = cv2.warpAffine(
            pixels,
            _between_centres(matrix),
            (self.width, self.height),
            flags=interpolation,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(fill,) * 4,
        )
        return warped

    def points(self, points: np.ndarray) -> np.ndarray:
        """Points (N, 2) of the source -> of the target, float64."""
        return np.asarray(points @ self.matrix[:, :2].T + self.matrix[:, 2])

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (N, 4) xyxy -> the boxes around where their corners go, float32 (N, 4); they may overrun the target."""
        corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 2)
        moved = self.points(corners.astype(np.float64)).reshape(-1, 4, 2)
        return np.concatenate([moved.min(axis=1), moved.max(axis=1)], axis=1).astype(np.float32)

    def then(self, other: Geometry) -> Geometry:
        """First this, then `other`."""
        return Geometry((_square(other.matrix) @ _square(self.matrix))[:2], other.height, other.width)

    def inverse(self, height: int, width: int) -> Geometry:
        """The way back to a source of `height` x `width` pixels.

        Raises:
            ValueError: for a map that loses a dimension.
        """
        if abs(np.linalg.det(self.matrix[:, :2])) < 1e-12:
            raise ValueError("This map squeezes the image into a line: there is no way back.")
        return Geometry(np.linalg.inv(_square(self.matrix))[:2], height, width)

    @classmethod
    def identity(cls, height: int, width: int) -> Self:
        """Everything stays where it is."""
        return cls(np.eye(2, 3), height, width)


def fitted(height: int, width: int, target_height: int, target_width: int) -> Geometry:
    """The whole image as large as it fits into the target, in its upper left corner."""
    scale = min(target_height / height, target_width / width)
    return Geometry(np.array([[scale, 0, 0], [0, scale, 0]], np.float64), target_height, target_width)


def stretched(height: int, width: int, target_height: int, target_width: int) -> Geometry:
    """The whole image on the whole target."""
    matrix = np.array([[target_width / width, 0, 0], [0, target_height / height, 0]], np.float64)
    return Geometry(matrix, target_height, target_width)


@dataclass(frozen=True, kw_only=True)
class GeometryRange:
    """How far a random geometry may go.

    The image is enlarged by a factor between `min_scale` and `max_scale`, stretched to another aspect ratio by up to
    the factor `aspect`, rotated by up to `rotation` degrees, mirrored left to right (`flip`) and upside down
    (`flip_vertically`) half of the time, and put anywhere where as little as possible of it is cut off and as little
    as possible of the target is empty.
    """

    min_scale: float = 1.0
    max_scale: float = 1.0
    aspect: float = 1.0
    rotation: float = 0.0
    flip: bool = False
    flip_vertically: bool = False

    def draw(
        self, shape: Sequence[int], target: tuple[int, int], rng: np.random.Generator, *, scale: float = 1.0
    ) -> Geometry:
        """A random geometry for an image of `shape` (height, width, ...) on a target of (height, width) pixels.

        `scale` is that of the image which is not varied.
        """
        (height, width), (target_height, target_width) = shape[:2], target
        draws = rng.random(7)
        scale *= math.exp(_between(math.log(self.min_scale), math.log(self.max_scale), draws[0]))
        stretch = math.exp(_between(-0.5, 0.5, draws[1]) * math.log(self.aspect))
        angle = math.radians(_between(-self.rotation, self.rotation, draws[2]))
        mirror_x = -1.0 if self.flip and draws[3] < 0.5 else 1.0
        mirror_y = -1.0 if self.flip_vertically and draws[4] < 0.5 else 1.0
        cos, sin = math.cos(angle), math.sin(angle)
        linear = np.array([[cos, -sin], [sin, cos]]) @ np.diag([scale * stretch * mirror_x, scale / stretch * mirror_y])
        # Where the corners go says how much room there is to either side.
        corners = np.array([[0, 0], [width, 0], [0, height], [width, height]]) @ linear.T
        low, high = corners.min(axis=0), corners.max(axis=0)
        room = np.array([target_width, target_height]) - (high - low)
        offset = draws[5:7] * room - low
        return Geometry(np.concatenate([linear, offset[:, None]], axis=1), target_height, target_width)


def visible_shares(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Share of the area of each of `boxes` (N, 4) that lies in an image of `width` x `height` pixels, (N,)."""
    inside = np.clip(boxes, 0, [width, height, width, height])
    sides, whole = (np.maximum(b[:, 2:] - b[:, :2], 0).astype(np.float64) for b in (inside, boxes))
    return np.asarray(sides.prod(axis=1) / np.maximum(whole.prod(axis=1), 1e-9))


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


def _scale(matrix: np.ndarray) -> float:
    """The factor on lengths, where it is least."""
    return float(np.linalg.svd(matrix[:, :2], compute_uv=False)[-1])


def _square(matrix: np.ndarray) -> np.ndarray:
    return np.concatenate([matrix, [[0.0, 0.0, 1.0]]])


def _between_centres(matrix: np.ndarray) -> np.ndarray:
    """The same map for OpenCV, to which the centre of the first pixel is (0, 0)."""
    shifted = matrix.copy()
    shifted[:, 2] += matrix[:, :2] @ [0.5, 0.5] - 0.5
    return shifted
