"""A recurrent encoder-decoder with attention: the light choice for translation from scratch.

The source is read by a bidirectional GRU, as in Bahdanau et al. 2015 (arXiv:1409.0473). The decoder is that of Luong et
al. 2015 (arXiv:1508.04025, section 3): global attention with "general" scores, without input feeding, so that training
computes the attention of all positions at once:

    h(t) = GRU(embedding of y(t-1), h(t-1));  a = softmax over s of h(t) W m(s);  c = sum over s of a(s) m(s)
    features = tanh(Wc [c; h(t)]);  logits = features E' + b

with m the encoded source and E the table of target tokens. h(0) is a projection of the encoder's last backward state,
which has read the whole source. All is computed in float32 in any precision, as in `nlp.models.recurrent`.

The network has the two faces of `nlp.models.seq2seq.Seq2SeqTransformer`, and decodes as it does.

Shapes: B texts, K lanes, R = B K rows, T target positions, S source positions, E features of embeddings, H units.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from nlp.models.layers import length_of
from nlp.models.recurrent import BidirectionalRecurrence, gru_step
from nlp.models.seq2seq_stacks import padding_penalty
from shared.config import Config, option


@dataclass(frozen=True, kw_only=True)
class RecurrentSeq2SeqConfig(Config):
    """What a recurrent encoder-decoder is."""

    vocab_size: int = option(8000, "rows of the table of source tokens", minimum=1)
    target_vocab_size: int = option(0, "rows of the table of target tokens; 0: one table for both", minimum=0)
    embedding_size: int = option(256, "features of the embeddings", minimum=1)
    hidden_size: int = option(256, "units of the decoder, and of the encoder in each direction", minimum=1)
    dropout: float = option(0.2, "share of features dropped in training", minimum=0.0, maximum=0.95)

    @property
    def target_size(self) -> int:
        """V: rows of the table of target tokens."""
        return self.target_vocab_size or self.vocab_size


class RecurrentState(NamedTuple):
    """What decoding carries from step to step.

    Attributes:
        hidden: (R, H).
        memory: the encoded source (B, S, 2 H).
        keys: the source as it is compared with states, (B, S, H).
        memory_penalty: (B, 1, S), for padding.
        seen: (B, K, S), sums of attention so far; (B, K, 0) if nobody asked.
    """

    hidden: tf.Tensor
    memory: tf.Tensor
    keys: tf.Tensor
    memory_penalty: tf.Tensor
    seen: tf.Tensor


def build_recurrent_seq2seq(config: RecurrentSeq2SeqConfig) -> RecurrentSeq2Seq:
    """The network with new weights."""
    model = RecurrentSeq2Seq(config, name="recurrent_seq2seq")
    model.build()
    return model


class RecurrentSeq2Seq(keras.Model):
    """{"source_ids" int32 (B, S), "source_mask" bool (B, S), "target_ids" int32 (B, T)} -> logits float32 (B, T, V).

    As `Seq2SeqTransformer` takes and gives them.
    """

    def __init__(self, config: RecurrentSeq2SeqConfig, **options: Any) -> None:
        super().__init__(dtype="float32", **options)
        self.config = config
        self.recurrence = BidirectionalRecurrence(config.hidden_size, name="recurrence")
        self.dropout = keras.layers.Dropout(config.dropout, dtype="float32")

    def build(self, input_shape: Any = None) -> None:
        """Create all weights."""
        width, units = self.config.embedding_size, self.config.hidden_size
        shapes = {
            "source_table": (self.config.vocab_size, width),
            "kernel": (width, 3 * units),
            "first_kernel": (units, units),
            "score_kernel": (2 * units, units),
            "mix_kernel": (3 * units, width),
        }
        if self.config.target_vocab_size:
            shapes["target_table"] = (self.config.target_vocab_size, width)
        spread = keras.initializers.RandomNormal(stddev=width**-0.5)
        for name, shape in shapes.items():
            initializer = spread if name.endswith("table") else "glorot_uniform"
            setattr(self, name, self.add_weight(shape=shape, initializer=initializer, name=name))
        if not self.config.target_vocab_size:
            self.target_table = self.source_table
        self.state_kernel = self.add_weight(shape=(units, 3 * units), initializer="orthogonal", name="state_kernel")
        biases: dict[str, tuple[int, ...]] = {
            "biases": (2, 3 * units),
            "first_bias": (units,),
            "bias": (self.config.target_size,),
        }
        for name, size in biases.items():
            setattr(self, name, self.add_weight(shape=size, initializer="zeros", name=name))
        self.recurrence.build((None, None, width))
        self.built = True

    def call(self, inputs: dict[str, tf.Tensor], training: bool | None = None) -> tf.Tensor:
        """Give the logits of all positions."""
        real = tf.cast(inputs["source_mask"], tf.bool)
        memory = self._encoded(inputs["source_ids"], real, training)
        embedded = self.dropout(tf.gather(self.target_table, inputs["target_ids"]), training=training)
        products = self._input_product(tf.reshape(embedded, (-1, self.config.embedding_size)))
        products = tf.reshape(products, (-1, length_of(embedded), 3 * self.config.hidden_size))
        states = tf.scan(
            lambda state, product: self._next(product, state), tf.transpose(products, (1, 0, 2)), self._first(memory)
        )
        states = tf.transpose(states, (1, 0, 2))  # (T, B, H) -> (B, T, H)
        features, _ = self._attended(states, memory, self._keys(memory), padding_penalty(real)[:, 0])
        rows = tf.reshape(self.dropout(features, training=training), (-1, self.config.embedding_size))
        logits = tf.matmul(rows, tf.transpose(tf.convert_to_tensor(self.target_table))) + self.bias
        return tf.reshape(logits, (-1, length_of(features), self.config.target_size))

    def _encoded(self, source_ids: tf.Tensor, real: tf.Tensor, training: bool | None) -> tf.Tensor:
        embedded = self.dropout(tf.gather(self.source_table, source_ids), training=training)
        return self.dropout(self.recurrence(embedded, real), training=training)

    def _first(self, memory: tf.Tensor) -> tf.Tensor:
        """The decoder's first state (B, H); at position 0 the backward half has read all."""
        return tf.tanh(tf.matmul(memory[:, 0, self.config.hidden_size :], self.first_kernel) + self.first_bias)

    def _input_product(self, rows: tf.Tensor) -> tf.Tensor:
        return tf.matmul(rows, self.kernel) + tf.convert_to_tensor(self.biases)[0]

    def _next(self, product: tf.Tensor, state: tf.Tensor) -> tf.Tensor:
        """The state after an input, both with any number of rows."""
        recurrent = tf.matmul(state, self.state_kernel) + tf.convert_to_tensor(self.biases)[1]
        return gru_step(product, recurrent, state)[0]

    def _keys(self, memory: tf.Tensor) -> tf.Tensor:
        rows = tf.matmul(tf.reshape(memory, (-1, memory.shape[-1])), self.score_kernel)
        return tf.reshape(rows, (-1, length_of(memory), self.config.hidden_size))

    def _attended(
        self, states: tf.Tensor, memory: tf.Tensor, keys: tf.Tensor, penalty: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """States (B, T, H) -> features (B, T, E) and the attention (B, T, S)."""
        weights = tf.nn.softmax(tf.matmul(states, keys, transpose_b=True) + penalty)
        mixed = tf.concat([tf.matmul(weights, memory), states], axis=-1)
        rows = tf.tanh(tf.matmul(tf.reshape(mixed, (-1, 3 * self.config.hidden_size)), self.mix_kernel))
        return tf.reshape(rows, (-1, length_of(states), self.config.embedding_size)), weights

    # Decoding.

    @property
    def vocab_size(self) -> int:
        """V: tokens that a step chooses from."""
        return self.config.target_size

    @property
    def longest_target(self) -> int | None:
        """Targets may have any length."""
        return None

    def encode(self, source_ids: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """Source ids and mask of real tokens (B, S) -> float32 (B, S, 2 H)."""
        return self._encoded(source_ids, tf.cast(mask, tf.bool), training=False)

    def start(
        self, memory: tf.Tensor, mask: tf.Tensor, max_length: int, *, lanes: int = 1, with_seen: bool = False
    ) -> RecurrentState:
        """The state before the first step; see `Seq2SeqTransformer.start`."""
        width = tf.shape(memory)[1] if with_seen else 0
        return RecurrentState(
            hidden=tf.repeat(self._first(memory), lanes, axis=0),
            memory=memory,
            keys=self._keys(memory),
            memory_penalty=padding_penalty(tf.cast(mask, tf.bool))[:, 0],
            seen=tf.zeros((tf.shape(memory)[0], lanes, width)),
        )

    def advance(
        self, token_ids: tf.Tensor, position: tf.Tensor, state: RecurrentState
    ) -> tuple[tf.Tensor, RecurrentState]:
        """Token ids (B, K) -> features (R, E), and the next state; a recurrent state knows its position."""
        rows = tf.gather(tf.convert_to_tensor(self.target_table), tf.reshape(token_ids, (-1,)))
        hidden = self._next(self._input_product(rows), state.hidden)
        lanes = tf.shape(state.seen)[1]
        states = tf.reshape(hidden, (-1, lanes, self.config.hidden_size))
        features, weights = self._attended(states, state.memory, state.keys, state.memory_penalty)
        seen = state.seen if state.seen.shape[2] == 0 else state.seen + weights
        return tf.reshape(features, (-1, self.config.embedding_size)), state._replace(hidden=hidden, seen=seen)

    def logits_by_token(self, features: tf.Tensor, state: RecurrentState, tokens: slice = slice(None)) -> tf.Tensor:
        """Features (R, E) -> logits (V, R) of all tokens or a range of them."""
        logits = tf.matmul(tf.convert_to_tensor(self.target_table)[tokens], features, transpose_b=True)
        return logits + tf.convert_to_tensor(self.bias)[tokens, None]

    def step(
        self, token_ids: tf.Tensor, position: tf.Tensor, state: RecurrentState
    ) -> tuple[tf.Tensor, RecurrentState]:
        """As `advance`, with the logits (B, K, V) of the next token in the place of features."""
        features, state = self.advance(token_ids, position, state)
        logits = tf.transpose(self.logits_by_token(features, state))
        return tf.reshape(logits, (-1, token_ids.shape[1], self.vocab_size)), state

    def reorder(self, state: RecurrentState, parents: tf.Tensor) -> RecurrentState:
        """The state in which each lane goes on from another's past, `parents` int32 (B, K)."""
        lanes = tf.shape(parents)[1]
        rows = tf.reshape(tf.range(tf.shape(parents)[0])[:, None] * lanes + parents, (-1,))
        return state._replace(hidden=tf.gather(state.hidden, rows), seen=tf.gather(state.seen, parents, batch_dims=1))
