"""Tests of `recsys.tfrs`, for a process in which TF_USE_LEGACY_KERAS=1: `test_tfrs.py` runs them in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import recsys.rounds
from recsys import Interactions
from recsys.splitting import by_user
from recsys.tfrs import TFRSRanker, TFRSRankerConfig, TFRSRetriever, TFRSRetrieverConfig
from shared import Config, Pipeline, TrainingConfig
from tests.contract import PipelineContract
from tests.recsys.tastes import split, tastes

_SPLIT = split()
_RANKING = ("ndcg@10", "recall@10", "mrr@10", "hit@10", "map@10", "coverage@10", "novelty")


class TestRetriever(PipelineContract):
    pipeline_class: ClassVar[type[Pipeline]] = TFRSRetriever
    config: ClassVar[Config] = TFRSRetrieverConfig(dim=8)
    training = TrainingConfig(epochs=8, batch_size=64, learning_rate=0.2)
    metric_names: ClassVar[tuple[str, ...]] = _RANKING
    export_formats = ("saved_model",)
    has_workers = False
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
        return [("u000", TypeError, "list of"), (["u000"], TypeError, r"pair \(user, item\).* received 'u000'")]

    @classmethod
    def alter(cls, pipeline: Pipeline) -> None:
        assert isinstance(pipeline, TFRSRetriever | TFRSRanker)
        fitted = pipeline._fitted
        assert fitted is not None
        for name in ("items", "layers/00"):
            if name in fitted.scorer.arrays():
                fitted.scorer.arrays()[name][:] *= -1

    def test_stopped_and_resumed_equals_unbroken(
        self, fitted: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Killed(BaseException):
            pass

        write = recsys.rounds.CheckpointDirectory.write

        def dies(states: Any, state: Any) -> None:
            write(states, state)
            if state.step == 5:
                raise Killed

        options: dict[str, Any] = {"training": self.training, "checkpoint": tmp_path / "state"}
        with monkeypatch.context() as patch:
            patch.setattr(recsys.rounds.CheckpointDirectory, "write", dies)
            with pytest.raises(Killed):
                self.pipeline_class(self.config).fit(self.data(), self.held_out(), **options)
        with pytest.raises(ValueError, match="dim differ"):
            self.pipeline_class(self.config.replace(dim=9)).fit(self.data(), **options, resume=True)
        resumed = self.pipeline_class(self.config)
        resumed.fit(self.data(), self.held_out(), **options, resume=True)
        assert self.answers(resumed) == self.answers(fitted)
        assert resumed.history is not None
        assert fitted.history is not None
        assert resumed.history.losses == fitted.history.losses

    def test_the_keras_model_scores_as_predict_does(self, fitted: Any) -> None:
        scores = np.asarray(fitted.model(np.array([0, 7])))
        names = [fitted.users[0], fitted.users[7]]
        expected = [answer.scores for answer in fitted.predict([(name, list(fitted.items)) for name in names])]
        np.testing.assert_allclose(scores, expected, atol=1e-5)


class TestRetrieverOfTwoTasks(TestRetriever):
    config: ClassVar[Config] = TFRSRetrieverConfig(
        dim=8, hidden_dims=(16,), rating_weight=5.0, log_q=True, min_rating=3.0, update_rule="adam"
    )
    training = TrainingConfig(epochs=15, batch_size=64, learning_rate=0.01)
    metric_names: ClassVar[tuple[str, ...]] = (*_RANKING, "rmse")
    floor = 0.3


class TestRanker(TestRetriever):
    pipeline_class: ClassVar[type[Pipeline]] = TFRSRanker
    config: ClassVar[Config] = TFRSRankerConfig(dim=8)
    training = TrainingConfig(epochs=10, batch_size=64, learning_rate=0.02)
    metric_names: ClassVar[tuple[str, ...]] = (*_RANKING, "rmse")
    floor = 0.1

    def test_ratings_are_better_than_the_mean(self, fitted: TFRSRanker) -> None:
        assert fitted.evaluate(_SPLIT.test)["rmse"] < 0.8  # the test's items are all rated 4 or 5
        known, item_alone, neither = fitted.predict([("u000", 101), ("nobody", 101), ("u000", 999)])
        train = _SPLIT.train
        assert train.ratings is not None
        assert item_alone.score == pytest.approx(train.ratings[train.items == 101].mean(), abs=1e-5)
        assert neither.score == pytest.approx(train.ratings.mean(), abs=1e-5)
        assert known.score != item_alone.score


def test_the_ranker_is_evaluated_on_users_who_came_later() -> None:
    parts = by_user(tastes(), 0.25)
    pipeline = TFRSRanker(TFRSRankerConfig(dim=8))
    pipeline.fit(parts.train, training=TrainingConfig(epochs=1, batch_size=64))
    metrics = pipeline.evaluate(parts.test, seen=parts.seen)
    assert metrics.details["users_without_history"] == 0
    assert 0 < metrics["rmse"] < 5


def retriever(**fields: Any) -> TFRSRetriever:
    pipeline = TFRSRetriever(TFRSRetrieverConfig(dim=8, **fields))
    pipeline.fit(_SPLIT.train, training=TestRetriever.training)
    return pipeline


def test_indexes_of_tfrs_find_what_recommend_finds() -> None:
    pipeline = retriever()
    users = ["u000", "u001", "u002"]
    expected = [answer.items for answer in pipeline.recommend(users, 5, seen=False)]
    for kind in ("brute_force", "streaming"):
        scores, items = pipeline.index(kind, 5)(pipeline.user_vectors(users))  # type: ignore[arg-type]
        assert [tuple(row) for row in items.numpy().tolist()] == expected
        assert (np.diff(scores.numpy(), axis=1) <= 0).all()
    with pytest.raises(ValueError, match="brute_force or streaming; received 'scann'"):
        pipeline.index("scann")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="User 'nobody' was not"):
        pipeline.user_vectors(["u000", "nobody"])


def test_factorized_top_k_is_the_share_found_among_all_items() -> None:
    pipeline = retriever()
    figures = pipeline.factorized_top_k(_SPLIT.test, (1, 10, 99))
    users, items = _SPLIT.test.users.tolist(), _SPLIT.test.items.tolist()
    found = [item in a.items for item, a in zip(items, pipeline.recommend(users, 10, seen=False), strict=True)]
    assert list(figures) == ["factorized_top_k@1", "factorized_top_k@10"]  # there are fewer than 99 items
    assert figures["factorized_top_k@10"] == pytest.approx(np.mean(found))
    assert pipeline.evaluate(_SPLIT.test)["hit@10"] > figures["factorized_top_k@10"]
    with pytest.raises(ValueError, match=r"from 1 to 30, the items there are; received \[50\]"):
        pipeline.factorized_top_k(_SPLIT.test, (50,))


def test_users_who_came_later() -> None:
    pipeline = retriever()
    known = _SPLIT.train.take(_SPLIT.train.users == "u004")
    pipeline.fold_in(Interactions(["twin"] * len(known), known.items, known.ratings))
    twin, original, nobody = pipeline.recommend(["twin", "u004", "nobody"], 4)
    assert (twin.origin, nobody.origin) == ("model", "popularity")
    assert len(set(twin.items) & set(original.items)) >= 2


def test_who_and_what_nobody_liked_has_no_vector() -> None:
    alone = Interactions(["sad", "sad"], [101, 555], [1, 2], [0, 1])
    pipeline = TFRSRetriever(TFRSRetrieverConfig(dim=8, min_rating=3.0))
    pipeline.fit(tastes().joined(alone), training=TestRetriever.training)
    assert 555 not in pipeline.items
    assert pipeline.recommend(["sad"], 3)[0].origin == "popularity"
    items = [301, 302, 304, 305, 308]
    pipeline.fold_in(Interactions(["sad", "twin"] * 5, np.repeat(items, 2), [5.0] * 10))
    np.testing.assert_allclose(*pipeline.user_vectors(["sad", "twin"]), atol=1e-5)
    rated = TFRSRetriever(TFRSRetrieverConfig(dim=8, min_rating=3.0, rating_weight=1.0))
    rated.fit(tastes().joined(alone), training=TestRetriever.training.replace(epochs=1))
    assert 555 in rated.items  # its ratings are learned


def test_a_profile_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Leave it out here"):
        TFRSRetriever().fit(_SPLIT.train, profile=tmp_path / "profile")


def test_hard_negatives_and_ratings_by_request() -> None:
    pipeline = retriever(hard_negatives=8, rating_weight=1.0)
    first, unknown = pipeline.predict_ratings([("u000", 101), ("u000", 4711)])
    assert 0 < first < 6
    assert _SPLIT.train.ratings is not None
    assert unknown == pytest.approx(_SPLIT.train.ratings.mean(), abs=1e-5)
    with pytest.raises(ValueError, match="`rating_weight` is 0"):
        retriever().predict_ratings([("u000", 101)])
    unrated = Interactions(_SPLIT.train.users, _SPLIT.train.items)
    for new in (TFRSRetriever(TFRSRetrieverConfig(rating_weight=1.0)), TFRSRanker()):
        with pytest.raises(ValueError, match="learns from ratings, and `train` has none"):
            new.fit(unrated)
    with pytest.raises(ValueError, match="nothing to learn"):
        TFRSRetrieverConfig(retrieval_weight=0.0)


def test_the_script_trains_and_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    import importlib

    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))
    main = importlib.import_module("recommender").main
    command = importlib.import_module("tfrs_retrieval").COMMAND
    data = _SPLIT.train
    rows = zip(data.users, data.items, strict=True)
    (tmp_path / "chosen.csv").write_text("user,item\n" + "".join(f"{user},{item}\n" for user, item in rows))
    train = ["train", "--train", tmp_path / "chosen.csv", "--holdout", "leave_one_out", "--output", tmp_path / "model"]
    train += ["--dim", 8, "--epochs", 5, "--batch-size", 64, "--learning-rate", 0.2]
    assert main(command, [str(part) for part in train]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [
        *("tfrs_retrieval", "saved", "baselines", "popularity", "item_knn", "ease")
    ]
    assert main(command, ["recommend", "--model", str(tmp_path / "model"), "--users", "u000", "--k", "2"]) == 0
    assert '"origin": "model"' in capsys.readouterr().out
