"""Layer groups of a pretrained trunk: which of them are trained, and how fast (all domains)."""

from __future__ import annotations

from collections.abc import Iterator

import keras
import numpy as np

# A trunk's layers are divided by depth into this many groups, each with a learning rate of its own when `layer_decay`
# is below 1 (Howard and Ruder 2018, arXiv:1801.06146, "discriminative fine-tuning").
NUM_LAYER_GROUPS = 6


def layer_groups(trunk: keras.Model) -> list[list[keras.layers.Layer]]:
    """The layers that have weights of their own, in the order of the forward pass, in six groups of about one size."""
    unique = {id(layer): layer for layer in _in_order(trunk)}
    weighted = [layer for layer in unique.values() if _own_variables(layer)]
    return [list(part) for part in np.array_split(np.asarray(weighted, dtype=object), NUM_LAYER_GROUPS)]


def set_trainable(trunk: keras.Model, *, head_only: bool, norms: bool, first_group: int) -> None:
    """Say which layers of the trunk are trained; the head always is.

    Args:
        trunk: the pretrained part of a network.
        head_only: none of the trunk's layers.
        norms: batch normalisation too; otherwise it keeps its scales and statistics.
        first_group: the lowest of the layer groups that is trained.
    """
    for group, members in enumerate(layer_groups(trunk)):
        # A layer comes before those within it, whose own setting therefore stands.
        for layer in members:
            is_norm = isinstance(layer, keras.layers.BatchNormalization)
            layer.trainable = not head_only and group >= first_group and (norms or not is_norm)


def rate_factors(model: keras.Model, trunk: keras.Model, layer_decay: float) -> list[float]:
    """Factor on the learning rate of each trainable variable: 1 outside the trunk, less for its lower layers."""
    groups = enumerate(layer_groups(trunk))
    depth = {id(v): group for group, members in groups for layer in members for v in _own_variables(layer)}
    return [
        layer_decay ** (NUM_LAYER_GROUPS - depth[id(v)]) if id(v) in depth else 1.0 for v in model.trainable_variables
    ]


def _in_order(layer: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    """The layers within a layer, each before those within it; Keras's own walk has inner ones the other way round."""
    for part in layer.layers if isinstance(layer, keras.Model) else layer._layers:
        yield part
        yield from _in_order(part)


def _own_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """The variables of a layer that belong to none of the layers within it."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]
