"""Make timm.npz: what timm says of a few networks with random weights, and their logits for images from a seed.

    python -m venv /tmp/reference && /tmp/reference/bin/pip install torch==2.13.0 timm==1.0.31 safetensors
    /tmp/reference/bin/python tests/golden/make_timm.py

Weights are drawn from a seed by `random_state`, here and in the test, so that only shapes and logits are kept.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ARCHITECTURES = ("resnet18", "mobilenetv3_small_050")
NUM_CLASSES, SIZE = 7, 64


def random_state(shapes: Mapping[str, Sequence[int]], seed: int = 0) -> dict[str, np.ndarray]:
    """Weights under which activations keep their size: He's for kernels, statistics of normalisation around 1."""
    rng = np.random.default_rng(seed)
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = np.zeros(shape, np.int64)
        elif len(shape) > 1:
            state[name] = (rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)
        elif name.endswith(("running_var", "weight")):
            state[name] = rng.uniform(0.7, 1.4, shape).astype(np.float32)
        else:
            state[name] = (0.1 * rng.standard_normal(shape)).astype(np.float32)
    return state


def images(count: int = 2) -> np.ndarray:
    """uint8 (count, SIZE, SIZE, 3): coarse colours with fine noise."""
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 200, (count, 8, 8, 3)).repeat(SIZE // 8, 1).repeat(SIZE // 8, 2)
    return (coarse + rng.integers(0, 56, (count, SIZE, SIZE, 3))).astype(np.uint8)


def reference(architecture: str) -> dict[str, Any]:
    """Configuration as timm writes it, shapes of the weights, and logits (2, NUM_CLASSES)."""
    import timm
    import torch
    from timm.models import save_for_hf

    model = timm.create_model(architecture, num_classes=NUM_CLASSES).eval()
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: torch.from_numpy(w) for name, w in random_state(shapes).items()})
    with tempfile.TemporaryDirectory() as directory:
        save_for_hf(model, directory, safe_serialization=True)
        config = Path(directory, "config.json").read_text()
    mean, std = (torch.tensor(model.default_cfg[key]) * 255 for key in ("mean", "std"))
    with torch.no_grad():
        logits = model(((torch.from_numpy(images()).float() - mean) / std).permute(0, 3, 1, 2)).numpy()
    return {"config": config, "shapes": json.dumps(shapes), "logits": logits}


def main() -> None:
    """Write the file."""
    values = {f"{name}.{key}": value for name in ARCHITECTURES for key, value in reference(name).items()}
    np.savez_compressed(Path(__file__).with_name("timm.npz"), **values)


if __name__ == "__main__":
    main()
