"""One recommender from a Parquet file to answers, with the seconds and the memory of each step as a line of JSON.

    python scripts/recsys_scale.py make 2000000 interactions.parquet
    python scripts/recsys_scale.py ials interactions.parquet [--epochs 3]

`make` writes made interactions: a hundredth as many users and half that many items, popularity by a power law, users
with tastes, times in random order. `recsys-scale` of results.py runs each model and size in a process of its own.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from shared.cli import OneLineParser, run_script
from shared.training_config import TrainingConfig

FACTORS = 64
_GROUPS = 20
# Users whose held-out item is looked for, and users who are answered.
_EVALUATED, _ANSWERED = 2_000, 1_000
_WRITTEN = 1 << 20


def make(count: int, file: str) -> None:
    """Write `count` made interactions, in parts, so that memory stays small."""
    import pyarrow
    import pyarrow.parquet

    num_users, num_items = count // 100, count // 200
    rng = np.random.default_rng(0)
    tastes = rng.integers(0, _GROUPS, num_users)
    names = ("user", "item", "timestamp")
    schema = pyarrow.schema([(name, pyarrow.int64()) for name in names])
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        for start in range(0, count, _WRITTEN):
            size = min(_WRITTEN, count - start)
            users = (rng.random(size) ** 1.5 * num_users).astype(np.int64)
            ranks = (rng.random(size) ** 3 * (num_items // _GROUPS)).astype(np.int64)
            group = np.where(rng.random(size) < 0.8, tastes[users], rng.integers(0, _GROUPS, size))
            columns = users, ranks * _GROUPS + group, rng.integers(0, 10**9, size)
            writer.write_table(pyarrow.table(dict(zip(names, columns, strict=True)), schema=schema))


def ials(epochs: int) -> tuple[Any, TrainingConfig]:
    """Matrix factorisation by alternating least squares."""
    from recsys import CollaborativeFilter, CollaborativeFilterConfig

    config = CollaborativeFilterConfig(model="ials", factors=FACTORS)
    return CollaborativeFilter(config), TrainingConfig(epochs=epochs)


def two_tower(epochs: int) -> tuple[Any, TrainingConfig]:
    """Towers of ids, trained with the other items of a batch."""
    from recsys import TwoTowerRetriever, TwoTowerRetrieverConfig

    training = TrainingConfig(epochs=epochs, batch_size=4096, learning_rate=0.01)
    return TwoTowerRetriever(TwoTowerRetrieverConfig(dim=FACTORS)), training


MODELS: dict[str, Callable[[int], tuple[Any, TrainingConfig]]] = {"ials": ials, "two_tower": two_tower}


class Course:
    """Seconds and peak memory of steps."""

    def __init__(self) -> None:
        self.record: dict[str, Any] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure what is done inside."""
        start = time.monotonic()
        yield
        self.record[f"{name}, s"] = time.monotonic() - start
        self.record[f"peak GiB after {name}"] = _peak_memory()


def _peak_memory() -> float:
    """Highest resident memory of this process in GiB; `getrusage` counts that of the one it was forked from, too."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**20


def run(model: str, file: str, epochs: int) -> dict[str, Any]:
    """Read, split, train, score a sample of users and answer some."""
    from recsys import read_interactions
    from recsys.splitting import leave_one_out, of_some_users

    course = Course()
    with course.step("reading"):
        data = read_interactions(file)
    course.record["interactions"] = len(data)
    with course.step("splitting"):
        split = leave_one_out(data)
        test = of_some_users(split.test, _EVALUATED)
        del data
    pipeline, training = MODELS[model](epochs)
    with course.step("training"):
        pipeline.fit(split.train, training=training)
    course.record |= {"epochs": epochs, "users": len(pipeline.users), "items": len(pipeline.items)}
    with course.step("evaluation"):
        course.record["ndcg@10"] = pipeline.evaluate(test)["ndcg@10"]
    with course.step("answers"):
        pipeline.recommend(test.users[:_ANSWERED].tolist(), 10)
    return course.record


def main(arguments: Sequence[str] | None = None) -> None:
    """Make a file, or measure a model on one."""
    parser = OneLineParser(description="Measure a recommender on a file of interactions.")
    parser.add_argument("model", choices=("make", *MODELS), help="a model, or `make`")
    parser.add_argument("paths", nargs="+", metavar="[COUNT] FILE", help="a Parquet file; of `make` a count before it")
    parser.add_argument("--epochs", type=int, default=3, metavar="N", help="of training (default: 3)")
    options = parser.parse_args(arguments)
    if len(options.paths) != (2 if options.model == "make" else 1):
        raise ValueError("`make` takes a count and a file, a model takes a file.")
    if options.model == "make":
        make(int(options.paths[0]), options.paths[1])
    else:
        print(json.dumps(run(options.model, options.paths[0], options.epochs)))


if __name__ == "__main__":
    sys.exit(run_script(main))
