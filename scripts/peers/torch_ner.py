"""Fine-tune a token classifier in PyTorch as plainly as it is done: `torch_ner.py JOB.json ANSWERS.json`.

The job names the checkpoint, the tags, sentences of words with and without tags, and the settings of the training;
the answers hold a tag for each word of each test sentence, and the seconds that training took. Needs torch and
transformers.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

# Batches whose sentences are sorted by length together, as in our input pipeline.
_BUCKET_WINDOW = 64


def main(job_file: str, answers_file: str) -> None:
    """Train, answer, write."""
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    settings = job["training"]
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(job["checkpoint"])
    model = AutoModelForTokenClassification.from_pretrained(job["checkpoint"], num_labels=len(job["tags"]))
    train = [_encoded(tokenizer, words, job, tags) for words, tags in job["train"]]
    start = time.monotonic()
    _train(model, train, settings)
    seconds = time.monotonic() - start
    tags = _answers(model, tokenizer, job)
    Path(answers_file).write_text(json.dumps({"tags": tags, "seconds": seconds}), encoding="utf-8")


def _encoded(tokenizer: Any, words: Sequence[str], job: dict[str, Any], tags: Sequence[str] = ()) -> dict[str, Any]:
    """Token ids, the word that each token is the first of (or -1), and its tag number (or -100)."""
    encoding = tokenizer(list(words), is_split_into_words=True, truncation=True, max_length=job["max_length"])
    numbers = {tag: number for number, tag in enumerate(job["tags"])}
    first, targets, before = [], [], None
    for word in encoding.word_ids():
        starts = word is not None and word != before
        first.append(word if starts else -1)
        targets.append(numbers[tags[word]] if starts and tags else -100)
        before = word
    return {"ids": encoding["input_ids"], "first": first, "targets": targets}


def _padded(examples: Sequence[dict[str, Any]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    length = max(len(example["ids"]) for example in examples)

    def stacked(key: str, fill: int) -> torch.Tensor:
        return torch.tensor([example[key] + [fill] * (length - len(example[key])) for example in examples])

    mask = torch.tensor([[1] * len(e["ids"]) + [0] * (length - len(e["ids"])) for e in examples])
    return stacked("ids", 0), mask, stacked("targets", -100)


def _batches(examples: list[Any], size: int, rng: random.Random) -> Iterator[list[Any]]:
    order = rng.sample(examples, len(examples))
    for start in range(0, len(order), size * _BUCKET_WINDOW):
        window = sorted(order[start : start + size * _BUCKET_WINDOW], key=lambda example: len(example["ids"]))
        batches = [window[i : i + size] for i in range(0, len(window), size)]
        yield from rng.sample(batches, len(batches))


def _train(model: Any, examples: list[Any], settings: dict[str, Any]) -> None:
    size, epochs = settings["batch_size"], settings["epochs"]
    decayed = [p for p in model.parameters() if p.ndim > 1]
    spared = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": settings["weight_decay"]},
        {"params": spared, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings["learning_rate"], fused=True)
    steps = epochs * -(-len(examples) // size)
    warmup = max(1, round(settings["warmup"] * steps))

    def rate(step: int) -> float:
        return float(min((step + 1) / warmup, 1.0) * min(1.0, (steps - step) / max(1, steps - warmup)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    rng = random.Random(settings["seed"])
    model.train()
    for epoch in range(epochs):
        for batch in _batches(examples, size, rng):
            ids, mask, targets = _padded(batch)
            loss = model(input_ids=ids, attention_mask=mask, labels=targets).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings["clip_norm"])
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
        print(f"PyTorch: epoch {epoch + 1}/{epochs}", flush=True)


def _answers(model: Any, tokenizer: Any, job: dict[str, Any]) -> list[list[str]]:
    """A tag for each word; O for those that were cut off."""
    model.eval()
    encoded = [_encoded(tokenizer, words, job) for words in job["test"]]
    tags = [["O"] * len(words) for words in job["test"]]
    order = sorted(range(len(encoded)), key=lambda number: len(encoded[number]["ids"]))
    with torch.inference_mode():
        for start in range(0, len(order), 32):
            numbers = order[start : start + 32]
            ids, mask, _ = _padded([encoded[number] for number in numbers])
            best = model(input_ids=ids, attention_mask=mask).logits.argmax(-1).tolist()
            for number, row in zip(numbers, best, strict=True):
                for place, word in enumerate(encoded[number]["first"]):
                    if word >= 0:
                        tags[number][word] = job["tags"][row[place]]
    return tags


if __name__ == "__main__":
    main(*sys.argv[1:])
