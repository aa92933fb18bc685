from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import keras
import numpy as np
import pytest
import tensorflow as tf

from recsys import Features, Ranker, RankerConfig, RowScore, read_criteo
from recsys.feature_encoder import Arrays, FeatureEncoder
from recsys.models.ranking_network import (
    DcnNetwork,
    DeepFmNetwork,
    DlrmNetwork,
    RankingNetwork,
    WideDeepNetwork,
    pair_products,
)
from recsys.ranking_baselines import _as_they_are, ranking_baselines
from recsys.row_batches import RowBatches
from shared import Config, NotFittedError, TrainingConfig
from shared.data import InputPipeline, Loading, Stages
from shared.distribution import Portion
from tests.contract import PipelineContract


def clicks(count: int = 240, seed: int = 0, **more: Any) -> Features:
    """Clicks that depend on hour and ad together, on tags, and on a skewed price; some values are missing."""
    rng = np.random.default_rng(seed)
    hours, ads = rng.integers(0, 24, count), rng.integers(0, 4, count)
    prices = np.exp(rng.normal(0, 2, count))
    tags = [[name for name in "abc" if rng.random() < 0.4] for _ in range(count)]
    level = np.where(hours < 12, 2.0, -2.0) * np.where(ads < 2, 1.0, -1.0) + np.array(["a" in tag for tag in tags])
    targets = (level + 0.3 * np.log(prices) > 0).astype(float)
    columns: dict[str, Any] = {
        "hour": [None if place % 17 == 0 else hour for place, hour in enumerate(hours.tolist())],
        "ad": [f"ad{number}" for number in ads.tolist()],
        "zip": rng.integers(100, 110, count),
        "price": prices,
        "tags": tags,
    }
    return Features({**columns, **more}, targets=targets, kinds={"zip": "categorical"})


ROWS: list[dict[str, Any]] = [
    {"hour": 3, "ad": "ad0", "zip": 101, "price": 1.5, "tags": ["a", "b"]},
    {"hour": None, "ad": "new", "zip": 5, "price": None, "tags": []},
    {"hour": 20, "ad": None, "zip": None, "price": 1e9, "tags": ["z", "a", "b", "c"], "not looked at": 1},
    {"hour": 15, "ad": "ad3", "zip": 109, "price": 0.1, "tags": ["c"]},
]


def config(model: str, **fields: Any) -> RankerConfig:
    small = {"model": model, "dim": 4, "hidden": (16,), "bottom": (8,), "dropout": 0.1, "buckets": 6}
    return RankerConfig.from_dict({**small, **fields})


_TRAINING = TrainingConfig(epochs=12, batch_size=20, learning_rate=0.02, weight_decay=0.0)


class TestDlrm(PipelineContract):
    pipeline_class = Ranker
    config: ClassVar[Config] = config("dlrm")
    training: ClassVar[TrainingConfig] = _TRAINING
    metric_names = ("auc", "log_loss", "accuracy", "calibration_error")
    floor = 0.9

    @classmethod
    def data(cls) -> Any:
        return clicks()

    @classmethod
    def held_out(cls) -> Any:
        return clicks(100, seed=1)

    @classmethod
    def inputs(cls) -> list[Any]:
        return list(ROWS)

    @classmethod
    def inputs_as_code(cls) -> str:
        return repr(ROWS)

    @classmethod
    def wrong_inputs(cls) -> list[tuple[Any, type[Exception], str]]:
        return [
            ("row", TypeError, r"list of rows \(dicts of features\); received one str"),
            ([3], TypeError, "Each row must be a dict of features; received int"),
            ([{"hour": 3}], ValueError, "Row 0 has no 'ad'; the features are hour, ad, zip, price, tags"),
            ([{**ROWS[0], "hour": "three"}], TypeError, "'hour' is numeric; received 'three'"),
            ([{**ROWS[0], "price": np.inf}], ValueError, "'price' must hold finite numbers"),
            ([{**ROWS[0], "tags": "a"}], TypeError, "'tags' is multi_valued: a list a row; received 'a'"),
            ([{**ROWS[0], "ad": 1.5}], TypeError, "'ad' holds categories"),
        ]


