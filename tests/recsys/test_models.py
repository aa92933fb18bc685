"""Each model against its definition, written out slowly."""

from __future__ import annotations

import threading
from typing import Any, get_args

import numpy as np
import pytest
import scipy.sparse as sp
from threadpoolctl import threadpool_info

from recsys.models.biased_mf import BiasedMf
from recsys.models.bpr import BprState, bpr_epoch
from recsys.models.ease import ease_weights
from recsys.models.ials import Ials, Solver, entry_products
from recsys.models.item_knn import item_similarities, weighted_items
from recsys.models.least_squares import BatchedRows, descend_rows, one_blas_thread, solve_rows
from recsys.models.slim import slim_weights


def made(users: int, items: int, seed: int = 0, density: float = 0.3) -> sp.csr_matrix:
    chosen = np.random.default_rng(seed).random((users, items)) < density
    chosen[0, :3] = True
    return sp.csr_matrix(chosen.astype(np.float32))


def sides(matrix: sp.csr_matrix, users: np.ndarray) -> tuple[BatchedRows, BatchedRows]:
    return BatchedRows(matrix, users.shape[1]), BatchedRows(matrix.T.tocsr(), users.shape[1])


@pytest.mark.parametrize("dim", [3, 12])  # rows with more entries than unknowns, and with fewer
def test_rows_are_solved_as_ridge_regressions_one_by_one(dim: int) -> None:
    rng = np.random.default_rng(0)
    matrix = made(20, 15)
    matrix = sp.vstack([matrix[:7], sp.csr_matrix((1, 15)), matrix[8:]], format="csr")  # a row without entries
    matrix.data[:] = rng.uniform(0.5, 2, matrix.nnz)
    vectors, targets = rng.normal(size=(15, dim)).astype(np.float32), rng.normal(size=matrix.nnz)
    base, ridge, scale = rng.uniform(0.1, 1, dim), rng.uniform(0.1, 1, 20), rng.uniform(0, 1, dim)
    solved = solve_rows(matrix, vectors, targets=targets, base=base, ridge=ridge, scale=scale)
    for row in range(20):
        part = slice(matrix.indptr[row], matrix.indptr[row + 1])
        v, w = vectors[matrix.indices[part]].astype(np.float64), matrix.data[part]
        system = v.T @ (w[:, None] * v) + np.diag(base + ridge[row] * scale)
        np.testing.assert_allclose(solved[row], np.linalg.solve(system, v.T @ (w * targets[part])), atol=2e-5)
    assert not solved[7].any()


