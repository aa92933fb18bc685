"""Where the time of a training run goes: phases that add up to its wall time, a TensorFlow trace, and a summary.

While profiled, each step waits for the device before the next batch is taken: input and compute do not overlap as they
do otherwise, and each is seen alone. No number that is computed changes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.distribution import num_examples, parts_of
from shared.runtime import current_runtime

if TYPE_CHECKING:
    from shared.data import Arrays
    from shared.distribution import BatchShares
    from shared.training import TrainingTask, TrainStep

    # Batches of one step.
    Group = list[Arrays | BatchShares]

# Steps before the trace, which are not typical, and steps in it.
_BEFORE_TRACE = 3
_TRACED = 5
_SUMMARY = "summary.json"


@dataclass(frozen=True)
class Profile:
    """What was measured of one run; as a text it is the summary.

    `phases` are seconds by name, in the order in which they first came, and add up to `wall_seconds`, "other" being
    what none of them covers. `input_ms` and `compute_ms` are medians over steps, the compiling ones left out, and so
    they are in `examples_per_second`. `flops_per_step` is counted in the graph (see `shared.flops`) on a batch of
    middle size; None where it cannot be. Memory is in MiB; None where the system does not tell.
    """

    wall_seconds: float
    phases: dict[str, float]
    num_steps: int
    num_examples: int
    input_ms: float
    compute_ms: float
    examples_per_second: float
    peak_memory: float | None
    precision: str
    xla: bool
    num_replicas: int = 1
    device: str = "CPU"
    peak_device_memory: float | None = None
    flops_per_step: float | None = None
    peak_flops: float | None = None
    trace: str = ""

    @property
    def achieved_flops(self) -> float | None:
        """Operations per second while computing."""
        return None if self.flops_per_step is None else self.flops_per_step / max(1e-9, self.compute_ms / 1e3)

    @property
    def utilisation(self) -> float | None:
        """Share of the peak that was achieved while computing (model FLOP/s utilisation); None for unknown cards."""
        if self.achieved_flops is None or self.peak_flops is None:
            return None
        return self.achieved_flops / (self.peak_flops * self.num_replicas)

    def __str__(self) -> str:
        share = 100 / max(self.wall_seconds, 1e-9)
        lines = [f"profile of {self.num_steps} steps, {self.num_examples} examples, {self.wall_seconds:.1f} s in all"]
        lines += [f"  {name:14s}{value:9.1f} s {share * value:6.1f} %" for name, value in self.phases.items()]
        lines.append(
            f"a step: input {self.input_ms:.1f} ms, compute {self.compute_ms:.1f} ms (medians); "
            f"{self.examples_per_second:.0f} examples/s"
        )
        where = f"{self.device}, {self.precision}, xla {'on' if self.xla else 'off'}"
        lines.append(where if self.num_replicas == 1 else f"{self.num_replicas} of {where}")
        if self.flops_per_step is not None and self.achieved_flops is not None:
            lines.append(
                f"products: {self.flops_per_step / 1e9:.2f} GFLOP a step (3 forward passes), "
                f"{self.achieved_flops / 1e9:.1f} GFLOP/s{self._of_peak()}"
            )
        device = "" if self.peak_device_memory is None else f", device {self.peak_device_memory:.0f} MiB"
        process = "unknown" if self.peak_memory is None else f"{self.peak_memory:.0f} MiB"
        lines.append(f"peak memory: process {process}{device}")
        if self.trace:
            lines.append(f"trace: {self.trace} (TensorBoard with its profile plugin shows it)")
        return "\n".join(lines)

    def _of_peak(self) -> str:
        if self.utilisation is None or self.peak_flops is None:
            return ""
        return (
            f", {100 * self.utilisation:.1f} % of the card's {self.peak_flops * self.num_replicas / 1e12:.0f} TFLOP/s"
        )


def read_profile(directory: str | Path) -> Profile:
    """The profile that `fit(..., profile=directory)` wrote.

    Raises:
        FileNotFoundError: where there is none.
    """
    return Profile(**json.loads(Path(directory, _SUMMARY).read_text(encoding="utf-8")))


@dataclass
class Profiler:
    """Takes the times of one run; without a directory it measures nothing and changes nothing."""

    directory: Path | None
    _phases: dict[str, float] = field(default_factory=dict)
    _running: list[str] = field(default_factory=list)
    _inputs: list[float] = field(default_factory=list)
    _computes: list[float] = field(default_factory=list)
    _shapes: list[dict[str, Any]] = field(default_factory=list)
    _num_steps: int = 0
    _num_examples: int = 0
    _timed_examples: int = 0
    _tracing: bool = False

    def __post_init__(self) -> None:
        self._started = self._turned = time.perf_counter()
        if self.directory is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
            for gpu in _gpus():
                _reset_memory(gpu)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The time of the block belongs to `name`; an inner phase's to that alone."""
        if self.directory is None:
            yield
            return
        self._turn()
        self._running.append(name)
        try:
            yield
        finally:
            self._turn()
            self._running.pop()

    def _turn(self) -> None:
        now = time.perf_counter()
        name = self._running[-1] if self._running else "other"
        self._phases[name] = self._phases.get(name, 0.0) + now - self._turned
        self._turned = now

    def timed(self, groups: Iterator[Group]) -> Generator[Group, None, None]:
        """The groups as they come; the wait for each is input."""
        if self.directory is None:
            yield from groups
            return
        while True:
            before = time.perf_counter()
            with self.phase("input"):
                group = next(groups, None)
            if group is None:
                return
            self._inputs.append(time.perf_counter() - before)
            yield group

    def run(self, step: TrainStep, group: Group) -> None:
        """Take one training step."""
        if self.directory is None:
            step(group)
            return
        self._trace_if_due()
        # Of several devices the shapes of the first one's share are kept.
        parts = [parts_of(batch)[0] for batch in group]
        shapes = [{key: (array.shape, array.dtype) for key, array in part.items()} for part in parts]
        one_graph = step.task.varying_shapes and not current_runtime().xla
        compiles = not step.is_traced or not (one_graph or all(known in self._shapes for known in shapes))
        before = time.perf_counter()
        with self.phase("compilation" if compiles else "compute"):
            step(group)
            step.loss_sum.numpy()  # waits for the device
        count = sum(map(num_examples, group))
        if compiles:
            self._inputs.pop()
        else:
            self._computes.append(time.perf_counter() - before)
            self._timed_examples += count
        self._num_steps += 1
        self._num_examples += count
        self._shapes += shapes

    def _trace_if_due(self) -> None:
        import tensorflow as tf

        done = len(self._computes)
        if done == _BEFORE_TRACE and not self._tracing:
            with self.phase("trace"):
                tf.profiler.experimental.start(str(self.directory))
            self._tracing = True
        elif done == _BEFORE_TRACE + _TRACED:
            self.close()

    def close(self) -> None:
        """End the trace, if one is running."""
        if self._tracing:
            import tensorflow as tf

            self._tracing = False
            with self.phase("trace"):
                tf.profiler.experimental.stop()

    def write(self, task: TrainingTask) -> None:
        """Write the summary of a run that has ended."""
        if self.directory is None:
            return
        self.close()
        self._turn()
        wall = self._turned - self._started
        phases = {name: seconds for name, seconds in self._phases.items() if name != "other"}
        profile = Profile(
            wall_seconds=wall,
            phases={**phases, "other": self._phases.get("other", 0.0)},
            num_steps=self._num_steps,
            num_examples=self._num_examples,
            input_ms=1e3 * _median(self._inputs),
            compute_ms=1e3 * _median(self._computes),
            examples_per_second=self._timed_examples / max(1e-9, sum(self._inputs) + sum(self._computes)),
            peak_memory=_peak_memory(),
            trace=str(self.directory) if any(self.directory.glob("**/*.xplane.pb")) else "",
            **self._of_devices(task),
        )
        record = json.dumps(dataclasses.asdict(profile), indent=2)
        (self.directory / _SUMMARY).write_text(record + "\n", encoding="utf-8")
        (self.directory / "summary.txt").write_text(f"{profile}\n", encoding="utf-8")

    def _of_devices(self, task: TrainingTask) -> dict[str, Any]:
        from shared.flops import TRAINING_PASSES, peak_flops

        runtime, gpus = current_runtime(), _gpus()
        name = _device_name(gpus[0]) if gpus else "CPU"
        forward = _middle_flops(task, self._shapes)
        per_step = len(self._shapes) / max(1, self._num_steps)
        return {
            "precision": runtime.precision,
            "xla": runtime.xla,
            "num_replicas": runtime.num_replicas,
            "device": name,
            "peak_device_memory": max((_device_memory(gpu) for gpu in gpus), default=None),
            "flops_per_step": None if forward is None else TRAINING_PASSES * per_step * forward,
            "peak_flops": peak_flops(name, runtime.precision) if gpus else None,
        }


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else 0.0


