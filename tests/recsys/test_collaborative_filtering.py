from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from recsys import CollaborativeFilter, CollaborativeFilterConfig, Interactions
from recsys.splitting import by_user
from shared import NotFittedError, Pipeline, TrainingConfig
from tests.contract import PipelineContract
from tests.recsys.tastes import split, tastes

MODELS = ("popularity", "item_knn", "ease", "slim", "ials", "bpr", "biased_mf")
_SMALL: dict[str, Any] = {"factors": 8, "ease_l2": 5.0, "slim_l1": 0.1, "slim_l2": 1.0, "mf_l2": 0.5}
_TRAINING = TrainingConfig(epochs=12, learning_rate=0.1, batch_size=64)


def config(model: str, **fields: Any) -> CollaborativeFilterConfig:
    return CollaborativeFilterConfig(**{**_SMALL, "model": model, **fields})


class RecommenderContract(PipelineContract):
    """The contract, for all models: what differs is the config."""

    has_workers = False
    pipeline_class = CollaborativeFilter
    training = _TRAINING
    metric_names = ("ndcg@10", "recall@10", "mrr@10", "hit@10", "map@10", "coverage@10", "novelty")
    export_formats = ("saved_model",)
    iterates: ClassVar[bool] = False

    @classmethod
    def data(cls) -> Any:
        return split().train

    @classmethod
    def held_out(cls) -> Any:
        return split().test

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
            ([("u000", 1, 2)], TypeError, "pair"),
            ([("u000", "101")], TypeError, "item ids of this data are whole numbers; received '101'"),
            ([(1, 101)], TypeError, "user ids of this data are strings; received 1"),
        ]

    @classmethod
    def alter(cls, pipeline: Pipeline) -> None:
        assert isinstance(pipeline, CollaborativeFilter)
        fitted = pipeline._fitted
        assert fitted is not None
        for name, array in fitted.scorer.arrays().items():
            if array.dtype == np.float32 and name != "users":
                array *= -1

    def test_stopped_and_resumed_equals_unbroken(
        self, fitted: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import recsys.rounds

        if not self.has_epochs:
            pytest.skip("solved at once")

        class Killed(BaseException):
            pass

        write = recsys.rounds.CheckpointDirectory.write

        def dies(states: Any, state: Any) -> None:
            write(states, state)
            if state.step == 5:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(recsys.rounds.CheckpointDirectory, "write", dies)
            with pytest.raises(Killed):
                self.pipeline_class(self.config).fit(
                    self.data(), self.held_out(), training=self.training, checkpoint=tmp_path / "state"
                )
        with pytest.raises(ValueError, match="state of another run"):
            self.pipeline_class(self.config).fit(self.data(), training=self.training, checkpoint=tmp_path / "state")
        other = self.pipeline_class(self.config.replace(factors=9))
        with pytest.raises(ValueError, match="factors differ"):
            other.fit(self.data(), training=self.training, checkpoint=tmp_path / "state", resume=True)
        resumed = self.pipeline_class(self.config)
        resumed.fit(self.data(), self.held_out(), training=self.training, checkpoint=tmp_path / "state", resume=True)
        assert self.answers(resumed) == self.answers(fitted)
        assert resumed.history is not None
        assert fitted.history is not None
        assert resumed.history.losses == fitted.history.losses
        assert resumed.history.best_epoch == fitted.history.best_epoch

    def test_the_keras_model_scores_as_predict_does(self, fitted: CollaborativeFilter) -> None:
        users = np.array([0, 7, -1])
        scores = np.asarray(fitted.model(users))
        assert scores.shape == (3, len(fitted.items))
        names = [fitted.users[0], fitted.users[7], "nobody"]
        if self.config.model != "biased_mf":  # whose ratings are kept within their range
            pairs = [(name, list(fitted.items)) for name in names]
            expected = [answer.scores for answer in fitted.predict(pairs)]
            np.testing.assert_allclose(scores, expected, atol=1e-5)

    def test_other_export_formats_say_what_is_offered(self, fitted: CollaborativeFilter, tmp_path: Path) -> None:
        for export_format in ("onnx", "litert"):
            with pytest.raises(ValueError, match=f"exported as saved_model.*{export_format} has no tables"):
                fitted.export(tmp_path / "export", export_format)  # type: ignore[arg-type]


class TestPopularity(RecommenderContract):
    config = config("popularity")
    floor = 0.05
    has_epochs = False


class TestItemKnn(RecommenderContract):
    config = config("item_knn", weighting="tfidf", neighbours=20)
    floor = 0.4
    has_epochs = False


class TestEase(RecommenderContract):
    config = config("ease")
    floor = 0.4
    has_epochs = False


class TestSlim(RecommenderContract):
    config = config("slim", min_rating=3.0)
    floor = 0.4
    has_epochs = False


class TestIals(RecommenderContract):
    config = config("ials")
    floor = 0.4


class TestBpr(RecommenderContract):
    config = config("bpr")
    floor = 0.4


class TestBiasedMf(RecommenderContract):
    config = config("biased_mf")
    floor = 0.1
    metric_names = (*RecommenderContract.metric_names, "rmse")


@pytest.fixture(scope="module", params=MODELS)
def recommender(request: pytest.FixtureRequest) -> CollaborativeFilter:
    pipeline = CollaborativeFilter(config(request.param))
    pipeline.fit(split().train, training=_TRAINING)
    return pipeline


def copy_of(recommender: CollaborativeFilter, tmp_path: Path) -> CollaborativeFilter:
    recommender.save(tmp_path / "copy")
    return CollaborativeFilter.load(tmp_path / "copy")


# Recommending.


def test_seen_items_are_left_out_and_the_rest_is_ranked(recommender: CollaborativeFilter) -> None:
    train = split().train
    for answer in recommender.recommend(["u000", "u031"], 99):
        history = set(train.items[train.users == answer.user].tolist())
        assert set(answer.items) == set(recommender.items) - history
        assert list(answer.scores) == sorted(answer.scores, reverse=True)
        everything = recommender.recommend([answer.user], 99, seen=False)[0]
        assert set(everything.items) == set(recommender.items)
        assert [item for item in everything.items if item not in history] == list(answer.items)


def test_exclude_and_candidates(recommender: CollaborativeFilter) -> None:
    (free,) = recommender.recommend(["u000"], 99)
    (less,) = recommender.recommend(["u000"], 99, exclude=[free.items[0], 12345])
    assert less.items == free.items[1:]
    chosen = [*free.items[5:8], 12345]
    (few,) = recommender.recommend(["u000"], 99, candidates=chosen)
    assert few.items == free.items[5:8]
    np.testing.assert_allclose(few.scores, free.scores[5:8], atol=1e-6)
    (none,) = recommender.recommend(["u000"], 5, candidates=[])
    assert (none.items, none.scores) == ((), ())


def test_unknown_users_get_what_is_popular(recommender: CollaborativeFilter) -> None:
    (unknown,) = recommender.recommend(["nobody"], 3)
    train = split().train
    items, counts = np.unique(train.items, return_counts=True)
    assert unknown.origin == "popularity"
    assert list(unknown.items) == items[np.lexsort((items, -counts))][:3].tolist()
    assert recommender.recommend([], 3) == []


def test_new_users_are_folded_in_without_training(recommender: CollaborativeFilter, tmp_path: Path) -> None:
    train = split().train
    known = train.take(train.users == "u004")
    before = recommender.recommend(["u004"], 5)
    folded = copy_of(recommender, tmp_path)
    history = Interactions(["twin"] * len(known), known.items, known.ratings)
    folded.fold_in(history.joined(Interactions(["twin", "ghost"], [55555, 55555], [4, 4])))
    (twin,) = folded.recommend(["twin"], 5)
    assert folded.recommend(["u004"], 5) == before
    assert twin.origin == "model"
    if recommender.config.model == "bpr":  # whose steps are random
        assert len(set(twin.items) & set(before[0].items)) >= 3
    else:
        assert twin.items == before[0].items
    # Only items that training did not have: still nobody.
    assert folded.recommend(["ghost"], 5)[0].origin == "popularity"
    again = copy_of(folded, tmp_path)
    assert again.recommend(["twin", "ghost", "u004"], 5) == folded.recommend(["twin", "ghost", "u004"], 5)


def test_folding_in_more_of_a_known_user_hides_it(recommender: CollaborativeFilter, tmp_path: Path) -> None:
    folded = copy_of(recommender, tmp_path)
    first = folded.recommend(["u000"], 1)[0].items[0]
    folded.fold_in(Interactions(["u000"], [first], [5.0]))
    assert first not in folded.recommend(["u000"], 99)[0].items


def test_similar_items_and_explanations(recommender: CollaborativeFilter) -> None:
    if recommender.config.model == "popularity":
        with pytest.raises(ValueError, match="no similar items"):
            recommender.similar_items([101])
        with pytest.raises(ValueError, match="no history explains"):
            recommender.explain("u000", 101)
        return
    answers = recommender.similar_items([101, 205], 3)
    for answer in answers:
        assert answer.item not in answer.items
        assert list(answer.scores) == sorted(answer.scores, reverse=True)
    if recommender.config.model != "biased_mf":
        assert [answer.items[0] // 100 for answer in answers] == [1, 2]  # type: ignore[operator]
    (item,) = recommender.recommend(["u000"], 1)[0].items
    explanation = recommender.explain("u000", item, 99)
    train = split().train
    assert {item for item, _ in explanation.because} == set(train.items[train.users == "u000"].tolist())
    assert explanation.exact == (recommender.config.model in ("item_knn", "ease", "slim"))
    if explanation.exact:
        assert sum(part for _, part in explanation.because) == pytest.approx(explanation.score, abs=1e-5)
    with pytest.raises(ValueError, match="items were not in the training set, such as"):
        recommender.similar_items([101, 4242])
    with pytest.raises(ValueError, match="User 'nobody' has no history"):
        recommender.explain("nobody", 101)


def test_k_must_be_a_positive_whole_number(recommender: CollaborativeFilter) -> None:
    for k in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="`k` must be a whole number"):
            recommender.recommend(["u000"], k)  # type: ignore[arg-type]


def test_recommending_needs_fit() -> None:
    for call in (
        lambda new: new.recommend(["a"]),
        lambda new: new.similar_items([1]),
        lambda new: new.explain("a", 1),
        lambda new: new.fold_in((["a"], [1])),
        lambda new: new.model,
        lambda new: new.items,
    ):
        with pytest.raises(NotFittedError, match="fit"):
            call(CollaborativeFilter())


# Scoring.


def test_evaluate_is_what_recommend_gives() -> None:
    parts = split()
    pipeline = CollaborativeFilter(config("ease"))
    pipeline.fit(parts.train)
    metrics = pipeline.evaluate(parts.test, cutoffs=(3, 10))
    answers = pipeline.recommend(parts.test.users.tolist(), 3)
    found = [item in answer.items for item, answer in zip(parts.test.items.tolist(), answers, strict=True)]
    assert metrics["hit@3"] == pytest.approx(np.mean(found))
    assert list(metrics)[:6] == ["ndcg@3", "recall@3", "mrr@3", "hit@3", "map@3", "ndcg@10"]
    low, high = metrics.details["intervals"]["hit@3"]
    assert low < metrics["hit@3"] < high
    assert metrics.details["protocol"] == "full ranking"


def test_what_counts_in_evaluation_is_told() -> None:
    parts = split()
    pipeline = CollaborativeFilter(config("ease", min_rating=3.0))
    pipeline.fit(parts.train)
    user, item = next(iter(parts.train.take(parts.train.users == "u005")))
    low = Interactions(["u001"], [int(parts.test.items[0])], [1.0])
    fresh = int(parts.test.items[parts.test.users == "u002"][0])
    held = Interactions(["u000", "nobody", user, "u002"], [77777, 101, item, fresh], [5, 5, 5, 5]).joined(low)
    details = pipeline.evaluate(held).details
    assert [details[name] for name in ("users", "users_without_history", "unknown_items", "seen_before")] == [
        3,
        1,
        1,
        1,
    ]
    with pytest.raises(ValueError, match="nothing to be found"):
        pipeline.evaluate(parts.train)


def test_strong_generalisation_uses_what_was_seen_of_new_users() -> None:
    parts = by_user(tastes(), 0.25)
    pipeline = CollaborativeFilter(config("ease"))
    pipeline.fit(parts.train)
    without = pipeline.evaluate(parts.test)
    folded = pipeline.evaluate(parts.test, seen=parts.seen)
    assert without.details["users_without_history"] == 15
    assert folded.details["users_without_history"] == 0
    assert folded["ndcg@10"] > 2 * without["ndcg@10"]
    assert len(pipeline.users) == 45  # evaluating folds nobody in for good


def test_figures_among_sampled_items_have_names_of_their_own() -> None:
    parts = split()
    pipeline = CollaborativeFilter(config("ease"))
    pipeline.fit(parts.train)
    metrics = pipeline.evaluate(parts.test, negatives=9)
    assert list(metrics) == [f"sampled_9_{name}@10" for name in ("ndcg", "recall", "mrr", "hit", "map")]
    assert metrics["sampled_9_hit@10"] == 1.0  # among ten
    assert metrics == pipeline.evaluate(parts.test, negatives=9)
    assert metrics != pipeline.evaluate(parts.test, negatives=9, seed=1)
    assert "not comparable" in metrics.details["protocol"]


def test_learned_models_beat_popularity(recommender: CollaborativeFilter) -> None:
    parts = split()
    popular = CollaborativeFilter(config("popularity"))
    popular.fit(parts.train)
    mine, theirs = (pipeline.evaluate(parts.test)["ndcg@10"] for pipeline in (recommender, popular))
    factor = {"popularity": 1.0, "biased_mf": 1.2}.get(recommender.config.model, 2.0)
    assert mine >= factor * theirs


# Ratings.


def test_biased_mf_predicts_ratings_and_falls_back_to_biases() -> None:
    parts = split()
    pipeline = CollaborativeFilter(config("biased_mf"))
    pipeline.fit(parts.train, parts.test, training=_TRAINING)
    ratings = parts.train.ratings
    assert ratings is not None
    assert pipeline.evaluate(parts.test)["rmse"] < ratings.std()
    strangers, nothing, unknown = (
        answer.score for answer in pipeline.predict([("nobody", 101), ("nobody", 9), ("u000", 9)])
    )
    assert nothing == pytest.approx(ratings.mean(), abs=1e-4)
    assert abs(strangers - ratings.mean()) < 1.5
    assert 1 <= unknown <= 5


def test_models_of_ratings_need_ratings() -> None:
    with pytest.raises(ValueError, match="`train` has none"):
        CollaborativeFilter(config("biased_mf")).fit((["a", "b"], [1, 2]))
    pipeline = CollaborativeFilter(config("biased_mf"))
    pipeline.fit(split().train, training=TrainingConfig(epochs=1))
    with pytest.raises(ValueError, match="Give them ratings"):
        pipeline.fold_in((["a"], [101]))


def test_ratings_decide_what_is_liked_and_how_much() -> None:
    data = Interactions(["a", "a", "b", "b", "c"], [1, 2, 1, 3, 1], [5, 1, 4, 5, 5])
    liked = CollaborativeFilter(config("popularity", min_rating=3.0))
    liked.fit(data)
    assert [answer.score for answer in liked.predict([("z", 1), ("z", 2), ("z", 3)])] == pytest.approx([1, 0, 1 / 3])
    assert liked.recommend(["a"], 9)[0].items == (3,)  # the disliked one was seen too
    with pytest.raises(ValueError, match="rating of at least 9"):
        CollaborativeFilter(config("popularity", min_rating=9.0)).fit(data)
    weighted, plain = (CollaborativeFilter(config("ease", weighted=on)) for on in (True, False))
    for pipeline in (weighted, plain):
        pipeline.fit(data)
    assert weighted.predict([("a", 3)]) != plain.predict([("a", 3)])
    with pytest.raises(ValueError, match="weights must be positive"):
        CollaborativeFilter(config("ease", weighted=True)).fit(Interactions(["a"], [1], [0.0]))


def test_duplicates_count_once_as_the_last() -> None:
    once = Interactions(["a", "b", "a", "b"], [1, 1, 2, 3], [5, 4, 2, 3])
    twice = Interactions(["a", "a", "b", "a", "b"], [1, 1, 1, 2, 3], [1, 5, 4, 2, 3])
    for model in MODELS:
        answers = []
        for data in (once, twice):
            pipeline = CollaborativeFilter(config(model, weighted=True, factors=2))
            pipeline.fit(data, training=TrainingConfig(epochs=2))
            answers.append(pipeline.recommend(["a", "b"], 3))
        assert answers[0] == answers[1], model


# Files.


@pytest.mark.parametrize("recommender", ["item_knn", "ease", "ials"], indirect=True)
def test_saved_model_runs_in_plain_tensorflow(recommender: CollaborativeFilter, tmp_path: Path) -> None:
    report = recommender.export(tmp_path / "model")
    assert report.max_difference < 1e-5
    code = (
        "import sys, json, tensorflow as tf\n"
        "model = tf.saved_model.load(sys.argv[1])\n"
        "for k in (1, 4, 99):\n"
        "    answer = model.serve(tf.constant(['u000', 'nobody', 'u017']), tf.constant(k))\n"
        "    print('OUT', json.dumps([answer['items'].numpy().tolist(), answer['scores'].numpy().tolist()]))\n"
        "assert not {'shared', 'recsys'} & set(sys.modules)"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model")],
        capture_output=True, text=True, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    for k, line in zip((1, 4, 99), [line for line in child.stdout.splitlines() if "OUT" in line], strict=True):
        items, scores = json.loads(line.removeprefix("OUT "))
        for answer, row, values in zip(
            recommender.recommend(["u000", "nobody", "u017"], k), items, scores, strict=True
        ):
            count = len(answer)
            assert row[count:] == [-1] * (min(k, len(recommender.items)) - count)
            np.testing.assert_allclose(values[:count], answer.scores, atol=1e-5)
            assert sorted(row[:count]) == sorted(answer.items)


def test_importing_recsys_is_light() -> None:
    code = "import recsys, sys; assert not {'tensorflow', 'keras', 'scipy', 'numpy'} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=60)
