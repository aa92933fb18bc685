"""Where and how computation runs: precision, devices, compilation, determinism.

These choices take effect before a model is built: Keras silently ignores a precision policy that is set later, and
a distribution strategy refuses a model that was built outside of it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from shared.cluster import find_cluster
from shared.config import Config, option
from shared.distribution import Portion, Workers, start_workers

if TYPE_CHECKING:
    import tensorflow as tf

logger = logging.getLogger(__name__)

Precision = Literal["float32", "mixed_bfloat16", "mixed_float16", "auto"]
Switch = Literal["auto", "on", "off"]


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig(Config):
    """Precision, devices, compilation and determinism of this process; `apply` it before a pipeline is built."""

    precision: Precision = option("float32", "arithmetic of the layers; auto: picked when training, by timing")
    devices: str = option("auto", "auto (GPUs if any), cpu, gpu, or a list such as gpu:0,gpu:1")
    xla: Switch = option("off", "compile steps with XLA; auto: picked when training, by timing")
    deterministic: bool = option(False, "same results on each run also where a GPU would vary")
    memory_growth: bool = option(True, "take GPU memory as needed, not all at once")
    onednn: Switch = option("auto", "oneDNN kernels on the CPU; auto: on for x86")
    num_threads: int = option(0, "threads of TensorFlow on the CPU; 0: one a core", minimum=0)
    workers: str = option(
        "auto", "processes that train together: auto, off, tf_config, slurm, kubernetes, or host:port,host:port"
    )
    worker_index: int = option(-1, "number of this one where `workers` gives addresses; -1: from the environment")
    worker_timeout: float = option(
        30.0, "silence after which another worker counts as lost", minimum=5.0, maximum=3600.0, unit="s"
    )

    def prepare_environment(self) -> None:
        """Set what TensorFlow reads once, when it is first imported; too late afterwards, and then says so."""
        wanted = {"TF_ENABLE_ONEDNN_OPTS": "1" if self._wants_onednn() else "0"}
        changed = {key: value for key, value in wanted.items() if os.environ.get(key, "") != value}
        if "tensorflow" in sys.modules:
            if changed and self.onednn != "auto":
                logger.warning("onednn=%s has no effect: TensorFlow is already imported", self.onednn)
            return
        # A user's own setting of the variable wins over "auto".
        if self.onednn != "auto" or "TF_ENABLE_ONEDNN_OPTS" not in os.environ:
            os.environ.update(wanted)
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

    def apply(self) -> Runtime:
        """Put the choices into effect for pipelines built from now on, and return what they came to.

        Raises:
            ValueError: for a device that this machine does not have, and for `workers` that cannot be understood.
            WorkerLostError: where one of the workers cannot be reached.
            RuntimeError: where TensorFlow was already in use and refuses a change.
        """
        self.prepare_environment()
        import tensorflow as tf

        if self.num_threads:
            tf.config.threading.set_intra_op_parallelism_threads(self.num_threads)
        # Before anything is computed: TensorFlow joins a cluster only when it starts.
        strategy, workers = _join_workers(self)
        if strategy is None:
            strategy = _strategy(_select_devices(self.devices, self.memory_growth))
        if self.deterministic:
            tf.config.experimental.enable_op_determinism()
        auto = [name for name in ("precision", "xla") if getattr(self, name) == "auto"]
        if auto:
            logger.warning(
                "%s: picked by timing a model in training (`shared.measuring.choose_runtime`, train --precision "
                "auto); float32 without XLA here",
                " and ".join(f"{name}=auto" for name in auto),
            )
        precision = "float32" if self.precision == "auto" else self.precision
        return activate(
            Runtime(config=self, precision=precision, xla=self.xla == "on", strategy=strategy, workers=workers)
        )

    def _wants_onednn(self) -> bool:
        # TensorFlow switches oneDNN on by itself only where AVX-512 VNNI is; with AVX2 alone convolutions ran
        # 1.6 times faster with it too.
        if self.onednn == "auto":
            return platform.machine().lower() in {"x86_64", "amd64"}
        return self.onednn == "on"


@dataclass(frozen=True)
class Runtime:
    """What a `RuntimeConfig` came to on this machine."""

    config: RuntimeConfig
    precision: str
    xla: bool
    strategy: tf.distribute.Strategy | None
    workers: Workers = field(default_factory=Workers)

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Scope in which models and optimizers have to be built; several workers build the same ones."""
        if self.strategy is None or (self.workers.count > 1 and self.workers.is_acting_alone):
            yield
            return
        with self.workers.together(), self.strategy.scope():
            yield

    @property
    def portion(self) -> Portion:
        """Which shares of each batch this process prepares."""
        own = self.num_replicas // self.workers.count
        return Portion(self.num_replicas, self.workers.index * own, own)

    @property
    def num_replicas(self) -> int:
        """Devices that train together."""
        return 1 if self.strategy is None else int(self.strategy.num_replicas_in_sync)

    @property
    def few_shapes(self) -> bool:
        """Whether a new shape costs time: XLA compiles for each, and libraries for GPUs choose kernels for each."""
        import tensorflow as tf

        return self.xla or bool(tf.config.list_logical_devices("GPU"))


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Initial weights and dropout seeds of what is built in the block follow `seed`; the caller's state is put back.

    Keras draws the default seed of each initializer and of each seed generator from Python's `random`.
    """
    before = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(before)


@contextlib.contextmanager
def float32_policy() -> Iterator[None]:
    """Layers built in the block compute in float32, whatever the precision of this process."""
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


_current: Runtime | None = None


def activate(runtime: Runtime) -> Runtime:
    """Put a runtime into effect for what is built from now on; gives it back."""
    import keras

    global _current
    keras.config.set_dtype_policy(runtime.precision)
    _current = runtime
    return runtime


@contextlib.contextmanager
def activated(runtime: Runtime) -> Iterator[None]:
    """What is built in the block is built under `runtime`."""
    import keras

    global _current
    policy, before = keras.config.dtype_policy(), _current
    activate(runtime)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(policy)
        _current = before


def current_runtime() -> Runtime:
    """The runtime applied last; the process as it is where none was."""
    if _current is not None:
        return _current
    import keras

    return Runtime(RuntimeConfig(), precision=keras.config.dtype_policy().name, xla=False, strategy=None)


def _join_workers(config: RuntimeConfig) -> tuple[tf.distribute.Strategy | None, Workers]:
    """The strategy of several workers and these; none, and this process alone, where it trains alone."""
    cluster = find_cluster(config.workers, config.worker_index, os.environ)
    if cluster is None:
        return None, Workers()
    global _joined
    if _joined is not None:
        workers = _joined[1]
        if workers.cluster != cluster:
            raise ValueError(f"This process is {workers.cluster} already. Start another process to be {cluster}.")
        return _joined
    _show_devices(config.devices, config.memory_growth)
    _joined = start_workers(cluster, silence=config.worker_timeout)
    return _joined


_joined: tuple[tf.distribute.Strategy, Workers] | None = None


def _show_devices(devices: str, memory_growth: bool) -> None:
    """Let TensorFlow see those devices only: all that it sees take part in a training by several workers."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    names = {f"gpu:{i}": gpu for i, gpu in enumerate(gpus)}
    chosen = {"auto": list(names), "gpu": list(names), "cpu": [], "cpu:0": []}.get(devices, devices.split(","))
    missing = [name for name in chosen if name not in names]
    if missing or (devices == "gpu" and not gpus):
        raise ValueError(
            f"`devices` asks for {devices!r}; a worker on this machine has {', '.join(['cpu', *names])}. Use one of "
            "those, or 'auto'."
        )
    tf.config.set_visible_devices([names[name] for name in chosen], "GPU")
    if memory_growth:
        _take_memory_as_needed([names[name] for name in chosen])


