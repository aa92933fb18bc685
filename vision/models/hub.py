"""Image classifiers in directories of KerasHub, timm and Hugging Face, read and converted by keras-hub.

What keras-hub leaves unchecked is checked here: configurations name networks of keras-hub only, and every tensor of a
converted checkpoint is in the network, and the other way round.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import io
import json
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from safetensors import SafetensorError

from shared.pretrained import nested_dictionaries, read_json, read_safetensors, require_safe_config
from vision.models.normalization import fuse_normalization
from vision.models.pretrained import as_feature_map, class_labels, cut_head, move_weights
from vision.preprocessing import Preprocessing

_CONFIGS = ("config.json", "task.json", "preprocessor.json", "image_converter.json")


def hub_trunk(config: Mapping[str, Any], image_size: int) -> keras.Model:
    """Trunk (B, S, S, 3) -> (B, h, w, D) of a keras-hub backbone's serialised configuration, with random weights.

    Raises:
        ValueError: where it is not the configuration of a keras-hub backbone.
    """
    return as_feature_map(_backbone(config, image_size))


def load_hub_classifier(
    directory: Path, image_size: int | None
) -> tuple[keras.Model, keras.Model | None, Preprocessing, dict[str, Any]]:
    """Trunk, head (None where there is none), preprocessing and the recipe of the trunk, from a directory.

    Raises:
        ValueError: where keras-hub cannot convert it, or a weight and its place do not find each other.
    """
    task, backbone = _read(directory)
    if [len(tensor.shape) for tensor in backbone.inputs] != [4] or len(backbone.outputs) != 1:
        raise ValueError(f"{directory} holds {backbone.name}, which is no network from images to features.")
    preprocessing = _preprocessing(directory, task, backbone)
    config = backbone_recipe(backbone)
    trunk = _backbone(config, image_size or preprocessing.image_size)
    move_weights(backbone, trunk)
    head = None if task is None else cut_head(task, _features(task))
    return as_feature_map(trunk), head, preprocessing, config


def hub_labels(directory: Path, num_classes: int) -> tuple[str, ...]:
    """Class names as the directory's config.json has them: timm's `label_names`, Hugging Face's `id2label`."""
    config = read_json(directory / "config.json")
    names = config.get("label_names") or config.get("pretrained_cfg", {}).get("label_names")
    if "id2label" in config:
        names = _names_by_number(directory, config["id2label"], num_classes)
    if names is not None and len(names) != num_classes:
        raise ValueError(f"{directory} names {len(names)} classes for a head of {num_classes}.")
    return class_labels(num_classes, names)


def _names_by_number(directory: Path, names: Mapping[str, str], num_classes: int) -> list[str]:
    missing = [number for number in range(num_classes) if str(number) not in names]
    if missing:
        raise ValueError(
            f"id2label in {directory / 'config.json'} must name {num_classes} classes; there is none for {missing[0]}. "
            "Complete it, or take it out to have the numbers as names."
        )
    return [str(names[str(number)]) for number in range(num_classes)]


def hub_licence(directory: Path) -> str:
    """The licence that a timm configuration states."""
    return str(read_json(directory / "config.json").get("pretrained_cfg", {}).get("license", "not stated"))


# Reading.


def _read(directory: Path) -> tuple[keras.Model | None, keras.Model]:
    """The classifier, where the directory holds one, and its backbone."""
    import keras_hub

    converted = "registered_name" not in read_json(directory / "config.json")
    for name in _CONFIGS:
        if (directory / name).exists():
            require_safe_config(read_json(directory / name), directory / name)
    kind = keras_hub.models.ImageClassifier if _has_head(directory) else keras_hub.models.Backbone
    try:
        # The converters print what they do.
        with _readable_by_keras_hub(directory) as place, contextlib.redirect_stdout(io.StringIO()):
            model = kind.from_preset(str(place))
    except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        reason = textwrap.shorten(str(error), 300)
        raise ValueError(f"keras-hub cannot convert {directory}: {reason}") from error
    if converted:
        _require_all_placed(directory, model)
    return (model, model.backbone) if kind is keras_hub.models.ImageClassifier else (None, model)


