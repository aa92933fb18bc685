"""Decoding in PyTorch and transformers, for comparison: answers lines of JSON on stdin with lines on stdout.

    python scripts/peers/torch_translation.py DIRECTORY THREADS

DIRECTORY holds a Hugging Face Marian checkpoint and `sources.npz` (source_ids, mask). A line {"beams": K, "length": T}
generates T tokens for each source and is answered with {"seconds": S, "peak_mib": M, "tokens": [...]}, the sequences
without their start token. Needs torch and transformers.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import transformers


def peak_mib() -> int:
    """The most memory that this process has held; what getrusage says counts its parent before the fork."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) // 1024


def main(directory: str, threads: str) -> None:
    """Answer lines until stdin ends."""
    torch.set_num_threads(int(threads))
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(directory, dtype=torch.float32).eval()
    arrays = np.load(Path(directory) / "sources.npz")
    source = torch.from_numpy(arrays["source_ids"].astype(np.int64))
    mask = torch.from_numpy(arrays["mask"].astype(np.int64))
    for line in sys.stdin:
        wanted = json.loads(line)
        lengths = {"min_new_tokens": wanted["length"], "max_new_tokens": wanted["length"]}
        start = time.perf_counter()
        with torch.inference_mode():
            found = model.generate(source, attention_mask=mask, num_beams=wanted["beams"], do_sample=False, **lengths)
        answer = {"seconds": time.perf_counter() - start, "tokens": found[:, 1:].tolist()}
        answer["peak_mib"] = peak_mib()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
