from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from recsys.feature_encoder import FeatureEncoder, hash_buckets_of
from recsys.features import Features
from recsys.models.feature_embedding import FeatureEmbedding
from recsys.models.feature_graph import NO_INTEGER, GraphEncoder, input_names


def table(**more: Any) -> Features:
    """Four rows, each kind, something missing of each."""
    return Features(
        {
            "age": [30.0, None, 50.0, 40.0],
            "job": ["cook", "clerk", None, "cook"],
            "zip code": np.array([12, 7, 12, 7]),
            "member": [True, False, None, True],
            "genres": [["a", "b"], [], ["b", "c", "a"], ["b"]],
            "vector": np.array([[3, 0], [np.nan, np.nan], [0, 3], [3, 3]], np.float32),
            **more,
        },
        kinds={"zip code": "categorical"},
    )


# Tables.


def test_kinds_are_known_by_their_values() -> None:
    assert table().kinds == {
        "age": "numeric", "job": "categorical", "zip code": "categorical", "member": "categorical",
        "genres": "multi_valued", "vector": "embedding",
    }  # fmt: skip
    assert Features({"x": [[0.5, 1], [1, 2]]}).kinds == {"x": "embedding"}
    assert Features({"x": [[5, 1], [1, 2]]}).kinds == {"x": "multi_valued"}
    assert Features({"x": [None, None]}).kinds == {"x": "numeric"}
    forms = [table().columns[name].form for name in ("job", "zip code", "member", "genres")]  # type: ignore[union-attr]
    assert forms == ["str", "int", "bool", "str"]


def test_rows_are_taken_and_minus_one_has_nothing() -> None:
    taken = table().take(np.array([2, -1, 0]))
    assert len(taken) == 3
    encoder = FeatureEncoder.fit(table())
    arrays = encoder.encode(taken)
    whole = encoder.encode(table())
    for name, array in arrays.items():
        np.testing.assert_array_equal(array[[0, 2]], whole[name][[2, 0]])
    firsts = [part.first for part in encoder.categories]
    assert arrays["categories"][1].tolist() == firsts
    assert not arrays["lists"][1].any()
    assert arrays["numbers"][1].tolist() == [0, 1, 1, 0, 0]
    assert table().take(np.array([True, False, False, True])).columns["age"].values.tolist() == [30, 40]  # type: ignore[union-attr]
    assert len(Features({"x": Features({"x": []}).columns["x"]}).take(np.array([-1, -1]))) == 2


def test_rows_by_their_ids() -> None:
    items = Features({"price": [1.0, 2.0]}, ids=["tea", "jam"])
    aligned = items.aligned(["jam", "what", "tea"])
    assert aligned.columns["price"].values[[0, 2]].tolist() == [2, 1]  # type: ignore[union-attr]
    assert np.isnan(aligned.columns["price"].values[1])  # type: ignore[union-attr]
    with pytest.raises(TypeError, match="ids of this data are strings; received 5"):
        items.aligned([5])
    with pytest.raises(ValueError, match="no ids to be found by"):
        table().aligned(["a"])
    with pytest.raises(ValueError, match="'tea' occurs more than once"):
        Features({"price": [1, 2]}, ids=["tea", "tea"])


