"""The form that pretrained classifiers of every family are brought to, and how a network is cut in two.

Shapes: B images, S image size, D features, K labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

from vision.preprocessing import Preprocessing

NUM_IMAGENET_CLASSES = 1000


@dataclass(frozen=True)
class PretrainedClassifier:
    """A pretrained network in two parts, with what belongs to it.

    `trunk` takes normalised images (B, S, S, 3) and gives features (B, h, w, D); `head` gives logits (B, K), or is None
    where the preset has none. `architecture` is a JSON-able recipe from which `build_trunk` makes the trunk again.
    """

    trunk: keras.Model
    head: keras.Model | None
    head_labels: tuple[str, ...] | None
    preprocessing: Preprocessing
    architecture: dict[str, Any]
    licence: str
    source: str


def imagenet_labels() -> tuple[str, ...]:
    """The 1,000 class names of ImageNet-1k (ILSVRC 2012) in the usual order, as keras-hub lists them.

    Where two classes share a name ("crane", "maillot"), the WordNet id is added to the second.
    """
    from keras_hub.src.utils.imagenet.imagenet_utils import IMAGENET_NAMES

    names: list[str] = []
    for number in range(NUM_IMAGENET_CLASSES):
        wordnet_id, name = IMAGENET_NAMES[number]
        names.append(f"{name} ({wordnet_id})" if name in names else name)
    return tuple(names)


def class_labels(num_classes: int, names: Sequence[str] | None = None) -> tuple[str, ...]:
    """`names` where a checkpoint has them; else ImageNet's for 1,000 classes, else "0", "1", ...

    A name that repeats gets its number: "crane (517)".
    """
    if names:
        return _distinct(names)
    return imagenet_labels() if num_classes == NUM_IMAGENET_CLASSES else tuple(map(str, range(num_classes)))


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    taken, distinct = set(names), []
    for number, name in enumerate(names):
        if name in distinct:
            name = f"{name} ({number})"
            while name in taken:
                name += "'"
            taken.add(name)
        distinct.append(name)
    return tuple(distinct)


def cut_head(classifier: keras.Model, features: keras.KerasTensor) -> keras.Model:
    """What follows the symbolic `features` in a classifier, with its weights: (B, h, w, D) -> logits (B, K).

    A last softmax or sigmoid is left out, the result is float32 in any precision, and the size of the feature map is
    left open (see `fits`). Tokens (B, N, D) are taken as a map of height 1, as `as_feature_map` gives them.
    """
    part = keras.Model(features, classifier.output)
    config = part.get_config()
    _in_float32(config)
    _without_activation(config)
    is_map = len(features.shape) == 4
    if is_map:
        config["layers"][0]["config"]["batch_shape"] = [None, None, None, features.shape[-1]]
    head = keras.Model.from_config(config)
    head.set_weights(part.get_weights())
    if is_map:
        return head
    tokens = keras.Input((1, *features.shape[1:]))
    return keras.Model(tokens, head(layers.Reshape(features.shape[1:])(tokens)), name="head")


def _in_float32(config: Any) -> None:
    if isinstance(config, dict):
        if config.get("dtype") is not None:
            config["dtype"] = "float32"
        config = list(config.values())
    if isinstance(config, list | tuple):
        for part in config:
            _in_float32(part)


def _without_activation(config: dict[str, Any]) -> None:
    """Make the last layer linear, in a network within the network too."""
    last = config["layers"][-1]["config"]
    if "layers" in last:
        _without_activation(last)
    elif "activation" in last:
        last["activation"] = "linear"


def move_weights(origin: keras.Model, target: keras.Model) -> None:
    """Give `target`, the same network for another image size, the weights of `origin`.

    Raises:
        ValueError: where the weights depend on the image size.
    """
    origin_weights, target_weights = (_weights_in_order(model) for model in (origin, target))
    if [tuple(w.shape) for w in origin_weights] != [tuple(w.shape) for w in target_weights]:
        own, wanted = origin.input_shape[1], target.input_shape[1]
        raise ValueError(
            f"The weights of {origin.name} belong to images of {own} px, and there is no place for them in the network "
            f"for {wanted} px. Leave `image_size` out."
        )
    for source, place in zip(origin_weights, target_weights, strict=True):
        place.assign(source)


def _weights_in_order(model: keras.Model) -> list[keras.Variable]:
    return [weight for weight in model.weights if "seed_generator" not in weight.path]


def as_feature_map(trunk: keras.Model) -> keras.Model:
    """A trunk that gives (B, h, w, D); one that gives tokens (B, N, D) gets h = 1."""
    if len(trunk.output.shape) == 4:
        return trunk
    feature_map = layers.Reshape((1, *trunk.output.shape[1:]), name="feature_map")(trunk.output)
    return keras.Model(trunk.input, feature_map, name=trunk.name)


def fits(head: keras.Model, trunk: keras.Model) -> bool:
    """Whether the head can follow this trunk: one that flattens, like VGG's, belongs to one size of feature map."""
    try:
        head(np.zeros((1, *trunk.output_shape[1:]), np.float32))
    except ValueError:
        return False
    return True
