"""Classifiers of `keras.applications`, from a local weights file or through Keras's own download.

Their own normalisation is left out of the trunk and told in the preset's `preprocessing`, so that it is done in one
place for all.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from vision.models.normalization import fuse_normalization
from vision.models.pretrained import cut_head, move_weights
from vision.preprocessing import Preprocessing

# Standard deviation of ImageNet's colours, in values 0..1.
_DEVIATION = np.array([0.229, 0.224, 0.225])


def applications_trunk(name: str, image_size: int) -> keras.Model:
    """Trunk (B, S, S, 3) -> (B, h, w, D) of the network that `keras.applications` calls `name`, random weights.

    Raises:
        ValueError: for a name that is not there.
    """
    # With a head that is cut off again, because without one ConvNeXt gets a normalisation that belongs to the head.
    whole = _built(name, include_top=True, weights=None, image_size=image_size)
    return _trunk(whole, _pooling(whole).input)


def load_application(
    record: Mapping[str, Any], *, weights: Path | None, image_size: int
) -> tuple[keras.Model, keras.Model | None, Preprocessing]:
    """Trunk for images of `image_size`, head (None for a file without it) and preprocessing of a record's network.

    Without a file in `weights` Keras downloads it, or takes it from its cache.

    Raises:
        FileNotFoundError: where the download fails.
        ValueError: where the file's weights are not those of the network.
    """
    name, has_head = record["architecture"]["name"], weights is None or not _is_headless(weights)
    own_size = record["preprocessing"]["image_size"]
    if not has_head and name.startswith("ConvNeXt"):
        raise ValueError(f"{weights} lacks the head, and with it a part of {name}. Give the file {record['file']}.")
    try:
        whole = _built(name, include_top=has_head, weights=weights or "imagenet", image_size=own_size)
    except Exception as error:
        if weights is not None:
            raise ValueError(f"{weights} does not hold the weights of {name}: {error}") from error
        raise FileNotFoundError(
            f"The weights of {name} could not be downloaded ({error}). Put the file {record['file']} into a directory "
            "and give that directory."
        ) from error
    features = _pooling(whole).input if has_head else whole.output
    trunk = _trunk(whole, features)
    if image_size != own_size:
        own, trunk = trunk, applications_trunk(name, image_size)
        move_weights(own, trunk)
    if record.get("channels") == "bgr":
        _take_rgb(trunk)
    preprocessing = Preprocessing.from_dict(record["preprocessing"] | _own_normalisation(whole))
    return trunk, cut_head(whole, features) if has_head else None, preprocessing


def application_weights(directory: Path, presets: Mapping[str, Mapping[str, Any]]) -> tuple[str, Path]:
    """Preset name and weights file of a directory that holds one file of `keras.applications`.

    The file has the name under which Keras downloads it, or that of the network: `ResNet50.weights.h5`.

    Raises:
        ValueError: where no file, or more than one, has such a name.
    """
    names = {
        stem: name
        for name, record in presets.items()
        if record["architecture"]["family"] == "keras_applications"
        for stem in (Path(record["file"]).stem, record["architecture"]["name"])
    }
    files = sorted(directory.glob("*.h5"))
    found = [(names[_stem(file)], file) for file in files if _stem(file) in names]
    if len(found) != 1:
        raise ValueError(
            f"{directory} must hold one weights file of keras.applications, named as Keras names its download or "
            f"as the network (ResNet50.weights.h5); it holds {', '.join(file.name for file in files)}."
        )
    return found[0]


def _stem(file: Path) -> str:
    stem = file.name.removesuffix(".h5").removesuffix(".weights")
    for ending in ("_no_top_v2", "_no_top", "_notop", "-notop"):
        stem = stem.removesuffix(ending)
    return stem


def _is_headless(file: Path) -> bool:
    return "notop" in file.name.replace("_", "").replace("-", "")


def _built(name: str, *, include_top: bool, weights: Any, image_size: int) -> keras.Model:
    network = getattr(keras.applications, name, None)
    if not inspect.isfunction(network):
        raise ValueError(f"keras.applications has no network {name!r}.")
    options: dict[str, Any] = {"classifier_activation": None} if include_top else {}
    if "include_preprocessing" in inspect.signature(network).parameters:
        options["include_preprocessing"] = False
    shape = (image_size, image_size, 3)
    return fuse_normalization(network(include_top=include_top, weights=weights, input_shape=shape, **options))


def _trunk(whole: keras.Model, features: keras.KerasTensor) -> keras.Model:
    """The part up to `features`, from behind the normalisation that EfficientNet B0 to B7 cannot be built without."""
    begin = whole.get_layer("stem_conv_pad").input if _normalisation_layer(whole) else whole.input
    return keras.Model(begin, features, name=whole.name)


def _normalisation_layer(whole: keras.Model) -> keras.layers.Layer | None:
    return next((layer for layer in whole.layers if isinstance(layer, layers.Normalization)), None)


def _own_normalisation(whole: keras.Model) -> dict[str, list[float]]:
    """Mean and deviation, for values 0..255, that are among the weights of EfficientNet B0 to B7.

    With its ImageNet weights Keras divides by the square root of the deviation once more, because the variance in the
    file is in truth the deviation (keras/applications/efficientnet.py).
    """
    layer = _normalisation_layer(whole)
    if layer is None:
        return {}
    mean, variance = (np.asarray(v, np.float64).reshape(3) for v in (layer.mean, layer.variance))
    return {"mean": (255 * mean).tolist(), "std": (255 * np.sqrt(variance * _DEVIATION)).tolist()}


def _pooling(classifier: keras.Model) -> keras.layers.Layer:
    """The layer with which the head begins: the last global pooling, or VGG's flattening."""
    for kind in (layers.GlobalAveragePooling2D, layers.Flatten):
        found = [layer for layer in classifier.layers if isinstance(layer, kind)]
        if found:
            return found[-1]
    raise AssertionError(classifier.name)


def _take_rgb(trunk: keras.Model) -> None:
    """Turn the first convolution of a network trained on BGR images round, so that it takes RGB like all others."""
    first = next(layer for layer in trunk.layers if isinstance(layer, layers.Conv2D))
    first.kernel.assign(first.kernel.numpy()[:, :, ::-1])
