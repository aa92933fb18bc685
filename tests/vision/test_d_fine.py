"""keras-hub's D-FINE, built small with random weights and kept as keras-hub keeps it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

from shared import TrainingConfig
from tests.vision.test_detection import shapes
from vision import ObjectDetector

_SIZE = 64
_FRAME = {"image_height": _SIZE, "image_width": _SIZE}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The directory, and the task that was kept there."""
    import keras_hub

    trunk = keras_hub.models.HGNetV2Backbone(
        stem_channels=[3, 8, 8],
        stackwise_stage_filters=[[8, 8, 16, 1, 1, 3], [16, 8, 24, 1, 1, 3], [24, 8, 32, 1, 1, 3], [32, 8, 48, 1, 1, 3]],
        apply_downsample=[False, True, True, True],
        use_lightweight_conv_block=[False, False, True, True],
        depths=[1, 1, 1, 1],
        hidden_sizes=[16, 24, 32, 48],
        embedding_size=8,
        use_learnable_affine_block=True,
        hidden_act="relu",
        image_shape=(None, None, 3),
        out_features=["stage3", "stage4"],
    )
    backbone = keras_hub.models.DFineBackbone(
        backbone=trunk,
        decoder_in_channels=[16, 16],
        encoder_hidden_dim=16,
        num_denoising=10,
        num_labels=4,
        hidden_dim=16,
        learn_initial_query=False,
        num_queries=12,
        anchor_image_size=(_SIZE, _SIZE),
        feat_strides=[16, 32],
        num_feature_levels=2,
        encoder_in_channels=[32, 48],
        encode_proj_layers=[1],
        num_attention_heads=2,
        encoder_ffn_dim=32,
        num_encoder_layers=1,
        hidden_expansion=0.5,
        depth_multiplier=0.34,
        eval_idx=-1,
        num_decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        decoder_n_points=[2, 2],
        lqe_hidden_dim=8,
        num_lqe_layers=2,
        out_features=["stage3", "stage4"],
        image_shape=(_SIZE, _SIZE, 3),
    )
    converter = keras_hub.layers.DFineImageConverter(image_size=(_SIZE, _SIZE), scale=1 / 255)
    task = keras_hub.models.DFineObjectDetector(
        backbone=backbone,
        num_classes=4,
        bounding_box_format="xyxy",
        preprocessor=keras_hub.models.DFineObjectDetectorPreprocessor(image_converter=converter),
    )
    path = tmp_path_factory.mktemp("hub") / "d_fine"
    task.save_to_preset(str(path))
    return path, task


def test_labels_that_agree_keep_the_head_which_answers_as_in_keras_hub(hub):
    directory, theirs = hub
    detector = ObjectDetector.from_preset(directory, labels=["0", "1", "2", "3"], **_FRAME)
    assert detector.is_fitted
    image = shapes(1).inputs[0]
    found = detector.predict([image], threshold=0.0)[0]
    outputs = theirs(theirs.preprocessor.image_converter(image[None].astype(np.float32)), training=False)
    scores = 1 / (1 + np.exp(-np.asarray(outputs["logits"][0])))
    x, y, width, height = np.moveaxis(np.asarray(outputs["pred_boxes"][0]) * _SIZE, -1, 0)
    boxes = np.clip(np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], axis=-1), 0, _SIZE)
    order = np.argsort(-scores, axis=None)[: len(found)]
    np.testing.assert_allclose(found.scores, scores.reshape(-1)[order], atol=1e-5)
    query, kind = np.unravel_index(order[0], scores.shape)
    assert found.labels[0] == str(kind)
    np.testing.assert_allclose(found.boxes[0], boxes[query], atol=1e-2)


def test_its_loss_reaches_every_part_with_other_classes(hub, caplog):
    with caplog.at_level("INFO"):
        detector = ObjectDetector.from_preset(hub[0], labels="from_data", **_FRAME)
    assert "the head of the detector is new" in caplog.text
    assert not detector.is_fitted
    task = detector.training_task(shapes(4), TrainingConfig(batch_size=4))
    batch = {name: tf.constant(values) for name, values in next(task.batches.epoch()).items()}
    variables = task.model.trainable_variables
    with tf.GradientTape() as tape:
        loss = task.loss(batch)
    gradients = tape.gradient(loss, [variable.value for variable in variables])
    found = [
        (variable, gradient) for variable, gradient in zip(variables, gradients, strict=True) if gradient is not None
    ]
    assert np.isfinite([float(tf.norm(gradient)) for _, gradient in found]).all()
    reached = {id(variable) for variable, gradient in found if tf.reduce_any(gradient != 0)}
    model = task.model
    for part in (model.backbone, model.enc_score_head, model.decoder):
        assert reached & set(map(id, part.trainable_variables)), part.name


@pytest.mark.slow
def test_it_trains_with_other_classes_shows_map_saves_and_exports(hub, tmp_path):
    directory, data = hub[0], shapes(8)
    detector = ObjectDetector.from_preset(directory, labels="from_data", **_FRAME)
    training = TrainingConfig(epochs=10, batch_size=4, learning_rate=2e-3, warmup=0.0)
    history = detector.fit(data, data, training=training)
    assert all("validation_map_50" in record for record in history.records)
    assert history.losses[-1] < 0.8 * history.losses[0]
    detector.save(tmp_path / "model")
    loaded = ObjectDetector.load(tmp_path / "model")
    images = list(data.inputs)
    answers, again = (d.predict(images, threshold=0.0) for d in (detector, loaded))
    assert [a.to_dict() for a in answers] == [a.to_dict() for a in again]
    assert set(answers[0].labels) <= {"disc", "square"}
    assert detector.export(tmp_path / "saved_model").max_difference < 1e-2  # pixels


def test_all_but_the_head_is_that_of_the_directory_at_another_size(hub):
    directory, theirs = hub
    detector = ObjectDetector.from_preset(directory, labels=["a"], image_height=96, image_width=128)
    assert detector.model.input_shape == (None, 96, 128, 3)
    others = [
        mine.path
        for mine, other in zip(detector.model.weights, theirs.backbone.weights, strict=True)
        if mine.shape != other.shape or (mine.numpy() != other.numpy()).any()
    ]
    assert {path.split("/")[0] for path in others} <= {"denoising_class_embed", "enc_score_head", "decoder"}
    assert all("class_embed" in path or "enc_score_head" in path for path in others)
    image = shapes(1).inputs[0]
    detector._trained = True
    assert detector.predict([image], threshold=0.0)[0].boxes.max() <= 64


def test_what_cannot_work_is_refused(hub, tmp_path):
    directory = hub[0]
    with pytest.raises(ValueError, match="has 5 cells, fewer than the 12 queries"):
        ObjectDetector.from_preset(directory, labels=["a"], image_height=32, image_width=32)
    with pytest.raises(ValueError, match="`multi_scale` would have no effect"):
        ObjectDetector.from_preset(directory, labels=["a"], multi_scale=0.2)
    with pytest.raises(ValueError, match="`box_voting` would have no effect"):
        ObjectDetector.from_preset(directory, labels=["a"], box_voting=0.7)
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    config = json.loads((copy / "config.json").read_text())
    config["config"]["backbone"]["module"] = "os"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"refers to os\."):
        ObjectDetector.from_preset(copy, labels=["a"])
    shutil.copytree(directory, tmp_path / "empty")
    (tmp_path / "empty" / "model.weights.h5").unlink()
    with pytest.raises(ValueError, match=r"model\.weights\.h5 is missing"):
        ObjectDetector.from_preset(tmp_path / "empty")
