from __future__ import annotations

import keras
import pytest

from shared.fine_tuning import NUM_LAYER_GROUPS, layer_groups, rate_factors, set_trainable


class Block(keras.layers.Layer):
    """A layer with a weight of its own and layers within it."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.inner = keras.layers.Dense(4, name="inner")
        self.norm = keras.layers.BatchNormalization(name="norm")

    def build(self, shape) -> None:
        self.scale = self.add_weight(shape=(4,), initializer="ones", name="scale")
        self.inner.build(shape)
        self.norm.build(shape)

    def call(self, x, training=None):
        return self.norm(self.inner(x * self.scale), training=training)


@pytest.fixture
def networks():
    features = keras.Input((4,))
    x = features
    for number in range(4):
        x = Block(name=f"block_{number}")(x)
    trunk = keras.Model(features, x, name="trunk")
    return keras.Model(features, keras.layers.Dense(2, name="head")(trunk.output)), trunk


def test_every_weight_of_the_trunk_is_in_one_group(networks):
    _, trunk = networks
    groups = layer_groups(trunk)
    assert len(groups) == NUM_LAYER_GROUPS
    assert groups[0][0].name == "block_0"
    assert sum(len(group) for group in groups) == 12


def test_head_only_freezes_all_of_the_trunk(networks):
    model, trunk = networks
    set_trainable(trunk, head_only=True, norms=True, first_group=0)
    assert trunk.trainable_variables == []
    assert len(model.trainable_variables) == 2


def test_lower_groups_and_norms_can_stay_as_they_are(networks):
    _, trunk = networks
    set_trainable(trunk, head_only=False, norms=True, first_group=3)
    assert {v.path.split("/")[-3 if v.path.count("/") > 1 else -2] for v in trunk.trainable_variables} == {
        "block_2",
        "block_3",
    }
    set_trainable(trunk, head_only=False, norms=False, first_group=0)
    assert not any("norm" in v.path for v in trunk.trainable_variables)
    assert sum("scale" in v.path for v in trunk.trainable_variables) == 4
    set_trainable(trunk, head_only=False, norms=True, first_group=0)
    assert len(trunk.trainable_variables) == 4 * 5


def test_rates_fall_towards_the_first_layers(networks):
    model, trunk = networks
    factors = dict(zip((v.path for v in model.trainable_variables), rate_factors(model, trunk, 0.5), strict=True))
    assert factors["head/kernel"] == 1.0
    assert factors["block_0/scale"] == 0.5**6
    assert factors["block_3/norm/gamma"] == 0.5
    assert rate_factors(model, trunk, 1.0) == [1.0] * len(factors)


def test_groups_follow_the_forward_pass_through_nested_models():
    inner_input = keras.Input((4,))
    inner = keras.Model(inner_input, Block(name="block_1")(Block(name="block_0")(inner_input)), name="inner_model")
    features = keras.Input((4,))
    x = inner(keras.layers.Dense(4, name="first")(features))
    trunk = keras.Model(features, keras.layers.Dense(4, name="last")(x), name="trunk")
    names = [layer.name for group in layer_groups(trunk) for layer in group]
    assert names == ["first", "block_0", "inner", "norm", "block_1", "inner", "norm", "last"]
