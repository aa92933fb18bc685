"""Recsys: collaborative filtering on interactions of users with items.

Conventions
    ids           users and items are the caller's own: all str or all int, each; numbers only inside
    Features      columns of what is known of users, items or examples; categories are texts inside
    Interactions  columns: users, items, and where there are any ratings float32, timestamps int64
    `.model`      takes user numbers (B,), int64; gives scores of all items (B, I), float32
    items         in sorted order, by which ties of scores are broken: the first of them wins
    metrics       of full rankings, seen items left out; those among sampled items are called `sampled_...`
    scores        float32, higher is better, comparable within one user's answer

Names are loaded when they are first used, so `import recsys` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recsys.answers import Explanation, Recommendations, RowScore, Scores, SimilarItems
    from recsys.collaborative_filtering import CollaborativeFilter, CollaborativeFilterConfig
    from recsys.data import read_interactions
    from recsys.feature_encoder import FeatureEncoder
    from recsys.feature_tables import read_criteo, read_features
    from recsys.features import Features
    from recsys.interactions import Interactions
    from recsys.item_index import ItemIndex
    from recsys.ranking import Ranker, RankerConfig
    from recsys.retrieval import TwoTowerRetriever, TwoTowerRetrieverConfig
    from recsys.sequential import SequentialRecommender, SequentialRecommenderConfig
    from recsys.splitting import Holdout, Split

_HOMES = {
    "CollaborativeFilter": "recsys.collaborative_filtering",
    "CollaborativeFilterConfig": "recsys.collaborative_filtering",
    "Explanation": "recsys.answers",
    "FeatureEncoder": "recsys.feature_encoder",
    "Features": "recsys.features",
    "Holdout": "recsys.splitting",
    "Interactions": "recsys.interactions",
    "ItemIndex": "recsys.item_index",
    "Ranker": "recsys.ranking",
    "RankerConfig": "recsys.ranking",
    "Recommendations": "recsys.answers",
    "RowScore": "recsys.answers",
    "Scores": "recsys.answers",
    "SequentialRecommender": "recsys.sequential",
    "SequentialRecommenderConfig": "recsys.sequential",
    "SimilarItems": "recsys.answers",
    "Split": "recsys.splitting",
    "TwoTowerRetriever": "recsys.retrieval",
    "TwoTowerRetrieverConfig": "recsys.retrieval",
    "read_criteo": "recsys.feature_tables",
    "read_features": "recsys.feature_tables",
    "read_interactions": "recsys.data",
}

__all__ = [
    "CollaborativeFilter",
    "CollaborativeFilterConfig",
    "Explanation",
    "FeatureEncoder",
    "Features",
    "Holdout",
    "Interactions",
    "ItemIndex",
    "Ranker",
    "RankerConfig",
    "Recommendations",
    "RowScore",
    "Scores",
    "SequentialRecommender",
    "SequentialRecommenderConfig",
    "SimilarItems",
    "Split",
    "TwoTowerRetriever",
    "TwoTowerRetrieverConfig",
    "read_criteo",
    "read_features",
    "read_interactions",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'recsys' has no attribute {name!r}")
