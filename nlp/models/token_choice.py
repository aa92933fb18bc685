"""Choosing the next token: the best, random ones, and which are not allowed; inside a graph.

Logits are (V, R), one row for each token: that is how they come out of the product quickest.

Shapes: V tokens, R rows (each lane of each text), K lanes of a text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

# Rows of logits whose largest is looked for first.
_CHUNK = 32

# Tokens whose logits are computed at a time by `best_tokens`: logits of some dozens of rows stay in a core's cache.
BLOCK = 4096


def log_sum(logits: tf.Tensor, maxima: tf.Tensor | None = None) -> tf.Tensor:
    """The logarithm of the sum over tokens of exp(logits): (V, R) -> (R,).

    Args:
        logits: of all tokens.
        maxima: of parts of them (P, R), where they are known.
    """
    largest = tf.reduce_max(logits if maxima is None else maxima, axis=0)
    return largest + tf.math.log(tf.reduce_sum(tf.exp(logits - largest), axis=0))


def best_tokens(
    logits_of: Callable[[slice], tf.Tensor],
    vocab_size: int,
    count: int,
    *,
    scored: bool,
    block: int = BLOCK,
    banned: Sequence[int] = (),
    banned_in: tuple[Sequence[int], tf.Tensor] | None = None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
    """The largest logits of each row and their tokens, (R, count), and `log_sum` (R,), None unless `scored`.

    Logits are computed a block of tokens after another, so that they do not lie in memory together: what a large
    vocabulary costs is for a good part the memory of its logits, new at every step.

    Args:
        logits_of: gives logits of a range of tokens.
        vocab_size: V.
        count: at most V.
        scored: whether somebody needs the sum; tokens that are banned count in it.
        block: tokens whose logits are computed at a time.
        banned: tokens that are out of reach.
        banned_in: tokens that are out of reach in the rows of a mask (R,).
    """
    values, ids, totals = [], [], []
    for first in range(0, vocab_size, block):
        tokens = range(first, min(first + block, vocab_size))
        logits = logits_of(slice(tokens.start, tokens.stop))
        maxima = _chunk_maxima(logits)
        if scored:
            totals.append(log_sum(logits, maxima))
        never = [token - first for token in banned if token in tokens]
        sometimes = [] if banned_in is None else [token - first for token in banned_in[0] if token in tokens]
        value, place = top_tokens(
            logits,
            min(count, len(tokens)),
            maxima=maxima,
            banned=never,
            banned_in=None if banned_in is None else (sometimes, banned_in[1]),
        )
        values.append(value)
        ids.append(place + first)
    best, places = tf.math.top_k(tf.concat(values, axis=1), count)
    total = tf.reduce_logsumexp(tf.stack(totals), axis=0) if scored else None
    return best, tf.gather(tf.concat(ids, axis=1), places, batch_dims=1), total


def top_tokens(
    logits: tf.Tensor,
    count: int,
    *,
    maxima: tf.Tensor | None = None,
    banned: Sequence[int] = (),
    banned_in: tuple[Sequence[int], tf.Tensor] | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The largest logits of each row, from the largest down, and their tokens: (V, R) -> (R, count) twice.

    A row's `count` largest lie in the `count` chunks of tokens with the largest maxima, so most are never sorted. Where
    tokens are banned, as many more chunks are looked at, for no other maxima are too large.

    Args:
        logits: of all tokens.
        count: at most V.
        maxima: what `_chunk_maxima` gives, where it is known.
        banned: tokens that are out of reach.
        banned_in: tokens that are out of reach in the rows of a mask (R,).
    """
    vocab_size = logits.shape[0]
    sometimes, where = banned_in if banned_in is not None else ((), None)
    num_chunks, looked_at = vocab_size // _CHUNK, count + len(banned) + len(sometimes)
    num_rows, whole = tf.shape(logits)[1], num_chunks * _CHUNK
    if num_chunks < 4 * looked_at:
        tokens, candidates = tf.broadcast_to(tf.range(vocab_size), (num_rows, vocab_size)), tf.transpose(logits)
    else:
        maxima = _chunk_maxima(logits) if maxima is None else maxima
        _, chunks = tf.math.top_k(tf.transpose(maxima[:num_chunks]), looked_at)  # (R, looked_at)
        tokens = tf.reshape(chunks[:, :, None] * _CHUNK + tf.range(_CHUNK), (-1, looked_at * _CHUNK))
        rest = tf.broadcast_to(tf.range(whole, vocab_size), (num_rows, vocab_size - whole))
        tokens = tf.concat([tokens, rest], axis=1)
        candidates = tf.gather(tf.reshape(logits, (-1,)), tokens * num_rows + tf.range(num_rows)[:, None])
    if banned:
        candidates = tf.where(is_one_of(tokens, banned), -float("inf"), candidates)
    if where is not None and sometimes:
        candidates = tf.where(is_one_of(tokens, sometimes) & where[:, None], -float("inf"), candidates)
    values, places = tf.math.top_k(candidates, count)
    return values, tf.gather(tokens, places, batch_dims=1)