@contextlib.contextmanager
def _readable_by_keras_hub(directory: Path) -> Iterator[Path]:
    """The directory, or for a MobileNet of a newer timm a copy with links to its weights.

    keras-hub reads the width of the head from `num_features`, which since timm 1.0 is the width before it.
    """
    config = read_json(directory / "config.json")
    architecture = str(config.get("architecture", ""))
    if architecture.startswith("densenet"):
        raise ValueError("its DenseNet pads other than timm's, so that the logits would differ.")
    if not architecture.startswith("mobilenet"):
        yield directory
        return
    with tempfile.TemporaryDirectory() as temporary:
        for file in directory.glob("*.safetensors*"):
            (Path(temporary) / file.name).symlink_to(file.resolve())
        config["num_features"] = len(read_safetensors(directory)["conv_head.bias"])
        (Path(temporary) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        yield Path(temporary)


def _has_head(directory: Path) -> bool:
    config = read_json(directory / "config.json")
    if "registered_name" in config:
        task = directory / "task.json"
        has_head = task.exists() and str(read_json(task).get("class_name")).endswith("ImageClassifier")
        if has_head and not (directory / "task.weights.h5").exists():
            # keras-hub would give a random head.
            raise ValueError(f"{directory} describes a head in task.json, but task.weights.h5 is missing.")
        return has_head
    if "architecture" in config:
        return bool(config.get("num_classes"))
    return "ForImageClassification" in "".join(config.get("architectures") or ())


def _require_all_placed(directory: Path, model: keras.Model) -> None:
    """Compare what the files hold with what the network holds, whatever the order of axes.

    keras-hub's converters take the tensors that they know by name and say nothing of the rest.
    """
    tensors = {name: _content(array) for name, array in read_safetensors(directory).items() if _is_weight(name)}
    places = {v.path: _content(v.numpy()) for v in model.variables if "seed_generator" not in v.path}
    problems = [f"no place for {name}" for name in _surplus(tensors, places)]
    problems += [f"no weight for {path}" for path in _surplus(places, tensors)]
    if problems:
        more = f", and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError(f"{directory} does not fit the network: {'; '.join(problems[:10])}{more}.")


def _is_weight(name: str) -> bool:
    # Counters of training steps and tables that PyTorch keeps beside the weights.
    return not name.endswith(("num_batches_tracked", "relative_position_index", "attn_mask", "position_ids"))


def _content(values: np.ndarray) -> tuple[int, int]:
    """Number of values and the sum of their bits: the same in whatever order."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return values.size, int(bits.sum(dtype=np.uint64))


def _surplus(these: Mapping[str, Any], those: Mapping[str, Any]) -> list[str]:
    left = collections.Counter(those.values())
    surplus = []
    for name, content in these.items():
        if left[content] == 0:
            surplus.append(name)
        left[content] -= 1
    return surplus


# Taking apart.


def _features(task: keras.Model) -> keras.KerasTensor:
    """The symbolic output of a classifier's backbone, within the classifier."""
    nodes = [node for group in task._nodes_by_depth.values() for node in group]
    return next(node.output_tensors[0] for node in nodes if node.operation is task.backbone)


def backbone_recipe(backbone: keras.Model) -> dict[str, Any]:
    """The backbone's configuration, JSON-able and without the precision that happens to be set."""
    config: dict[str, Any] = json.loads(json.dumps(keras.saving.serialize_keras_object(backbone)))
    for part in nested_dictionaries(config):
        for key in ("dtype", "build_config", "compile_config"):
            part.pop(key, None)
    return config


def _backbone(config: Mapping[str, Any], image_size: int) -> keras.Model:
    import keras_hub

    require_safe_config(config, "The saved architecture")
    kind = keras.saving.get_registered_object(config.get("registered_name"))
    if not (isinstance(kind, type) and issubclass(kind, keras_hub.models.Backbone)):
        raise ValueError(f"{config.get('registered_name')!r} is no backbone of keras-hub.")
    config = copy.deepcopy(dict(config))
    name = "input_shape" if "input_shape" in config["config"] else "image_shape"  # the former in EfficientNet's
    config["config"][name] = [image_size, image_size, 3]
    return fuse_normalization(keras.saving.deserialize_keras_object(config, safe_mode=True))


def hub_normalisation(directory: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, for values 0..255, that a directory of keras-hub asks for."""
    import keras_hub

    try:
        converter = keras_hub.layers.ImageConverter.from_preset(str(directory))
    except (ValueError, FileNotFoundError):
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    fields = _conversion(converter)
    return fields["mean"], fields["std"]


def _preprocessing(directory: Path, task: keras.Model | None, backbone: keras.Model) -> Preprocessing:
    import keras_hub

    if task is not None and task.preprocessor is not None:
        converter = task.preprocessor.image_converter
    else:
        try:
            converter = keras_hub.layers.ImageConverter.from_preset(str(directory))
        except (ValueError, FileNotFoundError):
            converter = None
    own_size = converter.image_size if converter is not None and converter.image_size else backbone.input_shape[1:3]
    if own_size[0] is None or own_size[0] != own_size[1]:
        raise ValueError(f"{directory} does not say which (square) image size it was trained at; it says {own_size}.")
    fields = {"image_size": own_size[0]} | ({} if converter is None else _conversion(converter))
    return Preprocessing.from_dict(fields | _timm_fields(read_json(directory / "config.json")))


def _conversion(converter: Any) -> dict[str, Any]:
    """keras-hub's values * scale + offset as (values - mean) / std."""
    scale, offset = (np.broadcast_to(v, 3) for v in (converter.scale or 1.0, converter.offset or 0.0))
    resize = "pad" if converter.pad_to_aspect_ratio else "crop" if converter.crop_to_aspect_ratio else "stretch"
    return {
        "mean": tuple((-offset / scale).tolist()),
        "std": tuple((1 / scale).tolist()),
        "resize": resize,
        "interpolation": "bicubic" if converter.interpolation == "bicubic" else "bilinear",
    }


def _timm_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """How timm crops, which keras-hub does not take over (timm/data/transforms_factory.py)."""
    values = config.get("pretrained_cfg", {})
    if "crop_pct" not in values:
        return {}
    resize = {"center": "crop", "squash": "stretch", "border": "pad"}[values.get("crop_mode", "center")]
    return {"resize": resize, "crop_fraction": values["crop_pct"] if resize == "crop" else 1.0}
