"""The two halves of an encoder-decoder transformer, and what decoding carries from step to step.

Shapes: B texts, K lanes of a text (beams or samples), R = B K rows, T target positions, S source positions, L positions
of a cache, D features, H heads.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple, TypeAlias

import keras
import tensorflow as tf

from nlp.models.layers import length_of
from nlp.models.positions import RelativeBias, sinusoids
from nlp.models.seq2seq_config import Seq2SeqConfig
from nlp.models.seq2seq_layers import (
    MASKED,
    Attention,
    FeedForward,
    Memory,
    Residual,
    norm_layer,
    normalised,
    step_kernel,
)
from nlp.models.ssru import SSRU

# A cache starts with room for so many positions and doubles when it is full.
_FIRST_POSITIONS = 32


# For each layer, those of its three parts as `step_kernel` gives them.
StepKernels: TypeAlias = tuple[tuple[tuple[tf.Tensor, ...], ...], ...]


class Prepared(NamedTuple):
    """Weights as steps of decoding take them.

    Attributes:
        kernels: those of the layers.
        output: the table (V, D) whose products with features are logits.
    """

    kernels: StepKernels
    output: tf.Tensor


class DecoderState(NamedTuple):
    """What decoding carries from step to step; used up by the step that takes it.

    Attributes:
        units: for each layer its cache, or the state (D, R) of its recurrent unit.
        memories: for each layer keys and values of the source.
        memory_penalty: float32 (B, 1, 1, S), for padding.
        ancestors: int32 (B, L, K), the lane in which a lane's past was at each position; -1 where nothing is yet.
        prepared: the weights.
        seen: float32 (B, K, S), how much of the source was looked at so far: sums of the last layer's weights, averaged
            over heads; (B, K, 0) if nobody asked.
    """

    units: tuple[Any, ...]
    memories: tuple[Memory, ...]
    memory_penalty: tf.Tensor
    ancestors: tf.Tensor
    prepared: Prepared
    seen: tf.Tensor


class Stack(keras.layers.Layer):
    """What encoder and decoder have in common: places of tokens, norms and dropout at both ends."""

    def __init__(self, config: Seq2SeqConfig, num_heads: int, *, both_ways: bool, **layer_options: Any) -> None:
        super().__init__(**layer_options)
        self.config = config
        self.num_heads = num_heads
        self.embedding_norm = self._norm("embedding_norm") if config.embedding_norm else None
        self.final_norm = self._norm("final_norm") if config.final_norm else None
        self.dropout = keras.layers.Dropout(config.dropout)
        self.distances = None
        if config.positions == "relative":
            self.distances = RelativeBias(
                config.relative_buckets, config.max_distance, num_heads, both_ways=both_ways, name="distances"
            )

    def build_ends(self) -> None:
        """Create the weights of what surrounds the layers."""
        shape = (None, None, self.config.hidden_size)
        self.places: Any = None
        for norm in (self.embedding_norm, self.final_norm):
            if norm is not None:
                norm.build(shape)
        if self.distances is not None:
            self.distances.build()
        elif self.config.positions == "learned":
            rows = self.config.max_length + self.config.position_offset
            self.places = self.add_weight(shape=(rows, shape[-1]), initializer="glorot_uniform", name="places")
        else:
            spaced = self.config.positions == "marian"
            self.places = sinusoids(self.config.max_length, self.config.hidden_size, as_marian=spaced)

    def embedded(self, x: tf.Tensor, training: bool | None) -> tf.Tensor:
        """Rows of the token table (B, T, D) -> what the first layer takes."""
        x = self._scaled(x)
        if self.places is not None:
            length = length_of(x)
            if isinstance(length, int) and length > self.config.max_length:
                raise ValueError(f"The network has positions for {self.config.max_length} tokens; received {length}.")
            first = self.config.position_offset
            x += tf.cast(tf.convert_to_tensor(self.places)[first : first + length], x.dtype)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        return self.dropout(x, training=training)

    def _scaled(self, x: tf.Tensor) -> tf.Tensor:
        return x * math.sqrt(self.config.hidden_size) if self.config.embedding_scale else x

    def _norm(self, name: str) -> keras.layers.Layer:
        return norm_layer(self.config.norm, self.config.norm_epsilon, name)

    def attention(self, name: str, *, cross: bool = False) -> Attention:
        """A new attention part."""
        size = self.config.size_of_heads(self.num_heads)
        return Attention(
            self.num_heads,
            size,
            self.config.hidden_size,
            use_bias=self.config.use_bias,
            scale=size**-0.5 if self.config.attention_scale else 1.0,
            dropout=self.config.attention_dropout,
            cross=cross,
            name=name,
        )

    def feed_forward(self, intermediate_size: int) -> FeedForward:
        """A new feed-forward part."""
        return FeedForward(
            self.config.hidden_size,
            intermediate_size,
            activation=self.config.activation,
            gated=self.config.gated,
            use_bias=self.config.use_bias,
            dropout=self.config.activation_dropout,
            name="feed_forward",
        )

    def residual(self, part: keras.layers.Layer, name: str) -> Residual:
        """A part with its surroundings."""
        return Residual(
            part, self._norm("norm"), norm_first=self.config.norm_first, dropout=self.config.dropout, name=name
        )


class EncoderStack(Stack):
    """Rows of the token table (B, S, D) and a mask (B, S) of real tokens -> (B, S, D)."""

    def __init__(self, config: Seq2SeqConfig, **layer_options: Any) -> None:
        super().__init__(config, config.encoder_heads, both_ways=True, **layer_options)
        self.blocks = [
            (
                self.residual(self.attention("attention"), f"attention_{number}"),
                self.residual(self.feed_forward(config.encoder_intermediate_size), f"feed_forward_{number}"),
            )
            for number in range(config.encoder_layers)
        ]

    def build(self, input_shape: Any = None) -> None:
        """Create all weights."""
        self.build_ends()
        for part in (part for block in self.blocks for part in block):
            part.build((None, None, self.config.hidden_size))

    def call(self, x: tf.Tensor, real: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Give the encoded tokens."""
        x = self.embedded(x, training)
        penalty = padding_penalty(real)
        if self.distances is not None:
            penalty += self.distances.between(length_of(x))
        for attention, feed_forward in self.blocks:
            x = feed_forward(attention(x, penalty, training=training), training=training)
        return self.final_norm(x) if self.final_norm is not None else x


