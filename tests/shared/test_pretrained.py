from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
from safetensors.numpy import save_file

from shared.pretrained import (
    assign_weights,
    detect_layout,
    read_json,
    read_safetensors,
    require_safe_config,
    resolve,
    stored_tensors,
)

PRESETS: dict[str, dict[str, Any]] = {
    "plain_net": {"architecture": {"family": "plain"}},
    "packed_net": {"package": {"pip": "packed-net==1.0", "module": "numpy", "file": "w.pth"}},
    "absent_net": {"package": {"pip": "absent-net==1.0", "module": "no_such_package", "file": "w.pth"}},
    "hub_net": {"handle": "hf://org/net"},
}


def directory(path: Path, files: dict[str, Any]) -> Path:
    path.mkdir(exist_ok=True)
    for name, content in files.items():
        (path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_name_in_the_table_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    directory(tmp_path / "plain_net", {"pipeline.json": {}})
    source = resolve("plain_net", PRESETS)
    assert source.record is PRESETS["plain_net"]
    assert source.directory is None
    assert resolve(Path("./plain_net").absolute(), PRESETS).layout == "triptych"


def test_a_package_is_found_without_importing_it() -> None:
    code = (
        "import sys\n"
        "from shared.pretrained import resolve\n"
        "presets = {'net': {'package': {'pip': 'x', 'module': 'sklearn', 'file': 'f'}}}\n"
        "assert resolve('net', presets).directory.name == 'sklearn'\n"
        "assert not {'sklearn', 'tensorflow', 'keras'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_a_missing_package_names_what_to_install() -> None:
    with pytest.raises(FileNotFoundError, match=r"'absent_net' .* pip install --no-deps absent-net==1\.0"):
        resolve("absent_net", PRESETS)


def test_a_near_miss_is_suggested_and_nothing_is_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"'plain_nett' is neither .* Did you mean plain_net"):
        resolve("plain_nett", PRESETS)
    with pytest.raises(FileNotFoundError, match="Presets: absent_net, hub_net"):
        resolve("zzz", PRESETS)
    (tmp_path / "weights.safetensors").touch()
    with pytest.raises(FileNotFoundError, match=r"weights\.safetensors.* is a file"):
        resolve("weights.safetensors", PRESETS)


LAYOUTS: list[tuple[str, dict[str, Any]]] = [
    ("triptych", {"pipeline.json": {}, "config.json": {}}),
    ("keras_hub", {"config.json": {"registered_name": "keras_hub>ResNetBackbone"}, "model.weights.h5": ""}),
    ("timm", {"config.json": {"architecture": "resnet18"}, "model.safetensors": ""}),
    ("hugging_face", {"config.json": {"model_type": "vit"}, "model.safetensors": ""}),
    ("hugging_face", {"config.json": {"model_type": "bert", "architectures": ["B"]}, "model.safetensors": ""}),
    ("marian", {"config.json": {"model_type": "marian"}, "model.safetensors": ""}),
    ("keras_applications", {"ResNet50.weights.h5": ""}),
    ("keras_applications", {"resnet50_weights_tf_dim_ordering_tf_kernels.h5": ""}),
]


@pytest.mark.parametrize(("layout", "files"), LAYOUTS)
def test_layouts(layout: str, files: dict[str, Any], tmp_path: Path) -> None:
    place = directory(tmp_path / "model", files)
    assert detect_layout(place) == layout
    source = resolve(place, PRESETS)
    assert (source.directory, source.layout, source.record) == (place, layout, None)


UNKNOWN: list[tuple[str, dict[str, Any]]] = [
    (r"no pipeline\.json and no config\.json.* It holds: nothing", {}),
    (r"It holds: a\.txt, b\.png", {"a.txt": "", "b.png": ""}),
    (r"only pytorch_model\.bin, which can run code .* Convert them to safetensors", {"pytorch_model.bin": ""}),
    (r"only config\.json", {}),
    (r"not valid JSON", {"config.json": "{"}),
    (r"must hold a JSON object; it holds a list", {"config.json": []}),
]


@pytest.mark.parametrize(("message", "files"), UNKNOWN)
def test_unknown_layouts_say_what_is_there(message: str, files: dict[str, Any], tmp_path: Path) -> None:
    config = {"config.json": {"model_type": "vit"}} if "only" in message else {}
    with pytest.raises(ValueError, match=message):
        resolve(directory(tmp_path / "model", config | files), PRESETS)


def test_hubs_are_asked_for_safe_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = directory(tmp_path / "net", {"config.json": {"architecture": "resnet18"}, "model.safetensors": ""})
    asked: list[Any] = []

    def snapshot_download(repository: str, *, allow_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns))
        return str(place)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    source = resolve("hf://org/net", PRESETS)
    assert (source.directory, source.layout) == (place, "timm")
    recorded = resolve("hub_net", PRESETS)
    assert (recorded.directory, recorded.layout, recorded.record) == (place, "timm", PRESETS["hub_net"])
    assert [repository for repository, _ in asked] == ["org/net"] * 2
    patterns = asked[0][1]
    assert "*.safetensors" in patterns
    assert not any(pattern.endswith((".bin", ".pth", ".pkl", ".py", "*")) for pattern in patterns if "/" not in pattern)


