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
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from shared.config import Config, option

if TYPE_CHECKING:
    import tensorflow as tf

logger = logging.getLogger(__name__)

Precision = Literal["float32", "mixed_bfloat16", "mixed_float16", "auto"]
Switch = Literal["auto", "on", "off"]

# A choice has to win by this factor to be taken: timings on shared machines scatter by a few per cent.
_WORTHWHILE = 1.05


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig(Config):
    """Precision, devices, compilation and determinism of this process; `apply` it before a pipeline is built."""

    precision: Precision = option("float32", "arithmetic of the layers; auto measures and picks")
    devices: str = option("auto", "auto (GPUs if any), cpu, gpu, or a list such as gpu:0,gpu:1")
    xla: Switch = option("off", "compile steps with XLA; auto measures and picks")
    deterministic: bool = option(False, "same results on each run also where a GPU would vary")
    memory_growth: bool = option(True, "take GPU memory as needed, not all at once")
    onednn: Switch = option("auto", "oneDNN kernels on the CPU; auto: on for x86")
    workers: str = option("auto", "x")
    num_threads: int = option(0, "threads of TensorFlow on the CPU; 0: one a core", minimum=0)

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
            ValueError: for a device that this machine does not have.
            RuntimeError: where TensorFlow was already in use and refuses a change.
        """
        self.prepare_environment()
        import keras
        import tensorflow as tf

        if self.num_threads:
            tf.config.threading.set_intra_op_parallelism_threads(self.num_threads)
        devices = _select_devices(self.devices, self.memory_growth)
        if self.deterministic:
            tf.config.experimental.enable_op_determinism()
        precision = _measured_precision() if self.precision == "auto" else self.precision
        keras.config.set_dtype_policy(precision)
        xla = _measured_xla() if self.xla == "auto" else self.xla == "on"
        global _current
        _current = Runtime(config=self, precision=precision, xla=xla, strategy=_strategy(devices))
        return _current

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

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Scope in which models and optimizers have to be built."""
        with self.strategy.scope() if self.strategy is not None else contextlib.nullcontext():
            yield

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


def current_runtime() -> Runtime:
    """The runtime applied last; the process as it is where none was."""
    if _current is not None:
        return _current
    import keras

    return Runtime(RuntimeConfig(), precision=keras.config.dtype_policy().name, xla=False, strategy=None)


def _select_devices(devices: str, memory_growth: bool) -> list[str]:
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if memory_growth:
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
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


def _strategy(devices: list[str]) -> tf.distribute.Strategy | None:
    import tensorflow as tf

    if len(devices) > 1:
        return tf.distribute.MirroredStrategy([f"/{device}" for device in devices])
    if devices[0] in {"cpu:0", "gpu:0"}:
        return None
    return tf.distribute.OneDeviceStrategy(f"/{devices[0]}")


def _measured_precision() -> Literal["float32", "mixed_bfloat16"]:
    """bfloat16 where a training step of a small reference network runs clearly faster with it."""
    import keras

    before = keras.config.dtype_policy()
    seconds = {}
    for policy in ("float32", "mixed_bfloat16"):
        keras.config.set_dtype_policy(policy)
        seconds[policy] = _step_seconds(xla=False)
    keras.config.set_dtype_policy(before)
    faster = seconds["float32"] / seconds["mixed_bfloat16"] > _WORTHWHILE
    picked: Literal["float32", "mixed_bfloat16"] = "mixed_bfloat16" if faster else "float32"
    logger.info("precision=auto picked %s: %s", picked, _milliseconds(seconds))
    return picked


def _measured_xla() -> bool:
    """Whether a training step of a small reference network runs clearly faster under XLA."""
    seconds = {"xla off": _step_seconds(xla=False), "xla on": _step_seconds(xla=True)}
    picked = seconds["xla off"] / seconds["xla on"] > _WORTHWHILE
    logger.info("xla=auto picked %s: %s", "on" if picked else "off", _milliseconds(seconds))
    return picked


def _milliseconds(seconds: dict[str, float]) -> str:
    return ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in seconds.items())


def _step_seconds(*, xla: bool, repeats: int = 5) -> float:
    """Median seconds of a forward and backward pass through a small network of convolutions and matrix products."""
    import tensorflow as tf

    step = tf.function(_reference_step(), jit_compile=xla, autograph=False)
    images = tf.random.stateless_normal((16, 32, 32, 16), seed=(0, 0))
    step(images)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        float(step(images))
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[repeats // 2]


def _reference_step() -> Callable[[Any], Any]:
    import keras
    import tensorflow as tf

    layers = keras.layers
    network = keras.Sequential(
        [
            keras.Input((32, 32, 16)),
            layers.Conv2D(64, 3, activation="relu"),
            layers.Conv2D(64, 3, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(512, activation="gelu"),
            layers.Dense(512),
        ]
    )

    def step(images: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(tf.cast(network(images), tf.float32)))
        gradients = tape.gradient(loss, network.trainable_variables)
        return loss + tf.add_n([tf.reduce_sum(tf.cast(g, tf.float32)) for g in gradients])

    return step
