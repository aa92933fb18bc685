"""What encoder-decoder transformers are made of: attention, feed-forward parts, layers (Vaswani et al. 2017).

Layers have two faces. Called, they take all positions of a batch at once, for training. Their `step` methods take the
next position of each row alone, for decoding: as columns (D, R), so that the product with a kernel has the large matrix
on its left, which is quickest, and nothing is transposed on the way. All of it is float32 but, in mixed_bfloat16,
kernels, what is multiplied with them, and the products: reading kernels is most of the time of a step.

Shapes: B texts, K lanes of a text (beams or samples), R = B K rows, T target positions, S source positions, L positions
of a cache, D features, H heads, d features of a head, I = H d.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import keras
import tensorflow as tf

from nlp.models.layers import Activation, Linear, activation_function, layer_norm, length_of
from nlp.models.pieces import piece
from shared.recomputation import recomputable

NormKind: TypeAlias = Literal["layer", "rms"]

# Added to the scores of what must not be looked at: exp of it is 0, yet sums of it stay finite.
MASKED = -1e9


class Cache(NamedTuple):
    """Keys and values of the positions so far, (B H L, K d) each: a row holds one position of all lanes.

    Rows are overwritten in place: a cache is used up by the step that takes it.
    """

    keys: tf.Tensor
    values: tf.Tensor


class Memory(NamedTuple):
    """Keys and values (B, H, S, d) of the source for one layer of the decoder."""

    keys: tf.Tensor
    values: tf.Tensor


def norm_layer(kind: NormKind, epsilon: float, name: str) -> keras.layers.Layer:
    """Layer normalisation, or T5's without mean and bias (Zhang and Sennrich 2019, arXiv:1910.07467)."""
    if kind == "rms":
        return keras.layers.RMSNormalization(epsilon=epsilon, name=name)
    return layer_norm(epsilon, name=name)


def normalised(norm: keras.layers.Layer, x: tf.Tensor) -> tf.Tensor:
    """What a layer of `norm_layer` gives for columns (D, R), in float32."""
    return _normalised(x, *_norm_weights(norm), norm.epsilon)


def _norm_weights(norm: keras.layers.Layer) -> tuple[tf.Tensor, tf.Tensor | None]:
    if isinstance(norm, keras.layers.RMSNormalization):
        return tf.convert_to_tensor(norm.scale), None
    return tf.convert_to_tensor(norm.gamma), tf.convert_to_tensor(norm.beta)


@piece
def _normalised(x: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor | None, epsilon: float) -> tf.Tensor:
    """Layer normalisation of columns, without an `offset` that of root mean squares."""
    if offset is not None:
        x -= tf.reduce_mean(x, axis=0, keepdims=True)
    mean_square = tf.reduce_mean(tf.square(x), axis=0, keepdims=True)
    x *= tf.math.rsqrt(mean_square + epsilon) * scale[:, None]
    return x if offset is None else x + offset[:, None]


@piece
def _sum(x: tf.Tensor, result: tf.Tensor, bias: tf.Tensor | None) -> tf.Tensor:
    return x + with_bias(result, bias)


@piece
def _normalised_sum(
    x: tf.Tensor,
    result: tf.Tensor,
    bias: tf.Tensor | None,
    scale: tf.Tensor,
    offset: tf.Tensor | None,
    epsilon: float,
) -> tf.Tensor:
    return _normalised(x + with_bias(result, bias), scale, offset, epsilon)


def with_bias(columns: tf.Tensor, bias: tf.Tensor | None) -> tf.Tensor:
    """Products (units, R), in float32 and with their bias (units,)."""
    columns = tf.cast(columns, tf.float32)
    return columns if bias is None else columns + bias[:, None]


def _value(variable: keras.Variable | None) -> tf.Tensor | None:
    return None if variable is None else tf.convert_to_tensor(variable)


def linear(units: int, name: str, *, use_bias: bool, activation: Activation | Literal["linear"] = "linear") -> Linear:
    """A linear map with new weights of Glorot and Bengio 2010, as Marian and fairseq draw them."""
    return Linear(units, activation=activation, use_bias=use_bias, initializer="glorot_uniform", name=name)


