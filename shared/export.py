"""Exports that run without Triptych: SavedModel, LiteRT and ONNX, each compared with `predict` before it is in place.

A task describes what is to be exported as `Serving`: plain TensorFlow functions with their inputs. Here they are
written, read back with the format's own runtime, run on a few examples, and the largest difference is reported. Only
then does the new export take the place of an older one.
"""

from __future__ import annotations

import contextlib
import fnmatch
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

logger = logging.getLogger(__name__)

_ONNX_OPSET = 18
_LARGE_DIFFERENCE = 1e-3
# What TensorFlow writes into a SavedModel.
_SAVED_MODEL_FILES = ("saved_model.pb", "fingerprint.pb", "variables/variables.*", "assets/*")
_INSTALL = "pip install 'triptych[export]'"


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how far its outputs are from `predict` on `num_examples` examples (largest difference)."""

    format: str
    path: str
    num_bytes: int
    max_difference: float
    num_examples: int
    inputs: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        size = self.num_bytes / 1e6
        return f"{self.format} at {self.path}: {size:.1f} MB, largest difference to predict {self.max_difference:.2e}"


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One function of an export, from named tensors to one tensor or several by name, and examples to try it on.

    `signature` has a spec with a name for each argument, `example` an array for each, the batch first. `expected` is
    what `predict` gives for the example, by name where the function answers so; of texts (bytes), as of numbers, it
    must have the shape of the answer.
    """

    function: Callable[..., Any]
    signature: tuple[tf.TensorSpec, ...]
    example: tuple[np.ndarray, ...]
    expected: np.ndarray | Mapping[str, np.ndarray]

    @property
    def num_examples(self) -> int:
        """How many answers are compared."""
        expected = self.expected
        return len(expected if isinstance(expected, np.ndarray) else next(iter(expected.values())))


def export_saved_model(path: Path, endpoints: Mapping[str, Endpoint], *, track: Sequence[tf.Module]) -> ExportReport:
    """Write a SavedModel whose first endpoint is also the default signature; every endpoint is run once.

    `track` has the model and whatever else the endpoints use that holds variables or lookup tables.
    """
    with _fresh(path, "saved_model") as fresh:
        _write_archive(fresh, endpoints, track)
        loaded = tf.saved_model.load(str(fresh))
        differences = [
            _difference(getattr(loaded, name)(*map(tf.convert_to_tensor, endpoint.example)), endpoint)
            for name, endpoint in endpoints.items()
        ]
    return _report("saved_model", path, endpoints, max(differences))


def export_litert(path: Path, endpoint: Endpoint, *, track: Sequence[tf.Module]) -> ExportReport:
    """Write a LiteRT (TensorFlow Lite) flatbuffer with built-in operations only.

    Raises:
        ImportError: where `ai-edge-litert`, which runs the check, is not installed; the message says how to.
    """
    interpreter_class = _imported("ai_edge_litert.interpreter").Interpreter
    with _fresh(path, "litert") as fresh:
        # By way of a SavedModel: from a concrete function alone the converter loses the variables of Keras 3.
        saved = fresh.with_name("saved_model")
        with _quiet():
            _write_archive(saved, {"serve": endpoint}, track)
            fresh.write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(saved)).convert())
        interpreter = interpreter_class(model_path=str(fresh))
        # By signature, whose runner knows the inputs by their names and brings them to the sizes of the examples.
        (outputs,) = interpreter.get_signature_runner()(**_feed(endpoint)).values()
        difference = _difference(outputs, endpoint)
    return _report("litert", path, {"serve": endpoint}, difference)


def export_onnx(path: Path, endpoint: Endpoint) -> ExportReport:
    """Write an ONNX model.

    Raises:
        ImportError: where `tf2onnx` or `onnxruntime` is not installed; the message says how to.
    """
    tf2onnx, runtime = _imported("tf2onnx"), _imported("onnxruntime")
    signature = list(endpoint.signature)
    function = tf.function(endpoint.function, input_signature=signature, autograph=False)
    with _fresh(path, "onnx") as fresh:
        with _quiet():
            proto, _ = tf2onnx.convert.from_function(function, input_signature=signature, opset=_ONNX_OPSET)
        fresh.write_bytes(proto.SerializeToString())
        session = runtime.InferenceSession(str(fresh), providers=["CPUExecutionProvider"])
        difference = _difference(session.run(None, _feed(endpoint))[0], endpoint)
    return _report("onnx", path, {"serve": endpoint}, difference)


