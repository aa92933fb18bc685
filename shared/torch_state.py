"""Weights from a PyTorch state dict file, without PyTorch and without unpickling.

Such a file is a small stack program (pickle) that names tensors, followed by their raw data. Here the program is read
as data by an interpreter of our own that knows dictionaries, tuples, numbers, strings and tensors over named storages;
whatever else a program asks for is refused. No object is constructed by name and nothing is called.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

# First number in a file of the format before PyTorch 1.6 (torch/serialization.py, MAGIC_NUMBER).
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_ZIP_MAGIC = b"PK\x03\x04"
_STORAGE_TYPES: dict[str, Any] = {
    "torch FloatStorage": np.float32,
    "torch DoubleStorage": np.float64,
    "torch HalfStorage": np.float16,
    "torch BFloat16Storage": ml_dtypes.bfloat16,
    "torch LongStorage": np.int64,
    "torch IntStorage": np.int32,
    "torch ShortStorage": np.int16,
    "torch CharStorage": np.int8,
    "torch ByteStorage": np.uint8,
    "torch BoolStorage": np.bool_,
}
_TENSOR = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor")
_PARAMETER = "torch._utils _rebuild_parameter"


@dataclass(frozen=True)
class _Name:
    """A global that a program mentions; only ever compared, never looked up."""

    name: str


@dataclass(frozen=True)
class _Storage:
    dtype: Any
    key: str
    num_elements: int


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch_state(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict file by name.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it is no state dict, is damaged, or asks for more than tensors.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            is_zip = file.read(4) == _ZIP_MAGIC
            file.seek(0)
            entries, read = _open_zip(path) if is_zip else _open_legacy(file)
            return _arrays(entries, read)
    except (struct.error, EOFError, IndexError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is a damaged or unknown PyTorch file ({type(error).__name__}: {error}).") from error
    except ValueError as error:
        raise ValueError(f"{path} is not read: {error}") from error


def _arrays(entries: Any, read: Callable[[_Storage], bytes]) -> dict[str, np.ndarray]:
    if not isinstance(entries, dict):
        raise ValueError(f"it holds a {type(entries).__name__}, expected a state dict.")
    if "state_dict" in entries and isinstance(entries["state_dict"], dict):
        entries = entries["state_dict"]
    storages: dict[str, np.ndarray] = {}
    arrays = {}
    for name, tensor in entries.items():
        if not isinstance(tensor, _Tensor):
            raise ValueError(f"entry {name!r} is no tensor but {type(tensor).__name__}.")
        key = tensor.storage.key
        if key not in storages:
            storages[key] = np.frombuffer(read(tensor.storage), tensor.storage.dtype)
        arrays[str(name)] = _view(str(name), tensor, storages[key])
    return arrays


def _view(name: str, tensor: _Tensor, values: np.ndarray) -> np.ndarray:
    if len(tensor.shape) != len(tensor.strides) or min((tensor.offset, *tensor.shape, *tensor.strides)) < 0:
        raise ValueError(f"tensor {name!r} has shape {tensor.shape} with strides {tensor.strides}.")
    last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
    if math.prod(tensor.shape) and last >= len(values):
        raise ValueError(f"tensor {name!r} reaches beyond its data.")
    strides = [stride * values.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.shape, strides).copy()


# The two file formats.


def _open_zip(path: Path) -> tuple[Any, Callable[[_Storage], bytes]]:
    archive = zipfile.ZipFile(path)
    programs = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(programs) != 1:
        raise ValueError("it is a zip file, but not one that PyTorch wrote.")
    root = programs[0].removesuffix("data.pkl")

    def read(storage: _Storage) -> bytes:
        expected = storage.num_elements * np.dtype(storage.dtype).itemsize
        info = archive.getinfo(f"{root}data/{storage.key}")
        # PyTorch stores without compression: a claimed size beyond the file's is a zip bomb.
        if info.file_size != expected or info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"storage {storage.key} has {info.file_size} bytes, expected {expected}, uncompressed.")
        return archive.read(info)

    return _run(io.BytesIO(archive.read(programs[0]))), read


def _open_legacy(file: BinaryIO) -> tuple[Any, Callable[[_Storage], bytes]]:
    if _run(file) != _LEGACY_MAGIC:
        raise ValueError("it does not begin as a PyTorch file.")
    _run(file), _run(file)  # protocol version, sizes of C types
    entries = _run(file)
    offsets: dict[str, int] = {}
    sizes = {tensor.storage.key: tensor.storage for tensor in entries.values() if isinstance(tensor, _Tensor)}
    for key in _run(file):
        (count,) = struct.unpack("<q", file.read(8))
        if key not in sizes or sizes[key].num_elements != count:
            raise ValueError(f"storage {key} has {count} elements, which no tensor expects.")
        offsets[key] = file.tell()
        file.seek(count * np.dtype(sizes[key].dtype).itemsize, io.SEEK_CUR)

    def read(storage: _Storage) -> bytes:
        file.seek(offsets[storage.key])
        return file.read(storage.num_elements * np.dtype(storage.dtype).itemsize)

    return entries, read


# The interpreter.


_MARK = object()
_PUSH_ARGUMENT = frozenset(
    ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "MARK": lambda: _MARK,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _run(program: BinaryIO) -> Any:
    """The value that a program leaves: built from dict, list, tuple, str, numbers, `_Name`, `_Storage`, `_Tensor`."""
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(program):
        if opcode.name == "STOP":
            return machine.stack.pop()
        machine.step(opcode.name, argument)
    raise EOFError("the program has no end")


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _PUSH_ARGUMENT:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
        elif name == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif name == "GLOBAL":
            stack.append(_Name(argument))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_Name(f"{module} {attribute}"))
        elif name not in ("PROTO", "FRAME"):
            self._structure(name)

    def _structure(self, name: str) -> None:
        stack = self.stack
        if name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            stack[-1][key] = value
        elif name == "SETITEMS":
            items = self._since_mark()
            stack[-1].update(_pairs(items))
        elif name == "APPEND":
            stack[-2].append(stack.pop())
        elif name == "APPENDS":
            items = self._since_mark()
            stack[-1].extend(items)
        elif name == "BUILD":
            # State of an OrderedDict: PyTorch's `_metadata`, of no use here.
            stack.pop()
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_reduced(function, arguments))
        else:
            raise ValueError(f"the file uses {name}, which no state dict needs. Convert it to safetensors.")

    def _since_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]


def _pairs(items: list[Any]) -> Iterable[tuple[Any, Any]]:
    return zip(items[::2], items[1::2], strict=True)


def _storage(identity: Any) -> _Storage:
    match identity:
        case ("storage", _Name(name), str(key), _, int(count), *_) if name in _STORAGE_TYPES and count >= 0:
            return _Storage(_STORAGE_TYPES[name], key, count)
    raise ValueError(f"the file refers to {identity!r}, expected the storage of a tensor.")


def _reduced(function: Any, arguments: Any) -> Any:
    match function, arguments:
        case _Name("collections OrderedDict"), ():
            return {}
        case _Name(name), (_Storage() as storage, int(offset), tuple(shape), tuple(strides), *_) if name in _TENSOR:
            return _Tensor(storage, offset, shape, strides)
        case _Name(name), (_Tensor() as tensor, *_) if name == _PARAMETER:
            return tensor
    name = function.name if isinstance(function, _Name) else type(function).__name__
    raise ValueError(f"the file asks to call {name!r}, which is refused. Convert it to safetensors.")
