"""Train, evaluate, ask and export recommenders that know who chose what.

    python scripts/collaborative_filtering.py train --train ratings.csv --holdout leave_one_out --model ease \
        --output films
    python scripts/collaborative_filtering.py recommend --model films --users 1,2 --k 10

A data path is a CSV, TSV or Parquet file, a MovieLens file or directory, or a file with a user and their items on
each line.
"""

from __future__ import annotations

import sys

from recommender import RecommenderCommand, main

COMMAND = RecommenderCommand(
    name="collaborative_filtering",
    description="Train, evaluate, ask and export recommenders that know who chose what.",
    pipeline="recsys.collaborative_filtering:CollaborativeFilter",
    config="recsys.collaborative_filtering:CollaborativeFilterConfig",
    common=(
        *("model", "min_rating", "weighted", "neighbours", "weighting", "ease_l2", "slim_l1", "slim_l2", "factors"),
        *("ials_l2", "unobserved_weight", "mf_l2", "epochs", "batch_size", "learning_rate", "patience"),
    ),
)

if __name__ == "__main__":
    sys.exit(main(COMMAND))
