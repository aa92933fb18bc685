from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys import metrics

L2 = 1 / math.log2(3)  # the discount of the second place
L3 = 1 / math.log2(4)

# hits by place, number of held-out items, k: ndcg, recall, mrr, hit, map, by hand
CASES = [
    ([], 1, 3, (0, 0, 0, 0, 0)),
    ([False, False, False], 2, 3, (0, 0, 0, 0, 0)),
    ([True, False, False], 1, 3, (1, 1, 1, 1, 1)),
    ([False, True, False], 1, 3, (L2, 1, 1 / 2, 1, 1 / 2)),
    ([False, False, True], 1, 2, (0, 0, 0, 0, 0)),
    ([False, True, True], 4, 3, ((L2 + L3) / (1 + L2 + L3), 2 / 4, 1 / 2, 1, (1 / 2 + 2 / 3) / 3)),
    ([True, False, True], 2, 3, ((1 + L3) / (1 + L2), 1, 1, 1, (1 + 2 / 3) / 2)),
    ([True], 5, 3, (1 / (1 + L2 + L3), 1 / 5, 1, 1, 1 / 3)),  # fewer answers than k
]


@pytest.mark.parametrize(("hits", "relevant", "k", "expected"), CASES)
def test_rankings(hits: list[bool], relevant: int, k: int, expected: tuple[float, ...]) -> None:
    figures = metrics.ranking_by_user(np.array([hits], bool), np.array([relevant]), k)
    assert list(figures) == [f"{name}@{k}" for name in ("ndcg", "recall", "mrr", "hit", "map")]
    assert [float(value[0]) for value in figures.values()] == pytest.approx(expected, abs=1e-12)


def test_no_users() -> None:
    figures = metrics.ranking_by_user(np.zeros((0, 3), bool), np.zeros(0, int), 3, prefix="sampled_9_")
    assert {name: value.shape for name, value in figures.items()} == {
        f"sampled_9_{name}@3": (0,) for name in ("ndcg", "recall", "mrr", "hit", "map")
    }
    assert all(math.isnan(end) for end in metrics.bootstrap_intervals(figures)["sampled_9_ndcg@3"])


def test_what_is_no_ranking_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one held-out item"):
        metrics.ranking_by_user(np.zeros((1, 3), bool), np.array([0]), 3)
    with pytest.raises(ValueError, match=r"received \(1, 3\), \(2,\)"):
        metrics.ranking_by_user(np.zeros((1, 3), bool), np.array([1, 1]), 3)
    with pytest.raises(ValueError, match="received 0"):
        metrics.ranking_by_user(np.zeros((1, 3), bool), np.array([1]), 0)


@pytest.mark.parametrize(
    ("answers", "k", "expected"),
    [(np.zeros((0, 3), int), 3, 0.0), ([[0, 1, -1], [1, 2, 0]], 2, 3 / 4), ([[-1, -1]], 2, 0.0), ([[3, 3]], 1, 1 / 4)],
)
def test_coverage(answers: object, k: int, expected: float) -> None:
    assert metrics.coverage(np.array(answers), 4, k) == expected


def test_novelty_is_the_mean_self_information() -> None:
    popularity = np.array([8, 4, 0])
    assert metrics.novelty(np.array([[0, 1], [2, -1]]), popularity, 8, 2) == pytest.approx((0 + 1 + 3) / 3)
    assert math.isnan(metrics.novelty(np.zeros((0, 2), int), popularity, 8, 2))


def test_places_among_sampled_items_count_ties_against_the_model() -> None:
    scores = np.array([2.0, 1.0, np.nan, 1.0])
    negatives = np.array([[1, 0, 1], [2, 1, 0], [0, 0, 0], [np.nan, 0, 2]])
    assert metrics.sampled_places(scores, negatives).tolist() == [1, 3, 4, 2]
    assert metrics.hits_at(np.array([1, 3]), 3).tolist() == [[True, False, False], [False, False, True]]
    assert metrics.sampled_places(np.zeros(0), np.zeros((0, 3))).shape == (0,)


def test_bootstrap_intervals_are_those_of_the_normal_law_for_many_users() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 4000)
    low, high = metrics.bootstrap_intervals({"x": values}, resamples=2000)["x"]
    error = 1.96 * values.std() / math.sqrt(len(values))
    assert low == pytest.approx(values.mean() - error, abs=0.1 * error)
    assert high == pytest.approx(values.mean() + error, abs=0.1 * error)
    assert metrics.bootstrap_intervals({"x": np.ones(5)})["x"] == (1.0, 1.0)
    assert metrics.bootstrap_intervals({}) == {}


@pytest.mark.parametrize(
    ("scores", "labels", "expected"),
    [
        ([], [], math.nan),
        ([1, 2], [1, 1], math.nan),
        ([1, 2], [0, 1], 1.0),
        ([2, 1], [0, 1], 0.0),
        ([1, 1], [0, 1], 0.5),
        ([3, 1, 2, 2], [1, 0, 1, 0], 3.5 / 4),
    ],
)
def test_auc(scores: list[float], labels: list[int], expected: float) -> None:
    assert metrics.auc(np.array(scores), np.array(labels)) == pytest.approx(expected, nan_ok=True)


