"""Tokenizing within a graph: strings in, the ids of a `TextTokenizer` out, for models that run without Python.

    B    texts, a number known only when the graph runs
    T    tokens of the longest row, special tokens included

All of it is made of TensorFlow's own operations: a SavedModel that holds it loads in plain TensorFlow.

| tokenizer | in a graph |
|---|---|
| WordPiece with `BertNormalizer` (BERT, DistilBERT, ELECTRA) | yes |
| byte-level BPE without a normalizer (RoBERTa, GPT-2) | yes |
| unigram (XLM-R, CamemBERT, ALBERT, DeBERTa-v2/v3) with a SentencePiece character map | yes |
| the normalizers `NFC`, `NFD`, `NFKC`, `NFKD`, `Lowercase`, `StripAccents`, `Strip`, the usual `Replace` rules | yes |
| other normalizers, other ways to split, byte fallback, other BPE, added tokens for whole words only | no |

What has no twin is refused with a `ValueError` when the tokenizer is built; ids are never silently others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from nlp.graph_pieces import AddedTokens, GraphModel, byte_pair_model, unigram_model, word_piece_model
from nlp.graph_rules import Characters, Rule, normalizer_rules, on_cpu, pre_tokenizer_rules
from nlp.tokenization import TextTokenizer
from nlp.unicode_tables import NUM_CODES, matching

_MODELS = {"word_piece": word_piece_model, "byte_pair": byte_pair_model, "unigram": unigram_model}


@on_cpu
def in_graph_tokenizer(tokenizer: TextTokenizer, max_length: int) -> InGraphTokenizer:
    """The twin of `tokenizer` for use within a graph.

    Args:
        tokenizer: whose ids it gives.
        max_length: most tokens of a row, special tokens included.

    Raises:
        ValueError: where the tokenizer has a part without a twin, or `max_length` has no room; the message names it.
    """
    return InGraphTokenizer(tokenizer, max_length)


class InGraphTokenizer(tf.Module):
    """Strings to model inputs; see `in_graph_tokenizer`.

    Whoever exports a function that calls it must track it: it holds lookup tables.

    Example:
        >>> tokenize = in_graph_tokenizer(tokenizer, max_length=128)          # doctest: +SKIP
        >>> inputs = tokenize(tf.constant(["A text.", "Another one."]))       # doctest: +SKIP
    """

    def __init__(self, tokenizer: TextTokenizer, max_length: int) -> None:
        super().__init__()
        self._templates = (tokenizer.template(), tokenizer.template(pair=True))
        if max_length < self._templates[1].num_special + 2:
            raise ValueError(
                f"`max_length` must be at least {self._templates[1].num_special + 2}; received {max_length}."
            )
        self._max_length, self._pad_id = max_length, tokenizer.pad_id
        record = json.loads(tokenizer.to_json())
        added = record.get("added_tokens") or []
        raw, normalized = (_added_tokens(tokenizer, added, normalized=value) for value in (False, True))
        self._rules: list[Rule] = [
            *([raw] if raw else []),
            *normalizer_rules(record.get("normalizer")),
            *([normalized] if normalized else []),
            *pre_tokenizer_rules(record.get("pre_tokenizer")),
        ]
        self._tokens = _model(tokenizer, record, np.array([token["id"] for token in added], np.int32))

    @on_cpu
    def __call__(self, texts: tf.Tensor, pairs: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        """The first window of each text, or of each text and its pair, as `TextTokenizer.windows` gives it.

        Args:
            texts: strings (B,), UTF-8; what is invalid is read as U+FFFD.
            pairs: strings (B,).

        Returns:
            `token_ids`, `segment_ids`: int32 (B, T); `mask`: bool (B, T), False for what fills the row up.
        """
        columns = [texts] if pairs is None else [texts, pairs]
        sides = [self.ids(column) for column in columns]
        zeros = tf.zeros_like(texts, tf.int32)
        return self._assembled(sides, tf.range(tf.size(texts)), [zeros for _ in sides], self._widths(sides))

    @on_cpu
    def windows(self, texts: tf.Tensor, pairs: tf.Tensor | None = None, *, overlap: int = 0) -> dict[str, tf.Tensor]:
        """All windows of each text, or of each text and its pair, as `TextTokenizer.windows` gives them.

        Args:
            texts: strings (B,), UTF-8; what is invalid is read as U+FFFD.
            pairs: strings (B,).
            overlap: tokens that neighbouring windows share.

        Returns:
            `token_ids`, `segment_ids`: int32 (W, T); `mask`: bool (W, T); `rows`: int32 (W,), the text of each window,
            in order.
        """
        columns = [texts] if pairs is None else [texts, pairs]
        sides = [self.ids(column) for column in columns]
        widths = self._widths(sides)
        lengths = [tf.cast(side.row_lengths(), tf.int32) for side in sides]
        steps = [tf.maximum(1, width - tf.minimum(overlap, width // 2)) for width in widths]
        counts = [_count(*values) for values in zip(lengths, widths, steps, strict=True)]
        most = counts[0] if len(counts) == 1 else tf.maximum(*counts)
        rows = tf.repeat(tf.range(tf.size(texts)), most)
        number = tf.range(tf.size(rows)) - tf.gather(tf.cumsum(most, exclusive=True), rows)
        starts = []
        for length, width, step, count in zip(lengths, widths, steps, counts, strict=True):
            place = number * tf.gather(count, rows) // tf.gather(most, rows)
            last = tf.gather(tf.maximum(length - width, 0), rows)
            starts.append(tf.minimum(place * tf.gather(step, rows), last))
        return {**self._assembled(sides, rows, starts, widths), "rows": rows}

    @on_cpu
    def ids(self, texts: tf.Tensor) -> tf.RaggedTensor:
        """All tokens of each text, without special tokens added: int32 (B, None)."""
        decoded = tf.strings.unicode_decode(texts, "UTF-8", errors="replace")
        count = tf.size(texts)
        rows = tf.concat([tf.cast(decoded.value_rowids(), tf.int32), [count]], 0)
        # One character more, in a text of its own, so that nothing below is ever empty.
        characters = Characters(tf.concat([decoded.values, [NUM_CODES + _NO_TOKEN]], 0), rows, rows)
        for rule in self._rules:
            characters = rule(characters)
        tokens = self._tokens(characters)
        real = tokens.rows < count
        return tf.RaggedTensor.from_value_rowids(
            tf.boolean_mask(tokens.ids, real),
            tf.cast(tf.boolean_mask(tokens.rows, real), tf.int64),
            nrows=tf.cast(count, tf.int64),
            validate=False,
        )

    def _widths(self, sides: Sequence[tf.RaggedTensor]) -> list[tf.Tensor]:
        """Most tokens of each side of each text; see `nlp.tokenization.spans`."""
        room = self._max_length - self._templates[len(sides) - 1].num_special
        lengths = [tf.cast(side.row_lengths(), tf.int32) for side in sides]
        if len(sides) == 1:
            return [tf.fill(tf.shape(lengths[0]), room)]
        first, second = lengths
        short = tf.minimum(tf.minimum(first, second), room // 2)
        fits = first + second <= room
        text = tf.where(fits, first, tf.where(first > second, room - short, short))
        pair = tf.where(fits, second, tf.where(first > second, short, room - short))
        return [text, pair]

    def _assembled(
        self,
        sides: Sequence[tf.RaggedTensor],
        rows: tf.Tensor,
        starts: Sequence[tf.Tensor],
        widths: Sequence[tf.Tensor],
    ) -> dict[str, tf.Tensor]:
        """Special tokens and, for each window, the tokens of each side from `starts` on, at most `widths` of them."""
        template = self._templates[len(sides) - 1]
        ids, segments = [], []
        for number, run in enumerate(template.runs):
            ids.append(_repeated(run, rows))
            segments.append(_repeated(template.run_segments[number], rows))
            if number < len(sides):
                cut = _cut(sides[number], rows, starts[number], widths[number])
                ids.append(cut)
                segments.append(cut.with_values(tf.fill(tf.shape(cut.values), template.side_segments[number])))
        row = tf.concat(ids, axis=1)
        return {
            "token_ids": row.to_tensor(self._pad_id),
            "segment_ids": tf.concat(segments, axis=1).to_tensor(0),
            "mask": tf.sequence_mask(row.row_lengths()),
        }


# A number that no added token has.
_NO_TOKEN = 1 << 20


def _count(length: tf.Tensor, width: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
    """Windows that a side needs."""
    return 1 + (tf.maximum(length - width, 0) + step - 1) // step


def _repeated(run: Sequence[int], rows: tf.Tensor) -> tf.Tensor:
    return tf.tile(tf.constant([run], tf.int32, shape=(1, len(run))), [tf.size(rows), 1])


def _cut(side: tf.RaggedTensor, rows: tf.Tensor, starts: tf.Tensor, widths: tf.Tensor) -> tf.RaggedTensor:
    begin = tf.gather(side.row_starts(), rows) + tf.cast(starts, tf.int64)
    end = tf.minimum(begin + tf.cast(tf.gather(widths, rows), tf.int64), tf.gather(side.row_limits(), rows))
    places = tf.ragged.range(begin, end)
    return places.with_values(tf.gather(side.values, places.values))


def _added_tokens(
    tokenizer: TextTokenizer, added: Sequence[Mapping[str, Any]], *, normalized: bool
) -> AddedTokens | None:
    chosen = [(number, token) for number, token in enumerate(added) if token["normalized"] == normalized]
    whole = [token["content"] for _, token in chosen if token["single_word"]]
    if whole:
        raise ValueError(f"The added token {whole[0]!r} counts only as a whole word; such have no twin within a graph.")
    if not chosen:
        return None
    text = tokenizer.normalize if normalized else str
    return AddedTokens(
        {text(token["content"]): number for number, token in chosen},
        [number for number, token in chosen if token["lstrip"]],
        [number for number, token in chosen if token["rstrip"]],
        matching(r"\s"),
    )


def _model(tokenizer: TextTokenizer, record: Mapping[str, Any], added_ids: np.ndarray) -> GraphModel:
    if tokenizer.kind not in _MODELS:
        raise ValueError(f"A tokenizer of kind {tokenizer.kind} has no twin within a graph.")
    splits = json.dumps(record.get("pre_tokenizer") or {})
    if tokenizer.kind == "byte_pair" and "ByteLevel" not in splits:
        raise ValueError("A BPE tokenizer that is not byte-level has no twin within a graph.")
    return _MODELS[tokenizer.kind](record["model"], added_ids)
