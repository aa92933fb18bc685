"""Vocabularies: the two-way table between what users call things and the numbers that models use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

# First line of a file whose entries are integers; a string entry can never look like it, its backslash is doubled.
_INTEGERS = "\\integers"
_UNKNOWN = "\\unknown "
_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\x0b": "\\v", "\x0c": "\\f", "\x1c": "\\1", "\x1d": "\\2",
            "\x1e": "\\3", "\x85": "\\4", "\u2028": "\\5", "\u2029": "\\6"}  # fmt: skip
_PLAIN = {escaped[1]: plain for plain, escaped in _ESCAPES.items()}


class Vocabulary:
    """Distinct entries, all strings or all integers, numbered from 0 in the given order.

    Args:
        entries: the entries in the order of their numbers.
        unknown: an entry that stands for everything not in the vocabulary; without it, `encode` refuses such values.

    Raises:
        TypeError: for entries that are neither all strings nor all integers.
        ValueError: for an entry that occurs twice, or an `unknown` that is no entry.

    Example:
        >>> Vocabulary(["cat", "dog"]).encode(["dog", "cat"]).tolist()
        [1, 0]
    """

    def __init__(self, entries: Iterable[Any], *, unknown: Any = None) -> None:
        self._entries: tuple[Any, ...] = tuple(_plain(entry) for entry in entries)
        self.kind: type = int if self._entries and isinstance(self._entries[0], int) else str
        for entry in self._entries:
            if not isinstance(entry, self.kind) or isinstance(entry, bool):
                raise TypeError(
                    f"Entries must be all strings or all integers; received {entry!r} among {self.kind.__name__}."
                )
        self._numbers = {entry: number for number, entry in enumerate(self._entries)}
        if len(self._numbers) != len(self._entries):
            twice = [entry for entry, count in Counter(self._entries).items() if count > 1]
            raise ValueError(f"Entries must be distinct; {twice[0]!r} occurs more than once.")
        if unknown is not None and unknown not in self._numbers:
            raise ValueError(f"`unknown` must be one of the entries; received {unknown!r}.")
        self.unknown = unknown

    @classmethod
    def from_values(
        cls,
        values: Iterable[Any],
        *,
        order: Literal["sorted", "frequency", "first_seen"] = "sorted",
        min_count: int = 1,
        max_size: int | None = None,
    ) -> Self:
        """The distinct values that occur at least `min_count` times; with `max_size`, the most frequent of them."""
        counts = Counter(_plain(value) for value in values)
        kept = [value for value, count in counts.items() if count >= min_count]
        if order == "frequency" or (max_size is not None and len(kept) > max_size):
            by_frequency = sorted(kept, key=lambda value: -counts[value])[:max_size]
            chosen = set(by_frequency)
            kept = by_frequency if order == "frequency" else [value for value in kept if value in chosen]
        return cls(sorted(kept) if order == "sorted" else kept)

    def encode(self, values: Iterable[Any]) -> np.ndarray:
        """Numbers of `values`, int64.

        Raises:
            ValueError: for values that are no entries, where there is no `unknown`; the message names some.
        """
        default = -1 if self.unknown is None else self._numbers[self.unknown]
        items = values.tolist() if isinstance(values, np.ndarray) else list(values)
        numbers = np.fromiter((self._numbers.get(item, default) for item in items), np.int64, len(items))
        if self.unknown is None and (numbers < 0).any():
            missing = [items[i] for i in np.flatnonzero(numbers < 0)[:5]]
            raise ValueError(f"{int((numbers < 0).sum())} values are not in the vocabulary of {len(self)}: {missing}.")
        return numbers

    def decode(self, numbers: Sequence[int] | np.ndarray) -> list[Any]:
        """Entries with these numbers.

        Raises:
            IndexError: for a number outside of 0 ... len - 1.
        """
        wrong = [int(number) for number in numbers if not 0 <= number < len(self)]
        if wrong:
            raise IndexError(f"Numbers must be from 0 to {len(self) - 1}; received {wrong[0]}.")
        return [self._entries[number] for number in numbers]

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._entries)

    def __contains__(self, entry: object) -> bool:
        return entry in self._numbers

    def __eq__(self, other: object) -> bool:
        same = isinstance(other, Vocabulary) and self._entries == other._entries
        return same and self.unknown == other.unknown  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash((self._entries, self.unknown))

    def __repr__(self) -> str:
        shown = ", ".join(repr(entry) for entry in self._entries[:3])
        return f"Vocabulary({len(self)} entries: {shown}{', ...' if len(self) > 3 else ''})"

    def save(self, path: Path) -> None:
        """Write one entry a line, UTF-8; line breaks and backslashes inside an entry are escaped."""
        header = [_INTEGERS] if self.kind is int else []
        if self.unknown is not None:
            header.append(_UNKNOWN + _escape(str(self.unknown)))
        lines = header + [_escape(str(entry)) for entry in self._entries]
        path.write_bytes("".join(line + "\n" for line in lines).encode("utf-8", "surrogatepass"))

    @classmethod
    def load(cls, path: Path) -> Self:
        """The vocabulary that `save` wrote."""
        lines = path.read_bytes().decode("utf-8", "surrogatepass").split("\n")[:-1]
        integers = bool(lines) and lines[0] == _INTEGERS
        lines = lines[1:] if integers else lines
        unknown = _unescape(lines.pop(0).removeprefix(_UNKNOWN)) if lines and lines[0].startswith(_UNKNOWN) else None
        entries: list[Any] = [_unescape(line) for line in lines]
        if integers:
            return cls(map(int, entries), unknown=None if unknown is None else int(unknown))
        return cls(entries, unknown=unknown)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _escape(text: str) -> str:
    return "".join(_ESCAPES.get(character, character) for character in text)


def _unescape(line: str) -> str:
    if "\\" not in line:
        return line
    characters = iter(line)
    return "".join(_PLAIN[next(characters)] if c == "\\" else c for c in characters)
