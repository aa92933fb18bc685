"""Transformer encoders of the BERT kind: one description, `EncoderConfig`, for all their families.

Layers are post-norm (Devlin et al. 2019, arXiv:1810.04805): x = norm(x + attention(x)), then x = norm(x + feed(x)).
What families differ in is said by the config: embeddings narrower than the layers (ELECTRA, ALBERT), layers that share
weights (ALBERT), positions that count from the padding id (RoBERTa), distances in the attention (DeBERTa).

Shapes: B texts, T tokens, D features, E features of the embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import keras
import tensorflow as tf

from nlp.models.attention import DisentangledAttention, DistanceTable, SelfAttention
from nlp.models.layers import Activation, Linear, activation_function, initial_weights, layer_norm, length_of
from shared.config import Config, option
from shared.recomputation import recomputable


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(Config):
    """What a transformer encoder is; the defaults are those of BERT-base."""

    vocab_size: int = option(30522, "rows of the word table", minimum=1)
    num_layers: int = option(12, "layers", minimum=1)
    hidden_size: int = option(768, "features of each token", minimum=1)
    num_heads: int = option(12, "attention heads", minimum=1)
    intermediate_size: int = option(3072, "features inside the feed-forward part", minimum=1)
    activation: Activation = option("gelu", "activation of the feed-forward part")
    dropout: float = option(0.1, "share of features dropped in training", minimum=0.0, maximum=0.95)
    attention_dropout: float = option(0.1, "share of attention weights dropped in training", minimum=0.0, maximum=0.95)
    norm_epsilon: float = option(1e-12, "added to variances", minimum=0.0)

    max_length: int = option(512, "longest input, if positions have a table", minimum=1, unit="tokens")
    positions: Literal["absolute", "after_pad", "none"] = option(
        "absolute", "table of positions, from row 0 or, as in RoBERTa, from the row after `pad_id`; or none"
    )
    pad_id: int = option(0, "id of the padding token", minimum=0)
    num_segments: int = option(2, "rows of the segment table; 1: all tokens use its one row; 0: none", minimum=0)
    embedding_size: int = option(0, "features of the embeddings; 0: as `hidden_size`", minimum=0)
    embedding_projection: Literal["none", "after_norm", "before_norm"] = option(
        "none", "how embeddings are brought to `hidden_size`: ELECTRA and ALBERT after their norm, DeBERTa before it"
    )
    num_weight_groups: int = option(0, "groups of layers that share weights; 0: no sharing", minimum=0)

    attention: Literal["absolute", "disentangled"] = option("absolute", "disentangled: DeBERTa's, with distances")
    distance_terms: tuple[str, ...] = option((), "terms with distances: c2p, p2c (disentangled)")
    distance_buckets: int = option(0, "buckets of distances in each direction; 0: one row each", minimum=0)
    max_distance: int = option(512, "longest distance that is told apart", minimum=1, unit="tokens")
    distance_norm: bool = option(False, "normalise the table of distances")
    shared_projections: bool = option(False, "distances use the projections of the content")
    conv_size: int = option(
        0, "width of the convolution beside the first layer; 0: none (DeBERTa-v2-xlarge)", minimum=0
    )
    conv_groups: int = option(1, "groups of features in the convolution", minimum=1)
    conv_activation: Activation = option("tanh", "activation of the convolution")

    def __post_init__(self) -> None:
        """Refuse fields that do not go together."""
        super().__post_init__()
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"`hidden_size` must be a multiple of `num_heads`; received {self.hidden_size} and {self.num_heads}."
            )
        if self.embedding_projection == "none" and self.embedding_width != self.hidden_size:
            raise ValueError(
                f"`embedding_size` {self.embedding_size} differs from `hidden_size` {self.hidden_size}: say where "
                "embeddings are projected, `embedding_projection` after_norm or before_norm."
            )
        unknown = set(self.distance_terms) - {"c2p", "p2c"}
        if unknown:
            raise ValueError(f"`distance_terms` may have c2p and p2c; received {', '.join(sorted(unknown))}.")

    @property
    def embedding_width(self) -> int:
        """E: features of the embeddings."""
        return self.embedding_size or self.hidden_size

    @property
    def num_position_rows(self) -> int:
        """Rows of the position table; RoBERTa's has those up to the padding id besides."""
        rows = {"none": 0, "absolute": self.max_length, "after_pad": self.max_length + self.pad_id + 1}
        return rows[self.positions]

    def weights_of_layer(self, layer: int) -> int:
        """Number of the weights that a layer uses: its own, or those of its group."""
        return layer * self.num_weight_groups // self.num_layers if self.num_weight_groups else layer

    @property
    def num_distinct_layers(self) -> int:
        """Layers with weights of their own."""
        return self.num_weight_groups or self.num_layers


