"""A text model in two parts, encoder and head, how it is built again, and how windows of a text become one answer.

Shapes: B examples, W windows, T tokens, D features, K labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from nlp.models.crf import LinearChainCRF
from nlp.models.encoder import EncoderConfig, build_encoder
from nlp.models.heads import HeadConfig, build_head
from shared.distribution import mean_over_batch
from shared.losses import cross_entropy
from shared.runtime import current_runtime, float32_policy, seeded

INPUT_NAMES = ("token_ids", "segment_ids", "mask")


@dataclass(frozen=True)
class TextNetwork:
    """Encoder: {"token_ids", "segment_ids", "mask"} (B, T) -> features; head: features -> logits.

    `architecture` is a JSON-able recipe from which `build_network` makes the same network again. A network without a
    head waits for the number of its labels.
    """

    encoder: keras.Model
    head: keras.Model | None
    model: keras.Model | None
    architecture: dict[str, Any]

    @property
    def crf(self) -> LinearChainCRF | None:
        """The conditional random field over the tags, where there is one."""
        if self.model is None or not self.architecture.get("crf"):
            return None
        crf: LinearChainCRF = self.model.get_layer("crf")
        return crf

    def with_new_head(self, head: dict[str, Any], num_labels: int, *, seed: int, crf: bool = False) -> TextNetwork:
        """The same encoder under a new, untrained head, with a conditional random field over it or not."""
        architecture = self.architecture | {"head": head, "num_labels": num_labels, "crf": crf}
        with current_runtime().scope(), seeded(seed):
            return _composed(self.encoder, architecture)

    def without_head(self) -> TextNetwork:
        """The encoder alone."""
        architecture = {
            key: value for key, value in self.architecture.items() if key not in ("head", "num_labels", "crf")
        }
        return TextNetwork(self.encoder, None, None, architecture)


def build_network(architecture: dict[str, Any], *, seed: int) -> TextNetwork:
    """The network that `architecture` describes, with weights drawn from `seed`.

    `architecture` has `kind` ("transformer", "recurrent" or "decoder"), `encoder` (the fields of its config),
    `per_text` (features for each text, not each token), for a transformer maybe `token_pooling` ("first", which is left
    out, or "mean"), and for a network with a head `head` (fields of a `HeadConfig`) and `num_labels`.
    """
    with current_runtime().scope(), seeded(seed):
        encoder = _encoder(architecture)
        if "head" not in architecture:
            return TextNetwork(encoder, None, None, architecture)
        return _composed(encoder, architecture)


def _encoder(architecture: dict[str, Any]) -> keras.Model:
    per_text = bool(architecture["per_text"])
    if architecture["kind"] == "decoder":
        from nlp.models.decoder import build_decoder

        return build_decoder(architecture["family"], architecture["encoder"])
    if architecture["kind"] == "transformer":
        mean = per_text and architecture.get("token_pooling") == "mean"
        config = EncoderConfig.from_dict(architecture["encoder"])
        return build_encoder(config, first_token_only=per_text and not mean, mean_over_tokens=mean)
    from nlp.models.recurrent import RecurrentConfig, build_recurrent_encoder

    encoder = build_recurrent_encoder(RecurrentConfig.from_dict(architecture["encoder"]))
    if not per_text:
        return encoder
    inputs = _inputs()
    return keras.Model(inputs, LargestOverTokens(name="pooling")(encoder(inputs), inputs["mask"]), name="encoder")


class LargestOverTokens(keras.layers.Layer):
    """Features (B, T, D) and mask (B, T) -> (B, 1, D): the largest of each feature over real tokens; 0 without."""

    def call(self, features: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """Give the largest values."""
        real = tf.expand_dims(tf.cast(mask, tf.bool), -1)
        largest = tf.reduce_max(tf.where(real, features, features.dtype.min), axis=1, keepdims=True)
        # An empty window, which fills up a batch, must give finite numbers.
        return tf.where(tf.reduce_any(real, axis=1, keepdims=True), largest, 0.0)


def scratch_architecture(config: Any, vocab_size: int, *, per_text: bool) -> dict[str, Any]:
    """The recipe of an untrained encoder, from the fields that the configs of all text tasks have in common."""
    encoder: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": config.hidden_size,
        "num_layers": config.num_layers,
        "dropout": config.dropout,
    }
    if config.encoder != "transformer":
        encoder |= {"embedding_size": config.hidden_size, "cell": config.encoder}
        return {"kind": "recurrent", "encoder": encoder, "per_text": per_text}
    encoder |= {
        "num_heads": config.num_heads,
        "intermediate_size": 4 * config.hidden_size,
        "max_length": config.max_length,
        "attention_dropout": config.dropout,
    }
    pooling = {"token_pooling": "mean"} if per_text and config.token_pooling == "mean" else {}
    return {"kind": "transformer", "encoder": encoder, "per_text": per_text, **pooling}


def _inputs() -> dict[str, keras.KerasTensor]:
    return {
        "token_ids": keras.Input((None,), dtype="int32", name="token_ids"),
        "segment_ids": keras.Input((None,), dtype="int32", name="segment_ids"),
        "mask": keras.Input((None,), dtype="bool", name="mask"),
    }


def _composed(encoder: keras.Model, architecture: dict[str, Any]) -> TextNetwork:
    head_config = HeadConfig.from_dict(architecture["head"])
    head = build_head(head_config, encoder.output_shape[-1], architecture["num_labels"])
    inputs = _inputs()
    logits = head(encoder(inputs))
    if architecture.get("crf"):
        logits = LinearChainCRF(architecture["num_labels"], name="crf")(logits)
    model = keras.Model(inputs, logits, name="text_model")
    return TextNetwork(encoder, head, model, architecture)


def pooled_logits(
    model: keras.Model, batch: dict[str, tf.Tensor], *, pooling: str = "mean", training: bool
) -> tf.Tensor:
    """Logits (B, K) float32 of texts in windows (B, W, T): the mean, or the largest, over the windows of each text."""
    shape = tf.shape(batch["token_ids"])
    flat = {key: tf.reshape(batch[key], (-1, shape[2])) for key in INPUT_NAMES}
    logits = tf.cast(model(flat, training=training), tf.float32)
    logits = tf.reshape(logits, (shape[0], shape[1], logits.shape[-1]))
    used = tf.reduce_any(batch["mask"], axis=-1)[..., None]
    if pooling == "max":
        return tf.reduce_max(tf.where(used, logits, logits.dtype.min), axis=1)
    weights = tf.cast(used, tf.float32)
    return tf.reduce_sum(logits * weights, axis=1) / tf.reduce_sum(weights, axis=1)


def tag_loss(
    model: keras.Model, *, crf: LinearChainCRF | None, label_smoothing: float
) -> Callable[[dict[str, tf.Tensor]], tf.Tensor]:
    """Mean loss per word of a batch in windows (B, W, T) with `targets` (B, W, T), -1 for tokens without an answer.

    Cross-entropy, or with a conditional random field its negative log-likelihood, each window being a sequence.
    """

    def loss(batch: dict[str, tf.Tensor]) -> tf.Tensor:
        flat = {key: tf.reshape(value, (-1, tf.shape(value)[2])) for key, value in batch.items()}
        logits = model({key: flat[key] for key in INPUT_NAMES}, training=True)
        answers = flat["targets"] >= 0
        if crf is not None:
            # In float32 any number of words keeps its share of the sum.
            words = tf.reduce_sum(tf.cast(answers, tf.float32))
            return mean_over_batch(-tf.reduce_sum(crf.log_likelihood(logits, flat["targets"], answers)), words)
        return cross_entropy(
            tf.boolean_mask(logits, answers),
            tf.boolean_mask(flat["targets"], answers),
            label_smoothing=label_smoothing,
            by_examples=False,
        )

    return loss


def float32_twin(network: TextNetwork) -> keras.Model:
    """The same model with the same weights, computing in float32: what converters can take."""
    assert network.model is not None
    if keras.config.dtype_policy().name == "float32":
        return network.model
    with float32_policy():
        twin = build_network(network.architecture, seed=0).model
    assert twin is not None
    twin.set_weights(network.model.get_weights())
    return twin
