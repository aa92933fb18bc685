"""The table "What odd input gets" of docs/collaborative_filtering.md, for all models and both pipelines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import pytest

from recsys import (
    CollaborativeFilter,
    CollaborativeFilterConfig,
    Interactions,
    SequentialRecommender,
    SequentialRecommenderConfig,
)
from shared import TrainingConfig
from tests.recsys.tastes import tastes

Recommender: TypeAlias = CollaborativeFilter | SequentialRecommender

_SOLVED = ("popularity", "item_knn", "ease", "slim")
_TRAINED = ("ials", "bpr", "biased_mf")
_SMALL: dict[str, Any] = {"factors": 4, "ease_l2": 5.0, "slim_l1": 0.1, "min_rating": 3.0}
_NETWORK: dict[str, Any] = {"dim": 8, "num_layers": 1, "max_length": 6, "dropout": 0.0, "min_rating": 3.0}


def filtering(model: str) -> CollaborativeFilter:
    return CollaborativeFilter(CollaborativeFilterConfig(model=model, **_SMALL))  # type: ignore[arg-type]


def sequential() -> SequentialRecommender:
    return SequentialRecommender(SequentialRecommenderConfig(**_NETWORK))


def fit(recommender: Recommender, data: Any) -> Recommender:
    recommender.fit(data, training=TrainingConfig(epochs=2, batch_size=16, learning_rate=0.05))
    return recommender


def made() -> Interactions:
    """Users of three tastes, and one who rated everything too low to be a sign of liking."""
    return tastes().joined(Interactions(["grump"] * 2, [101, 205], [1.0, 2.0], [10_000, 10_001]))


@pytest.fixture(scope="module", params=[*_SOLVED, *_TRAINED, "sasrec"])
def recommender(request: pytest.FixtureRequest) -> Recommender:
    return fit(sequential() if request.param == "sasrec" else filtering(request.param), made())


def popular(data: Interactions) -> list[Any]:
    assert data.ratings is not None
    items, counts = np.unique(data.items[data.ratings >= 3.0], return_counts=True)
    return items[np.lexsort((items, -counts))].tolist()  # type: ignore[no-any-return]


def test_unknown_users_get_what_is_popular(recommender: Recommender) -> None:
    (answer,) = recommender.recommend(["nobody"], 3)
    assert answer.origin == "popularity"
    if recommender.config.model != "biased_mf":  # for which every rating counts
        assert list(answer.items) == popular(made())[:3]
    (scores,) = recommender.predict([("nobody", [101, 999_999])])
    assert scores.origin == "popularity"
    assert np.isfinite(scores.scores).all()


def test_users_without_a_usable_history_get_it_too_less_what_they_saw(recommender: Recommender) -> None:
    if recommender.config.model == "biased_mf":
        assert recommender.recommend(["grump"])[0].origin == "model"  # a low rating tells as much as a high one
        return
    (answer,) = recommender.recommend(["grump"], 99)
    assert answer.origin == "popularity"
    assert list(answer.items[:3]) == [item for item in popular(made()) if item not in (101, 205)][:3]
    assert not {101, 205} & set(answer.items)


def test_items_that_training_did_not_have(recommender: Recommender) -> None:
    (scores,) = recommender.predict([("u000", [999_999])])
    explicit = recommender.config.model == "biased_mf"
    assert 1 <= scores.score <= 5 if explicit else scores.score == 0
    free = recommender.recommend(["u000"], 5)[0].items
    assert recommender.recommend(["u000"], 5, exclude=[999_999])[0].items == free
    assert recommender.recommend(["u000"], 5, candidates=[999_999])[0].items == ()
    held = Interactions(["u000"], [999_999], [5.0])
    for negatives in (0, 5):
        metrics = recommender.evaluate(held, negatives=negatives, cutoffs=(3,))
        prefix = "sampled_5_" if negatives else ""
        assert metrics[f"{prefix}hit@3"] == 0
        assert metrics.details["unknown_items"] == 1
    if recommender.config.model != "popularity":
        with pytest.raises(ValueError, match=r"1 items were not in the training set, such as \[999999\]"):
            recommender.similar_items([999_999])


def test_k_beyond_the_catalogue_gives_what_there_is(recommender: Recommender) -> None:
    everything = set(recommender.items)
    answers = recommender.recommend(["u000", "nobody"], 10**9)
    train = made()
    assert set(answers[0].items) == everything - set(train.items[train.users == "u000"].tolist())
    assert set(answers[1].items) == everything
    held = Interactions(["u000"], [int(answers[0].items[-1])], [5.0])
    assert recommender.evaluate(held, cutoffs=(10**6,))["recall@1000000"] == 1


def test_who_has_seen_everything_gets_nothing(recommender: Recommender) -> None:
    items = list(recommender.items)
    recommender.fold_in(Interactions(["glutton"] * len(items), items, [5.0] * len(items)))
    (answer,) = recommender.recommend(["glutton"], 3)
    assert (answer.items, answer.origin) == ((), "model")
    assert len(recommender.recommend(["glutton"], 3, seen=False)[0]) == 3


@pytest.mark.parametrize(
    ("wrong", "error", "part"),
    [
        (lambda r: r.recommend(["u000", 1]), TypeError, "received 'u000' and 1. Convert one kind"),
        (lambda r: r.recommend([None]), TypeError, r"received None \(NoneType\)"),
        (lambda r: r.recommend([float("nan")]), TypeError, r"received nan \(float\)"),
        (lambda r: r.recommend([7]), TypeError, "user ids of this data are strings; received 7"),
        (lambda r: r.predict([("u000", "101")]), TypeError, "item ids of this data are whole numbers"),
        (lambda r: r.recommend(["u000"], exclude=["x"]), TypeError, "item ids of this data are whole numbers"),
        (lambda r: r.fold_in(([1], [101], [5.0])), TypeError, "user ids of this data are strings"),
        (lambda r: r.fold_in(([], [])), ValueError, "has no examples"),
        (lambda r: r.evaluate(([1], [101], [5.0])), TypeError, "user ids of this data are strings"),
        (lambda r: r.evaluate((["u000"], [303]), cutoffs=()), ValueError, r"at least one of them.* received \(\)"),
        (lambda r: r.evaluate((["u000"], [303]), cutoffs=(0,)), ValueError, r"each at least 1.* received \(0,\)"),
        (lambda r: r.evaluate((["u000"], [303]), negatives=-1), ValueError, "`negatives` 0 or more.* and -1"),
        (lambda r: r.evaluate((["u000"], [303], [np.nan])), ValueError, "`ratings` must be finite"),
    ],
)
def test_what_cannot_be_is_refused(
    recommender: Recommender, wrong: Callable[[Any], Any], error: type[Exception], part: str
) -> None:
    with pytest.raises(error, match=part):
        wrong(recommender)


@pytest.mark.parametrize("model", [*_SOLVED, *_TRAINED])
@pytest.mark.parametrize(
    "data",
    [
        Interactions(["a"], [1], [3.0]),
        Interactions(["a"] * 4, [1, 2, 3, 4], [3, 4, 5, 5]),
        Interactions(["a", "b", "c"], [1, 1, 1], [5, 3, 4]),
        Interactions(["a", "a", "b"], [1, 2, 1], [5, 5, 5]),
    ],
    ids=["one interaction", "one user", "one item", "one rating"],
)
def test_next_to_nothing_is_answered_too(model: str, data: Interactions) -> None:
    recommender = fit(filtering(model), data)
    for answer in recommender.recommend(["a", "stranger"], 9, seen=False):
        assert set(answer.items) == set(data.items.tolist())
        assert np.isfinite(answer.scores).all()


def test_sequences_need_somebody_with_two_items() -> None:
    with pytest.raises(ValueError, match="Nobody has two interactions"):
        fit(sequential(), Interactions(["a", "b"], [1, 2], [5, 5]))
    with pytest.raises(ValueError, match="Nobody has two interactions"):
        fit(sequential(), Interactions(["a", "a"], [1, 2], [5, 1]))


def test_repeats_are_read_in_sequences_and_count_once_as_seen() -> None:
    data = Interactions(["a"] * 4 + ["b"] * 2, [1, 2, 1, 2, 1, 2], [5.0] * 6)
    recommender = fit(sequential(), data)
    assert recommender.recommend(["a"], 9)[0].items == ()
    held = recommender.evaluate(Interactions(["b", "b"], [3, 3], [5.0, 5.0]))
    assert held.details["unknown_items"] == 1  # the pair is asked for once
