"""What exported text models serve: functions from strings, or from token ids, to answers.

Shapes: B texts, T tokens, K labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import keras
import numpy as np
import tensorflow as tf

from nlp.models.network import INPUT_NAMES, TextNetwork, float32_twin
from shared.data import Arrays
from shared.export import Endpoint

if TYPE_CHECKING:
    from nlp.classification import TextClassifierConfig
    from nlp.in_graph import InGraphTokenizer


def classifier_endpoints(
    network: TextNetwork, config: TextClassifierConfig, batch: Arrays, expected: np.ndarray
) -> tuple[keras.Model, dict[str, Endpoint]]:
    """The float32 model and its endpoint from tokens: `token_ids`, `segment_ids` and `mask` (B, T) of one window each.

    It gives probabilities (B, K), for regression values (B, 1). `expected` is what `predict` gives for `batch`.
    """
    model = float32_twin(network)

    def from_tokens(token_ids: tf.Tensor, segment_ids: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        inputs = {"token_ids": token_ids, "segment_ids": segment_ids, "mask": tf.cast(mask, tf.bool)}
        return _answers(tf.cast(model(inputs, training=False), tf.float32), config)

    return model, {"serve_tokens": _token_endpoint(from_tokens, batch, expected)}


def text_endpoints(
    model: keras.Model,
    config: TextClassifierConfig,
    tokenizer: InGraphTokenizer,
    examples: Mapping[str, tuple[Sequence[str], ...]],
    expected: Mapping[str, np.ndarray],
) -> dict[str, Endpoint]:
    """Endpoints from strings: `serve` takes texts (B,), `serve_pairs` texts and their pairs; of any length.

    They give what `classifier_endpoints` gives. `examples` and `expected` have an entry for each endpoint.
    """

    def answers(texts: tf.Tensor, pairs: tf.Tensor | None = None) -> tf.Tensor:
        windows = tokenizer.windows(texts, pairs, overlap=config.window_overlap)
        rows = windows.pop("rows")
        logits = tf.cast(model(windows, training=False), tf.float32)
        pool = tf.math.segment_max if config.window_pooling == "max" else tf.math.segment_mean
        return _answers(pool(logits, rows), config)

    names = {"serve": ("texts",), "serve_pairs": ("texts", "pairs")}
    return {
        name: Endpoint(
            function=answers if len(columns) == 2 else (lambda texts: answers(texts)),
            signature=tuple(tf.TensorSpec((None,), tf.string, name=column) for column in columns),
            example=tuple(np.asarray([text.encode() for text in part], object) for part in examples[name]),
            expected=expected[name],
        )
        for name, columns in names.items()
    }


def _answers(logits: tf.Tensor, config: TextClassifierConfig) -> tf.Tensor:
    if config.regression:
        return logits
    return tf.sigmoid(logits) if config.multi_label else tf.nn.softmax(logits)


def token_endpoint(network: TextNetwork, batch: Arrays, expected: np.ndarray) -> tuple[keras.Model, Endpoint]:
    """The float32 model and its endpoint from `token_ids`, `segment_ids` and `mask` (B, T) to logits (B, T, K).

    `expected` is what the pipeline's own model gives for `batch`.
    """
    model = float32_twin(network)

    def from_tokens(token_ids: tf.Tensor, segment_ids: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        inputs = {"token_ids": token_ids, "segment_ids": segment_ids, "mask": tf.cast(mask, tf.bool)}
        return tf.cast(model(inputs, training=False), tf.float32)

    return model, _token_endpoint(from_tokens, batch, expected)


def _token_endpoint(function: Callable[..., tf.Tensor], batch: Arrays, expected: np.ndarray) -> Endpoint:
    return Endpoint(
        function=function,
        # The mask as int32: the one type of integers that every runtime takes.
        signature=tuple(tf.TensorSpec((None, None), tf.int32, name=name) for name in INPUT_NAMES),
        example=tuple(batch[name].astype(np.int32) for name in INPUT_NAMES),
        expected=expected,
    )
