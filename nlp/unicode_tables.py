"""What the `tokenizers` library does to each character, as NumPy tables.

A tokenizer within a graph has to agree with the library character by character, also with its version of Unicode. So
nothing here is taken from another source: the library is asked about every character. Characters are code points; a
table has one row for each of 0 ... 0x10FFFF.
"""

from __future__ import annotations

import functools
import struct
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from tokenizers import Regex, normalizers, pre_tokenizers

NUM_CODES = 0x110000
KEPT, ISOLATED, REMOVED = 0, 1, 2

# Planes 4 to 13 and most of 14 are unassigned, 15 and 16 are private: one character of each kind stands for them.
_ASSIGNED = np.r_[0:0xD800, 0xE000:0x34000, 0xE0000:0xE1000]
_UNASSIGNED, _PRIVATE = 0x50000, 0xF0000
_ALL = np.r_[_ASSIGNED, _UNASSIGNED, _PRIVATE]
# Ideographs, Hangul syllables, private and Tangut characters, which differ in what they become but not in how they
# split or join: the first of each range stands for it.
_UNIFORM = ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0xAC00, 0xD7A4), (0xE000, 0xF900), (0x17000, 0x18D00),
            (0x20000, 0x34000))  # fmt: skip
_FEW = np.setdiff1d(_ALL, np.concatenate([np.arange(start + 1, stop) for start, stop in _UNIFORM]))
_GROUP = 64
# What may stand between two characters without changing either; a normalizer leaves one of these alone.
_SEPARATORS = ("\ue000", "|")
_END = "\x01"
_GRAVE, _IOTA = "\u0300", "\u0345"
# Bytes of the longest cluster that `Precompiled` looks up as a whole (tokenizers: normalizers/precompiled.rs).
_LONGEST_CLUSTER = 5


@dataclass(frozen=True)
class CharacterMap:
    """A text for each character: `rows[code]` is 0 where it stays as it is, else a row of `texts`.

    Attributes:
        rows: int32 (0x110000,).
        texts: what characters become, as code points; the first entry is never used.
    """

    rows: np.ndarray
    texts: tuple[tuple[int, ...], ...]


@functools.lru_cache(maxsize=8)
def matching(pattern: str) -> np.ndarray:
    """The characters that the library's regular expression `pattern` matches alone: bool (0x110000,)."""
    mark = _END
    text = "".join(map(chr, _ALL.tolist())).replace(mark, "a")
    marked = _codes(normalizers.Replace(Regex(pattern), mark).normalize_str(text))
    return _spread(marked == ord(mark), _ALL).astype(bool)


@functools.lru_cache(maxsize=8)
def split_classes(name: Literal["BertPreTokenizer", "WhitespaceSplit", "Punctuation"]) -> np.ndarray:
    """int32 (0x110000,): KEPT within a word, ISOLATED as a word of its own, or REMOVED, by a pre-tokenizer."""
    pre_tokenizer = getattr(pre_tokenizers, name)()
    classes = np.full(len(_FEW), KEPT)
    groups = [_FEW[start : start + _GROUP] for start in range(0, len(_FEW), _GROUP)]
    for number, group in enumerate(groups):
        text = "a" + "".join(map(chr, group.tolist())) + "a"
        if len(pre_tokenizer.pre_tokenize_str(text)) == 1:
            continue
        for place, code in enumerate(group.tolist(), start=number * _GROUP):
            parts = pre_tokenizer.pre_tokenize_str(f"a{chr(code)}a")
            classes[place] = {1: KEPT, 2: REMOVED, 3: ISOLATED}[len(parts)]
    return _spread(classes, _FEW)


