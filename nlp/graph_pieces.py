"""Words to token ids within a graph: WordPiece, byte-level BPE and unigram, as the `tokenizers` library does it.

    N    characters of a batch, words one after another; a word is a part of `Characters`
    D    characters of the longest vocabulary entry that matches anywhere

Each model is a function from `Characters` to `Tokens`. An added token is a word of one character, and keeps its id.
Time grows with the number of characters and, but for WordPiece, with those of the longest word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from nlp.graph_rules import Characters, CodeTable, changed, positions, run_lengths, shifted
from nlp.unicode_tables import NUM_CODES

_SHIFT = 1 << 21
# How much less than the least likely piece an unknown character is worth (tokenizers: models/unigram/model.rs).
_UNKNOWN_PENALTY = 10.0


class Tokens(NamedTuple):
    """Token ids of a batch in order: `ids` and the text that each belongs to, `rows`; int32 (M,)."""

    ids: tf.Tensor
    rows: tf.Tensor


Model = Callable[[Characters], Tokens]


class Table(tf.Module):
    """A lookup table from int64 to int64, with -1 for what is not in it."""

    def __init__(self, keys: Iterable[int], values: Iterable[int]) -> None:
        super().__init__()
        pairs = tf.constant(list(keys), tf.int64), tf.constant(list(values), tf.int64)
        self._table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(*pairs), -1)

    def __call__(self, keys: tf.Tensor) -> tf.Tensor:
        """int64 of the shape of `keys`."""
        return self._table.lookup(keys)


class Trie(tf.Module):
    """Finds all entries of some vocabularies that begin at each character.

    Args:
        vocabularies: for each vocabulary, entries and their ids.
    """

    def __init__(self, vocabularies: Iterable[Mapping[str, int]]) -> None:
        super().__init__()
        edges: dict[int, int] = {}
        vocabularies = list(vocabularies)
        ids = [-1] * len(vocabularies)
        for root, vocabulary in enumerate(vocabularies):
            for entry, number in vocabulary.items():
                node = root
                for character in entry:
                    key = node * _SHIFT + ord(character)
                    child = edges.get(key)
                    if child is None:
                        child = edges[key] = len(ids)
                        ids.append(-1)
                    node = child
                if entry:
                    ids[node] = number
        # A table cannot be empty.
        self._edges = Table(edges or [-1], edges.values() or [-1])
        self._ids = tf.constant(ids, tf.int32)

    def __call__(self, characters: Characters, roots: tf.Tensor) -> tf.Tensor:
        """Entries within words: int32 (D, N), the id of the entry of d + 1 characters that begins at n, or -1.

        Args:
            characters: at least one.
            roots: int32 (N,), the vocabulary to search at each character.
        """
        within, length = run_lengths(characters.starts)
        room, count = length - within, tf.size(within)
        codes = tf.cast(characters.codes, tf.int64)
        found = tf.TensorArray(tf.int32, 0, dynamic_size=True, element_shape=(None,))

        def step(depth: Any, places: Any, nodes: Any, found: Any) -> Any:
            children = self._edges(nodes * _SHIFT + tf.gather(codes, places + depth))
            alive = children >= 0
            places, nodes = tf.boolean_mask(places, alive), tf.boolean_mask(children, alive)
            ids = tf.gather(self._ids, nodes)
            found = found.write(depth, tf.tensor_scatter_nd_update(tf.fill([count], -1), places[:, None], ids))
            longer = tf.gather(room, places) > depth + 1
            return depth + 1, tf.boolean_mask(places, longer), tf.boolean_mask(nodes, longer), found

        *_, found = tf.while_loop(
            lambda depth, places, *_: (depth == 0) | (tf.size(places) > 0),
            step,
            (0, tf.range(count), tf.cast(roots, tf.int64), found),
            shape_invariants=(tf.TensorShape(()), tf.TensorShape((None,)), tf.TensorShape((None,)), None),
        )
        return found.stack()


def word_piece_model(record: Mapping[str, Any], added_ids: np.ndarray) -> GraphModel:
    """WordPiece: from the left, always the longest entry; a word with a gap is unknown as a whole."""
    prefix, vocabulary = record["continuing_subword_prefix"], record["vocab"]
    inner = {token[len(prefix) :]: number for token, number in vocabulary.items() if token.startswith(prefix)}
    trie, unknown = Trie([vocabulary, inner]), vocabulary[record["unk_token"]]
    longest, added = record["max_input_chars_per_word"], _added(added_ids)

    def model(characters: Characters) -> Tokens:
        starts = characters.starts
        within, length = run_lengths(starts)
        word = tf.cumsum(tf.cast(starts, tf.int32)) - 1
        ids = trie(characters, tf.where(starts, 0, 1))
        sizes = tf.reduce_max(tf.where(ids >= 0, tf.range(1, tf.shape(ids)[0] + 1)[:, None], 0), axis=0)
        ids = tf.gather(tf.reshape(ids, [-1]), tf.maximum(sizes - 1, 0) * tf.size(sizes) + positions(sizes))
        ended = positions(word) - within + length
        readable = tf.cast(tf.where(starts & (length <= longest))[:, 0], tf.int32)
        taken, failed = walked(readable, sizes, ended)
        failed_words = tf.math.unsorted_segment_max(tf.cast(failed, tf.int32), word, tf.size(word)) > 0
        unknown_word = tf.gather(failed_words, word) | (length > longest)
        ids = added(characters.codes, tf.where(unknown_word, unknown, ids))
        kept = tf.where(unknown_word, starts, taken)
        return Tokens(tf.boolean_mask(ids, kept), tf.boolean_mask(characters.rows, kept))

    return GraphModel(model, trie)


def walked(places: tf.Tensor, sizes: tf.Tensor, ended: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Walk each word from its first character by the sizes of its tokens: where tokens begin, and where none does."""
    nowhere = tf.zeros_like(sizes, tf.bool)

    def step(places: Any, taken: Any, failed: Any) -> Any:
        size = tf.gather(sizes, places)
        taken = tf.tensor_scatter_nd_update(taken, places[:, None], size > 0)
        failed = tf.tensor_scatter_nd_update(failed, places[:, None], size == 0)
        alive = (size > 0) & (places + size < tf.gather(ended, places))
        return tf.boolean_mask(places + size, alive), taken, failed

    shapes = (tf.TensorShape((None,)),) * 3
    _, taken, failed = tf.while_loop(
        lambda places, *_: tf.size(places) > 0, step, (places, nowhere, nowhere), shape_invariants=shapes
    )
    return taken, failed


