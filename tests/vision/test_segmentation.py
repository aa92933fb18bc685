from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest

from shared import Config, TrainingConfig
from shared.examples import BadExampleError, Examples
from shared.vocabulary import Vocabulary
from tests.contract import PipelineContract
from vision import ImageSegmenter, ImageSegmenterConfig, Segmentation, read_mask_folder
from vision.masks import read_mask

_LABELS = ("ground", "square", "disc")


def scenes(count: int, seed: int = 0, shape: tuple[int, int] = (48, 64)) -> Examples:
    """Bright squares and discs on dark ground, with their masks."""
    rng = np.random.default_rng(seed)
    images, masks = [], []
    for _ in range(count):
        image, mask = np.full((*shape, 3), 40, np.uint8), np.zeros(shape, np.uint8)
        side = int(rng.integers(16, 28))
        x, y = int(rng.integers(0, 30 - side // 2)), int(rng.integers(0, shape[0] - side))
        cv2.rectangle(image, (x, y), (x + side, y + side), (230, 60, 60), cv2.FILLED)
        cv2.rectangle(mask, (x, y), (x + side, y + side), 1, cv2.FILLED)
        centre = (int(rng.integers(40, 56)), int(rng.integers(8, shape[0] - 8)))
        cv2.circle(image, centre, 9, (60, 60, 230), cv2.FILLED)
        cv2.circle(mask, centre, 9, 2, cv2.FILLED)
        images.append(image)
        masks.append(mask)
    return Examples(images, masks)


_DATA = scenes(16)
_CODE = "__import__('tests.vision.test_segmentation', fromlist=['x']).scenes(16).inputs[:3]"


class TestImageSegmenter(PipelineContract):
    pipeline_class = ImageSegmenter
    config: ClassVar[Config] = ImageSegmenterConfig(
        labels=_LABELS,
        image_height=48,
        image_width=64,
        width=8,
        decoder_channels=16,
        scale_jitter=1.1,
        average_mirrored=True,
    )
    training: ClassVar[TrainingConfig] = TrainingConfig(epochs=8, batch_size=4, learning_rate=4e-3)
    metric_names = ("mean_iou", "pixel_accuracy")
    floor = 0.6

    @classmethod
    def data(cls) -> Any:
        return _DATA

    @classmethod
    def inputs(cls) -> list[Any]:
        return list(_DATA.inputs[:3])

    @classmethod
    def inputs_as_code(cls) -> str:
        return _CODE

    @classmethod
    def wrong_inputs(cls) -> list[tuple[Any, type[Exception], str]]:
        return [
            (np.zeros((64, 64, 3), np.uint8), TypeError, "list of images"),
            (["missing.jpg"], BadExampleError, "missing.jpg"),
            ("picture.jpg", TypeError, "list"),
        ]

    # Beyond the contract.

    def test_a_mask_has_the_size_of_its_image(self, fitted: ImageSegmenter) -> None:
        image = cv2.resize(_DATA.inputs[0], (200, 90))
        answer = fitted.predict([image])[0]
        assert answer.mask.shape == (90, 200)
        assert answer.mask.dtype == np.uint8
        expected = cv2.resize(_DATA.targets[0], (200, 90), interpolation=cv2.INTER_NEAREST)
        assert np.mean(answer.mask == expected) > 0.85

    def test_an_export_gives_masks_of_each_size(self, fitted: ImageSegmenter, tmp_path: Path) -> None:
        import tensorflow as tf

        images = [_DATA.inputs[0], cv2.resize(_DATA.inputs[1], (100, 60))]
        encoded = [cv2.imencode(".png", image[..., ::-1])[1].tobytes() for image in images]
        fitted.export(tmp_path / "saved")
        loaded = tf.saved_model.load(str(tmp_path / "saved"))
        masks = loaded.serve(tf.constant(encoded)).numpy()
        assert masks.shape == (2, 60, 100)
        for mask, answer in zip(masks, fitted.predict(encoded), strict=True):
            height, width = answer.mask.shape
            np.testing.assert_array_equal(mask[:height, :width], answer.mask)
            assert (mask[height:] == 255).all()

    def test_a_broken_image_is_skipped_by_name(self, fitted: ImageSegmenter, tmp_path: Path) -> None:
        (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 nothing more")
        data = Examples([*_DATA.inputs, str(tmp_path / "broken.jpg")], [*_DATA.targets, _DATA.targets[0]])
        metrics = fitted.evaluate(data, max_bad_share=0.1)
        assert metrics == fitted.evaluate(_DATA)
        assert "broken.jpg" in str(metrics.details["bad_records"][0])


@pytest.mark.parametrize(
    "options",
    [
        {"decoder": "deeplab_v3_plus", "region_loss": "lovasz"},
        {"stretch": True, "region_loss": "none", "class_weights": "square_root"},
        {"view": "crop", "class_weights": "balanced", "region_loss": "none", "rotation": 20.0, "dropout": 0.1},
        {"view": "crop", "stretch": True, "decoder_stride": 1},
    ],
)
def test_other_decoders_losses_and_views_learn(options, tmp_path):
    config = TestImageSegmenter.config.replace(average_mirrored=False, image_height=32, image_width=32, **options)
    segmenter = ImageSegmenter(config)
    history = segmenter.fit(_DATA, training=TrainingConfig(epochs=4, batch_size=4, learning_rate=4e-3))
    assert history.losses[-1] < history.losses[0]
    large = np.tile(_DATA.inputs[0], (2, 2, 1))
    assert segmenter.predict([large])[0].mask.shape == (96, 128)
    assert segmenter.export(tmp_path / "saved").max_difference < 1e-4


@pytest.mark.parametrize("view", ["fit", "crop"])
def test_varied_images_and_masks_move_together(view):
    config = TestImageSegmenter.config.replace(
        view=view, rotation=30.0, scale_jitter=1.6, flip_vertically=True, hue=0.0, saturation=0.0, brightness=0.0
    )
    segmenter = ImageSegmenter(config)
    segmenter._ensure_network(3)
    for number in range(8):
        arrays = segmenter._encode_for_training(_DATA.inputs[number], _DATA.targets[number])
        varied = segmenter._varied(arrays, np.random.default_rng(number))
        image, mask = varied["images"].astype(int), varied["masks"]
        colours = {1: image[..., 0] > image[..., 2] + 90, 2: image[..., 2] > image[..., 0] + 90}
        for kind, seen in colours.items():
            assert np.mean(seen != (mask == kind)) < 0.03  # pixels on the edge


@pytest.mark.parametrize("stride", [1, 4])
def test_the_u_net_may_end_at_other_strides(stride, tmp_path):
    segmenter = ImageSegmenter(TestImageSegmenter.config.replace(decoder_stride=stride, average_mirrored=False))
    segmenter.fit(_DATA, training=TrainingConfig(epochs=1, batch_size=8))
    names = {layer.name for layer in segmenter.model.layers}
    assert (f"decoder{stride}_2_conv" in names, f"decoder{stride // 2}_2_conv" in names) == (True, False)
    assert segmenter.model.output_shape == (None, *segmenter.frame.shape, 3)
    segmenter.save(tmp_path / "saved")
    again = ImageSegmenter.load(tmp_path / "saved").predict(_DATA.inputs[:2])
    for answer, other in zip(segmenter.predict(_DATA.inputs[:2]), again, strict=True):
        np.testing.assert_array_equal(answer.mask, other.mask)


def test_windows_of_a_large_image_agree_where_they_overlap():
    # A model that answers by colour alone: windows cannot matter, whatever their number.
    segmenter = ImageSegmenter(TestImageSegmenter.config.replace(view="crop", average_mirrored=False))
    segmenter.fit(_DATA, training=TrainingConfig(epochs=1, batch_size=8))
    segmenter._predictor = lambda images: np.stack(
        [(images[..., 0] > 150), (images[..., 2] > 150), np.zeros(images.shape[:3])], axis=-1
    ).astype(np.float32)
    image = np.tile(_DATA.inputs[0], (3, 2, 1))
    mask = segmenter.predict([image])[0].mask
    np.testing.assert_array_equal(mask == 1, (image[..., 2] > 150) & ~(image[..., 0] > 150))


def test_masks_from_files(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for number, (image, mask) in enumerate(zip(_DATA.inputs[:8], _DATA.targets[:8], strict=True)):
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), image[..., ::-1])
        cv2.imwrite(str(tmp_path / "masks" / f"{number}.png"), mask)
    data = read_mask_folder(tmp_path / "images", tmp_path / "masks", classes=list(_LABELS))
    segmenter = ImageSegmenter(TestImageSegmenter.config.replace(labels=()))
    segmenter.fit(data, data, training=TrainingConfig(epochs=1, batch_size=4))
    assert tuple(segmenter.labels) == _LABELS
    answer = segmenter.predict([data.inputs[0]])[0]
    answer.save_mask(tmp_path / "answer.png")
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "answer.png"), cv2.IMREAD_UNCHANGED), answer.mask)
    others = read_mask_folder(tmp_path / "images", tmp_path / "masks", classes=["a", "b", "c"])
    with pytest.raises(ValueError, match="coded for the classes a, b, c"):
        segmenter.evaluate(others)