def test_auc_and_log_loss_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import log_loss, ndcg_score, roc_auc_score

    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 500), rng.random(500).round(2)
    assert metrics.auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    kept = scores.clip(0.01, 0.99)
    assert metrics.log_loss(kept, labels) == pytest.approx(log_loss(labels, kept), abs=1e-12)
    relevant = rng.integers(0, 2, (40, 30))
    relevant[:, 0] = 1
    ranked = rng.random((40, 30))
    hits = np.take_along_axis(relevant, np.argsort(-ranked, axis=1), axis=1).astype(bool)
    mine = metrics.ranking_by_user(hits, relevant.sum(axis=1), 10)["ndcg@10"].mean()
    assert mine == pytest.approx(ndcg_score(relevant, ranked, k=10), abs=1e-12)


def test_numbers() -> None:
    assert metrics.rmse(np.array([1.0, 3.0]), np.array([1.0, 1.0])) == pytest.approx(math.sqrt(2))
    assert math.isnan(metrics.rmse(np.zeros(0), np.zeros(0)))
    assert metrics.log_loss(np.array([0.25, 0.5]), np.array([1, 0])) == pytest.approx((math.log(4) + math.log(2)) / 2)
    assert math.isnan(metrics.log_loss(np.zeros(0), np.zeros(0)))
    assert metrics.log_loss(np.array([0.0]), np.array([1])) < 40
    with pytest.raises(ValueError, match="from 0 to 1"):
        metrics.log_loss(np.array([1.5]), np.array([1]))
    with pytest.raises(ValueError, match=r"received \(1,\) and \(2,\)"):
        metrics.rmse(np.zeros(1), np.zeros(2))


# Figures of LensKit, RecTools and scikit-learn on the same lists: tests/golden/make_recommender_metrics.py.
GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "golden" / "recommender_metrics.json").read_text(encoding="utf-8")
)


def golden_lists() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Answers (U, K) with -1 at the ends of shorter ones, hits (U, K), and numbers of held-out items (U,)."""
    rows = [list(map(int, row.split())) for row in GOLDEN["answers"]]
    held = [set(map(int, row.split())) for row in GOLDEN["held"]]
    answers = np.full((len(rows), max(map(len, rows))), -1)
    for place, row in enumerate(rows):
        answers[place, : len(row)] = row
    hits = np.array([[item in test for item in row] for row, test in zip(answers.tolist(), held, strict=True)])
    return answers, hits, np.array([len(test) for test in held])


@pytest.mark.parametrize("golden", GOLDEN["rankings"], ids=lambda golden: f"k={golden['k']}")
def test_rankings_are_those_of_lenskit_and_rectools(golden: dict[str, Any]) -> None:
    answers, hits, relevant = golden_lists()
    k = golden["k"]
    mine = {name.partition("@")[0]: figures for name, figures in metrics.ranking_by_user(hits, relevant, k).items()}
    # Their divisors, where they are not ours: LensKit's recall and our map divide by min(k, held-out items).
    reachable = np.minimum(k, relevant) / relevant
    expected = {
        "lenskit recall": mine["recall"] / reachable,
        "rectools map": mine["map"] * reachable,
        **{f"rectools {name}": mine[name] for name in ("recall", "mrr", "hit", "ndcg")},
        **{f"lenskit {name}": mine[name] for name in ("mrr", "hit", "ndcg")},
    }
    assert set(golden["by_user"]) == {*expected, "rectools novelty"}
    for name, figures in expected.items():
        np.testing.assert_allclose(figures, golden["by_user"][name], atol=1e-9, rtol=0, err_msg=name)
    assert 0 < mine["ndcg"].mean() < 1
    assert metrics.coverage(answers, GOLDEN["num_items"], k) == pytest.approx(golden["rectools coverage"], abs=1e-9)


@pytest.mark.parametrize("golden", GOLDEN["rankings"], ids=lambda golden: f"k={golden['k']}")
def test_novelty_is_the_mean_inverse_user_frequency_of_rectools(golden: dict[str, Any]) -> None:
    answers, _, _ = golden_lists()
    counts, users, k = np.array(GOLDEN["popularity"]), GOLDEN["num_training_users"], golden["k"]
    # Theirs is a mean over users, ours over all answers: the same for one user.
    mine = [metrics.novelty(row[None], counts, users, k) for row in answers]
    theirs = [math.nan if value is None else value for value in golden["by_user"]["rectools novelty"]]
    np.testing.assert_allclose(mine, theirs, atol=1e-9, rtol=0)


def test_numbers_are_those_of_lenskit_and_scikit_learn() -> None:
    ratings = (np.array(GOLDEN["ratings"][name]) for name in ("predicted", "true"))
    expected = math.sqrt(GOLDEN["lenskit squared error"] / len(GOLDEN["ratings"]["true"]))
    assert metrics.rmse(*ratings) == pytest.approx(expected, abs=1e-9)
    labels, probabilities = np.array(GOLDEN["labels"]), np.array(GOLDEN["probabilities"])
    assert metrics.auc(probabilities, labels) == pytest.approx(GOLDEN["scikit-learn auc"], abs=1e-9)
    assert metrics.log_loss(probabilities, labels) == pytest.approx(GOLDEN["scikit-learn log_loss"], abs=1e-9)