def test_code_in_a_model_from_kaggle_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "model.bin").symlink_to("/dev/full")  # reading it would not end
    monkeypatch.setitem(sys.modules, "kagglehub", SimpleNamespace(model_download=lambda handle: str(tmp_path)))
    with pytest.raises(ValueError, match=r"only .*model\.bin.*, which can run code"):
        resolve("kaggle://a/b/c/d", PRESETS)
    (tmp_path / "model.safetensors").touch()
    assert resolve("kaggle://a/b/c/d", PRESETS).layout == "hugging_face"
    said = Path(__file__, "../../../SECURITY.md").resolve().read_text(encoding="utf-8")
    assert "From a hub only" not in said  # true of Hugging Face alone


def test_hub_clients_missing_or_offline_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: Any, **options: Any) -> str:
        raise OSError("no network")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=offline))
    monkeypatch.setitem(sys.modules, "kagglehub", SimpleNamespace(model_download=offline))
    for ref in ("hf://org/net", "kaggle://keras/resnetv1/keras/resnet_18_imagenet"):
        with pytest.raises(FileNotFoundError, match=f"{ref} could not be fetched.* no network"):
            resolve(ref, PRESETS)
    for module, ref in (("huggingface_hub", "hf://org/net"), ("kagglehub", "kaggle://a/b/c/d")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=f"pip install {module}"):
            resolve(ref, PRESETS)


def test_safetensors_in_one_file_and_in_shards(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lacks a \.safetensors file"):
        read_safetensors(tmp_path)
    first, second = {"a": np.arange(3.0)}, {"b": np.ones((2, 2), np.float16)}
    save_file(first, tmp_path / "model-1-of-2.safetensors")
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    directory(tmp_path, {"model.safetensors.index.json": index})
    with pytest.raises(ValueError, match=r"lacks model-2-of-2\.safetensors"):
        read_safetensors(tmp_path)
    save_file(second, tmp_path / "model-2-of-2.safetensors")
    tensors = read_safetensors(tmp_path)
    assert set(tensors) == {"a", "b"}
    assert tensors["b"].dtype == np.float16
    stored = stored_tensors(tmp_path)
    assert {name: tensor.shape for name, tensor in stored.items()} == {"a": (3,), "b": (2, 2)}
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(np.asarray(stored[name]), tensor, strict=True)
    # A file that the index does not name is no part of the model.
    save_file({"c": np.zeros(1)}, tmp_path / "other.safetensors")
    assert set(read_safetensors(tmp_path)) == {"a", "b"}


def test_an_index_cannot_point_out_of_its_directory(tmp_path: Path) -> None:
    save_file({"a": np.zeros(1)}, tmp_path / "secret.safetensors")
    index = {"weight_map": {"a": "../secret.safetensors"}}
    with pytest.raises(ValueError, match="lacks"):
        read_safetensors(directory(tmp_path / "model", {"model.safetensors.index.json": index}))


def test_read_json_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_bytes(b"\xff\xfe{")
    with pytest.raises(ValueError, match=r"c\.json is not valid JSON"):
        read_json(tmp_path / "c.json")


def test_assign_weights_is_strict_in_both_directions() -> None:
    targets = {"kernel": keras.Variable(np.zeros((2, 3))), "bias": keras.Variable(np.zeros(3))}
    assign_weights(targets, {"kernel": np.ones((2, 3)), "bias": np.full(3, 2.0)})
    assert float(targets["bias"][0]) == 2.0
    with pytest.raises(ValueError, match="no place for scale; no weight for bias; kernel has shape") as raised:
        assign_weights(targets, {"kernel": np.zeros((3, 2)), "scale": np.zeros(3)})
    assert "(3, 2), expected (2, 3)" in str(raised.value)
    assert float(targets["kernel"][0, 0]) == 1.0  # nothing was assigned
    with pytest.raises(ValueError, match="and 4 more"):
        assign_weights({}, {f"w{i}": np.zeros(1) for i in range(14)})


@pytest.mark.parametrize(
    "config",
    [
        {"class_name": "Lambda", "config": {}},
        {"layers": [{"module": "os", "class_name": "system"}]},
        {"a": [{"b": {"module": "keras_evil.layers", "class_name": "Dense"}}]},
    ],
)
def test_configurations_reach_nothing_but_keras(config: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="only layers of Keras and keras-hub are loaded"):
        require_safe_config(config, "config.json")


def test_plain_keras_configurations_are_safe() -> None:
    require_safe_config({}, "config.json")
    require_safe_config({"module": "keras.layers", "class_name": "Dense", "config": {"units": 3}}, "config.json")
