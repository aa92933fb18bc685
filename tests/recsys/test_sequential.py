from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tensorflow as tf

from recsys import Interactions, SequentialRecommender, SequentialRecommenderConfig
from recsys.models.next_item import mean_cross_entropy, sampled_softmax_loss, softmax_loss
from recsys.models.sequence_network import AttentionNetwork, RecurrentNetwork, SequenceNetwork
from recsys.sequences import Sequences
from recsys.splitting import leave_one_out
from shared import Config, NotFittedError, TrainingConfig
from tests.contract import PipelineContract

# Items stand in a ring, and whoever chose one chooses the next.
RING = tuple(f"i{number:02d}" for number in range(15))
_SMALL: dict[str, Any] = {"dim": 16, "num_layers": 1, "max_length": 6, "dropout": 0.0}


def ring(users: int = 45, chosen: int = 6) -> Interactions:
    """Each user's items in the order of the ring, in rows that are shuffled: only timestamps tell."""
    rows = [
        (f"u{user:02d}", RING[(user * 7 + step) % len(RING)], 100 * step + user)
        for user in range(users)
        for step in range(chosen)
    ]
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    names, items, times = zip(*(rows[place] for place in order), strict=True)
    return Interactions(list(names), list(items), timestamps=list(times))


def config(model: str, **fields: Any) -> SequentialRecommenderConfig:
    return SequentialRecommenderConfig(**{**_SMALL, "model": model, **fields})


_TRAINING = TrainingConfig(epochs=12, batch_size=16, learning_rate=0.02, weight_decay=0.0)
_SPLIT = leave_one_out(ring())


class TestSasrec(PipelineContract):
    pipeline_class = SequentialRecommender
    config: ClassVar[Config] = config("sasrec")
    training: ClassVar[TrainingConfig] = _TRAINING
    metric_names = ("ndcg@10", "recall@10", "mrr@10", "hit@10", "map@10", "coverage@10", "novelty")
    export_formats = ("saved_model",)
    floor = 0.9

    @classmethod
    def data(cls) -> Any:
        return _SPLIT.train

    @classmethod
    def held_out(cls) -> Any:
        return _SPLIT.test

    @classmethod
    def inputs(cls) -> list[Any]:
        return [("u00", "i01"), ("u01", ["i05", "i07", "new"]), ("nobody", "i02"), ("u02", "i03")]

    @classmethod
    def inputs_as_code(cls) -> str:
        return repr(cls.inputs())

    @classmethod
    def wrong_inputs(cls) -> list[tuple[Any, type[Exception], str]]:
        return [
            ("u00", TypeError, "list of"),
            (["u00"], TypeError, r"pair \(user, item\).* received 'u00'"),
            ([("u00", 101)], TypeError, "item ids of this data are strings; received 101"),
        ]


class TestGru4rec(TestSasrec):
    config: ClassVar[Config] = config("gru4rec")
    training: ClassVar[TrainingConfig] = _TRAINING.replace(epochs=30)


class TestSampledSoftmax(TestSasrec):
    config: ClassVar[Config] = config("sasrec", loss="sampled_softmax", num_sampled=10)


@pytest.fixture(scope="module")
def recommender() -> SequentialRecommender:
    pipeline = SequentialRecommender(config("sasrec"))
    pipeline.fit(_SPLIT.train, training=_TRAINING)
    return pipeline


def copy_of(recommender: SequentialRecommender, tmp_path: Path) -> SequentialRecommender:
    recommender.save(tmp_path / "copy")
    return SequentialRecommender.load(tmp_path / "copy")


# Answers.


def test_the_next_item_in_time_comes_first(recommender: SequentialRecommender) -> None:
    expected = dict(zip(_SPLIT.test.users.tolist(), _SPLIT.test.items.tolist(), strict=True))
    answers = recommender.recommend(list(expected), 3)
    right = [answer.items[0] == expected[str(answer.user)] for answer in answers]
    assert np.mean(right) > 0.9
    assert {answer.origin for answer in answers} == {"model"}


