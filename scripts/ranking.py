"""Train, evaluate, ask and export rankers: the probability of a click, or a rating, from features.

    python scripts/ranking.py train --train clicks.csv --validation later.csv --target clicked --output clicks-model
    python scripts/ranking.py train --train train.txt --layout criteo --model dlrm --output criteo-model
    python scripts/ranking.py predict --model clicks-model '{"hour": 8, "ad": "tea"}' @more.csv

A data path is a CSV, TSV, JSON-lines or Parquet file with a column for each feature and one for the target. An input of
`predict` is a JSON object with all features; @FILE stands for the rows of a file. `evaluate` and `predict` know the
columns' kinds from the model.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shared.cli import NamedInput, ReaderOption, TaskCommand, main


def read(
    path: Path,
    split: str,
    *,
    max_bad_share: float,
    layout: str = "table",
    target: str | None = None,
    positive: str | None = None,
    model: Path | None = None,
    **options: str,
) -> Any:
    """Features and targets at `path`; with `model`, of the kinds that it was trained on."""
    from recsys import read_criteo, read_features

    if layout == "criteo":
        return read_criteo(path, max_bad_share=max_bad_share)
    if layout != "table":
        raise ValueError(f"`--layout` must be table or criteo; received {layout!r}.")
    return read_features(
        path, target=target, positive=positive, **reading(model, **options), max_bad_share=max_bad_share
    )


def reading(
    model: Path | None = None,
    *,
    id: str | None = None,
    names: str | None = None,
    kinds: str | None = None,
    drop: str = "",
    delimiter: str | None = None,
    separator: str = "|",
) -> dict[str, Any]:
    """Keywords of `read_features` from flags; kinds that these do not name are the model's."""
    pairs = [pair.partition("=") for pair in _parts(kinds or "")]
    return {
        "id": id,
        "names": None if names is None else _parts(names),
        "kinds": _kinds_of(model) | {name: kind for name, _, kind in pairs},
        "drop": _parts(drop),
        "delimiter": delimiter,
        "separator": separator,
    }


def _kinds_of(model: Path | None) -> dict[str, Any]:
    """Kinds of the columns that a saved model was trained on; where it cannot be read, loading it says why."""
    from recsys.feature_encoder import FeatureEncoder

    file = None if model is None else model / "features.json"
    return {} if file is None or not file.exists() else dict(FeatureEncoder.load(file).kinds)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def inputs(typed: Sequence[str], *, model: Path | None = None, **options: str) -> Iterator[NamedInput]:
    """Rows, as JSON objects or from files, all of whose rows must be usable: each has an answer."""
    from recsys import read_features

    for text in typed:
        if text.startswith("@"):
            table = read_features(text[1:], **reading(model, **options), max_bad_share=0.0)
            ids: Any = range(1, len(table) + 1) if table.ids is None else table.ids.tolist()
            yield from (NamedInput(id, row) for id, row in zip(ids, table.rows(), strict=True))
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"An input is a JSON object of features, or @FILE; received {text!r} ({error})."
            ) from error
        yield NamedInput(row, row)


def details(metrics: Any, pictures: Path | None) -> Sequence[str]:
    """How many rows there were, and how the mean answer compares."""
    found = metrics.details
    if "clicks" not in found:
        return [f"{found['rows']} rows"]
    share = found["clicks"] / found["rows"]
    return [f"{found['rows']} rows, {found['clicks']} clicks: {share:.4f}; mean score {found['mean_score']:.4f}"]


def baseline(train: Any, validation: Any, config: Any) -> str:
    """Logistic regression and gradient boosting on the same rows, where scikit-learn is installed."""
    from recsys.ranking_baselines import ranking_baselines

    try:
        found = ranking_baselines(train, validation)
    except ImportError:
        return "not measured: pip install scikit-learn"
    lines = [f"{metrics}  ({name}, setting {metrics.details['setting']:g})" for name, metrics in found.items()]
    return "\nbaseline    ".join(lines)


_READING = (
    ReaderOption("id", "column of the rows' ids"),
    ReaderOption("names", "of the columns, with commas, where the first line is data"),
    ReaderOption("kinds", "of columns, as zip=categorical,tags=multi_valued; others are found out"),
    ReaderOption("drop", "columns to leave out, with commas"),
    ReaderOption("delimiter", "between the cells of a line (default: found out)"),
    ReaderOption("separator", "between the categories of a cell (default: |)"),
)

COMMAND = TaskCommand(
    name="ranking",
    description="Train, evaluate, ask and export rankers: the probability of a click, or a rating, from features.",
    pipeline="recsys.ranking:Ranker",
    config="recsys.ranking:RankerConfig",
    read=read,
    common=(
        *("model", "objective", "dim", "hidden", "dropout", "crosses", "min_count", "hash_buckets", "buckets"),
        *("epochs", "batch_size", "learning_rate", "weight_decay", "ema_decay", "patience", "precision", "xla"),
    ),
    details=details,
    inputs=inputs,
    inputs_help="a JSON object with every feature, null for what is not known; @FILE: the rows of a file",
    baseline=baseline,
    reader_options=(
        ReaderOption("target", "column of what is learned"),
        ReaderOption("positive", "text of the target that counts as 1"),
        ReaderOption("layout", "table, or criteo: 13 numbers and 26 codes (default: table)"),
        *_READING,
    ),
    input_options=_READING,
    presets=False,
    reads_for_model=True,
)

if __name__ == "__main__":
    sys.exit(main(COMMAND))
