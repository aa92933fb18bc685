"""Random variations of training images, in NumPy and OpenCV.

Every function draws from the generator that it is handed and from nothing else. A geometric change is first a value
(`Crop`: a rectangle and a mirror flag), then applied, so that other things in an image can follow it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np

# Share of the image size by which a shift crop may move an image: 4 px of 32, as He et al. 2016 on CIFAR.
_SHIFT = 1 / 8
# Aspect ratios of a resized crop: Szegedy et al. 2015 (arXiv:1409.4842, section 6).
_ASPECT = (3 / 4, 4 / 3)
# Areas and aspect ratios of an erased rectangle: Zhong et al. 2020 (arXiv:1708.04896, section 4.3).
_ERASED_AREA = (0.02, 0.25)
_ERASED_ASPECT = (0.3, 1 / 0.3)
_GREY = 128


@dataclass(frozen=True)
class Crop:
    """A rectangle in pixels of the source, and whether it is mirrored left to right."""

    top: int
    left: int
    height: int
    width: int
    mirror: bool = False

    def resized(self, image: np.ndarray, size: int) -> np.ndarray:
        """The rectangle's pixels (size, size, C), smoothly shrunk or enlarged."""
        region = image[self.top : self.top + self.height, self.left : self.left + self.width]
        # Linear sampling looks at 2x2 source pixels for each of its own: enough up to about 3 times smaller. Beyond,
        # blocks are averaged first.
        while min(region.shape[:2]) >= 3 * size:
            region = cv2.resize(region, (region.shape[1] // 2, region.shape[0] // 2), interpolation=cv2.INTER_AREA)
        resized: np.ndarray = cv2.resize(region, (size, size), interpolation=cv2.INTER_LINEAR)
        if self.mirror:
            resized = cv2.flip(resized, 1)
        return resized.reshape(size, size, -1)


def random_resized_crop(
    height: int, width: int, rng: np.random.Generator, *, min_area: float = 0.35, mirror: bool = True
) -> Crop:
    """A crop of random area and aspect ratio (Szegedy et al. 2015), mirrored half of the time where `mirror`."""
    draws = rng.random(5)
    area = height * width * (min_area + (1 - min_area) * draws[0])
    low, high = math.log(_ASPECT[0]), math.log(_ASPECT[1])
    aspect = math.exp(low + (high - low) * draws[1])
    crop_width = min(width, max(1, round(math.sqrt(area * aspect))))
    crop_height = min(height, max(1, round(math.sqrt(area / aspect))))
    top = int(draws[2] * (height - crop_height + 1))
    left = int(draws[3] * (width - crop_width + 1))
    return Crop(top, left, crop_height, crop_width, mirror=bool(mirror and draws[4] < 0.5))


def smallest_useful_side(size: int, min_area: float) -> int:
    """Short side in pixels of an image whose smallest `random_resized_crop` still need not be enlarged to `size`."""
    return math.ceil(size / math.sqrt(min_area * _ASPECT[0]))


def shifted(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image moved by up to an eighth of its size in each direction; the border is reflected."""
    size = image.shape[0]
    reach = max(1, round(size * _SHIFT))
    top, left = rng.integers(0, 2 * reach + 1, size=2)
    # NumPy's and OpenCV's general padding cost more than the copy itself on images this small.
    rows = np.abs(np.arange(top - reach, top - reach + size))
    columns = np.abs(np.arange(left - reach, left - reach + image.shape[1]))
    rows = np.minimum(rows, 2 * (size - 1) - rows)
    columns = np.minimum(columns, 2 * (image.shape[1] - 1) - columns)
    moved: np.ndarray = image[rows[:, None], columns]
    return moved


def colour_jittered(
    image: np.ndarray, rng: np.random.Generator, *, hue: float, saturation: float, brightness: float
) -> np.ndarray:
    """The image (H, W, 3) with its hue turned and its saturation and brightness multiplied, each by a random amount.

    Args:
        image: uint8 RGB.
        rng: source of the amounts.
        hue: largest turn, as a share of the whole circle, 0 to 0.5.
        saturation: 0.5 multiplies by 0.5 to 1.5.
        brightness: the same for the brightest channel (V of HSV).
    """
    turn, vivid, light = rng.uniform(-1, 1, 3) * [hue, saturation, brightness]
    levels = np.arange(256)
    # OpenCV has 180 steps of hue in 8 bits.
    tables = [(levels + 180 * turn) % 180, levels * (1 + vivid), levels * (1 + light)]
    table = np.stack([np.clip(values, 0, 255).astype(np.uint8) for values in tables], axis=-1)
    hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), table[None])
    jittered: np.ndarray = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return jittered


def erased(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image with a random rectangle filled with noise (Zhong et al. 2020)."""
    height, width = image.shape[:2]
    area = height * width * rng.uniform(*_ERASED_AREA)
    aspect = math.exp(rng.uniform(math.log(_ERASED_ASPECT[0]), math.log(_ERASED_ASPECT[1])))
    box_height = min(height, max(1, round(math.sqrt(area * aspect))))
    box_width = min(width, max(1, round(math.sqrt(area / aspect))))
    top = int(rng.integers(height - box_height + 1))
    left = int(rng.integers(width - box_width + 1))
    image = image.copy()
    noise = rng.integers(0, 256, (box_height, box_width, image.shape[2]), np.uint8)
    image[top : top + box_height, left : left + box_width] = noise
    return image


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is done to each training image: crop and mirror, RandAugment, erasing.

    `crop` is "resized" (random area and aspect ratio, then resized), "shift" (small images, already of the right
    size) or "none". Called with an image uint8 (H, W, C) and a generator it gives uint8 (S, S, C).
    """

    image_size: int
    crop: Literal["none", "shift", "resized"] = "resized"
    crop_scale: float = 0.35
    flip: bool = True
    rand_augment: int = 0
    rand_augment_magnitude: int = 9
    erasing: float = 0.0

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One random variation of `image`."""
        if self.crop == "resized":
            height, width = image.shape[:2]
            crop = random_resized_crop(height, width, rng, min_area=self.crop_scale, mirror=self.flip)
            image = crop.resized(image, self.image_size)
        else:
            if self.crop == "shift":
                image = shifted(image, rng)
            if self.flip and rng.random() < 0.5:
                image = np.ascontiguousarray(image[:, ::-1])
        if self.rand_augment:
            image = rand_augment(image, rng, num_ops=self.rand_augment, magnitude=self.rand_augment_magnitude)
        if self.erasing and rng.random() < self.erasing:
            image = erased(image, rng)
        return image


def mixup(
    images: np.ndarray, targets: np.ndarray, rng: np.random.Generator, alpha: float
) -> tuple[np.ndarray, np.ndarray]:
    """Each image blended with another of the batch (Zhang et al. 2018, arXiv:1710.09412).

    Args:
        images: uint8 (B, H, W, C).
        targets: float32 (B, K).
        rng: source of the shares and of the pairing.
        alpha: both parameters of the beta distribution of the shares, one for the whole batch.
    """
    share = float(rng.beta(alpha, alpha))
    order = rng.permutation(len(images))
    blended = cv2.addWeighted(
        images.reshape(len(images), -1), share, images[order].reshape(len(images), -1), 1 - share, 0
    )
    mixed = share * targets + (1 - share) * targets[order]
    return blended.reshape(images.shape), mixed.astype(np.float32)


def cutmix(
    images: np.ndarray, targets: np.ndarray, rng: np.random.Generator, alpha: float
) -> tuple[np.ndarray, np.ndarray]:
    """A rectangle of each image replaced by that of another (Yun et al. 2019, arXiv:1905.04899).

    Arguments and result as for `mixup`; targets are mixed by the area that each image really has.
    """
    height, width = images.shape[1:3]
    side = math.sqrt(1 - float(rng.beta(alpha, alpha)))
    centre_y, centre_x = int(rng.integers(height)), int(rng.integers(width))
    top, bottom = (int(np.clip(centre_y + sign * height * side / 2, 0, height)) for sign in (-1, 1))
    left, right = (int(np.clip(centre_x + sign * width * side / 2, 0, width)) for sign in (-1, 1))
    order = rng.permutation(len(images))
    mixed = images.copy()
    mixed[:, top:bottom, left:right] = images[order, top:bottom, left:right]
    share = 1 - (bottom - top) * (right - left) / (height * width)
    return mixed, (share * targets + (1 - share) * targets[order]).astype(np.float32)


# RandAugment: Cubuk et al. 2020 (arXiv:1909.13719). Each operation takes an image and a strength in -1..1.


def rand_augment(image: np.ndarray, rng: np.random.Generator, *, num_ops: int, magnitude: int) -> np.ndarray:
    """`num_ops` operations in a row, drawn from the fourteen of the paper, at `magnitude` of 30."""
    strength = magnitude / 30
    for number in rng.integers(len(_OPERATIONS), size=num_ops):
        sign = 1.0 if rng.random() < 0.5 else -1.0
        image = _OPERATIONS[number](image, strength * sign)
    return image


def _pixels(values: Any, like: np.ndarray) -> np.ndarray:
    """What an OpenCV function gave, with the shape of `like`: OpenCV drops a channel axis of 1."""
    return np.reshape(values, like.shape)


def _warped(image: np.ndarray, matrix: Any) -> np.ndarray:
    height, width = image.shape[:2]
    grey = (_GREY,) * 4
    flags = cv2.INTER_LINEAR
    warped = cv2.warpAffine(image, np.asarray(matrix, np.float64), (width, height), flags=flags, borderValue=grey)
    return _pixels(warped, image)


def _rotate(image: np.ndarray, strength: float) -> np.ndarray:
    height, width = image.shape[:2]
    return _warped(image, cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), 30 * strength, 1.0))


def _shear_x(image: np.ndarray, strength: float) -> np.ndarray:
    slope = 0.3 * strength
    return _warped(image, [[1, slope, -slope * image.shape[0] / 2], [0, 1, 0]])


def _shear_y(image: np.ndarray, strength: float) -> np.ndarray:
    slope = 0.3 * strength
    return _warped(image, [[1, 0, 0], [slope, 1, -slope * image.shape[1] / 2]])


def _translate_x(image: np.ndarray, strength: float) -> np.ndarray:
    return _warped(image, [[1, 0, 0.45 * strength * image.shape[1]], [0, 1, 0]])


def _translate_y(image: np.ndarray, strength: float) -> np.ndarray:
    return _warped(image, [[1, 0, 0], [0, 1, 0.45 * strength * image.shape[0]]])


def _looked_up(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    table = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return _pixels(cv2.LUT(image, table), image)


_LEVELS = np.arange(256, dtype=np.float32)


def _brightness(image: np.ndarray, strength: float) -> np.ndarray:
    return _looked_up(image, _LEVELS * (1 + 0.9 * strength))


def _contrast(image: np.ndarray, strength: float) -> np.ndarray:
    centre = float(image.mean())
    return _looked_up(image, centre + (_LEVELS - centre) * (1 + 0.9 * strength))


def _posterize(image: np.ndarray, strength: float) -> np.ndarray:
    dropped_bits = round(4 * abs(strength))
    return _looked_up(image, (np.arange(256) >> dropped_bits << dropped_bits).astype(np.float32))


def _solarize(image: np.ndarray, strength: float) -> np.ndarray:
    threshold = 256 * (1 - abs(strength))
    return _looked_up(image, np.where(threshold > _LEVELS, _LEVELS, 255 - _LEVELS))


def _auto_contrast(image: np.ndarray, strength: float) -> np.ndarray:
    low, high = float(image.min()), float(image.max())
    return image if high <= low else _looked_up(image, (_LEVELS - low) * 255 / (high - low))


def _equalize(image: np.ndarray, strength: float) -> np.ndarray:
    channels = [cv2.equalizeHist(np.ascontiguousarray(image[..., c])) for c in range(image.shape[-1])]
    return np.stack(channels, axis=-1)


def _colour(image: np.ndarray, strength: float) -> np.ndarray:
    if image.shape[-1] == 1:
        return image
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    share = 1 + 0.9 * strength
    return _pixels(cv2.addWeighted(image, share, grey, 1 - share, 0), image)


def _sharpness(image: np.ndarray, strength: float) -> np.ndarray:
    smooth = _pixels(cv2.blur(image, (3, 3)), image)
    share = 1 + 0.9 * strength
    return _pixels(cv2.addWeighted(image, share, smooth, 1 - share, 0), image)


def _identity(image: np.ndarray, strength: float) -> np.ndarray:
    return image


_OPERATIONS: tuple[Callable[[np.ndarray, float], np.ndarray], ...] = (
    _identity,
    _auto_contrast,
    _equalize,
    _rotate,
    _solarize,
    _colour,
    _posterize,
    _contrast,
    _brightness,
    _sharpness,
    _shear_x,
    _shear_y,
    _translate_x,
    _translate_y,
)
