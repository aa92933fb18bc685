"""Translation in PyTorch and transformers, for comparison: answers lines of JSON on stdin with lines on stdout.

    python scripts/peers/torch_translation.py DIRECTORY THREADS float32|bfloat16

DIRECTORY holds a Hugging Face Marian checkpoint and `arrays.npz`. A line {"beams": K, "length": T} generates T tokens
for each source in it (source_ids, mask) and is answered with {"seconds": S, "peak_mib": M, "tokens": [...]}, the
sequences without their start token; memory is the host's. A line {"batches": N} makes a training step on each of the
batches in it (source_ids_0, ...) and is answered with {"seconds": S}. Computes on a GPU where PyTorch sees one. Needs
torch and transformers.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers


def peak_mib() -> int:
    """The most memory that this process has held; what getrusage says counts its parent before the fork."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024


class Peer:
    """The model, loaded on first use, and what is timed."""

    def __init__(self, directory: str, dtype: torch.dtype) -> None:
        self.directory = Path(directory)
        self.arrays = np.load(self.directory / "arrays.npz")
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = transformers.AutoModelForSeq2SeqLM.from_pretrained(directory, dtype=dtype).to(self.device)
        self.optimizer: Any = None

    def tensor(self, name: str) -> torch.Tensor:
        """An array, integers as int64, where the model is."""
        return torch.from_numpy(self.arrays[name].astype(np.int64)).to(self.device)

    def generate(self, beams: int, length: int) -> dict[str, Any]:
        """So many tokens for each source."""
        self.model.eval()
        source, mask = self.tensor("source_ids"), self.tensor("mask")
        lengths = {"min_new_tokens": length, "max_new_tokens": length}
        start = time.perf_counter()
        with torch.inference_mode():
            found = self.model.generate(source, attention_mask=mask, num_beams=beams, do_sample=False, **lengths).cpu()
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "tokens": found[:, 1:].tolist(), "peak_mib": peak_mib()}

    def train(self, batches: int) -> dict[str, Any]:
        """A step of AdamW, with clipping, on each of the batches."""
        self.model.train()
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        names = ("source_ids", "source_mask", "target_ids", "targets")
        prepared = [[self.tensor(f"{name}_{number}") for name in names] for number in range(batches)]
        self.wait()
        start = time.perf_counter()
        for source, mask, read, targets in prepared:
            logits = self.model(input_ids=source, attention_mask=mask, decoder_input_ids=read).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.wait()
        return {"seconds": time.perf_counter() - start}

    def wait(self) -> None:
        """Until a GPU has done what it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def main(directory: str, threads: str, precision: str) -> None:
    """Answer lines until stdin ends."""
    torch.set_num_threads(int(threads))
    transformers.logging.set_verbosity_error()
    peer = Peer(directory, {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision])
    for line in sys.stdin:
        wanted = json.loads(line)
        answer = peer.train(**wanted) if "batches" in wanted else peer.generate(**wanted)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
