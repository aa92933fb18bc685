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
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from shared.launcher import LAUNCHED

# How often a training is started anew, from its newest state, after a worker was lost.
MAX_RESTARTS = 3
# Characters of a worker's errors that are kept for the last line of them.
_REMEMBERED = 10_000


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

    def run(self) -> tuple[int, str]:
        """Run the script's command line in this process; returns its exit code and the last line of its errors."""
        module, errors = self.module(), _Repeated(sys.stderr)
        with contextlib.redirect_stderr(errors):
            code = int(module.main(module.COMMAND, list(self.arguments)))
        lines = errors.text.strip().splitlines()
        return code, lines[-1].removeprefix("error: ") if code and lines else ""


class _Repeated(io.StringIO):
    """A stream that remembers the end of what it hands on."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream, self.text = stream, ""

    def write(self, text: str) -> int:
        self.text = (self.text + text)[-_REMEMBERED:]
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()


@contextlib.contextmanager
def cluster(num_workers: int, *, show_output: bool) -> Iterator[Any]:
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
    options: dict[str, Any] = {"runtime_env": {"env_vars": environment}, "log_to_driver": show_output}
    if address is None:
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
    """What a worker asks for: a GPU where there is one for each, and its share of the cores of this cluster."""
    there = ray.cluster_resources()
    asked = {"CPU": float(max(1, int(there.get("CPU", 1)) // num_workers))}
    return asked | ({"GPU": 1.0} if there.get("GPU", 0) >= num_workers else {})


def train(job: Job, output: Path, *, num_workers: int) -> tuple[int, str]:
    """Run the command line of `train` in `num_workers` processes that TF_CONFIG joins.

    When a worker is lost the others end, and all start anew from the newest state.

    Args:
        job: with --resume among its arguments, and without an engine.
        output: where the pipeline is saved; Ray's own files lie beside it meanwhile.
        num_workers: processes.

    Returns:
        The exit code, 0 or 2, and with 2 what was wrong.

    Raises:
        RuntimeError: where workers were lost again and again.
    """
    storage = output.absolute().with_name(output.name + ".ray")
    with cluster(num_workers, show_output=True) as ray:
        from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
        from ray.train.tensorflow import TensorflowTrainer

        asked = resources(ray, num_workers)
        trainer = TensorflowTrainer(
            _in_worker,
            train_loop_config={"job": job},
            scaling_config=ScalingConfig(num_workers=num_workers, use_gpu="GPU" in asked, resources_per_worker=asked),
            run_config=RunConfig(failure_config=FailureConfig(max_failures=MAX_RESTARTS), storage_path=str(storage)),
        )
        try:
            metrics = trainer.fit().metrics or {}
        except TrainingFailedError as error:
            raise RuntimeError(f"Workers were lost {MAX_RESTARTS + 1} times; the last time: {error}") from error
        finally:
            shutil.rmtree(storage, ignore_errors=True)
    return int(metrics.get("code", 1)), str(metrics.get("message", ""))


def _in_worker(config: dict[str, Any]) -> None:
    import ray.train

    os.environ[LAUNCHED] = "1"  # how the whole is resumed is said by the process that the user started
    code, message = config["job"].run()
    if code not in (0, 2):
        raise RuntimeError(f"exit code {code}: {message}")
    # All report, so that a refusal by all is told from the loss of one.
    ray.train.report({"code": code, "message": message})
