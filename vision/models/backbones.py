"""Pretrained classifiers of every family, brought to one form: trunk, head, labels, preprocessing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import keras

from shared.pretrained import Source
from shared.torch_state import read_torch_state
from vision.models.applications import application_weights, applications_trunk, load_application
from vision.models.efficientnet_lite import efficientnet_lite, load_torch_weights
from vision.models.hub import hub_labels, hub_licence, hub_trunk, load_hub_classifier
from vision.models.pretrained import (
    NUM_IMAGENET_CLASSES,
    PretrainedClassifier,
    class_labels,
    fits,
    imagenet_labels,
    move_weights,
)
from vision.models.residual import residual_network
from vision.preprocessing import Preprocessing
from vision.presets import PRESETS

__all__ = ["PretrainedClassifier", "build_trunk", "imagenet_labels", "load_pretrained_classifier"]

_logger = logging.getLogger(__name__)


def build_trunk(architecture: dict[str, Any], image_size: int) -> keras.Model:
    """The trunk that `architecture` describes, with random weights.

    Raises:
        ValueError: for a family that is not known.
    """
    family = architecture["family"]
    if family == "efficientnet_lite":
        return efficientnet_lite(architecture["variant"], image_size)
    if family == "keras_applications":
        return applications_trunk(architecture["name"], image_size)
    if family == "keras_hub":
        return hub_trunk(architecture["config"], image_size)
    if family == "residual":
        return residual_network(image_size, 3, width=architecture["width"], depth=architecture["depth"])
    raise ValueError(f"Architecture family {family!r} is not known to this version.")


def load_pretrained_classifier(source: Source, image_size: int | None = None) -> PretrainedClassifier:
    """The classifier that a resolved reference stands for; `image_size` where another than its own is wanted.

    Raises:
        FileNotFoundError: where weights have to be downloaded and cannot.
        ValueError: where the files hold no image classifier that is known here.
    """
    family = source.record["architecture"]["family"] if source.record else source.layout
    if family == "efficientnet_lite":
        return _efficientnet_lite(source, image_size)
    if family == "keras_applications":
        return _keras_application(source, image_size)
    if family in ("keras_hub", "timm", "hugging_face"):
        return _hub(source, image_size)
    if family == "triptych":
        return _saved_pipeline(source, image_size)
    raise ValueError(f"{source.ref} ({family}) is no image classifier that is known here.")


def _efficientnet_lite(source: Source, image_size: int | None) -> PretrainedClassifier:
    from vision.models.classifier import pooled_head

    record, directory = source.record, source.directory
    assert record is not None
    assert directory is not None
    preprocessing = Preprocessing.from_dict(record["preprocessing"])
    trunk = build_trunk(record["architecture"], image_size or preprocessing.image_size)
    head = pooled_head(trunk.output_shape[-1], NUM_IMAGENET_CLASSES, dropout=0.0)
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


def _keras_application(source: Source, image_size: int | None) -> PretrainedClassifier:
    record, weights = source.record, None
    if record is None:
        assert source.directory is not None
        name, weights = application_weights(source.directory, PRESETS)
        record = PRESETS[name]
    size = image_size or record["preprocessing"]["image_size"]
    trunk, head, preprocessing = load_application(record, weights=weights, image_size=size)
    return PretrainedClassifier(
        **_head_fields(source.ref, trunk, head, class_labels(NUM_IMAGENET_CLASSES)),
        trunk=trunk,
        preprocessing=preprocessing,
        architecture=dict(record["architecture"]),
        licence=record["licence"],
        source=record["source"] if weights is None else f"{record['source']}, from {weights.name}",
    )


def _hub(source: Source, image_size: int | None) -> PretrainedClassifier:
    directory: Path | None = source.directory
    assert directory is not None
    trunk, head, preprocessing, config = load_hub_classifier(directory, image_size)
    labels = None if head is None else hub_labels(directory, head.output_shape[-1])
    return PretrainedClassifier(
        **_head_fields(source.ref, trunk, head, labels),
        trunk=trunk,
        preprocessing=preprocessing,
        architecture={"family": "keras_hub", "config": config},
        licence=source.record["licence"] if source.record else hub_licence(directory),
        source=source.ref,
    )


def _saved_pipeline(source: Source, image_size: int | None) -> PretrainedClassifier:
    from vision.classification import ImageClassifier

    assert source.directory is not None
    saved = ImageClassifier.load(source.directory)
    network, labels = saved._network, saved.labels
    assert network is not None
    assert labels is not None
    if saved.config.multi_label or saved.config.channels != 3:
        kind = "multi-label" if saved.config.multi_label else "grey-scale"
        raise ValueError(f"{source.ref} is a {kind} pipeline. Continue with it by `ImageClassifier.load`, then `fit`.")
    architecture = {key: value for key, value in network.architecture.items() if key != "head"}
    trunk = build_trunk(architecture, image_size or saved.config.image_size)
    move_weights(network.trunk, trunk)
    preset = saved.provenance.get("preset", {})
    return PretrainedClassifier(
        **_head_fields(source.ref, trunk, network.head, tuple(map(str, labels))),
        trunk=trunk,
        preprocessing=network.preprocessing,
        architecture=architecture,
        licence=preset.get("licence", "not stated"),
        source=preset.get("source", source.ref),
    )


def _head_fields(
    ref: str, trunk: keras.Model, head: keras.Model | None, labels: tuple[str, ...] | None
) -> dict[str, Any]:
    if head is not None and not fits(head, trunk):
        _logger.warning(
            "%s: its head does not take the features of images of %d px and is left out.", ref, trunk.input_shape[1]
        )
        head = None
    return {"head": head, "head_labels": labels if head is not None else None}
