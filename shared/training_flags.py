"""What the verb `train` of all scripts has in common beside configs: precision by measurement, and --profile."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shared.runtime import RuntimeConfig
from shared.training_config import TrainingConfig


def apply_for_training(
    runtime: RuntimeConfig,
    build: Callable[[], Any],
    train: Any,
    training: TrainingConfig,
    checkpoint: Path,
    task_options: Mapping[str, Any] | None = None,
) -> Any:
    """What `build` makes, under `runtime`; what is `auto` there is picked by a measurement, and printed.

    `task_options` are further keywords of the pipeline's `training_task`.
    """
    if "auto" in (runtime.precision, runtime.xla):
        from shared.measuring import choose_runtime

        choice = choose_runtime(
            build, train, training=training, config=runtime, checkpoint=checkpoint, task_options=task_options
        )
        print(choice)
    else:
        runtime.apply()
    return build()


def add_profile_flag(parser: argparse.ArgumentParser) -> None:
    """Add --profile, whose directory may be left out."""
    text = "say where the time goes, and trace some steps; DIR: where the trace is written (default: beside --output)"
    parser.add_argument("--profile", nargs="?", const="", metavar="DIR", help=text)


def profile_directory(given: str | None, output: Path) -> Path | None:
    """Where --profile writes: nowhere without it, beside the output where no directory is given."""
    return None if given is None else Path(given) if given else output.with_name(output.name + ".profile")


def print_profile(given: str | None, output: Path) -> None:
    """Print the summary that --profile asked for."""
    directory = profile_directory(given, output)
    if directory is not None:
        from shared.profiling import read_profile

        print(read_profile(directory))
