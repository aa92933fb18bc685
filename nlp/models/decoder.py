"""Decoders of keras-hub (GPT-2) as encoders of a text: what the last token has read.

Shapes: B texts, T tokens, D features.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

# Hugging Face's `model_type` and the backbone in keras_hub.models that computes the same.
BACKBONES = {"gpt2": "GPT2Backbone"}


class LastToken(keras.layers.Layer):
    """Features (B, T, D) and mask (B, T) -> (B, 1, D): those of the last real token, which has read all the others."""

    def call(self, features: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """Pick the position; the first where a text has no token."""
        last = tf.maximum(tf.reduce_sum(tf.cast(mask, tf.int32), axis=1) - 1, 0)
        return tf.gather(features, last[:, None], axis=1, batch_dims=1)


def build_decoder(family: str, config: dict[str, Any]) -> keras.Model:
    """{"token_ids" int32, "segment_ids" int32, "mask" bool}, each (B, T), padded at the end -> (B, 1, D).

    Args:
        family: a key of `BACKBONES`.
        config: arguments of that backbone.

    Raises:
        ValueError: for another family.
    """
    import keras_hub

    if family not in BACKBONES:
        raise ValueError(f"Decoders of family {family!r} are not known; known are {', '.join(BACKBONES)}.")
    backbone = getattr(keras_hub.models, BACKBONES[family])(**config, name="backbone")
    inputs = {
        "token_ids": keras.Input((None,), dtype="int32", name="token_ids"),
        "segment_ids": keras.Input((None,), dtype="int32", name="segment_ids"),
        "mask": keras.Input((None,), dtype="bool", name="mask"),
    }
    padding = keras.ops.cast(inputs["mask"], "int32")
    features = backbone({"token_ids": inputs["token_ids"], "padding_mask": padding})
    return keras.Model(inputs, LastToken(name="last_token")(features, inputs["mask"]), name="encoder")
