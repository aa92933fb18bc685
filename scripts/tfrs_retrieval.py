"""Train, evaluate, ask and export two towers of TensorFlow Recommenders.

    python scripts/tfrs_retrieval.py train --train ratings.csv --holdout leave_one_out --epochs 20 --batch-size 1024 \
        --learning-rate 0.1 --output films
    python scripts/tfrs_retrieval.py recommend --model films --users 1,2 --k 10

A data path is a CSV, TSV or Parquet file, a MovieLens file or directory, or a file with a user and their items on
each line. The script runs TensorFlow's Keras as Keras 2, for itself alone.
"""

from __future__ import annotations

import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # before TensorFlow is imported

import sys

from recommender import RecommenderCommand, main

COMMAND = RecommenderCommand(
    name="tfrs_retrieval",
    description="Train, evaluate, ask and export two towers of TensorFlow Recommenders.",
    pipeline="recsys.tfrs:TFRSRetriever",
    config="recsys.tfrs_config:TFRSRetrieverConfig",
    common=(
        *("dim", "hidden_dims", "update_rule", "temperature", "log_q", "hard_negatives", "rating_weight", "min_rating"),
        *("epochs", "batch_size", "learning_rate", "patience"),
    ),
    holds_out_validation=True,
)

if __name__ == "__main__":
    sys.exit(main(COMMAND))
