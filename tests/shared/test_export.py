from __future__ import annotations

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from shared.export import Endpoint, export_litert, export_onnx, export_saved_model

INPUTS = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="softmax")])


def endpoint(model, *, off_by=0.0):
    return Endpoint(
        function=lambda x: model(x, training=False),
        signature=(tf.TensorSpec((None, 4), tf.float32, name="features"),),
        example=(INPUTS,),
        expected=model(INPUTS).numpy() + off_by,
    )


def written(format, path, model, **options):
    if format == "saved_model":
        return export_saved_model(path, {"serve": endpoint(model, **options)}, track=[model])
    if format == "litert":
        return export_litert(path, endpoint(model, **options), track=[model])
    return export_onnx(path, endpoint(model, **options))


@pytest.mark.parametrize("format", ["saved_model", "litert", "onnx"])
def test_the_report_says_what_was_written(tmp_path, model, format):
    report = written(format, tmp_path / "new" / "export", model)
    assert (tmp_path / "new" / "export").exists()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["export"]
    assert report.format == format
    assert report.max_difference < 1e-5
    assert report.num_bytes > 100
    assert report.num_examples == 3
    assert list(report.inputs.values()) == ["features float32 (None, 4)"]
    assert "largest difference" in str(report)
    assert report.to_dict()["path"] == str(tmp_path / "new" / "export")


@pytest.mark.parametrize("format", ["saved_model", "litert", "onnx"])
def test_inputs_go_where_their_names_say(tmp_path, format):
    names = ("zoom", "area")  # neither in the order of the alphabet nor of one shape
    inputs = {name: keras.Input((width,), name=name) for name, width in zip(names, (4, 3), strict=True)}
    outputs = keras.layers.Dense(2)(inputs["zoom"]) - keras.layers.Dense(2)(inputs["area"])
    network = keras.Model(inputs, outputs)
    arrays = {"zoom": INPUTS, "area": INPUTS[:, :3] * 2}
    two_inputs = Endpoint(
        function=lambda zoom, area: network({"zoom": zoom, "area": area}, training=False),
        signature=tuple(tf.TensorSpec((None, a.shape[1]), tf.float32, name=n) for n, a in arrays.items()),
        example=tuple(arrays.values()),
        expected=network(arrays).numpy(),
    )
    path = tmp_path / "export"
    if format == "saved_model":
        report = export_saved_model(path, {"serve": two_inputs}, track=[network])
    elif format == "litert":
        report = export_litert(path, two_inputs, track=[network])
    else:
        report = export_onnx(path, two_inputs)
    assert report.max_difference < 1e-5
    assert report.inputs["serve"] == "zoom float32 (None, 4), area float32 (None, 3)"


def ours(caplog):
    """What we logged: TensorFlow has something to say of its own, now and then."""
    return [record for record in caplog.records if record.name.startswith("shared")]


@pytest.mark.parametrize("format", ["saved_model", "litert", "onnx"])
def test_a_difference_is_measured_and_a_large_one_is_told(tmp_path, model, caplog, format):
    written(format, tmp_path / "export", model)
    assert ours(caplog) == []
    assert written(format, tmp_path / "export", model, off_by=0.25).max_difference == pytest.approx(0.25, abs=1e-5)
    (record,) = ours(caplog)
    assert record.levelname == "WARNING"
    assert "largest difference to predict 2.50e-01: more than rounding explains" in record.getMessage()


@pytest.mark.parametrize("format", ["saved_model", "litert", "onnx"])
@pytest.mark.parametrize("off_by", [np.nan, np.inf])
def test_answers_that_cannot_be_compared_leave_the_older_export(tmp_path, model, format, off_by):
    written(format, tmp_path / "export", model)
    before = contents(tmp_path)
    with pytest.raises(FloatingPointError, match=r"0 of 6 .* and 6 of 6 of `predict`'s are NaN .* nothing was written"):
        written(format, tmp_path / "export", model, off_by=off_by)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("format", ["saved_model", "litert", "onnx"])
