"""Rules that clean and split text, as TensorFlow operations on characters: the twins of the `tokenizers` library's.

    N       characters of a whole batch, one text after another
    codes   int32 (N,), code points; a number from NUM_CODES on stands for an added token
    rows    int32 (N,), the text that a character belongs to
    parts   int32 (N,), growing: the part of the text; rules that split make more parts, the last of them are words

A rule is a function from `Characters` to `Characters`. What a rule does to one character comes from
`nlp.unicode_tables`; where neighbours matter, the rule is written out here. No operation is outside of TensorFlow
itself, so a graph that holds these needs no other library to run.
"""

from __future__ import annotations

import base64
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np
import tensorflow as tf
from tokenizers import normalizers

from nlp.unicode_tables import (
    NUM_CODES,
    REMOVED,
    CharacterMap,
    character_map,
    combining_ranks,
    compositions,
    grapheme_rules,
    matching,
    read_character_map,
    split_classes,
)

_SPACE, _JOINER = 0x20, 0x200D
_PAGE = 256

_P = ParamSpec("_P")
_T = TypeVar("_T")


def on_cpu(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Where strings and tables are, whatever device the caller uses: with a GPU, each lookup would wait for copies."""

    @functools.wraps(function)
    def there(*arguments: _P.args, **options: _P.kwargs) -> _T:
        with tf.device("/device:CPU:0"):
            return function(*arguments, **options)

    return there


class Characters(NamedTuple):
    """The characters of a batch of texts; see the module for the three arrays."""

    codes: tf.Tensor
    rows: tf.Tensor
    parts: tf.Tensor

    def at(self, places: tf.Tensor) -> Characters:
        """The characters at `places`, int (M,)."""
        return Characters(*(tf.gather(values, places) for values in self))

    def where(self, kept: tf.Tensor) -> Characters:
        """The characters for which `kept`, bool (N,), is true."""
        return Characters(*(tf.boolean_mask(values, kept) for values in self))

    @property
    def starts(self) -> tf.Tensor:
        """The first character of each part: bool (N,)."""
        return changed(self.parts)

    def split(self, starts: tf.Tensor) -> Characters:
        """The same characters, with a new part also where `starts`, bool (N,), is true."""
        return self._replace(parts=tf.cumsum(tf.cast(starts | self.starts, tf.int32)))


Rule = Callable[[Characters], Characters]


class CodeTable:
    """A number for each code point, kept as distinct pages; 0 for added tokens.

    Args:
        values: int or bool (0x110000,).
    """

    def __init__(self, values: np.ndarray) -> None:
        padded = np.concatenate([values.astype(np.int32), np.zeros(_PAGE, np.int32)]).reshape(-1, _PAGE)
        pages: dict[bytes, int] = {}
        numbers = [pages.setdefault(page.tobytes(), len(pages)) for page in padded]
        self._pages = tf.constant(np.frombuffer(b"".join(pages), np.int32))
        self._numbers = tf.constant(numbers, tf.int32)

    def __call__(self, codes: tf.Tensor) -> tf.Tensor:
        """int32 of the shape of `codes`."""
        codes = tf.minimum(codes, NUM_CODES)
        return tf.gather(self._pages, tf.gather(self._numbers, codes // _PAGE) * _PAGE + codes % _PAGE)


# What rules are made of.


def changed(values: tf.Tensor) -> tf.Tensor:
    """True where a value differs from the one before, and at the first: bool (N,)."""
    return tf.concat([tf.ones_like(values[:1], tf.bool), values[1:] != values[:-1]], 0)


def shifted(values: tf.Tensor, by: int, filler: Any) -> tf.Tensor:
    """`values[i - by]` at i, and `filler` where there is none; a negative `by` looks ahead."""
    edge = tf.fill([tf.minimum(abs(by), tf.size(values))], tf.cast(filler, values.dtype))
    return tf.concat([edge, values[:-by]], 0) if by > 0 else tf.concat([values[-by:], edge], 0)


def positions(values: tf.Tensor) -> tf.Tensor:
    """int32 (N,): 0, 1, ..., N - 1."""
    return tf.range(tf.size(values))


def run_lengths(starts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Of runs that begin where `starts`, bool (N,), is true: place within the run and its length, int32 (N,)."""
    firsts = tf.cast(tf.where(starts)[:, 0], tf.int32)
    number = tf.cumsum(tf.cast(starts, tf.int32)) - 1
    lengths = tf.concat([firsts[1:], [tf.size(starts)]], 0) - firsts
    return positions(starts) - tf.gather(firsts, number), tf.gather(lengths, number)


def replaced(characters: Characters, rows: tf.Tensor, texts: tf.RaggedTensor) -> Characters:
    """Each character becomes the text `texts[rows[i]]`; it stays where `rows[i]` is 0."""
    counts = tf.where(rows == 0, 1, tf.gather(texts.row_lengths(), rows))
    source = tf.repeat(positions(rows), counts)
    within = positions(source) - tf.gather(tf.cumsum(counts, exclusive=True), source)
    kept = characters.at(source)
    row = tf.gather(rows, source)
    place = tf.where(row == 0, 0, tf.gather(texts.row_starts(), row) + within)
    return kept._replace(codes=tf.where(row == 0, kept.codes, tf.gather(texts.flat_values, place)))


def text_table(texts: Sequence[Sequence[int]]) -> tf.RaggedTensor:
    """Texts as code points, for `replaced`: the first is never taken, and the last is a filler."""
    lengths = np.array([len(text) for text in texts], np.int32)
    flat = np.array([code for text in texts for code in text] + [0], np.int32)
    splits = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    splits[-1] += 1  # the filler, so that there is something to gather from
    return tf.RaggedTensor.from_row_splits(tf.constant(flat), tf.constant(splits), validate=False)


def _mapping(table: CharacterMap) -> Rule:
    # A text more at the end takes the filler.
    texts, rows = text_table([*table.texts, ()]), CodeTable(table.rows)
    return lambda characters: replaced(characters, rows(characters.codes), texts)


def _reorder() -> Rule:
    """Combining marks in canonical order (Unicode, section 3.11)."""
    table = CodeTable(combining_ranks())

    def reorder(characters: Characters) -> Characters:
        ranks = table(characters.codes)
        runs = tf.cumsum(tf.cast((ranks == 0) | characters.starts, tf.int64))
        keys = runs * _PAGE + tf.cast(ranks, tf.int64)
        # Places as the lowest digits: equal ranks stay in order.
        places = tf.cast(tf.sort(keys * (1 << 28) + tf.cast(positions(ranks), tf.int64)) % (1 << 28), tf.int32)
        return characters.at(places)

    def rule(characters: Characters) -> Characters:
        ranks = table(characters.codes)
        falls = (ranks[1:] > 0) & (ranks[1:] < ranks[:-1])
        return Characters(*tf.cond(tf.reduce_any(falls), lambda: reorder(characters), lambda: characters))

    return rule


def _compose() -> Rule:
    """Canonical composition (Unicode, section 3.11): a starter takes up, one after another, marks that join it."""
    ranks = CodeTable(combining_ranks())
    pairs = sorted((_key(0, *pair), whole) for pair, whole in compositions().items())
    keys = tf.constant([key for key, _ in pairs], tf.int64)
    wholes = tf.constant([whole for _, whole in pairs], tf.int32)

    def joined(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
        wanted = tf.cast(first, tf.int64) * (1 << 21) + tf.cast(second, tf.int64)
        place = tf.minimum(tf.searchsorted(keys, wanted), tf.size(keys) - 1)
        found = tf.where(tf.gather(keys, place) == wanted, tf.gather(wholes, place), -1)
        return tf.maximum(found, _syllable(first, second))

    def step(codes: Any, rows: Any, parts: Any, passed: Any, _: Any) -> Any:
        # `passed`: marks before one that has joined; they do not get another try.
        characters = Characters(codes, rows, parts)
        rank, starts = ranks(codes), characters.starts
        starter = starts | (rank == 0)
        within, _ = run_lengths(starter)
        own = positions(codes) - within
        # A starter can join the starter before it, a mark its own starter; not past a mark of its own rank.
        base = tf.where(starter, tf.maximum(positions(codes) - 1, 0), own)
        before = shifted(rank, 1, 0)
        free = tf.where(starter, ~starts & (before == 0), (within == 1) | (before != rank)) & ~passed
        whole = joined(tf.gather(codes, base), codes)
        open_ = free & (whole >= 0) & (tf.gather(ranks(codes), base) == 0)
        count = tf.size(codes)
        places = tf.where(open_, positions(codes), count)
        first = tf.math.unsorted_segment_min(places, base, count)
        chosen = open_ & (tf.gather(first, base) == positions(codes))
        chosen &= ~tf.gather(chosen, base)
        taken = tf.where(chosen, base, count)
        whole = tf.math.unsorted_segment_max(tf.where(chosen, whole, -1), taken, count + 1)[:-1]
        joins = tf.math.unsorted_segment_max(tf.where(chosen, positions(codes), -1), taken, count + 1)[:-1]
        passed |= ~starter & (positions(codes) < tf.gather(joins, own))
        left = [tf.boolean_mask(v, ~chosen) for v in (tf.where(whole >= 0, whole, codes), rows, parts, passed)]
        return *left, tf.reduce_any(chosen)

    def rule(characters: Characters) -> Characters:
        state = (*characters, tf.zeros_like(characters.codes, tf.bool), True)
        shapes = (*(tf.TensorShape((None,)),) * 4, tf.TensorShape(()))
        return Characters(*tf.while_loop(lambda *s: s[-1], step, state, shape_invariants=shapes)[:3])

    return rule


def _syllable(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """The Hangul syllable of two parts, or -1 (Unicode, section 3.12)."""
    lead, vowel = first - 0x1100, second - 0x1161
    syllable, tail = first - 0xAC00, second - 0x11A7
    open_syllable = (lead >= 0) & (lead < 19) & (vowel >= 0) & (vowel < 21)
    closed = (syllable >= 0) & (syllable < 11172) & (syllable % 28 == 0) & (tail > 0) & (tail < 28)
    return tf.where(open_syllable, 0xAC00 + (lead * 21 + vowel) * 28, tf.where(closed, first + tail, -1))


# Normalizers.


def normalizer_rules(record: Mapping[str, Any] | None) -> list[Rule]:
    """The rules of a normalizer, as tokenizer.json describes it.

    Raises:
        ValueError: naming a normalizer that has no twin here.
    """
    if record is None:
        return []
    kind = record["type"]
    if kind == "Sequence":
        return [rule for part in record["normalizers"] for rule in normalizer_rules(part)]
    if kind == "Precompiled":
        return [_precompiled(base64.b64decode(record["precompiled_charsmap"] or ""))]
    if kind == "Strip":
        return [_strip(left=record["strip_left"], right=record["strip_right"])]
    if kind == "Replace":
        return [_replace(record["pattern"], record["content"])]
    if kind in ("BertNormalizer", "NFD", "NFKD", "Lowercase", "StripAccents"):
        fields = {key: value for key, value in record.items() if key != "type"}
        rule = _mapping(_map_of(kind, json.dumps(fields, sort_keys=True)))
        return [rule, _reorder()] if kind in ("NFD", "NFKD") or _decomposes(record) else [rule]
    if kind in ("NFC", "NFKC"):
        return [_mapping(_map_of(kind.replace("C", "D"), "{}")), _reorder(), _compose()]
    raise ValueError(
        f"The normalizer {kind} has no twin within a graph. Export with tokens as input, and tokenize beside the model."
    )


def _decomposes(record: Mapping[str, Any]) -> bool:
    accents = record.get("strip_accents")
    return record["type"] == "BertNormalizer" and bool(record["lowercase"] if accents is None else accents)


@functools.lru_cache(maxsize=16)
def _map_of(kind: str, fields: str) -> CharacterMap:
    return character_map(getattr(normalizers, kind)(**json.loads(fields)).normalize_str)


def _strip(*, left: bool, right: bool) -> Rule:
    spaces = CodeTable(split_classes("WhitespaceSplit") == REMOVED)

    def rule(characters: Characters) -> Characters:
        filled = spaces(characters.codes) == 0
        places, count = positions(filled), tf.size(filled)
        part = tf.cumsum(tf.cast(characters.starts, tf.int32)) - 1
        first = tf.math.unsorted_segment_min(tf.where(filled, places, count), part, count)
        last = tf.math.unsorted_segment_max(tf.where(filled, places, -1), part, count)
        kept = tf.ones_like(filled)
        if left:
            kept &= places >= tf.gather(first, part)
        if right:
            kept &= places <= tf.gather(last, part)
        return characters.where(kept)

    return rule


def _replace(pattern: Mapping[str, str], content: str) -> Rule:
    """The patterns that tokenizers of these families have: one character, one twice, runs of white space."""
    literal, expression = pattern.get("String", ""), pattern.get("Regex", "")
    known = len(literal) == 1 or (len(literal) == 2 and literal[0] == literal[1])
    if len(content) == 1 and known:
        table = np.arange(NUM_CODES) == ord(literal[0])
        return _replace_runs(table, ord(content), size=len(literal))
    if len(content) == 1 and expression == " {2,}":
        return _replace_runs(np.arange(NUM_CODES) == _SPACE, ord(content), size=None)
    if len(content) == 1 and expression == r"\s{2,}|[\n\r\t]":
        alone = np.isin(np.arange(NUM_CODES), [ord(c) for c in "\n\r\t"])
        runs = _replace_runs(matching(r"\s"), ord(content), size=None)
        single = _replace_runs(alone, ord(content), size=1)
        return lambda characters: single(runs(characters))
    raise ValueError(
        f"The normalizer that replaces {expression or literal!r} by {content!r} has no twin within a graph. Export "
        "with tokens as input, and tokenize beside the model."
    )


def _replace_runs(table: np.ndarray, content: int, *, size: int | None) -> Rule:
    """Of the characters in `table`, each `size` in a row become one `content`; without `size`, each run of two up."""
    found = CodeTable(table)

    def rule(characters: Characters) -> Characters:
        hit = found(characters.codes) == 1
        within, length = run_lengths(changed(tf.cast(hit, tf.int32)) | characters.starts)
        if size is None:
            taken = hit & (length > 1)
            kept = ~taken | (within == 0)
        else:
            taken = hit & (within < length // size * size)
            kept = ~taken | (within % size == 0)
        return characters._replace(codes=tf.where(taken, content, characters.codes)).where(kept)

    return rule


def _precompiled(data: bytes) -> Rule:
    """SentencePiece's character map as the library applies it (tokenizers: normalizers/precompiled.rs).

    A cluster (what a reader takes for one character) of less than six bytes becomes what the first rule that matches
    its beginning says, and the rest of it is dropped; in others, each character is looked up by itself.
    """
    rules = read_character_map(data) if data else {}
    numbers = {key: number for number, key in enumerate(rules, start=1)}
    single = np.zeros(NUM_CODES, np.int32)
    for key, number in numbers.items():
        if len(key) == 1:
            single[ord(key)] = number
    longer = sorted((_key(*map(ord, key)), number) for key, number in numbers.items() if len(key) in (2, 3))
    table, texts = CodeTable(single), text_table([(), *(tuple(map(ord, text)) for text in rules.values()), ()])
    keys = tf.constant([key for key, _ in longer] + [np.iinfo(np.int64).max], tf.int64)
    values = tf.constant([number for _, number in longer] + [0], tf.int32)
    clusters = _clusters()

    def looked_up(wanted: tf.Tensor) -> tf.Tensor:
        place = tf.searchsorted(keys, wanted)
        return tf.where(tf.gather(keys, place) == wanted, tf.gather(values, place), 0)

    def rule(characters: Characters) -> Characters:
        codes = tf.cast(tf.minimum(characters.codes, NUM_CODES), tf.int64)
        starts, small = clusters(characters)
        within, length = run_lengths(starts)
        first = small & (within == 0) & (length > 1)
        second, third = shifted(codes, -1, 0), shifted(codes, -2, 0)
        alone = table(characters.codes)
        whole = looked_up(codes * (1 << 42) + second * (1 << 21))
        whole = tf.where((whole == 0) & (length > 2), looked_up(codes * (1 << 42) + second * (1 << 21) + third), whole)
        number = tf.where(first & (alone == 0), whole, alone)
        ended = tf.gather(first & (number > 0), positions(codes) - within) & (within > 0)
        kept = characters.where(~ended)
        return replaced(kept, tf.boolean_mask(number, ~ended), texts)

    return rule


def _key(first: int, second: int, third: int = 0) -> int:
    return first << 42 | second << 21 | third


def _clusters() -> Callable[[Characters], tuple[tf.Tensor, tf.Tensor]]:
    """Where clusters begin, and whether the cluster has less than six bytes: bool (N,) each.

    Unicode annex 29, as far as clusters of less than six bytes go: rules GB3 to GB5, GB9, GB9a, GB9b, and of GB11 what
    makes a longer cluster of a short one. All others join characters that have six bytes and more together.
    """
    rules = grapheme_rules()
    names = ("extends", "prepends", "breaks", "pictures")
    table = CodeTable(sum(getattr(rules, name).astype(np.int32) << bit for bit, name in enumerate(names)))

    def clusters(characters: Characters) -> tuple[tf.Tensor, tf.Tensor]:
        codes, flags = characters.codes, table(characters.codes)
        extends, prepends, breaks, pictures = (flags // (1 << bit) % 2 == 1 for bit in range(4))
        before = shifted(codes, 1, 0)
        joined = extends & ~shifted(breaks, 1, True)
        joined |= shifted(prepends, 1, False) & ~breaks
        joined |= (before == ord("\r")) & (codes == ord("\n"))
        joined |= pictures & (before == _JOINER) & shifted(pictures, 2, False)
        starts = characters.starts | ~joined
        number = tf.cumsum(tf.cast(starts, tf.int32)) - 1
        size = 1 + sum(tf.cast(codes >= limit, tf.int32) for limit in (0x80, 0x800, 0x10000))
        small = tf.math.unsorted_segment_sum(size, number, tf.size(number)) < 6
        return starts, tf.gather(small, number)

    return clusters


# Pre-tokenizers.


def pre_tokenizer_rules(record: Mapping[str, Any] | None) -> list[Rule]:
    """The rules of a pre-tokenizer, as tokenizer.json describes it.

    Raises:
        ValueError: naming a pre-tokenizer that has no twin here.
    """
    if record is None:
        return []
    kind = record["type"]
    if kind == "Sequence":
        return [rule for part in record["pretokenizers"] for rule in pre_tokenizer_rules(part)]
    if kind in ("BertPreTokenizer", "WhitespaceSplit"):
        return [_split(split_classes(kind))]
    if kind == "Punctuation" and record.get("behavior", "Isolated") == "Isolated":
        return [_split(split_classes("Punctuation"))]
    if kind == "Metaspace" and record.get("prepend_scheme") in ("always", "never"):
        prefix = record["prepend_scheme"] == "always"
        return [_metaspace(ord(record["replacement"]), prefix=prefix, split=record.get("split", True))]
    if kind == "ByteLevel" and record.get("use_regex", True):
        return [_prefix(_SPACE), _gpt2_words()] if record["add_prefix_space"] else [_gpt2_words()]
    options = {key: value for key, value in record.items() if key != "type"}
    raise ValueError(
        f"The pre-tokenizer {kind} with {options} has no twin within a graph. Export with tokens as input, and "
        "tokenize beside the model."
    )


def _split(classes: np.ndarray) -> Rule:
    table = CodeTable(classes)

    def rule(characters: Characters) -> Characters:
        kind = table(characters.codes)
        return characters.split((kind > 0) | (shifted(kind, 1, 0) > 0)).where(kind != REMOVED)

    return rule


def _prefix(code: int) -> Rule:
    """Put `code` before each part that does not begin with it; added tokens stay as they are."""
    texts = text_table([(), (code,), ()])

    def rule(characters: Characters) -> Characters:
        wanted = characters.starts & (characters.codes != code) & (characters.codes < NUM_CODES)
        doubled = tf.repeat(positions(wanted), tf.where(wanted, 2, 1))
        first = ~changed(doubled[::-1])[::-1]
        return replaced(characters.at(doubled), tf.cast(first, tf.int32), texts)

    return rule


def _metaspace(code: int, *, prefix: bool, split: bool) -> Rule:
    before = _prefix(code)

    def rule(characters: Characters) -> Characters:
        spaced = characters._replace(codes=tf.where(characters.codes == _SPACE, code, characters.codes))
        spaced = before(spaced) if prefix else spaced
        return spaced.split(spaced.codes == code) if split else spaced

    return rule


def _gpt2_words() -> Rule:
    r"""GPT-2's words: 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ (openai/gpt-2).

    Whether a word begins at a character follows from a few neighbours: there is no search.
    """
    other, letter, number, space = range(4)
    classes = np.select([matching(r"\p{L}"), matching(r"\p{N}"), matching(r"\s")], [letter, number, space], other)
    table = CodeTable(classes)

    def rule(characters: Characters) -> Characters:
        codes, first = characters.codes, characters.starts
        kind, before = table(codes), shifted(codes, 1, 0)
        kind_before, kind_after = shifted(kind, 1, other), shifted(kind, -1, other)
        last = shifted(first, -1, True)
        # The last white space before a word is apart: a space goes with the word, any other character is alone.
        parting = (kind == space) & ~last & (kind_after != space)
        after_space = (kind != space) & (kind_before == space)
        starts = first | (kind != kind_before) | parting
        starts &= first | ~(after_space & (before == _SPACE))
        # An apostrophe that begins a word, and the letters of a contraction after it in the same part.
        same = [~first]
        for ahead in (1, 2, 3):
            same.append(shifted(~first, -ahead, False) & (same[-1] if ahead > 1 else True))
        one, two = shifted(codes, -1, 0), shifted(codes, -2, 0)
        mark = starts & (codes == ord("'"))
        short = mark & same[1] & functools.reduce(tf.logical_or, [one == ord(c) for c in "stmd"])
        pairs = [(one == ord(a)) & (two == ord(b)) for a, b in ("re", "ve", "ll")]
        long = mark & same[2] & functools.reduce(tf.logical_or, pairs)
        starts &= ~shifted(short | long, 1, False) & ~shifted(long, 2, False)
        starts |= shifted(short & same[2], 2, False) | shifted(long & same[3], 3, False)
        return characters.split(starts)

    return rule