@pytest.mark.parametrize(
    ("columns", "options", "exception", "part"),
    [
        ({}, {}, ValueError, "must have a column"),
        ([1], {}, TypeError, "dict of columns by name; received list"),
        ({"x": 3}, {}, TypeError, "list or an array; received int"),
        ({"x": [1, 2], "y": [1]}, {}, ValueError, "x 2, y 1"),
        ({"x": [1, "two"]}, {}, TypeError, r"numeric; received 'two' \(str\) at row 1"),
        ({"x": ["two", 1.5]}, {}, TypeError, "received 1.5"),
        ({"x": ["two", ["a"]]}, {}, TypeError, r"one category a row; received \['a'\]"),
        ({"x": [["a"], "b"]}, {}, TypeError, "received 'b' at row 1"),
        ({"x": [["a"], 3]}, {}, TypeError, "received 3 at row 1"),
        ({"x": [1.0, np.inf]}, {}, ValueError, "the first at row 1: inf"),
        ({"x": [1e300]}, {}, ValueError, "within float32"),
        ({"x": [[0.5], [1.5, 2.0]]}, {}, ValueError, r"one width; received \[1, 2\]"),
        ({"x": [[0.5, np.nan]]}, {}, ValueError, "must be finite"),
        ({"x": [{}]}, {}, TypeError, "holds dict"),
        ({"x": [1]}, {"kinds": {"y": "numeric"}}, ValueError, "no column; there are x"),
        ({"x": [1]}, {"kinds": {"x": "number"}}, ValueError, "received 'number'"),
        ({"x": [1, 2]}, {"targets": [1, np.nan]}, ValueError, "the first at row 1"),
        ({"x": [1, 2]}, {"targets": ["yes", "no"]}, TypeError, "must be numbers"),
        ({"x": [1, 2]}, {"targets": [1]}, ValueError, "targets 1"),
    ],
)
def test_wrong_tables_are_refused(columns: Any, options: Any, exception: type[Exception], part: str) -> None:
    with pytest.raises(exception, match=part):
        Features(columns, **options)


# Encoders.


def test_numbers_of_categories() -> None:
    encoder = FeatureEncoder.fit(table(), min_count=2)
    job, code, member = encoder.categories
    assert (job.vocabulary, code.vocabulary, member.vocabulary) == (("cook",), ("12", "7"), ("true",))
    assert encoder.lists[0].vocabulary == ("a", "b")
    numbers = encoder.encode(table())["categories"]
    assert numbers[:, 0].tolist() == [job.first + 2, job.first + 1, job.first, job.first + 2]
    assert numbers[:, 1].tolist() == [code.first + 2, code.first + 3] * 2
    start = encoder.lists[0].first
    assert encoder.encode(table())["lists"].tolist() == [
        [start + 1, start + 2, 0], [0, 0, 0], [start + 2, start, start + 1], [start + 2, 0, 0],
    ]  # fmt: skip
    ranges = [(part.first, part.size) for part in (*encoder.categories, *encoder.lists)]
    taken = [row for first, size in ranges for row in range(first, first + size)]
    assert sorted(taken) == list(range(1, encoder.layout.num_rows))


def test_numbers_are_standardised_and_vectors_scaled() -> None:
    encoder = FeatureEncoder.fit(table())
    numbers = encoder.encode(table())["numbers"]
    deviation = np.std([30, 50, 40])
    np.testing.assert_allclose(numbers[:, 0], [-10 / deviation, 0, 10 / deviation, 0], rtol=1e-6)
    assert numbers[:, 1].tolist() == [0, 1, 0, 0]
    assert numbers[:, 2].tolist() == [0, 1, 0, 0]
    scale = np.sqrt(np.mean(np.square([3, 0, 0, 3, 3, 3])))
    np.testing.assert_allclose(numbers[:, 3:], np.array([[3, 0], [0, 0], [0, 3], [3, 3]]) / scale, rtol=1e-6)


def test_skewed_numbers_are_logarithms_and_far_ones_are_cut_off() -> None:
    rng = np.random.default_rng(0)
    encoder = FeatureEncoder.fit(Features({"count": np.exp(rng.normal(0, 2, 500)), "even": rng.normal(0, 1, 500)}))
    assert [number.logarithm for number in encoder.numbers] == [True, False]
    far = encoder.encode({"count": [0.0], "even": [1e6]})["numbers"]
    assert far[0, 1] == 10
    assert -3 < far[0, 0] < 0
    constant = FeatureEncoder.fit(Features({"x": [2.0, 2.0]}))
    assert constant.encode({"x": [2.0, 3.0, None]})["numbers"][:, 0].tolist() == [0, 1, 0]


