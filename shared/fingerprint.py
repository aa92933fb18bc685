"""A short hash of a data set, by which a resumed run notices that it was given another."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from shared.examples import Source, StreamedExamples

# Examples of a data set whose contents are taken, bytes of each, and examples of a dataset.
_HASHED, _HASHED_BYTES, _FIRST = 256, 1 << 16, 16


def data_fingerprint(source: Source) -> str:
    """A short hash that tells data sets apart: cheap, so it takes samples, not all of them.

    Of `Examples`: how many they are, all targets, and the inputs at 256 evenly spread places (of a path its name and
    the size of its file). Of a dataset: what its elements are, and the first 16.
    """
    digest = hashlib.sha256()
    if isinstance(source, StreamedExamples):
        parts: Iterable[Any] = [source.dataset.element_spec, *itertools.islice(source, _FIRST)]
    else:
        places = np.unique(np.linspace(0, len(source) - 1, min(len(source), _HASHED)).astype(int))
        parts = itertools.chain([len(source)], source.targets, (source.inputs[i] for i in places))
    for part in parts:
        digest.update(_hashable(part))
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def _hashable(value: Any) -> bytes:
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return f"{value.dtype}{value.shape}".encode() + value.reshape(-1)[:_HASHED_BYTES].tobytes()
    if isinstance(value, bytes):
        return str(len(value)).encode() + value[:_HASHED_BYTES]
    if isinstance(value, tuple | list):
        return b"(" + b"\0".join(_hashable(part) for part in value) + b")"
    if isinstance(value, Path):
        # The name without its folders: data may be moved between a run and its resumption.
        return f"{value.name} {value.stat().st_size if value.is_file() else 'missing'}".encode()
    return repr(value).encode()