class DecoderStack(Stack):
    """Rows of the token table (B, T, D), encoded source (B, S, D) and its mask (B, S) -> (B, T, D)."""

    def __init__(self, config: Seq2SeqConfig, **layer_options: Any) -> None:
        super().__init__(config, config.decoder_heads, both_ways=False, **layer_options)
        self.recurrent = config.decoder_unit == "ssru"
        self.blocks = [
            (
                self.residual(SSRU(config.hidden_size, name="ssru"), f"ssru_{number}")
                if self.recurrent
                else self.residual(self.attention("attention"), f"attention_{number}"),
                self.residual(self.attention("cross_attention", cross=True), f"cross_attention_{number}"),
                self.residual(self.feed_forward(config.decoder_intermediate_size), f"feed_forward_{number}"),
            )
            for number in range(config.decoder_layers)
        ]

    def build(self, input_shape: Any = None) -> None:
        """Create all weights."""
        self.build_ends()
        for part in (part for block in self.blocks for part in block):
            part.build((None, None, self.config.hidden_size))

    def call(self, x: tf.Tensor, source: tf.Tensor, real: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Give the decoded features."""
        x = self.embedded(x, training)
        length = length_of(x)
        later = tf.linalg.band_part(tf.ones((length, length)), -1, 0)
        past = tf.reshape((1.0 - later) * MASKED, (1, 1, length, length))  # LiteRT has no new axes in slices
        if self.distances is not None:
            past += self.distances.between(length)
        hidden = padding_penalty(real)
        for unit, look, feed_forward in self.blocks:
            x = look(unit(x, past, training=training), hidden, source, training=training)
            x = feed_forward(x, training=training)
        return self.final_norm(x) if self.final_norm is not None else x

    # Decoding.

    def step_kernels(self) -> StepKernels:
        """The kernels as steps take them, copies."""
        return tuple(
            tuple(tuple(step_kernel(layer) for layer in part.part.linears) for part in block) for block in self.blocks
        )

    def start(
        self, memory: tf.Tensor, real: tf.Tensor, prepared: Prepared, max_length: int, *, lanes: int, with_seen: bool
    ) -> DecoderState:
        """The state before the first step; see `Seq2SeqTransformer.start`."""
        batch_size, room = tf.shape(memory)[0], min(max_length, _FIRST_POSITIONS)
        empty = tf.zeros((self.config.hidden_size, batch_size * lanes))
        return DecoderState(
            units=tuple(
                empty if self.recurrent else unit.part.empty_cache(batch_size, room, lanes) for unit, *_ in self.blocks
            ),
            memories=tuple(look.part.memory_of(memory) for _, look, _ in self.blocks),
            memory_penalty=padding_penalty(real),
            ancestors=tf.fill((batch_size, room, lanes), -1),
            prepared=prepared,
            seen=tf.zeros((batch_size, lanes, tf.shape(memory)[1] if with_seen else 0)),
        )

    def step(self, rows: tf.Tensor, position: tf.Tensor, state: DecoderState) -> tuple[tf.Tensor, DecoderState]:
        """Rows (R, D) of the token table at a position -> features (R, D), and the next state without its caches.

        Args:
            rows: of the last tokens.
            position: the number of steps so far, a scalar.
            state: one `with_room`, which stays as it is. In the place of caches, units of the next are keys and values
                of the position, for `with_units`.
        """
        lanes = state.ancestors.shape[2]
        ancestors, penalty, own_penalty = state.ancestors, None, None
        if not self.recurrent:
            ancestors = _with_position(state.ancestors, position)
            penalty, own_penalty = self._past_penalty(state.ancestors, position), self._own_penalty()
        x = self._embedded_step(rows, position)
        units, weights, hidden = [], None, state.memory_penalty
        for (unit, look, feed_forward), kept, memory, kernels in zip(
            self.blocks, state.units, state.memories, state.prepared.kernels, strict=True
        ):
            x, kept = unit.step(x, functools.partial(_unit_step, unit.part, kernels[0], kept, penalty, own_penalty))
            x, weights = look.step(
                x, functools.partial(look.part.look, kernels=kernels[1], memory=memory, penalty=hidden, lanes=lanes)
            )
            x, _ = feed_forward.step(x, functools.partial(feed_forward.part.step, kernels=kernels[2]))
            units.append(kept)
        seen = state.seen if state.seen.shape[2] == 0 else state.seen + tf.reduce_mean(weights, axis=1)
        x = normalised(self.final_norm, x) if self.final_norm is not None else x
        return tf.transpose(x), state._replace(units=tuple(units), ancestors=ancestors, seen=seen)

    def reorder(self, state: DecoderState, parents: tf.Tensor) -> DecoderState:
        """The state in which each lane goes on from another's past, `parents` int32 (B, K)."""
        state = state._replace(seen=tf.gather(state.seen, parents, batch_dims=1))
        if not self.recurrent:
            # Caches stay where they are.
            ancestors = tf.gather(state.ancestors, parents, axis=2, batch_dims=1)
            return state._replace(ancestors=ancestors)
        lanes = state.ancestors.shape[2]
        rows = tf.reshape(tf.range(tf.shape(parents)[0])[:, None] * lanes + parents, (-1,))
        return state._replace(units=tuple(tf.gather(unit, rows, axis=1) for unit in state.units))

    def _embedded_step(self, rows: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
        """Rows (R, D) of the token table -> columns (D, R), which the first layer takes."""
        x = self._scaled(rows)
        if self.places is not None:
            x += tf.gather(tf.convert_to_tensor(self.places), position + self.config.position_offset)
        x = tf.transpose(x)
        return normalised(self.embedding_norm, x) if self.embedding_norm is not None else x

    def with_units(self, position: tf.Tensor, state: DecoderState, units: Any) -> DecoderState:
        """The state `with_room` and what a step has given as `units`: rows (B H, K d) for caches, written in place."""
        if not self.recurrent:
            length = tf.shape(state.ancestors)[1]
            units = tuple(
                unit.part.with_position(cache, rows, position, length)
                for (unit, *_), cache, rows in zip(self.blocks, state.units, units, strict=True)
            )
        return state._replace(units=units)

    def with_room(self, position: tf.Tensor, state: DecoderState) -> DecoderState:
        """The state with caches twice as long where they are full."""
        if self.recurrent:
            return state
        length = tf.shape(state.ancestors)[1]

        def longer() -> tuple[Any, tf.Tensor]:
            parts = (unit.part for unit, *_ in self.blocks)
            units = tuple(part.longer_cache(cache, length) for part, cache in zip(parts, state.units, strict=True))
            return units, tf.pad(state.ancestors, ((0, 0), (0, length), (0, 0)), constant_values=-1)

        units, ancestors = tf.cond(position < length, lambda: (state.units, state.ancestors), longer)
        ancestors = tf.ensure_shape(ancestors, (None, None, state.ancestors.shape[2]))
        return state._replace(units=units, ancestors=ancestors)

    def _past_penalty(self, ancestors: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
        """What a lane adds to its scores of all lanes' positions, float32 (B, 1 or H, K, L K)."""
        lanes, length = ancestors.shape[2], tf.shape(ancestors)[1]
        own = tf.one_hot(ancestors, lanes, on_value=0.0, off_value=MASKED)  # (B, L, K, lane of the past)
        penalty = tf.transpose(own, (0, 2, 1, 3))[:, None]
        if self.distances is not None:
            bias = self.distances.of_distances(tf.range(length) - position)  # (L, H)
            penalty += tf.transpose(bias)[None, :, None, :, None]
        return tf.reshape(penalty, (-1, penalty.shape[1], lanes, length * lanes))

    def _own_penalty(self) -> tf.Tensor:
        """What is added to a lane's score of its new position, float32 (1, 1 or H, 1, 1)."""
        if self.distances is None:
            return tf.zeros((1, 1, 1, 1))
        return tf.reshape(self.distances.of_distances(tf.zeros(1, tf.int32)), (1, -1, 1, 1))


def padding_penalty(real: tf.Tensor) -> tf.Tensor:
    """A mask (B, S) of real tokens -> what is added to scores, float32 (B, 1, 1, S)."""
    return tf.expand_dims(tf.expand_dims(tf.where(real, 0.0, MASKED), 1), 1)


def _with_position(ancestors: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
    """Ancestors (B, L, K) in which each lane's past at `position` is its own."""
    here = (tf.range(tf.shape(ancestors)[1]) == position)[None, :, None]
    return tf.where(here, tf.range(ancestors.shape[2]), ancestors)


def _unit_step(
    part: Attention | SSRU,
    kernels: Any,
    kept: Any,
    penalty: tf.Tensor | None,
    own_penalty: tf.Tensor | None,
    x: tf.Tensor,
) -> tuple[tf.Tensor, Any]:
    return part.step(x, kernels, kept) if isinstance(part, SSRU) else part.step(x, kernels, kept, penalty, own_penalty)