def test_the_size_of_batches_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = made(40, 30)
    vectors = np.random.default_rng(1).normal(size=(30, 5)).astype(np.float32)

    def solutions() -> list[np.ndarray]:
        fields: dict[str, Any] = {"base": np.ones(5), "start": None, "tolerance": 1e-6, "max_steps": 20}
        descended = descend_rows(BatchedRows(matrix, vectors.shape[1]), vectors, ridge=np.ones(40), **fields)
        return [solve_rows(matrix, vectors, ridge=np.ones(40)), descended]

    whole = solutions()
    monkeypatch.setattr("recsys.models.least_squares._BATCH", 1)
    np.testing.assert_allclose(solutions(), whole, atol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dim", [3, 12])
def test_rows_descend_to_the_same_solutions(dim: int, weighted: bool) -> None:
    rng = np.random.default_rng(0)
    matrix = made(20, 15)
    matrix = sp.vstack([matrix[:7], sp.csr_matrix((1, 15)), matrix[8:]], format="csr")  # a row without entries
    if weighted:
        matrix.data[:] = rng.uniform(0.5, 2, matrix.nnz)
    vectors = rng.normal(size=(15, dim)).astype(np.float32)
    base, ridge = rng.uniform(0.1, 1, dim), rng.uniform(0.1, 1, 20)
    exact = solve_rows(matrix, vectors, base=base, ridge=ridge)
    start = rng.normal(size=exact.shape).astype(np.float32)
    for begin in (None, start, exact):
        fields: dict[str, Any] = {"base": base, "ridge": ridge, "start": begin}
        solved = descend_rows(BatchedRows(matrix, vectors.shape[1]), vectors, **fields, tolerance=1e-6, max_steps=50)
        np.testing.assert_allclose(solved, exact, atol=2e-5)
        assert not solved[7].any()
    fields = {"base": base, "ridge": ridge, "tolerance": 0.0, "max_steps": 1}
    errors = [
        np.abs(descend_rows(BatchedRows(matrix, vectors.shape[1]), vectors, start=begin, **fields) - exact).max()
        for begin in (None, exact)
    ]
    assert errors[0] > 100 * errors[1]  # one step is not enough, but for those who begin at the end


@pytest.mark.parametrize(("users", "items"), [(40, 12), (12, 40)])
def test_ease_is_its_closed_form(users: int, items: int) -> None:
    matrix = made(users, items)
    weights = ease_weights(matrix, 3.0)
    dense = matrix.toarray().astype(np.float64)
    inverse = np.linalg.inv(dense.T @ dense + 3.0 * np.eye(items))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(weights, expected, atol=1e-5)
    assert weights.dtype == np.float32


def test_ease_is_the_best_there_is() -> None:
    matrix = made(40, 12).toarray()

    def loss(weights: np.ndarray) -> float:
        return float(((matrix - matrix @ weights) ** 2).sum() + 3.0 * (weights**2).sum())

    best = ease_weights(sp.csr_matrix(matrix), 3.0).astype(np.float64)
    for seed in range(20):
        step = np.random.default_rng(seed).normal(size=best.shape) * 1e-2
        np.fill_diagonal(step, 0)
        assert loss(best + step) > loss(best)


def test_slim_is_the_non_negative_elastic_net_of_scikit_learn() -> None:
    from sklearn.linear_model import ElasticNet

    matrix = made(60, 12)
    l1, l2 = 0.7, 2.0
    weights = slim_weights(matrix, l1=l1, l2=l2, candidates=11).toarray()
    dense = matrix.toarray().astype(np.float64)
    for item in range(12):
        others = dense.copy()
        others[:, item] = 0
        # Theirs divides the squared error by the number of rows.
        alpha, ratio = (l1 + l2) / 60, l1 / (l1 + l2)
        net = ElasticNet(alpha=alpha, l1_ratio=ratio, positive=True, fit_intercept=False, tol=1e-10, max_iter=10000)
        np.testing.assert_allclose(weights[:, item], net.fit(others, dense[:, item]).coef_, atol=2e-3)
    assert (weights >= 0).all()
    assert not weights.diagonal().any()
    few = slim_weights(matrix, l1=l1, l2=l2, candidates=3)
    assert ((few != 0).sum(axis=0) <= 3).all()


@pytest.mark.parametrize("shrinkage", [0.0, 5.0])
@pytest.mark.parametrize("weighting", ["cosine", "tfidf", "bm25"])
def test_neighbours_are_the_nearest_by_the_stated_formulas(weighting: str, shrinkage: float) -> None:
    matrix = made(30, 10)
    dense = matrix.toarray().T.astype(np.float64)  # items by users
    idf = np.maximum(np.log(10 / (1 + dense.sum(axis=0))), 0)
    if weighting == "cosine":
        rows = dense / np.linalg.norm(dense, axis=1, keepdims=True)
    elif weighting == "tfidf":
        rows = dense * idf
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    else:
        lengths = dense.sum(axis=1, keepdims=True)
        rows = idf * dense * (1.2 + 1) / (dense + 1.2 * (1 - 0.75 + 0.75 * lengths / lengths.mean()))
    np.testing.assert_allclose(weighted_items(matrix, weighting).toarray(), rows, atol=1e-5)  # type: ignore[arg-type]
    common = dense @ dense.T
    expected = rows @ rows.T * (common / (common + shrinkage) if shrinkage else 1.0)
    np.fill_diagonal(expected, 0)
    found = item_similarities(matrix, neighbours=3, weighting=weighting, shrinkage=shrinkage)  # type: ignore[arg-type]
    for item in range(10):
        nearest = np.sort(expected[item])[::-1][:3]
        np.testing.assert_allclose(np.sort(found[item].data)[::-1], nearest[nearest > 0], atol=1e-5)


def objective(recipe: Ials, dense: np.ndarray, users: np.ndarray, items: np.ndarray) -> float:
    """The formula of the module, entry by entry."""
    predicted = users @ items.T
    seen = dense > 0
    total = (dense[seen] * (1 - predicted[seen]) ** 2).sum() + recipe.unobserved_weight * (predicted**2).sum()
    for side, vectors, size in ((seen, users, dense.shape[1]), (seen.T, items, dense.shape[0])):
        counts = side.sum(axis=1) + recipe.unobserved_weight * size
        total += (recipe.l2 * counts**recipe.frequency_exponent * (vectors**2).sum(axis=1)).sum()
    return float(total / seen.sum())


@pytest.mark.parametrize("solver", ["conjugate_gradient", "exact"])
@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("factors", [3, 20])
def test_ials_solves_each_side(factors: int, exponent: float, solver: Solver) -> None:
    matrix = made(25, 18)
    matrix.data[:] = np.random.default_rng(2).uniform(1, 3, matrix.nnz)
    recipe = Ials(0.05, 0.2, exponent, solver=solver)
    users, items = recipe.start(matrix, factors, seed=1)
    users, items = recipe.epoch(*sides(matrix, users), users, items)
    dense = matrix.toarray().astype(np.float64)
    assert recipe.loss(matrix, users, items) == pytest.approx(objective(recipe, dense, users, items), rel=1e-4)
    # Users are the last that were solved: no step away from them makes the objective smaller.
    best = objective(recipe, dense, users.astype(np.float64), items.astype(np.float64))
    for seed in range(20):
        step = np.random.default_rng(seed).normal(size=users.shape) * 3e-2
        assert objective(recipe, dense, users + step, items) > best


def test_ials_loss_falls_in_each_epoch() -> None:
    matrix = made(50, 30)
    recipe = Ials(0.01, 0.1, 1.0)
    users, items = recipe.start(matrix, 8, seed=0)
    losses = []
    for _ in range(8):
        users, items = recipe.epoch(*sides(matrix, users), users, items)
        losses.append(recipe.loss(matrix, users, items))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


def test_ials_ends_where_the_exact_solver_does() -> None:
    matrix = made(50, 30)
    losses = []
    for solver in get_args(Solver):
        recipe = Ials(0.01, 0.1, 1.0, solver=solver)
        users, items = recipe.start(matrix, 8, seed=0)
        for _ in range(40):
            users, items = recipe.epoch(*sides(matrix, users), users, items)
        losses.append(recipe.loss(matrix, users, items))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_biased_mf_solves_each_side_exactly() -> None:
    matrix = made(25, 18)
    matrix.data[:] = np.random.default_rng(2).integers(1, 6, matrix.nnz)
    mean = float(matrix.data.mean())
    recipe = BiasedMf(l2=0.5, bias_l2=2.0, frequency_exponent=0.5, init_scale=1.0)
    users, _ = recipe.start(matrix, 4, seed=1)
    users, items = recipe.epoch(matrix, matrix.T.tocsr(), mean, users)
    assert (users[:, -1] == 1).all()
    assert (items[:, -2] == 1).all()
    rated, counts = matrix.toarray() > 0, np.diff(matrix.indptr)

    def loss(candidates: np.ndarray) -> float:
        errors = (matrix.toarray() - mean - candidates @ items.T)[rated]
        penalty = 0.5 * counts**0.5 @ (candidates[:, :-2] ** 2).sum(axis=1) + 2.0 * (candidates[:, -2] ** 2).sum()
        return float((errors**2).sum() + penalty)

    best = loss(users.astype(np.float64))
    for seed in range(20):
        step = np.random.default_rng(seed).normal(size=users.shape) * 3e-2
        step[:, -1] = 0
        assert loss(users + step) > best
    products = entry_products(matrix, users, items)
    assert recipe.loss(matrix, mean, users, items) == pytest.approx(
        np.mean((matrix.data - mean - products) ** 2), rel=1e-5
    )


def test_bpr_steps_follow_the_gradient() -> None:
    matrix = sp.csr_matrix(np.array([[1, 0]], np.float32))  # one pair, and one item that can be drawn
    state = BprState.start(matrix, 3, seed=0, init_scale=1.0)
    users, items = state.users.astype(np.float64), state.items.astype(np.float64)

    def loss(users: np.ndarray, items: np.ndarray) -> float:
        penalty = (users[0, :-1] ** 2).sum() + (items**2).sum()
        return float(np.logaddexp(0, -(users[0] @ (items[0] - items[1]))) + 0.1 / 2 * penalty)

    def slopes(of: int) -> np.ndarray:
        sides = [users, items]
        gradient = np.zeros_like(sides[of])
        for place in np.ndindex(gradient.shape):
            moved = [side.copy() for side in sides]
            moved[of][place] += 1e-6
            gradient[place] = (loss(*moved) - loss(users, items)) / 1e-6
        return gradient

    expected = [slopes(0), slopes(1)]
    expected[0][:, -1] = 0  # the users' 1 beside the items' biases
    mean_loss = bpr_epoch(state, matrix, learning_rate=0.01, l2=0.1, batch_size=4, rng=np.random.default_rng(0))
    assert mean_loss == pytest.approx(np.logaddexp(0, -(users[0] @ (items[0] - items[1]))), rel=1e-5)
    # The first step of AdaGrad has the length of the learning rate, against the sign of the gradient.
    for before, after, gradient in ((users, state.users, expected[0]), (items, state.items, expected[1])):
        np.testing.assert_allclose(after - before, -0.01 * np.sign(gradient), atol=1e-5)
    np.testing.assert_allclose(state.user_squares, expected[0] ** 2, rtol=1e-3, atol=1e-6)


def test_bpr_survives_a_user_who_has_chosen_everything() -> None:
    matrix = sp.csr_matrix(np.ones((2, 3), np.float32))
    state = BprState.start(matrix, 2, seed=0, init_scale=0.1)
    assert np.isfinite(bpr_epoch(state, matrix, learning_rate=0.1, l2=0.0, batch_size=2, rng=np.random.default_rng(0)))


def test_blas_has_its_threads_again_when_the_last_of_those_who_limit_it_is_done() -> None:
    def threads() -> set[int]:  # of the library that NumPy multiplies with
        return {found["num_threads"] for found in threadpool_info() if "numpy" in found["filepath"]}

    before = threads()
    first_is_in, second_is_in, first_has_left, done = (threading.Event() for _ in range(4))

    def first() -> None:
        with one_blas_thread:
            first_is_in.set()
            second_is_in.wait(10)
        first_has_left.set()
        done.wait(10)  # it lives on, as the threads of a server do

    other = threading.Thread(target=first)
    other.start()
    assert first_is_in.wait(10)
    with one_blas_thread:
        second_is_in.set()
        assert first_has_left.wait(10)
        assert threads() == {1}
    assert threads() == before
    done.set()
    other.join()
