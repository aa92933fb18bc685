"""Tags of named entities, word by word, and the schemes in which they are written.

            Ada    Lovelace  met  Charles  in  London  Paris
    IOB1    I-PER  I-PER     O    I-PER    O   I-LOC   B-LOC    B- only where an entity touches another of its type
    IOB2    B-PER  I-PER     O    B-PER    O   B-LOC   B-LOC    B- begins every entity
    BIOES   B-PER  E-PER     O    S-PER    O   S-LOC   S-LOC    E- ends it, S- is an entity of one word

BILOU is BIOES with other letters and is read as such. An entity is (type, start, end) in words, `end` exclusive.

Sources: Ramshaw and Marcus 1995 (cmp-lg/9505040) for IOB1; Tjong Kim Sang and Veenstra 1999 (cs/9907006) for IOB2;
Ratinov and Roth 2009 (W09-1119) for BILOU.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import numpy as np

Scheme: TypeAlias = Literal["IOB1", "IOB2", "BIOES"]
# What becomes of tags that break their scheme, such as an I-PER after O in IOB2:
#   "error"   they are an error that says where
#   "drop"    what is no complete entity is none, as seqeval counts IOB2 and BIOES in its strict mode
#   "repair"  they are read as the entities they most likely mean, as conlleval reads B- and I-
Malformed: TypeAlias = Literal["error", "drop", "repair"]
EntitySpan: TypeAlias = tuple[str, int, int]

_PREFIXES: dict[str, str] = {"IOB1": "BI", "IOB2": "BI", "BIOES": "BIES"}
_BILOU = {"L": "E", "U": "S"}
_Tag: TypeAlias = tuple[str, str]
_OUTSIDE: _Tag = ("O", "")


class MalformedTagsError(ValueError):
    """Tags that break their scheme; `position` is that of the first, `sequence` that of its sequence among several."""

    def __init__(self, reason: str, position: int, sequence: int | None = None) -> None:
        where = f"position {position}" if sequence is None else f"sequence {sequence}, position {position}"
        super().__init__(f"{where}: {reason}")
        self.reason = reason
        self.position = position
        self.sequence = sequence


@functools.lru_cache(maxsize=4096)
def split_tag(tag: str) -> tuple[str, str]:
    """Prefix and type of a tag: ("B", "PER") for "B-PER", ("O", "") for "O"; L- and U- give E and S.

    Raises:
        ValueError: for anything else.
    """
    if tag == "O":
        return _OUTSIDE
    prefix, _, kind = tag.partition("-")
    prefix = _BILOU.get(prefix, prefix)
    if prefix not in ("B", "I", "E", "S") or not kind:
        raise ValueError(
            f"{tag!r} is no tag. Expected 'O', or one of B- I- E- S- (L- U- in BILOU) and a type, as in 'B-PER'."
        )
    return prefix, kind


def detect_scheme(sequences: Iterable[Sequence[str]]) -> Scheme:
    """The scheme in which these sequences of tags are written; IOB2 where nothing tells.

    Any E- or S- (L- or U-) means BIOES. Otherwise the entities decide that touch no other: they begin with I- in
    IOB1 and with B- in IOB2. Where both occur the more frequent wins, and the others will be found malformed.

    Raises:
        ValueError: for a tag that is none.

    Example:
        >>> detect_scheme([["I-PER", "I-PER", "O"], ["O", "I-LOC", "B-LOC"]])
        'IOB1'
    """
    begun_with = {"B": 0, "I": 0}
    for tags in sequences:
        previous = _OUTSIDE
        for tag in map(split_tag, tags):
            prefix, kind = tag
            if prefix in ("E", "S"):
                return "BIOES"
            if kind and kind != previous[1]:
                begun_with[prefix] += 1
            previous = tag
    return "IOB1" if begun_with["I"] > begun_with["B"] else "IOB2"


def entities(tags: Sequence[str], scheme: Scheme, *, malformed: Malformed = "error") -> list[EntitySpan]:
    """The entities that a sequence of tags denotes, in order of their words.

    Args:
        tags: one per word.
        scheme: how they are written.
        malformed: what becomes of tags that break the scheme: "error", "drop" (they denote nothing) or "repair"
            (they begin an entity, as in conlleval).

    Raises:
        MalformedTagsError: for tags that break the scheme, with "error".
        ValueError: for a tag that is none, or has a prefix that the scheme does not know.

    Example:
        >>> entities(["B-PER", "I-PER", "O", "B-LOC"], "IOB2")
        [('PER', 0, 2), ('LOC', 3, 4)]
    """
    if malformed not in get_args(Malformed):
        raise ValueError(f"`malformed` must be 'error', 'drop' or 'repair'; received {malformed!r}.")
    parsed = _parsed(tags, scheme)
    if malformed == "repair":
        return list(_repaired(parsed))
    found, faults = _grammatical(parsed, scheme)
    if faults and malformed == "error":
        raise MalformedTagsError(_reason(tags, faults[0], scheme), faults[0])
    return found


def convert(
    sequences: Iterable[Sequence[str]], source: Scheme, target: Scheme, *, malformed: Malformed = "error"
) -> list[tuple[str, ...]]:
    """The same entities written in another scheme, sequence by sequence.

    Args:
        sequences: tags written in `source`.
        source: the scheme they are in.
        target: the scheme wanted; with `source` again, and "drop" or "repair", sequences are made well-formed.
        malformed: as for `entities`.

    Raises:
        MalformedTagsError: for tags that break `source`; it names sequence and position.
        ValueError: for a tag that is none, or has a prefix that `source` does not know.

    Example:
        >>> convert([["I-PER", "I-PER", "B-PER"]], "IOB1", "BIOES")
        [('B-PER', 'E-PER', 'S-PER')]
    """
    converted = []
    for number, tags in enumerate(sequences):
        try:
            found = entities(tags, source, malformed=malformed)
        except MalformedTagsError as error:
            raise MalformedTagsError(error.reason, error.position, number) from error
        except ValueError as error:
            raise ValueError(f"sequence {number}: {error}") from error
        converted.append(tags_of(found, len(tags), target))
    return converted


def tags_of(entities: Iterable[EntitySpan], length: int, scheme: Scheme) -> tuple[str, ...]:
    """The tags of `length` words that denote `entities`, given in any order.

    Raises:
        ValueError: for entities that are empty, overlap, or reach beyond the words.

    Example:
        >>> tags_of([("PER", 0, 2), ("LOC", 2, 3)], 4, "BIOES")
        ('B-PER', 'E-PER', 'S-LOC', 'O')
    """
    _require_scheme(scheme)
    tags = ["O"] * length
    previous: EntitySpan = ("", 0, 0)
    for entity in sorted(entities, key=lambda entity: entity[1:]):
        kind, start, end = entity
        if not 0 <= start < end <= length:
            raise ValueError(f"Entity {entity} must have at least one of the {length} words and none beyond them.")
        if start < previous[2]:
            raise ValueError(f"Entities {previous} and {entity} overlap; a word can have one tag only.")
        touches = previous[2] == start and previous[0] == kind
        prefixes = _prefixes(end - start, scheme, touches=touches)
        tags[start:end] = [f"{prefix}-{kind}" for prefix in prefixes]
        previous = entity
    return tuple(tags)


def tag_names(types: Iterable[str], scheme: Scheme) -> tuple[str, ...]:
    """All tags of a scheme for these entity types: "O" first, then type by type in sorted order.

    Example:
        >>> tag_names(["PER", "LOC"], "IOB2")
        ('O', 'B-LOC', 'I-LOC', 'B-PER', 'I-PER')
    """
    _require_scheme(scheme)
    return ("O", *(f"{prefix}-{kind}" for kind in sorted(set(types)) for prefix in _PREFIXES[scheme]))


@dataclass(frozen=True)
class Transitions:
    """Which of K tags may follow which in a well-formed sequence; arrays of bool.

    `pairs` (K, K): tag j (column) may follow tag i (row). `first` (K,): a sequence may begin with the tag; `last`
    (K,): it may end with it.
    """

    pairs: np.ndarray
    first: np.ndarray
    last: np.ndarray


def transitions(tags: Sequence[str], scheme: Scheme) -> Transitions:
    """The transitions that a scheme allows between these tags: those that `entities` takes without an error.

    Raises:
        ValueError: for a tag that is none, or has a prefix that the scheme does not know.
    """
    parsed = _parsed(tags, scheme)
    pairs = [[_may_follow(previous, tag, scheme) for tag in parsed] for previous in parsed]
    return Transitions(
        pairs=np.array(pairs, bool).reshape(len(parsed), len(parsed)),
        first=np.array([_may_follow(_OUTSIDE, tag, scheme) for tag in parsed], bool),
        last=np.array([_may_end(tag, scheme) for tag in parsed], bool),
    )


def _parsed(tags: Sequence[str], scheme: Scheme) -> list[_Tag]:
    _require_scheme(scheme)
    parsed = [split_tag(tag) for tag in tags]
    known = "O" + _PREFIXES[scheme]
    for position, (prefix, _) in enumerate(parsed):
        if prefix not in known:
            raise ValueError(f"position {position}: {scheme} has no tag like {tags[position]!r}. Is it BIOES or BILOU?")
    return parsed


def _require_scheme(scheme: str) -> None:
    if scheme not in _PREFIXES:
        raise ValueError(f"`scheme` must be one of {', '.join(_PREFIXES)}; received {scheme!r}.")


# The grammar of the schemes, by a tag and the one before it.


def _begins(previous: _Tag, tag: _Tag, scheme: Scheme) -> bool:
    prefix, kind = tag
    if scheme == "IOB1":
        return prefix == ("B" if kind == previous[1] else "I")
    return prefix in ("B", "S")


def _continues(previous: _Tag, tag: _Tag, scheme: Scheme) -> bool:
    (before, kind_before), (prefix, kind) = previous, tag
    if kind != kind_before:
        return False
    if scheme == "BIOES":
        return before in ("B", "I") and prefix in ("I", "E")
    return prefix == "I"


def _may_end(tag: _Tag, scheme: Scheme) -> bool:
    return scheme != "BIOES" or tag[0] in ("O", "E", "S")


def _may_follow(previous: _Tag, tag: _Tag, scheme: Scheme) -> bool:
    if tag != _OUTSIDE and _continues(previous, tag, scheme):
        return True
    return _may_end(previous, scheme) and (tag == _OUTSIDE or _begins(previous, tag, scheme))


def _grammatical(tags: Sequence[_Tag], scheme: Scheme) -> tuple[list[EntitySpan], list[int]]:
    """The complete entities, and the positions of tags that belong to none."""
    found: list[EntitySpan] = []
    faults: list[int] = []
    position, previous = 0, _OUTSIDE
    while position < len(tags):
        end = position + 1
        if tags[position] == _OUTSIDE:
            pass
        elif not _begins(previous, tags[position], scheme):
            faults.append(position)
        else:
            while end < len(tags) and _continues(tags[end - 1], tags[end], scheme):
                end += 1
            if _may_end(tags[end - 1], scheme):
                found.append((tags[position][1], position, end))
            else:
                faults.append(end - 1)
        position, previous = end, tags[end - 1]
    return found, faults


def _repaired(tags: Sequence[_Tag]) -> Iterator[EntitySpan]:
    """Entities by the rules of conlleval (CoNLL-2000), carried over to E- and S-: no tag but O goes unused."""
    start, previous = 0, _OUTSIDE
    for position, tag in enumerate([*tags, _OUTSIDE]):
        apart = tag[1] != previous[1] or previous[0] in ("E", "S") or tag[0] in ("B", "S")
        if apart:
            if previous != _OUTSIDE:
                yield previous[1], start, position
            start = position
        previous = tag


def _reason(tags: Sequence[str], position: int, scheme: Scheme) -> str:
    before = tags[position - 1] if position else "the beginning"
    after = tags[position + 1] if position + 1 < len(tags) else "the end"
    return (
        f"{tags[position]} between {before} and {after} breaks {scheme}. Correct the tags, name their real scheme, or "
        'have them read with malformed="repair".'
    )


def _prefixes(length: int, scheme: Scheme, *, touches: bool) -> str:
    if scheme == "IOB1":
        return ("B" if touches else "I") + "I" * (length - 1)
    if scheme == "IOB2":
        return "B" + "I" * (length - 1)
    return "S" if length == 1 else "B" + "I" * (length - 2) + "E"
