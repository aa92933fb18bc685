from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, dataclass
from typing import Literal

import pytest

from shared.config import Config, describe_type, field_types, option
from shared.runtime import RuntimeConfig
from shared.training_config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class Example(Config):
    count: int = option(3, "a count", minimum=1, maximum=9)
    rate: float = option(0.5, "a rate", minimum=0.0)
    name: str = option("x", "a name")
    on: bool = option(False, "a switch")
    kind: Literal["plain", "fancy"] = option("plain", "a choice")
    sizes: tuple[int, ...] = option((), "sizes")
    limit: int | None = option(None, "a limit", minimum=1)


def test_defaults():
    assert Example().to_dict() == {
        "count": 3, "rate": 0.5, "name": "x", "on": False, "kind": "plain", "sizes": [], "limit": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"count": 0}, ValueError, "`Example.count` must be between 1 and 9; received 0"),
        ({"count": 10}, ValueError, "between 1 and 9"),
        ({"count": True}, TypeError, "must be a whole number; received True"),
        ({"count": 1.0}, TypeError, "whole number"),
        ({"count": "3"}, TypeError, "whole number"),
        ({"rate": -0.1}, ValueError, "at least 0"),
        ({"rate": math.nan}, ValueError, "at least 0"),
        ({"rate": True}, TypeError, "must be a number"),
        ({"name": 3}, TypeError, "must be a string"),
        ({"on": 1}, TypeError, "True or False"),
        ({"kind": "odd"}, ValueError, "one of 'plain', 'fancy'; received 'odd'"),
        ({"sizes": (1, "2")}, TypeError, "tuple of int"),
        ({"sizes": 3}, TypeError, "tuple of int"),
        ({"limit": 0}, ValueError, "at least 1"),
        ({"limit": "none"}, TypeError, "a whole number or None"),
        ({"cuont": 3}, ValueError, "no field 'cuont'. Did you mean 'count'?"),
        ({"zzzzzz": 3}, ValueError, "Its fields are count, rate"),
    ],
)
def test_wrong_values_are_named(values, error, words):
    with pytest.raises(error) as caught:
        Example.from_dict(values)
    assert words in str(caught.value)


def test_a_whole_number_does_for_a_float_and_a_list_for_a_tuple():
    config = Example(rate=2, sizes=[1, 2])  # type: ignore[arg-type]
    assert config.rate == 2
    assert config.sizes == (1, 2)
    assert hash(config) == hash(Example(rate=2, sizes=(1, 2)))


@pytest.mark.parametrize("config", [Example(), Example(sizes=(4, 5), limit=2, name="é\n"), TrainingConfig()])
def test_json_gives_the_same_config(config):
    assert type(config).from_json(config.to_json()) == config


def test_json_must_be_an_object():
    with pytest.raises(ValueError, match="JSON object; received a list"):
        Example.from_json("[]")


def test_configs_do_not_change_but_can_be_replaced():
    config = Example()
    with pytest.raises(FrozenInstanceError):
        config.count = 4  # type: ignore[misc]
    assert config.replace(count=4).count == 4
    assert config.count == 3
    with pytest.raises(ValueError, match="no field"):
        config.replace(counts=4)


def test_positional_values_are_refused():
    with pytest.raises(TypeError):
        Example(3)  # type: ignore[misc]


@pytest.mark.parametrize("config_class", [TrainingConfig, RuntimeConfig])
def test_every_field_has_help_and_a_type_in_words(config_class):
    for name, annotation in field_types(config_class).items():
        assert config_class.__dataclass_fields__[name].metadata["help"]
        assert "typing" not in describe_type(annotation)