def test_seen_items_exclusions_and_candidates(recommender: SequentialRecommender) -> None:
    (answer,) = recommender.recommend(["u00"], 99)
    history = set(_SPLIT.train.items[_SPLIT.train.users == "u00"].tolist())
    assert set(answer.items) == set(RING) - history
    assert set(recommender.recommend(["u00"], 99, seen=False)[0].items) == set(RING)
    assert recommender.recommend(["u00"], 2, exclude=[answer.items[0]])[0].items == answer.items[1:3]
    assert recommender.recommend(["u00"], 9, candidates=answer.items[3:5])[0].items == answer.items[3:5]


def test_histories_of_whomever(recommender: SequentialRecommender) -> None:
    (user,) = recommender.recommend(["u00"], 5)
    in_time = _SPLIT.train.in_time_order()
    own = in_time.items[in_time.users == "u00"].tolist()
    same, unknown_left_out, empty, order = recommender.recommend_next(
        [own, ["what", *own], [], ["i01", "i02", "i03"]], 5
    )
    assert (same.items, same.user) == (user.items, 0)
    np.testing.assert_allclose(same.scores, user.scores, atol=1e-5)
    assert unknown_left_out.items == same.items
    assert (empty.origin, empty.items) == ("popularity", recommender.recommend(["nobody"], 5)[0].items)
    assert order.items[0] == "i04"
    assert recommender.recommend_next([], 5) == []
    with pytest.raises(TypeError, match="received one str"):
        recommender.recommend_next(["i01"], 5)


def test_only_the_last_items_are_read(recommender: SequentialRecommender) -> None:
    tail = [f"i{number:02d}" for number in range(4, 10)]
    short, long = recommender.recommend_next([tail, ["i13", "i11", *tail]], 3, seen=False)
    np.testing.assert_allclose(short.scores, long.scores, atol=1e-5)


def test_what_comes_after_training_is_read_too(recommender: SequentialRecommender, tmp_path: Path) -> None:
    folded = copy_of(recommender, tmp_path)
    folded.fold_in(Interactions(["fresh", "fresh", "ghost"], ["i03", "i02", "what"], timestamps=[2, 1, 1]))
    (fresh, ghost) = folded.recommend(["fresh", "ghost"], 1)
    assert (fresh.items, fresh.origin, ghost.origin) == (("i04",), "model", "popularity")
    (before,) = folded.recommend(["u00"], 1)
    folded.fold_in(Interactions(["u00"], [before.items[0]]))
    assert folded.recommend(["u00"], 1)[0].items[0] == RING[(RING.index(str(before.items[0])) + 1) % len(RING)]
    assert copy_of(folded, tmp_path / "again").recommend(["fresh", "u00"], 3) == folded.recommend(["fresh", "u00"], 3)
    np.testing.assert_allclose(
        np.asarray(folded.model(np.array([folded.users.index("fresh")])))[0],
        folded.predict([("fresh", list(folded.items))])[0].scores,
        atol=1e-5,
    )


def test_the_validation_set_is_history_when_the_test_is_scored(recommender: SequentialRecommender) -> None:
    pipeline = SequentialRecommender(config("sasrec"))
    inner = leave_one_out(_SPLIT.train)
    history = pipeline.fit(inner.train, inner.test, training=_TRAINING)
    assert history.best_epoch is not None
    without = pipeline.evaluate(_SPLIT.test)
    seen = pipeline.evaluate(_SPLIT.test, seen=inner.test)
    assert seen.first > without.first + 0.2


def test_low_ratings_are_seen_but_not_read() -> None:
    data = ring()
    ratings = np.where(data.items == "i05", 1.0, 5.0)
    rated = Interactions(data.users, data.items, ratings, data.timestamps)
    pipeline = SequentialRecommender(config("sasrec", min_rating=3.0))
    pipeline.fit(rated, training=_TRAINING.replace(epochs=1))
    (answer,) = pipeline.recommend(["u00"], 99)  # whose items are i00 to i05
    assert "i05" not in answer.items
    popular = pipeline.predict([("nobody", "i05"), ("nobody", "i04")])
    assert popular[0].score == 0 < popular[1].score


