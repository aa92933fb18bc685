"""Scores of what one process answers, or several workers, each of which answers a part of the examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import numpy as np

from shared.data import Arrays, InputPipeline
from shared.distribution import Portion
from shared.pipeline import Metrics
from shared.runtime import current_runtime

Measure: TypeAlias = Callable[[Arrays], Metrics]


def joined(parts: Iterable[Mapping[str, np.ndarray]]) -> Arrays:
    """Arrays of the same names, those of each part after the others' along their first axes; nothing of nothing."""
    given = [part for part in parts if part]
    return {name: np.concatenate([part[name] for part in given]) for name in given[0]} if given else {}


def measured(own: Mapping[str, np.ndarray], measure: Measure, portion: Portion) -> Metrics:
    """What `measure` makes of all answers.

    Args:
        own: the answers of this process, as rows of arrays; nothing where it has no example.
        measure: gets the rows of all workers, in the order of the workers.
        portion: the part that was answered here. Of several workers all call this together, and the first measures; the
            others get no figures.
    """
    if portion.is_all:
        return measure(dict(own))
    workers = current_runtime().workers
    everything = joined(workers.to_first(own))
    return measure(everything) if workers.is_first else Metrics({})


def score_together(batches: InputPipeline, own: Mapping[str, np.ndarray], measure: Measure) -> Metrics:
    """The same for answers to the examples of a pipeline, after its epoch; `details` has those that cannot be read.

    Raises:
        ValueError: where these are too many.
    """
    portion = batches.loading.portion
    if not portion.is_all:
        batches.agree(current_runtime().workers.exchange(batches.found_bad()))
    metrics = measured(own, measure, portion)
    metrics.details["bad_records"] = batches.bad_records
    return metrics