def _chunk_maxima(logits: tf.Tensor) -> tf.Tensor:
    """The largest logits of chunks of tokens and, last, of those behind the last chunk: (V, R) -> (chunks, R)."""
    whole = logits.shape[0] // _CHUNK * _CHUNK
    rest = [tf.reduce_max(logits[whole:], axis=0, keepdims=True)] if whole < logits.shape[0] else []
    if not whole:
        return rest[0]
    by_chunk = tf.reshape(logits[:whole], (whole // _CHUNK, _CHUNK, tf.shape(logits)[1]))
    return tf.concat([tf.reduce_max(by_chunk, axis=1), *rest], axis=0)


def random_tokens(logits: tf.Tensor, seed: tf.Tensor, *, temperature: float, top_k: int, top_p: float) -> tf.Tensor:
    """A token drawn for each row: (V, R) -> (R,) int32.

    Args:
        logits: of all tokens.
        seed: int32 (2,).
        temperature: divides logits; below 1 the likely become likelier.
        top_k: draw from the so many likeliest; 0: from all.
        top_p: draw from the fewest that have this probability together (Holtzman et al. 2020, arXiv:1904.09751), of
            what `top_k` leaves.
    """
    if not top_k and top_p >= 1:
        return tf.random.stateless_categorical(tf.transpose(logits) / temperature, 1, seed, dtype=tf.int32)[:, 0]
    values, ids = top_tokens(logits / temperature, min(top_k or logits.shape[0], logits.shape[0]))
    if top_p < 1:
        chances = tf.nn.softmax(values)
        likelier = tf.cumsum(chances, axis=1, exclusive=True)
        kept = (likelier < top_p) | (tf.range(tf.shape(values)[1]) == 0)
        values = tf.where(kept, values, -float("inf"))
    drawn = tf.random.stateless_categorical(values, 1, seed, dtype=tf.int32)
    return tf.gather(ids, drawn, batch_dims=1)[:, 0]


def without_tokens(logits: tf.Tensor, tokens: Sequence[int], where: tf.Tensor | None = None) -> tf.Tensor:
    """Logits (V, R) with some tokens out of reach, in all rows or those of a mask (R,). `logits` are overwritten."""
    if not tokens:
        return logits
    ids = tf.constant(list(tokens), tf.int32)
    rows = tf.gather(logits, ids)
    banned = tf.fill(tf.shape(rows), -float("inf"))
    rows = banned if where is None else tf.where(where, banned, rows)
    return tf.raw_ops.InplaceUpdate(x=logits, i=ids, v=rows)


def without_repeats(logits: tf.Tensor, tokens: tf.Tensor, count: tf.Tensor, size: int) -> tf.Tensor:
    """Logits (V, R) without the tokens that would end a sequence of `size` tokens for the second time.

    Args:
        logits: of the next token.
        tokens: int32 (R, L), of which the first `count` are there.
        count: scalar.
        size: of the sequences, at least 1.
    """
    starts = tf.shape(tokens)[1] - size + 1  # places where such a sequence can begin
    again = tf.broadcast_to(tf.range(starts) + size <= count, (tf.shape(tokens)[0], starts))
    for offset in range(size - 1):
        last = tf.gather(tokens, tf.maximum(count - size + 1 + offset, 0), axis=1)
        again &= tokens[:, offset : offset + starts] == last[:, None]
    places = tf.cast(tf.where(again), tf.int32)  # (N, 2): row, start
    repeated = tf.gather_nd(tokens[:, size - 1 :], places)
    pairs = tf.stack([repeated, places[:, 0]], axis=1)
    return tf.tensor_scatter_nd_update(logits, pairs, tf.fill(tf.shape(repeated), -float("inf")))


def is_one_of(tokens: tf.Tensor, ids: Sequence[int]) -> tf.Tensor:
    """Where tokens, of any shape, are among `ids`."""
    found = tf.zeros_like(tokens, tf.bool)
    for number in ids:
        found |= tokens == number
    return found