@pytest.mark.parametrize("name", ["export", "saved_model", "replaced"])
def test_an_older_export_is_replaced(tmp_path, model, format, name):
    written(format, tmp_path / name, model)
    before = contents(tmp_path)
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, activation="sigmoid")])
    assert written(format, tmp_path / name, other).max_difference < 1e-5
    assert contents(tmp_path).keys() == before.keys()
    assert contents(tmp_path) != before


def contents(directory):
    return {str(file.relative_to(directory)): file.read_bytes() for file in directory.rglob("*") if file.is_file()}


@pytest.mark.parametrize("format", ["saved_model", "litert", "onnx"])
@pytest.mark.parametrize("older", ["saved_model", "litert", "onnx", "photos", "notes", "own"])
def test_other_files_and_formats_are_left_alone(tmp_path, model, format, older):
    if older == "photos":
        (tmp_path / "export").mkdir()
        (tmp_path / "export" / "cat.jpg").write_text("")
    elif older == "notes":
        (tmp_path / "export").write_text("mine")
    elif older == "own":
        written("saved_model", tmp_path / "export", model)
        (tmp_path / "export" / "mine").mkdir()
        (tmp_path / "export" / "mine" / "saved_model.pb").write_text("mine")
    elif older == format:
        pytest.skip("its own format is replaced")
    else:
        written(older, tmp_path / "export", model)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"export is .*; nothing was overwritten\. Move it away"):
        written(format, tmp_path / "export", model)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("format", ["saved_model", "litert", "onnx"])
def test_an_empty_place_is_taken(tmp_path, model, format):
    if format == "saved_model":
        (tmp_path / "export").mkdir()
    else:
        (tmp_path / "export").touch()
    assert written(format, tmp_path / "export", model).num_bytes > 100


@pytest.mark.parametrize(("format", "package"), [("litert", "ai_edge_litert.interpreter"), ("onnx", "tf2onnx")])
def test_a_missing_package_is_named_before_anything_is_written(tmp_path, model, monkeypatch, format, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install 'triptych\[export\]'"):
        written(format, tmp_path / "export", model)
    assert list(tmp_path.iterdir()) == []


def test_texts_are_compared_one_by_one(tmp_path):
    upper = Endpoint(
        function=lambda texts: tf.strings.upper(texts),
        signature=(tf.TensorSpec((None,), tf.string, name="texts"),),
        example=(np.asarray([b"a", b"b"], object),),
        expected=np.asarray([b"A", b"?"], object),
    )
    assert export_saved_model(tmp_path / "export", {"serve": upper}, track=[]).max_difference == 0.5


def test_several_outputs_are_compared_by_name(tmp_path):
    def serve(x):
        return {"twice": 2 * x, "names": tf.fill(tf.shape(x), "a"), "ranked": tf.where(x > 0, x, -np.inf)}

    def written_with(**changes):
        answers = {
            "twice": 2 * INPUTS,
            "names": np.full(INPUTS.shape, b"a", object),
            "ranked": np.where(INPUTS > 0, INPUTS, -np.inf),  # where nothing more can be recommended
        }
        several = Endpoint(
            function=serve,
            signature=(tf.TensorSpec((None, 4), tf.float32, name="x"),),
            example=(INPUTS,),
            expected=answers | changes,
        )
        return export_saved_model(tmp_path / "export", {"serve": several}, track=[tf.Module()])

    report = written_with()
    assert (report.max_difference, report.num_examples) == (0.0, 3)
    assert written_with(twice=2 * INPUTS + 0.25).max_difference == pytest.approx(0.25, abs=1e-6)
    names = np.full(INPUTS.shape, b"a", object)
    names[0, 0] = b"b"
    assert written_with(names=names).max_difference == pytest.approx(1 / names.size)
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        written_with(ranked=np.abs(INPUTS))
