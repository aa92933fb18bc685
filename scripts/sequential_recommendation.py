"""Train, evaluate, ask and export recommenders that read what a user chose in the order of time.

    python scripts/sequential_recommendation.py train --train Beauty.txt --holdout leave_one_out --output beauty
    python scripts/sequential_recommendation.py recommend --model beauty --users 1,2 --k 10

A data path is a CSV, TSV or Parquet file with timestamps (or rows in the order of time), a MovieLens file or directory,
or a file with a user and their items on each line.
"""

from __future__ import annotations

import sys

from recommender import RecommenderCommand, main

COMMAND = RecommenderCommand(
    name="sequential_recommendation",
    description="Train, evaluate, ask and export recommenders that read what a user chose in the order of time.",
    pipeline="recsys.sequential:SequentialRecommender",
    config="recsys.sequential:SequentialRecommenderConfig",
    common=(
        *("model", "max_length", "dim", "num_layers", "num_heads", "dropout", "loss", "num_sampled", "min_rating"),
        *("epochs", "batch_size", "learning_rate", "weight_decay", "patience", "precision", "xla"),
    ),
    holds_out_validation=True,
)

if __name__ == "__main__":
    sys.exit(main(COMMAND))