class TestDcnV2(TestDlrm):
    config: ClassVar[Config] = config("dcn_v2", cross_rank=3)


class TestDeepFm(TestDlrm):
    config: ClassVar[Config] = config("deepfm", hashed=("zip",), hash_buckets=6)


class TestWideDeep(TestDlrm):
    config: ClassVar[Config] = config("wide_deep", crosses=("ad*zip", "hour*ad"), cross_buckets=50)


@pytest.fixture(scope="module")
def ranker() -> Ranker:
    pipeline = Ranker(config("dcn_v2"))
    pipeline.fit(clicks(), training=_TRAINING.replace(epochs=3))
    return pipeline


# Answers.


def test_rows_columns_and_tables_are_answered_alike(ranker: Ranker) -> None:
    by_rows = ranker.predict(ROWS)
    columns = {name: [row[name] for row in ROWS] for name in ranker.encoder.names}
    assert ranker.predict(columns) == by_rows
    table = Features(columns, ids=[7, 8, 9, 10], kinds={"zip": "categorical"})
    assert ranker.predict(table) == [RowScore(row.score, id) for row, id in zip(by_rows, (7, 8, 9, 10), strict=True)]
    np.testing.assert_allclose(ranker.scores(columns), [row.score for row in by_rows])
    assert by_rows[0].to_dict() == {"score": round(by_rows[0].score, 6)}
    assert RowScore(0.5, "a").to_dict() == {"id": "a", "score": 0.5}


def test_many_rows_are_scored_in_parts(ranker: Ranker, monkeypatch: pytest.MonkeyPatch) -> None:
    data = clicks(90)
    whole = ranker.scores(data)
    monkeypatch.setattr("recsys.ranking._ENCODED", 40)
    monkeypatch.setattr("recsys.ranking._SCORED", 7)
    np.testing.assert_allclose(ranker.scores(data), whole, atol=1e-6)


def test_candidates_are_ranked_for_contexts(ranker: Ranker) -> None:
    ads = Features({"ad": ["ad0", "ad3", "ad1"], "tags": [["a"], [], ["b"]], "price": [1.0, 2.0, 3.0]}, ids=[5, 6, 7])
    contexts = [{"hour": 3, "zip": 101}, {"hour": 20, "zip": 109, "ad": "not looked at"}]
    answers = ranker.rank(contexts, ads, k=2)
    assert [(answer.user, len(answer)) for answer in answers] == [(0, 2), (1, 2)]
    for context, answer in zip(contexts, answers, strict=True):
        rows = [
            {**context, "ad": ad, "tags": tags, "price": price}
            for ad, tags, price in (("ad0", ["a"], 1.0), ("ad3", [], 2.0), ("ad1", ["b"], 3.0))
        ]
        scores = dict(zip((5, 6, 7), ranker.scores(rows).tolist(), strict=True))
        assert list(answer.items) == sorted(scores, key=lambda item: -scores[item])[:2]
        np.testing.assert_allclose(answer.scores, [scores[int(item)] for item in answer.items], atol=1e-6)
    assert ranker.rank([], ads) == []
    with pytest.raises(ValueError, match="Row 0 has no 'zip'"):
        ranker.rank([{"hour": 3}], ads)
    with pytest.raises(ValueError, match="must be Features with ids"):
        ranker.rank(contexts, clicks())
    with pytest.raises(ValueError, match="`k` must be at least 1"):
        ranker.rank(contexts, ads, 0)


def test_ratings_are_learned_too(tmp_path: Path) -> None:
    data = clicks()
    assert data.targets is not None
    rated = Features(data.columns, targets=3 + 2 * data.targets)
    pipeline = Ranker(config("deepfm", objective="rating"))
    pipeline.fit(rated, rated, training=_TRAINING.replace(epochs=20))
    metrics = pipeline.evaluate(rated)
    assert tuple(metrics) == ("r2", "rmse")
    assert metrics["r2"] > 0.7
    assert metrics["r2"] == pytest.approx(1 - metrics["rmse"] ** 2 / np.var(rated.targets), abs=1e-5)
    assert pipeline.export(tmp_path / "model").max_difference < 1e-4


