"""Train, evaluate, run and export named entity recognizers.

    python scripts/named_entity_recognition.py train --train train.conll --validation dev.conll \
        --preset minilm_l6 --labels from_data --output names-model
    python scripts/named_entity_recognition.py predict --model names-model "Ada Lovelace lived in London." @more.txt

A data path is a CoNLL file (one word and its tag per line, sentences apart by an empty line; IOB1, IOB2 or BIOES), or a
JSON-lines file with text and spans. An input of `predict` is a text; @FILE stands for the lines of a file, and - for
those of standard input.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.cli import TaskCommand, main
from shared.examples import text_lines


def read(path: Path, split: str, *, max_bad_share: float) -> Any:
    """Examples at `path`."""
    from nlp.data import read_conll, read_spans

    reader = read_spans if path.suffix in (".json", ".jsonl") else read_conll
    return reader(path, max_bad_share=max_bad_share)


def details(metrics: Any, pictures: Path | None) -> Sequence[str]:
    """The table of entity types as lines."""
    table = metrics.details["per_type"]
    width = max(4, *(len(row["label"]) for row in table)) if table else 4
    lines = [f"{'type':{width}s}  precision  recall      f1  support"]
    lines += [
        f"{row['label']:{width}s}  {row['precision']:9.4f}  {row['recall']:6.4f}  {row['f1']:6.4f}  {row['support']:7d}"
        for row in table
    ]
    return [*lines, ""]


COMMAND = TaskCommand(
    name="named_entity_recognition",
    description="Train, evaluate, run and export named entity recognizers.",
    pipeline="nlp.ner:EntityRecognizer",
    config="nlp.ner:EntityRecognizerConfig",
    read=read,
    common=(
        *("labels", "scheme", "crf", "max_length", "encoder", "vocab_size", "hidden_size", "num_layers"),
        *("epochs", "batch_size", "optimizer", "learning_rate", "warmup", "weight_decay", "ema_decay"),
        *("label_smoothing", "freeze_epochs", "layer_decay", "patience", "precision", "devices"),
    ),
    details=details,
    inputs=text_lines,
    inputs_help="a text, @FILE for the lines of a file, or - for those of standard input",
)

if __name__ == "__main__":
    sys.exit(main(COMMAND))
