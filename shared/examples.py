"""Raw examples: what readers return and what `fit` and `evaluate` take.

A source is a sequence with random access (`Examples`) or a dataset that is read from the start (`StreamedExamples`).
"""

from __future__ import annotations

import itertools
import logging
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf

logger = logging.getLogger(__name__)

# Examples of a dataset by which two readings of it are compared; they are read twice more, once.
_COMPARED = 16


class BadExampleError(ValueError):
    """An example that cannot be read; the input pipeline skips, counts and reports it.

    Args:
        reason: what is wrong.
        where: its file, or what else tells it from others; left out, its number does.
    """

    def __init__(self, reason: str, where: object = None) -> None:
        super().__init__(reason if where is None else f"{where}: {reason}")
        self.reason, self.where = reason, None if where is None else str(where)


def listed(inputs: Any, what: str) -> Sequence[Any]:
    """The inputs of `predict`, with random access; arrays stay arrays, and anything that can be gone through will do.

    Args:
        inputs: what the caller gave.
        what: what they are, for the message.

    Raises:
        TypeError: for a single string, bytes or path, and for what cannot be gone through.
    """
    if isinstance(inputs, str | bytes | PurePath) or not isinstance(inputs, Iterable):
        raise TypeError(f"`inputs` must be a list of {what}; received one {type(inputs).__name__}. Put it in a list.")
    given: Any = inputs
    sequence: Sequence[Any] = given if isinstance(inputs, Sequence | np.ndarray) else list(inputs)
    return sequence


@dataclass(frozen=True)
class BadRecord:
    """A record that was skipped: `where` (file, and line where there is one) and `reason`."""

    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(frozen=True)
