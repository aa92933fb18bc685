"""Which processes train together: read from a flag, TF_CONFIG, SLURM, or a Kubernetes Job's variables.

Everything here is a function of texts and an environment; nothing is connected, and TensorFlow is not imported.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Ports of SLURM jobs: a number of the job's own above this one, so that two jobs on a node do not meet.
_SLURM_PORT, _SLURM_PORTS = 20_000, 20_000
# Where the worker's number is found when addresses are given and no number is: ours, indexed Jobs, SLURM.
_INDEX_VARIABLES = ("TRIPTYCH_WORKER_INDEX", "JOB_COMPLETION_INDEX", "SLURM_PROCID")


@dataclass(frozen=True)
class Cluster:
    """The workers of one training: their addresses "host:port" by number, and the number of this one."""

    addresses: tuple[str, ...]
    index: int
    source: str = "addresses"

    def __post_init__(self) -> None:
        for address in self.addresses:
            host, _, port = address.rpartition(":")
            if not host or not port.isdigit() or not 0 < int(port) < 65536:
                raise ValueError(f"A worker's address is host:port; received {address!r} ({self.source}).")
        if len(set(self.addresses)) < len(self.addresses):
            raise ValueError(f"Two workers have one address: {', '.join(self.addresses)} ({self.source}).")
        if not 0 <= self.index < len(self.addresses):
            raise ValueError(
                f"There are {len(self.addresses)} workers, numbered from 0; this one is said to be number {self.index} "
                f"({self.source})."
            )

    def __len__(self) -> int:
        return len(self.addresses)

    def __str__(self) -> str:
        return f"worker {self.index} of {len(self)} ({self.addresses[self.index]}, from {self.source})"


def find_cluster(workers: str, worker_index: int, environment: Mapping[str, str]) -> Cluster | None:
    """The cluster that `workers` names; None where this process trains alone.

    Args:
        workers: "off"; "auto", which takes the first that there is of TF_CONFIG, TRIPTYCH_WORKERS and a SLURM step of
            several tasks; "tf_config", "kubernetes" or "slurm", which insist on one of these; or addresses:
            "host:port,host:port", or a pattern and a number, "job-{index}.service:2222*4".
        worker_index: number of this worker where addresses are given; -1: from TRIPTYCH_WORKER_INDEX,
            JOB_COMPLETION_INDEX or SLURM_PROCID.
        environment: the variables of the process.

    Raises:
        ValueError: for what is none of these, and where the environment lacks something or contradicts itself.
    """
    if workers == "off":
        return None
    if workers == "auto":
        cluster = _automatic(worker_index, environment)
    elif workers == "tf_config":
        cluster = from_tf_config(_required(environment, "TF_CONFIG", workers))
    elif workers == "slurm":
        cluster = from_slurm(environment)
    elif workers == "kubernetes":
        addresses = _required(environment, "TRIPTYCH_WORKERS", workers)
        cluster = from_addresses(addresses, worker_index, environment, source="TRIPTYCH_WORKERS")
    elif workers.startswith("local:"):
        raise ValueError(
            f"workers={workers} starts processes, which only the scripts' `train` can do. Give addresses, or 'off'."
        )
    else:
        cluster = from_addresses(workers, worker_index, environment, source="workers")
    return cluster if cluster is not None and len(cluster) > 1 else None


def _automatic(worker_index: int, environment: Mapping[str, str]) -> Cluster | None:
    if environment.get("TF_CONFIG", "").strip() not in ("", "{}"):
        return from_tf_config(environment["TF_CONFIG"])
    if environment.get("TRIPTYCH_WORKERS"):
        addresses = environment["TRIPTYCH_WORKERS"]
        return from_addresses(addresses, worker_index, environment, source="TRIPTYCH_WORKERS")
    # Only a step of several tasks (srun) is a training of several processes; a batch script by itself is one.
    if environment.get("SLURM_STEP_ID", "").isdigit() and _slurm_tasks(environment) > 1:
        return from_slurm(environment)
    return None


def _required(environment: Mapping[str, str], name: str, workers: str) -> str:
    if not environment.get(name):
        raise ValueError(f"workers={workers} needs the environment variable {name}, which is not set.")
    return environment[name]


# Addresses.


def from_addresses(
    text: str, worker_index: int, environment: Mapping[str, str], *, source: str = "addresses"
) -> Cluster:
    """The cluster of "host:port,host:port", or of a pattern and a number: "job-{index}.service:2222*4".

    Raises:
        ValueError: for a malformed text, and where nothing says which number this worker has.
    """
    addresses = tuple(_addresses(text, source))
    if worker_index >= 0:
        return Cluster(addresses, worker_index, source)
    for name in _INDEX_VARIABLES:
        if name in environment:
            return Cluster(addresses, _number(environment[name], name), f"{source} and {name}")
    if len(addresses) == 1:
        return Cluster(addresses, 0, source)
    raise ValueError(
        f"{len(addresses)} workers are given ({source}), but not which of them this one is. Give `worker_index` "
        f"(--worker-index N), or set one of {', '.join(_INDEX_VARIABLES)}."
    )


def _addresses(text: str, source: str) -> Iterator[str]:
    for part in filter(None, (part.strip() for part in text.split(","))):
        if "{index}" not in part:
            yield part
            continue
        pattern, _, count = part.rpartition("*")
        if not pattern or not count.isdigit():
            raise ValueError(
                f"A pattern of addresses ends with the number of workers, such as job-{{index}}.service:2222*4; "
                f"received {part!r} ({source})."
            )
        yield from (pattern.replace("{index}", str(index)) for index in range(int(count)))


def _number(text: str, name: str) -> int:
    if not text.strip().isdigit():
        raise ValueError(f"{name} must be a number from 0 on; it is {text!r}.")
    return int(text)


# TF_CONFIG.


def from_tf_config(text: str) -> Cluster:
    """The cluster of a TF_CONFIG, as Kubeflow, Vertex AI, SageMaker and Ray set it; a chief is worker 0.

    Raises:
        ValueError: for text that is none, parameter servers, and evaluators.
    """
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"TF_CONFIG is no JSON ({error}). Correct it, or unset it and give `workers`.") from error
    jobs, task = (_mapping(record, key) for key in ("cluster", "task"))
    unknown = sorted(set(jobs) - {"chief", "master", "worker", "evaluator"})
    if unknown:
        raise ValueError(
            f"TF_CONFIG names {', '.join(unknown)} in its cluster; training knows chief and worker, and no parameter "
            "servers. Start it with workers only."
        )
    kind, number = str(task.get("type")), task.get("index", 0)
    order = [job for job in ("chief", "master", "worker") if job in jobs]
    if kind not in order:
        raise ValueError(f"TF_CONFIG says that this process is {kind!r}; its cluster trains with {', '.join(order)}.")
    if not all(isinstance(jobs[job], list) for job in order):
        raise ValueError("The cluster in TF_CONFIG must have a list of addresses for each job.")
    before = sum(len(jobs[job]) for job in order[: order.index(kind)])
    if not isinstance(number, int) or not 0 <= number < len(jobs[kind]):
        raise ValueError(f"TF_CONFIG says that this is {kind} {number}; its cluster has {len(jobs[kind])} of them.")
    return Cluster(tuple(str(address) for job in order for address in jobs[job]), before + number, "TF_CONFIG")


def _mapping(record: Any, key: str) -> dict[str, Any]:
    part = record.get(key) if isinstance(record, dict) else None
    if not isinstance(part, dict) or not part:
        raise ValueError(
            f"TF_CONFIG has no {key!r}. Expected {{'cluster': {{'worker': ['host:port', ...]}}, 'task': {{'type': "
            "'worker', 'index': 0}}."
        )
    return part


# SLURM.


def from_slurm(environment: Mapping[str, str]) -> Cluster:
    """The cluster of a SLURM step: one worker a task, in blocks over the nodes as SLURM places them by default.

    Ports count from TRIPTYCH_WORKER_PORT, or from one made of the job's number.

    Raises:
        ValueError: where a variable is missing, or there are more or fewer places than tasks.
    """
    index = _number(_required(environment, "SLURM_PROCID", "slurm"), "SLURM_PROCID")
    num_tasks = _slurm_tasks(environment)
    nodes = expand_nodes(_first_of(environment, "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"))
    per_node = _tasks_per_node(environment, len(nodes), num_tasks)
    first = _slurm_port(environment)
    addresses = [f"{node}:{first + i}" for node, count in zip(nodes, per_node, strict=True) for i in range(count)]
    return Cluster(tuple(addresses), index, "SLURM")


def _first_of(environment: Mapping[str, str], *names: str) -> str:
    for name in names:
        if environment.get(name):
            return environment[name]
    raise ValueError(f"workers=slurm needs the environment variable {names[0]} or {names[1]}. Start it with srun.")


def _slurm_tasks(environment: Mapping[str, str]) -> int:
    text = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or "1"
    return _number(text, "SLURM_NTASKS")


def _slurm_port(environment: Mapping[str, str]) -> int:
    if "TRIPTYCH_WORKER_PORT" in environment:
        return _number(environment["TRIPTYCH_WORKER_PORT"], "TRIPTYCH_WORKER_PORT")
    return _SLURM_PORT + 64 * _number(environment.get("SLURM_JOB_ID", "0"), "SLURM_JOB_ID") % _SLURM_PORTS


def _tasks_per_node(environment: Mapping[str, str], num_nodes: int, num_tasks: int) -> list[int]:
    text = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("SLURM_TASKS_PER_NODE")
    if text is None:
        counts = [len(range(node, num_tasks, num_nodes)) for node in range(num_nodes)]
    else:
        counts = expand_counts(text)
    if len(counts) != num_nodes or sum(counts) != num_tasks:
        raise ValueError(
            f"SLURM names {num_nodes} nodes and {num_tasks} tasks, but places {counts} of them. Give addresses: "
            "`workers=host:port,...`."
        )
    return counts


def expand_counts(text: str) -> list[int]:
    """SLURM's counts by node, such as "2(x3),1", as a list: [2, 2, 2, 1].

    Raises:
        ValueError: for a malformed text.
    """
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match is None:
            raise ValueError(f"Tasks by node are written like 2(x3),1; received {text!r}.")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def expand_nodes(text: str) -> list[str]:
    """SLURM's list of nodes, such as "a[1-2,07],b", as names: ["a1", "a2", "a07", "b"].

    Raises:
        ValueError: for a malformed text.
    """
    names: list[str] = []
    for part in _outside_brackets(text):
        pieces = [_piece(piece, text) for piece in re.findall(r"\[[^\[\]]*\]|[^\[\]]+", part)]
        names += ["".join(choice) for choice in itertools.product(*pieces)]
    if not names:
        raise ValueError("The list of nodes is empty.")
    return names


def _outside_brackets(text: str) -> list[str]:
    if not re.fullmatch(r"(?:[^\[\]]|\[[^\[\]]+\])*", text):
        raise ValueError(f"The brackets in the list of nodes do not match: {text!r}.")
    return [part.strip() for part in re.split(r",(?![^\[]*\])", text) if part.strip()]


def _piece(piece: str, text: str) -> Sequence[str]:
    """The alternatives of one piece of a name: itself, or what stands in brackets."""
    if not piece.startswith("["):
        return [piece]
    numbers: list[str] = []
    for span in piece[1:-1].split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", span.strip())
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(f"Brackets in a list of nodes hold numbers and ranges; received {span!r} in {text!r}.")
        width = len(match[1])
        numbers += [f"{number:0{width}d}" for number in range(int(match[1]), int(match[2] or match[1]) + 1)]
    return numbers
