"""Train, evaluate, run and export translators.

    python scripts/translation.py train --train data/train --validation data/val \
        --source-language en --target-language de --output en-de-model
    python scripts/translation.py predict --model en-de-model "A dog runs." @more.txt

A data path is the common beginning of two files, data/train for data/train.en and data/train.de (or .gz), whose lines
belong together; or one file, .tsv, .jsonl or .tmx. An input of `predict` is a text; @FILE stands for the lines of a
file, and - for those of standard input.
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
    source_language: str = "",
    target_language: str = "",
    encoding: str = "utf-8",
) -> Any:
    """Pairs of texts at `path`."""
    from nlp.parallel import read_parallel

    return read_parallel(
        path,
        source_language=source_language,
        target_language=target_language,
        encoding=encoding,
        max_bad_share=max_bad_share,
    )


def baseline(train: Any, validation: Any, config: Any) -> str:
    """A dictionary learned from the same pairs, and the sources as they are."""
    from nlp.word_translation import word_translation_baseline

    scores = word_translation_baseline(train, validation)
    return f"{scores}  (word by word, IBM model 1; the sources as they are: {scores.details['copy']})"


def details(metrics: Any, pictures: Path | None) -> Sequence[str]:
    """How the scores were computed."""
    return [f"{name}: {signature}" for name, signature in metrics.details["signatures"].items()]


COMMAND = TaskCommand(
    name="translation",
    description="Train, evaluate, run and export translators.",
    pipeline="nlp.translation:Translator",
    config="nlp.translation:TranslatorConfig",
    read=read,
    reader_options=(
        ReaderOption("source_language", "end of the source file's name, JSON key or TMX language, such as en"),
        ReaderOption("target_language", "the same of the translations, such as de"),
        ReaderOption("encoding", "of the files (default: utf-8)"),
    ),
    answer_options=(
        AnswerOption("num_answers", "translations of each text (default: 1)"),
        AnswerOption("language", "to translate into, where a multilingual model knows several", type=str),
    ),
    common=(
        *("language", "num_beams", "length_penalty", "max_length", "network", "vocabulary", "vocab_size"),
        *("hidden_size", "num_layers", "num_heads", "dropout"),
        *("epochs", "batch_tokens", "optimizer", "learning_rate", "schedule", "warmup", "weight_decay", "ema_decay"),
        *("label_smoothing", "patience", "precision", "devices"),
    ),
    details=details,
    inputs=text_lines,
    inputs_help="a text, @FILE for the lines of a file, or - for those of standard input",
    baseline=baseline,
)

if __name__ == "__main__":
    sys.exit(main(COMMAND))
