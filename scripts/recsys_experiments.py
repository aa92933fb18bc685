"""Experiments with recommenders, for `results.py`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from experiment import SEEDS, data_directory, run_record, settings

from shared.pipeline import Metrics
from shared.training_config import TrainingConfig

# The values that are tried for each model; the best on a validation split is taken.
GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "popularity": {},
    "item_knn": {"weighting": ("cosine", "tfidf", "bm25"), "neighbours": (50, 200)},
    "ease": {"ease_l2": (30.0, 100.0, 300.0, 1000.0)},
    "ials": {"ials_l2": (0.003, 0.01, 0.03), "unobserved_weight": (0.03, 0.1, 0.3), "factors": (128,)},
}
IALS_TRAINING: dict[str, Any] = {"epochs": 12}
RATING_GRID: dict[str, tuple[Any, ...]] = {"mf_l2": (1.0, 1.5, 2.0), "factors": (16, 32, 64)}
RATING_CONFIG: dict[str, Any] = {"model": "biased_mf", "init_scale": 1.0, "mf_frequency_exponent": 0.5}
RATING_TRAINING: dict[str, Any] = {"epochs": 20}


def movielens_last() -> dict[str, Any]:
    """The last interaction of each user, ranked among all items."""
    return _movielens("leave_one_out", "the last interaction of each user")


def movielens_temporal() -> dict[str, Any]:
    """The last tenth of all interactions in time, ranked among all items."""
    return _movielens("temporal:0.1", "the last tenth of interactions in time")


def _movielens(holdout_text: str, words: str) -> dict[str, Any]:
    from recsys import Holdout, read_interactions

    holdout = Holdout.parse(holdout_text)
    split = holdout(read_interactions(data_directory() / "ml-latest-small"))
    tuning = holdout(split.train)
    figures: dict[str, Any] = {}
    chosen = []
    details: dict[str, Any] = {}
    for model in GRIDS:
        tried = [(_ndcg(model, fields, tuning).first, fields) for fields in _combinations(GRIDS[model])]
        best = max(tried, key=lambda row: row[0])[1]
        metrics = _ndcg(model, best, split)
        low, high = metrics.details["intervals"]["ndcg@10"]
        details = metrics.details
        print(f"{model} {best}: {metrics}", flush=True)
        figures |= {f"ndcg@10, {model}": metrics.first, f"95 % interval, {model}": f"{low:.3g} to {high:.3g}"}
        figures |= {f"recall@10, {model}": metrics["recall@10"], f"coverage@10, {model}": metrics["coverage@10"]}
        chosen.append(f"{model} {settings(best, {})}".strip())
    return {
        "title": f"MovieLens latest small, {words}",
        "data": f"ml-latest-small, all ratings count as interactions; {len(split.train):,} for training, "
        f"{len(split.test):,} held out ({holdout}), of {details['users']} users; {details['users_without_history']} of "
        f"these have no history and get popular items; {details['unknown_items']} held-out items are not in training",
        "settings": f"{'; '.join(chosen)}; ials {settings(IALS_TRAINING, {})}; chosen by ndcg@10 on the same split of "
        "the training part",
        "metric": "ndcg@10 of the ranking of all items, seen ones left out; intervals by bootstrap over users",
        "target": "none: learned models are to stand above popularity",
        "figures": figures,
    }


def _ndcg(model: str, fields: dict[str, Any], split: Any) -> Metrics:
    from recsys import CollaborativeFilter, CollaborativeFilterConfig

    recommender = CollaborativeFilter(CollaborativeFilterConfig.from_dict({"model": model, **fields}))
    recommender.fit(split.train, training=TrainingConfig(**IALS_TRAINING))
    return recommender.evaluate(split.test)


def movielens_ratings() -> dict[str, Any]:
    """Ratings of a random fifth, predicted by biased matrix factorisation."""
    from recsys import CollaborativeFilter, CollaborativeFilterConfig, read_interactions
    from recsys.splitting import random_rows

    split = random_rows(read_interactions(data_directory() / "ml-latest-small"), 0.2, seed=0)
    tuning = random_rows(split.train, 0.1, seed=1)

    def fitted(fields: dict[str, Any], parts: Any, epochs: int, seed: int = 0, **more: Any) -> Any:
        recommender = CollaborativeFilter(CollaborativeFilterConfig(**RATING_CONFIG, **fields, seed=seed))
        history = recommender.fit(parts.train, training=TrainingConfig(epochs=epochs), **more)
        return recommender, history

    tried = []
    for fields in _combinations(RATING_GRID):
        _, history = fitted(fields, tuning, RATING_TRAINING["epochs"], validation=tuning.test)
        best = min(history.records, key=lambda record: record["validation_rmse"])
        tried.append((best["validation_rmse"], best["epoch"], fields))
    _, epochs, fields = min(tried, key=lambda row: row[0])
    runs = []
    for seed in SEEDS:
        recommender, history = fitted(fields, split, epochs, seed)
        runs.append(run_record(seed, Metrics({"rmse": recommender.evaluate(split.test)["rmse"]}), history))
    biases, _ = fitted({"mf_l2": 1e6, "factors": 1}, split, 10)
    return {
        "title": "MovieLens latest small, ratings",
        "data": f"ml-latest-small: {len(split.train):,} ratings for training, {len(split.test):,} for the test, drawn "
        "with RandomState(0).permutation",
        "settings": settings({**RATING_CONFIG, **fields}, {"epochs": epochs})
        + "; chosen on a tenth of the training part",
        "metric": "RMSE of the predicted ratings",
        "target": "at most 0.857 as the mean of 3 seeds (a model of biases alone: 0.862)",
        "runs": runs,
        "figures": {"RMSE of biases alone": biases.evaluate(split.test)["rmse"]},
    }


def _combinations(grid: dict[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))
