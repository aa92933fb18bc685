"""The flags --engine and --workers, and what command lines of all kinds do on a Ray cluster. Imports Ray when used."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.artifact import check_target
from shared.config import Config
from shared.flags import NOT_GIVEN, OneLineParser, add_flags, config_from_flags
from shared.runtime import RuntimeConfig
from shared.training_config import TrainingConfig

# Inputs that a worker of a cluster is given at a time: what is done again when one is lost.
_PORTION = 256


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add the flag that chooses who runs the verb."""
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="ray: --workers N processes of a cluster (local)"
    )


def add_search(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say what `tune` searches."""
    parser.add_argument(
        "--search", required=True, action="append", metavar="NAME=...", help="A,B,C or LOW..HIGH; may be repeated"
    )
    parser.add_argument("--trials", type=int, default=8, metavar="N", help="how many (default: 8)")
    parser.add_argument("--search-seed", type=int, default=0, metavar="N", help="of the values drawn (default: 0)")


def on_ray(options: argparse.Namespace) -> bool:
    """Whether the verb is to run on a cluster, and this process only starts it."""
    return options.verb == "tune" or getattr(options, "engine", "local") == "ray"


def num_workers(runtime: RuntimeConfig) -> int:
    """The number in --workers of an engine.

    Raises:
        ValueError: where it is none.
    """
    if runtime.workers == "auto":
        return 1
    if not runtime.workers.isdecimal() or int(runtime.workers) < 1:
        raise ValueError(f"On a cluster of Ray --workers is a number of processes; received {runtime.workers!r}.")
    return int(runtime.workers)


def ray_job(options: argparse.Namespace, dropping: Sequence[str] = ("engine", "workers")) -> Any:
    """What each process of a cluster is to run: this command line, without the flags that name the cluster."""
    from shared.ray_cluster import Job

    flags = [f"--{name}" for name in dropping]
    kept, skip = [], False
    for argument in options.arguments:
        if not skip and argument.partition("=")[0] not in flags:
            kept.append(argument)
        skip = not skip and argument in flags
    return Job(os.path.abspath(sys.argv[0]), tuple(kept))


def train_on_ray(options: argparse.Namespace, runtime: RuntimeConfig) -> None:
    """Run the verb `train` by several processes of a cluster.

    Raises:
        ValueError: what the processes refuse, and where the state of another run lies in the way.
    """
    from shared.checkpoint import CheckpointDirectory
    from shared.ray_cluster import train

    output = Path(options.output)
    check_target(output)
    checkpoint = CheckpointDirectory(output.with_name(output.name + ".checkpoint"))
    state = checkpoint.latest()
    if state is not None and not options.resume:
        raise ValueError(
            f"{checkpoint.path} holds a run that stopped at step {state.step}. Go on with it (--resume), or delete "
            "that directory to start anew."
        )
    job = ray_job(options)
    # All are started anew after a fault, and then go on from the newest state.
    job = dataclasses.replace(job, arguments=(*job.arguments, "--resume"))
    code, message = train(job, output, num_workers=num_workers(runtime))
    if code:
        raise ValueError(message)
    print(f"saved {output}")


def answer_on_ray(
    options: argparse.Namespace, runtime: RuntimeConfig, inputs: Iterable[Any], *, portion: int = _PORTION
) -> None:
    """Answer `inputs` by several processes of a cluster, as `options.arguments` say, into `options.output`.

    Raises:
        ValueError: without --output, and what the processes refuse.
    """
    from shared.ray_prediction import answer_inputs

    if options.output is None:
        raise ValueError(f"`{options.verb} --engine ray` needs --output FILE: the answers come from several processes.")
    count = answer_inputs(
        ray_job(options),
        inputs,
        Path(options.output),
        num_workers=num_workers(runtime),
        portion=min(portion, _PORTION),
    )
    print(f"wrote {count} answers to {options.output}")


def tune_on_ray(
    options: argparse.Namespace,
    runtime: RuntimeConfig,
    config_class: type[Config],
    check: Callable[[argparse.Namespace], Any] = lambda _: None,
) -> None:
    """Run the verb `tune`: search over flags, print the trials, keep the best one's pipeline.

    `check` refuses what a trial cannot have, flags of `config_class` included.

    Raises:
        ValueError: for flags that do not exist, values that they refuse, and where no trial came to its end.
    """
    from shared.ray_search import Dimension, search

    output = Path(options.output)
    check_target(output)
    dimensions = [Dimension.parse(text) for text in options.search]
    for dimension in dimensions:  # before a cluster is started for values that are refused
        for text in dimension.choices or (f"{dimension.low:g}",):
            check(with_values(options, {dimension.name: text}, config_class))
    trials = search(
        ray_job(options, dropping=()),
        dimensions,
        output,
        num_trials=options.trials,
        num_workers=num_workers(runtime),
        max_epochs=config_from_flags(TrainingConfig, options).epochs,
        seed=options.search_seed,
    )
    for trial in trials:
        values = "  ".join(f"{name} {value}" for name, value in trial.values.items())
        print(f"{trial.score:.4f}  {trial.epochs:3d} epochs  {values}{'' if trial.directory else '  (ended early)'}")
    print(f"saved {output}, the best of {len(trials)} trials; all are in {output}.trials.jsonl")


def own_runtime(options: argparse.Namespace) -> RuntimeConfig:
    """The runtime of one process of a cluster that answers or tries by itself, with its environment prepared."""
    runtime = config_from_flags(RuntimeConfig, options).replace(workers="off")
    runtime.prepare_environment()
    return runtime


def with_values(
    options: argparse.Namespace, values: Mapping[str, str], config_class: type[Config]
) -> argparse.Namespace:
    """`options` with other values for some flags of a pipeline's config and of training, parsed as they would be there.

    Raises:
        ValueError: for a flag that does not exist, and a value out of range.
    """
    parser = OneLineParser(prog=f"{Path(sys.argv[0]).name} {options.verb}", allow_abbrev=False)
    for each in (config_class, TrainingConfig):
        add_flags(parser, each)
    flags = [field.name for each in (config_class, TrainingConfig) for field in dataclasses.fields(each)]
    unknown = [name for name in values if name not in flags]
    if unknown:
        near = difflib.get_close_matches(unknown[0], flags, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else "See `train --help-all` for what there is."
        raise ValueError(f"There is no flag {unknown[0]!r} to search. {hint}")
    chosen = parser.parse_args(
        [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", value)]
    )
    given = {name: value for name, value in vars(chosen).items() if value is not NOT_GIVEN}
    changed = argparse.Namespace(**{**vars(options), **given})
    config_from_flags(TrainingConfig, changed)  # refuses what is out of range
    return changed
