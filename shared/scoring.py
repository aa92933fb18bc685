"""Scores of what one process answers, or several workers, each of which answers a part of the examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import numpy as np

from shared.data import Arrays, InputPipeline
from shared.distribution import Portion
from shared.fingerprint import data_fingerprint
from shared.pipeline import Metrics
from shared.runtime import current_runtime

Measure: TypeAlias = Callable[[Arrays], Metrics]


def joined(parts: Iterable[Mapping[str, np.ndarray]]) -> Arrays:
    """Arrays of the same names, those of each part after the others' along their first axes; nothing of nothing."""
    given = [part for part in parts if part]
    return {name: np.concatenate([part[name] for part in given]) for name in given[0]} if given else {}


def measured(
    own: Mapping[str, np.ndarray], measure: Measure, portion: Portion, fingerprint: Callable[[], str]
) -> Metrics:
    """What `measure` makes of all answers.

    Args:
        own: the answers of this process, as rows of arrays; nothing where it has no example.
        measure: gets the rows of all workers, in the order of the workers.
        portion: the part that was answered here. Of several workers all call this together, and the first measures; the
            others get no figures.
        fingerprint: gives what tells the data and its order from others: the parts must be those of one set.

    Raises:
        ValueError: where another worker has other data.
    """
    if portion.is_all:
        return measure(dict(own))
    workers = current_runtime().workers
    if len(set(workers.exchange(fingerprint()))) > 1:
        raise ValueError(
            "The workers have different validation data, or the same in different orders. Give all of them the same, "
            "split and shuffled by a fixed seed."
        )
    everything = joined(workers.to_first(own))
    return measure(everything) if workers.is_first else Metrics({})


def measured_examples(batches: InputPipeline, own: Mapping[str, np.ndarray], measure: Measure) -> Metrics:
    """What `measure` makes of answers to the examples of a pipeline, after its epoch; see `measured`.

    `details` has the examples that cannot be read.

    Raises:
        ValueError: where these are too many, or another worker has other data.
    """
    portion = batches.loading.portion
    if not portion.is_all:
        batches.agree(current_runtime().workers.exchange(batches.found_bad()))
    metrics = measured(own, measure, portion, lambda: data_fingerprint(batches.source))
    metrics.details["bad_records"] = batches.bad_records
    return metrics
