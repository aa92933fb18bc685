"""A search over config fields: trials on a Ray cluster, the bad ones ended early.

Each trial trains with values drawn for the fields that are searched, and reports its validation metric after each
epoch. Asynchronous successive halving (Li et al. 2020, arXiv:1810.05934) ends a trial whose metric, after 1, 3, 9, ...
epochs, is not among the best third of those that came so far.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.ray_cluster import Job, cluster, resources

_REDUCTION = 3
# Numbers whose bounds are so far apart are drawn by their logarithm.
_MAGNITUDE = 10


@dataclass(frozen=True)
class Dimension:
    """A config field that is searched: one of `choices`, or a number from `low` to `high`."""

    name: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    whole: bool = False

    @classmethod
    def parse(cls, text: str) -> Dimension:
        """From NAME=A,B,C or NAME=LOW..HIGH.

        Raises:
            ValueError: for anything else.

        Example:
            >>> Dimension.parse("epochs=2..5")
            Dimension(name='epochs', choices=(), low=2.0, high=5.0, whole=True)
        """
        name, equals, values = text.partition("=")
        name = name.strip().removeprefix("--").replace("-", "_")
        if not equals or not name or not values:
            raise ValueError(f"--search takes NAME=A,B,C or NAME=LOW..HIGH; received {text!r}.")
        low, dots, high = values.partition("..")
        if not dots:
            return cls(name, choices=tuple(value.strip() for value in values.split(",")))
        try:
            bounds = float(low), float(high)
        except ValueError as error:
            raise ValueError(f"--search {name}: the bounds must be numbers; received {values!r}.") from error
        if not (math.isfinite(bounds[0]) and math.isfinite(bounds[1]) and bounds[0] < bounds[1]):
            raise ValueError(f"--search {name}: the first bound must be below the second; received {values!r}.")
        whole = all(part.strip().lstrip("+-").isdecimal() for part in (low, high))
        return cls(name, low=bounds[0], high=bounds[1], whole=whole)

    @property
    def by_magnitude(self) -> bool:
        """Whether the logarithm is drawn evenly, as for learning rates."""
        return not self.whole and self.low > 0 and self.high / self.low >= _MAGNITUDE

    def space(self) -> Any:
        """The same for Ray Tune; numbers become texts, as flags have them, when a trial starts."""
        from ray import tune

        if self.choices:
            return tune.choice(list(self.choices))
        if self.whole:
            return tune.randint(int(self.low), int(self.high) + 1)
        return tune.loguniform(self.low, self.high) if self.by_magnitude else tune.uniform(self.low, self.high)


@dataclass(frozen=True)
class Trial:
    """One trial: its values, its best validation metric, the epochs it ran, and where its pipeline is (None: ended)."""

    values: dict[str, str]
    score: float
    epochs: int
    directory: Path | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        ended = self.directory is None
        return {"values": self.values, "score": self.score, "epochs": self.epochs, "ended_early": ended}


def search(
    job: Job,
    dimensions: Sequence[Dimension],
    output: Path,
    *,
    num_trials: int,
    num_workers: int,
    max_epochs: int,
    seed: int,
) -> list[Trial]:
    """Run the trials; the best one's pipeline is moved to `output`, all are listed in `<output>.trials.jsonl`.

    Args:
        job: the command line of `tune`.
        dimensions: what is searched.
        output: where the best pipeline goes.
        num_trials: how many values of each field are drawn.
        num_workers: trials at the same time, each in a process of its own.
        max_epochs: of a trial that is not ended early.
        seed: of the draws.

    Returns:
        The trials, best first.

    Raises:
        ValueError: where no trial came to its end; what the first one was refused for.
    """
    directory = output.absolute().with_name(output.name + ".trials")
    with cluster(num_workers) as ray:
        from ray import tune
        from ray.tune.schedulers import ASHAScheduler

        scheduler = ASHAScheduler(
            time_attr="training_iteration",
            max_t=max(1, max_epochs),
            reduction_factor=_REDUCTION,
            stop_last_trials=False,
        )
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(_run_trial, job=job, directory=directory), resources(ray, num_workers)
            ),
            param_space={dimension.name: dimension.space() for dimension in dimensions},
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                scheduler=scheduler,
                num_samples=num_trials,
                max_concurrent_trials=num_workers,
                search_alg=tune.search.BasicVariantGenerator(random_state=seed),
            ),
            run_config=tune.RunConfig(storage_path=str(directory / "ray"), name="search", verbose=0),
        )
        grid = tuner.fit()
        results = [grid[i] for i in range(len(grid))]
    trials = sorted((_trial(result, directory) for result in results), key=_worth, reverse=True)
    _keep_best(trials, results, output, directory)
    return trials


def _run_trial(config: dict[str, Any], job: Job, directory: Path) -> None:
    """Train and save one pipeline, reporting after each epoch; runs in a process of the cluster."""
    from ray import tune

    where = directory / tune.get_context().get_trial_id()
    best = -math.inf

    def after_epoch(record: dict[str, Any]) -> None:
        nonlocal best
        metric = next(value for name, value in record.items() if name.startswith("validation_"))
        best = max(best, metric)
        tune.report({"score": metric, "best": best, "epochs": record["epoch"], "error": ""})

    try:
        job.module().COMMAND.trained(job.arguments, as_texts(config), after_epoch).save(where)
    except (ValueError, TypeError, OSError) as error:
        tune.report({"score": -math.inf, "best": -math.inf, "epochs": 0, "error": str(error)})


def as_texts(values: dict[str, Any]) -> dict[str, str]:
    """Drawn values as flags have them; numbers with four digits, which is what a search can tell apart."""
    return {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in values.items()}


def _trial(result: Any, directory: Path) -> Trial:
    metrics = result.metrics or {}
    where = directory / str(metrics.get("trial_id", "none"))
    finished = where.is_dir()
    return Trial(
        as_texts(result.config or {}),
        float(metrics.get("best", -math.inf)),
        int(metrics.get("epochs", 0)),
        where if finished else None,
    )


def _worth(trial: Trial) -> tuple[bool, float]:
    return trial.directory is not None, -math.inf if math.isnan(trial.score) else trial.score


def _keep_best(trials: Sequence[Trial], results: Sequence[Any], output: Path, directory: Path) -> None:
    lines = [json.dumps(trial.to_dict()) for trial in trials]
    output.with_name(output.name + ".trials.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    best = trials[0].directory if trials else None
    if best is None:
        reasons = [str((result.metrics or {}).get("error") or result.error or "") for result in results]
        raise ValueError(f"No trial came to its end. The first: {next(filter(None, reasons), 'no reason is known')}")
    if output.exists():
        shutil.rmtree(output)
    best.rename(output)
    shutil.rmtree(directory, ignore_errors=True)