def _added(added_ids: np.ndarray) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Puts the ids of added tokens into their places."""
    table = tf.constant(np.append(added_ids, 0).astype(np.int32))

    def put(codes: tf.Tensor, ids: tf.Tensor) -> tf.Tensor:
        known = tf.gather(table, tf.clip_by_value(codes - NUM_CODES, 0, len(added_ids)))
        return tf.where(codes >= NUM_CODES, known, ids)

    return put


class GraphModel(tf.Module):
    """A model with the modules it uses, so that whoever tracks it tracks their tables."""

    def __init__(self, model: Model, *used: tf.Module) -> None:
        super().__init__()
        self._model, self._used = model, used

    def __call__(self, characters: Characters) -> Tokens:
        """The tokens of words; at least one character is needed."""
        return self._model(characters)


# Unigram.


def unigram_model(record: Mapping[str, Any], added_ids: np.ndarray) -> GraphModel:
    """The most probable way to split a word into entries; neighbouring unknown characters are one unknown token.

    The same sums in the same order and precision as in the library: equally probable ways are told apart alike.

    Raises:
        ValueError: for byte fallback, and where there is no unknown token.
    """
    if record.get("byte_fallback") or record.get("unk_id") is None:
        raise ValueError("A unigram model with byte fallback, or without an unknown token, has no twin within a graph.")
    entries, unknown = record["vocab"], record["unk_id"]
    trie, added = Trie([{text: number for number, (text, _) in enumerate(entries)}]), _added(added_ids)
    scores = np.array([score for _, score in entries] + [0.0], np.float64)
    scores[-1] = scores[:-1].min() - _UNKNOWN_PENALTY
    scores = tf.constant(scores)

    def model(characters: Characters) -> Tokens:
        within, length = run_lengths(characters.starts)
        ids = trie(characters, tf.zeros_like(within))
        taken, sizes = _most_probable(ids, within, length, scores)
        places = tf.cast(tf.where(taken)[:, 0], tf.int32)
        token = tf.gather(tf.reshape(ids, [-1]), (tf.gather(sizes, places) - 1) * tf.size(sizes) + places)
        kept = characters.at(places)
        token = added(kept.codes, tf.where(token < 0, unknown, token))
        is_unknown = (token == unknown) & (kept.codes < NUM_CODES)
        fused = is_unknown & shifted(is_unknown, 1, False) & ~kept.starts
        return Tokens(tf.boolean_mask(token, ~fused), tf.boolean_mask(kept.rows, ~fused))

    return GraphModel(model, trie)


def _most_probable(
    ids: tf.Tensor, within: tf.Tensor, length: tf.Tensor, scores: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Viterbi over all words at once, longest words first, one character a step.

    Args:
        ids: int32 (D, N), entries that begin at each character.
        within: int32 (N,), place of the character in its word.
        length: int32 (N,), characters of its word.
        scores: float64 (V + 1,), of each entry; the last of an unknown character.

    Returns:
        bool (N,), where tokens begin, and int32 (N,), their characters.
    """
    depth, count = tf.shape(ids)[0], tf.size(within)
    firsts = tf.cast(tf.where(within == 0)[:, 0], tf.int32)
    lengths = tf.gather(length, firsts)
    order = tf.argsort(lengths, direction="DESCENDING", stable=True)
    firsts, lengths = tf.gather(firsts, order), tf.gather(lengths, order)
    # Words that reach each step.
    steps = tf.range(1, tf.reduce_max(lengths) + 1)
    active = tf.searchsorted(-lengths, -steps, side="right")
    flat = tf.reshape(ids, [-1])
    sizes = tf.range(1, depth + 1)
    nothing = tf.constant(-np.inf, tf.float64)

    def step(number: Any, best: Any, chosen: Any) -> Any:
        ends = firsts[: active[number]] + number + 1
        begins = ends[:, None] - sizes  # (A, D)
        inside = sizes <= number + 1
        entry = tf.gather(flat, tf.where(inside, (sizes - 1) * count + begins, 0))
        entry = tf.where(inside, entry, -1)
        # A character that is no entry by itself counts as unknown.
        unknown = (sizes == 1) & (entry < 0)
        value = tf.gather(scores, tf.where(entry < 0, tf.size(scores) - 1, entry))
        value = tf.where((entry >= 0) | unknown, value + best[: active[number]], nothing)
        top = tf.reduce_max(value, axis=1)
        size = tf.reduce_max(tf.where(value == top[:, None], sizes, 0), axis=1)
        best = tf.concat([top[:, None], best[: active[number], :-1]], axis=1)
        return number + 1, best, chosen.write(number, size)

    first = tf.concat([[tf.constant(0, tf.float64)], tf.fill([depth - 1], nothing)], 0)
    chosen = tf.TensorArray(tf.int32, tf.size(steps), element_shape=(None,), infer_shape=False)
    _, _, chosen = tf.while_loop(
        lambda number, *_: number < tf.size(steps),
        step,
        (0, tf.tile(first[None], [tf.size(firsts), 1]), chosen),
        shape_invariants=(tf.TensorShape(()), tf.TensorShape((None, None)), None),
    )
    return traced_back(chosen.concat(), tf.cumsum(active, exclusive=True), firsts, lengths, count)


