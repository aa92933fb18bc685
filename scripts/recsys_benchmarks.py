"""Benchmarks of recommenders beside their peers, for `benchmark.py`.

The peers run in the interpreter that TRIPTYCH_PEER names, or in ours: `sasrec` needs rectools[torch], `ials` implicit,
`top-k` faiss-cpu; `ranking` runs in one process, and needs keras-rs; `two-tower` needs tensorflow-recommenders and
tf-keras beside ours. `sasrec` reads Amazon Beauty from TRIPTYCH_DATA
where that is there, else made sequences of about the same shape.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from experiment import data_directory, own_process, peer_process

from shared.training_config import TrainingConfig

# Users of the benchmark, and RecTools' own width of the feed-forward part.
_NUM_USERS = 2048
_SASREC: dict[str, Any] = {"dim": 64, "num_layers": 2, "num_heads": 2, "max_length": 50, "dropout": 0.2}
_HIDDEN = 64
_BATCH, _RATE = 256, 1e-3


def sasrec(repeats: int) -> dict[str, Any]:
    """Users/s of an epoch of SASRec with the softmax over all items."""
    from benchmark import measured, ratios

    from recsys import SequentialRecommender, SequentialRecommenderConfig
    from shared.optimizers import build_optimizer
    from shared.training import TrainStep

    data, description = _sequences()
    training = TrainingConfig(batch_size=_BATCH, learning_rate=_RATE, weight_decay=0.0, clip_norm=0.0)
    recommender = SequentialRecommender(SequentialRecommenderConfig(**_SASREC, hidden_dim=_HIDDEN))
    task = recommender.training_task(data, training)
    step = TrainStep(task, build_optimizer(training, task.model.trainable_variables, _RATE), training)
    epochs = iter(range(1_000_000))

    def ours() -> None:
        for batch in task.batches.epoch(next(epochs)):
            step([batch])
        step.loss_sum.numpy()

    assert data.timestamps is not None
    columns = {"users": data.users, "items": data.items, "times": data.timestamps}
    job = {**columns, **_SASREC, "batch_size": _BATCH, "learning_rate": _RATE}
    with _peer("torch_sasrec.py", job) as peer:
        sides: dict[str, Callable[[], float]] = {
            "triptych epoch": lambda: _rate(ours),
            "RecTools epoch": lambda: _NUM_USERS / peer("run"),
        }
        rates = measured(sides, repeats)
    what = ", ".join(f"{name} {value}" for name, value in _SASREC.items())
    return {
        "unit": "users/s",
        "files": f"{description}; {what}, feed-forward width {_HIDDEN}, batches of {_BATCH}, AdamW and Adam, float32",
        "rates": rates,
        "ratios": ratios(rates, "triptych epoch"),
    }


def _sequences() -> tuple[Any, str]:
    """Interactions of some users, with times, and what they are."""
    from recsys import Interactions, read_interactions

    try:
        data = read_interactions(data_directory() / "amazon-beauty-seq" / "Beauty.txt")
        description = "Amazon Beauty"
    except FileNotFoundError:
        rng = np.random.default_rng(0)
        items = (12_000 * rng.random(198_000) ** 2).astype(np.int64)
        data, description = Interactions(rng.integers(0, 22_000, 198_000), items), "made sequences"
    users, counts = np.unique(data.users, return_counts=True)
    chosen = users[np.argsort(-counts, kind="stable")[:: len(users) // _NUM_USERS][:_NUM_USERS]]
    part = data.take(np.isin(data.users, chosen))
    timed = Interactions(part.users, part.items, timestamps=np.arange(len(part)))
    return (
        timed,
        f"{description}: {_NUM_USERS:,} users, {len(np.unique(part.items)):,} items, {len(part):,} interactions",
    )


def _rate(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return _NUM_USERS / (time.perf_counter() - start)


# What the objective of implicit, with its confidence alpha and its regularisation, is in ours, whose seen entries
# weigh 1 + a0 and whose targets are 1 / (1 + a0): a0 = 1 / (alpha - 1), l = regularisation / alpha, not scaled by
# frequency. Then our products are implicit's by (alpha - 1) / alpha. With less regularisation (1 to 30 were tried) both
# fit noise: ndcg@10 falls with each iteration, and whoever solves worse has more of it.
_ALPHA, _REGULARISATION = 10.0, 100.0
# Of a turn, on both sides, which start anew in each.
_ITERATIONS = 5
_SIZES = ((6_000, 3_700, 220_000), (60_000, 37_000, 2_200_000))
_FACTORS = (64, 256)


def ials(repeats: int) -> dict[str, Any]:
    """Iterations/s of alternating least squares, at two sizes of the data and of the factors, and what they reach."""
    from benchmark import measured, ratios

    rates: dict[str, Any] = {}
    compared: dict[str, float] = {}
    figures: dict[str, float] = {}
    for num_users, num_items, num_entries in _SIZES:
        matrix, held = _made_matrix(num_users, num_items, num_entries)
        job = {"indices": matrix.indices, "indptr": matrix.indptr, "shape": matrix.shape}
        job |= {"alpha": _ALPHA, "regularization": _REGULARISATION, "iterations": _ITERATIONS}
        for factors in _FACTORS:
            size = f"{factors} factors, {num_users // 1000}k users"
            course = _Ials(matrix, factors)
            with _peer("implicit_faiss.py", job, "ials") as peer, tempfile.TemporaryDirectory() as directory:
                ours, theirs = f"triptych, {size}", f"implicit, {size}"
                sides = {ours: course.rate, theirs: _peer_rate(peer, str(factors))}
                found = measured(sides, repeats)
                file = str(Path(directory, "factors.npz"))
                peer(file)
                other = np.load(file)
            rates |= found
            compared |= ratios(found, ours)
            reached = _ndcg(course.users, course.items, matrix, held)
            peers = _ndcg(other["users"], other["items"], matrix, held)
            figures |= {f"ndcg@10, {ours}": reached, f"ndcg@10, {theirs}": peers}
            figures |= {f"ndcg@10, triptych / implicit, {size}": reached / peers}
    return {
        "unit": "iterations/s",
        "files": "made interactions of users with tastes: 220 thousand, and ten times as many; one objective, by "
        "conjugate gradients on both sides: ours end after two steps or at a relative error of 0.01, those of implicit "
        f"after three steps, its default; each turn is iterations 1 to {_ITERATIONS} from the side's own start, and "
        "these alone: the start, the transposed matrix, its weights and batches are made outside the clock; "
        "ndcg@10 is of the factors after them; float32",
        "rates": rates,
        "ratios": compared,
        "figures": figures,
    }


class _Ials:
    """Factors after the first iterations, which each call of `rate` runs from the start."""

    def __init__(self, matrix: Any, factors: int) -> None:
        from recsys.models.ials import Ials
        from recsys.models.least_squares import BatchedRows

        self.recipe = Ials(_REGULARISATION / _ALPHA, 1 / (_ALPHA - 1), 0.0)
        self.matrix, self.factors = matrix, factors
        self.sides = BatchedRows(matrix, factors), BatchedRows(matrix.T.tocsr(), factors)
        self.users, self.items = self.recipe.start(matrix, factors, 0)

    def rate(self) -> float:
        self.users, self.items = self.recipe.start(self.matrix, self.factors, 0)
        start = time.perf_counter()
        for _ in range(_ITERATIONS):
            self.users, self.items = self.recipe.epoch(*self.sides, self.users, self.items)
        return _ITERATIONS / (time.perf_counter() - start)


def _peer_rate(peer: Callable[[str], float], line: str) -> Callable[[], float]:
    return lambda: 1 / peer(line)


def _made_matrix(num_users: int, num_items: int, num_entries: int) -> tuple[Any, np.ndarray]:
    """A sparse matrix of users who choose mostly among one of 20 groups of items, and one more item of each user."""
    import scipy.sparse as sp

    rng = np.random.default_rng(0)
    groups = rng.integers(0, 20, num_users)
    users = np.concatenate([np.arange(num_users), rng.integers(0, num_users, num_entries)])
    # Within a group, and among all, the popularity of items falls as a power of their rank.
    ranks = (rng.random(len(users)) ** 3 * (num_items // 20)).astype(np.int64)
    group = np.where(rng.random(len(users)) < 0.8, groups[users], rng.integers(0, 20, len(users)))
    items = ranks * 20 + group
    keys = np.unique(users[num_users:] * num_items + items[num_users:])
    held = items[:num_users]
    keys = np.setdiff1d(keys, np.arange(num_users) * num_items + held)
    parts = np.ones(len(keys), np.float32), (keys // num_items, keys % num_items)
    return sp.csr_matrix(parts, shape=(num_users, num_items)), held


def _ndcg(users: np.ndarray, items: np.ndarray, matrix: Any, held: np.ndarray) -> float:
    """ndcg@10 of one held-out item of each user, seen items left out."""
    from recsys.top_k import top_k_products

    found, _ = top_k_products(users.astype(np.float32), items.astype(np.float32), 10, seen=matrix)
    places = np.nonzero(found == held[:, None])[1]
    return float((1 / np.log2(places + 2)).sum() / len(held))


_QUERIES, _CATALOGUE, _WIDTH = 10_000, 1_000_000, 64


def top_k(repeats: int) -> dict[str, Any]:
    """Users/s of the exact best 10 of a million items."""
    from benchmark import measured, ratios

    from recsys.top_k import top_k_products

    rng = np.random.default_rng(0)
    queries, items = (rng.standard_normal((size, _WIDTH), np.float32) for size in (_QUERIES, _CATALOGUE))

    def ours() -> float:
        start = time.perf_counter()
        top_k_products(queries, items, 10)
        return _QUERIES / (time.perf_counter() - start)

    with _peer("implicit_faiss.py", {"queries": queries, "items": items, "k": 10}, "top-k") as peer:
        sides: dict[str, Callable[[], float]] = {
            "triptych top_k_products": ours,
            "faiss IndexFlatIP": lambda: _QUERIES / peer("search"),
        }
        rates = measured(sides, repeats)
    return {
        "unit": "users/s",
        "files": f"{_QUERIES:,} vectors against {_CATALOGUE:,} of width {_WIDTH}, normal random numbers, float32",
        "rates": rates,
        "ratios": ratios(rates, "triptych top_k_products"),
    }


# Two towers: as many interactions make an epoch; items of falling popularity. Those drawn are numbered densely: both
# sides have a row for each of them, and no others.
_TOWER_USERS, _TOWER_ITEMS, _TOWER_PAIRS = 200_000, 100_000, 1 << 17
_TOWER_BATCHES, _TOWER_WIDTH = (1024, 4096), 64


def two_tower(repeats: int) -> dict[str, Any]:
    """Interactions/s of training two embedding towers with the in-batch softmax, beside TensorFlow Recommenders."""
    from benchmark import measured, ratios

    rng = np.random.default_rng(0)
    drawn = rng.integers(0, _TOWER_USERS, _TOWER_PAIRS), (_TOWER_ITEMS * rng.random(_TOWER_PAIRS) ** 3).astype(np.int64)
    users, items = (np.unique(column, return_inverse=True)[1] for column in drawn)
    num_users, num_items = int(users.max()) + 1, int(items.max()) + 1
    job = {"users": users, "items": items, "num_users": num_users, "num_items": num_items, "dim": _TOWER_WIDTH}
    rates: dict[str, Any] = {}
    compared: dict[str, float] = {}
    for size in _TOWER_BATCHES:
        name = f"triptych row-wise Adam, batches of {size}"
        sides: dict[str, Callable[[], float]] = {name: _tower_epoch(users, items, size)}
        with contextlib.ExitStack() as stack:
            for optimizer, rate in (("adagrad", 0.1), ("adam", _RATE)):
                settings = {"batch_size": size, "optimizer": optimizer, "learning_rate": rate}
                peer = stack.enter_context(_peer("tfrs_two_tower.py", {**job, **settings}, own=True))
                sides[f"TFRS {optimizer}, batches of {size}"] = functools.partial(_pairs_rate, peer)
            found = measured(sides, repeats)
        rates |= found
        compared |= ratios(found, name)
    return {
        "unit": "interactions/s",
        "files": f"{_TOWER_PAIRS:,} made interactions of {num_users:,} users with {num_items:,} items, towers of "
        f"width {_TOWER_WIDTH}, float32; ours with row-wise Adam, which updates the rows in a batch alone, as Adagrad "
        "does on TFRS's side, whose Adam updates the moments of all rows in each step; ours with log-Q correction and "
        "accidental hits left out, TFRS without either, its batches made once and cached",
        "rates": rates,
        "ratios": compared,
    }


def _pairs_rate(peer: Callable[[str], float]) -> float:
    return _TOWER_PAIRS / peer("run")


def _tower_epoch(users: np.ndarray, items: np.ndarray, batch_size: int) -> Callable[[], float]:
    from recsys import Interactions, TwoTowerRetriever, TwoTowerRetrieverConfig
    from shared.optimizers import build_optimizer
    from shared.training import TrainStep

    training = TrainingConfig(batch_size=batch_size, learning_rate=_RATE, weight_decay=0.0, clip_norm=0.0)
    retriever = TwoTowerRetriever(TwoTowerRetrieverConfig(dim=_TOWER_WIDTH))
    task = retriever.training_task(Interactions(users, items), training)
    variables = task.model.trainable_variables
    step = TrainStep(task, build_optimizer(training, variables, _RATE, row_wise=task.row_wise), training)
    epochs = iter(range(1_000_000))

    def rate() -> float:
        start = time.perf_counter()
        for batch in task.batches.epoch(next(epochs)):
            step([batch])
        step.loss_sum.numpy()
        return task.batches.num_batches * batch_size / (time.perf_counter() - start)

    return rate


@contextlib.contextmanager
def _peer(script: str, job: dict[str, Any], *arguments: str, own: bool = False) -> Iterator[Callable[[str], float]]:
    """A function that sends the peer's process a line and gives the seconds of its answer."""
    with tempfile.TemporaryDirectory() as directory:
        file = str(Path(directory, "job.npz"))
        np.savez(file, allow_pickle=False, **job)
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        start = own_process if own else peer_process
        with start(script, *arguments, file, str(len(os.sched_getaffinity(0))), **pipes) as process:
            yield functools.partial(_seconds, process)
            assert process.stdin is not None
            process.stdin.close()


