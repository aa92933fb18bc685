"""Make torch_state.pth, torch_state_legacy.pth and torch_state.npz: files by PyTorch, and what they hold.

python -m venv /tmp/reference && /tmp/reference/bin/pip install torch==2.13.0 numpy
/tmp/reference/bin/python tests/golden/make_torch_state.py
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

_HERE = Path(__file__).parent


def state() -> OrderedDict[str, torch.Tensor]:
    """Every kind of tensor a state dict may hold: number types, views that share data, no elements, no axes."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 7
    kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8)
    tensors = {str(kind).removeprefix("torch."): torch.arange(-3, 3).to(kind) / 1 for kind in kinds[:3]}
    tensors |= {str(kind).removeprefix("torch."): torch.arange(-3, 3).to(kind) for kind in kinds[3:]}
    tensors |= {"uint8": torch.arange(250, 256).to(torch.uint8), "bool": torch.tensor([True, False, True])}
    views = {"base": base, "transposed": base.T, "part": base[1:3, 2:5], "column": base[:, 3], "tied": base}
    edges = {"scalar": torch.tensor(3), "empty": torch.zeros(0, 4), "parameter": torch.nn.Parameter(base[0] + 1)}
    return OrderedDict({**views, **tensors, **edges})


def main() -> None:
    """Write the three files."""
    torch.save(state(), _HERE / "torch_state.pth")
    torch.save({"state_dict": state()}, _HERE / "torch_state_legacy.pth", _use_new_zipfile_serialization=False)
    arrays = {name: tensor.detach() for name, tensor in state().items()}
    arrays = {n: t.float() if t.dtype == torch.bfloat16 else t for n, t in arrays.items()}
    np.savez_compressed(_HERE / "torch_state.npz", **{name: tensor.numpy() for name, tensor in arrays.items()})


if __name__ == "__main__":
    main()