def test_an_untrained_network_answers_with_the_share_of_clicks() -> None:
    pipeline = Ranker(config("wide_deep"))
    pipeline.training_task(clicks(), _TRAINING)
    targets = clicks().targets
    assert targets is not None
    assert pipeline._scores_of(pipeline._known_encoder.table(clicks())).mean() == pytest.approx(targets.mean(), abs=0.1)


@pytest.mark.parametrize("kind", ["numeric", "categorical", "multi_valued", "embedding"])
@pytest.mark.parametrize("model", ["dlrm", "dcn_v2", "deepfm", "wide_deep"])
def test_one_column_of_any_kind_is_enough(model: str, kind: str) -> None:
    values = {"numeric": [1.0, 2.0], "categorical": ["a", "b"], "multi_valued": [["a"], ["b"]],
              "embedding": [[1.0, 0.5], [0.0, 1.0]]}[kind]  # fmt: skip
    pipeline = Ranker(config(model, buckets=0, min_count=1))
    data = Features({"x": values * 4}, targets=[0, 1] * 4)
    task = pipeline.training_task(data, TrainingConfig(batch_size=4))
    batch = {name: tf.constant(array) for name, array in next(task.batches.epoch()).items()}
    with tf.GradientTape() as tape:
        loss = task.loss(batch)
    gradients = tape.gradient(loss, [weight.value for weight in task.model.trainable_variables])
    assert all(gradient is not None for gradient in gradients)
    assert np.isfinite(float(loss))


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="A cross is two columns"):
        RankerConfig(crosses=("a",))
    with pytest.raises(ValueError, match="`hashed` needs `hash_buckets`"):
        RankerConfig(hashed=("a",))
    with pytest.raises(ValueError, match="`hidden` must hold widths of at least 1"):
        RankerConfig(hidden=(0,))
    data = clicks()
    fit = Ranker(config("dlrm")).fit
    for train, part in [
        (Features(data.columns), "`train` has no targets"),
        (Features(data.columns, targets=[0] * len(data)), "All targets of `train` are 0"),
        (Features(data.columns, targets=[0, 3] * 120), r"must be 0 or 1; received 3 at row 1.*objective=rating"),
        (data.take(np.zeros(0, np.int64)), "`train` has no examples"),
    ]:
        with pytest.raises(ValueError, match=part):
            fit(train)
    with pytest.raises(ValueError, match="All targets of `validation` are 1"):
        fit(data, Features(data.columns, targets=[1] * len(data)))
    with pytest.raises(ValueError, match="'ad\\*age' names 'age', which is no categorical"):
        Ranker(config("wide_deep", crosses=("ad*age",))).fit(data)
    with pytest.raises(ValueError, match="'size', which is no column of categories"):
        Ranker(config("dlrm", hashed=("size",), hash_buckets=9)).fit(data)
    for call in (lambda new: new.scores(data), lambda new: new.rank([], data), lambda new: new.encoder,
                 lambda new: new.model):  # fmt: skip
        with pytest.raises(NotFittedError, match="fit"):
            call(Ranker())


# Networks, each against its formula in NumPy.


def small() -> tuple[FeatureEncoder, Arrays]:
    data = clicks(40)
    encoder = FeatureEncoder.fit(data, buckets=3)
    return encoder, encoder.encode(data.take(np.arange(6)))


def spread(network: RankingNetwork, arrays: Arrays) -> dict[str, np.ndarray]:
    """Larger random weights, so that nothing is hidden by small ones; the weights by their paths."""
    network(arrays)
    rng = np.random.default_rng(0)
    for weight in network.weights:
        weight.assign(rng.normal(0, 0.5, weight.shape))
    return {weight.path: np.asarray(weight, np.float64) for weight in network.weights}


def fields_of(network: RankingNetwork, arrays: Arrays, table: np.ndarray) -> np.ndarray:
    """Vectors (B, F, D), by loops."""
    rows = []
    for categories, places in zip(arrays["categories"], arrays["lists"], strict=True):
        vectors = [table[number] for number in categories]
        real = [table[number] for number in places if number]
        rows.append([*vectors, np.mean(real, axis=0) if real else np.zeros(table.shape[1])])
    return np.array(rows)


def dense(layer: Any, values: np.ndarray) -> np.ndarray:
    weights = [np.asarray(weight, np.float64) for weight in layer.weights]
    return values @ weights[0] + (weights[1] if len(weights) > 1 else 0)


