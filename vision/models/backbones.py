"""Pretrained classifiers of every family, brought to one form: trunk, head, labels, preprocessing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras

from shared.pretrained import Source
from shared.torch_state import read_torch_state
from vision.models.efficientnet_lite import efficientnet_lite, load_torch_weights
from vision.preprocessing import Preprocessing

_NUM_IMAGENET_CLASSES = 1000


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


def build_trunk(architecture: dict[str, Any], image_size: int) -> keras.Model:
    """The trunk that `architecture` describes, with random weights.

    Raises:
        ValueError: for a family that is not known.
    """
    if architecture["family"] == "efficientnet_lite":
        return efficientnet_lite(architecture["variant"], image_size)
    raise ValueError(f"Architecture family {architecture['family']!r} is not known to this version.")


def load_pretrained_classifier(source: Source, image_size: int | None = None) -> PretrainedClassifier:
    """The classifier that a resolved reference stands for; `image_size` where another than its own is wanted.

    Raises:
        ValueError: where the files hold no image classifier that is known here.
    """
    if source.record is not None and source.record["architecture"]["family"] == "efficientnet_lite":
        return _efficientnet_lite(source, image_size)
    raise ValueError(f"{source.ref} ({source.layout}) is no image classifier that is known here.")


def _efficientnet_lite(source: Source, image_size: int | None) -> PretrainedClassifier:
    from vision.models.classifier import pooled_head

    record, directory = source.record, source.directory
    assert record is not None
    assert directory is not None
    preprocessing = Preprocessing.from_dict(record["preprocessing"])
    trunk = build_trunk(record["architecture"], image_size or preprocessing.image_size)
    head = pooled_head(trunk.output_shape[-1], _NUM_IMAGENET_CLASSES, dropout=0.0)
    load_torch_weights(trunk, head, read_torch_state(directory / record["package"]["file"]))
    return PretrainedClassifier(
        trunk=trunk,
        head=head,
        head_labels=imagenet_labels(),
        preprocessing=preprocessing,
        architecture=dict(record["architecture"]),
        licence=record["licence"],
        source=record["source"],
    )


def imagenet_labels() -> tuple[str, ...]:
    """The 1,000 class names of ImageNet-1k (ILSVRC 2012) in the usual order, as keras-hub lists them.

    Where two classes share a name ("crane", "maillot"), the WordNet id is added to the second.
    """
    from keras_hub.src.utils.imagenet.imagenet_utils import IMAGENET_NAMES

    names: list[str] = []
    for number in range(_NUM_IMAGENET_CLASSES):
        wordnet_id, name = IMAGENET_NAMES[number]
        names.append(f"{name} ({wordnet_id})" if name in names else name)
    return tuple(names)
