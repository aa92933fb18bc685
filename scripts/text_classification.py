"""Train, evaluate, run and export text classifiers.

    python scripts/text_classification.py train --train reviews.csv --validation held-out.csv \
        --preset minilm_l6 --labels from_data --output reviews-model
    python scripts/text_classification.py predict --model reviews-model "a fine film" @more.txt

A data path is a CSV, TSV or JSON-lines file with columns text (and text_pair) and label. An input of `predict` is a
text; @FILE stands for the lines of a file, and - for those of standard input.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.cli import AnswerOption, ReaderOption, TaskCommand, main
from shared.examples import text_lines


def read(
    path: Path,
    split: str,
    *,
    max_bad_share: float,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
    label_separator: str | None = None,
    encoding: str = "utf-8",
) -> Any:
    """Examples at `path`."""
    from nlp.data import read_text_table

    return read_text_table(
        path,
        text=text_column,
        pair=pair_column,
        label=label_column,
        label_separator=label_separator,
        encoding=encoding,
        max_bad_share=max_bad_share,
    )


def baseline(train: Any, validation: Any, config: Any) -> str:
    """A linear model on TF-IDF of the same examples, where scikit-learn is installed."""
    from nlp.baselines import Kind, tfidf_baseline

    kind: Kind = "regression" if config.regression else "multi_label" if config.multi_label else "classification"
    try:
        scores = tfidf_baseline(train, validation, kind=kind)
    except ImportError:
        return "not measured: pip install scikit-learn"
    name = "ridge regression" if config.regression else "logistic regression"
    return f"{scores}  ({name} on TF-IDF, strength {scores.details['strength']:g})"


def details(metrics: Any, pictures: Path | None) -> Sequence[str]:
    """The per-class table as lines; with `pictures`, the confusion matrix is drawn there."""
    from shared.classification_metrics import details_lines

    return details_lines(metrics.details, pictures)


COMMAND = TaskCommand(
    name="text_classification",
    description="Train, evaluate, run and export text classifiers.",
    pipeline="nlp.classification:TextClassifier",
    config="nlp.classification:TextClassifierConfig",
    read=read,
    reader_options=(
        ReaderOption("text_column", "column of the texts (default: text and its like)"),
        ReaderOption("pair_column", "column of second texts"),
        ReaderOption("label_column", "column of the labels (default: label and its like)"),
        ReaderOption("label_separator", "what separates several labels in a field (--multi-label)"),
        ReaderOption("encoding", "of the file (default: utf-8)"),
    ),
    answer_options=(AnswerOption("top_k", "classes in an answer (default: 5)"),),
    common=(
        *("labels", "multi_label", "regression", "max_length", "encoder", "vocab_size", "hidden_size", "num_layers"),
        *("class_weights", "epochs", "batch_size", "optimizer", "learning_rate", "warmup"),
        *("weight_decay", "ema_decay", "label_smoothing", "freeze_epochs", "layer_decay", "patience"),
        *("precision", "devices"),
    ),
    details=details,
    inputs=text_lines,
    inputs_help="a text, @FILE for the lines of a file, or - for those of standard input",
    baseline=baseline,
)

if __name__ == "__main__":
    sys.exit(main(COMMAND))
