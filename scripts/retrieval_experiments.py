"""Experiments with two towers, for `results.py`."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from experiment import ROOT, SEEDS, benchmark_record, data_directory, run_record, settings
from recsys_experiments import tuned_baselines

from shared.pipeline import Metrics
from shared.training_config import TrainingConfig

# Chosen by the validation items, among lengths, decays and temperatures.
CONFIG: dict[str, Any] = {"dim": 64}
TRAINING: dict[str, Any] = {"epochs": 15, "batch_size": 1024, "learning_rate": 0.01, "weight_decay": 1.0}
TFRS: dict[str, Any] = {"dim": 64, "epochs": 15, "batch_size": 1024, "learning_rate": 0.1}
_SHOWN = ("ndcg@10", "recall@10")


def movielens_retrieval() -> dict[str, Any]:
    """Two towers with genres, the last interaction of each user ranked among all items."""
    from recsys import Split, read_features, read_interactions
    from recsys.splitting import leave_one_out

    directory = data_directory() / "ml-latest-small"
    outer = leave_one_out(read_interactions(directory))
    inner = leave_one_out(outer.train)
    genres = read_features(directory / "movies.csv", id="movieId", drop=["title"])
    runs, without = [], []
    for seed in SEEDS:
        metrics, history = _scored(inner, outer, genres, seed)
        runs.append(run_record(seed, Metrics({name: metrics[name] for name in _SHOWN}), history))
        without.append(_scored(inner, outer, None, seed)[0])
    figures: dict[str, Any] = {
        f"{name}, without genres, mean of 3": sum(metrics[name] for metrics in without) / len(without)
        for name in _SHOWN
    }
    figures |= {f"{name}, tfrs": value for name, value in _tfrs(directory).items()}
    baselines, chosen = tuned_baselines(Split(inner.train, inner.test), outer)
    return {
        "title": "MovieLens latest small: two towers over ids and genres",
        "data": f"ml-latest-small, all ratings count as interactions: the last item of each of {len(outer.test):,} "
        f"users is the test, the one before chooses the epoch; {len(inner.train):,} interactions to train on",
        "settings": f"{settings(CONFIG, TRAINING)}; tfrs: Adagrad, {settings(TFRS, {})}, ids alone; TFRS at one "
        f"untuned setting, one seed, where ours was tuned on the validation items; {chosen}, chosen on the validation "
        "items and fitted with them",
        "metric": "ndcg@10 and recall@10 of the ranking of all items, seen ones left out",
        "target": "ndcg@10 above popularity's",
        "runs": runs,
        "figures": figures | baselines,
    }


def _scored(inner: Any, outer: Any, genres: Any, seed: int) -> tuple[Metrics, Any]:
    from recsys import TwoTowerRetriever, TwoTowerRetrieverConfig

    retriever = TwoTowerRetriever(TwoTowerRetrieverConfig(**CONFIG, seed=seed))
    training = TrainingConfig(**TRAINING, seed=seed)
    history = retriever.fit(inner.train, inner.test, item_features=genres, training=training)
    metrics = retriever.evaluate(outer.test, seen=inner.test)
    print(f"two towers, seed {seed}, {'genres' if genres is not None else 'ids alone'}: {metrics}", flush=True)
    return metrics, history


def _tfrs(data: Path) -> dict[str, float]:
    """What the script of TFRS prints for the same split; it runs Keras 2, in a process of its own."""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, str(ROOT / "scripts" / "tfrs_retrieval.py"), "train", "--train", str(data)]
        command += ["--holdout", "leave_one_out", "--no-baselines", "--output", str(Path(directory, "model"))]
        command += [part for name, value in TFRS.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    line = next(line for line in printed.splitlines() if line.startswith("tfrs_retrieval"))
    print(line, flush=True)
    found = {name: re.search(rf"{re.escape(name)} ([0-9.]+)", line) for name in _SHOWN}
    return {name: float(match[1]) for name, match in found.items() if match is not None}


def two_tower() -> dict[str, Any]:
    """Two embedding towers, beside TensorFlow Recommenders."""
    return benchmark_record(
        "two-tower",
        "Training two towers, beside TensorFlow Recommenders",
        "with row-wise Adam, at least 1.5 times TFRS with Adagrad, as in its tutorials, in batches of 4096; batches of "
        "1024 and TFRS with Adam are shown beside",
        repeats=3,
    )