def test_quantile_ranges() -> None:
    values = [0.0] * 60 + list(map(float, range(1, 41)))
    encoder = FeatureEncoder.fit(Features({"x": values}), buckets=4)
    (number,) = encoder.numbers
    # Zero alone fills more than a range: it has one of its own, and the others share the rest.
    assert number.boundaries == (1.0, 10.75, 20.5, 30.25)
    found = encoder.encode({"x": [0.0, 0.5, 1.0, 20.0, 99.0, None, -5.0]})["categories"][:, 0] - number.first
    assert found.tolist() == [1, 1, 2, 3, 5, 0, 1]
    assert FeatureEncoder.fit(Features({"x": [3.0, 3.0]}), buckets=4).bucketed == ()


def test_hashed_columns() -> None:
    encoder = FeatureEncoder.fit(table(), hashed={"job": 5}, max_vocabulary=2, hash_buckets=7)
    job, code, _ = encoder.categories
    assert (job.hashed, code.hashed, encoder.lists[0].hashed) == (5, 0, 7)
    numbers = encoder.encode({**table().columns, "job": ["new", "cook", None, "new"]})["categories"][:, 0]
    assert numbers[0] == numbers[3] == job.first + 1 + hash_buckets_of(["new"], 5)[0]
    assert numbers[2] == job.first
    # FarmHash Fingerprint64 of these bytes, which must never change: numbers are in saved models.
    assert hash_buckets_of(["abc", "", "\u00e9t\u00e9"], 1_000_000_007).tolist() == [775161712, 912170738, 652045859]
    with pytest.raises(ValueError, match="'age', which is no column of categories"):
        FeatureEncoder.fit(table(), hashed={"age": 5})
    kept = FeatureEncoder.fit(table(), max_vocabulary=2)
    assert kept.lists[0].vocabulary == ("a", "b")


def test_encoders_survive_files(tmp_path: Path) -> None:
    encoder = FeatureEncoder.fit(table(), buckets=2, hashed={"job": 3})
    encoder.save(tmp_path / "features.json")
    assert FeatureEncoder.load(tmp_path / "features.json") == encoder
    for text, part in [("{", "not valid JSON"), ("[]", "no JSON object"), ('{"schema_version": 9}', "received 9"),
                       ('{"schema_version": 1}', "no feature encoder")]:  # fmt: skip
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match=part):
            FeatureEncoder.load(tmp_path / "bad.json")
    values = json.loads(json.dumps(encoder.to_dict()))
    values["numbers"][0]["evil"] = 1
    with pytest.raises(ValueError, match="evil"):
        FeatureEncoder.from_dict(values)


def test_data_in_each_form_is_encoded_alike() -> None:
    encoder = FeatureEncoder.fit(table())
    whole = encoder.encode(table(more=["x"] * 4))
    rows = [
        {"age": 30, "job": "cook", "zip code": 12, "member": True, "genres": ["a", "b"], "vector": [3, 0], "x": 1},
        {"age": None, "job": "clerk", "zip code": "7", "member": False, "genres": [], "vector": None},
    ]
    for name, array in encoder.encode(rows).items():
        np.testing.assert_array_equal(array, whole[name][:2])
    for name, array in encoder.encode(rows[1:]).items():
        np.testing.assert_array_equal(array, whole[name][1:2])
    assert {name: array.shape[0] for name, array in encoder.encode([]).items()} == dict.fromkeys(whole, 0)
    with pytest.raises(ValueError, match="Row 1 has no 'age'"):
        encoder.encode([rows[0], {"job": "cook"}])
    with pytest.raises(TypeError, match="dict of features; received int at place 0"):
        encoder.encode([3])
    with pytest.raises(ValueError, match="lack 'job', 'zip code'"):
        encoder.encode({"age": [1]})
    with pytest.raises(TypeError, match="'age' must be numeric; received categorical"):
        encoder.encode(Features({**table().columns, "age": ["old"] * 4}))
    with pytest.raises(ValueError, match="must have width 2; received 3"):
        encoder.encode({**table().columns, "vector": np.zeros((4, 3))})
    with pytest.raises(ValueError, match="the table has no"):
        FeatureEncoder.fit(table().take(np.zeros(0, np.int64)))


