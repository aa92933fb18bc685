"""Configs: frozen, keyword-only dataclasses of plain values that check themselves and speak JSON.

A field is made with `option`, which keeps its help text, unit and bounds beside it; command-line flags are made from
the same fields, so the two cannot differ.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args, get_origin


def option(
    default: Any, help: str, *, minimum: float | None = None, maximum: float | None = None, unit: str = ""
) -> Any:
    """A config field: its default, one phrase of help, and the closed range of a number."""
    metadata = {"help": help, "minimum": minimum, "maximum": maximum, "unit": unit}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of all configs; a subclass is a frozen, keyword-only dataclass whose fields are made by `option`.

    Fields hold str, int, float, bool, `Literal` choices, tuples of these, or None where the annotation says so.
    """

    def __post_init__(self) -> None:
        for name, annotation in field_types(type(self)).items():
            value = self._checked(name, annotation)
            object.__setattr__(self, name, value)

    def _checked(self, name: str, annotation: Any) -> Any:
        value = getattr(self, name)
        where = f"`{type(self).__name__}.{name}`"
        if not _fits(value, annotation):
            kind = ValueError if get_origin(annotation) is Literal else TypeError
            raise kind(f"{where} must be {describe_type(annotation)}; received {value!r}.")
        field = self.__dataclass_fields__[name]
        low, high = field.metadata.get("minimum"), field.metadata.get("maximum")
        if isinstance(value, int | float) and not isinstance(value, bool):
            # Written so that NaN fails too.
            if not ((low is None or value >= low) and (high is None or value <= high)):
                raise ValueError(f"{where} must be {_describe_range(low, high)}; received {value!r}.")
        return tuple(value) if isinstance(value, list) else value

    def to_dict(self) -> dict[str, Any]:
        """Plain values by field name; tuples become lists, as JSON has them."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The config with these values, defaults elsewhere.

        Raises:
            ValueError: for an unknown field, by name, or a value out of range.
            TypeError: for a value of another kind.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"Did you mean {near[0]!r}?" if near else f"Its fields are {', '.join(known)}."
                raise ValueError(f"{cls.__name__} has no field {name!r}. {hint}")
        return cls(**values)

    def to_json(self) -> str:
        """The config as a JSON object."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The config in a JSON object; raises as `from_dict` does."""
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"{cls.__name__} is read from a JSON object; received a {type(values).__name__}.")
        return cls.from_dict(values)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return type(self).from_dict({**self.to_dict(), **changes})


def field_types(config_class: type[Config]) -> dict[str, Any]:
    """Field names with their resolved annotations, in order."""
    hints = typing.get_type_hints(config_class)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_class)}


def _fits(value: Any, annotation: Any) -> bool:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is tuple:
        return isinstance(value, tuple | list) and all(_fits(item, arguments[0]) for item in value)
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return value is None if annotation in (None, type(None)) else isinstance(value, annotation)


def describe_type(annotation: Any) -> str:
    """What a value of this annotation is, in words for an error or a help text."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "one of " + ", ".join(repr(choice) for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe_type(argument) for argument in arguments)
    if origin is tuple:
        return f"a tuple of {arguments[0].__name__}"
    names = {int: "a whole number", float: "a number", bool: "True or False", str: "a string", type(None): "None"}
    return names.get(annotation, str(annotation))


def _describe_range(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"between {low:g} and {high:g}"
    return f"at least {low:g}" if low is not None else f"at most {high:g}"
