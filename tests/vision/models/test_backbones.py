from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import keras
import keras_hub
import numpy as np
import pytest
from keras.src.legacy.saving import legacy_h5_format
from safetensors.numpy import load_file, save_file

from shared.pretrained import resolve
from tests.golden.make_timm import NUM_CLASSES, SIZE, images, random_state
from vision.models.backbones import PretrainedClassifier, build_trunk, imagenet_labels, load_pretrained_classifier
from vision.models.hub import hub_labels
from vision.models.pretrained import cut_head, fits
from vision.presets import PRESETS

_GOLDEN = Path(__file__).parents[2] / "golden" / "timm.npz"


def load(place: Path, image_size: int | None = None) -> PretrainedClassifier:
    return load_pretrained_classifier(resolve(place, PRESETS), image_size)


def normalised(preset: PretrainedClassifier, values: np.ndarray) -> np.ndarray:
    mean, std = np.float32(preset.preprocessing.mean), np.float32(preset.preprocessing.std)
    return (values.astype(np.float32) - mean) / std


def logits(preset: PretrainedClassifier, values: np.ndarray) -> np.ndarray:
    assert preset.head is not None
    return np.asarray(preset.head(preset.trunk(normalised(preset, values))))


def logits_of_rebuilt(preset: PretrainedClassifier, values: np.ndarray) -> np.ndarray:
    """As a saved pipeline does it: recipe and head through JSON, then the weights."""
    assert preset.head is not None
    architecture, head_config = json.loads(json.dumps([preset.architecture, preset.head.get_config()]))
    trunk, head = build_trunk(architecture, values.shape[1]), keras.Model.from_config(head_config)
    trunk.set_weights(preset.trunk.get_weights())
    head.set_weights(preset.head.get_weights())
    return np.asarray(head(trunk(normalised(preset, values))))


def randomised(model: keras.Model) -> keras.Model:
    """The same weights each time; statistics of normalisation and biases not 0 and 1, so that a mix-up shows."""
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if "seed" in variable.path:
            continue
        if len(variable.shape) == 1:
            variable.assign(variable + rng.uniform(0.0, 0.3, variable.shape))
        else:
            variable.assign(rng.normal(0.0, np.std(variable), variable.shape))
    return model


def test_imagenet_labels_are_in_the_order_of_the_challenge() -> None:
    from keras_hub.src.utils.imagenet.imagenet_utils import IMAGENET_NAMES

    # ILSVRC numbers its classes by rising WordNet id.
    ids = [IMAGENET_NAMES[number][0] for number in range(1000)]
    assert ids == sorted(ids)
    labels = imagenet_labels()
    assert len(set(labels)) == 1000
    assert (labels[0], labels[1], labels[999]) == ("tench", "goldfish", "toilet_tissue")


def test_unknown_families_and_layouts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'no_such' is not known"):
        build_trunk({"family": "no_such"}, 64)
    with pytest.raises(ValueError, match="no network 'image_utils'"):
        build_trunk({"family": "keras_applications", "name": "image_utils"}, 64)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "marian"}))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match=r"\(marian\) is no image classifier"):
        load(tmp_path)


def test_a_head_that_flattens_belongs_to_one_size() -> None:
    def network(size: int) -> tuple[keras.Model, keras.KerasTensor]:
        images = keras.Input((size, size, 3))
        features = keras.layers.Conv2D(4, 3, strides=2, padding="same")(images)
        x = keras.layers.Dense(5, activation="relu")(keras.layers.Flatten()(features))
        return keras.Model(images, keras.layers.Dense(2, activation="softmax")(x)), features

    classifier, features = network(8)
    head = cut_head(classifier, features)
    values = np.random.default_rng(0).random((3, 8, 8, 3)).astype(np.float32)
    trunk = keras.Model(classifier.input, features)
    np.testing.assert_allclose(keras.ops.softmax(head(trunk(values))), classifier(values), atol=1e-6)
    other, features = network(16)
    assert fits(head, trunk)
    assert not fits(head, keras.Model(other.input, features))


