"""Recommendations of implicit, LensKit and RecTools with given settings, for comparison.

    python scripts/peers/recommenders.py JOB.npz ANSWERS.npz THREADS

The job has a user-by-item matrix (`indices`, `indptr`, `shape`), the `users` who are asked, `k`, and `models`: a JSON
list of {"name", "library", "model", settings...}. `start` among the settings of implicit's ials is the name of an array
of the job: factors of items to begin with. For each of them the answers have, under its name, item numbers
(B, k), best first, -1 where no more come. Needs implicit, lenskit, and rectools (`--no-deps`, with attrs and
typeguard).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np


def implicit_answers(model: str, settings: dict[str, Any], matrix: Any, users: Any, k: int, threads: int) -> Any:
    """Of implicit: ials and item_knn."""
    import threadpoolctl
    from implicit.als import AlternatingLeastSquares
    from implicit.nearest_neighbours import BM25Recommender, CosineRecommender, TFIDFRecommender

    # As implicit asks for; after its import, which loads the BLAS that it uses.
    threadpoolctl.threadpool_limits(1, "blas")
    if model == "ials":
        start = settings.pop("start")
        recommender: Any = AlternatingLeastSquares(**settings, num_threads=threads)
        recommender.item_factors = start.copy()
        recommender.user_factors = np.zeros((matrix.shape[0], start.shape[1]), np.float32)
    else:
        kinds = {"cosine": CosineRecommender, "tfidf": TFIDFRecommender, "bm25": BM25Recommender}
        recommender = kinds[settings.pop("weighting")](**settings, num_threads=threads)
    recommender.fit(matrix, show_progress=False)
    # Users of ials are solved for the last items, as ours are.
    again = {"recalculate_user": True} if model == "ials" else {}
    return recommender.recommend(users, matrix[users], N=k, filter_already_liked_items=True, **again)[0]


def rectools_answers(model: str, settings: dict[str, Any], matrix: Any, users: Any, k: int, threads: int) -> Any:
    """Of RecTools: ease."""
    from rectools.dataset import Dataset
    from rectools.models import EASEModel

    recommender = EASEModel(**settings, recommend_n_threads=threads)
    dataset = Dataset.construct(_table(matrix, weight=1.0, datetime="2000-01-01"))
    recommender.fit(dataset)
    found = recommender.recommend(users, dataset, k=k, filter_viewed=True)
    return _rows([found[found["user_id"] == user].sort_values("rank")["item_id"] for user in users.tolist()], k)


def lenskit_answers(model: str, settings: dict[str, Any], matrix: Any, users: Any, k: int, threads: int) -> Any:
    """Of LensKit: ease, ials and item_knn."""
    from lenskit import recommend
    from lenskit.als import ImplicitMFScorer
    from lenskit.data import from_interactions_df
    from lenskit.knn import EASEScorer, ItemKNNScorer
    from lenskit.pipeline import topn_pipeline
    from lenskit.training import TrainingOptions

    kinds: dict[str, Any] = {"ease": EASEScorer, "ials": ImplicitMFScorer, "item_knn": ItemKNNScorer}
    seed = settings.pop("random_state", 0)
    pipeline = topn_pipeline(kinds[model](**settings))
    pipeline.train(from_interactions_df(_table(matrix)), TrainingOptions(rng=seed))
    return _rows([recommend(pipeline, user, n=k).ids() for user in users.tolist()], k)


def _table(matrix: Any, **constant: Any) -> Any:
    import pandas as pd

    coordinates = matrix.tocoo()
    return pd.DataFrame({"user_id": coordinates.row, "item_id": coordinates.col, **constant})


def _rows(lists: list[Any], k: int) -> np.ndarray:
    answers = np.full((len(lists), k), -1, np.int64)
    for row, items in enumerate(lists):
        answers[row, : len(items)] = np.asarray(items)[:k]
    return answers


LIBRARIES: dict[str, Callable[..., Any]] = {
    "implicit": implicit_answers,
    "rectools": rectools_answers,
    "lenskit": lenskit_answers,
}


def main(job_file: str, answers_file: str, threads: str) -> None:
    """Answer the whole job."""
    import scipy.sparse as sp

    job = np.load(job_file)
    parts = np.ones(len(job["indices"]), np.float32), job["indices"], job["indptr"]
    matrix = sp.csr_matrix(parts, shape=tuple(job["shape"]))
    answers = {}
    for settings in json.loads(str(job["models"])):
        name, library, model = (settings.pop(key) for key in ("name", "library", "model"))
        if "start" in settings:
            settings["start"] = job[settings["start"]]
        answers[name] = LIBRARIES[library](model, settings, matrix, job["users"], int(job["k"]), int(threads))
    np.savez(answers_file, **answers)


if __name__ == "__main__":
    main(*sys.argv[1:])
