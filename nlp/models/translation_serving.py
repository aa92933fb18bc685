"""What exported translators serve: functions from texts to translations, from token ids to theirs, or to logits.

Shapes: B texts, S source tokens, T target tokens, V tokens to choose from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from nlp.decoding import Decoded, DecodingConfig, search_function
from shared.data import Arrays
from shared.export import Endpoint


def logits_endpoint(model: Any, batch: Arrays) -> Endpoint:
    """From `source_ids`, `source_mask` (B, S) and `target_ids` (B, T), all int32, to logits (B, T, V).

    For runtimes without loops of their own; the search is left to whoever calls it.
    """
    names = ("source_ids", "source_mask", "target_ids")

    def logits(source_ids: tf.Tensor, source_mask: tf.Tensor, target_ids: tf.Tensor) -> tf.Tensor:
        inputs = {"source_ids": source_ids, "source_mask": tf.cast(source_mask, tf.bool), "target_ids": target_ids}
        return tf.cast(model(inputs, training=False), tf.float32)

    example = tuple(batch[name].astype(np.int32) for name in names)
    return Endpoint(
        function=logits,
        signature=tuple(tf.TensorSpec((None, None), tf.int32, name=name) for name in names),
        example=example,
        expected=logits(*map(tf.convert_to_tensor, example)).numpy(),
    )


def token_endpoint(model: Any, decoding: DecodingConfig, batch: Arrays, expected: Sequence[Decoded]) -> Endpoint:
    """From `source_ids` and `source_mask` (B, S), int32, to the token ids of the best translations (B, T).

    T is the decoding's `max_length`; shorter ones are padded. `expected` is what `decode` gives for the batch.
    """
    padded = np.full((len(expected), decoding.max_length), decoding.pad_id, np.int32)
    for row, found in zip(padded, expected, strict=True):
        row[: found.lengths[0]] = found.token_ids[0, : found.lengths[0]]
    search = search_function(model, decoding)

    def tokens(source_ids: tf.Tensor, source_mask: tf.Tensor) -> tf.Tensor:
        return _best(search, source_ids, tf.cast(source_mask, tf.bool))

    names = ("source_ids", "source_mask")
    return Endpoint(
        function=tokens,
        signature=tuple(tf.TensorSpec((None, None), tf.int32, name=name) for name in names),
        example=tuple(batch[name].astype(np.int32) for name in names),
        expected=padded,
    )


def text_endpoint(
    model: Any,
    decoding: DecodingConfig,
    twin: Any,
    texts: Sequence[str],
    expected: Sequence[str],
    *,
    prefix: str,
    limit: int,
) -> Endpoint:
    """From `texts` (B,) to their translations (B,), both strings.

    Texts without letters and digits, or of nothing that the vocabulary knows, stay as they are. A text of more than
    `limit` tokens is cut into parts of like length, and the parts' translations are joined with spaces.

    Args:
        model: the network.
        decoding: how it searches.
        twin: the tokenizer's twin (`nlp.in_graph_translation`).
        texts: examples.
        expected: what `predict` makes of them.
        prefix: what is put before each text.
        limit: most tokens that the network reads at once.
    """
    search = search_function(model, decoding)

    def translations(texts: tf.Tensor) -> tf.Tensor:
        ids, mask = twin.encode(tf.strings.join([prefix, texts]) if prefix else texts)
        speaks = tf.strings.regex_full_match(texts, r"(?s).*[\pL\pN].*") & twin.knows(ids, mask)
        ids, mask, rows = twin.parts(ids, mask, limit)
        parts = tf.RaggedTensor.from_value_rowids(twin.decode(_best(search, ids, mask)), rows, nrows=tf.size(texts))
        return tf.where(speaks, tf.strings.reduce_join(parts, axis=-1, separator=" "), texts)

    return Endpoint(
        function=lambda texts: tf.cond(tf.size(texts) > 0, lambda: translations(texts), lambda: texts),
        signature=(tf.TensorSpec((None,), tf.string, name="texts"),),
        example=(_bytes(texts),),
        expected=_bytes(expected),
    )


def _bytes(texts: Sequence[str]) -> np.ndarray:
    return np.asarray([text.encode("utf-8") for text in texts], object)


def _best(search: Any, source_ids: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    no_prefix = tf.zeros((tf.shape(source_ids)[0], 0), tf.int32)
    token_ids, _, _ = search(source_ids, mask, no_prefix, tf.constant(0))
    return token_ids[:, 0]
