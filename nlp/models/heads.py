"""Heads over an encoder's features: one answer per text, or one per token.

Shapes: B texts, T tokens, D features, K labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import keras

from nlp.models.layers import Activation, Linear, initial_weights
from shared.config import Config, option


@dataclass(frozen=True, kw_only=True)
class HeadConfig(Config):
    """What lies between features and logits; the defaults are a single linear map."""

    kind: Literal["classification", "tokens"] = option("classification", "one answer per text, or one per token")
    hidden_activation: Activation | None = option(
        None, "activation of a layer of D features before the logits, which BERT calls pooler; none: no such layer"
    )
    hidden_dropout: float = option(0.0, "dropout before that layer", minimum=0.0, maximum=0.95)
    dropout: float = option(0.1, "dropout before the logits", minimum=0.0, maximum=0.95)


def build_head(config: HeadConfig, num_features: int, num_labels: int) -> keras.Model:
    """Features (B, T, D) -> logits (B, K) of the first token, or (B, T, K) of all; float32 in any precision."""
    features = keras.Input((None, num_features), name="features")
    x = features[:, 0] if config.kind == "classification" else features
    if config.hidden_activation is not None:
        x = keras.layers.Dropout(config.hidden_dropout, name="hidden_dropout")(x)
        x = Linear(num_features, activation=config.hidden_activation, name="hidden")(x)
    x = keras.layers.Dropout(config.dropout, name="dropout")(x)
    logits = keras.layers.Dense(num_labels, kernel_initializer=initial_weights(), dtype="float32", name="logits")(x)
    return keras.Model(features, logits, name="head")
