"""Text models in PyTorch and transformers, for comparison: answers lines of JSON on stdin with lines on stdout.

    python scripts/peers/torch_text.py DIRECTORY THREADS float32|bfloat16

DIRECTORY holds a Hugging Face checkpoint, `texts.json` and, for training, `batches.npz`. A line {"side": NAME} runs
one of the functions below and is answered with {"seconds": S}. Needs torch and transformers.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

_BATCH = 32


class Peer:
    """The models, loaded on first use, and what is timed."""

    def __init__(self, directory: str, dtype: torch.dtype) -> None:
        self.directory = Path(directory)
        self.dtype = dtype
        self.texts = json.loads((self.directory / "texts.json").read_text(encoding="utf-8"))
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
        self._made: dict[str, Any] = {}

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gave the first time."""
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def model(self) -> Any:
        """The sequence classifier, ready to answer."""
        kind = transformers.AutoModelForSequenceClassification
        return self.once("model", lambda: kind.from_pretrained(self.directory, dtype=self.dtype).eval())

    def pipeline(self, task: str, **options: Any) -> Any:
        """A pipeline of transformers."""
        return self.once(
            task,
            lambda: transformers.pipeline(
                task, model=str(self.directory), tokenizer=self.tokenizer, device="cpu", dtype=self.dtype, **options
            ),
        )

    def pipeline_texts(self) -> None:
        """transformers.pipeline on all texts, batches of 32 in the order in which they come."""
        self.pipeline("text-classification")(self.texts, batch_size=_BATCH, truncation=True, top_k=5)

    def pipeline_entities(self) -> None:
        """transformers.pipeline for entities on all texts, batches of 32 in the order in which they come."""
        self.pipeline("token-classification", aggregation_strategy="first")(self.texts, batch_size=_BATCH)

    def sorted_texts(self) -> None:
        """All texts tokenized, sorted by length, in batches of 32 padded to their longest."""
        model = self.model()
        ids = self.tokenizer(self.texts, truncation=True)["input_ids"]
        order = sorted(range(len(ids)), key=lambda number: len(ids[number]))
        with torch.inference_mode():
            for start in range(0, len(order), _BATCH):
                batch = [ids[number] for number in order[start : start + _BATCH]]
                padded = self.tokenizer.pad({"input_ids": batch}, return_tensors="pt")
                model(**padded).logits.float().softmax(-1).topk(min(5, model.config.num_labels)).values.tolist()

    def single_texts(self) -> None:
        """The first hundred texts, one at a time."""
        model = self.model()
        with torch.inference_mode():
            for text in self.texts[:100]:
                logits = model(**self.tokenizer(text, truncation=True, return_tensors="pt")).logits
                logits.float().softmax(-1).topk(min(5, model.config.num_labels)).values.tolist()

    def training_steps(self) -> None:
        """A step of AdamW, with clipping, on each of the batches."""
        model, optimizer, batches = self.once("training", self._training)
        for ids, mask, targets in batches:
            model(input_ids=ids, attention_mask=mask, labels=targets).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _training(self) -> tuple[Any, Any, list[Any]]:
        kind = transformers.AutoModelForSequenceClassification
        model = kind.from_pretrained(self.directory, dtype=torch.float32).train()
        arrays = np.load(self.directory / "batches.npz")
        batches = [
            tuple(torch.from_numpy(arrays[f"{key}_{number}"].astype(np.int64)) for key in ("ids", "mask", "targets"))
            for number in range(len(arrays.files) // 3)
        ]
        return model, torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True), batches


def main(directory: str, threads: str, precision: str) -> None:
    """Answer lines until stdin ends."""
    torch.set_num_threads(int(threads))
    transformers.logging.set_verbosity_error()
    peer = Peer(directory, {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision])
    for line in sys.stdin:
        side = json.loads(line)["side"]
        start = time.perf_counter()
        getattr(peer, side)()
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