def _select_devices(devices: str, memory_growth: bool) -> list[str]:
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if memory_growth:
        _take_memory_as_needed(gpus)
    if devices == "auto":
        devices = "gpu" if gpus else "cpu"
    if devices == "cpu":
        tf.config.set_visible_devices([], "GPU")
        return ["cpu:0"]
    names = [f"gpu:{i}" for i in range(len(gpus))]
    names += [f"cpu:{i}" for i in range(len(tf.config.list_logical_devices("CPU")))]
    chosen = [n for n in names if n.startswith("gpu")] if devices == "gpu" else devices.split(",")
    missing = [name for name in chosen if name not in names]
    if missing or not chosen:
        raise ValueError(
            f"`devices` asks for {devices!r}; this machine has {', '.join(names)}. Use one of those, or 'auto'."
        )
    return chosen


def _take_memory_as_needed(gpus: list[tf.config.PhysicalDevice]) -> None:
    import tensorflow as tf

    for gpu in gpus:
        try:
            tf.config.experimental.set_memory_growth(gpu, True)
        except RuntimeError:
            # Whatever else was asked for takes effect all the same.
            logger.warning(
                "memory_growth=True has no effect on %s: TensorFlow is in use already, and takes memory as it was told "
                "before. Apply the runtime before anything is computed.",
                gpu.name,
            )


def _strategy(devices: list[str]) -> tf.distribute.Strategy | None:
    import tensorflow as tf

    if len(devices) > 1:
        return tf.distribute.MirroredStrategy([f"/{device}" for device in devices])
    if devices[0] in {"cpu:0", "gpu:0"}:
        return None
    return tf.distribute.OneDeviceStrategy(f"/{devices[0]}")
