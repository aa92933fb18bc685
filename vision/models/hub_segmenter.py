"""keras-hub's SegFormer and DeepLabV3(+) as segmenters: network, weights and normalisation as a directory has them.

Xie et al. 2021 (arXiv:2105.15203), Chen et al. 2017 and 2018 (arXiv:1706.05587, arXiv:1802.02611).

Shapes: B images, H and W size of the frame, K classes.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
from keras import layers

from shared.pretrained import Source, read_json, require_safe_config
from vision.frame import Frame
from vision.models.hub import backbone_recipe, hub_normalisation
from vision.models.normalization import fuse_normalization
from vision.models.pretrained import move_weights

if TYPE_CHECKING:
    from vision.segmentation import ImageSegmenterConfig

FAMILY = "keras_hub_segmenter"
# Backbones, the segmenters of keras-hub that are built on them, and the layer of these that is the head.
_KINDS = {
    "SegFormerBackbone": ("SegFormerImageSegmenter", "output_segmentation_head"),
    "DeepLabV3Backbone": ("DeepLabV3ImageSegmenter", "output_conv"),
}
# The largest stride of their feature maps.
_MULTIPLE = 32


@dataclass(frozen=True)
class HubSegmenterPreset:
    """A segmenter as a directory of keras-hub holds it; `task` has a head, or is None."""

    backbone: keras.Model
    task: keras.Model | None
    architecture: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    labels: tuple[str, ...] | None
    licence: str
    source: str

    def frame(self, config: ImageSegmenterConfig) -> Frame:
        """The frame in which its network sees images.

        Raises:
            ValueError: for a SegFormer and a frame that is not square: keras-hub 0.32 takes the sides of a map for the
                root of its size (`SegFormerMultiheadAttention`).
        """
        frame = Frame(
            height=config.image_height,
            width=config.image_width,
            multiple=_MULTIPLE,
            mean=self.mean,
            std=self.std,
            stretch=config.stretch,
        )
        if _kind(self.architecture["backbone"]) == "SegFormerBackbone" and frame.shape[0] != frame.shape[1]:
            raise ValueError(
                f"{self.source} is a SegFormer, which keras-hub runs on square images only; the frame has "
                f"{frame.shape[0]} x {frame.shape[1]} pixels. Give equal `image_height` and `image_width`: other "
                "images are fitted into it, or seen in windows."
            )
        return frame


def is_hub_segmenter(source: Source) -> bool:
    """Whether a resolved reference is a directory of keras-hub's SegFormer or DeepLabV3."""
    if source.layout != "keras_hub" or source.directory is None:
        return False
    return _kind(read_json(source.directory / "config.json")) in _KINDS


def _kind(config: Mapping[str, Any]) -> str:
    return str(config.get("registered_name")).rpartition(">")[2]


def load_hub_segmenter(source: Source) -> HubSegmenterPreset:
    """The segmenter in a directory of keras-hub.

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
        if _has_head(directory):
            task = keras_hub.models.ImageSegmenter.from_preset(str(directory))
        backbone = task.backbone if task is not None else keras_hub.models.Backbone.from_preset(str(directory))
    mean, std = hub_normalisation(directory)
    return HubSegmenterPreset(
        backbone=backbone,
        task=task,
        architecture={"family": FAMILY, "backbone": backbone_recipe(backbone)},
        mean=mean,
        std=std,
        labels=None if task is None else tuple(map(str, range(task.num_classes))),
        licence=source.record["licence"] if source.record else "not stated",
        source=source.ref,
    )


def _has_head(directory: Path) -> bool:
    task = directory / "task.json"
    has_head = task.exists() and str(read_json(task).get("class_name")).endswith("ImageSegmenter")
    if has_head and not (directory / "task.weights.h5").exists():
        # keras-hub would give a random head.
        raise ValueError(f"{directory} describes a head in task.json, but task.weights.h5 is missing.")
    return has_head


def built_hub_segmenter(
    architecture: Mapping[str, Any], frame: Frame, num_classes: int
) -> tuple[keras.Model, keras.Model]:
    """Network and trunk: images (B, H, W, 3), 0..255 -> logits (B, H, W, K), with new weights.

    The trunk is what gives the feature maps. Layers of it that no map depends on are never trained.
    """
    import keras_hub

    recipe = architecture["backbone"]
    backbone = _backbone(recipe, frame)
    task = getattr(keras_hub.models, _KINDS[_kind(recipe)][0])(backbone=backbone, num_classes=num_classes)
    trunk = _trunk(backbone)
    used = {id(layer) for layer in trunk.layers}
    for layer in backbone.image_encoder.layers:
        layer.trainable = id(layer) in used
    images = keras.Input((*frame.shape, 3), name="images")
    # In float32: 8-bit values would lose their last bit in bfloat16.
    normalise = layers.Rescaling(
        [1 / s for s in frame.std], [-m / s for m, s in zip(frame.mean, frame.std, strict=True)], dtype="float32"
    )
    return keras.Model(images, task(normalise(images)), name="image_segmenter"), trunk


def _trunk(backbone: keras.Model) -> keras.Model:
    """The part of the image encoder whose feature maps the segmenter looks at."""
    encoder = backbone.image_encoder
    maps = encoder.pyramid_outputs
    if hasattr(backbone, "spatial_pyramid_pooling_key"):
        keys = (backbone.low_level_feature_key, backbone.spatial_pyramid_pooling_key)
        maps = {key: maps[key] for key in keys if key}
    return keras.Model(encoder.inputs, maps, name="trunk")


def move_segmenter(preset: HubSegmenterPreset, model: keras.Model, *, keep_head: bool) -> None:
    """Give a network of `built_hub_segmenter` the weights of the preset, those of its head where it is kept."""
    task = next(layer for layer in model.layers if hasattr(layer, "backbone"))
    move_weights(preset.backbone, task.backbone)
    if keep_head:
        assert preset.task is not None
        head = _KINDS[_kind(preset.architecture["backbone"])][1]
        getattr(task, head).set_weights(getattr(preset.task, head).get_weights())


def _backbone(recipe: Mapping[str, Any], frame: Frame) -> keras.Model:
    require_safe_config(recipe, "The saved architecture")
    kind = keras.saving.get_registered_object(recipe.get("registered_name"))
    if not (isinstance(kind, type) and issubclass(kind, keras.Model) and _kind(recipe) in _KINDS):
        raise ValueError(f"{recipe.get('registered_name')!r} is no segmenter of keras-hub that is known here.")
    config = copy.deepcopy(json.loads(json.dumps(recipe)))
    shape = [*frame.shape, 3]
    if "image_shape" in config["config"]:
        config["config"]["image_shape"] = shape
    config["config"]["image_encoder"]["config"]["image_shape"] = shape
    return fuse_normalization(keras.saving.deserialize_keras_object(config, safe_mode=True))
