"""keras-hub's RetinaNet as a detector: its backbone, anchors and head, with loss and answers around them.

Lin et al. 2017 (arXiv:1708.02002). keras-hub's own task compiles losses that cannot be scored while it trains, and its
answers are not in pixels of the image; what it matches, encodes and decodes with is used as it is.

Shapes: B images, H and W size of the frame, A anchors, K classes, N objects.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf
from keras import layers

from shared.distribution import mean_over_batch
from shared.pretrained import Source, read_json, require_safe_config
from shared.runtime import current_runtime, seeded
from vision.frame import Frame
from vision.models.hub import backbone_recipe, hub_normalisation
from vision.models.normalization import fuse_normalization
from vision.models.pretrained import move_weights
from vision.models.suppression import best_detections

if TYPE_CHECKING:
    from vision.detection import ObjectDetectorConfig

FAMILY = "keras_hub_retinanet"
# Weight of positives and focus of the loss (section 5.1 of the paper), and where its box loss turns linear.
_ALPHA, _GAMMA, _DELTA = 0.25, 2.0, 1.0
# Share of anchors that hold an object at the start (section 4.1).
_PRIOR = 0.01
# What the label encoder calls anchors that neither train nor count.
_IGNORED = -2


@dataclass(frozen=True)
class RetinaNetPreset:
    """A RetinaNet as a directory of keras-hub holds it; `task` has a head, or is None."""

    backbone: keras.Model
    task: keras.Model | None
    architecture: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    labels: tuple[str, ...] | None
    licence: str
    source: str


def is_retinanet(source: Source) -> bool:
    """Whether a resolved reference is a directory of keras-hub's RetinaNet."""
    if source.layout != "keras_hub" or source.directory is None:
        return False
    name = str(read_json(source.directory / "config.json").get("registered_name"))
    return name.endswith("RetinaNetBackbone")


def load_retinanet(source: Source) -> RetinaNetPreset:
    """The RetinaNet in a directory of keras-hub.

    Raises:
        ValueError: for a configuration that reaches beyond keras-hub, or missing weights.
    """
    import keras_hub

    directory = source.directory
    assert directory is not None
    for name in ("config.json", "task.json", "preprocessor.json", "image_converter.json"):
        if (directory / name).exists():
            require_safe_config(read_json(directory / name), directory / name)
    task = None
    with contextlib.redirect_stdout(io.StringIO()):
        if (directory / "task.json").exists():
            _require_head(directory)
            task = keras_hub.models.ObjectDetector.from_preset(str(directory))
        backbone = task.backbone if task is not None else keras_hub.models.Backbone.from_preset(str(directory))
    mean, std = hub_normalisation(directory)
    anchors = _anchor_fields(task)
    architecture = {"family": FAMILY, "backbone": backbone_recipe(backbone), "anchors": anchors}
    return RetinaNetPreset(
        backbone=backbone,
        task=task,
        architecture=architecture,
        mean=mean,
        std=std,
        labels=None if task is None else tuple(map(str, range(task.num_classes))),
        licence=source.record["licence"] if source.record else "not stated",
        source=source.ref,
    )


def _require_head(directory: Path) -> None:
    if not (directory / "task.weights.h5").exists():
        # keras-hub would give a random head.
        raise ValueError(f"{directory} describes a head in task.json, but task.weights.h5 is missing.")


def _anchor_fields(task: keras.Model | None) -> dict[str, Any]:
    if task is None:
        return {"num_scales": 3, "aspect_ratios": [0.5, 1.0, 2.0], "anchor_size": 4.0}
    generator = task.anchor_generator
    return {
        "num_scales": int(generator.num_scales),
        "aspect_ratios": [float(ratio) for ratio in generator.aspect_ratios],
        "anchor_size": float(generator.anchor_size),
    }