# Networks and graphs.


def test_vectors_of_fields_are_rows_of_the_table_and_means_of_lists() -> None:
    encoder = FeatureEncoder.fit(table(), buckets=2)
    layer = FeatureEmbedding(encoder.layout, 3)
    arrays = encoder.encode(table())
    vectors = np.asarray(layer(arrays))
    rows = np.asarray(layer.table)
    assert vectors.shape == (4, len(encoder.field_names), 3)
    assert encoder.field_names == ("job", "zip code", "member", "age", "genres")
    np.testing.assert_allclose(vectors[:, :4], rows[arrays["categories"]])
    for row, numbers in enumerate(arrays["lists"]):
        real = rows[numbers[numbers > 0]]
        np.testing.assert_allclose(vectors[row, 4], real.mean(axis=0) if len(real) else np.zeros(3), atol=1e-7)
    flat = np.asarray(layer.flat(arrays))
    assert flat.shape == (4, layer.flat_width)
    np.testing.assert_allclose(flat[:, :15], vectors.reshape(4, 15))
    np.testing.assert_allclose(flat[:, 15:], arrays["numbers"])


def test_numbers_alone_have_no_vectors() -> None:
    encoder = FeatureEncoder.fit(Features({"x": [1.0, 2.0]}))
    layer = FeatureEmbedding(encoder.layout, 3)
    assert layer.flat(encoder.encode({"x": [1.5] * 4})).shape == (4, layer.flat_width) == (4, 1)
    assert layer.weights == []


@pytest.mark.parametrize(
    "options",
    [{}, {"buckets": 3, "min_count": 2}, {"hashed": {"job": 5, "genres": 4, "zip code": 3}}, {"max_values": 2}],
)
def test_the_graph_encodes_as_numpy_does(options: Any) -> None:
    encoder = FeatureEncoder.fit(table(), **options)
    graph = GraphEncoder(encoder)
    new = {
        "age": [-1e9, None, 44.5, 50],
        "job": ["?", "", "caf\u00e9 \u732b", "cook"],
        "zip code": [12, None, -99, 2**60],
        "member": [None, True, False, True],
        "genres": [["z"], ["a", "b", "c", "a", "b"], [], ["c"]],
        "vector": [[1, 2], None, [-3, 4.5], [0, 0]],
    }
    for data in (table(), new):
        raw = graph.raw(encoder.table(data))
        found = tf.function(graph.encode, input_signature=graph.signature)(*map(tf.convert_to_tensor, raw))
        expected = encoder.encode(data)
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, atol=1e-6, err_msg=name)


def test_the_graph_takes_gaps_and_infinite_numbers_for_missing() -> None:
    encoder = FeatureEncoder.fit(table())
    graph = GraphEncoder(encoder)
    assert [(spec.name, spec.dtype) for spec in graph.signature][:3] == [
        ("age", tf.float32), ("job", tf.string), ("zip_code", tf.int64),
    ]  # fmt: skip
    nan = np.float32(np.nan)
    columns = [np.float32(np.inf)], [""], [NO_INTEGER], [""], [["", "a", "", "b"]], [[1.0, nan]]
    found = graph.encode(
        *(tf.constant(column, spec.dtype) for column, spec in zip(columns, graph.signature, strict=True))
    )
    nothing = encoder.encode({**{name: [None] for name in encoder.names}, "genres": [["a", "b"]]})
    for name, array in nothing.items():
        np.testing.assert_array_equal(found[name], array)


def test_names_of_inputs() -> None:
    assert input_names(("a b", "a-b", "7", "x")) == {"a b": "a_b", "a-b": "a_b_2", "7": "feature_7", "x": "x"}
