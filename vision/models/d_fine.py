"""keras-hub's D-FINE as a detector: its network and weights, with loss and answers around it.

Peng et al. 2024 (arXiv:2410.13842). keras-hub 0.32's own loss is not used: it takes each image's objects from the first
image of a batch (`compute_vfl_loss` and `compute_box_losses` look numbers within an image up among the objects of all),
its matching goes through all pairs of queries one by one, and its denoising queries are made from labels that are
fixed when the network is built. `vision.models.set_loss` trains it instead, without denoising.

Shapes: B images, H and W size of the frame, Q queries, K classes, N objects.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf
from keras import layers

from shared.pretrained import Source, read_json, require_safe_config
from shared.runtime import current_runtime, seeded
from vision.frame import Frame
from vision.models.hub import backbone_recipe, hub_normalisation
from vision.models.normalization import fuse_normalization
from vision.models.set_loss import SetAnswers, as_centres, as_edges, bin_values, set_loss
from vision.models.suppression import best_detections

if TYPE_CHECKING:
    from vision.detection import ObjectDetectorConfig

FAMILY = "keras_hub_d_fine"


@dataclass(frozen=True)
class DFinePreset:
    """A D-FINE as a directory of keras-hub holds it; its head is a part of the backbone."""

    backbone: keras.Model
    architecture: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    labels: tuple[str, ...]
    licence: str
    source: str


def is_d_fine(source: Source) -> bool:
    """Whether a resolved reference is a directory of keras-hub's D-FINE."""
    if source.layout != "keras_hub" or source.directory is None:
        return False
    return str(read_json(source.directory / "config.json").get("registered_name")).endswith("DFineBackbone")


def load_d_fine(source: Source) -> DFinePreset:
    """The D-FINE in a directory of keras-hub.

    Raises:
        ValueError: for a configuration that reaches beyond keras-hub, or missing weights.
    """
    import keras_hub

    directory = source.directory
    assert directory is not None
    for name in ("config.json", "task.json", "preprocessor.json", "image_converter.json"):
        if (directory / name).exists():
            require_safe_config(read_json(directory / name), directory / name)
    # keras-hub would give random weights.
    if not any(directory.glob("model*.weights.*")):
        raise ValueError(f"{directory} describes a D-FINE, but model.weights.h5 is missing.")
    with contextlib.redirect_stdout(io.StringIO()):
        backbone = keras_hub.models.Backbone.from_preset(str(directory))
    mean, std = hub_normalisation(directory)
    return DFinePreset(
        backbone=backbone,
        architecture={"family": FAMILY, "backbone": backbone_recipe(backbone)},
        mean=mean,
        std=std,
        labels=tuple(map(str, range(backbone.num_labels))),
        licence=source.record["licence"] if source.record else "not stated",
        source=source.ref,
    )


