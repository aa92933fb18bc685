"""keras-hub's SegFormer and DeepLabV3+, built small with random weights and kept as keras-hub keeps them."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pytest

from shared import TrainingConfig
from tests.vision.test_segmentation import scenes
from vision import ImageSegmenter

_FRAME = {"image_height": 64, "image_width": 64}
_IMAGES = (64, 64, 3)
_LABELS = ("ground", "square", "disc")


def _segformer():
    import keras_hub

    encoder = keras_hub.models.MiTBackbone(
        layerwise_depths=[1, 1, 1, 1],
        num_layers=4,
        layerwise_num_heads=[1, 1, 2, 2],
        layerwise_sr_ratios=[4, 2, 2, 1],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3, 3, 3],
        layerwise_strides=[4, 2, 2, 2],
        hidden_dims=[8, 12, 16, 24],
        image_shape=_IMAGES,
    )
    backbone = keras_hub.models.SegFormerBackbone(image_encoder=encoder, projection_filters=16)
    converter = keras_hub.layers.SegFormerImageConverter(
        image_size=_IMAGES[:2], scale=[1 / 58, 1 / 57, 1 / 57], offset=[-2.1, -2.0, -1.8]
    )
    return keras_hub.models.SegFormerImageSegmenter(
        backbone=backbone,
        num_classes=4,
        preprocessor=keras_hub.models.SegFormerImageSegmenterPreprocessor(image_converter=converter),
    )


def _deeplab(key="P5"):
    import keras_hub

    encoder = keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 16, 16, 16],
        stackwise_num_blocks=[1, 1, 1, 1],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="basic_block",
        image_shape=(None, None, 3),
    )
    backbone = keras_hub.models.DeepLabV3Backbone(
        image_encoder=encoder,
        projection_filters=8,
        low_level_feature_key="P2",
        spatial_pyramid_pooling_key=key,
        upsampling_size=2 ** (int(key[1]) - 2),
        dilation_rates=[1, 2],
        image_shape=_IMAGES,
    )
    converter = keras_hub.layers.DeepLabV3ImageConverter(image_size=_IMAGES[:2], scale=1 / 127.5, offset=-1.0)
    return keras_hub.models.DeepLabV3ImageSegmenter(
        backbone=backbone,
        num_classes=4,
        preprocessor=keras_hub.models.DeepLabV3ImageSegmenterPreprocessor(image_converter=converter),
    )


_TASKS = {"segformer": _segformer, "deeplab_v3_plus": _deeplab}


@pytest.fixture(scope="module", params=list(_TASKS))
def hub(request, tmp_path_factory):
    """The directory, and the task that was kept there."""
    task, path = _TASKS[request.param](), tmp_path_factory.mktemp("hub") / request.param
    task.save_to_preset(str(path))
    return path, task


def test_the_head_comes_along_and_answers_as_keras_hub_does(hub):
    directory, theirs = hub
    segmenter = ImageSegmenter.from_preset(directory, **_FRAME)
    assert list(segmenter.labels) == ["0", "1", "2", "3"]
    image = cv2.resize(scenes(1).inputs[0], _IMAGES[:2])
    logits = np.asarray(theirs(theirs.preprocessor.image_converter(image[None].astype(np.float32)), training=False))
    np.testing.assert_allclose(segmenter.model(image[None].astype(np.float32), training=False), logits, atol=1e-5)
    np.testing.assert_array_equal(segmenter.predict([image])[0].mask, logits[0].argmax(axis=-1))
    segmenter.config = segmenter.config.replace(view="crop")
    large = np.tile(image, (3, 2, 1))
    windows = segmenter.predict([large])[0].mask
    assert windows.shape == large.shape[:2]
    # The corners are seen by one window alone.
    np.testing.assert_array_equal(windows[:8, :8], segmenter.predict([image])[0].mask[:8, :8])


def test_it_trains_with_other_classes_and_saves(hub, tmp_path, caplog):
    directory, theirs = hub
    data = scenes(8)
    with caplog.at_level("INFO"):
        segmenter = ImageSegmenter.from_preset(directory, labels=_LABELS, **_FRAME)
    assert "the head of the segmenter is new" in caplog.text
    assert not segmenter.is_fitted
    mine = next(layer for layer in segmenter.model.layers if hasattr(layer, "backbone")).backbone
    for own, other in zip(mine.get_weights(), theirs.backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(own, other)
    history = segmenter.fit(data, data, training=TrainingConfig(epochs=4, batch_size=4, warmup=0.0))
    assert all("validation_mean_iou" in record for record in history.records)
    assert history.losses[-1] < history.losses[0]
    segmenter.save(tmp_path / "model")
    loaded = ImageSegmenter.load(tmp_path / "model")
    for answer, again in zip(segmenter.predict(data.inputs), loaded.predict(data.inputs), strict=True):
        assert answer.mask.shape == (48, 64)
        np.testing.assert_array_equal(answer.mask, again.mask)


@pytest.mark.slow
def test_it_can_be_exported(hub, tmp_path):
    segmenter = ImageSegmenter.from_preset(hub[0], **_FRAME)
    # ONNX is tried on the contract's networks: here its conversion takes longer than all the rest.
    for export_format in ("saved_model", "litert"):
        assert segmenter.export(tmp_path / export_format, export_format).max_difference < 1e-3


def test_frames_need_not_be_square_where_keras_hub_can(hub):
    directory = hub[0]
    oblong = {"labels": _LABELS, "image_height": 64, "image_width": 96}
    if directory.name == "segformer":
        with pytest.raises(ValueError, match="runs on square images only; the frame has 64 x 96 pixels"):
            ImageSegmenter.from_preset(directory, **oblong)
    else:
        assert ImageSegmenter.from_preset(directory, **oblong).model.output_shape == (None, 64, 96, 3)


def test_layers_without_effect_are_not_trained(tmp_path):
    _deeplab("P4").save_to_preset(str(tmp_path / "hub"))
    segmenter = ImageSegmenter.from_preset(tmp_path / "hub", labels=_LABELS, **_FRAME)
    segmenter.fit(scenes(4), training=TrainingConfig(epochs=1, batch_size=4))


def test_what_cannot_work_is_refused(hub, tmp_path):
    directory = hub[0]
    with pytest.raises(ValueError, match="`decoder` and `dropout` would have no effect"):
        ImageSegmenter.from_preset(directory, labels=["a"], decoder="unet", dropout=0.1)
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    config = json.loads((copy / "config.json").read_text())
    config["config"]["image_encoder"]["module"] = "os"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"refers to os\."):
        ImageSegmenter.from_preset(copy, labels=["a"])
    shutil.copytree(directory, tmp_path / "headless")
    (tmp_path / "headless" / "task.weights.h5").unlink()
    with pytest.raises(ValueError, match=r"task\.weights\.h5 is missing"):
        ImageSegmenter.from_preset(tmp_path / "headless")
