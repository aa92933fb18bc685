"""Ray as the engine of a task's command line: a cluster of processes, and training by several of them.

Each process of the cluster runs this project's own code on the command line that the user typed: what is handed to
Ray are paths, texts and numbers. All machines need the same Python environment and see the same files: data,
checkpoints and results lie on a file system that they share. `RAY_ADDRESS` names the cluster; without it one is
started on this machine, and ended with the command.

Answers to many inputs are in shared/ray_prediction.py, the search over config fields in shared/ray_search.py.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from shared.launcher import LAUNCHED

# How often a training is started anew, from its newest state, after a worker was lost.
MAX_RESTARTS = 3
# Characters of a worker's errors that are kept for the last line of them.
_REMEMBERED = 10_000
# What the first worker prints, and what it came to.
_SHOWN, _OUTCOME = "shown.txt", "outcome.json"
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_APART = 20.0


@dataclass(frozen=True)
class Job:
    """What a process of the cluster needs to do its share: the script's file, the arguments after it, and where.

    Relative paths in the arguments are those of `directory`.
    """

    script: str
    arguments: tuple[str, ...]
    directory: str = field(default_factory=os.getcwd)

    def module(self) -> Any:
        """The script as a module, with its `COMMAND` and `main`; changes to the directory of the job.

        Raises:
            ValueError: where the file is no script of a task.
        """
        path = Path(self.script)
        os.chdir(self.directory)
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))  # scripts import one another by their bare names
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise ValueError(f"A worker of the cluster needs a script of a task to run; {path} is none.")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module


@contextlib.contextmanager
def cluster(num_workers: int) -> Iterator[Any]:
    """The cluster that RAY_ADDRESS names, or one on this machine, with room for so many workers; gives Ray's module.

    Raises:
        ImportError: where Ray is not installed.
        ConnectionError: where the cluster does not answer.
    """
    ray = _imported_ray()
    logging.getLogger("ray").setLevel(logging.ERROR)  # of plans, progress and deprecations nobody asked about
    address = os.environ.get("RAY_ADDRESS")
    # Workers find the same modules as this process, wherever it was started.
    environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    options: dict[str, Any] = {"runtime_env": {"env_vars": environment}, "log_to_driver": False}
    if address is None:
        # Whoever reaches a cluster of Ray can run code on it: from 2.60 on a new one asks for a token, which Ray makes.
        options |= {"include_dashboard": False, "num_cpus": max(num_workers, os.cpu_count() or 1)}
    ray.init(address=address, logging_level=logging.ERROR, **options)
    try:
        yield ray
    finally:
        ray.shutdown()


def _imported_ray() -> Any:
    # Read when Ray is imported. No reports about use leave the machine, and devices are not hidden from CPU tasks.
    for name, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_TRAIN_V2_ENABLED": "1",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # each printed line once
        "RAY_AIR_NEW_OUTPUT": "0",  # no tables of trials while they run
    }.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            "The engine ray and the verb tune need Ray. Install it: pip install 'triptych[ray]'."
        ) from error
    return ray


def resources(ray: Any, num_workers: int) -> dict[str, float]:
    """What each worker asks for: the most cores that all can have at once, a GPU where there is one for each.

    Raises:
        ValueError: where the cluster has no core for each worker.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node.get("Alive", True)]
    cores = largest_share([int(node.get("CPU", 0)) for node in nodes], num_workers)
    if cores < 1:
        has = ", ".join(f"{node.get('CPU', 0):g}" for node in nodes)
        raise ValueError(
            f"The cluster has no core for each of {num_workers} workers: its machines have {has}. Ask for fewer with "
            "--workers."
        )
    gpus = sum(int(node.get("GPU", 0)) for node in nodes) >= num_workers
    return {"CPU": float(cores)} | ({"GPU": 1.0} if gpus else {})


