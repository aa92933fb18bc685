from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import recsys.models.in_batch
from recsys.models.in_batch import in_batch_softmax
from recsys.models.two_tower import softmax_users
from recsys.pairs import PairBatches, Sampling, Side
from shared.data import Loading
from shared.distribution import Portion


def example(seed: int = 0) -> dict[str, np.ndarray]:
    """Seven users' items, of which some are drawn more than once, and two that were drawn beside."""
    rng = np.random.default_rng(seed)
    drawn = np.array([4, 2, 2, 9, 4, 4, 1])
    columns, places, counts = np.unique(np.append(drawn, [9, 7]), return_inverse=True, return_counts=True)
    chance = rng.random(len(columns))
    return {
        "users": rng.normal(size=(7, 5)).astype(np.float32),
        "items": rng.normal(size=(len(columns), 5)).astype(np.float32),
        "targets": places[:7].astype(np.int32),
        "shifts": (np.log(counts) - np.log(chance)).astype(np.float32),
        "log_counts": np.log(counts).astype(np.float32),
    }


def by_definition(given: dict[str, np.ndarray], temperature: float = 1.0, hard: int = 0) -> float:
    """The loss over all draws of the batch, one column each, with accidental hits left out."""
    counts = np.round(np.exp(given["log_counts"])).astype(int)
    log_q = given["log_counts"] - given["shifts"]
    losses = []
    for user, own in zip(given["users"], given["targets"], strict=True):
        logits = (given["items"] @ user).astype(np.float64) / temperature - log_q
        others = [logits[j] for j in range(len(counts)) if j != own for _ in range(counts[j])]
        if hard:
            # Of distinct items, as many as are asked for; each counts as often as it was drawn.
            best = sorted((j for j in range(len(counts)) if j != own), key=lambda j: -logits[j] - np.log(counts[j]))
            others = [logits[j] for j in best[:hard] for _ in range(counts[j])]
        losses.append(np.log(np.exp([logits[own], *others]).sum()) - logits[own])
    return float(np.mean(losses))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("temperature", "hard"), [(1.0, 0), (0.3, 0), (1.0, 2), (0.5, 99)])
def test_loss_is_the_corrected_softmax_without_accidental_hits(fused: bool, temperature: float, hard: int) -> None:
    given = example()
    found = in_batch_softmax(**given, temperature=temperature, hard_negatives=hard, fused=fused)
    assert float(found) == pytest.approx(by_definition(given, temperature, hard), abs=1e-5)


def slopes(given: dict[str, Any], **options: Any) -> list[np.ndarray]:
    users, items = tf.constant(given["users"]), tf.constant(given["items"])
    rest = {key: value for key, value in given.items() if key not in ("users", "items")}
    with tf.GradientTape() as tape:
        tape.watch([users, items])
        loss = 3 * in_batch_softmax(users, items, **rest, **options)
    return [np.asarray(part) for part in tape.gradient(loss, [users, items])]


