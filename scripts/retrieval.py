"""Train, evaluate, ask and export two-tower recommenders, which know ids and features of users and items.

    python scripts/retrieval.py train --train ratings.csv --item-features movies.csv --item-features-drop title \
        --holdout leave_one_out --epochs 20 --batch-size 1024 --output films
    python scripts/retrieval.py recommend --model films --users 1,2 --k 10

A data path is a CSV, TSV or Parquet file, a MovieLens file or directory, or a file with a user and their items on
each line. Features are tables (CSV, TSV, JSON lines, Parquet) with a row for each user or item.
"""

from __future__ import annotations

import sys

from recommender import RecommenderCommand, main

COMMAND = RecommenderCommand(
    name="retrieval",
    description="Train, evaluate, ask and export two-tower recommenders, which know ids and features.",
    pipeline="recsys.retrieval:TwoTowerRetriever",
    config="recsys.retrieval:TwoTowerRetrieverConfig",
    common=(
        *("dim", "hidden_dims", "normalize", "temperature", "log_q", "uniform_negatives", "hard_negatives"),
        *("id_dropout", "min_rating", "epochs", "batch_size", "learning_rate", "weight_decay", "patience", "precision"),
    ),
    features=True,
    holds_out_validation=True,
)

if __name__ == "__main__":
    sys.exit(main(COMMAND))
