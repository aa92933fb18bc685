"""The flags --engine and --workers, and what command lines of all kinds do on a Ray cluster. Imports Ray when used."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.artifact import check_target
from shared.runtime import RuntimeConfig


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add the flag that chooses who runs the verb."""
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="ray: --workers N processes of a cluster (local)"
    )


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
