"""Encoder-decoder transformers: Marian, BART and T5 as one network with two faces.

Called, it takes source and target ids and gives the logits of every target position, for training. `encode`, `start`
and `step` give the logits of one position after another, for decoding (`nlp.decoding`): what is known of the source is
projected once, and keys and values of the positions so far are kept. A step computes in float32 in any precision, but
its products with weights in bfloat16 where layers compute in it.

Shapes: B texts, K lanes of a text (beams or samples), R = B K rows, T target positions, S source positions, D features,
V target tokens.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from nlp.models.layers import length_of
from nlp.models.seq2seq_config import Seq2SeqConfig
from nlp.models.seq2seq_layers import as_multiplied, with_bias
from nlp.models.seq2seq_stacks import DecoderStack, DecoderState, EncoderStack, Prepared


def build_seq2seq(config: Seq2SeqConfig) -> Seq2SeqTransformer:
    """The network with new weights."""
    model = Seq2SeqTransformer(config, name="seq2seq")
    model.build()
    return model


class Seq2SeqTransformer(keras.Model):
    """{"source_ids" int32 (B, S), "source_mask" bool (B, S), "target_ids" int32 (B, T)} -> logits float32 (B, T, V).

    `target_ids` are what the decoder reads: the target behind a start token. Logits at a position are those of the next
    token. Padding at the end of a target needs no mask: no real position sees it.
    """

    def __init__(self, config: Seq2SeqConfig, **options: Any) -> None:
        super().__init__(**options)
        self.config = config
        self.source_tokens = TokenTable(config.vocab_size, config.hidden_size, name="source_tokens")
        self.target_tokens = (
            self.source_tokens
            if config.shared_embeddings
            else TokenTable(config.target_size, config.hidden_size, name="target_tokens")
        )
        self.output_tokens = (
            self.target_tokens
            if config.tied_output
            else TokenTable(config.target_size, config.hidden_size, name="output_tokens")
        )
        self.encoder = EncoderStack(config, name="encoder")
        self.decoder = DecoderStack(config, name="decoder")

    def build(self, input_shape: Any = None) -> None:
        """Create all weights."""
        for table in (self.source_tokens, self.target_tokens, self.output_tokens):
            if not table.built:
                table.build()
        self.encoder.build()
        self.decoder.build()
        self.output_bias = None
        if self.config.output_bias:
            self.output_bias = self.add_weight(shape=(self.config.target_size,), initializer="zeros", name="bias")
        self.built = True

    def call(self, inputs: dict[str, tf.Tensor], training: bool | None = None) -> tf.Tensor:
        """Give the logits of all positions."""
        mask = tf.cast(inputs["source_mask"], tf.bool)
        source_rows, target_rows, table = self._embedded(inputs["source_ids"], inputs["target_ids"])
        source = self.encoder(source_rows, mask, training=training)
        x = self.decoder(target_rows, source, mask, training=training)
        rows = self._before_output(tf.reshape(x, (-1, self.config.hidden_size)))
        logits = tf.cast(tf.matmul(rows, tf.transpose(tf.cast(table, rows.dtype))), tf.float32)
        if self.output_bias is not None:
            logits = tf.nn.bias_add(logits, tf.cast(self.output_bias, tf.float32))
        return tf.reshape(logits, (-1, length_of(x), self.config.target_size))

    def _embedded(self, source_ids: tf.Tensor, target_ids: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Rows of source and target (B, T, D), and the table (V, D) of the logits: up to three times the same one."""
        if self.target_tokens is not self.output_tokens:
            table = tf.convert_to_tensor(self.output_tokens.table)
            return self.source_tokens(source_ids), self.target_tokens(target_ids), table
        if self.source_tokens is not self.output_tokens:
            target_rows, table = self.output_tokens([target_ids], with_table=True)
            return self.source_tokens(source_ids), target_rows, table
        source_rows, target_rows, table = self.output_tokens([source_ids, target_ids], with_table=True)
        return source_rows, target_rows, table

    def _before_output(self, rows: tf.Tensor) -> tf.Tensor:
        return rows * self.config.hidden_size**-0.5 if self.config.output_scale else rows

    # Decoding.

    @property
    def vocab_size(self) -> int:
        """V: tokens that a step chooses from."""
        return self.config.target_size

    @property
    def longest_target(self) -> int | None:
        """Most steps that can be taken; None where there is no limit."""
        return self.config.longest

    def encode(self, source_ids: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """Source ids and mask of real tokens (B, S) -> float32 (B, S, D)."""
        mask = tf.cast(mask, tf.bool)
        return tf.cast(self.encoder(self.source_tokens(source_ids), mask, training=False), tf.float32)

    @property
    def step_weights(self) -> list[keras.Variable]:
        """What `prepared` is made of."""
        parts = (part.part for block in self.decoder.blocks for part in block)
        return [*(layer.kernel for part in parts for layer in part.linears), self.output_tokens.table]

    def prepared(self) -> Prepared:
        """Kernels and table as steps take them, some of them copies: the same as long as weights do not change."""
        return Prepared(self.decoder.step_kernels(), as_multiplied(self.output_tokens.table, self.compute_dtype))

    def start(
        self,
        memory: tf.Tensor,
        mask: tf.Tensor,
        max_length: int,
        *,
        lanes: int = 1,
        with_seen: bool = False,
        prepared: Prepared | None = None,
    ) -> DecoderState:
        """The state before the first step.

        Args:
            memory: what `encode` gave.
            mask: (B, S).
            max_length: most steps that will be taken.
            lanes: K.
            with_seen: keep account of what was looked at (`DecoderState.seen`).
            prepared: what `prepared` gives, where it is known.

        Raises:
            ValueError: where positions do not reach so far.
        """
        if self.longest_target is not None and max_length > self.longest_target:
            raise ValueError(f"The decoder has positions for {self.longest_target} tokens; received {max_length}.")
        prepared = self.prepared() if prepared is None else prepared
        return self.decoder.start(
            memory, tf.cast(mask, tf.bool), prepared, max_length, lanes=lanes, with_seen=with_seen
        )

    def advance(self, token_ids: tf.Tensor, position: tf.Tensor, state: DecoderState) -> tuple[tf.Tensor, DecoderState]:
        """Token ids (B, K) at a position, the scalar number of steps so far -> features (R, D), and the next state."""
        state = self.decoder.with_room(position, state)
        features, after = self.decoder.step(self.last_rows(token_ids), position, state)
        with tf.control_dependencies([features]):  # before what it has read is overwritten
            state = self.decoder.with_units(position, state, after.units)
        return features, after._replace(units=state.units)

    def last_rows(self, token_ids: tf.Tensor) -> tf.Tensor:
        """Token ids (B, K) -> their rows (R, D) of the target's table."""
        return tf.gather(tf.convert_to_tensor(self.target_tokens.table), tf.reshape(token_ids, (-1,)))

    def logits_by_token(self, features: tf.Tensor, state: DecoderState, tokens: slice = slice(None)) -> tf.Tensor:
        """Features (R, D) -> logits (V, R) of all tokens or a range of them.

        One row for each token is quicker to compute than one for each text.
        """
        table, bias = self.output_of(state, tokens)
        return with_bias(self.products(features, table), bias)

    def output_of(self, state: DecoderState, tokens: slice) -> tuple[tf.Tensor, tf.Tensor | None]:
        """The rows (V, D) and biases (V,), if any, that give the logits of a range of tokens."""
        table = state.prepared.output
        table.set_shape((self.vocab_size, self.config.hidden_size))  # which a loop has lost
        bias = None if self.output_bias is None else tf.convert_to_tensor(self.output_bias)[tokens]
        return table[tokens], bias

    def products(self, features: tf.Tensor, table: tf.Tensor) -> tf.Tensor:
        """Features (R, D) and rows of `output_of` -> (V, R), logits but for their bias."""
        rows = tf.cast(self._before_output(features), table.dtype)
        return tf.matmul(table, rows, transpose_b=True)

    def step(self, token_ids: tf.Tensor, position: tf.Tensor, state: DecoderState) -> tuple[tf.Tensor, DecoderState]:
        """As `advance`, with the logits (B, K, V) of the next token in the place of features."""
        features, state = self.advance(token_ids, position, state)
        logits = tf.transpose(self.logits_by_token(features, state))
        return tf.reshape(logits, (-1, token_ids.shape[1], self.vocab_size)), state

    def reorder(self, state: DecoderState, parents: tf.Tensor) -> DecoderState:
        """The state in which each lane goes on from another's past, `parents` int32 (B, K)."""
        return self.decoder.reorder(state, parents)


@tf.custom_gradient  # type: ignore[untyped-decorator]
def _rows_and_table(table: tf.Tensor, token_ids: tf.Tensor) -> tuple[tuple[tf.Tensor, tf.Tensor], Any]:
    """Rows (B, T, D) of a table (V, D) at integers (B, T), and the table for those who use it whole.

    The gradients of rows are added into that of the whole table where it lies. Left to itself, TensorFlow copies the
    whole one for each use of the table and adds it up row by row.
    """

    def gradient(of_rows: tf.Tensor, of_table: tf.Tensor) -> tuple[tf.Tensor, None]:
        places = tf.reshape(tf.cast(token_ids, tf.int32), (-1, 1))
        return tf.tensor_scatter_nd_add(of_table, places, tf.reshape(of_rows, (-1, table.shape[1]))), None

    return (tf.gather(table, token_ids), tf.identity(table)), gradient


class TokenTable(keras.layers.Layer):
    """Token ids (B, T) -> rows of a table (V, D), float32 in any precision: gradients are sums over many tokens."""

    def __init__(self, num_tokens: int, num_features: int, **layer_options: Any) -> None:
        super().__init__(**layer_options, dtype="float32")
        self.shape = (num_tokens, num_features)

    def build(self, input_shape: Any = None) -> None:
        """Create the table."""
        # Times the root of D, rows have features of size 1; as an output matrix, logits do.
        spread = keras.initializers.RandomNormal(stddev=self.shape[1] ** -0.5)
        self.table = self.add_weight(shape=self.shape, initializer=spread, name="table")

    def call(self, token_ids: tf.Tensor | list[tf.Tensor], with_table: bool = False) -> Any:
        """Give the rows; `with_table`, the rows for each of several arrays of ids and, last, the table for logits."""
        table = tf.convert_to_tensor(self.table)
        if not with_table:
            return tf.gather(table, token_ids)
        found = []
        for ids in token_ids:
            rows, table = _rows_and_table(table, ids)
            found.append(rows)
        return (*found, table)