def test_similar_items_leave_out_the_item_itself(recommender: SequentialRecommender) -> None:
    (answer,) = recommender.similar_items(["i03"], 4)
    assert "i03" not in answer.items
    assert len(answer.items) == 4
    with pytest.raises(ValueError, match="not in the training set"):
        recommender.similar_items(["what"])


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="must divide `dim`"):
        SequentialRecommenderConfig(dim=10, num_heads=4)
    with pytest.raises(ValueError, match="Nobody has two interactions"):
        SequentialRecommender(config("sasrec")).fit((["a", "b"], ["x", "y"]))
    with pytest.raises(ValueError, match="for the loss over all items"):
        SequentialRecommender(config("sasrec", loss="sampled_softmax")).fit(
            _SPLIT.train, training=TrainingConfig(label_smoothing=0.1)
        )
    for call in (
        lambda new: new.recommend(["a"]),
        lambda new: new.recommend_next([["a"]]),
        lambda new: new.fold_in((["a"], ["x"])),
        lambda new: new.model,
    ):
        with pytest.raises(NotFittedError, match="fit"):
            call(SequentialRecommender())


# Networks and losses.


def networks() -> list[SequenceNetwork]:
    attention = AttentionNetwork(9, dim=8, num_layers=2, num_heads=2, hidden_dim=16, max_length=7, dropout=0.5)
    return [attention, RecurrentNetwork(9, dim=8, num_layers=2, dropout=0.5)]


@pytest.mark.parametrize("number", [0, 1])
def test_no_vector_depends_on_later_items_or_padding(number: int) -> None:
    network = networks()[number]
    items = np.array([[1, 2, 3, 4, 5], [1, 2, 3, -1, -1]], np.int32)
    long = np.asarray(network(items[:1], np.array([3], np.int32)))
    padded = np.asarray(network(items[1:], np.array([3], np.int32)))
    short = np.asarray(network(items[:1, :3], np.array([3], np.int32)))
    np.testing.assert_allclose(long[:, :3], short, atol=1e-5)
    np.testing.assert_allclose(padded[:, :3], short, atol=1e-5)
    changed = np.asarray(network(np.array([[2, 2, 3]], np.int32), np.array([3], np.int32)))
    assert np.abs(changed[0, 2] - short[0, 2]).max() > 1e-4


def batch() -> dict[str, tf.Tensor]:
    items = np.array([[1, 2, 3], [4, 5, -1]], np.int32)
    targets = np.array([[2, 3, 8], [5, 0, -1]], np.int32)
    arrays = {"items": items, "lengths": np.array([3, 2], np.int32), "targets": targets}
    return {name: tf.constant(array) for name, array in arrays.items()}