def _seconds(process: subprocess.Popen[str], line: str) -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    if not answer:
        raise RuntimeError("The peer's process ended; see the head of this file for what it needs (TRIPTYCH_PEER).")
    return float(json.loads(answer)["seconds"])


# A table of the shape of Adult: rows, categorical columns with so many categories, numeric columns.
_ROWS, _SIZES_OF_COLUMNS, _NUMERIC = 32_768, (9, 16, 7, 15, 6, 5, 2, 42), 6
_RANKER: dict[str, Any] = {"model": "dlrm", "dim": 16, "hidden": (256, 128), "bottom": (64,), "dropout": 0.0}
_RANKING_BATCH = 256


def ranking(repeats: int) -> dict[str, Any]:
    """Rows/s of an epoch of DLRM: ours, `keras.Model.fit` on the same network, and keras-rs's layers."""
    import keras
    from benchmark import measured, ratios

    from recsys import Features, Ranker, RankerConfig
    from shared.optimizers import build_optimizer
    from shared.training import TrainStep

    rng = np.random.default_rng(0)
    codes = [rng.integers(0, size, _ROWS) for size in _SIZES_OF_COLUMNS]
    columns: dict[str, Any] = {f"c{i}": [f"value {code}" for code in column] for i, column in enumerate(codes)}
    columns |= {f"n{number}": rng.normal(0, 1, _ROWS) for number in range(_NUMERIC)}
    table = Features(columns, targets=(codes[0] + codes[1] > 12).astype(np.float32))
    training = TrainingConfig(batch_size=_RANKING_BATCH, learning_rate=_RATE, weight_decay=0.0, clip_norm=0.0)
    ranker = Ranker(RankerConfig(**_RANKER, buckets=0))
    task = ranker.training_task(table, training)
    step = TrainStep(task, build_optimizer(training, task.model.trainable_variables, _RATE), training)
    epochs = iter(range(1_000_000))

    def ours() -> None:
        for batch in task.batches.epoch(next(epochs)):
            step([batch])
        step.loss_sum.numpy()

    def inputs_alone() -> None:
        for _ in task.batches.epoch(next(epochs)):
            pass

    arrays = ranker._known_encoder.encode(table)
    same: Any = ranker._new_network()
    composed = _keras_rs_dlrm(arrays["numbers"].shape[1])
    parts: list[Any] = [*(column.astype(np.int32) for column in codes), arrays["numbers"]]
    for network in (same, composed):
        # Without XLA, which Keras would choose by itself, and which is slower on CPUs.
        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        network.compile(optimizer=keras.optimizers.Adam(_RATE), loss=loss, jit_compile=False)
    fields: dict[str, Any] = {"batch_size": _RANKING_BATCH, "epochs": 1, "verbose": 0}
    sides: dict[str, Callable[[], float]] = {
        "triptych epoch": lambda: _rows_per_second(ours),
        "keras.Model.fit, same network": lambda: _rows_per_second(lambda: same.fit(arrays, table.targets, **fields)),
        "keras-rs layers, fit": lambda: _rows_per_second(lambda: composed.fit(parts, table.targets, **fields)),
        "triptych, batches alone": lambda: _rows_per_second(inputs_alone),
    }
    rates = measured(sides, repeats)
    share = rates["triptych epoch"]["median"] / rates["triptych, batches alone"]["median"]
    what = ", ".join(f"{name} {value}" for name, value in _RANKER.items())
    return {
        "unit": "rows/s",
        "files": f"made rows: {_ROWS:,} of {len(codes)} categorical and {_NUMERIC} numeric columns; {what}, batches of "
        f"{_RANKING_BATCH}, Adam, float32",
        "rates": rates,
        "ratios": ratios({name: rate for name, rate in rates.items() if "alone" not in name}, "triptych epoch"),
        "figures": {"batches' share of an epoch's time, were they not made beside it": share},
    }


def _keras_rs_dlrm(num_numbers: int) -> Any:
    """The same network out of Keras's and keras-rs's layers, a table for each column."""
    import keras
    import keras_rs

    layers, dim = keras.layers, _RANKER["dim"]
    codes = [keras.Input((), dtype="int32") for _ in _SIZES_OF_COLUMNS]
    numbers = keras.Input((num_numbers,))
    vectors = [layers.Embedding(size, dim)(code) for size, code in zip(_SIZES_OF_COLUMNS, codes, strict=True)]
    dense = numbers
    for width in (*_RANKER["bottom"], dim):
        dense = layers.Dense(width, activation="relu")(dense)
    values = layers.Concatenate()([dense, keras_rs.layers.DotInteraction()([dense, *vectors])])
    for width in _RANKER["hidden"]:
        values = layers.Dense(width, activation="relu")(values)
    return keras.Model([*codes, numbers], layers.Dense(1)(values))


def _rows_per_second(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return _ROWS / (time.perf_counter() - start)