@dataclass(frozen=True)
class RetinaNetNetwork:
    """`model` takes normalised images (B, H, W, 3) and gives box deltas and class logits of the anchors."""

    model: keras.Model
    trunk: keras.Model
    architecture: dict[str, Any]
    frame: Frame
    normalisation: keras.layers.Layer

    def loss(self, batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Focal loss of the classes plus Huber loss of the boxes, per matched anchor; a scalar.

        Args:
            batch: `images` uint8 (B, H, W, 3), `boxes` (B, N, 4), `classes` (B, N), -1 for none, `crowd` (B, N).
        """
        images = tf.ensure_shape(batch["images"], (None, *self.frame.shape, 3))
        prepared = self.normalisation(tf.cast(images, tf.float32))
        found = self.model(prepared, training=True)
        classes = tf.where(batch["crowd"], _IGNORED, batch["classes"])
        boxes, labels = self.model.label_encoder(
            prepared, tf.ensure_shape(batch["boxes"], (None, None, 4)), tf.cast(classes, tf.float32)
        )
        labels = tf.reshape(labels, (tf.shape(labels)[0], -1))
        matched = tf.cast(labels > -1, tf.float32)
        counted = tf.cast(tf.not_equal(labels, _IGNORED), tf.float32)
        logits = tf.cast(found["cls_logits"], tf.float32)
        targets = tf.one_hot(tf.cast(labels, tf.int32), logits.shape[-1])
        class_loss = tf.reduce_sum(_focal(logits, targets) * counted[..., None])
        distance = tf.abs(tf.cast(found["bbox_regression"], tf.float32) - boxes)
        huber = tf.where(distance < _DELTA, distance**2 / 2, _DELTA * (distance - _DELTA / 2))
        box_loss = tf.reduce_sum(huber * matched[..., None])
        return mean_over_batch(class_loss + box_loss, tf.reduce_sum(matched))

    def answers(self, images: tf.Tensor, config: ObjectDetectorConfig) -> tf.Tensor:
        """Images (B, H, W, 3), any numeric type -> (B, M, 6): xyxy in pixels of the frame, score, class number."""
        prepared = self.normalisation(tf.cast(images, tf.float32))
        found = self.model(prepared, training=False)
        anchors = tf.concat(list(self.model.anchor_generator(prepared).values()), axis=0)
        boxes = keras.utils.bounding_boxes.decode_deltas_to_boxes(
            anchors=anchors,
            boxes_delta=tf.cast(found["bbox_regression"], tf.float32),
            encoded_format="center_xywh",
            anchor_format="xyxy",
            box_format="xyxy",
            image_shape=(*self.frame.shape, 3),
        )
        scores = tf.sigmoid(tf.cast(found["cls_logits"], tf.float32))
        return best_detections(
            boxes, scores, iou=config.nms_iou, max_detections=config.max_detections, voting=config.box_voting
        )


def _focal(logits: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
    """Equation 5 of the paper, for each anchor and class."""
    scores = tf.sigmoid(logits)
    distance = targets * (1 - scores) + (1 - targets) * scores
    weight = targets * _ALPHA + (1 - targets) * (1 - _ALPHA)
    return weight * distance**_GAMMA * tf.nn.sigmoid_cross_entropy_with_logits(targets, logits)


def pretrained_retinanet(
    preset: RetinaNetPreset, config: ObjectDetectorConfig, num_classes: int, *, keep_head: bool
) -> RetinaNetNetwork:
    """The preset for images of the config's frame; its head is kept, or is new."""
    frame = Frame(
        height=config.image_height,
        width=config.image_width,
        multiple=2 ** int(preset.backbone.max_level),
        mean=preset.mean,
        std=preset.std,
    )
    network = rebuilt_retinanet(preset.architecture, frame, config, num_classes)
    move_weights(preset.backbone, network.trunk)
    if keep_head:
        assert preset.task is not None
        for name in ("box_head", "classification_head"):
            getattr(network.model, name).set_weights(getattr(preset.task, name).get_weights())
    return network


def rebuilt_retinanet(
    architecture: Mapping[str, Any], frame: Frame, config: ObjectDetectorConfig, num_classes: int
) -> RetinaNetNetwork:
    """The network that `architecture` describes, with weights drawn from `config.seed`."""
    import keras_hub

    std, mean = frame.std, frame.mean
    with current_runtime().scope(), seeded(config.seed):
        backbone = _backbone(architecture["backbone"], frame)
        generator = keras_hub.layers.AnchorGenerator(
            "xyxy", min_level=backbone.min_level, max_level=backbone.max_level, **architecture["anchors"]
        )
        task = keras_hub.models.RetinaNetObjectDetector(
            backbone=backbone, num_classes=num_classes, bounding_box_format="xyxy", anchor_generator=generator
        )
        # keras-hub 0.32 gives the prior to the boxes, which begin far from their anchors, and none to the classes.
        task.box_head.prediction_layer.bias.assign(tf.zeros_like(task.box_head.prediction_layer.bias))
        bias = task.classification_head.prediction_layer.bias
        bias.assign(tf.fill(bias.shape, -math.log((1 - _PRIOR) / _PRIOR)))
        # In float32: 8-bit values would lose their last bit in bfloat16.
        normalisation = layers.Rescaling(
            [1 / s for s in std], [-m / s for m, s in zip(mean, std, strict=True)], dtype="float32"
        )
    return RetinaNetNetwork(task, backbone, dict(architecture), frame, normalisation)


def _backbone(recipe: Mapping[str, Any], frame: Frame) -> keras.Model:
    import keras_hub

    require_safe_config(recipe, "The saved architecture")
    kind = keras.saving.get_registered_object(recipe.get("registered_name"))
    if not (isinstance(kind, type) and issubclass(kind, keras_hub.models.RetinaNetBackbone)):
        raise ValueError(f"{recipe.get('registered_name')!r} is no RetinaNet of keras-hub.")
    config = copy.deepcopy(json.loads(json.dumps(recipe)))
    shape: Sequence[int] = [*frame.shape, 3]
    config["config"]["image_shape"] = list(shape)
    config["config"]["image_encoder"]["config"]["image_shape"] = list(shape)
    return fuse_normalization(keras.saving.deserialize_keras_object(config, safe_mode=True))
