from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from recsys import Features, Interactions, Recommendations, TwoTowerRetriever, TwoTowerRetrieverConfig
from recsys.splitting import by_user
from shared import Config, NotFittedError, Pipeline, TrainingConfig
from tests.contract import PipelineContract
from tests.recsys.tastes import split, tastes

_SPLIT = split()
_TRAINING = TrainingConfig(epochs=10, batch_size=64, learning_rate=0.05)


def config(**fields: Any) -> TwoTowerRetrieverConfig:
    return TwoTowerRetrieverConfig(**{"dim": 8, **fields})


def movies(*more: int) -> Features:
    """The taste of each item, its place in the taste, and whether it is even."""
    ids = [*np.unique(tastes().items).tolist(), *more]
    columns = {
        "taste": [str(item // 100) for item in ids],
        "place": [float(item % 100) for item in ids],
        "marks": [["even", "all"] if item % 2 == 0 else ["all"] for item in ids],
    }
    return Features(columns, ids=ids)


def people(*more: tuple[str, int]) -> Features:
    """The taste of each user."""
    known = [(f"u{user:03d}", user % 3 + 1) for user in range(60)]
    ids, taste = zip(*known, *more, strict=True)
    return Features({"taste": [str(number) for number in taste]}, ids=list(ids))


class TestTwoTowers(PipelineContract):
    pipeline_class = TwoTowerRetriever
    config: ClassVar[Config] = config()
    training = _TRAINING
    metric_names = ("ndcg@10", "recall@10", "mrr@10", "hit@10", "map@10", "coverage@10", "novelty")
    export_formats = ("saved_model",)
    floor = 0.4

    @classmethod
    def data(cls) -> Any:
        return _SPLIT.train

    @classmethod
    def held_out(cls) -> Any:
        return _SPLIT.test

    @classmethod
    def inputs(cls) -> list[Any]:
        return [("u000", 101), ("u001", [205, 107, 999]), ("nobody", 102), ("u002", 303)]

    @classmethod
    def inputs_as_code(cls) -> str:
        return repr(cls.inputs())

    @classmethod
    def wrong_inputs(cls) -> list[tuple[Any, type[Exception], str]]:
        return [
            ("u000", TypeError, "list of"),
            (["u000"], TypeError, r"pair \(user, item\).* received 'u000'"),
            ([("u000", "101")], TypeError, "item ids of this data are whole numbers; received '101'"),
            ([(1, 101)], TypeError, "user ids of this data are strings; received 1"),
        ]

    @classmethod
    def alter(cls, pipeline: Pipeline) -> None:
        assert isinstance(pipeline, TwoTowerRetriever)
        items = pipeline._scorer.items
        items *= -1

    def test_the_keras_model_scores_as_predict_does(self, fitted: TwoTowerRetriever) -> None:
        scores = np.asarray(fitted.model(np.array([0, 7, -1])))
        names = [fitted.users[0], fitted.users[7], "nobody"]
        expected = [answer.scores for answer in fitted.predict([(name, list(fitted.items)) for name in names])]
        np.testing.assert_allclose(scores, expected, atol=1e-5)


class TestNormalizedTowersWithLayersAndNegatives(TestTwoTowers):
    config: ClassVar[Config] = config(
        normalize=True, temperature=0.1, hidden_dims=(16,), uniform_negatives=16, hard_negatives=12
    )
    training = _TRAINING.replace(epochs=15, learning_rate=0.01)


@pytest.fixture(scope="module")
def retriever() -> TwoTowerRetriever:
    """With features of both sides."""
    pipeline = TwoTowerRetriever(config(id_dropout=0.3))
    training = _TRAINING.replace(epochs=15)
    pipeline.fit(_SPLIT.train, user_features=people(), item_features=movies(), training=training)
    return pipeline


def copy_of(retriever: TwoTowerRetriever, tmp_path: Path) -> TwoTowerRetriever:
    retriever.save(tmp_path / "copy")
    return TwoTowerRetriever.load(tmp_path / "copy")


def assert_alike(answers: list[Recommendations], others: list[Recommendations]) -> None:
    """The same items; scores may differ in the last bit, as products of matrices of other shapes do."""
    assert [(a.user, a.items, a.origin) for a in answers] == [(a.user, a.items, a.origin) for a in others]
    for mine, other in zip(answers, others, strict=True):
        np.testing.assert_allclose(mine.scores, other.scores, atol=1e-5)


# Answers.


def test_seen_items_exclusions_candidates_and_more_than_there_are(retriever: TwoTowerRetriever) -> None:
    (answer,) = retriever.recommend(["u000"], 99)
    history = set(_SPLIT.train.items[_SPLIT.train.users == "u000"].tolist())
    assert set(answer.items) == set(retriever.items) - history
    assert set(retriever.recommend(["u000"], 99, seen=False)[0].items) == set(retriever.items)
    assert retriever.recommend(["u000"], 2, exclude=[answer.items[0], 4711])[0].items == answer.items[1:3]
    assert retriever.recommend(["u000"], 9, candidates=[4711, *answer.items[3:5]])[0].items == answer.items[3:5]
    assert_alike(retriever.recommend(["u000", "u000"], 3), retriever.recommend(["u000"], 3) * 2)
    with pytest.raises(ValueError, match="`k` must be a whole number"):
        retriever.recommend(["u000"], 0)


def test_the_ladder_for_users(retriever: TwoTowerRetriever, tmp_path: Path) -> None:
    pipeline = copy_of(retriever, tmp_path)
    assert [a.origin for a in pipeline.recommend(["u000", "nova", "nobody"], 3)] == [
        "model",
        "popularity",
        "popularity",
    ]
    assert pipeline.add_users(people(("nova", 2), ("leo", 3))) == ("nova", "leo")
    known, nova, leo, nobody = pipeline.recommend(["u000", "nova", "leo", "nobody"], 5)
    assert [answer.origin for answer in (known, nova, leo, nobody)] == ["model", "features", "features", "popularity"]
    assert_alike([known], retriever.recommend(["u000"], 5))
    assert {item // 100 for item in nova.items} == {2}  # type: ignore[operator]
    assert {item // 100 for item in leo.items} == {3}  # type: ignore[operator]
    assert pipeline.predict([("nova", nova.items[0])])[0].origin == "features"
    (same,) = pipeline.recommend_by_features([{"taste": "2"}], 5)
    assert (same.user, same.items, same.origin) == (0, nova.items, "features")
    assert_alike(copy_of(pipeline, tmp_path).recommend(["nova", "leo"], 5), [nova, leo])
    # Described anew, and then with a history.
    assert pipeline.add_users(Features({"taste": ["1"]}, ids=["nova"])) == ("nova",)
    assert {item // 100 for item in pipeline.recommend(["nova"], 3)[0].items} == {1}  # type: ignore[operator]
    pipeline.fold_in(Interactions(["nova"] * 5, [301, 302, 304, 305, 308], [5] * 5))
    (folded,) = pipeline.recommend(["nova"], 3)
    assert folded.origin == "model"
    assert {item // 100 for item in folded.items} == {3}  # type: ignore[operator]
    assert pipeline.add_users(people(("nova", 2))) == ()  # who has a history stays


def test_items_that_came_later_are_recommended_by_their_features(retriever: TwoTowerRetriever, tmp_path: Path) -> None:
    pipeline = copy_of(retriever, tmp_path)
    assert 210 not in pipeline.items
    assert pipeline.predict([("u001", 210)])[0].score == 0
    assert pipeline.add_items(movies(210, 110)) == (210, 110)
    assert pipeline.items[-2:] == (110, 210)
    (answer,) = pipeline.recommend(["u001"], 6)  # of the second taste
    assert 210 in answer.items
    assert 110 not in answer.items
    assert pipeline.similar_items([210], 3)[0].items[0] // 100 == 2  # type: ignore[operator]
    assert pipeline.evaluate(Interactions(["u001"], [210], [5])).details["unknown_items"] == 0
    again = copy_of(pipeline, tmp_path)
    assert again.recommend(["u001", "nobody"], 40) == pipeline.recommend(["u001", "nobody"], 40)
    assert again.recommend(["nobody"], 99)[0].items[-2:] == (110, 210)  # nobody has chosen them
    again.fold_in(Interactions(["u001"], [210], [5]))
    assert 210 not in again.recommend(["u001"], 99)[0].items
    described_anew = Features({"taste": ["1"], "place": [3], "marks": [[]]}, ids=[210])
    assert again.add_items(described_anew) == (210,)
    assert again.similar_items([210], 3)[0].items[0] // 100 == 1  # type: ignore[operator]
    np.testing.assert_allclose(
        np.asarray(again.model(np.array([1])))[0], again.predict([("u001", list(again.items))])[0].scores, atol=1e-5
    )


def test_newcomers_with_a_history_get_what_users_like_them_get(retriever: TwoTowerRetriever, tmp_path: Path) -> None:
    pipeline = copy_of(retriever, tmp_path)
    known = _SPLIT.train.take(_SPLIT.train.users == "u004")
    before = pipeline.recommend(["u004"], 4)[0]
    pipeline.fold_in(Interactions(["twin"] * len(known), known.items, known.ratings))
    pipeline.fold_in(Interactions(["ghost", "u004"], [55555, before.items[0]], [5, 5]))
    twin, ghost, after = pipeline.recommend(["twin", "ghost", "u004"], 4)
    assert (twin.origin, ghost.origin) == ("model", "popularity")
    assert len(set(twin.items) & set(before.items)) >= 3
    assert after.items[:3] == before.items[1:]  # what was folded in is seen, and the vector is the trained one
    assert_alike(copy_of(pipeline, tmp_path).recommend(["twin"], 4), [twin])


@pytest.mark.parametrize("described", [False, True])
def test_who_liked_nothing_in_training_gets_a_vector_by_what_is_liked_later(described: bool, tmp_path: Path) -> None:
    alone = Interactions(["sad", "sad"], [101, 201], [1, 2], [0, 1])
    pipeline = TwoTowerRetriever(config(min_rating=3.0))
    features = {"user_features": people(("sad", 3))} if described else {}
    pipeline.fit(tastes().joined(alone), training=_TRAINING, **features)
    before = pipeline.recommend(["sad", "u000"], 4)
    pipeline.fold_in(Interactions(["sad"], [202], [1]))  # which says nothing of what they like
    assert_alike(pipeline.recommend(["sad"], 4), before[:1])
    vectors = []
    for items in ((301, 302, 304, 305, 308), (306, 307)):
        pipeline.fold_in(Interactions(["sad", "twin"] * len(items), np.repeat(items, 2), [5.0] * 2 * len(items)))
        pipeline = copy_of(pipeline, tmp_path)
        (answer,) = pipeline.recommend(["sad"], 2)
        assert answer.origin == "model"
        assert {item // 100 for item in answer.items} == {3}  # type: ignore[operator]
        audience = pipeline._parts("test").audience
        vectors += list(np.asarray(audience.represented)[audience.users.numbers(["sad", "twin"])])
        np.testing.assert_allclose(vectors[-2], vectors[-1], atol=1e-5)
    assert np.abs(vectors[2] - vectors[0]).max() > 0.01  # the second time too
    assert_alike(pipeline.recommend(["u000"], 4), before[1:])


def test_without_id_dropout_newcomers_are_their_features_alone() -> None:
    pipeline = TwoTowerRetriever(config(id_dropout=0.0))
    pipeline.fit(_SPLIT.train, item_features=movies(), training=_TRAINING.replace(epochs=1))
    assert pipeline._towers is not None
    assert not np.asarray(pipeline._towers.items.table).any()


def test_strong_generalisation_uses_what_was_seen_of_new_users() -> None:
    parts = by_user(tastes(), 0.25)
    pipeline = TwoTowerRetriever(config())
    pipeline.fit(parts.train, training=_TRAINING)
    without = pipeline.evaluate(parts.test)
    seen = pipeline.evaluate(parts.test, seen=parts.seen)
    assert without.details["users_without_history"] == 15
    assert seen.details["users_without_history"] == 0
    assert seen["ndcg@10"] > 1.5 * without["ndcg@10"]


def test_features_help_where_interactions_are_few() -> None:
    rows = np.random.default_rng(0).permutation(len(_SPLIT.train))[:90]
    few = _SPLIT.train.take(np.sort(rows))
    with_features, without = TwoTowerRetriever(config()), TwoTowerRetriever(config())
    with_features.fit(few, user_features=people(), item_features=movies(), training=_TRAINING)
    without.fit(few, training=_TRAINING)
    assert with_features.evaluate(_SPLIT.test).first > 1.2 * without.evaluate(_SPLIT.test).first


def test_low_ratings_are_seen_but_no_sign_of_liking() -> None:
    data = tastes()
    assert data.ratings is not None
    alone = Interactions(["sad", "sad"], [101, 555], [1, 2], [0, 1])
    pipeline = TwoTowerRetriever(config(min_rating=3.0))
    pipeline.fit(data.joined(alone), training=_TRAINING)
    (own,) = pipeline.recommend(["u000"], 99)
    assert not set(own.items) & set(data.items[data.users == "u000"].tolist())
    assert 555 not in pipeline.items  # nobody liked it
    (sad,) = pipeline.recommend(["sad"], 99)
    assert sad.origin == "popularity"
    assert 101 not in sad.items
    described = TwoTowerRetriever(config(min_rating=3.0))
    described.fit(data.joined(alone), user_features=people(("sad", 3)), training=_TRAINING)
    (sad,) = described.recommend(["sad"], 4)
    assert sad.origin == "features"
    assert {item // 100 for item in sad.items} == {3}  # type: ignore[operator]


def test_repeated_interactions_count_once() -> None:
    once = Interactions(_SPLIT.train.users, _SPLIT.train.items)
    twice = once.joined(once.take(np.arange(30)))
    answers = []
    for data in (once, twice):
        pipeline = TwoTowerRetriever(config())
        pipeline.fit(data, training=_TRAINING.replace(epochs=2))
        answers.append(pipeline.recommend(["u000", "u001"], 5))
    assert answers[0] == answers[1]


def test_ids_may_be_numbers_on_one_side_and_texts_on_the_other() -> None:
    data = Interactions([int(user[1:]) for user in _SPLIT.train.users], [f"i{item}" for item in _SPLIT.train.items])
    pipeline = TwoTowerRetriever(config())
    pipeline.fit(data, training=_TRAINING.replace(epochs=1))
    assert isinstance(pipeline.recommend([0], 1)[0].items[0], str)
    with pytest.raises(TypeError, match="user ids of this data are whole numbers; received 'u000'"):
        pipeline.recommend(["u000"], 1)


# Mistakes.


def test_mistakes_are_named(retriever: TwoTowerRetriever) -> None:
    with pytest.raises(ValueError, match="`hidden_dims` must be widths"):
        TwoTowerRetrieverConfig(hidden_dims=(0,))
    plain = TwoTowerRetriever(config())
    for features, exception, part in [
        (movies().columns, TypeError, "`item_features` must be a Features table"),
        (Features({"taste": ["1"]}), TypeError, "received one without"),
        (Features({"taste": ["1"]}, ids=[7]), ValueError, r"of none of the 30 items in training.* such as \[7\]"),
        (Features({"taste": ["1"]}, ids=["101"]), TypeError, "received"),
    ]:
        with pytest.raises(exception, match=part):
            plain.fit(_SPLIT.train, item_features=features, training=_TRAINING)
    with pytest.raises(ValueError, match="rating of at least 9"):
        TwoTowerRetriever(config(min_rating=9.0)).fit(_SPLIT.train)
    with pytest.raises(ValueError, match="`batch_tokens` is for texts"):
        plain.fit(_SPLIT.train, training=TrainingConfig(batch_tokens=100))
    plain.fit(_SPLIT.train, training=_TRAINING.replace(epochs=1))
    with pytest.raises(ValueError, match=r"trained without features of items.*item_features=\.\.\."):
        plain.add_items(movies())
    with pytest.raises(ValueError, match="trained without features of users"):
        plain.recommend_by_features([{"taste": "1"}])
    with pytest.raises(TypeError, match="Features table with `ids`"):
        retriever.add_items(Features({"taste": ["1"], "place": [1], "marks": [[]]}))
    with pytest.raises(ValueError, match="lack 'place'"):
        retriever.add_items(Features({"taste": ["1"], "marks": [["a"]]}, ids=[4]))
    with pytest.raises(TypeError, match="item ids of this data are whole numbers"):
        retriever.add_items(Features({"taste": ["1"], "place": [1], "marks": [[]]}, ids=["x"]))
    with pytest.raises(ValueError, match="items were not in the training set"):
        retriever.similar_items([4711])
    for call in (
        lambda new: new.recommend(["a"]),
        lambda new: new.recommend_by_features([{}]),
        lambda new: new.add_items(movies()),
        lambda new: new.add_users(people()),
        lambda new: new.fold_in((["a"], ["x"])),
        lambda new: new.model,
    ):
        with pytest.raises(NotFittedError, match="fit"):
            call(TwoTowerRetriever())


def test_few_negatives_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    TwoTowerRetriever(config()).fit(_SPLIT.train, training=TrainingConfig(epochs=1, batch_size=8))
    assert "each item is told from 7 others at most" in caplog.text


# Files.


def test_resuming_with_other_features_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shared.training as loop

    def dies(run: Any, num_examples: int) -> None:
        run._save()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "_after_step", dies)
        with pytest.raises(KeyboardInterrupt):
            TwoTowerRetriever(config()).fit(
                _SPLIT.train, item_features=movies(), training=_TRAINING, checkpoint=tmp_path / "state"
            )
    with pytest.raises(ValueError, match="different: data"):
        TwoTowerRetriever(config()).fit(_SPLIT.train, training=_TRAINING, checkpoint=tmp_path / "state", resume=True)


def test_saved_model_takes_ids_or_features_in_plain_tensorflow(retriever: TwoTowerRetriever, tmp_path: Path) -> None:
    pipeline = copy_of(retriever, tmp_path)
    pipeline.add_items(movies(210))
    assert pipeline.export(tmp_path / "model").max_difference < 1e-4
    code = (
        "import sys, json, tensorflow as tf\n"
        "model = tf.saved_model.load(sys.argv[1])\n"
        "users = model.serve(tf.constant(['u001', 'nobody']), tf.constant(5))\n"
        "features = model.serve_features(tf.constant(['2', 'what', '']), tf.constant(4))\n"
        "print('OUT', json.dumps([part['items'].numpy().tolist() for part in (users, features)]))\n"
        "assert not {'shared', 'recsys'} & set(sys.modules)"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model")],
        capture_output=True, text=True, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    users, features = json.loads(next(line for line in child.stdout.splitlines() if "OUT" in line)[4:])
    assert [tuple(row) for row in users] == [a.items for a in pipeline.recommend(["u001", "nobody"], 5)]
    expected = pipeline.recommend_by_features([{"taste": "2"}, {"taste": "what"}, {"taste": None}], 4)
    assert [tuple(row) for row in features] == [answer.items for answer in expected]


# Steps.


def test_a_step_changes_the_rows_that_it_read_and_no_others() -> None:
    from shared.optimizers import build_optimizer
    from shared.train_step import TrainStep

    training = TrainingConfig(batch_size=8, weight_decay=0.5, learning_rate=0.1)
    task = TwoTowerRetriever(config()).training_task(_SPLIT.train, training)
    optimizer = build_optimizer(training, task.model.trainable_variables, 0.1, row_wise=task.row_wise)
    before = [variable.numpy() for variable in task.row_wise]
    batch = next(iter(task.batches.epoch(0)))
    TrainStep(task, optimizer, training)([batch])
    for side, table, old in zip(("user", "item"), task.row_wise, before, strict=True):
        changed = np.flatnonzero((table.numpy() != old).any(axis=1))
        np.testing.assert_array_equal(changed, np.unique(batch[f"{side}_rows"]))


def test_two_devices_train_as_shares() -> None:
    """On two logical devices of the CPU, in a process of its own."""
    program = (
        "import tensorflow as tf\n"
        "cpu = tf.config.list_physical_devices('CPU')[0]\n"
        "tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)\n"
        "from recsys import TwoTowerRetriever, TwoTowerRetrieverConfig\n"
        "from shared import RuntimeConfig, TrainingConfig\n"
        "from tests.recsys.tastes import split\n"
        "RuntimeConfig(devices='cpu:0,cpu:1').apply()\n"
        "pipeline = TwoTowerRetriever(TwoTowerRetrieverConfig(dim=8))\n"
        "pipeline.fit(split().train, training=TrainingConfig(epochs=10, batch_size=32, learning_rate=0.05))\n"
        "print('OUT', pipeline.evaluate(split().test).first)\n"
    )
    root = Path(__file__).parents[2]
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root, timeout=300)
    assert child.returncode == 0, child.stderr[-3000:]
    assert float(child.stdout.split("OUT")[1]) > 0.3


def test_half_precision_learns_as_well() -> None:
    """In a process of its own, for precision is the process's."""
    program = (
        "from shared import RuntimeConfig, TrainingConfig\n"
        "from tests.recsys.test_retrieval import _SPLIT, config, movies\n"
        "from recsys import TwoTowerRetriever\n"
        "for precision in ('mixed_bfloat16', 'mixed_float16'):\n"
        "    RuntimeConfig(precision=precision).apply()\n"
        "    pipeline = TwoTowerRetriever(config(hidden_dims=(16,)))\n"
        "    training = TrainingConfig(epochs=6, batch_size=64, learning_rate=0.02)\n"
        "    history = pipeline.fit(_SPLIT.train, item_features=movies(), training=training)\n"
        "    assert pipeline._towers.users.table.dtype == 'float32'\n"
        "    assert history.losses[-1] < history.losses[0] - 0.2\n"
        "    print('OUT', pipeline.evaluate(_SPLIT.test).first)\n"
    )
    root = Path(__file__).parents[2]
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=root, timeout=300)
    assert child.returncode == 0, child.stderr[-3000:]
    scores = [float(line.split()[1]) for line in child.stdout.splitlines() if line.startswith("OUT")]
    assert len(scores) == 2
    assert min(scores) > 0.25