def build_encoder(
    config: EncoderConfig, *, first_token_only: bool = False, mean_over_tokens: bool = False
) -> keras.Model:
    """{"token_ids" int32, "segment_ids" int32, "mask" bool}, each (B, T) -> (B, T, D).

    Args:
        config: what to build.
        first_token_only: give position 0 alone, (B, 1, D), and spare the last layer the others; same weights, same
            numbers. That is all a classification head looks at.
        mean_over_tokens: give the mean over real tokens, (B, 1, D), in its place.
    """
    inputs = {
        "token_ids": keras.Input((None,), dtype="int32", name="token_ids"),
        "segment_ids": keras.Input((None,), dtype="int32", name="segment_ids"),
        "mask": keras.Input((None,), dtype="bool", name="mask"),
    }
    real = inputs["mask"]
    # Sums and norm of the embeddings stay float32; casting the whole word table would cost more than it saves.
    embedded = _embeddings(config)(inputs["token_ids"], inputs["segment_ids"], real)
    if config.embedding_projection == "after_norm":
        embedded = Linear(config.hidden_size, name="embedding_projection")(embedded)
    distances = _distance_table(config)(embedded) if config.attention == "disentangled" else None
    layers = [_transformer_layer(config, f"layer_{i}") for i in range(config.num_distinct_layers)]
    x = embedded
    for i in range(config.num_layers):
        is_last = i == config.num_layers - 1
        # The convolution beside the first layer needs all of its positions.
        first_only = first_token_only and is_last and not (config.conv_size and i == 0)
        x = layers[config.weights_of_layer(i)](x, real, distances, first_only=first_only)
        if i == 0 and config.conv_size:
            x = _side_convolution(config)(embedded, x, real)
    if first_token_only and config.conv_size and config.num_layers == 1:
        x = x[:, :1]
    if mean_over_tokens:
        x = MeanOverTokens(name="mean")(x, real)
    return keras.Model(inputs, x, name="encoder")


