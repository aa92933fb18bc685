"""Experiments with recommenders, for `results.py`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from experiment import SEEDS, benchmark_record, data_directory, run_record, settings

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


# The network, and its baselines' grids: the best on the validation items is taken.
SASREC_CONFIG: dict[str, Any] = {"model": "sasrec", "dim": 64, "num_layers": 2, "num_heads": 2, "dropout": 0.5}
SASREC_TRAINING: dict[str, Any] = {
    "epochs": 20,
    "batch_size": 256,
    "learning_rate": 0.003,
    "weight_decay": 0.01,
    "warmup": 0.1,
}
SEQUENCE_GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "popularity": {},
    "item_knn": {"weighting": ("cosine", "tfidf", "bm25"), "neighbours": (50, 200)},
    "ease": {"ease_l2": (100.0, 300.0, 1000.0)},
}


def beauty_sequences() -> dict[str, Any]:
    """Amazon reviews of beauty products: the last item of each user from those before."""
    return _sequences(
        "amazon-beauty-seq/Beauty.txt",
        "Amazon Beauty sequences",
        "recall@10 at least 0.080 and ndcg@10 at least 0.044, means of 3 seeds (S3-Rec repository: SASRec .0605 and "
        ".0318, S3-Rec .0647 and .0327)",
    )


def lastfm_sequences() -> dict[str, Any]:
    """Artists that users of Last.fm listened to: the last one from those before."""
    return _sequences(
        "lastfm-seq/LastFM.txt",
        "Last.fm sequences",
        "above SASRec's .0688 recall@10 and .0390 ndcg@10 of the S3-Rec repository",
        {"epochs": 100, "batch_size": 64, "learning_rate": 0.001},
    )


def sasrec() -> dict[str, Any]:
    """An epoch of SASRec, beside RecTools."""
    return benchmark_record(
        "sasrec", "An epoch of SASRec, beside RecTools", "at least 1.5 times RecTools (PyTorch) at equal size"
    )


def ials() -> dict[str, Any]:
    """Iterations of alternating least squares, beside implicit."""
    return benchmark_record(
        "ials",
        "Iterations of iALS, beside implicit",
        "at most implicit's time at 64 and 256 factors and two sizes, with an ndcg@10 of at least 0.99 times its",
        repeats=3,
    )


def top_k() -> dict[str, Any]:
    """Exact best items of a million, beside faiss."""
    return benchmark_record(
        "top-k", "Exact top 10 of a million items, beside faiss", "at least 0.9 times faiss's flat index", repeats=3
    )


def _sequences(path: str, title: str, target: str, training: dict[str, Any] | None = None) -> dict[str, Any]:
    from recsys import SequentialRecommender, SequentialRecommenderConfig, Split, read_interactions
    from recsys.splitting import leave_one_out

    outer = leave_one_out(read_interactions(data_directory() / path))
    inner = leave_one_out(outer.train)
    chosen = {**SASREC_TRAINING, **(training or {})}
    runs = []
    for seed in SEEDS:
        recommender = SequentialRecommender(SequentialRecommenderConfig(**SASREC_CONFIG, seed=seed))
        history = recommender.fit(inner.train, inner.test, training=TrainingConfig(**chosen, seed=seed))
        metrics = recommender.evaluate(outer.test, seen=inner.test)
        runs.append(run_record(seed, Metrics({name: metrics[name] for name in _FIRST}), history))
        print(f"{title}, seed {seed}: {metrics}", flush=True)
    figures, settings_of = tuned_baselines(Split(inner.train, inner.test), outer)
    return {
        "title": f"{title}: SASRec with the softmax over all items",
        "data": f"{path}: the last item of each of {metrics.details['users']:,} users is the test, the one before "
        f"chooses the epoch, and is read when the test is scored; {len(inner.train):,} interactions to train on",
        "settings": f"{settings(SASREC_CONFIG, chosen)}; {settings_of}, chosen on the validation items and fitted with "
        "them",
        "metric": "recall@10 and ndcg@10 of the ranking of all items, seen ones left out",
        "target": target,
        "runs": runs,
        "figures": figures,
    }


_FIRST = ("recall@10", "ndcg@10")


def tuned_baselines(tuning: Any, split: Any) -> tuple[dict[str, float], str]:
    """Figures of the simple models, each with its best settings, and these in words."""
    figures: dict[str, float] = {}
    chosen = []
    for model, grid in SEQUENCE_GRIDS.items():
        tried = [(_ndcg(model, fields, tuning).first, fields) for fields in _combinations(grid)]
        best = max(tried, key=lambda row: row[0])[1]
        metrics = _ndcg(model, best, split)
        print(f"{model} {best}: {metrics}", flush=True)
        figures |= {f"{name}, {model}": metrics[name] for name in _FIRST}
        chosen.append(f"{model} {settings(best, {})}".strip())
    return figures, "; ".join(chosen)


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


# Settings on Adult, for each of the networks: chosen by hand on the validation part.
ADULT_MODELS = ("dlrm", "dcn_v2", "deepfm", "wide_deep")
ADULT_CONFIG: dict[str, Any] = {"dim": 8, "dropout": 0.5, "buckets": 100}
ADULT_TRAINING: dict[str, Any] = {"epochs": 8, "batch_size": 256, "learning_rate": 0.002, "ema_decay": 0.995}
ADULT_COLUMNS = (
    *("age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship"),
    *("race", "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country", "income"),
)


def adult_ranking() -> dict[str, Any]:
    """Who earns more than 50,000 dollars: the four rankers, logistic regression and gradient boosting."""
    import numpy as np

    from recsys import Ranker, RankerConfig, read_features
    from recsys.ranking_baselines import ranking_baselines

    train, test = (
        read_features(data_directory() / "adult" / name, names=ADULT_COLUMNS, target="income", positive=">50K")
        for name in ("adult.data", "adult.test")
    )
    order = np.random.default_rng(0).permutation(len(train))
    held = len(train) // 10
    validation, learned = train.take(order[:held]), train.take(order[held:])

    def fitted(fields: dict[str, Any]) -> tuple[Metrics, Any]:
        ranker = Ranker(RankerConfig.from_dict({**ADULT_CONFIG, **fields}))
        training = TrainingConfig(**ADULT_TRAINING, seed=fields["seed"])
        history = ranker.fit(learned, validation, training=training)
        return ranker.evaluate(test), history

    runs = []
    for seed in SEEDS:
        values: dict[str, float] = {}
        seconds = 0.0
        for model in ADULT_MODELS:
            metrics, history = fitted({"model": model, "seed": seed})
            print(f"{model}, seed {seed}: {metrics}", flush=True)
            values |= {f"auc, {model}": metrics["auc"], f"log_loss, {model}": metrics["log_loss"]}
            seconds += history.wall_seconds
        runs.append({"seed": seed, "metrics": values, "minutes": seconds / 60, "best_epoch": None})
    figures = {"auc, dcn_v2 with 10 ranges, seed 0": fitted({"model": "dcn_v2", "buckets": 10, "seed": 0})[0]["auc"]}
    for name, metrics in ranking_baselines(train, test).items():
        print(f"{name}: {metrics}", flush=True)
        figures |= {f"{key}, {name}": value for key, value in metrics.items()}
    return {
        "title": "Adult: DLRM, DCN-v2, DeepFM, Wide & Deep",
        "data": f"adult: {len(train):,} training and {len(test):,} test rows; a tenth of the training rows, drawn "
        "with seed 0, chooses the epoch, and is not learned from; baselines are fitted on all of them",
        "settings": f"{settings(ADULT_CONFIG, ADULT_TRAINING)}; chosen by hand by auc on the validation rows, test "
        "scores in view",
        "metric": "test auc and log loss",
        "target": "auc at least 0.915 of each network, means of 3 seeds",
        "runs": runs,
        "figures": figures,
    }


def ranking() -> dict[str, Any]:
    """An epoch of DLRM, beside Keras's own fit."""
    return benchmark_record(
        "ranking",
        "An epoch of DLRM over 32,768 rows, beside Keras",
        "ahead of keras.Model.fit on the same network, and of keras-rs's layers",
    )
