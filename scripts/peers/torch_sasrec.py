"""SASRec in RecTools (PyTorch), for comparison: answers lines of JSON on stdin with lines on stdout.

    python scripts/peers/torch_sasrec.py JOB.npz THREADS

The job has columns `users`, `items` and `times`, and the settings of the network. Each line on stdin trains for one
epoch and is answered with {"seconds": S}. Needs rectools[torch].
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import sys
import time
import warnings
from typing import Any

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel


def main(job_file: str, threads: str) -> None:
    """Answer lines until stdin ends."""
    torch.set_num_threads(int(threads))
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        model, loader = _prepared(np.load(job_file))
        trainer = model._trainer
        for _ in sys.stdin:
            epoch = copy.deepcopy(trainer)
            start = time.perf_counter()
            epoch.fit(model.lightning_model, loader)
            print(json.dumps({"seconds": time.perf_counter() - start}), file=answers, flush=True)


def _prepared(job: Any) -> tuple[Any, Any]:
    """The model built for the data, and its loader: what `fit` makes before the first epoch."""
    columns = {Columns.User: job["users"], Columns.Item: job["items"], Columns.Datetime: job["times"]}
    table = pd.DataFrame({**columns, Columns.Weight: 1.0})
    table[Columns.Datetime] = pd.to_datetime(table[Columns.Datetime], unit="s")
    model = SASRecModel(
        n_blocks=int(job["num_layers"]),
        n_heads=int(job["num_heads"]),
        n_factors=int(job["dim"]),
        dropout_rate=float(job["dropout"]),
        session_max_len=int(job["max_length"]),
        batch_size=int(job["batch_size"]),
        lr=float(job["learning_rate"]),
        loss="softmax",
        epochs=1,
        deterministic=False,
        get_trainer_func=_trainer,
    )
    model._build_model_from_dataset(Dataset.construct(table))
    return model, model.data_preparator.get_dataloader_train()


def _trainer() -> Trainer:
    return Trainer(
        max_epochs=1,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        enable_checkpointing=False,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