@dataclass(frozen=True)
class DFineNetwork:
    """`model` takes normalised images (B, H, W, 3) and gives the answers of each decoder layer."""

    model: keras.Model
    architecture: dict[str, Any]
    frame: Frame
    normalisation: keras.layers.Layer

    @property
    def trunk(self) -> keras.Model:
        """The part that gives feature maps, before encoder and decoder."""
        trunk: keras.Model = self.model.backbone
        return trunk

    def loss(self, batch: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Mean loss of a batch: `images` uint8, `boxes` (B, N, 4), `classes` (B, N), -1 for none, `crowd` (B, N)."""
        images = tf.ensure_shape(batch["images"], (None, *self.frame.shape, 3))
        found = self.model(self.normalisation(tf.cast(images, tf.float32)), training=True)
        boxes = tf.ensure_shape(batch["boxes"], (None, None, 4)) / self._sides
        return set_loss(self._answers(found), as_centres(boxes), batch["classes"], batch["crowd"])

    def answers(self, images: tf.Tensor, config: ObjectDetectorConfig) -> tf.Tensor:
        """Images (B, H, W, 3), any numeric type -> (B, M, 6): xyxy in pixels of the frame, score, class number.

        Queries are trained to find an object each, so nothing is suppressed.
        """
        found = self.model(self.normalisation(tf.cast(images, tf.float32)), training=False)
        boxes = as_edges(tf.cast(found["intermediate_reference_points"][:, -1], tf.float32)) * self._sides
        scores = tf.sigmoid(tf.cast(found["intermediate_logits"][:, -1], tf.float32))
        return best_detections(boxes, scores, iou=1.0, max_detections=config.max_detections)

    def _answers(self, found: Mapping[str, tf.Tensor]) -> SetAnswers:
        found = {name: tf.cast(value, tf.float32) for name, value in found.items()}
        decoder = self.model.decoder
        corners = found["intermediate_predicted_corners"][:, 1:]
        shape = tf.shape(corners)
        scale = tf.cast(decoder.reg_scale[0], tf.float32)
        return SetAnswers(
            logits=tf.concat([found["enc_topk_logits"][:, None], found["intermediate_logits"]], axis=1),
            boxes=tf.concat([found["enc_topk_bboxes"][:, None], found["intermediate_reference_points"]], axis=1),
            corners=tf.reshape(corners, tf.concat([shape[:3], [4, decoder.max_num_bins + 1]], axis=0)),
            reference=found["initial_reference_points"][:, 0],
            bins=bin_values(decoder.max_num_bins, tf.cast(decoder.upsampling_factor[0], tf.float32), scale),
            scale=scale,
        )

    @property
    def _sides(self) -> tf.Tensor:
        height, width = self.frame.shape
        return tf.constant([width, height] * 2, tf.float32)


def pretrained_d_fine(
    preset: DFinePreset, config: ObjectDetectorConfig, num_classes: int, *, keep_head: bool
) -> DFineNetwork:
    """The preset for images of the config's frame; its head is kept, or is new.

    Raises:
        ValueError: for a frame with fewer cells than the network has queries.
    """
    strides, queries = preset.backbone.feat_strides, preset.backbone.num_queries
    frame = Frame(
        height=config.image_height,
        width=config.image_width,
        multiple=max(strides),
        mean=preset.mean,
        std=preset.std,
    )
    cells = sum((frame.shape[0] // stride) * (frame.shape[1] // stride) for stride in strides)
    if cells < queries:
        raise ValueError(
            f"A frame of {config.image_height} x {config.image_width} pixels has {cells} cells, fewer than the "
            f"{queries} queries of {preset.source}. Enlarge `image_height` and `image_width`."
        )
    network = rebuilt_d_fine(preset.architecture, frame, config, num_classes)
    new = set() if keep_head else {id(variable) for variable in _head_variables(network.model)}
    for origin, place in zip(preset.backbone.weights, network.model.weights, strict=True):
        if id(place) not in new:
            place.assign(origin)
    return network


def _head_variables(backbone: keras.Model) -> list[keras.Variable]:
    """The variables whose shape is that of the classes."""
    parts = [backbone.enc_score_head, *backbone.decoder.class_embed]
    if backbone.denoising_class_embed is not None:
        parts.append(backbone.denoising_class_embed)
    return [variable for part in parts for variable in part.variables]


def rebuilt_d_fine(
    architecture: Mapping[str, Any], frame: Frame, config: ObjectDetectorConfig, num_classes: int
) -> DFineNetwork:
    """The network that `architecture` describes, with weights drawn from `config.seed`."""
    std, mean = frame.std, frame.mean
    with current_runtime().scope(), seeded(config.seed):
        backbone = _backbone(architecture["backbone"], frame, num_classes)
        # In float32: 8-bit values would lose their last bit in bfloat16.
        normalisation = layers.Rescaling(
            [1 / s for s in std], [-m / s for m, s in zip(mean, std, strict=True)], dtype="float32"
        )
    if backbone.denoising_class_embed is not None:
        backbone.denoising_class_embed.trainable = False  # has no part in the loss
    return DFineNetwork(backbone, dict(architecture), frame, normalisation)


def _backbone(recipe: Mapping[str, Any], frame: Frame, num_classes: int) -> keras.Model:
    import keras_hub

    require_safe_config(recipe, "The saved architecture")
    kind = keras.saving.get_registered_object(recipe.get("registered_name"))
    if not (isinstance(kind, type) and issubclass(kind, keras_hub.models.DFineBackbone)):
        raise ValueError(f"{recipe.get('registered_name')!r} is no D-FINE of keras-hub.")
    config = copy.deepcopy(json.loads(json.dumps(recipe)))
    config["config"] |= {
        "image_shape": [*frame.shape, 3],
        "anchor_image_size": list(frame.shape),
        "num_labels": num_classes,
        "labels": None,
    }
    config["config"]["backbone"]["config"]["image_shape"] = [*frame.shape, 3]
    return fuse_normalization(keras.saving.deserialize_keras_object(config, safe_mode=True))