class Examples:
    """Raw examples with random access: what readers return.

    `inputs` and `targets` are sequences of equal length (lists, arrays, or anything with `len` and `[i]`);
    `bad_records` are those that the reader left out.
    """

    inputs: Sequence[Any] | np.ndarray
    targets: Sequence[Any] | np.ndarray
    bad_records: tuple[BadRecord, ...] = ()

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise ValueError(
                f"`inputs` and `targets` must have equal lengths; received {len(self.inputs)} inputs and "
                f"{len(self.targets)} targets."
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.inputs[index], self.targets[index]

    def take(self, indices: Sequence[int] | np.ndarray) -> Examples:
        """The examples at `indices`, in that order."""
        return Examples([self.inputs[i] for i in indices], [self.targets[i] for i in indices], self.bad_records)


@dataclass(frozen=True)
class StreamedExamples:
    """Examples of an unbatched `tf.data.Dataset` of (input, target), read from the start in each epoch.

    Each reading must give the same examples in the same order: by their places, examples are cached, and those that
    cannot be read are left out. So the dataset is not to shuffle or vary its examples itself.
    """

    dataset: tf.data.Dataset

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for values in self.dataset.as_numpy_iterator():
            yield _native(values[0]), _native(values[1])

    def require_repeatable(self) -> None:
        """Compare the first examples of two readings.

        Raises:
            ValueError: where they differ.
        """
        first, second = (list(itertools.islice(self.dataset, _COMPARED)) for _ in range(2))
        if [_comparable(example) for example in first] != [_comparable(example) for example in second]:
            raise ValueError(
                "The dataset gives other examples, or another order, each time that it is read. Remove `.shuffle()` "
                "and random changes: `fit` shuffles itself, and pipelines augment (TFDS: shuffle_files=False)."
            )

    def count(self) -> int:
        """Number of examples; counts by reading where the dataset does not know."""
        cardinality = int(self.dataset.cardinality())
        return cardinality if cardinality >= 0 else sum(1 for _ in self.dataset)


Source: TypeAlias = Examples | StreamedExamples


def as_source(data: Any, *, name: str = "data") -> Source:
    """`data` as a source of raw examples.

    Args:
        data: `Examples`, an unbatched `tf.data.Dataset` of (input, target), or a pair (inputs, targets) of sequences.
        name: what to call it in an error.

    Raises:
        TypeError: for anything else, and for a dataset whose elements are no pairs.
        ValueError: where there is no example at all, or a dataset never ends.
    """
    source = _to_source(data, name)
    if isinstance(source, Examples) and not len(source):
        raise ValueError(f"`{name}` has no examples. Check the path, or what the reader reported as bad records.")
    return source


def _to_source(data: Any, name: str) -> Source:
    if isinstance(data, Examples | StreamedExamples):
        return data
    if hasattr(data, "element_spec"):
        return _streamed(data, name)
    if isinstance(data, tuple) and len(data) == 2 and all(hasattr(part, "__len__") for part in data):
        return Examples(data[0], data[1])
    raise TypeError(
        f"`{name}` must be what a reader returns, an unbatched tf.data.Dataset of (input, target), or a pair "
        f"(inputs, targets); received {type(data).__name__}."
    )


def _streamed(dataset: tf.data.Dataset, name: str) -> StreamedExamples:
    spec = dataset.element_spec
    if not (isinstance(spec, tuple) and len(spec) == 2):
        raise TypeError(
            f"`{name}` must yield pairs (input, target); its element_spec is {spec}. Map it to pairs first "
            "(TFDS: as_supervised=True)."
        )
    cardinality = int(dataset.cardinality())
    if cardinality == -1:
        raise ValueError(f"`{name}` is endless. Remove `.repeat()`: `fit` goes over the examples once an epoch.")
    if cardinality == 0:
        raise ValueError(f"`{name}` has no examples.")
    return StreamedExamples(dataset)


def _comparable(example: Any) -> list[Any]:
    """The tensors of an example as values that `==` compares, NaN included; ragged and sparse ones are left out."""
    import tensorflow as tf

    tensors = [tensor for tensor in tf.nest.flatten(example) if isinstance(tensor, tf.Tensor)]
    arrays = [tensor.numpy() for tensor in tensors]
    return [_plain_value(array) for array in arrays]


def _plain_value(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist() if value.dtype.hasobject else value.tobytes()
    return value.tobytes() if isinstance(value, np.generic) else value


def _native(value: Any) -> Any:
    """Scalars of a dataset as Python numbers; anything else as it is (strings come as bytes)."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    return value


def text_lines(given: Iterable[str]) -> Iterator[str]:
    """The texts that inputs of a command line stand for: @FILE for the lines of a file, - for those of standard input.

    Raises:
        FileNotFoundError: where there is no such file.
    """
    for item in given:
        if item == "-":
            yield from (line.rstrip("\n") for line in sys.stdin)
        elif item.startswith("@"):
            with Path(item[1:]).open(encoding="utf-8") as lines:
                yield from (line.rstrip("\n") for line in lines)
        else:
            yield item


def existing_file(path: str | Path) -> Path:
    """`path`, which must be a file.

    Raises:
        FileNotFoundError: where there is nothing.
        ValueError: for a directory.
    """
    return _existing(Path(path), directory=False)


def existing_directory(path: str | Path) -> Path:
    """`path`, which must be a directory.

    Raises:
        FileNotFoundError: where there is nothing.
        ValueError: for a file.
    """
    return _existing(Path(path), directory=True)


def _existing(path: Path, *, directory: bool) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"There is nothing at {path}. Check the path.")
    kinds = {True: "a directory", False: "a file"}
    if path.is_dir() != directory:
        raise ValueError(f"{path} is {kinds[not directory]}; expected {kinds[directory]}.")
    return path


class _WasRead(Protocol):
    """What a reader made of a file, and the records that it left out."""

    @property
    def bad_records(self) -> tuple[BadRecord, ...]: ...

    def __len__(self) -> int: ...


_Read = TypeVar("_Read", bound=_WasRead)


def tolerated(examples: _Read, where: Path, max_bad_share: float, *, things: str) -> _Read:
    """`examples` as they were read from `where`; bad records among its `things` are reported.

    Raises:
        ValueError: where there is nothing at all, nothing good, or more than `max_bad_share` is bad.
    """
    bad, total = examples.bad_records, len(examples) + len(examples.bad_records)
    if not total:
        raise ValueError(f"{where} has no {things}. Check the path and the format.")
    if len(bad) > math.ceil(max_bad_share * total) or not len(examples):
        raise ValueError(f"{where}: {len(bad)} of {total} {things} cannot be used; the first: {bad[0]}.")
    if bad:
        logger.warning("%s: %d of %d %s cannot be used, the first: %s", where, len(bad), total, things, bad[0])
    return examples