def test_softmax_loss_is_the_mean_over_real_places(monkeypatch: pytest.MonkeyPatch) -> None:
    network = AttentionNetwork(9, dim=8, num_layers=1, num_heads=2, hidden_dim=16, max_length=7, dropout=0.0)
    given = batch()
    vectors = np.asarray(network(given["items"], given["lengths"]), np.float64)
    logits = vectors @ np.asarray(network.table, np.float64).T
    chances = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    places = [(0, 0, 2), (0, 1, 3), (0, 2, 8), (1, 0, 5), (1, 1, 0)]
    expected = -np.mean([np.log(chances[place]) for place in places])
    assert float(softmax_loss(network)(given)) == pytest.approx(expected, abs=1e-5)
    smoothed = -np.mean([0.9 * np.log(chances[p]) + 0.1 * np.log(chances[p[:2]]).mean() for p in places])
    assert float(softmax_loss(network, 0.1)(given)) == pytest.approx(smoothed, abs=1e-5)

    class WithXla:
        xla = True

    monkeypatch.setattr("recsys.models.next_item.current_runtime", WithXla)
    assert float(softmax_loss(network)(given)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_gradients_of_the_blocks_are_tensorflows_own(smoothing: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.models.next_item._ROWS_AT_ONCE", 4)
    rng = np.random.default_rng(0)
    vectors, table = (tf.constant(rng.normal(size=(size, 5)), tf.float32) for size in (11, 7))
    targets = tf.constant(rng.integers(0, 7, 11), tf.int32)

    def plain(vectors: tf.Tensor, table: tf.Tensor) -> tf.Tensor:
        wanted = (1 - smoothing) * tf.one_hot(targets, 7) + smoothing / 7
        return tf.reduce_mean(
            tf.nn.softmax_cross_entropy_with_logits(wanted, tf.matmul(vectors, table, transpose_b=True))
        )

    found = []
    for function in (plain, lambda v, t: mean_cross_entropy(v, t, targets, smoothing)):
        with tf.GradientTape() as tape:
            tape.watch([vectors, table])
            loss = 3 * function(vectors, table)
        found.append([loss, *tape.gradient(loss, [vectors, table])])
    for mine, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_sampled_softmax_of_each_item_once_is_nearly_the_softmax() -> None:
    network = AttentionNetwork(9, dim=8, num_layers=1, num_heads=2, hidden_dim=16, max_length=7, dropout=0.0)
    network.table.assign(np.random.default_rng(0).normal(size=(9, 8)))
    full = float(softmax_loss(network)(batch()))
    sampled = float(sampled_softmax_loss(network)({**batch(), "sampled": tf.range(9)}))
    assert sampled == pytest.approx(full, abs=1e-5)
    one = float(sampled_softmax_loss(network)({**batch(), "sampled": tf.constant([7])}))
    assert one != pytest.approx(full, abs=1e-3)


# Sequences.


def test_sequences_are_in_time_order_with_repeats() -> None:
    rows, columns = np.array([1, 0, 1, 1, -1, 1]), np.array([5, 3, 4, 5, 2, -1])
    sequences = Sequences.of_pairs(rows, columns, 3, np.array([30, 5, 10, 20, 1, 2]))
    assert [sequences[[row]].items.tolist() for row in range(3)] == [[3], [4, 5, 5], []]
    items, lengths = sequences.last(2)
    assert items.tolist() == [[3, -1], [5, 5], [-1, -1]]
    assert lengths.tolist() == [1, 2, 0]
    assert sequences[::-1].last(9, multiple=4)[0].tolist() == [[-1] * 4, [4, 5, 5, -1], [3, -1, -1, -1]]
    more = Sequences.of_pairs(np.array([3, 0]), np.array([9, 8]), 4, None)
    assert sequences.followed_by(more).last(3)[0].tolist() == [[3, 8, -1], [4, 5, 5], [-1, -1, -1], [9, -1, -1]]


def test_windows_have_each_item_as_a_target_once() -> None:
    sequences = Sequences.of_pairs(np.zeros(10, int), np.arange(10), 2, None)
    windows = sequences.windows(4)
    assert [window.tolist() for window in windows] == [[6, 7, 8, 9], [3, 4, 5, 6], [0, 1, 2, 3]]
    assert sorted(item for window in windows for item in window[1:].tolist()) == list(range(1, 10))
    assert [len(window) for window in sequences.windows(99)] == [10]


# Files.


def test_saved_model_takes_users_or_histories_in_plain_tensorflow(
    recommender: SequentialRecommender, tmp_path: Path
) -> None:
    assert recommender.export(tmp_path / "model").max_difference < 1e-4
    code = (
        "import sys, json, tensorflow as tf\n"
        "model = tf.saved_model.load(sys.argv[1])\n"
        "users = model.serve(tf.constant(['u00', 'nobody']), tf.constant(3))\n"
        "histories = tf.constant([['i01', 'what', 'i02'], ['', '', '']])\n"
        "after = model.serve_histories(histories, tf.constant(3))\n"
        "answers = [part['items'].numpy().astype(str).tolist() for part in (users, after)]\n"
        "print('OUT', json.dumps(answers))\n"
        "assert not {'shared', 'recsys'} & set(sys.modules)"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model")],
        capture_output=True, text=True, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    users, after = json.loads(next(line for line in child.stdout.splitlines() if "OUT" in line).removeprefix("OUT "))
    assert [tuple(row) for row in users] == [answer.items for answer in recommender.recommend(["u00", "nobody"], 3)]
    expected = recommender.recommend_next([["i01", "i02"], []], 3)
    assert [tuple(row) for row in after] == [answer.items for answer in expected]