@pytest.mark.parametrize(("temperature", "hard"), [(1.0, 0), (0.3, 0), (1.0, 2)])
def test_gradients_of_the_blocks_are_tensorflows_own(
    temperature: float, hard: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recsys.models.in_batch, "_ROWS_AT_ONCE", 3)
    given, options = example(1), {"temperature": temperature, "hard_negatives": hard}
    for mine, theirs in zip(slopes(given, **options), slopes(given, **options, fused=False), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_gradients_are_those_of_small_differences() -> None:
    given = {key: value.astype(np.float64) if value.dtype == np.float32 else value for key, value in example(2).items()}
    user_slopes, item_slopes = slopes(example(2))
    for key, found in (("users", user_slopes), ("items", item_slopes)):
        for place in [(0, 0), (1, 3), (3, 2)]:
            losses = []
            for step in (1e-5, -1e-5):
                moved = {name: value.copy() for name, value in given.items()}
                moved[key][place] += step
                losses.append(by_definition(moved))
            assert found[place] == pytest.approx(3 * (losses[0] - losses[1]) / 2e-5, abs=1e-3)


def test_padding_columns_change_nothing_and_half_precision_little() -> None:
    given = example()
    padded = dict(given)
    padded["items"] = np.vstack([given["items"], np.full((2, 5), 50, np.float32)])
    padded["shifts"] = np.append(given["shifts"], [np.float32(-1e9)] * 2)
    padded["log_counts"] = np.append(given["log_counts"], np.zeros(2, np.float32))
    expected = float(in_batch_softmax(**given))
    for fused in (True, False):
        assert float(in_batch_softmax(**padded, fused=fused)) == pytest.approx(expected, abs=1e-5)
    half = {key: tf.cast(v, tf.bfloat16) if key in ("users", "items") else v for key, v in given.items()}
    assert float(in_batch_softmax(**half)) == pytest.approx(expected, rel=0.02)


# Batches.


def batches(**fields: Any) -> PairBatches:
    rng = np.random.default_rng(0)
    users, items = rng.integers(0, 20, 50).astype(np.int32), (rng.random(50) ** 2 * 9).astype(np.int32)
    features = {"numbers": np.arange(20, dtype=np.float32)[:, None]}
    return PairBatches(
        users, items, Side(20, features), Side(12, {}), Sampling(**fields),
        Loading(batch_size=16, shuffle=True, drop_remainder=True),
    )  # fmt: skip


def test_a_batch_has_distinct_columns_and_points_at_each_users_own() -> None:
    source = batches(uniform_negatives=4)
    seen = []
    for batch in source.epoch(0):
        assert len(set(batch["item_rows"].tolist())) == len(batch["item_rows"])
        assert batch["item_rows"].dtype == batch["user_rows"].dtype == np.int32
        seen += list(zip(batch["user_rows"].tolist(), batch["item_rows"][batch["targets"]].tolist(), strict=True))
        np.testing.assert_array_equal(batch["user/numbers"][:, 0], batch["user_rows"])
        counts = np.exp(batch["log_counts"])
        assert counts.sum() == pytest.approx(16 + 4, rel=1e-5)
        expected = 16 * np.bincount(source.items, minlength=12)[batch["item_rows"]] / 50 + 4 / 12
        np.testing.assert_allclose(np.exp(batch["shifts"]), counts / expected, rtol=1e-4)
    assert len(seen) == 48  # whole batches
    assert set(seen) <= set(zip(source.users.tolist(), source.items.tolist(), strict=True))


def test_an_epoch_can_be_entered_at_any_batch_and_orders_differ() -> None:
    source = batches(uniform_negatives=4, id_dropout=0.5)
    whole = list(source.epoch(1))
    for mine, other in zip(source.epoch(1, 2), whole[2:], strict=True):
        assert mine.keys() == other.keys()
        for key in mine:
            np.testing.assert_array_equal(mine[key], other[key])
    assert whole[0]["user_rows"].tolist() != next(iter(source.epoch(2)))["user_rows"].tolist()


def test_ids_are_left_out_only_where_there_are_features() -> None:
    batch = next(iter(batches(id_dropout=0.5).epoch(0)))
    without = batch["user_rows"] == 20
    assert 0 < without.sum() < 16
    assert (batch["item_rows"] < 12).all()


def test_shares_of_devices_have_columns_of_their_own() -> None:
    source = batches(uniform_negatives=3)
    whole = list(source.epoch(0))
    shares = list(source.shares(Portion(num_shares=2, first=0, count=2)))
    assert len(shares) == len(whole) == 3
    for batch, share in zip(whole, shares, strict=True):
        assert (share.sizes, share.num_examples) == ((8, 8), 16)
        users = np.concatenate([part["user_rows"] for part in share.parts])
        items = np.concatenate([part["item_rows"][part["targets"]] for part in share.parts])
        np.testing.assert_array_equal(users, batch["user_rows"])
        np.testing.assert_array_equal(items, batch["item_rows"][batch["targets"]])
        assert [len(part["item_rows"]) for part in share.parts] == [11, 11]
    (second,) = next(iter(source.shares(Portion(num_shares=2, first=1, count=1)))).parts
    np.testing.assert_array_equal(second["item_rows"], shares[0].parts[1]["item_rows"])
    tiny = next(iter(source.shares(Portion(num_shares=99, first=0, count=99))))
    assert sum(tiny.sizes) == 16
    assert len(tiny.parts) == 99


def test_without_correction_only_repeats_count() -> None:
    for batch in batches(log_q=False).epoch(0):
        np.testing.assert_array_equal(batch["shifts"], batch["log_counts"])


# Users who came later.


def test_vectors_of_later_users_are_at_the_top_of_their_likelihood() -> None:
    import scipy.sparse as sp
    from scipy.optimize import minimize

    rng = np.random.default_rng(0)
    items, mean = rng.normal(size=(30, 4)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    factor = np.linalg.cholesky(np.cov(rng.normal(size=(4, 40))) * 2).astype(np.float32)
    histories = sp.csr_matrix((np.ones(6, np.float32), [3, 7, 8, 1, 2, 29], [0, 3, 6, 6]), shape=(3, 30))
    found = softmax_users(histories, items, mean, factor, 0.7)
    np.testing.assert_allclose(found[2], mean, atol=1e-5)  # nothing known: as users are on average
    inverse = np.linalg.inv(factor.astype(np.float64) @ factor.T)
    for row in range(2):
        chosen = histories[[row]].indices

        def cost(vector: np.ndarray, chosen: np.ndarray = chosen) -> float:
            logits = items.astype(np.float64) @ vector / 0.7
            away = vector - mean
            return float(len(chosen) * np.log(np.exp(logits).sum()) - logits[chosen].sum() + away @ inverse @ away / 2)

        best = minimize(cost, mean.astype(np.float64)).fun
        assert cost(found[row]) == pytest.approx(best, abs=1e-3)
        assert cost(mean) > best + 0.1
