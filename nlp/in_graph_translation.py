"""Translation's texts and ids within a graph: strings in, strings out, for models that run without Python.

    B    texts            N    characters of a batch, one text after another
    S    source tokens    D    characters of the longest piece that matches anywhere

The twin of a SentencePiece model does what the C++ library does, which the twins in `nlp.in_graph` do not: those follow
the `tokenizers` library. Characters are mapped by the longest rule (google/sentencepiece: src/normalizer.cc), and a
unigram's sums run over the whole text, in single precision (src/unigram_model.cc), so that ways to split a text that
are as good as equal are told apart alike.

| tokenizer | in a graph |
|---|---|
| Marian's, of a Hugging Face directory or its own files; trained here; T5 from spiece.model: unigram and BPE | yes |
| tokenizer.json (T5, BART), pieces defined by a user, models of words and of characters | no |
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from nlp.graph_pieces import Table, Trie, in_order, merged_pairs, traced_back, utf8_bytes, walked
from nlp.graph_rules import (
    Characters,
    CodeTable,
    Rule,
    changed,
    on_cpu,
    positions,
    replaced,
    run_lengths,
    shifted,
    text_table,
)
from nlp.sentence_pieces import (
    BYTE,
    BYTE_PAIRS,
    META,
    NORMAL,
    UNIGRAM,
    UNUSED,
    USER_DEFINED,
    SentencePieceModel,
    character_map_parts,
    character_map_values,
)
from nlp.subwords import PieceVocabulary, TranslationTokenizer
from nlp.unicode_tables import NUM_CODES

_SPACE, _META = 0x20, ord(META)
# How much less than the least likely piece an unknown character is worth (google/sentencepiece: unigram_model.cc).
_UNKNOWN_PENALTY = np.float32(10.0)


@on_cpu
def in_graph_translation(tokenizer: TranslationTokenizer, *, language: str = "") -> InGraphTranslation:
    """The twin of `tokenizer` for use within a graph.

    Args:
        tokenizer: whose ids and texts it gives.
        language: what texts are translated into where they name no language themselves, as in
            `TranslationTokenizer.encode`.

    Raises:
        ValueError: where the tokenizer has a part without a twin, or does not know the language.
    """
    if tokenizer.sides is None:
        raise ValueError(
            "A tokenizer of the `tokenizers` library (T5, BART) has no twin for translation within a graph. Export "
            "with tokens as input, and tokenize beside the model."
        )
    source, target = tokenizer.sides
    return InGraphTranslation(source, target, head=tokenizer.language_id(language) if language else None)


class InGraphTranslation(tf.Module):
    """Strings to source ids and target ids to strings; see `in_graph_translation`.

    Whoever exports a function that calls it must track it: it holds lookup tables.

    Example:
        >>> twin = in_graph_translation(tokenizer)                                # doctest: +SKIP
        >>> token_ids, mask = twin.encode(tf.constant(["A text.", "Another."]))   # doctest: +SKIP
        >>> texts = twin.decode(model(token_ids, mask))                           # doctest: +SKIP
    """

    def __init__(self, source: PieceVocabulary, target: PieceVocabulary, *, head: int | None = None) -> None:
        super().__init__()
        self._end, self._pad, self._head = source.end_id, source.pad_id, head
        self._pieces = _Pieces(source)
        codes, ids = list(source.languages), list(source.languages.values())
        self._codes = _string_table(codes, ids) if codes else None
        self._heads = tf.constant(ids, tf.int32)
        spelled = [text.decode("utf-8", "replace") for text in source.spelling]
        self._says = tf.constant([bool(text.strip()) and i != source.unknown_id for i, text in enumerate(spelled)])
        spelling = np.empty(target.size + 1, object)
        spelling[:] = [*target.spelling, b""]
        self._spelling = tf.constant(spelling, tf.string)

    @on_cpu
    def encode(self, texts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Source ids, as `TranslationTokenizer.encode` gives them.

        Args:
            texts: strings (B,), UTF-8; what is invalid is read as U+FFFD.

        Returns:
            `token_ids`, int32 (B, S), filled up with the padding id, and `mask`, bool (B, S), False for what fills up.
        """
        count = tf.size(texts)
        head = tf.fill([count], -1 if self._head is None else self._head)
        if self._codes is not None:
            named = tf.strings.regex_full_match(texts, "(?s)>>.*?<<.*")
            own = tf.cast(self._codes.lookup(tf.strings.regex_replace(texts, "(?s)^>>(.*?)<<.*$", r"\1")), tf.int32)
            own = tf.where(named, own, -1)
            head = tf.where(own >= 0, own, head)
            texts = tf.where(own >= 0, tf.strings.regex_replace(texts, "(?s)^>>.*?<<", ""), texts)
        heads = tf.RaggedTensor.from_row_lengths(
            tf.boolean_mask(head, head >= 0), tf.cast(head >= 0, tf.int32), validate=False
        )
        ends = tf.fill([count, 1], self._end)
        rows = tf.concat([heads.with_row_splits_dtype(tf.int64), self._pieces(texts), ends], axis=1)
        return rows.to_tensor(self._pad), tf.sequence_mask(rows.row_lengths())

    @on_cpu
    def knows(self, token_ids: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """Bool (B,): whether any source id is one of something known, as `TranslationTokenizer.knows` has it."""
        return tf.reduce_any(tf.gather(self._says, token_ids) & mask, axis=1)

    @on_cpu
    def parts(self, token_ids: tf.Tensor, mask: tf.Tensor, limit: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Rows of more than `limit` ids, at least 3, cut into parts of like length; each has the row's language.

        Args:
            token_ids: what `encode` gave.
            mask: what `encode` gave.
            limit: most ids of a part, the end among them.

        Returns:
            Ids, int32 (P, T), and mask, bool (P, T), of the parts, and the row of each, int32 (P,), ascending.
        """
        head = tf.zeros_like(token_ids[:, 0])
        if self._codes is not None:
            head = tf.cast(tf.reduce_any(token_ids[:, :1] == self._heads[None], axis=1), tf.int32)
        sizes = tf.reduce_sum(tf.cast(mask, tf.int32), axis=1) - 1 - head
        counts = tf.maximum(-(-sizes // (limit - 1 - head)), 1)
        rows = tf.repeat(tf.range(tf.size(counts)), counts)
        head, size, count = (tf.gather(values, rows)[:, None] for values in (head, sizes, counts))
        number = (tf.range(tf.size(rows)) - tf.gather(tf.cumsum(counts, exclusive=True), rows))[:, None]
        first, last = number * size // count, (number + 1) * size // count
        place = tf.range(tf.reduce_max(head + last - first) + 1)[None]
        source = tf.where(place < head, 0, first + place)
        ids = tf.gather(tf.gather(token_ids, rows), tf.minimum(source, tf.shape(token_ids)[1] - 1), batch_dims=1)
        end = head + last - first
        return tf.where(place < end, ids, tf.where(place == end, self._end, self._pad)), place <= end, rows

    @on_cpu
    def decode(self, ids: tf.Tensor) -> tf.Tensor:
        """Texts, as `TranslationTokenizer.decode` gives them: strings (B,) of target ids, int (B, T)."""
        last = tf.size(self._spelling) - 1
        ids = tf.cast(ids, tf.int32)
        known = (ids >= 0) & (ids < last)
        joined = tf.strings.reduce_join(tf.gather(self._spelling, tf.where(known, ids, last)), axis=-1)
        valid = tf.strings.unicode_transcode(joined, "UTF-8", "UTF-8", errors="replace")
        return tf.strings.regex_replace(valid, "^ +| +$", "")


class Split(NamedTuple):
    """Pieces of a batch in order: the place of the first character of each and its number, -1 for what is unknown."""

    places: tf.Tensor
    numbers: tf.Tensor


class _Pieces(tf.Module):
    """Strings to the ids of a vocabulary's pieces, without special tokens."""

    def __init__(self, vocabulary: PieceVocabulary) -> None:
        super().__init__()
        model = vocabulary.model
        _require_twin(model)
        self._rules = [*([_mapped(model.character_map)] if model.character_map else []), _spaced]
        self._split = _Unigram(model) if model.model_type == UNIGRAM else _BytePairs(model)
        self._ids = tf.constant([*vocabulary.id_of_piece, vocabulary.unknown_id], tf.int32)
        self._bytes = None
        if model.byte_fallback:
            spelled = sorted(
                (text, number) for text, number in model.numbers.items() if model.pieces[number][2] == BYTE
            )
            self._bytes = tf.constant([vocabulary.id_of_piece[number] for _, number in spelled], tf.int32)
        surfaces = vocabulary.surfaces
        self._surfaces = _string_table(list(surfaces), list(surfaces.values())) if surfaces else None

    def __call__(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """int32 (B, None) of strings (B,)."""
        decoded = tf.strings.unicode_decode(texts, "UTF-8", errors="replace")
        count = tf.size(texts)
        rows = tf.concat([tf.cast(decoded.value_rowids(), tf.int32), [count]], 0)
        # One character more, which is none, in a text of its own, so that nothing below is ever empty.
        characters = Characters(tf.concat([decoded.values, [NUM_CODES]], 0), rows, rows)
        for rule in self._rules:
            characters = rule(characters)
        split = self._split(characters)
        kept = characters.at(split.places)
        ids = tf.gather(self._ids, tf.where(split.numbers < 0, tf.size(self._ids) - 1, split.numbers))
        spell = self._fused if self._bytes is None else self._spelled
        ids, rows = spell(kept, ids, split.numbers < 0)
        real = rows < count
        return tf.RaggedTensor.from_value_rowids(
            tf.boolean_mask(ids, real),
            tf.cast(tf.boolean_mask(rows, real), tf.int64),
            nrows=tf.cast(count, tf.int64),
            validate=False,
        )

    def _spelled(self, kept: Characters, ids: tf.Tensor, unknown: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Unknown characters as their bytes."""
        number = tf.where(unknown & (kept.codes < NUM_CODES), -1, positions(ids))
        # A known piece is as one byte; the parts keep its place.
        marked = Characters(tf.where(number < 0, kept.codes, NUM_CODES), kept.rows, positions(ids))
        spread, byte = utf8_bytes(marked)
        known = spread.codes >= NUM_CODES
        return tf.where(known, tf.gather(ids, spread.parts), tf.gather(self._bytes, byte)), spread.rows

    def _fused(self, kept: Characters, ids: tf.Tensor, unknown: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Unknown characters beside each other as one, which may have an id as a whole."""
        starts = ~(unknown & shifted(unknown, 1, False)) | changed(kept.rows)
        if self._surfaces is not None:
            firsts = tf.where(starts)[:, 0]
            runs = tf.RaggedTensor.from_row_starts(kept.codes, firsts, validate=False)
            found = tf.cast(self._surfaces.lookup(tf.strings.unicode_encode(runs, "UTF-8", errors="replace")), tf.int32)
            run = tf.cumsum(tf.cast(starts, tf.int32)) - 1
            found = tf.gather(found, run)
            ids = tf.where(unknown & (found >= 0), found, ids)
        return tf.boolean_mask(ids, starts), tf.boolean_mask(kept.rows, starts)


def _require_twin(model: SentencePieceModel) -> None:
    if model.model_type not in (UNIGRAM, BYTE_PAIRS):
        raise ValueError(f"A SentencePiece model of type {model.model_type} has no twin; unigram (1) and BPE (2) have.")
    usual = model.add_dummy_prefix and model.remove_extra_whitespaces and model.escape_whitespaces and not model.suffix
    if not usual:
        raise ValueError("A SentencePiece model with its own rules for white space has no twin within a graph.")
    kinds = {kind for _, _, kind in model.pieces}
    if USER_DEFINED in kinds or (UNUSED in kinds and model.model_type == BYTE_PAIRS):
        raise ValueError("A SentencePiece model with pieces of a user, or unused ones, has no twin within a graph.")
    if model.character_map and b"  " in character_map_parts(model.character_map)[1]:
        raise ValueError("A SentencePiece model that makes two spaces of a character has no twin within a graph.")


def _string_table(keys: list[str], values: list[int]) -> Any:
    pairs = tf.constant([key.encode("utf-8", "replace") for key in keys]), tf.constant(values, tf.int64)
    return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(*pairs), -1)


# Normalization.


def _mapped(character_map: bytes) -> Rule:
    """From the left, the longest rule that matches; a character without one stays."""
    units, blob = character_map_parts(character_map)
    array = tf.constant(units.astype(np.int64))
    values = np.unique(character_map_values(units.astype(np.int64)))
    ends = [blob.index(b"\0", value) for value in values.tolist()]
    spelled = [blob[value:end].decode("utf-8") for value, end in zip(values.tolist(), ends, strict=True)]
    texts = text_table([(), *(tuple(map(ord, text)) for text in spelled), ()])
    places = tf.constant(values)

    def rule(characters: Characters) -> Characters:
        _, byte = utf8_bytes(characters)
        lead = (byte & 0xC0) != 0x80
        first = tf.cast(tf.where(lead)[:, 0], tf.int32)
        limit = tf.gather(_row_ends(characters), positions(first))
        # A place behind the last byte, too.
        first_of = tf.concat([first, [tf.size(byte)]], 0)
        length, value = _longest(array, byte, first, tf.gather(first_of, limit))
        character = tf.concat([tf.cumsum(tf.cast(lead, tf.int32)) - 1, [tf.size(first)]], 0)
        size = tf.maximum(tf.gather(character, first + length) - positions(first), 1)
        taken = _from_the_left(size)
        number = tf.where(length > 0, tf.cast(tf.searchsorted(places, value), tf.int32) + 1, 0)
        return replaced(characters.where(taken), tf.boolean_mask(number, taken), texts)

    return rule


def _row_ends(characters: Characters) -> tf.Tensor:
    within, length = run_lengths(changed(characters.rows))
    return positions(within) - within + length


def _longest(units: tf.Tensor, byte: tf.Tensor, first: tf.Tensor, limit: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Bytes of the longest key of a double array that begins at each of `first`, or 0, and its value: (N,)."""
    count = tf.size(first)
    labels = tf.cast(byte, tf.int64)
    mask, low = tf.constant(0x800000FF, tf.int64), tf.constant(0x7FFFFFFF, tf.int64)

    def child(nodes: Any, values: Any) -> Any:
        shift = tf.where(values & 512 > 0, tf.constant(8, tf.int64), tf.constant(0, tf.int64))
        return tf.bitwise.bitwise_xor(nodes, tf.bitwise.left_shift(tf.bitwise.right_shift(values, 10), shift))

    def step(depth: Any, active: Any, nodes: Any, length: Any, value: Any) -> Any:
        label = tf.gather(labels, tf.gather(first, active) + depth)
        nodes = tf.bitwise.bitwise_xor(child(nodes, tf.gather(units, nodes)), label)
        values = tf.gather(units, nodes)
        alive = (values & mask == label) & (label > 0)
        active, nodes, values = (tf.boolean_mask(v, alive) for v in (active, nodes, values))
        ended = values & 256 > 0
        done, leaf = tf.boolean_mask(active, ended)[:, None], tf.boolean_mask(child(nodes, values), ended)
        length = tf.tensor_scatter_nd_update(length, done, tf.fill([tf.size(leaf)], depth + 1))
        value = tf.tensor_scatter_nd_update(value, done, tf.gather(units, leaf) & low)
        longer = tf.gather(first, active) + depth + 1 < tf.gather(limit, active)
        return depth + 1, tf.boolean_mask(active, longer), tf.boolean_mask(nodes, longer), length, value

    state = (0, tf.range(count), tf.zeros([count], tf.int64), tf.zeros([count], tf.int32), tf.zeros([count], tf.int64))
    free = tf.TensorShape((None,))
    *_, length, value = tf.while_loop(
        lambda depth, active, *_: tf.size(active) > 0,
        step,
        state,
        shape_invariants=(tf.TensorShape(()), free, free, free, free),
    )
    return length, value


def _from_the_left(size: tf.Tensor) -> tf.Tensor:
    """Where one begins if each that is begun takes up `size` characters: bool (N,)."""
    count, place = tf.size(size), positions(size)
    # A character that no other reaches over begins for sure; from one such to the next there is one way.
    longer = tf.cast(size > 1, tf.int32)
    ended = tf.math.unsorted_segment_sum(longer, tf.minimum(place + size, count), count + 1)[:-1]
    sure = tf.cumsum(shifted(longer, 1, 0) - ended) <= 0
    within, length = run_lengths(sure)
    taken, _ = walked(tf.cast(tf.where(sure)[:, 0], tf.int32), size, place - within + length)
    return taken


def _spaced(characters: Characters) -> Characters:
    """One space for many, none at the ends, U+2581 for each, and one more of them at the beginning."""
    space = characters.codes == _SPACE
    first = changed(characters.rows)
    kept = characters.where(~(space & (shifted(space, 1, True) | first)))
    kept = kept._replace(codes=tf.where(kept.codes == _SPACE, _META, kept.codes))
    doubled = tf.repeat(positions(kept.rows), tf.where(changed(kept.rows), 2, 1))
    spread = kept.at(doubled)
    spread = spread._replace(codes=tf.where(changed(spread.rows), _META, spread.codes))
    # What is at the end is taken away, even where it was U+2581 in the text.
    row, place = tf.cumsum(tf.cast(changed(spread.rows), tf.int32)) - 1, positions(spread.rows)
    last = tf.math.unsorted_segment_max(tf.where(spread.codes == _META, -1, place), row, tf.size(row))
    return spread.where(place <= tf.gather(last, row))


# Models.


class _Unigram(tf.Module):
    """The best way to split a text into pieces."""

    def __init__(self, model: SentencePieceModel) -> None:
        super().__init__()
        entries = {text: number for number, (text, _, kind) in enumerate(model.pieces) if kind == NORMAL}
        self._trie = Trie([entries])
        scores = np.array([score for _, score, _ in model.pieces], np.float32)
        least = scores[list(entries.values())].min() if entries else np.float32(0)
        self._unknown = tf.constant(least - _UNKNOWN_PENALTY, tf.float32)
        self._scores = tf.constant(scores)

    def __call__(self, characters: Characters) -> Split:
        within, length = run_lengths(changed(characters.rows))
        ids = self._trie(characters._replace(parts=characters.rows), tf.zeros_like(within))
        firsts = tf.cast(tf.where(within == 0)[:, 0], tf.int32)
        lengths = tf.gather(length, firsts)
        chosen = self._chosen(ids, firsts, lengths)
        steps, rows = tf.unstack(tf.shape(chosen))
        taken, sizes = traced_back(tf.reshape(chosen, [-1]), tf.range(steps) * rows, firsts, lengths, tf.size(within))
        places = tf.cast(tf.where(taken)[:, 0], tf.int32)
        return Split(places, tf.gather(tf.reshape(ids, [-1]), (tf.gather(sizes, places) - 1) * tf.size(sizes) + places))

    def _chosen(self, ids: tf.Tensor, firsts: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        """For each end, characters of the piece that the best way to it ends with: int32 (steps, texts)."""
        depth, count = tf.shape(ids)[0], tf.shape(ids)[1]
        sizes = tf.range(1, depth + 1)
        columns = tf.transpose(ids)  # (N, D)
        nothing = tf.constant(-np.inf, tf.float32)

        def step(number: Any, here: Any, ahead: Any, choice: Any, chosen: Any) -> Any:
            # `ahead`, `choice`: the best so far for the ends 1 to D characters from here, in the order of beginnings.
            entry = tf.gather(columns, tf.minimum(firsts + number, count - 1))  # (B, D)
            value = tf.gather(self._scores, tf.maximum(entry, 0)) + here[:, None]
            better = (entry >= 0) & (value > ahead)
            ahead, choice = tf.where(better, value, ahead), tf.where(better, sizes, choice)
            alone = (entry[:, 0] < 0) & (here + self._unknown > ahead[:, 0])
            best = tf.where(alone, here + self._unknown, ahead[:, 0])
            chosen = chosen.write(number, tf.where(alone, 1, choice[:, 0]))
            ahead = tf.concat([ahead[:, 1:], tf.fill([tf.size(here), 1], nothing)], 1)
            return number + 1, best, ahead, tf.concat([choice[:, 1:], choice[:, :1]], 1), chosen

        rows, most = tf.size(firsts), tf.reduce_max(lengths)
        table = tf.TensorShape((None, None))
        *_, chosen = tf.while_loop(
            lambda number, *_: number < most,
            step,
            (
                0,
                tf.zeros([rows], tf.float32),
                tf.fill([rows, depth], nothing),
                tf.zeros([rows, depth], tf.int32),
                tf.TensorArray(tf.int32, most, element_shape=(None,)),
            ),
            shape_invariants=(tf.TensorShape(()), tf.TensorShape((None,)), table, table, None),
        )
        return chosen.stack()


class _BytePairs(tf.Module):
    """Characters, of which the two that make the best piece are joined, until no two make one."""

    def __init__(self, model: SentencePieceModel) -> None:
        super().__init__()
        entries = {text: number for number, (text, _, kind) in enumerate(model.pieces) if kind == NORMAL}
        self._count = len(model.pieces)
        # A character may be part of pieces and no piece itself.
        letters = sorted({letter for text in entries for letter in text} - entries.keys())
        symbols = {**entries, **{letter: self._count + i for i, letter in enumerate(letters)}}
        self._other = self._count + len(letters)
        ranks = {
            score: rank for rank, score in enumerate(sorted({score for _, score, _ in model.pieces}, reverse=True))
        }
        rules = {}
        for text, number in entries.items():
            value = (ranks[model.pieces[number][1]] << 32) + number
            for cut in range(1, len(text)):
                first, second = symbols.get(text[:cut]), symbols.get(text[cut:])
                if first is not None and second is not None:
                    rules[(first << 32) + second] = value
        self._table, self._many = Table(rules or [-1], rules.values() or [-1]), in_order(rules)
        of_code = np.zeros(NUM_CODES, np.int32)
        for text, number in symbols.items():
            if len(text) == 1:
                of_code[ord(text)] = number + 1
        self._of_code = CodeTable(of_code)
        # Where no piece reaches over a space, words are worked on side by side.
        self._words = all(META not in text[1:] for text in entries)

    def __call__(self, characters: Characters) -> Split:
        codes = characters.codes
        symbols = self._of_code(codes) - 1
        starts = changed(characters.rows)
        if self._words:
            starts |= codes == _META
        words = tf.cumsum(tf.cast(starts, tf.int32))
        symbols = tf.where(symbols < 0, self._other, symbols)
        places, symbols = merged_pairs(symbols, words, self._table, many=self._many)
        order = tf.argsort(places)
        symbols = tf.gather(symbols, order)
        return Split(tf.gather(places, order), tf.where(symbols < self._count, symbols, -1))
