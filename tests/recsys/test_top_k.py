from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from recsys.top_k import hide, top_k, top_k_products

INF = np.inf


@pytest.mark.parametrize(
    ("scores", "k", "columns"),
    [
        (np.zeros((0, 4)), 2, np.zeros((0, 2))),
        (np.zeros((2, 0)), 2, np.zeros((2, 0))),
        ([[1, 3, 2]], 2, [[1, 2]]),
        ([[1, 3, 2]], 9, [[1, 2, 0]]),
        ([[5, 5, 5, 5]], 2, [[0, 1]]),
        ([[0, 5, 1, 5, 5]], 2, [[1, 3]]),
        ([[0, 5, 1, 5, 7]], 2, [[4, 1]]),
        ([[-INF, 2, np.nan, 1]], 3, [[1, 3, -1]]),
        ([[-INF, -INF, -INF]], 2, [[-1, -1]]),
        ([[INF, 1, INF]], 2, [[0, 2]]),
    ],
)
def test_cases(scores: object, k: int, columns: object) -> None:
    found, best = top_k(np.array(scores, np.float32), k)
    assert found.tolist() == np.array(columns).tolist()
    assert (best[:, 1:] <= best[:, :-1]).all()


def by_sorting(scores: np.ndarray, k: int) -> np.ndarray:
    columns = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.where(np.isneginf(np.take_along_axis(scores, columns, axis=1)), -1, columns)


@pytest.mark.parametrize("levels", [3, 40, 10**6])
def test_equals_a_stable_sort_with_many_ties_and_with_none(levels: int) -> None:
    rng = np.random.default_rng(levels)
    scores = rng.integers(0, levels, (50, 200)).astype(np.float32)
    scores[rng.random(scores.shape) < 0.1] = -np.inf
    for k in (1, 7, 199, 200):
        assert (top_k(scores, k)[0] == by_sorting(scores, k)).all()


def test_products_in_blocks_equal_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    queries = rng.integers(-2, 3, (30, 4)).astype(np.float32)
    items = rng.integers(-2, 3, (90, 4)).astype(np.float32)  # whole numbers: many ties, exact sums
    seen = sp.random(30, 90, 0.3, "csr", random_state=0)
    scores = queries @ items.T
    hide(scores, seen)
    monkeypatch.setattr("recsys.top_k._BLOCK", 100)
    monkeypatch.setattr("recsys.top_k._ITEMS_AT_ONCE", 16)
    for k in (1, 10, 90, 200):
        found, best = top_k_products(queries, items, k, seen=seen)
        assert (found == by_sorting(scores, k)).all()
        expected = np.take_along_axis(scores, np.maximum(found, 0), axis=1)
        np.testing.assert_array_equal(best, np.where(found < 0, -np.inf, expected))
    assert top_k_products(queries[:0], items, 3)[0].shape == (0, 3)
    assert top_k_products(queries, items[:0], 3)[0].shape == (30, 0)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="`k` must be at least 1; received 0"):
        top_k(np.zeros((1, 2)), 0)
    with pytest.raises(ValueError, match=r"shape \(B, N\); received \(2,\)"):
        top_k(np.zeros(2), 1)