def perceptron(block: Any, values: np.ndarray) -> np.ndarray:
    for layer in block.layers:
        values = np.maximum(dense(layer, values), 0)
    return values


def parts(network: RankingNetwork, arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    spread(network, arrays)
    vectors = fields_of(network, arrays, np.asarray(network.embedding.table, np.float64))
    return vectors, arrays["numbers"].astype(np.float64)


def first_order(layer: Any, network: RankingNetwork, arrays: Arrays) -> np.ndarray:
    weights = fields_of(network, arrays, np.asarray(layer.categories.table, np.float64))
    return weights[:, :, 0].sum(axis=1) + dense(layer.linear, arrays["numbers"].astype(np.float64))[:, 0]


def check(network: RankingNetwork, arrays: Arrays, expected: np.ndarray) -> None:
    found = np.asarray(network(arrays))
    assert found.shape == (6,)
    assert found.dtype == np.float32
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_dlrm_is_its_formula() -> None:
    encoder, arrays = small()
    network = DlrmNetwork(encoder.layout, dim=3, bottom=(5,), hidden=(7, 4), dropout=0.5)
    vectors, numbers = parts(network, arrays)
    bottom = perceptron(network.bottom, numbers)
    rows = []
    for z, fields in zip(bottom, vectors, strict=True):
        every = [z, *fields]
        rows.append([*z, *(every[i] @ every[j] for i in range(len(every)) for j in range(i))])
    check(network, arrays, dense(network.head, perceptron(network.deep, np.array(rows)))[:, 0])


@pytest.mark.parametrize("rank", [0, 2])
def test_dcn_is_its_formula(rank: int) -> None:
    encoder, arrays = small()
    network = DcnNetwork(encoder.layout, dim=2, cross_layers=2, rank=rank, hidden=(6,), dropout=0.5)
    vectors, numbers = parts(network, arrays)
    first = np.concatenate([vectors.reshape(6, -1), numbers], axis=1)
    crossed = first
    for number, layer in enumerate(network.crosses):
        inner = dense(network.projections[number], crossed) if rank else crossed
        crossed = first * dense(layer, inner) + crossed
    both = np.concatenate([crossed, perceptron(network.deep, first)], axis=1)
    check(network, arrays, dense(network.head, both)[:, 0])


def test_deepfm_is_its_formula() -> None:
    encoder, arrays = small()
    network = DeepFmNetwork(encoder.layout, dim=3, hidden=(6,), dropout=0.5)
    vectors, numbers = parts(network, arrays)
    factors = np.asarray(network.factors, np.float64)
    terms = np.concatenate([vectors, numbers[:, :, None] * factors], axis=1)
    pairs = [(i, j) for i in range(terms.shape[1]) for j in range(i)]
    second = sum((terms[:, i] * terms[:, j]).sum(axis=1) for i, j in pairs)
    deep = perceptron(network.deep, np.concatenate([vectors.reshape(6, -1), numbers], axis=1))
    expected = first_order(network.first_order, network, arrays) + second + dense(network.head, deep)[:, 0]
    check(network, arrays, expected)


def test_wide_and_deep_is_its_formula() -> None:
    encoder, arrays = small()
    crosses = [(0, 1), (2, 0)]
    network = WideDeepNetwork(encoder.layout, crosses=crosses, cross_buckets=11, dim=3, hidden=(6,), dropout=0.5)
    vectors, numbers = parts(network, arrays)
    weights = np.asarray(network.cross_weights)[:, 0]
    expected = first_order(network.first_order, network, arrays)
    expected += dense(
        network.head, perceptron(network.deep, np.concatenate([vectors.reshape(6, -1), numbers], axis=1))
    )[:, 0]
    for row, categories in enumerate(arrays["categories"].tolist()):
        for place, (i, j) in enumerate(crosses):
            bucket = (categories[i] * 2_654_435_761 + categories[j] * 40_503) % 11
            expected[row] += weights[11 * place + bucket]
    check(network, arrays, expected)


def test_products_of_pairs() -> None:
    vectors = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    expected = [[row[i] @ row[j] for i in range(4) for j in range(i)] for row in vectors]
    np.testing.assert_allclose(pair_products(tf.constant(vectors)), expected, rtol=1e-5)


def test_dropout_is_for_training_only() -> None:
    encoder, arrays = small()
    network = DcnNetwork(encoder.layout, dim=2, cross_layers=1, rank=0, hidden=(30,), dropout=0.5)
    parts(network, arrays)
    np.testing.assert_array_equal(network(arrays), network(arrays))
    assert np.abs(np.asarray(network(arrays, training=True)) - np.asarray(network(arrays))).max() > 0.01


# Batches.


def test_batches_are_rows_in_the_order_of_the_input_pipeline() -> None:
    arrays = {"x": np.arange(10), "y": np.arange(10)[:, None] * 2}
    for drop in (True, False):
        loading = Loading(batch_size=4, shuffle=True, seed=3, drop_remainder=drop)
        rows = RowBatches(arrays, loading)
        plain = InputPipeline((np.arange(10), np.arange(10)), Stages(encode=lambda x, _: {"x": np.asarray(x)}), loading)
        for epoch in (0, 1):
            found = [batch["x"].tolist() for batch in rows.epoch(epoch)]
            assert found == [batch["x"].tolist() for batch in plain.epoch(epoch)]
            assert [batch["x"].tolist() for batch in rows.epoch(epoch, 1)] == found[1:]
            assert len(found) == rows.num_batches
        assert all((2 * batch["x"] == batch["y"][:, 0]).all() for batch in rows.epoch())
    changed = RowBatches({**arrays, "y": arrays["y"] + 1}, loading)
    assert changed.fingerprint() != rows.fingerprint() == RowBatches(arrays, loading).fingerprint()
    assert len(list(RowBatches(arrays, Loading(batch_size=32, drop_remainder=True)).epoch())) == 1


def test_shares_of_several_devices_are_parts_of_the_same_batches() -> None:
    arrays = {"x": np.arange(7), "y": np.arange(7)[:, None] * 2}
    rows = RowBatches(arrays, Loading(batch_size=3, shuffle=True, seed=3))
    whole = [batch["x"].tolist() for batch in rows.epoch(1)]
    shares = list(rows.shares(Portion(num_shares=2, first=0, count=2), 1))
    assert [share.sizes for share in shares] == [(1, 2), (1, 2), (0, 1)]
    for batch, share in zip(whole, shares, strict=True):
        joined = [x for part, size in zip(share.parts, share.sizes, strict=True) for x in part["x"][:size].tolist()]
        assert joined == batch
        assert share.num_examples == len(batch)
        assert all(len(part["x"]) for part in share.parts)


@pytest.mark.parametrize("model", ["dlrm", "wide_deep"])
def test_of_large_tables_only_rows_are_updated(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys.ranking._ROW_WISE", 20)
    pipeline = Ranker(config(model, crosses=("hour*ad",), cross_buckets=50))
    task = pipeline.training_task(clicks(), _TRAINING)
    assert len(task.row_wise) == {"dlrm": 1, "wide_deep": 3}[model]
    pipeline.fit(clicks(), training=_TRAINING)
    assert pipeline.evaluate(clicks(100, seed=1))["auc"] > 0.9


# Baselines.


def test_baselines_know_all_kinds_of_columns() -> None:
    rng = np.random.default_rng(0)
    train, test = (
        clicks(count, seed=count, vector=rng.normal(size=(count, 3)).astype(np.float32)) for count in (400, 200)
    )
    found = ranking_baselines(train, test)
    assert list(found) == ["logistic regression", "gradient boosting"]
    # Hour and ad count together only: trees see that, a linear model does not.
    assert found["gradient boosting"]["auc"] > 0.9 > 0.7 > found["logistic regression"]["auc"]
    assert all(tuple(metrics) == ("auc", "log_loss", "accuracy") for metrics in found.values())
    columns = {"tags": [["a", "b"], [], ["b"]], "ad": ["x", "y", "x"], "more": [["c"], ["c"], []]}
    table = Features(columns, targets=[0, 1, 0])
    matrix, _, options = _as_they_are(table.take(np.array([0, 1, 2] * 2)), table)
    assert matrix.shape == (6, 1 + 3 + 2)  # the category; each tag and an unknown one; the same of `more`
    assert matrix[:3, 1:].tolist() == [[0, 1, 1, 0, 1], [0, 0, 0, 0, 1], [0, 0, 1, 0, 0]]
    assert options["categorical_features"].tolist() == [True] + [False] * 5
    with pytest.raises(ValueError, match="for targets 0 and 1"):
        ranking_baselines(Features(train.columns, targets=np.arange(400)), test)


# Files.


def test_saved_model_takes_raw_columns_in_plain_tensorflow(ranker: Ranker, tmp_path: Path) -> None:
    assert ranker.export(tmp_path / "model").max_difference < 1e-5
    code = (
        "import sys, json, tensorflow as tf\n"
        "model = tf.saved_model.load(sys.argv[1])\n"
        "nan, none = float('nan'), tf.int64.min\n"
        "out = model.serve(tf.constant([3, nan, 20, 15]), tf.constant(['ad0', 'new', '', 'ad3']),\n"
        "    tf.constant([101, 5, none, 109], tf.int64), tf.constant([1.5, nan, 1e9, .1]),\n"
        "    tf.constant([['a', 'b', '', ''], ['', '', '', ''], ['z', 'a', 'b', 'c'], ['', 'c', '', '']]))\n"
        "out = out['scores']\n"
        "named = model.signatures['serve'](hour=tf.constant([3.]), ad=tf.constant(['ad0']),\n"
        "    zip=tf.constant([101], tf.int64), price=tf.constant([1.5]), tags=tf.constant([['a', 'b']]))\n"
        "assert abs(named['scores'].numpy()[0] - out.numpy()[0]) < 1e-6\n"
        "print('OUT', json.dumps(out.numpy().tolist()))\n"
        "assert not {'shared', 'recsys'} & set(sys.modules)"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model")],
        capture_output=True, text=True, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    scores = json.loads(next(line for line in child.stdout.splitlines() if "OUT" in line).removeprefix("OUT "))
    np.testing.assert_allclose(scores, [row.score for row in ranker.predict(ROWS)], atol=1e-5)


def test_a_directory_whose_weights_are_of_another_network_is_refused(ranker: Ranker, tmp_path: Path) -> None:
    ranker.save(tmp_path / "saved")
    manifest = tmp_path / "saved" / "pipeline.json"
    for before, after in (('"model": "dcn_v2"', '"model": "deepfm"'), ('"dim": 4', '"dim": 5')):
        text = manifest.read_text()
        manifest.write_text(text.replace(before, after))
        with pytest.raises(ValueError, match="damaged"):
            Ranker.load(tmp_path / "saved")
        manifest.write_text(text)


@pytest.mark.skipif("TRIPTYCH_DATA" not in os.environ, reason="TRIPTYCH_DATA does not name a directory of data sets")
def test_criteo_is_trained_on_scored_and_exported(tmp_path: Path) -> None:
    data = Path(os.environ["TRIPTYCH_DATA"]) / "criteo-sample"
    train, test = read_criteo(data / "train.tiny.csv"), read_criteo(data / "criteo_sample.txt")
    pipeline = Ranker(
        RankerConfig(model="dlrm", dim=8, hidden=(32,), bottom=(16,), hash_buckets=100, max_vocabulary=50)
    )
    history = pipeline.fit(train, training=TrainingConfig(epochs=3, batch_size=64, learning_rate=0.003))
    assert history.losses[-1] < history.losses[0]
    assert pipeline.evaluate(train)["auc"] > 0.7
    assert np.isfinite(list(pipeline.evaluate(test).values())).all()
    assert pipeline.export(tmp_path / "model").max_difference < 1e-5


def test_small_formats_of_a_ranker_in_mixed_precision(tmp_path: Path) -> None:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        pipeline = Ranker(config("wide_deep", crosses=("ad*zip",)))
        pipeline.fit(clicks(60), training=_TRAINING.replace(epochs=1))
        assert pipeline._known_network.deep.compute_dtype == "bfloat16"
        report = pipeline.export(tmp_path / "model.tflite", "litert")
    finally:
        keras.config.set_dtype_policy(before)
    assert report.max_difference < 0.02
