"""Command-line flags made from the fields of configs, and configs made from flags: the two cannot differ."""

from __future__ import annotations

import argparse
import typing
from collections.abc import Sequence
from dataclasses import MISSING, fields
from typing import Any, Literal, NoReturn, get_args, get_origin

from shared.config import Config, describe_type, field_types
from shared.training_config import TrainingConfig

# The value of a flag that was not given.
NOT_GIVEN = object()


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, with exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and exit."""
        self.exit(2, f"error: {message} (see `{self.prog} --help`)\n")


def add_flags(
    parser: argparse.ArgumentParser, config_class: type[Config], *, shown: Sequence[str] | None = None
) -> None:
    """Add a flag for each field of a config; fields not in `shown` work but are left out of the help.

    Raises:
        ValueError: where two configs have a field of the same name and the same parser.
    """
    group = parser.add_argument_group(config_class.__name__)
    types = field_types(config_class)
    for field in fields(config_class):
        flag = _flag(config_class, field.name)
        unit = f" {field.metadata['unit']}" if field.metadata.get("unit") else ""
        text = f"{field.metadata['help']} (default: {_shown_default(field.default)}{unit})".replace("%", "%%")
        hidden = shown is not None and field.name not in shown
        group.add_argument(
            flag,
            dest=_destination(config_class, field.name),
            default=NOT_GIVEN,
            help=argparse.SUPPRESS if hidden else text,
            **_parsing(types[field.name]),
        )


def _flag(config_class: type[Config], name: str) -> str:
    # A pipeline's seed and a training run's are different things; the data order's keeps a name of its own.
    if name == "seed" and config_class is TrainingConfig:
        return "--data-seed"
    return "--" + name.replace("_", "-")


def _destination(config_class: type[Config], name: str) -> str:
    return f"{config_class.__name__}.{name}"


def _parsing(annotation: Any) -> dict[str, Any]:
    """Arguments of `add_argument` for a field's type."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation is bool:
        return {"action": argparse.BooleanOptionalAction}
    if origin is Literal:
        return {"choices": arguments, "type": type(arguments[0]), "metavar": "|".join(map(str, arguments))}
    if origin is tuple:
        item = arguments[0]
        return {
            "type": lambda text: tuple(item(part.strip()) for part in text.split(",") if part.strip()),
            "metavar": "A,B,...",
        }
    if annotation in (int, float, str):
        return {"type": annotation, "metavar": {int: "N", float: "X", str: "TEXT"}[annotation]}
    raise TypeError(f"No flag can be made for a field that is {describe_type(annotation)}.")


def _shown_default(default: Any) -> str:
    if default is MISSING:
        return "required"
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or "none"
    return "yes" if default is True else "no" if default is False else str(default)


def given_flags(config_class: type[Config], options: argparse.Namespace) -> dict[str, Any]:
    """The fields of a config that the user gave a flag for."""
    values = {
        field.name: getattr(options, _destination(config_class, field.name), NOT_GIVEN)
        for field in fields(config_class)
    }
    return {name: value for name, value in values.items() if value is not NOT_GIVEN}


_ConfigT = typing.TypeVar("_ConfigT", bound=Config)


def config_from_flags(config_class: type[_ConfigT], options: argparse.Namespace) -> _ConfigT:
    """The config that the flags give; defaults where there is no flag."""
    return config_class.from_dict(given_flags(config_class, options))