class Attention(keras.layers.Layer):
    """Attention of H heads with its output projection: (B, T, D) -> (B, T, D).

    Without `cross`, positions look at each other, and query, key and value are one product; with it they look at the
    source, and key and value are one.
    """

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        num_features: int,
        *,
        use_bias: bool,
        scale: float,
        dropout: float,
        cross: bool = False,
        **layer_options: Any,
    ) -> None:
        super().__init__(**layer_options)
        self.num_heads, self.head_size, self.num_features = num_heads, head_size, num_features
        self.cross = cross
        self.scale = scale
        inner = num_heads * head_size
        if cross:
            self.query = linear(inner, "query", use_bias=use_bias)
            self.key_value = linear(2 * inner, "key_value", use_bias=use_bias)
        else:
            self.qkv = linear(3 * inner, "qkv", use_bias=use_bias)
        self.projection = linear(num_features, "projection", use_bias=use_bias)
        self.dropout = keras.layers.Dropout(dropout)

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The linear maps that a step of decoding uses, in order."""
        return (self.query, self.projection) if self.cross else (self.qkv, self.projection)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the projections."""
        for layer in (self.query, self.key_value) if self.cross else (self.qkv,):
            layer.build((None, self.num_features))
        self.projection.build((None, self.num_heads * self.head_size))

    def call(
        self, x: tf.Tensor, penalty: tf.Tensor, source: tf.Tensor | None = None, training: bool | None = None
    ) -> tf.Tensor:
        """Give the mixtures; `penalty`, added to the scores (B, H, T, S), is float32 and may have axes of size 1."""
        if self.cross:
            query = self._heads(self.query(x), 1)[0]
            key, value = tf.unstack(self._heads(self.key_value(source), 2))
        else:
            query, key, value = tf.unstack(self._heads(self.qkv(x), 3))
        scores = tf.matmul(query * tf.cast(self.scale, query.dtype), key, transpose_b=True)
        penalty = tf.cast(penalty, tf.float32)  # Keras casts what it passes on
        weights = tf.cast(tf.nn.softmax(tf.cast(scores, tf.float32) + penalty), value.dtype)
        mixed = tf.matmul(self.dropout(weights, training=training), value)
        mixed = tf.transpose(mixed, (0, 2, 1, 3))  # (B, H, T, d) -> (B, T, H, d)
        return self.projection(tf.reshape(mixed, (-1, length_of(mixed), self.num_heads * self.head_size)))

    def _heads(self, x: tf.Tensor, count: int) -> tf.Tensor:
        """(B, T, count I) -> (count, B, H, T, d)."""
        shape = (-1, length_of(x), count, self.num_heads, self.head_size)
        return tf.transpose(tf.reshape(x, shape), (2, 0, 3, 1, 4))

    # Decoding.

    def memory_of(self, source: tf.Tensor) -> Memory:
        """Keys and values of the encoded source (B, S, D) float32: computed once, used at every step."""
        rows = _affine(tf.reshape(source, (-1, self.num_features)), self.key_value)
        return Memory(*tf.unstack(self._heads(tf.reshape(rows, (-1, length_of(source), rows.shape[-1])), 2)))

    def empty_cache(self, batch_size: tf.Tensor, length: int, lanes: int) -> Cache:
        """A cache for `length` positions."""
        shape = [batch_size * self.num_heads * length, lanes * self.head_size]
        # Not zeros: a constant might be shared, and caches are written in place. But zeroed: 0 times NaN is NaN.
        return Cache(*(tf.raw_ops.Empty(shape=shape, dtype=tf.float32, init=True) for _ in range(2)))

    def longer_cache(self, cache: Cache, length: tf.Tensor) -> Cache:
        """The same cache with room for twice its `length` positions."""

        def longer(rows: tf.Tensor) -> tf.Tensor:
            width = rows.shape[-1]
            by_head = tf.reshape(rows, (-1, length, width))
            return tf.reshape(tf.pad(by_head, ((0, 0), (0, length), (0, 0))), (-1, width))

        return Cache(longer(cache.keys), longer(cache.values))

    def step(
        self, x: tf.Tensor, kernels: Sequence[tf.Tensor], cache: Cache, penalty: tf.Tensor, own_penalty: tf.Tensor
    ) -> tuple[tf.Tensor, Cache]:
        """Columns (D, R) of the next position -> (D, R) and keys and values (B H, K d) for `with_position`.

        What comes lacks `result_bias`, and has the kernel's type.

        `penalty` (B, 1 or H, K, L K) hides all positions that are not in the cache yet; `own_penalty` (1, 1 or H, 1, 1)
        is of the next one.
        """
        columns = product(x, kernels[0])
        mixed, rows = _attended(
            columns, _value(self.qkv.bias), cache, penalty, own_penalty, self.num_heads, self.head_size, self.scale
        )
        return product(mixed, kernels[1], as_rows=True), rows

    def with_position(self, cache: Cache, rows: Cache, position: tf.Tensor, length: tf.Tensor) -> Cache:
        """A cache of `length` positions with the rows (B H, K d) of one, where the old ones lay."""
        places = tf.range(tf.shape(rows.keys)[0]) * length + position
        return Cache(*(tf.raw_ops.InplaceUpdate(x=old, i=places, v=new) for old, new in zip(cache, rows, strict=True)))

    def look(
        self, x: tf.Tensor, kernels: Sequence[tf.Tensor], memory: Memory, penalty: tf.Tensor, lanes: int
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Columns (D, R) -> what they see of the source, (D, R), as `step` gives it, and the weights (B, H, K, S)."""
        query = product(x, kernels[0])
        mixed, weights = _looked(
            query, _value(self.query.bias), memory, penalty, lanes, self.num_heads, self.head_size, self.scale
        )
        return product(mixed, kernels[1], as_rows=True), weights

    @property
    def result_bias(self) -> keras.Variable | None:
        """What is still to be added to the results of `step` and `look`."""
        return self.projection.bias


@piece
def _attended(
    columns: tf.Tensor,
    bias: tf.Tensor | None,
    cache: Cache,
    penalty: tf.Tensor,
    own_penalty: tf.Tensor,
    heads: int,
    size: int,
    scale: float,
) -> tuple[tf.Tensor, Cache]:
    """Products (3 I, R) of queries, keys, values -> mixtures as rows (R, I), and new keys and values (B H, K d)."""
    lanes = penalty.shape[2]
    query, key, value = tf.unstack(_lanes(with_bias(columns, bias), 3, heads, size, lanes))
    keys, values = (tf.reshape(part, (-1, heads, tf.shape(penalty)[3], size)) for part in cache)
    past = _scores(query * scale, keys) + penalty
    own = tf.reduce_sum(query * scale * key, axis=-1, keepdims=True) + own_penalty
    weights = tf.nn.softmax(tf.concat([past, own], axis=-1))
    mixed = tf.matmul(weights[..., :-1], values) + weights[..., -1:] * value
    # (B, H, K, d) -> (B H, K d).
    rows = Cache(*(tf.reshape(part, (-1, lanes * size)) for part in (key, value)))
    return _joined(mixed, heads * size), rows


@piece
def _looked(
    columns: tf.Tensor,
    bias: tf.Tensor | None,
    memory: Memory,
    penalty: tf.Tensor,
    lanes: int,
    heads: int,
    size: int,
    scale: float,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Products (I, R) of queries -> mixtures of the memory as rows (R, I), and the weights (B, H, K, S)."""
    query = _lanes(with_bias(columns, bias), 1, heads, size, lanes)[0]
    weights = tf.nn.softmax(_scores(query * scale, memory.keys) + penalty)
    return _joined(tf.matmul(weights, memory.values), heads * size), weights


def _lanes(columns: tf.Tensor, count: int, heads: int, size: int, lanes: int) -> tf.Tensor:
    """(count I, R) -> (count, B, H, K, d)."""
    return tf.transpose(tf.reshape(columns, (count, heads, size, -1, lanes)), (0, 3, 1, 4, 2))


def _scores(query: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """(B, H, K, d) and (B, H, S, d) -> (B, H, K, S)."""
    # The longer matrix on the left: half the time.
    scores = tf.matmul(keys, query, transpose_b=True)
    if query.shape[2] == 1:
        return tf.reshape(scores, (-1, query.shape[1], 1, tf.shape(scores)[2]))
    return tf.linalg.matrix_transpose(scores)


def _joined(mixed: tf.Tensor, width: int) -> tf.Tensor:
    """(B, H, K, d) -> rows (R, I)."""
    if mixed.shape[2] != 1:
        mixed = tf.transpose(mixed, (0, 2, 1, 3))
    return tf.reshape(mixed, (-1, width))


def _affine(rows: tf.Tensor, layer: Linear) -> tf.Tensor:
    """A linear map in float32, without activation."""
    rows = tf.matmul(rows, tf.convert_to_tensor(layer.kernel))
    return rows if layer.bias is None else tf.nn.bias_add(rows, tf.convert_to_tensor(layer.bias))


def product(x: tf.Tensor, kernel: tf.Tensor, *, as_rows: bool = False) -> tf.Tensor:
    """Columns (D, R) float32, or rows (R, D), through a `step_kernel` (units, D) -> (units, R) of the kernel's type."""
    return tf.matmul(kernel, tf.cast(x, kernel.dtype), transpose_b=as_rows)


def step_kernel(layer: Linear) -> tf.Tensor:
    """The kernel as `step` methods take it, (units, D); the copy pays within a few steps."""
    return tf.transpose(as_multiplied(layer.kernel, layer.compute_dtype))


def as_multiplied(weights: keras.Variable, compute_dtype: str) -> tf.Tensor:
    """Weights as a step of decoding multiplies with them: bfloat16 where layers compute in it, else float32."""
    values = tf.convert_to_tensor(weights)
    return tf.cast(values, tf.bfloat16) if compute_dtype == "bfloat16" else values


class FeedForward(keras.layers.Layer):
    """(B, T, D) -> (B, T, D) through wider rows; gated, activation(x W) * (x V) (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(
        self,
        num_features: int,
        intermediate_size: int,
        *,
        activation: Activation,
        gated: bool,
        use_bias: bool,
        dropout: float,
        **layer_options: Any,
    ) -> None:
        super().__init__(**layer_options)
        self.num_features = num_features
        self.activation: Activation = activation
        self.inner = linear(intermediate_size, "inner", use_bias=use_bias, activation=activation)
        self.gate = linear(intermediate_size, "gate", use_bias=use_bias) if gated else None
        self.outer = linear(num_features, "outer", use_bias=use_bias)
        self.dropout = keras.layers.Dropout(dropout)

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The linear maps, in order."""
        return tuple(layer for layer in (self.inner, self.gate, self.outer) if layer is not None)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the kernels."""
        for layer in self.linears:
            layer.build((None, self.inner.units if layer is self.outer else self.num_features))

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Give the mapped positions."""
        inner = self.inner(x)
        if self.gate is not None:
            inner *= self.gate(x)
        return self.outer(self.dropout(inner, training=training))

    def step(self, x: tf.Tensor, kernels: Sequence[tf.Tensor]) -> tuple[tf.Tensor, None]:
        """Columns (D, R) -> (D, R), without `result_bias` and of the kernel's type, and nothing besides."""
        inner = _activated(product(x, kernels[0]), _value(self.inner.bias), self.activation)
        if self.gate is not None:
            inner *= with_bias(product(x, kernels[1]), _value(self.gate.bias))
        return product(inner, kernels[-1]), None

    @property
    def result_bias(self) -> keras.Variable | None:
        """What is still to be added to the results of `step`."""
        return self.outer.bias


@piece
def _activated(columns: tf.Tensor, bias: tf.Tensor | None, activation: Activation) -> tf.Tensor:
    return activation_function(activation)(with_bias(columns, bias))


class Residual(keras.layers.Layer):
    """A part with dropout, the sum with its input, and a norm after the sum or before the part: (B, T, D) -> (B, T, D).

    The norm comes last in the original transformer, first in later ones (Xiong et al. 2020, arXiv:2002.04745).
    """

    def __init__(
        self,
        part: keras.layers.Layer,
        norm: keras.layers.Layer,
        *,
        norm_first: bool,
        dropout: float,
        **layer_options: Any,
    ) -> None:
        super().__init__(**layer_options)
        self.part = part
        self.norm = norm
        self.norm_first = norm_first
        self.dropout = keras.layers.Dropout(dropout)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Create the weights of part and norm."""
        self.part.build(input_shape)
        self.norm.build(input_shape)

    @recomputable
    def call(self, x: tf.Tensor, *arguments: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Give the next features; `arguments` are the part's, after its input."""
        result = self.part(self.norm(x) if self.norm_first else x, *arguments, training=training)
        x += self.dropout(result, training=training)
        return x if self.norm_first else self.norm(x)

    def step(self, x: tf.Tensor, step_of_part: Callable[..., tuple[tf.Tensor, Any]]) -> tuple[tf.Tensor, Any]:
        """The same for columns (D, R) in float32, with a step of the part, and what that gives besides."""
        result, besides = step_of_part(normalised(self.norm, x) if self.norm_first else x)
        bias = _value(self.part.result_bias)
        if self.norm_first:
            return _sum(x, result, bias), besides
        return _normalised_sum(x, result, bias, *_norm_weights(self.norm), self.norm.epsilon), besides
