"""What users hand over as texts: strings, pairs of them, lists of words, and what is annotated in them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nlp.tags import EntitySpan, Scheme, detect_scheme, entities, split_tag, tags_of
from nlp.words import word_spans
from shared.examples import BadExampleError, Examples, Source

# Examples of a stream from whose tags the scheme is read.
_SCHEME_SAMPLE = 1_000


def decoded_text(value: Any) -> str:
    """A text that is a string or UTF-8.

    Raises:
        BadExampleError: for bytes that are not UTF-8.
        TypeError: for anything else.
    """
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadExampleError(f"not UTF-8: byte {value[error.start]:#04x} at position {error.start}") from error
    if isinstance(value, str):
        return str(value)
    raise TypeError(f"An input is a text (str), or a tuple of two; received {type(value).__name__}.")


def text_or_pair(text: Any) -> tuple[str, str | None]:
    """A text and its partner, None where it has none.

    Raises:
        BadExampleError: for bytes that are not UTF-8.
        TypeError: for what is neither a text nor a pair of texts.
    """
    if isinstance(text, tuple | list | np.ndarray) and np.ndim(text) == 1 and len(text) == 2:
        return decoded_text(text[0]), decoded_text(text[1])
    return decoded_text(text), None


@dataclass(frozen=True)
class WordedText:
    """A text by its words: `spans` are their places in `original`; `is_list`: it came as a list of words."""

    original: str
    spans: tuple[tuple[int, int], ...]
    is_list: bool

    @property
    def words(self) -> list[str]:
        """The words themselves."""
        return [self.original[start:end] for start, end in self.spans]


def worded_text(value: Any) -> WordedText:
    """A string with the words found in it, or a list of words with a space between them.

    Raises:
        BadExampleError: for bytes that are not UTF-8.
        TypeError: for anything else.
    """
    if isinstance(value, str | bytes):
        text = decoded_text(value)
        return WordedText(text, tuple(word_spans(text)), is_list=False)
    if isinstance(value, list | tuple | np.ndarray) and all(isinstance(word, str | bytes) for word in value):
        words = [decoded_text(word) for word in value]
        ends = list(itertools.accumulate(len(word) + 1 for word in words))
        spans = tuple((end - len(word) - 1, end - 1) for word, end in zip(words, ends, strict=True))
        return WordedText(" ".join(words), spans, is_list=True)
    raise TypeError(f"An input is a text (str) or a list of words (str); received {type(value).__name__}.")


def entities_of(text: WordedText, target: Any, scheme: Scheme) -> list[EntitySpan]:
    """The entities of a text by words, from its tags, one per word, or from spans (start, end, type) in characters.

    Spans are widened to whole words.

    Raises:
        BadExampleError: for tags that are not as many as the words or break the scheme.
    """
    if text.is_list:
        tags = [decoded_text(tag) for tag in target]
        if len(tags) != len(text.spans):
            raise BadExampleError(f"{len(text.spans)} words have {len(tags)} tags")
        try:
            return entities(tags, scheme)
        except ValueError as error:
            raise BadExampleError(str(error)) from error
    found = []
    for start, end, kind in target:
        inside = [number for number, span in enumerate(text.spans) if span[0] < end and span[1] > start]
        if inside:
            found.append((str(kind), inside[0], inside[-1] + 1))
    try:
        tags_of(found, len(text.spans), scheme)
    except ValueError as error:
        raise BadExampleError(str(error)) from error
    return found


def scheme_of(source: Source) -> Scheme:
    """The scheme of the tags of a source; what does not come as tags has none, and any will do."""
    targets = source.targets if isinstance(source, Examples) else (target for _, target in source)
    inputs = source.inputs if isinstance(source, Examples) else (value for value, _ in source)
    limit = None if isinstance(source, Examples) else _SCHEME_SAMPLE
    pairs = itertools.islice(zip(inputs, targets, strict=True), limit)
    return detect_scheme(
        [decoded_text(t) for t in target] for value, target in pairs if not isinstance(value, str | bytes)
    )


def types_in(source: Source) -> tuple[str, ...]:
    """The entity types that occur in a source, sorted.

    Raises:
        ValueError: where there are none.
    """
    targets = source.targets if isinstance(source, Examples) else (target for _, target in source)
    found: set[str] = set()
    for target in targets:
        for part in target:
            if isinstance(part, str | bytes):
                found.add(split_tag(decoded_text(part))[1])
            else:
                found.add(str(part[2]))
    types = tuple(sorted(found - {""}))
    if not types:
        raise ValueError("The training set has no entities: each tag is O. Is the tag column the right one?")
    return types


def types_of(tags: Iterable[str]) -> tuple[str, ...]:
    """The entity types of tags, sorted."""
    return tuple(sorted({split_tag(tag)[1] for tag in tags} - {""}))