def character_map(normalize: Callable[[str], str]) -> CharacterMap:
    """What `normalize` makes of each character by itself.

    Raises:
        ValueError: where it treats characters in a way that cannot be told apart.
    """
    characters = list(map(chr, _ALL.tolist()))
    for separator in _SEPARATORS:
        parts = normalize(separator.join(characters)).split(separator)
        at = characters.index(separator)
        if len(parts) == len(characters) + 1 and not parts[at] and not parts[at + 1]:
            parts[at : at + 2] = [separator]
            return _collected(characters, parts)
    raise ValueError("The normalizer's effect on single characters cannot be found out.")


def _collected(characters: list[str], texts: list[str]) -> CharacterMap:
    numbers: dict[str, int] = {}
    rows = np.zeros(len(characters), np.int32)
    for place, (character, text) in enumerate(zip(characters, texts, strict=True)):
        if text != character:
            rows[place] = numbers.setdefault(text, len(numbers) + 1)
    return CharacterMap(_spread(rows, _ALL), ((), *(tuple(map(ord, text)) for text in numbers)))


def _spread(values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Values of the characters that were asked about, as an int32 table of all."""
    table = np.full(NUM_CODES, values[asked == _UNASSIGNED][0], np.int32)
    for plane in (_PRIVATE, _PRIVATE + 0x10000):
        table[plane : plane + 0xFFFE] = values[asked == _PRIVATE][0]
    table[asked] = values
    if len(asked) == len(_FEW):
        for start, stop in _UNIFORM:
            table[start:stop] = table[start]
    return table


def _ask(normalize: Callable[[str], str], line: Callable[[str], str]) -> list[str]:
    """What becomes of `line(character)` for each character of `_FEW`; a control character stands between them."""
    answers = normalize(_END.join(line(chr(code)) for code in _FEW.tolist())).split(_END)
    at = _FEW.tolist().index(ord(_END))
    # The control character itself made two of its line.
    answers[at : at + 2] = [answers[at] + _END + answers[at + 1]]
    return answers


def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


@functools.lru_cache(maxsize=1)
def combining_ranks() -> np.ndarray:
    """int32 (0x110000,): 0 for characters that stay in place, else a number that grows with the combining class.

    Of two neighbours, canonical decomposition puts the one of the lower class first; so it is asked about pairs.
    """
    decompose = normalizers.NFD().normalize_str
    pairs = _ask(decompose, lambda character: f"a{_IOTA}{character}")
    marks = [pair[1] for pair in pairs if len(pair) == 3 and pair[1] != _IOTA and pair[2] == _IOTA]
    classes = {unicodedata.combining(mark): mark for mark in marks if unicodedata.combining(mark)}
    known = [classes[number] for number in sorted(classes)]
    order = decompose(_END.join(f"a{reference}{mark}" for mark in marks for reference in known)).split(_END)
    ranks = np.zeros(NUM_CODES, np.int32)
    for place, mark in enumerate(marks):
        rows = order[place * len(known) : (place + 1) * len(known)]
        # One more than the number of classes that are not above the mark's own.
        ranks[ord(mark)] = 1 + sum(row[2:] == mark for row in rows)
    ranks[ord(_IOTA)] = len(known) + 2
    return ranks


@functools.lru_cache(maxsize=1)
def compositions() -> dict[tuple[int, int], int]:
    """Pairs of characters that canonical composition joins, and what they become; without Hangul syllables."""
    composed = [chr(code) for code in _FEW.tolist() if unicodedata.decomposition(chr(code))[:1] not in ("", "<")]
    pairs = [unicodedata.normalize("NFD", character) for character in composed]
    pairs = [
        first + second
        for character, whole in zip(composed, pairs, strict=True)
        for first, second in [(unicodedata.normalize("NFC", whole[:-1]), whole[-1])]
        if len(whole) > 1 and len(first) == 1
    ]
    answers = normalizers.NFC().normalize_str(_END.join(pairs)).split(_END)
    joined = zip(pairs, answers, strict=True)
    return {(ord(pair[0]), ord(pair[1])): ord(answer) for pair, answer in joined if len(answer) == 1}


# The character map of a SentencePiece model.


@dataclass(frozen=True)
class GraphemeRules:
    """Which characters belong together, as far as `Precompiled` asks: for clusters of less than six bytes.

    Attributes:
        extends: bool (0x110000,): joined to the character before.
        prepends: bool (0x110000,): joined to the character after.
        breaks: bool (0x110000,): never joined to another.
        pictures: bool (0x110000,): joined to a picture before when a zero-width joiner stands between them.
    """

    extends: np.ndarray
    prepends: np.ndarray
    breaks: np.ndarray
    pictures: np.ndarray


@functools.lru_cache(maxsize=1)
def grapheme_rules() -> GraphemeRules:
    """Asked of the library with a map that makes "x" of every cluster of less than six bytes."""
    normalize = normalizers.Precompiled(_map_of_all_bytes()).normalize_str

    def joined(before: str, after: str, expected: int) -> np.ndarray:
        lines = _ask(normalize, lambda character: before + character + after)
        return _spread(np.array([len(line) == expected for line in lines]), _FEW).astype(bool)

    extends = joined("a", "", 1)
    prepends = joined("", "a", 1)
    # Characters of more than three bytes, and what is no base, are of no matter here.
    breaks = ~joined("", _GRAVE, 1) & (np.arange(NUM_CODES) < 0x10000)
    pictures = joined("\u00a9\u200d", "", 3)
    return GraphemeRules(extends, prepends, breaks, pictures)


def _map_of_all_bytes() -> bytes:
    """A precompiled map (google/sentencepiece: src/normalizer.cc) from each byte but `_END` to "x".

    Its trie is a double array (s-yata/darts-clone: include/darts.h): unit 0 is the root; the child for a byte lies at
    offset ^ byte and has the byte as its label; a unit whose 9th bit is set has its value at offset ^ 0.
    """
    units = [0] * 1024
    # Of the root: children from 256 on. Each child's own children would begin at 512, where its value lies.
    units[0] = 256 << 10
    for byte in range(1, 256):
        if byte != ord(_END):
            place = 256 ^ byte
            units[place] = (place ^ 512) << 10 | 1 << 8 | byte
            units[512] = 1 << 31
    blob = struct.pack(f"<{len(units)}I", *units)
    return struct.pack("<I", len(blob)) + blob + b"x\0"


def read_character_map(data: bytes) -> dict[str, str]:
    """The rules of a precompiled map that `Precompiled` can reach: one or more characters -> what they become.

    Of several rules that begin alike it takes the shortest, and it asks for clusters of less than six bytes only.

    Raises:
        ValueError: where the data is damaged.
    """
    try:
        (size,) = struct.unpack_from("<I", data)
        units = np.frombuffer(data, "<u4", size // 4, 4)
        texts = data[4 + size :]
        found = {key: texts[at : texts.index(b"\0", at)] for key, at in _entries(units)}
        return {key.decode("utf-8"): text.decode("utf-8") for key, text in found.items()}
    except (struct.error, IndexError, ValueError) as error:
        raise ValueError(f"The precompiled character map is damaged: {error}.") from error


def _entries(units: np.ndarray) -> Iterator[tuple[bytes, int]]:
    """Keys of less than six bytes that are no longer than another, and their values, of a double array."""
    labels = np.arange(1, 256)
    nodes = [(_offset(int(units[0])), b"")]
    while nodes:
        base, key = nodes.pop()
        places = base ^ labels
        places = places[places < len(units)]
        for place in places[(units[places] & 0x800000FF) == (base ^ places)].tolist():
            unit = int(units[place])
            child, longer = place ^ _offset(unit), key + bytes([base ^ place])
            if unit >> 8 & 1:
                yield longer, int(units[child]) & 0x7FFFFFFF
            elif len(longer) < _LONGEST_CLUSTER:
                nodes.append((child, longer))


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 1 << 9) >> 6)