def _write_archive(path: Path, endpoints: Mapping[str, Endpoint], track: Sequence[tf.Module]) -> None:
    archive = keras.export.ExportArchive()
    for part in track:
        archive.track(part)
    for name, endpoint in endpoints.items():
        archive.add_endpoint(name, endpoint.function, input_signature=list(endpoint.signature))
    archive.write_out(str(path), verbose=False)


def _feed(endpoint: Endpoint) -> dict[str, np.ndarray]:
    return {spec.name: array for spec, array in zip(endpoint.signature, endpoint.example, strict=True)}


def _difference(output: Any, endpoint: Endpoint) -> float:
    expected = endpoint.expected
    if isinstance(expected, Mapping):
        return max(_array_difference(np.asarray(output[name]), expected[name]) for name in expected)
    return _array_difference(np.asarray(output), expected)


def _array_difference(output: np.ndarray, expected: np.ndarray) -> float:
    if output.shape != expected.shape:
        raise ValueError(f"The export answers with shape {output.shape}, `predict` with {expected.shape}.")
    if output.dtype == object:  # texts: the share that is not the same
        return float(np.mean(output != expected))
    # Where nothing more can be recommended, both sides have -inf.
    with np.errstate(invalid="ignore"):
        distances = np.where(
            np.isneginf(output) & np.isneginf(expected), 0, np.abs(output.astype(np.float64) - expected)
        )
    difference = float(np.max(distances))
    if not np.isfinite(difference):
        raise FloatingPointError(
            f"The export could not be compared with `predict`: {_not_finite(output)} of the export's answers and "
            f"{_not_finite(expected)} of `predict`'s are NaN or infinite; nothing was written. Look for NaN in the "
            "model's weights, and train it again."
        )
    return difference


def _not_finite(array: np.ndarray) -> str:
    return f"{np.count_nonzero(~np.isfinite(array))} of {array.size}"


def _report(format: str, path: Path, endpoints: Mapping[str, Endpoint], difference: float) -> ExportReport:
    report = ExportReport(
        format=format,
        path=str(path),
        num_bytes=_num_bytes(path),
        max_difference=difference,
        num_examples=next(iter(endpoints.values())).num_examples,
        inputs={
            name: ", ".join(f"{spec.name} {spec.dtype.name} {spec.shape}" for spec in endpoint.signature)
            for name, endpoint in endpoints.items()
        },
    )
    if difference > _LARGE_DIFFERENCE:
        logger.warning("%s: more than rounding explains. Compare more answers before you use it.", report)
    else:
        logger.info("%s", report)
    return report


def _num_bytes(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _imported(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"This export needs the package of `{module}`: {_INSTALL}") from error


def check_export_target(path: Path, format: str) -> None:
    """Refuse a path where something lies that is no older export in the same format.

    Raises:
        ValueError: naming what is there.
    """
    if format == "saved_model":
        found = _not_of_saved_model(path)
    elif path.is_dir():
        found = "is a directory, and this format is one file"
    elif path.is_file() and not _is_file_of(path, format):
        found = f"is a file that is no {format} export"
    else:
        found = None
    if found is not None:
        raise ValueError(f"{path} {found}; nothing was overwritten. Move it away, or choose another path.")


def _not_of_saved_model(path: Path) -> str | None:
    if not path.exists() and not path.is_symlink():
        return None
    if path.is_symlink() or not path.is_dir():
        return "is not a directory, which a saved_model is"
    names = sorted(str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir())
    foreign = [name for name in names if not any(fnmatch.fnmatchcase(name, known) for known in _SAVED_MODEL_FILES)]
    if foreign or (names and "saved_model.pb" not in names):
        return f"is a directory with other files in it ({', '.join((foreign or names)[:3])})"
    return None


def _is_file_of(path: Path, format: str) -> bool:
    with path.open("rb") as stream:
        start = stream.read(8)
    # A flatbuffer has its name in bytes 4 to 7; an ONNX file begins with field 1, the version of its format. An empty
    # file may be a name that somebody reserved.
    return not start or (start[4:] == b"TFL3" if format == "litert" else start[:1] == b"\x08")


@contextlib.contextmanager
def _fresh(path: Path, format: str) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` when the block ends well."""
    check_export_target(path, format)
    path.parent.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        fresh = directory / "export"
        yield fresh
        check_export_target(path, format)
        if path.is_dir():
            path.rename(directory / "replaced")
        os.replace(fresh, path)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Converters warn about their own internals; nothing there is for the user to act upon."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