def largest_share(cores: Sequence[int], num_workers: int) -> int:
    """The most cores that so many workers can each have on machines with `cores`; 0 where they do not find a place.

    Example:
        >>> largest_share([8, 8], 3)
        4
    """
    shares = range(max(cores, default=0), 0, -1)
    return next((share for share in shares if sum(own // share for own in cores) >= num_workers), 0)


def train(job: Job, output: Path, *, num_workers: int) -> tuple[int, str]:
    """Run the command line of `train` in `num_workers` processes that TF_CONFIG joins; the first one's output is shown.

    When a worker is lost the others end, and all start anew from the newest state.

    Args:
        job: with --resume among its arguments, and without an engine.
        output: where the pipeline is saved; what the processes tell us lies beside it meanwhile.
        num_workers: processes.

    Returns:
        The exit code, 0 or 2, and with 2 what was wrong.

    Raises:
        RuntimeError: where workers were lost again and again.
    """
    told = output.absolute().with_name(output.name + ".ray")
    shutil.rmtree(told, ignore_errors=True)
    told.mkdir(parents=True)
    with cluster(num_workers) as ray:
        from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.tensorflow import TensorflowTrainer

        asked = resources(ray, num_workers)
        trainer = TensorflowTrainer(
            _in_worker,
            train_loop_config={"job": job, "told": told},
            scaling_config=ScalingConfig(num_workers=num_workers, use_gpu="GPU" in asked, resources_per_worker=asked),
            run_config=RunConfig(failure_config=FailureConfig(max_failures=MAX_RESTARTS), storage_path=str(told)),
        )
        try:
            with _shown(told / _SHOWN):
                trainer.fit()
        except TrainingFailedError as error:
            if not (told / _OUTCOME).exists():
                raise RuntimeError(f"Workers failed {MAX_RESTARTS + 1} times; the last time: {error}") from error
    code, message = json.loads((told / _OUTCOME).read_text(encoding="utf-8"))
    shutil.rmtree(told)
    return int(code), str(message)


def _in_worker(config: dict[str, Any]) -> None:
    """Run the job in a process of the cluster; what it refuses is told, all else is a fault, as is a lost worker."""
    import ray.train

    os.environ[LAUNCHED] = "1"  # how the whole is resumed is said by the process that the user started
    is_first = ray.train.get_context().get_world_rank() == 0
    told, job = config["told"], config["job"]
    if (told / _OUTCOME).exists():
        return  # started anew after a refusal: there is no use in asking again
    module = job.module()
    with contextlib.ExitStack() as stack:
        shown = stack.enter_context((told / _SHOWN if is_first else Path(os.devnull)).open("a", encoding="utf-8"))
        errors = _Repeated(shown)
        stack.enter_context(contextlib.redirect_stdout(shown))
        stack.enter_context(contextlib.redirect_stderr(errors))
        code = int(module.main(module.COMMAND, list(job.arguments)))
    lines = errors.end.strip().splitlines()
    message = lines[-1].removeprefix("error: ") if code and lines else ""
    if code not in (0, 2):
        raise RuntimeError(f"exit code {code}: {message}")
    if is_first:
        write_whole(told / _OUTCOME, json.dumps([code, message]))
    elif code and not _appears(told / _OUTCOME):
        # Refused here alone: the first worker waits for this one, and is ended by its fault.
        write_whole(told / _OUTCOME, json.dumps([code, message]))
        raise RuntimeError(f"exit code {code}: {message}")


def _appears(file: Path) -> bool:
    """Whether a file is there, or comes within the time that two workers may be apart in refusing the same."""
    end = time.monotonic() + _SECONDS_APART
    while not file.exists() and time.monotonic() < end:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    return file.exists()


def write_whole(path: Path, text: str) -> None:
    """Write a file that is there as a whole or not at all; two that write the same do no harm."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


class _Repeated(io.StringIO):
    """A stream that hands on what is written, line by line as it comes, and remembers the end of it."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream, self.end = stream, ""

    def write(self, text: str) -> int:
        self.end = (self.end + text)[-_REMEMBERED:]
        count = self._stream.write(text)
        self._stream.flush()
        return count


@contextlib.contextmanager
def _shown(file: Path) -> Iterator[None]:
    """Print what comes into `file`, within the block, to stderr."""
    ended = threading.Event()
    thread = threading.Thread(target=_show, args=(file, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _show(file: Path, ended: threading.Event) -> None:
    place, last = 0, False
    while not last:
        last = ended.wait(_SECONDS_BETWEEN_LOOKS)  # one more look after the end
        if file.exists():
            with file.open(encoding="utf-8", errors="replace") as stream:
                stream.seek(place)
                sys.stderr.write(stream.read())
                sys.stderr.flush()
                place = stream.tell()
