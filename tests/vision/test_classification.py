from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf

from shared import Examples, TrainingConfig
from shared.examples import BadExampleError
from tests.contract import PipelineContract
from vision import ImageClassifier, ImageClassifierConfig

_SHAPES = ("disc", "square", "bar")


def drawn(shape: str, seed: int, *, size: int = 16) -> np.ndarray:
    """A bright shape somewhere on a dark, noisy ground: uint8 (size, size, 3)."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 60, (size, size, 3)).astype(np.uint8)
    x, y = (int(v) for v in rng.integers(size // 3, 2 * size // 3, 2))
    colour = tuple(int(v) for v in rng.integers(160, 256, 3))
    if shape == "disc":
        cv2.circle(image, (x, y), size // 5, colour, -1)
    elif shape == "square":
        cv2.rectangle(image, (x - size // 5, y - size // 5), (x + size // 5, y + size // 5), colour, 2)
    else:
        cv2.line(image, (0, y), (size, y), colour, 2)
    return image


def shapes(count: int, first_seed: int = 0) -> Examples:
    names = [_SHAPES[i % 3] for i in range(count)]
    return Examples([drawn(name, first_seed + i) for i, name in enumerate(names)], names)


class TestImageClassifier(PipelineContract):
    pipeline_class = ImageClassifier
    config = ImageClassifierConfig(image_size=16, width=8, dropout=0.1, crop="none")
    training = TrainingConfig(epochs=10, batch_size=16, learning_rate=0.01, ema_decay=0.8)
    metric_names = ("accuracy", "top_5_accuracy", "macro_f1")
    floor = 0.9

    @classmethod
    def data(cls) -> Any:
        return shapes(48)

    @classmethod
    def inputs(cls) -> list[Any]:
        return list(shapes(7, first_seed=100).inputs)

    @classmethod
    def inputs_as_code(cls) -> str:
        return "__import__('tests.vision.test_classification', fromlist=['shapes']).shapes(7, 100).inputs"

    @classmethod
    def wrong_inputs(cls) -> list[tuple[Any, type[Exception], str]]:
        return [
            ("cat.jpg", TypeError, "list of images"),
            (np.zeros((20, 16, 3), np.uint8), TypeError, "Put it in a list"),
            (np.zeros((20, 16), np.uint8), TypeError, "Put it in a list"),
            ([3.5], TypeError, "path, bytes or a uint8 array"),
            ([np.zeros((16, 16, 3), np.float32)], TypeError, "uint8"),
            ([np.zeros((16, 16, 7), np.uint8)], ValueError, r"\(16, 16, 7\)"),
            (["nowhere.jpg"], BadExampleError, "nowhere.jpg: no such file"),
            ([b"no image"], BadExampleError, "not a JPEG"),
        ]


@pytest.fixture(scope="module")
def fitted() -> ImageClassifier:
    classifier = ImageClassifier(ImageClassifierConfig(image_size=16, width=4, crop="none"))
    classifier.fit(shapes(48), training=TrainingConfig(epochs=4, batch_size=16, learning_rate=0.01))
    return classifier


def test_predict_takes_paths_bytes_and_arrays_alike(fitted: ImageClassifier, tmp_path: Path) -> None:
    image = drawn("disc", 7, size=40)
    encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
    path = tmp_path / "disc.png"
    path.write_bytes(encoded)
    answers = fitted.predict([str(path), path, encoded, image])
    for answer in answers:
        assert answer.labels == answers[0].labels
        # Equal pixels; how a batch is shared among threads may show in the last bit.
        np.testing.assert_allclose(answer.probabilities, answers[0].probabilities, atol=1e-6)


def test_top_k(fitted: ImageClassifier) -> None:
    (answer,) = fitted.predict([drawn("bar", 1)], top_k=2)
    assert len(answer.labels) == len(answer.probabilities) == 2
    assert answer.probability == max(answer.probabilities)
    (everything,) = fitted.predict([drawn("bar", 1)], top_k=99)
    assert sum(everything.probabilities) == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(ValueError, match="top_k"):
        fitted.predict([drawn("bar", 1)], top_k=0)


def test_tf_data_with_class_numbers_as_tfds_gives_them() -> None:
    examples = shapes(24)
    numbers = [_SHAPES.index(label) for label in examples.targets]
    dataset = tf.data.Dataset.from_tensor_slices((np.stack(examples.inputs), numbers))
    classifier = ImageClassifier(ImageClassifierConfig(image_size=16, width=4))
    classifier.fit(dataset, dataset, training=TrainingConfig(epochs=1, batch_size=8))
    assert classifier.labels is not None
    assert list(classifier.labels) == ["0", "1", "2"]
    named = ImageClassifier(ImageClassifierConfig(image_size=16, width=4, labels=_SHAPES))
    named.fit(dataset, training=TrainingConfig(epochs=1, batch_size=8))
    assert named.predict([examples.inputs[0]])[0].label in _SHAPES


def test_multi_label_gives_each_class_its_own_answer(tmp_path: Path) -> None:
    images = [
        np.maximum(drawn("disc", i), drawn("bar", i)) if i % 3 == 0 else drawn(_SHAPES[i % 3], i) for i in range(60)
    ]
    targets = [("disc", "bar") if i % 3 == 0 else (_SHAPES[i % 3],) for i in range(60)]
    config = ImageClassifierConfig(image_size=16, width=8, crop="none", multi_label=True)
    classifier = ImageClassifier(config)
    classifier.fit((images, targets), training=TrainingConfig(epochs=8, batch_size=16, learning_rate=0.01))
    metrics = classifier.evaluate((images, targets))
    assert tuple(metrics) == ("macro_f1", "accuracy")
    assert metrics["macro_f1"] > 0.85
    (answer,) = classifier.predict(images[:1])
    assert set(answer.labels) == {"disc", "bar"}
    classifier.save(tmp_path / "saved")
    assert ImageClassifier.load(tmp_path / "saved").predict(images[:3]) == classifier.predict(images[:3])


def test_unknown_label_names_it_and_what_is_known(fitted: ImageClassifier) -> None:
    with pytest.raises(ValueError, match=r"'cat' is none of the 3 classes .*bar, disc, square"):
        fitted.evaluate(([drawn("disc", 1)], ["cat"]))
    with pytest.raises(ValueError, match="7 is none"):
        fitted.evaluate(([drawn("disc", 1)], [7]))


def test_multi_label_target_of_a_single_label_pipeline_kind_is_refused() -> None:
    classifier = ImageClassifier(ImageClassifierConfig(image_size=16, width=4, multi_label=True))
    with pytest.raises(TypeError, match="tuple of labels"):
        classifier.fit(shapes(6), training=TrainingConfig(epochs=1))


def test_balanced_class_weights_are_those_of_scikit_learn() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    names = ["disc"] * 6 + ["bar"] * 2 + ["square"] * 4
    examples = Examples([drawn(name, i) for i, name in enumerate(names)], names)
    classifier = ImageClassifier(ImageClassifierConfig(image_size=16, width=4, class_weights="balanced"))
    classifier.training_task(examples, TrainingConfig())
    expected = compute_class_weight("balanced", classes=np.array(["bar", "disc", "square"]), y=np.array(names))
    np.testing.assert_allclose(classifier._classes.balanced_weights(examples), expected, rtol=1e-6)


def test_bad_files_are_skipped_reported_and_limited(tmp_path: Path) -> None:
    for i, name in enumerate(["disc", "bar"] * 60):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        cv2.imwrite(str(folder / f"{i}.jpg"), drawn(name, i))
    broken = tmp_path / "disc" / "broken.jpg"
    broken.write_bytes((tmp_path / "disc" / "0.jpg").read_bytes()[:-80])
    from vision import read_image_folder

    classifier = ImageClassifier(ImageClassifierConfig(image_size=16, width=4))
    history = classifier.fit(read_image_folder(tmp_path), training=TrainingConfig(epochs=2, batch_size=16))
    assert len(history.bad_records) == 1
    assert "broken.jpg" in history.bad_records[0]
    strict = ImageClassifier(ImageClassifierConfig(image_size=16, width=4))
    with pytest.raises(ValueError, match=r"broken\.jpg: the JPEG data is truncated"):
        strict.fit(read_image_folder(tmp_path), training=TrainingConfig(epochs=1, batch_size=16, max_bad_share=0.0))


def test_mixing_and_augmentation_train(tmp_path: Path) -> None:
    config = ImageClassifierConfig(
        image_size=16, width=4, crop="resized", rand_augment=2, erasing=0.5, mixup=0.4, cutmix=1.0
    )
    training = TrainingConfig(epochs=2, batch_size=16, label_smoothing=0.1)
    first, second = ImageClassifier(config), ImageClassifier(config)
    losses = [classifier.fit(shapes(48), training=training).losses for classifier in (first, second)]
    assert losses[0] == losses[1]
    other = ImageClassifier(config).fit(shapes(48), training=training.replace(seed=1)).losses
    assert other != losses[0]


def test_grey_images_train_predict_and_export(tmp_path: Path) -> None:
    classifier = ImageClassifier(ImageClassifierConfig(image_size=16, channels=1, width=4))
    classifier.fit(shapes(24), training=TrainingConfig(epochs=1, batch_size=8))
    assert classifier.model.input_shape == (None, 16, 16, 1)
    assert classifier.export(tmp_path / "model").max_difference <= 1e-4


def test_saved_model_runs_in_plain_tensorflow(fitted: ImageClassifier, tmp_path: Path) -> None:
    import subprocess
    import sys

    fitted.export(tmp_path / "model")
    picture = tmp_path / "disc.jpg"
    cv2.imwrite(str(picture), drawn("disc", 3, size=50))
    code = (
        "import sys, tensorflow as tf\n"
        "model = tf.saved_model.load(sys.argv[1])\n"
        "print('OUT', model.serve(tf.constant([open(sys.argv[2], 'rb').read()])).numpy()[0].tolist())\n"
        "assert not {'shared', 'vision'} & set(sys.modules)"
    )
    child = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model"), str(picture)],
        capture_output=True, text=True, cwd=tmp_path, timeout=300,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    served = json.loads(child.stdout.split("OUT ")[1])
    answer = fitted.predict([picture], top_k=3)[0]
    by_name = dict(zip(answer.labels, answer.probabilities, strict=True))
    assert fitted.labels is not None
    assert served == pytest.approx([by_name[label] for label in fitted.labels], abs=1e-4)


def test_model_is_there_for_tensors(fitted: ImageClassifier) -> None:
    assert isinstance(fitted.model, keras.Model)
    logits = fitted.model(np.stack([drawn("disc", 1)]).astype(np.float32))
    assert logits.shape == (1, 3)


def test_mirrored_answers_are_averaged_in_predict_and_exports(fitted: ImageClassifier, tmp_path: Path) -> None:
    fitted.save(tmp_path / "plain")
    manifest = json.loads((tmp_path / "plain" / "pipeline.json").read_text())
    assert manifest["config"]["average_mirrored"] is False
    both = ImageClassifier(fitted.config.replace(average_mirrored=True))
    both.labels, both._network, both._trained = fitted.labels, fitted._network, True
    image = drawn("bar", 3)
    views = fitted.predict([image, image[:, ::-1].copy()], top_k=3)
    (answer,) = both.predict([image], top_k=3)
    (mirrored,) = both.predict([image[:, ::-1].copy()], top_k=3)
    shares = [dict(zip(view.labels, view.probabilities, strict=True)) for view in views]
    assert shares[0] != shares[1]
    for label, probability in zip(answer.labels, answer.probabilities, strict=True):
        assert probability == pytest.approx((shares[0][label] + shares[1][label]) / 2, abs=1e-6)
    assert mirrored.probabilities == pytest.approx(answer.probabilities, abs=1e-6)
    assert both.export(tmp_path / "export").max_difference < 1e-4


def test_a_grid_head_sees_where_things_are(tmp_path: Path) -> None:
    """One bright spot, left or right: global averages cannot tell these apart."""
    images = np.zeros((48, 16, 16, 3), np.uint8)
    sides = np.random.default_rng(0).integers(0, 2, 48)
    images[np.arange(48), 7, 3 + 9 * sides] = 255
    examples = Examples(list(images), [("left", "right")[side] for side in sides])
    config = ImageClassifierConfig(image_size=16, width=4, crop="none", flip=False, pooling="grid")
    classifier = ImageClassifier(config)
    classifier.fit(examples, training=TrainingConfig(epochs=6, batch_size=8, learning_rate=0.02))
    assert classifier.evaluate(examples)["accuracy"] > 0.9
    classifier.save(tmp_path / "saved")
    assert ImageClassifier.load(tmp_path / "saved").predict(list(images)) == classifier.predict(list(images))


def test_an_array_is_cropped_as_a_file_is() -> None:
    classifier = ImageClassifier(ImageClassifierConfig(image_size=16, width=4, resize="crop", crop="none"))
    classifier.fit(shapes(6), training=TrainingConfig(epochs=1, batch_size=6))
    assert classifier._network is not None
    cropping = replace(classifier.preprocessing, crop_fraction=0.875)
    classifier._network = replace(classifier._network, preprocessing=cropping)
    image = drawn("disc", 7)
    encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()
    assert classifier.predict([image]) == classifier.predict([encoded])


def test_metrics_of_earlier_weights_are_forgotten() -> None:
    classifier = ImageClassifier(ImageClassifierConfig(image_size=16, width=4))
    training = TrainingConfig(epochs=1, batch_size=6)
    classifier.fit(shapes(6), training=training)
    assert classifier.evaluate(shapes(6)) == classifier.metrics
    classifier.fit(shapes(6), training=training)
    assert classifier.metrics is None


@pytest.mark.parametrize("channels", [0, 2, 4])
def test_images_are_grey_or_in_colour(channels: int) -> None:
    with pytest.raises(ValueError, match=f"channels` must be one of 1, 3; received {channels}"):
        ImageClassifierConfig(channels=channels)  # type: ignore[arg-type]


def test_what_the_network_of_a_preset_fixes_is_refused_in_words(fitted: ImageClassifier, tmp_path: Path) -> None:
    fitted.save(tmp_path / "saved")
    image = drawn("disc", 7)
    again = ImageClassifier.from_preset(tmp_path / "saved", channels=3)
    assert again.predict([image, image[..., 0]]) == fitted.predict([image, image[..., 0]])  # grey ones too, as said
    with pytest.raises(ValueError, match=r"`channels` must be 3 for the preset .* received 1\. Leave it out"):
        ImageClassifier.from_preset(tmp_path / "saved", labels=["cat", "dog"], channels=1)
    with pytest.raises(ValueError, match=r"`width` and `depth` would have no effect: the preset .*saved"):
        ImageClassifier.from_preset(tmp_path / "saved", width=8, depth=2)