class MeanOverTokens(keras.layers.Layer):
    """Features (B, T, D) and mask (B, T) -> (B, 1, D): the mean over real tokens, computed in float32; 0 without any.

    What Sentence-BERT takes for a text (Reimers and Gurevych 2019, arXiv:1908.10084, section 3).
    """

    def call(self, features: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """Give the means."""
        weights = tf.expand_dims(tf.cast(mask, tf.float32), -1)
        total = tf.reduce_sum(tf.cast(features, tf.float32) * weights, axis=1, keepdims=True)
        return tf.cast(total / tf.maximum(tf.reduce_sum(weights, axis=1, keepdims=True), 1.0), self.compute_dtype)


def _embeddings(config: EncoderConfig) -> Embeddings:
    return Embeddings(
        config.vocab_size,
        config.embedding_width,
        num_positions=config.num_position_rows,
        first_position=config.pad_id + 1 if config.positions == "after_pad" else 0,
        num_segments=config.num_segments,
        projected_to=config.hidden_size if config.embedding_projection == "before_norm" else None,
        epsilon=config.norm_epsilon,
        dropout=config.dropout,
        name="embeddings",
        dtype="float32",
    )


def _distance_table(config: EncoderConfig) -> DistanceTable:
    return DistanceTable(
        config.hidden_size,
        num_buckets=config.distance_buckets,
        max_distance=config.max_distance,
        epsilon=config.norm_epsilon if config.distance_norm else None,
        name="distances",
        dtype="float32",
    )


def _transformer_layer(config: EncoderConfig, name: str) -> TransformerLayer:
    attention: SelfAttention
    if config.attention == "disentangled":
        attention = DisentangledAttention(
            config.num_heads,
            config.hidden_size,
            terms=config.distance_terms,
            shared_projections=config.shared_projections,
            dropout=config.attention_dropout,
            distance_dropout=config.dropout,
            name="attention",
        )
    else:
        attention = SelfAttention(
            config.num_heads, config.hidden_size, dropout=config.attention_dropout, name="attention"
        )
    return TransformerLayer(
        attention,
        config.intermediate_size,
        activation=config.activation,
        dropout=config.dropout,
        epsilon=config.norm_epsilon,
        name=name,
    )


def _side_convolution(config: EncoderConfig) -> SideConvolution:
    return SideConvolution(
        config.conv_size,
        groups=config.conv_groups,
        activation=config.conv_activation,
        dropout=config.dropout,
        epsilon=config.norm_epsilon,
        name="convolution",
    )


class Embeddings(keras.layers.Layer):
    """Words + positions + segments, each from a table, normalised: (B, T) ids -> (B, T, E), or to `projected_to`.

    Positions count real tokens from `first_position` where that is above 0, as in RoBERTa; else they are 0 ... T - 1.
    """

    def __init__(
        self,
        vocab_size: int,
        num_features: int,
        *,
        num_positions: int,
        first_position: int,
        num_segments: int,
        projected_to: int | None,
        epsilon: float,
        dropout: float,
        **layer_options: Any,
    ) -> None:
        super().__init__(**layer_options)
        self.num_rows = {"words": vocab_size, "positions": num_positions, "segments": num_segments}
        self.num_features = num_features
        self.first_position = first_position
        self.projection = Linear(projected_to, use_bias=False, name="projection") if projected_to else None
        self.norm = layer_norm(epsilon, name="norm")
        self.dropout = keras.layers.Dropout(dropout)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the tables; one without rows is None."""
        tables = {
            name: self.add_weight(shape=(rows, self.num_features), initializer=initial_weights(), name=name)
            for name, rows in self.num_rows.items()
            if rows
        }
        self.words = tables["words"]
        self.positions = tables.get("positions")
        self.segments = tables.get("segments")
        width = self.num_features
        if self.projection is not None:
            self.projection.build((None, width))
            width = self.projection.units
        self.norm.build((None, width))

    def call(
        self, token_ids: tf.Tensor, segment_ids: tf.Tensor, real: tf.Tensor, training: bool | None = None
    ) -> tf.Tensor:
        """Give the embedded tokens."""
        x = tf.gather(self.words, token_ids)
        if self.segments is not None:
            segments = tf.convert_to_tensor(self.segments)
            x += segments[0] if self.num_rows["segments"] == 1 else tf.gather(segments, segment_ids)
        if self.positions is not None:
            x += self._position_rows(real)
        if self.projection is not None:
            x = self.projection(x)
        return self.dropout(self.norm(x), training=training)

    def _position_rows(self, real: tf.Tensor) -> tf.Tensor:
        longest = self.num_rows["positions"] - self.first_position
        length = length_of(real)
        if isinstance(length, int) and length > longest:
            raise ValueError(f"The encoder has positions for {longest} tokens; received {length}. Use shorter windows.")
        if self.first_position == 0:
            return tf.convert_to_tensor(self.positions)[:length]
        count = tf.cast(real, tf.int32)
        # Padding gets the row before the first, as in fairseq's make_positions.
        return tf.gather(self.positions, tf.cumsum(count, axis=1) * count + self.first_position - 1)


class TransformerLayer(keras.layers.Layer):
    """Attention and feed-forward part, each with dropout, a residual connection and a norm: (B, T, D) -> (B, T, D)."""

    def __init__(
        self,
        attention: SelfAttention,
        intermediate_size: int,
        *,
        activation: Activation,
        dropout: float,
        epsilon: float,
        **layer_options: Any,
    ) -> None:
        super().__init__(**layer_options)
        size = attention.num_features
        self.attention = attention
        self.attention_output = Linear(size, name="attention_output")
        self.attention_norm = layer_norm(epsilon, name="attention_norm")
        self.intermediate = Linear(intermediate_size, activation=activation, name="intermediate")
        self.feed_output = Linear(size, name="feed_output")
        self.feed_norm = layer_norm(epsilon, name="feed_norm")
        self.dropout = keras.layers.Dropout(dropout)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the weights of all parts."""
        for part in (self.attention, self.attention_output, self.attention_norm, self.intermediate, self.feed_norm):
            part.build(input_shape)
        self.feed_output.build((*input_shape[:-1], self.intermediate.units))

    @recomputable
    def call(
        self,
        x: tf.Tensor,
        real: tf.Tensor,
        distances: tf.Tensor | None = None,
        *,
        first_only: bool = False,
        training: bool | None = None,
    ) -> tf.Tensor:
        """Give the next features; with `first_only` those of position 0 alone, (B, 1, D)."""
        mixed = self.attention(x, real, distances, first_only=first_only, training=training)
        mixed = self.dropout(self.attention_output(mixed), training=training)
        x = self.attention_norm((x[:, :1] if first_only else x) + mixed)
        fed = self.dropout(self.feed_output(self.intermediate(x)), training=training)
        return self.feed_norm(x + fed)


class SideConvolution(keras.layers.Layer):
    """DeBERTa-v2-xlarge's convolution over the embeddings, added to what the first layer gives.

    Source: microsoft/DeBERTa, DeBERTa/deberta/deberta.py, `ConvLayer`.
    """

    def __init__(
        self, size: int, *, groups: int, activation: Activation, dropout: float, epsilon: float, **layer_options: Any
    ) -> None:
        super().__init__(**layer_options)
        self.size = size
        self.groups = groups
        self.activation = activation_function(activation)
        self.norm = layer_norm(epsilon, name="norm")
        self.dropout = keras.layers.Dropout(dropout)

    def build(self, embedded_shape: tuple[int | None, ...]) -> None:
        """Create the convolution (`size`, D / groups, D) and its norm."""
        self.convolution = keras.layers.Conv1D(
            embedded_shape[-1],
            self.size,
            padding="same",
            groups=self.groups,
            kernel_initializer=initial_weights(),
            dtype=self.dtype_policy,
            name="convolution",
        )
        self.convolution.build(embedded_shape)
        self.norm.build(embedded_shape)

    def call(self, embedded: tf.Tensor, x: tf.Tensor, real: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Give norm(x + activation(convolution of embedded)), 0 for padding."""
        weights = tf.cast(real, x.dtype)[..., None]
        beside = self.convolution(embedded * weights) * weights
        beside = self.activation(self.dropout(beside, training=training))
        return self.norm(x + beside) * weights
