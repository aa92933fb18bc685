"""From a trained recommender's numbers to answers in the caller's ids: what all recommenders share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from recsys.answers import Id, Origin, Recommendations, Scores, SimilarItems
from recsys.fitted import Fitted
from recsys.item_index import ItemIndex
from recsys.models.scorers import ItemScorer
from recsys.top_k import top_k
from shared.examples import listed


def recommendations(
    fitted: Fitted,
    users: Sequence[Id],
    k: int,
    *,
    seen: bool = True,
    exclude: Iterable[Id] = (),
    candidates: Iterable[Id] | None = None,
    index: ItemIndex | None = None,
) -> list[Recommendations]:
    """The best `k` items for each user; see `CollaborativeFilter.recommend`."""
    users = listed(users, "users")
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"`k` must be a whole number, at least 1; received {k!r}.")
    if index is not None:
        if candidates is not None:
            raise ValueError("`candidates` are ranked exactly, and quickly where they are few. Leave out `index`.")
        fitted = fitted.over(index)
    rows = fitted.audience.users.numbers(users)
    blocked = fitted.blocked(exclude, candidates)
    found, scores = fitted.ranked(rows, int(k), seen=seen, blocked=blocked, index=index)
    return [
        Recommendations(plain(user), *_answer(fitted, *row), origin=origin)
        for user, row, origin in zip(users, zip(found, scores, strict=True), _origins(fitted, rows), strict=True)
    ]


def pair_answers(fitted: Fitted, inputs: Sequence[Any]) -> list[Scores]:
    """Scores of (user, item) or (user, list of items) pairs; see `CollaborativeFilter.predict`."""
    pairs = [_pair(pair) for pair in listed(inputs, "(user, item) pairs")]
    users = fitted.audience.users.numbers([user for user, _ in pairs])
    counts = [len(items) for _, items in pairs]
    items = fitted.items.numbers([item for _, items in pairs for item in items])
    scores = np.split(fitted.pair_scores(np.repeat(users, counts), items), np.cumsum(counts)[:-1])
    return [
        Scores(user, tuple(items), tuple(part.tolist()), origin)
        for (user, items), part, origin in zip(pairs, scores, _origins(fitted, users), strict=False)
    ]


def similar_answers(fitted: Fitted, items: Sequence[Id], k: int) -> list[SimilarItems]:
    """The `k` items most similar to each of `items`; see `CollaborativeFilter.similar_items`."""
    items = listed(items, "items")
    numbers = fitted.known_items(items)
    similarities = fitted.scorer.similar(numbers)
    if similarities is None:
        raise ValueError("Popularity knows no similar items. Train another model, such as item_knn or ease.")
    similarities[np.arange(len(numbers)), numbers] = -np.inf
    if isinstance(fitted.scorer, ItemScorer):
        similarities[similarities == 0] = -np.inf  # not among the neighbours
    found, scores = top_k(similarities, k)
    answers = zip(items, found, scores, strict=True)
    return [SimilarItems(plain(item), *_answer(fitted, *row)) for item, *row in answers]


def plain(value: Any) -> Any:
    """An id as str or int, where NumPy's own types were given."""
    return value.item() if isinstance(value, np.generic) else value


def _answer(fitted: Fitted, numbers: np.ndarray, scores: np.ndarray) -> tuple[tuple[Id, ...], tuple[float, ...]]:
    """Ids and scores of a row of `top_k`, as far as there are answers in it."""
    count = int(np.count_nonzero(numbers >= 0))
    return tuple(fitted.items.ids(numbers[:count])), tuple(scores[:count].tolist())


def _pair(pair: Any) -> tuple[Id, list[Id]]:
    if isinstance(pair, str | bytes) or not isinstance(pair, Sequence | np.ndarray) or len(pair) != 2:
        raise TypeError(f"Each input must be a pair (user, item) or (user, list of items); received {pair!r}.")
    user, items = pair
    several = isinstance(items, list | tuple | np.ndarray)
    return plain(user), [plain(item) for item in items] if several else [plain(items)]


def _origins(fitted: Fitted, users: np.ndarray) -> list[Origin]:
    origins: list[Origin] = ["model" if good else "popularity" for good in fitted.usable(users).tolist()]
    by_features = fitted.audience.by_features
    if by_features is not None:
        for place in np.flatnonzero((users >= 0) & np.append(by_features, False)[users]).tolist():
            origins[place] = "features"
    return origins