# Targets and answers.


def test_arrays_as_masks_need_labels():
    with pytest.raises(ValueError, match="give `labels`"):
        ImageSegmenter(ImageSegmenterConfig()).fit(_DATA)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (np.zeros((3, 3), np.uint8), BadExampleError, "must be equal"),
        (np.full((4, 5), 9, np.int64), BadExampleError, "the value 9 at x=0, y=0 is no class"),
        (np.full((4, 5), -1, np.int64), BadExampleError, "no class"),
        (np.zeros((4, 5), np.float32), TypeError, "integer array"),
        ("mask.png", TypeError, "MaskFile"),
    ],
)
def test_bad_masks_are_named(mask, error, message):
    with pytest.raises(error, match=message):
        read_mask(mask, (4, 5), Vocabulary(["a", "b"]))


def test_masks_may_have_a_channel_and_ignored_pixels():
    mask = np.array([[0, 1], [255, 1]], np.int32)[..., None]
    read = read_mask(mask, (2, 2), Vocabulary(["a", "b"]))
    assert read.tolist() == [[0, 1], [255, 1]]
    assert read.dtype == np.uint8


def test_an_answer_in_json_and_in_a_picture():
    answer = Segmentation(np.array([[0, 0, 1], [1, 1, 0]], np.uint8), ("sea", "land", "sky"))
    assert answer.shares == {"sea": 0.5, "land": 0.5}
    assert answer.to_dict()["runs"] == [[0, 2], [1, 3], [0, 1]]
    assert answer.to_dict()["size"] == [2, 3]
    image = np.full((2, 3, 3), 100, np.uint8)
    assert answer.draw(image, legend=False).shape == (2, 3, 3)
    assert answer.draw(image).shape[1] > 3


def test_presets_need_labels():
    with pytest.raises(ValueError, match="classes must be given"):
        ImageSegmenter.from_preset("efficientnet_lite0")
    with pytest.raises(ValueError, match="no effect"):
        ImageSegmenter.from_preset("efficientnet_lite0", labels=["a"], width=8)
