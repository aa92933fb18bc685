"""keras-hub's RetinaNet, built small with random weights and kept as keras-hub keeps it."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest

from shared import TrainingConfig
from tests.vision.test_detection import shapes
from vision import ObjectDetector
from vision.boxes import box_iou

_SIZE = 64


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    import keras_hub

    trunk = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 16, 16, 16],
        stackwise_num_blocks=[1, 1, 1, 1],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="basic_block",
        image_shape=(None, None, 3),
    )
    backbone = keras_hub.models.RetinaNetBackbone(
        image_encoder=trunk, min_level=3, max_level=5, use_p5=False, image_shape=(_SIZE, _SIZE, 3)
    )
    converter = keras_hub.layers.RetinaNetImageConverter(image_size=(_SIZE, _SIZE), scale=1 / 64, offset=-2.0)
    task = keras_hub.models.RetinaNetObjectDetector(
        backbone=backbone,
        num_classes=4,
        bounding_box_format="xyxy",
        preprocessor=keras_hub.models.RetinaNetObjectDetectorPreprocessor(image_converter=converter),
    )
    # An untrained trunk gives large features: without this, scores would all be 0 or 1 and boxes far outside.
    for variable in backbone.feature_pyramid.trainable_variables:
        if len(variable.shape) == 4:
            variable.assign(0.1 * variable)
    # keras-hub begins with boxes far from their anchors.
    task.box_head.prediction_layer.bias.assign(np.zeros(36))
    path = tmp_path_factory.mktemp("hub") / "retinanet"
    task.save_to_preset(str(path))
    return path


def test_the_head_comes_along_and_answers_as_keras_hub_does(directory):
    import keras_hub

    detector = ObjectDetector.from_preset(directory, image_height=_SIZE, image_width=_SIZE, nms_iou=0.5)
    assert list(detector.labels) == ["0", "1", "2", "3"]
    image = shapes(1).inputs[0]
    found = detector.predict([image], threshold=0.0)[0]
    theirs = keras_hub.models.ObjectDetector.from_preset(str(directory))
    raw = theirs.preprocessor.image_converter(image[None].astype(np.float32))
    outputs = theirs(raw)
    anchors = keras.ops.concatenate(list(theirs.anchor_generator(raw).values()), axis=0)
    boxes = keras.utils.bounding_boxes.decode_deltas_to_boxes(
        anchors=anchors,
        boxes_delta=outputs["bbox_regression"],
        encoded_format="center_xywh",
        anchor_format="xyxy",
        box_format="xyxy",
        image_shape=(_SIZE, _SIZE, 3),
    )[0].numpy()
    scores = keras.ops.sigmoid(outputs["cls_logits"])[0].numpy()
    best = np.unravel_index(scores.argmax(), scores.shape)
    assert found.scores[0] == pytest.approx(scores.max(), abs=1e-5)
    assert found.labels[0] == str(best[1])
    assert box_iou(found.boxes[:1], np.clip(boxes[best[0]][None], 0, _SIZE))[0, 0] > 0.999


def test_it_trains_with_other_classes_shows_map_saves_and_exports(directory, tmp_path):
    data = shapes(8)
    detector = ObjectDetector.from_preset(directory, labels="from_data", image_height=_SIZE, image_width=_SIZE)
    history = detector.fit(data, data, training=TrainingConfig(epochs=2, batch_size=4))
    assert all("validation_map_50" in record for record in history.records)
    assert history.losses[-1] < history.losses[0]
    detector.save(tmp_path / "model")
    loaded = ObjectDetector.load(tmp_path / "model")
    images = list(data.inputs)
    answers, again = (d.predict(images, threshold=0.0) for d in (detector, loaded))
    assert [a.to_dict() for a in answers] == [a.to_dict() for a in again]
    assert set(answers[0].labels) <= {"disc", "square"}
    assert detector.export(tmp_path / "saved_model").max_difference < 1e-2  # pixels
    for export_format in ("litert", "onnx"):
        # Scores of a hardly trained network are nearly equal: rounding may change their order, and so whole rows.
        assert detector.export(tmp_path / export_format, export_format).num_bytes > 0


def test_a_new_head_begins_sure_of_nothing_and_near_its_anchors(directory):
    detector = ObjectDetector.from_preset(directory, labels=["a", "b"], image_height=_SIZE, image_width=_SIZE)
    network = detector._network.model
    assert not network.box_head.prediction_layer.bias.numpy().any()
    prior = 1 / (1 + np.exp(-network.classification_head.prediction_layer.bias.numpy()))
    np.testing.assert_allclose(prior, 0.01, atol=1e-6)


def test_the_backbone_is_that_of_the_directory(directory):
    import keras_hub

    detector = ObjectDetector.from_preset(directory, labels=["a"], image_height=_SIZE, image_width=_SIZE)
    theirs = keras_hub.models.Backbone.from_preset(str(directory))
    for mine, other in zip(detector._network.trunk.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_what_reaches_beyond_keras_hub_is_refused(directory, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    config = json.loads((copy / "config.json").read_text())
    config["config"]["image_encoder"]["module"] = "os"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"refers to os\."):
        ObjectDetector.from_preset(copy, labels=["a"])
    shutil.copytree(directory, tmp_path / "headless")
    (tmp_path / "headless" / "task.weights.h5").unlink()
    with pytest.raises(ValueError, match=r"task\.weights\.h5 is missing"):
        ObjectDetector.from_preset(tmp_path / "headless")


def test_fields_without_effect_are_refused(directory):
    with pytest.raises(ValueError, match="`head_depth` would have no effect"):
        ObjectDetector.from_preset(directory, labels=["a"], head_depth=1)
