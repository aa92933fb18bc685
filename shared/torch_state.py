"""Weights from a PyTorch state dict file, without PyTorch and without unpickling.

Such a file is a small stack program (pickle) that names tensors, followed by their raw data. Here the program is read
as data by an interpreter of our own that knows dictionaries, tuples, numbers, strings and tensors over named storages;
whatever else a program asks for is refused. No object is constructed by name and nothing is called.
"""

from __future__ import annotations

import io
import math
import os
import pickletools
import struct
import zipfile
from collections.abc import Callable
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
# What a program in disorder runs into: operands that are missing, of the wrong kind, or beyond all bounds.
_DAMAGE = (
    struct.error,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    MemoryError,
    OverflowError,
    zipfile.BadZipFile,
)
_MAX_PROGRAM_BYTES = 64 << 20
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
    with path.open("rb") as file:
        try:
            is_zip = file.read(4) == _ZIP_MAGIC
            file.seek(0)
            return _arrays(*(_open_zip(file) if is_zip else _open_legacy(file)))
        except _DAMAGE as error:
            raise ValueError(f"{path} is damaged, or no PyTorch file ({type(error).__name__}: {error}).") from error
        except ValueError as error:
            raise ValueError(f"{path} is not read: {error}") from error


def _arrays(entries: Any, read: Callable[[_Storage], bytes]) -> dict[str, np.ndarray]:
    if not isinstance(entries, dict):
        raise ValueError(f"it holds a {type(entries).__name__}, expected a state dict.")
    if "state_dict" in entries and isinstance(entries["state_dict"], dict):
        entries = entries["state_dict"]
    storages: dict[_Storage, np.ndarray] = {}
    arrays = {}
    for name, tensor in entries.items():
        if not isinstance(tensor, _Tensor):
            raise ValueError(f"entry {name!r} is no tensor but {type(tensor).__name__}.")
        storage = tensor.storage
        if storage not in storages:
            storages[storage] = np.frombuffer(read(storage), storage.dtype)
        arrays[str(name)] = _view(str(name), tensor, storages[storage])
    return arrays


def _view(name: str, tensor: _Tensor, values: np.ndarray) -> np.ndarray:
    if len(tensor.shape) != len(tensor.strides) or min((tensor.offset, *tensor.shape, *tensor.strides)) < 0:
        raise ValueError(f"tensor {name!r} has shape {tensor.shape} with strides {tensor.strides}.")
    last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.strides, strict=True))
    num_elements = math.prod(tensor.shape)
    # More elements than data: a few bytes could otherwise claim all memory, by strides of 0.
    if num_elements and (last >= len(values) or num_elements > len(values)):
        raise ValueError(f"tensor {name!r} reaches beyond its data.")
    strides = [stride * values.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(values[tensor.offset :], tensor.shape, strides).copy()


# The two file formats.


def _open_zip(file: BinaryIO) -> tuple[Any, Callable[[_Storage], bytes]]:
    archive = zipfile.ZipFile(file)
    programs = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(programs) != 1:
        raise ValueError("it is a zip file, but not one that PyTorch wrote.")
    root = programs[0].removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist() and _stored(archive, f"{root}byteorder", 8) != b"little":
        raise ValueError("it was written on a big-endian machine. Convert it to safetensors.")

    def read(storage: _Storage) -> bytes:
        expected = storage.num_elements * np.dtype(storage.dtype).itemsize
        data = _stored(archive, f"{root}data/{storage.key}", expected)
        if len(data) != expected:
            raise ValueError(f"storage {storage.key} has {len(data)} bytes, expected {expected}.")
        return data

    return _run(io.BytesIO(_stored(archive, programs[0], _MAX_PROGRAM_BYTES))).value, read


def _stored(archive: zipfile.ZipFile, name: str, max_bytes: int) -> bytes:
    """An entry's bytes. PyTorch stores without compression: anything else may be a zip bomb."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > max_bytes:
        raise ValueError(f"{name} has {info.file_size} bytes, expected at most {max_bytes}, uncompressed.")
    return archive.read(info)


def _open_legacy(file: BinaryIO) -> tuple[Any, Callable[[_Storage], bytes]]:
    if _run(file).value != _LEGACY_MAGIC:
        raise ValueError("it does not begin as a PyTorch file.")
    _run(file), _run(file)  # protocol version, sizes of C types
    program = _run(file)
    storages = {storage.key: storage for storage in program.storages}
    data = {}
    for key in _run(file).value:
        (count,) = struct.unpack("<q", file.read(8))
        if not isinstance(key, str) or key not in storages or storages[key].num_elements != count:
            raise ValueError(f"it has a block of {count} elements that no tensor expects.")
        num_bytes = count * np.dtype(storages[key].dtype).itemsize
        data[storages[key]] = (file.tell(), num_bytes)
        if file.seek(num_bytes, io.SEEK_CUR) > _size(file):
            raise EOFError(f"the data of storage {key} ends early")

    def read(storage: _Storage) -> bytes:
        start, num_bytes = data[storage]
        file.seek(start)
        return file.read(num_bytes)

    return program.value, read


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


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


@dataclass(frozen=True)
class _Result:
    """What a program leaves: a value made of dict, list, tuple, str, numbers and `_Tensor`, and the storages named."""

    value: Any
    storages: list[_Storage]


def _run(program: BinaryIO) -> _Result:
    machine = _Machine()
    for opcode, argument, _ in pickletools.genops(program):
        if opcode.name == "STOP":
            return _Result(machine.stack.pop(), machine.storages)
        machine.step(opcode.name, argument)
    raise EOFError("the program has no end")


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: list[_Storage] = []

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
            _set_items(stack[-1], [key, value])
        elif name == "SETITEMS":
            items = self._since_mark()
            _set_items(stack[-1], items)
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
            self.storages.append(stack[-1])
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


def _set_items(target: Any, items: list[Any]) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Tuples are refused: hashing nested ones can take as long as a malicious file wants.
        if not isinstance(key, str | int):
            raise ValueError(f"a dictionary has a key of type {type(key).__name__}, expected names or numbers.")
        target[key] = value


def _storage(identity: Any) -> _Storage:
    match identity:
        case ("storage", _Name(name), str(key), _, int(count), *_) if name in _STORAGE_TYPES and count >= 0:
            return _Storage(_STORAGE_TYPES[name], key, count)
    kind = next((part.name for part in identity if isinstance(part, _Name)), None) if identity else None
    raise ValueError(f"the file refers to data of type {kind!r}, expected a storage of numbers.")


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
