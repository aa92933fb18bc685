from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from recsys import CollaborativeFilter, CollaborativeFilterConfig, ItemIndex
from recsys.top_k import top_k_products
from shared import TrainingConfig
from tests.recsys.tastes import tastes


def made(count: int, dim: int, seed: int) -> np.ndarray:
    """Vectors around a few centres, of very different lengths, as factors of items are."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(20, dim))
    vectors = centres[rng.integers(0, 20, count)] + rng.normal(size=(count, dim))
    return np.asarray(vectors * rng.lognormal(0, 1, (count, 1)), np.float32)


def share_found(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.mean([len(set(mine) & set(best)) / len(best) for mine, best in zip(found, exact, strict=True)]))


def test_nearly_all_of_the_best_are_found_also_among_items_that_came_later() -> None:
    items, users = made(6000, 24, 0), made(80, 24, 1)
    index = ItemIndex(range(4000), items[:4000])
    index.add(range(4000, 6000), items[4000:])
    assert (len(index), index.dim) == (6000, 24)
    found, scores = index.best(users, 10)
    exact, best = top_k_products(users, items, 10)
    assert share_found(found, exact) >= 0.98
    assert (exact >= 4000).mean() > 0.2
    same = found == exact
    np.testing.assert_allclose(scores[same], best[same], rtol=1e-4)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_what_is_hidden_or_blocked_is_not_found() -> None:
    items, users = made(1500, 8, 0), made(30, 8, 1)
    hidden = sp.random(30, 1500, 0.1, "csr", random_state=0)
    blocked = np.zeros(1500, bool)
    blocked[top_k_products(users, items, 1)[0][:5, 0]] = True
    exact = users @ items.T
    exact[hidden.toarray() > 0] = -np.inf
    exact[:, blocked] = -np.inf
    found, scores = ItemIndex(range(1500), items).best(users, 5, hidden=hidden, blocked=blocked)
    assert share_found(found, np.argsort(-exact, axis=1)[:, :5]) >= 0.98
    np.testing.assert_allclose(scores, np.take_along_axis(exact, found, axis=1), rtol=1e-4)


def test_small_catalogues_give_all_they_have() -> None:
    index = ItemIndex(["b", "a"], np.array([[1, 0], [0, 1]], np.float32))
    hidden = sp.csr_matrix(np.array([[1, 0], [1, 1]]))
    found, scores = index.best(np.array([[1, 2], [1, 2]], np.float32), 5, hidden=hidden)
    assert found.tolist() == [[1, -1], [-1, -1]]
    assert scores[0].tolist() == [2, -np.inf]
    assert index.best(np.zeros((0, 2), np.float32), 5)[0].shape == (0, 2)
    assert index.vectors(["a"]).tolist() == [[0, 1]]
    assert index.vectors([]).shape == (0, 2)
    index.add([], np.zeros((0, 2), np.float32))
    assert len(index) == 2


def test_wrong_arguments() -> None:
    index = ItemIndex(["a", "b"], np.eye(2, dtype=np.float32))
    with pytest.raises(ValueError, match=r"shape \(1, 2\), a row for each item; received \(2, 2\)"):
        index.add(["c"], np.eye(2, dtype=np.float32))
    with pytest.raises(ValueError, match="'a' is there already"):
        index.add(["c", "a"], np.eye(2, dtype=np.float32))
    with pytest.raises(ValueError, match="added once"):
        index.add(["c", "c"], np.eye(2, dtype=np.float32))
    with pytest.raises(TypeError, match="item ids of this data are strings; received 3"):
        index.add([3], np.ones((1, 2), np.float32))
    with pytest.raises(ValueError, match="no item 'z' in the index"):
        index.vectors(["a", "z"])
    with pytest.raises(ValueError, match=r"shape \(I, D\); received \(3,\)"):
        ItemIndex(["a"], np.zeros(3, np.float32))


def test_without_faiss_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"needs faiss: pip install 'triptych\[ann\]'"):
        ItemIndex(["a"], np.zeros((1, 2), np.float32))


def fitted(model: str, **fields: Any) -> CollaborativeFilter:
    recommender = CollaborativeFilter(CollaborativeFilterConfig(model=model, factors=8, **fields))  # type: ignore[arg-type]
    recommender.fit(tastes(), training=TrainingConfig(epochs=5, learning_rate=0.1, batch_size=64))
    return recommender


@pytest.mark.parametrize("model", ["ials", "bpr", "biased_mf"])
def test_recommending_by_index_is_recommending(model: str) -> None:
    recommender = fitted(model)
    users = ["u000", "nobody", "u031", "u002"]
    index = recommender.item_index()
    # With thirty items, about the best are the best.
    for fields in ({}, {"seen": False}, {"exclude": [101, 203, 999]}):
        exact = recommender.recommend(users, 6, **fields)
        found = recommender.recommend(users, 6, index=index, **fields)
        for mine, best in zip(found, exact, strict=True):
            assert (mine.user, mine.origin, set(mine.items)) == (best.user, best.origin, set(best.items))
            np.testing.assert_allclose(mine.scores, best.scores, atol=1e-5)
    with pytest.raises(ValueError, match="ranked exactly"):
        recommender.recommend(users, index=index, candidates=[101])


def test_an_item_that_was_added_is_recommended_without_training() -> None:
    recommender = fitted("ials")
    index = recommender.item_index()
    favourite = recommender.recommend(["u000"], 1)[0].items[0]
    index.add([777], 2 * index.vectors([favourite]))
    (answer,) = recommender.recommend(["u000"], 2, index=index)
    assert answer.items == (777, favourite)
    assert 777 not in recommender.recommend(["u000"], 99)[0].items
    assert 777 not in recommender.recommend(["u000"], 2, index=index, exclude=[777])[0].items
    (unknown,) = recommender.recommend(["nobody"], 99, index=index)
    assert unknown.origin == "popularity"
    assert set(unknown.items) == set(recommender.items)


def test_an_index_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="Only factor models have vectors"):
        fitted("ease").item_index()
    other = ItemIndex([1, 2], np.eye(2, dtype=np.float32))
    with pytest.raises(ValueError, match="not of this model"):
        fitted("ials").recommend(["u000"], index=other)
    with pytest.raises(ValueError, match="Only factor models are searched"):
        fitted("ease").recommend(["u000"], index=other)
    with pytest.raises(ValueError, match="not of this model"):
        fitted("ials").recommend(["u000"], index=fitted("ials", seed=1).item_index())