# keras.applications.


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as Keras distributes it, with random weights."""
    directory = tmp_path_factory.mktemp("mobilenet")
    model = randomised(keras.applications.MobileNetV3Small(weights=None, input_shape=(224, 224, 3)))
    with h5py.File(directory / PRESETS["mobilenet_v3_small"]["file"], "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)
    return directory


@pytest.fixture(scope="module")
def photos() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (2, 224, 224, 3)).astype(np.uint8)


def test_application_gives_the_logits_that_keras_gives(
    mobilenet: Path, photos: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file,) = mobilenet.iterdir()
    monkeypatch.setattr("keras.src.utils.file_utils.get_file", lambda *_, **__: str(file))
    origin = keras.applications.MobileNetV3Small(input_shape=(224, 224, 3), classifier_activation=None)
    expected = np.asarray(origin(photos.astype(np.float32)))
    preset = load(mobilenet)
    np.testing.assert_allclose(logits(preset, photos), expected, atol=1e-5 * np.abs(expected).max())
    assert preset.head_labels == imagenet_labels()
    assert preset.architecture == {"family": "keras_applications", "name": "MobileNetV3Small"}
    assert preset.licence == "Apache-2.0"


def test_application_for_another_image_size(mobilenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # By name, the file comes through Keras's downloader.
    (file,) = mobilenet.iterdir()
    monkeypatch.setattr("keras.src.utils.file_utils.get_file", lambda *_, **__: str(file))
    preset = load_pretrained_classifier(resolve("mobilenet_v3_small", PRESETS), image_size=64)
    assert preset.trunk.output_shape == (None, 2, 2, 576)
    values = np.random.default_rng(6).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
    origin = keras.applications.MobileNetV3Small(weights=str(file), input_shape=(64, 64, 3), classifier_activation=None)
    expected = np.asarray(origin(values.astype(np.float32)))
    np.testing.assert_allclose(logits(preset, values), expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(logits_of_rebuilt(preset, values), logits(preset, values))


def test_application_weights_under_the_networks_name_without_head(tmp_path: Path) -> None:
    model = randomised(keras.applications.MobileNet(weights=None, include_top=False, input_shape=(224, 224, 3)))
    model.save_weights(tmp_path / "MobileNet_notop.weights.h5")
    preset = load(tmp_path)
    assert preset.head is None
    assert preset.head_labels is None
    values = np.random.default_rng(2).integers(0, 256, (1, 224, 224, 3)).astype(np.uint8)
    np.testing.assert_allclose(preset.trunk(normalised(preset, values)), model(values / 127.5 - 1), atol=1e-5)


def test_networks_trained_on_bgr_take_rgb(tmp_path: Path) -> None:
    whole = keras.applications.VGG16(weights=None, include_top=False, input_shape=(224, 224, 3))
    whole.save_weights(tmp_path / "VGG16_notop.weights.h5")
    values = np.random.default_rng(3).integers(0, 256, (1, 224, 224, 3)).astype(np.float32)
    expected = np.asarray(whole(keras.applications.vgg16.preprocess_input(values.copy())))
    preset = load(tmp_path)
    np.testing.assert_allclose(preset.trunk(normalised(preset, values)), expected, atol=1e-4 * expected.max())


def test_application_files_are_not_guessed(mobilenet: Path, tmp_path: Path) -> None:
    (tmp_path / "my.h5").touch()
    with pytest.raises(ValueError, match=r"named as Keras names its download .* it holds my\.h5"):
        load(tmp_path)
    (file,) = mobilenet.iterdir()
    (tmp_path / "my.h5").unlink()
    (tmp_path / "MobileNetV3Large.h5").write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=r"MobileNetV3Large\.h5 does not hold the weights of MobileNetV3Large"):
        load(tmp_path)


def test_application_offline_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: Any, **options: Any) -> str:
        raise OSError("no network")

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", offline)
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded \(no network\).*v3_small_224_1\.0_float\.h5"):
        load_pretrained_classifier(resolve("mobilenet_v3_small", PRESETS))


# keras-hub's own directories.


@pytest.fixture(scope="module")
def classifier() -> keras.Model:
    backbone = keras_hub.models.ResNetBackbone(
        stackwise_num_filters=[64, 16],
        stackwise_num_blocks=[1, 1],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        use_pre_activation=False,
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
    )
    converter = keras_hub.layers.ResNetImageConverter(
        image_size=(32, 32),
        scale=[1 / 50, 1 / 60, 1 / 70],
        offset=[-2.1, -1.9, -1.7],
        crop_to_aspect_ratio=False,
        interpolation="bicubic",
    )
    preprocessor = keras_hub.models.ResNetImageClassifierPreprocessor(image_converter=converter)
    return randomised(
        keras_hub.models.ResNetImageClassifier(
            backbone, num_classes=5, preprocessor=preprocessor, activation="softmax", dropout=0.2
        )
    )


@pytest.fixture
def saved(classifier: keras.Model, tmp_path: Path) -> Path:
    classifier.save_to_preset(str(tmp_path / "preset"))
    return tmp_path / "preset"


def test_keras_hub_directory_gives_the_logits_that_keras_hub_gives(classifier: keras.Model, saved: Path) -> None:
    values = np.random.default_rng(4).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    expected = np.asarray(classifier(classifier.preprocessor(values)))
    preset = load(saved)
    answers = logits(preset, values)
    assert answers.min() < 0  # logits, although the classifier ends in a softmax
    np.testing.assert_allclose(keras.ops.softmax(answers), expected, atol=1e-5)
    np.testing.assert_array_equal(logits_of_rebuilt(preset, values), answers)
    assert preset.head_labels == ("0", "1", "2", "3", "4")
    recipe = preset.preprocessing
    assert (recipe.image_size, recipe.resize, recipe.interpolation) == (32, "stretch", "bicubic")
    np.testing.assert_allclose(recipe.std, (50, 60, 70))
    np.testing.assert_allclose(recipe.mean, (105, 114, 119))


def test_keras_hub_directory_of_a_backbone_only(classifier: keras.Model, tmp_path: Path) -> None:
    classifier.backbone.save_to_preset(str(tmp_path))
    with pytest.raises(ValueError, match="does not say which"):
        load(tmp_path)
    classifier.preprocessor.image_converter.save_to_preset(str(tmp_path))
    preset = load(tmp_path, image_size=48)
    assert preset.head is None
    assert preset.trunk.output_shape == (None, 6, 6, 16)


def test_keras_hub_directory_without_the_weights_of_its_head(saved: Path) -> None:
    (saved / "task.weights.h5").unlink()
    with pytest.raises(ValueError, match=r"task\.weights\.h5 is missing"):
        load(saved)


def test_recipe_is_free_of_the_precision_that_was_set(saved: Path) -> None:
    assert "dtype" not in json.dumps(load(saved).architecture)


CODE = [
    {"module": "keras.layers", "class_name": "Lambda", "config": {"function": "x"}},
    {"module": "os", "class_name": "system", "config": {}},
    {"module": "keras_evil.layers", "class_name": "Dense", "config": {}},
]


@pytest.mark.parametrize("injected", CODE)
@pytest.mark.parametrize("file", ["config.json", "task.json", "preprocessor.json"])
def test_configurations_that_carry_code_are_refused(file: str, injected: dict[str, Any], saved: Path) -> None:
    config = json.loads((saved / file).read_text())
    config["config"]["extra"] = [injected]
    (saved / file).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{file} refers to {injected['module']}.{injected['class_name']}"):
        load(saved)


def test_saved_recipe_must_be_a_backbone(saved: Path) -> None:
    architecture = load(saved).architecture
    for change in ({"registered_name": "Dense"}, {"registered_name": None}):
        with pytest.raises(ValueError, match="no backbone of keras-hub"):
            build_trunk({"family": "keras_hub", "config": architecture["config"] | change}, 32)


def test_text_networks_are_refused(tmp_path: Path) -> None:
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=9, num_layers=1, num_heads=1, hidden_dim=4, intermediate_dim=4, max_sequence_length=8
    )
    backbone.save_to_preset(str(tmp_path))
    with pytest.raises(ValueError, match="no network from images to features"):
        load(tmp_path)


def test_tokens_of_a_vision_transformer_become_a_feature_map(tmp_path: Path) -> None:
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(32, 32, 3), patch_size=16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8
    )
    converter = keras_hub.layers.ViTImageConverter(image_size=(32, 32), scale=1 / 127.5, offset=-1.0)
    preprocessor = keras_hub.models.ViTImageClassifierPreprocessor(image_converter=converter)
    model = randomised(keras_hub.models.ViTImageClassifier(backbone, num_classes=3, preprocessor=preprocessor))
    model.save_to_preset(str(tmp_path))
    preset = load(tmp_path)
    values = np.random.default_rng(5).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    assert preset.trunk.output_shape == (None, 1, 5, 8)
    np.testing.assert_allclose(logits(preset, values), model(preprocessor(values)), atol=1e-5)
    np.testing.assert_array_equal(logits_of_rebuilt(preset, values), logits(preset, values))
    with pytest.raises(ValueError, match=r"belong to images of 32 px"):
        load(tmp_path, image_size=64)


# timm's directories.


def timm_directory(path: Path, architecture: str) -> Path:
    golden = np.load(_GOLDEN)
    path.mkdir()
    (path / "config.json").write_text(str(golden[f"{architecture}.config"]))
    shapes = json.loads(str(golden[f"{architecture}.shapes"]))
    save_file(random_state(shapes), path / "model.safetensors")
    return path


@pytest.mark.parametrize("architecture", ["resnet18", "mobilenetv3_small_050"])
def test_timm_directory_gives_the_logits_that_timm_gives(
    architecture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = load(timm_directory(tmp_path / "timm", architecture), image_size=SIZE)
    expected = np.load(_GOLDEN)[f"{architecture}.logits"]
    np.testing.assert_allclose(logits(preset, images()), expected, atol=1e-5 * np.abs(expected).max())
    assert preset.licence == "apache-2.0"
    assert preset.head_labels == tuple(str(n) for n in range(NUM_CLASSES))
    assert capsys.readouterr().out == ""
    pretrained_cfg = json.loads((tmp_path / "timm" / "config.json").read_text())["pretrained_cfg"]
    recipe = preset.preprocessing
    assert (recipe.image_size, recipe.resize, recipe.interpolation) == (224, "crop", pretrained_cfg["interpolation"])
    assert recipe.crop_fraction == pretrained_cfg["crop_pct"]
    np.testing.assert_allclose(recipe.mean, 255 * np.array(pretrained_cfg["mean"]), rtol=1e-6)


def test_timm_weights_and_places_must_find_each_other(tmp_path: Path) -> None:
    directory = timm_directory(tmp_path / "timm", "mobilenetv3_small_050")
    weights = load_file(directory / "model.safetensors")
    save_file(weights | {"adapter.weight": np.ones((3, 3), np.float32)}, directory / "model.safetensors")
    with pytest.raises(ValueError, match=r"does not fit the network: no place for adapter\.weight\."):
        load(directory, image_size=SIZE)
    weights.pop("blocks.1.0.bn2.bias")
    save_file(weights, directory / "model.safetensors")
    with pytest.raises(ValueError, match=r"blocks\.1\.0\.bn2\.bias"):
        load(directory, image_size=SIZE)


def test_label_names_come_along(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], tuple[str, ...]]] = [
        ({}, ("0", "1")),
        ({"label_names": ["cat", "dog"]}, ("cat", "dog")),
        ({"pretrained_cfg": {"label_names": ["cat", "dog"]}}, ("cat", "dog")),
        ({"id2label": {"1": "dog", "0": "cat"}}, ("cat", "dog")),
    ]
    for config, expected in cases:
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert hub_labels(tmp_path, 2) == expected
    assert hub_labels(tmp_path, 1) == ("cat",)
    (tmp_path / "config.json").write_text(json.dumps({"label_names": ["cat"]}))
    with pytest.raises(ValueError, match="names 1 classes for a head of 2"):
        hub_labels(tmp_path, 2)


@pytest.mark.parametrize(
    ("architecture", "message"), [("densenet121", "pads other than timm's"), ("maxvit_tiny", "no converter")]
)
def test_timm_networks_that_keras_hub_does_not_have(architecture: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": architecture, "num_classes": 3}))
    save_file({"w": np.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=message):
        load(tmp_path)
