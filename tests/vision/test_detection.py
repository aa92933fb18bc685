from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest

from shared import Config, TrainingConfig
from shared.examples import BadExampleError, Examples
from tests.contract import PipelineContract
from vision import Detections, ObjectBoxes, ObjectDetector, ObjectDetectorConfig
from vision.boxes import box_iou
from vision.detection import object_labels


def shapes(count: int, seed: int = 0, size: int = 64) -> Examples:
    """Bright squares and discs on dark ground."""
    rng = np.random.default_rng(seed)
    inputs, targets = [], []
    for number in range(count):
        image = np.full((size, size, 3), 40, np.uint8)
        side = int(rng.integers(20, 34))
        x, y = (int(v) for v in rng.integers(0, size - side, 2))
        if number % 2:
            cv2.rectangle(image, (x, y), (x + side - 1, y + side - 1), (230, 60, 60), cv2.FILLED)
        else:
            cv2.circle(image, (x + side // 2, y + side // 2), side // 2, (60, 60, 230), cv2.FILLED)
        inputs.append(image)
        targets.append(ObjectBoxes([[x, y, x + side, y + side]], ["square" if number % 2 else "disc"]))
    return Examples(inputs, targets)


_DATA = shapes(16)
_CODE = "__import__('tests.vision.test_detection', fromlist=['x']).shapes(16).inputs[:3]"


class TestObjectDetector(PipelineContract):
    pipeline_class = ObjectDetector
    config: ClassVar[Config] = ObjectDetectorConfig(
        image_height=64,
        image_width=64,
        width=8,
        pyramid_channels=16,
        head_depth=1,
        scale_jitter=1.0,
        aspect_jitter=1.0,
        hue=0.0,
        threshold=0.1,
        max_detections=5,
        mosaic=0.25,
    )
    training: ClassVar[TrainingConfig] = TrainingConfig(epochs=12, batch_size=4, learning_rate=4e-3, warmup=0.1)
    metric_names = ("map", "map_50", "map_75")
    floor = 0.3
    export_tolerance = 1e-3  # pixels, beside scores

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
            ([np.zeros((64, 64, 3), np.float32)], TypeError, "uint8"),
            ("picture.jpg", TypeError, "list"),
        ]

    # Beyond the contract.

    def test_boxes_are_in_pixels_of_the_raw_image(self, fitted: ObjectDetector) -> None:
        image = _DATA.inputs[1]
        large = cv2.resize(image, (256, 128), interpolation=cv2.INTER_NEAREST)  # wider than the frame
        square = cv2.copyMakeBorder(image, 0, 0, 0, 0, cv2.BORDER_CONSTANT)
        small, big = fitted.predict([square, cv2.resize(image, (256, 256))], threshold=0.0)
        assert box_iou(big.boxes[:1], small.boxes[:1] * 4)[0, 0] > 0.7
        for found in fitted.predict([large], threshold=0.0):
            assert (found.boxes[:, 2] <= 256).all()
            assert (found.boxes[:, 3] <= 128).all()

    def test_scores_fall_and_respect_the_threshold(self, fitted: ObjectDetector) -> None:
        everything, few = (fitted.predict(_DATA.inputs, threshold=least) for least in (0.0, 0.4))
        assert sum(map(len, few)) < sum(map(len, everything))
        for found in (*everything, *few):
            assert (np.diff(found.scores) <= 0).all()
        assert all((found.scores >= 0.4).all() for found in few)
        with pytest.raises(ValueError, match="between 0 and 1"):
            fitted.predict(_DATA.inputs, threshold=2)

    def test_tiles_find_what_is_small_in_a_large_image(self, fitted: ObjectDetector) -> None:
        large = np.full((256, 320, 3), 40, np.uint8)
        large[100:164, 200:264] = _DATA.inputs[1]
        truth = _DATA.targets[1].boxes + np.float32([200, 100, 200, 100])
        found = fitted.predict([large], tile=64, threshold=0.1)[0]
        assert box_iou(found.boxes, truth).max() > 0.5
        assert found.boxes.max() <= 320
        with pytest.raises(ValueError, match="at least 32"):
            fitted.predict([large], tile=8)

    def test_a_video_is_answered_frame_by_frame(self, fitted: ObjectDetector, tmp_path: Path) -> None:
        path = tmp_path / "film.avi"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5.0, (64, 64))
        for image in _DATA.inputs[:4]:
            writer.write(image[..., ::-1])
        writer.release()
        answers = list(fitted.predict_video(path, every=2, threshold=0.0))
        assert [round(seconds, 2) for seconds, _ in answers] == [0.0, 0.4]
        assert all(isinstance(found, Detections) for _, found in answers)

    def test_a_picture_of_an_answer(self, fitted: ObjectDetector) -> None:
        image = _DATA.inputs[1]
        found = fitted.predict([image], threshold=0.0)[0]
        drawn = found.draw(image)
        assert drawn.shape == image.shape
        assert (drawn != image).any()
        np.testing.assert_array_equal(image, _DATA.inputs[1])

    def test_an_export_answers_in_pixels_of_each_image(self, fitted: ObjectDetector, tmp_path: Path) -> None:
        import tensorflow as tf

        image = cv2.resize(_DATA.inputs[1], (200, 120))
        encoded = cv2.imencode(".png", image[..., ::-1])[1].tobytes()
        fitted.export(tmp_path / "saved")
        loaded = tf.saved_model.load(str(tmp_path / "saved"))
        rows = loaded.serve(tf.constant([encoded])).numpy()[0]
        found = fitted.predict([encoded], threshold=0.0)[0]
        assert 0 < len(found) <= len(rows)
        np.testing.assert_allclose(rows[: len(found), 4], found.scores, atol=1e-5)
        np.testing.assert_allclose(rows[: len(found), :4], found.boxes, atol=1e-2)
        assert not rows[len(found) :].any()

    def test_a_broken_image_is_skipped_by_name(self, fitted: ObjectDetector, tmp_path: Path) -> None:
        (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 nothing more")
        inputs = [*_DATA.inputs, str(tmp_path / "broken.jpg")]
        data = Examples(inputs, [*_DATA.targets, ObjectBoxes([[0, 0, 9, 9]], ["disc"])])
        metrics = fitted.evaluate(data, max_bad_share=0.1)
        assert metrics == fitted.evaluate(_DATA)
        assert [bad.where for bad in metrics.details["bad_records"]] == [str(tmp_path / "broken.jpg")]
        again = ObjectDetector(fitted.config)
        history = again.fit(data, training=TrainingConfig(epochs=1, batch_size=4, max_bad_share=0.1))
        assert "broken.jpg" in history.bad_records[0]


# Targets.


def test_labels_are_learned_sorted():
    assert list(object_labels(_DATA)) == ["disc", "square"]
    with pytest.raises(ValueError, match="no object"):
        object_labels(Examples(["a.jpg"], [ObjectBoxes([], [])]))
    with pytest.raises(TypeError, match="ObjectBoxes"):
        object_labels(Examples(["a.jpg"], [3]))


def test_a_dataset_of_boxes_and_class_numbers_will_do():
    import tensorflow as tf

    def elements():
        for image, target in zip(_DATA.inputs, _DATA.targets, strict=True):
            yield (
                image,
                {"boxes": target.boxes, "labels": np.array([label == "square" for label in target.labels], np.int64)},
            )

    spec = (
        tf.TensorSpec((64, 64, 3), tf.uint8),
        {"boxes": tf.TensorSpec((None, 4), tf.float32), "labels": tf.TensorSpec((None,), tf.int64)},
    )
    dataset = tf.data.Dataset.from_generator(elements, output_signature=spec)
    detector = ObjectDetector(TestObjectDetector.config)
    detector.fit(dataset, training=TrainingConfig(epochs=1, batch_size=8))
    assert list(detector.labels) == ["0", "1"]
    named = ObjectDetector(TestObjectDetector.config.replace(labels=("disc", "square")))
    named.fit(dataset, training=TrainingConfig(epochs=1, batch_size=8))
    assert set(named.evaluate(_DATA)) == {"map", "map_50", "map_75"}


def test_a_label_that_is_no_class_is_refused():
    detector = ObjectDetector(TestObjectDetector.config.replace(labels=("disc", "ring")))
    with pytest.raises(ValueError, match="'square' is none of the 2 classes"):
        detector.fit(_DATA, training=TrainingConfig(epochs=1))


def test_images_without_objects_train_and_count():
    empty = Examples([*_DATA.inputs, _DATA.inputs[0] * 0], [*_DATA.targets, ObjectBoxes([], [])])
    detector = ObjectDetector(TestObjectDetector.config)
    detector.fit(empty, empty, training=TrainingConfig(epochs=1, batch_size=4))


def test_batches_of_other_sizes():
    config = TestObjectDetector.config.replace(multi_scale=0.5)
    detector = ObjectDetector(config)
    task = detector.training_task(_DATA, TrainingConfig(batch_size=2))
    shapes_seen = {batch["images"].shape[1:3] for batch in task.batches.epoch()}
    assert len(shapes_seen) > 1
    assert all(side % 32 == 0 for shape in shapes_seen for side in shape)
    detector.fit(_DATA, training=TrainingConfig(epochs=1, batch_size=4))


# Presets.


def test_a_saved_classifier_is_a_preset(tmp_path):
    from vision import ImageClassifier, ImageClassifierConfig

    images = np.random.default_rng(0).integers(0, 256, (8, 128, 128, 3), np.uint8)
    classifier = ImageClassifier(ImageClassifierConfig(image_size=128, width=4))
    classifier.fit((images, ["a", "b"] * 4), training=TrainingConfig(epochs=1, batch_size=4))
    classifier.save(tmp_path / "classifier")
    detector = ObjectDetector.from_preset(
        tmp_path / "classifier", labels=["disc", "square"], image_height=64, image_width=64, pyramid_channels=8
    )
    names = {variable.path: variable for variable in classifier.model.variables}
    moved = [
        v for v in detector._network.trunk.variables if any(v.path.split("/")[-2:] == n.split("/")[-2:] for n in names)
    ]
    assert moved
    kernel = next(v for v in moved if v.path.endswith("stem/kernel"))
    origin = next(v for n, v in names.items() if n.endswith("stem/kernel"))
    np.testing.assert_array_equal(kernel, origin)
    detector.fit(_DATA, _DATA, training=TrainingConfig(epochs=1, batch_size=8, freeze_epochs=1))
    detector.save(tmp_path / "detector")
    loaded = ObjectDetector.load(tmp_path / "detector")
    assert [d.to_dict() for d in loaded.predict(_DATA.inputs)] == [d.to_dict() for d in detector.predict(_DATA.inputs)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "the classes must be given"),
        ({"labels": "from_data", "width": 8}, "would have no effect"),
    ],
)
def test_what_a_preset_needs(arguments, message):
    with pytest.raises(ValueError, match=message):
        ObjectDetector.from_preset("efficientnet_lite0", **arguments)


def test_served_boxes_lie_within_their_images():
    from vision.models.detector import _within

    inside, over, outside = [1, 2, 8, 9, 0.3, 1], [-5, 2, 8, 99, 0.5, 0], [1, 30, 8, 40, 0.9, 0]
    answers = np.array([[outside, over, inside, [0] * 6], [inside, outside, over, over]], np.float32)
    found = _within(answers, np.array([[20, 10], [64, 64]], np.int32)).numpy()
    clipped = [0, 2, 8, 20, 0.5, 0]
    np.testing.assert_array_equal(found[0], np.array([clipped, inside, [0] * 6, [0] * 6], np.float32))
    whole = [0, 2, 8, 64, 0.5, 0]
    np.testing.assert_array_equal(found[1], np.array([outside, whole, whole, inside], np.float32))