def traced_back(
    chosen: tf.Tensor, offsets: tf.Tensor, firsts: tf.Tensor, lengths: tf.Tensor, count: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """From each word's end to its beginning by the sizes that were chosen at each step."""

    def step(words: Any, ends: Any, sizes: Any) -> Any:
        size = tf.gather(chosen, tf.gather(offsets, ends - 1) + words)
        begins = ends - size
        sizes = tf.tensor_scatter_nd_update(sizes, (tf.gather(firsts, words) + begins)[:, None], size)
        alive = begins > 0
        return tf.boolean_mask(words, alive), tf.boolean_mask(begins, alive), sizes

    shapes = (tf.TensorShape((None,)),) * 3
    start = (tf.range(tf.size(firsts)), lengths, tf.zeros([count], tf.int32))
    *_, sizes = tf.while_loop(lambda words, *_: tf.size(words) > 0, step, start, shape_invariants=shapes)
    return sizes > 0, sizes


# Byte-level BPE.


def byte_pair_model(record: Mapping[str, Any], added_ids: np.ndarray) -> GraphModel:
    """Byte-level BPE: bytes, of which the pair whose rule comes first is merged, until no rule is left.

    Raises:
        ValueError: where the vocabulary lacks a byte, or the model has options that this twin does not know.
    """
    options = ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges", "dropout")
    used = [option for option in options if record.get(option)]
    vocabulary = record["vocab"]
    letters = byte_letters()
    missing = [byte for byte in range(256) if letters[byte] not in vocabulary]
    if used or missing:
        reason = f"the option {used[0]}" if used else f"no token for byte {missing[0]}"
        raise ValueError(f"A BPE model with {reason} has no twin within a graph.")
    merges = [tuple(rule.split(" ")) if isinstance(rule, str) else tuple(rule) for rule in record["merges"]]
    rules = {
        (vocabulary[first] << 32) + vocabulary[second]: (rank << 32) + vocabulary[first + second]
        for rank, (first, second) in enumerate(merges)
    }
    table, many = Table(rules or [-1], rules.values() or [-1]), in_order(rules)
    of_byte = tf.constant([vocabulary[letters[byte]] for byte in range(256)], tf.int32)
    added = _added(added_ids)

    def model(characters: Characters) -> Tokens:
        letters, byte = utf8_bytes(characters)
        symbols = added(letters.codes, tf.gather(of_byte, byte))
        places, symbols = merged_pairs(symbols, letters.parts, table, many=many)
        order = tf.argsort(places)
        return Tokens(tf.gather(symbols, order), tf.gather(letters.rows, tf.gather(places, order)))

    return GraphModel(model, table)


def byte_letters() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary (openai/gpt-2: src/encoder.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


def in_order(rules: Mapping[int, int]) -> bool:
    """Whether no rule can apply to what a later rule makes: then all equal pairs of a word can be merged at once."""
    made: dict[int, int] = {}
    for value in rules.values():
        made[value & 0xFFFFFFFF] = max(value >> 32, made.get(value & 0xFFFFFFFF, -1))
    return all(
        made.get(symbol, -1) < value >> 32 for key, value in rules.items() for symbol in (key >> 32, key & 0xFFFFFFFF)
    )


def utf8_bytes(characters: Characters) -> tuple[Characters, tf.Tensor]:
    """Each character once for each byte of its UTF-8 form, and the bytes, int32; an added token is one byte."""
    codes = characters.codes
    size = 1 + sum(tf.cast(codes >= limit, tf.int32) for limit in (0x80, 0x800, 0x10000))
    size = tf.where(codes >= NUM_CODES, 1, size)
    source = tf.repeat(positions(codes), size)
    within, length = run_lengths(changed(source))
    spread = characters.at(source)
    shift = 6 * (length - 1 - within)
    digits = tf.bitwise.right_shift(spread.codes, shift)
    lead = tf.gather(tf.constant([0, 0, 0xC0, 0xE0, 0xF0]), length)
    byte = tf.where(within == 0, lead | digits, 0x80 | (digits & 0x3F))
    return spread, tf.where(spread.codes >= NUM_CODES, 0, byte)


def merged_pairs(symbols: tf.Tensor, words: tf.Tensor, table: Table, *, many: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """Merge pairs within words until no rule is left: places (of first bytes) and symbols, words in any order."""
    nothing = np.iinfo(np.int64).max
    done = tf.TensorArray(tf.int32, 0, dynamic_size=True, element_shape=(None, 2), infer_shape=False)

    def step(number: Any, symbols: Any, words: Any, places: Any, done: Any) -> Any:
        starts = changed(words)
        word = tf.cumsum(tf.cast(starts, tf.int32)) - 1
        pair = tf.cast(symbols, tf.int64) * (1 << 32) + tf.cast(shifted(symbols, -1, 0), tf.int64)
        rule = table(tf.where(shifted(starts, -1, True), tf.constant(-1, tf.int64), pair))
        rule = tf.where(rule < 0, nothing, rule)
        first = tf.gather(tf.math.unsorted_segment_min(rule, word, tf.size(word)), word)
        active = first < nothing
        finished = ~active
        done = done.write(number, tf.boolean_mask(tf.stack([places, symbols], 1), finished))
        chosen = active & (rule == first)
        chosen &= _alternate(chosen, starts) if many else _leftmost(chosen, word)
        made = tf.where(chosen, tf.cast(rule % (1 << 32), tf.int32), symbols)
        kept = active & ~shifted(chosen, 1, False)
        left = [tf.boolean_mask(values, kept) for values in (made, words, places)]
        return number + 1, *left, done

    *_, done = tf.while_loop(
        lambda number, symbols, *_: tf.size(symbols) > 0,
        step,
        (0, symbols, words, positions(symbols), done),
        shape_invariants=(tf.TensorShape(()), *(tf.TensorShape((None,)),) * 3, None),
    )
    places, symbols = tf.unstack(done.concat(), 2, axis=1)
    return places, symbols


def _alternate(chosen: tf.Tensor, starts: tf.Tensor) -> tf.Tensor:
    """Of pairs that overlap (a a a), every other one, from the left."""
    within, _ = run_lengths(changed(chosen) | starts)
    return within % 2 == 0


def _leftmost(chosen: tf.Tensor, word: tf.Tensor) -> tf.Tensor:
    places = tf.where(chosen, positions(word), tf.size(word))
    return tf.gather(tf.math.unsorted_segment_min(places, word, tf.size(word)), word) == positions(word)


# Added tokens, which are looked for before anything else.


class AddedTokens(tf.Module):
    """Finds added tokens in texts and makes one character of each: NUM_CODES + its number.

    Args:
        texts: what to look for, and the number of each.
        takes_left: numbers of those that take the white space before them with them; `takes_right` that after them.
        spaces: bool (0x110000,), what is white space.

    Raises:
        ValueError: where the end of a token is the beginning of one: which is found would depend on what was before.
    """

    def __init__(
        self, texts: Mapping[str, int], takes_left: Iterable[int], takes_right: Iterable[int], spaces: np.ndarray
    ) -> None:
        super().__init__()
        for text in texts:
            ends = [text[start:] for start in range(1, len(text))]
            clash = [other for other in texts for end in ends if other.startswith(end) and other != end]
            if clash:
                raise ValueError(f"The added tokens {text!r} and {clash[0]!r} can overlap; such have no twin here.")
        self.trie = Trie([texts])
        self._left = tf.constant(sorted(takes_left) or [-1], tf.int32)
        self._right = tf.constant(sorted(takes_right) or [-1], tf.int32)
        self._spaces = CodeTable(spaces)

    def __call__(self, characters: Characters) -> Characters:
        """The texts with one character in the place of each added token, which is a part of its own."""
        ids = self.trie(characters, tf.zeros_like(characters.codes))
        sizes = tf.reduce_max(tf.where(ids >= 0, tf.range(1, tf.shape(ids)[0] + 1)[:, None], 0), axis=0)
        count = tf.size(sizes)
        number = tf.gather(tf.reshape(ids, [-1]), tf.maximum(sizes - 1, 0) * count + positions(sizes))
        # Tokens do not overlap, but one may lie within another.
        ends = tf.clip_by_value(positions(sizes) + sizes, 0, count - 1)
        change = tf.cast(sizes > 0, tf.int32)
        borders = shifted(change, 1, 0) - tf.math.unsorted_segment_sum(change, ends, count)
        covered = tf.cumsum(borders) > 0
        hit = (sizes > 0) & ~covered
        marked = characters._replace(codes=tf.where(hit, NUM_CODES + number, characters.codes))
        marked = marked.split(hit | shifted(hit & (sizes == 1), 1, False) | (~covered & shifted(covered, 1, False)))
        return self._without_spaces(marked.where(~covered))

    def _without_spaces(self, characters: Characters) -> Characters:
        token = characters.codes - NUM_CODES
        space = self._spaces(characters.codes) > 0
        # A token is a part of its own, so what is looked for are runs of white space at an end of a part beside it.
        within, length = run_lengths(changed(tf.cast(space, tf.int32)) | characters.starts)
        after = positions(token) - within + length
        before = positions(token) - within - 1
        last = tf.size(token) - 1
        row = characters.rows

        def beside(places: tf.Tensor, wanted: tf.Tensor) -> tf.Tensor:
            inside = tf.clip_by_value(places, 0, last)
            found = tf.reduce_any(tf.gather(token, inside)[:, None] == wanted, axis=1)
            return found & (places == inside) & (tf.gather(row, inside) == row)

        left = beside(after, self._left) & (tf.gather(token, tf.clip_by_value(after, 0, last)) >= 0)
        right = beside(before, self._right) & (tf.gather(token, tf.clip_by_value(before, 0, last)) >= 0)
        return characters.where(~(space & (left | right)))
