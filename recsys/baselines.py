"""What a recommender has to beat: popularity, and simple models tuned on a split of the training part."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from recsys.collaborative_filtering import CollaborativeFilter, CollaborativeFilterConfig
from recsys.splitting import Split
from shared.pipeline import Metrics

# The values that are tried.
_GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    "popularity": {},
    "item_knn": {"weighting": ("cosine", "tfidf", "bm25"), "neighbours": (50, 200)},
    "ease": {"ease_l2": (30.0, 100.0, 300.0, 1000.0)},
}
# EASE's weights are dense: with so many items they take 1.6 GB.
_MOST_ITEMS = 20_000


def simple_baselines(split: Split, resplit: Callable[..., Split], *, min_rating: float = 0.0) -> dict[str, Metrics]:
    """Scores on `split` of popularity, item_knn and ease, the best settings of each by ndcg@10.

    Args:
        split: what the recommender was trained and scored on.
        resplit: splits the training part in the same way, to choose settings on; the test has no part in that.
        min_rating: as in the config.

    Returns:
        Metrics by name and settings; ease is left out for more than 20,000 items.

    Raises:
        ValueError: where the training part cannot be split again.
    """
    tuning = resplit(split.train)
    scores = {}
    for model, grid in _GRIDS.items():
        if model == "ease" and len(set(split.train.items.tolist())) > _MOST_ITEMS:
            continue
        tried = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
        fixed = {"model": model, "min_rating": min_rating}
        best = max(tried, key=lambda fields: _scored({**fixed, **fields}, tuning).first) if len(tried) > 1 else tried[0]
        settings = ", ".join(f"{name} {value}" for name, value in best.items())
        scores[f"{model}{f' ({settings})' if settings else ''}"] = _scored({**fixed, **best}, split)
    return scores


def _scored(fields: dict[str, Any], split: Split) -> Metrics:
    recommender = CollaborativeFilter(CollaborativeFilterConfig.from_dict(fields))
    recommender.fit(split.train)
    return recommender.evaluate(split.test, seen=split.seen)