def _middle_flops(task: TrainingTask, shapes: Sequence[dict[str, Any]]) -> int | None:
    """Operations of one forward pass over a batch of middle size, on all devices together."""
    import numpy as np
    import tensorflow as tf

    from shared.flops import forward_flops

    if not shapes:
        return None
    order = sorted(shapes, key=lambda batch: sum(int(np.prod(shape)) for shape, _ in batch.values()))
    middle = order[len(order) // 2]
    one = forward_flops(task.loss, {key: tf.TensorSpec(shape, dtype) for key, (shape, dtype) in middle.items()})
    return None if one is None else current_runtime().num_replicas * one


def _peak_memory() -> float | None:
    """Most resident memory of the process so far, in MiB; None where the system does not tell."""
    try:
        import resource  # Unix only
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _gpus() -> list[Any]:
    import tensorflow as tf

    return [gpu for gpu in tf.config.get_visible_devices("GPU") if gpu.device_type == "GPU"]


def _device_name(gpu: Any) -> str:
    import tensorflow as tf

    return str(tf.config.experimental.get_device_details(gpu).get("device_name", "GPU"))


def _short_name(gpu: Any) -> str:
    return str(gpu.name.partition("physical_device:")[2])


def _reset_memory(gpu: Any) -> None:
    import tensorflow as tf

    tf.config.experimental.reset_memory_stats(_short_name(gpu))


def _device_memory(gpu: Any) -> float:
    import tensorflow as tf

    return float(tf.config.experimental.get_memory_info(_short_name(gpu))["peak"]) / 2**20
