"""Training on several devices and by several processes: who they are, what each does of a batch, how they agree.

One process with several devices is a `MirroredStrategy`, several processes a `MultiWorkerMirroredStrategy`;
`RuntimeConfig(devices=..., workers=...)` chooses. All processes run the same script on the same data. Each draws the
same order of batches from the same seed and prepares its own share of each batch; gradients are added up, so that a
step is that of one process with the whole batch, up to the rounding of sums.

TensorFlow adds up gradients. For all else there is `Workers.channel` (shared/channel.py): agreement to stop, bad
records, scores, the state that a resumed run starts from, and word of a worker that died.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import secrets
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from shared.channel import Channel, WorkerLostError, listening_socket, unreachable
from shared.cluster import Cluster

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

# Exit code of a worker that ended because another was lost; sysexits.h calls it EX_TEMPFAIL: try again.
LOST_CODE = 75
# A worker that hangs in an operation of TensorFlow after another was lost is ended after so many seconds.
_SECONDS_TO_STOP = 15.0
# How long workers wait for each other at the start, and how often they say so.
_SECONDS_TO_START, _SECONDS_TO_WARN = 600.0, 30.0
# An error of TensorFlow may come before the word of the worker whose death caused it.
_SECONDS_TO_LEARN = 5.0


# Shares of a batch.


@dataclass(frozen=True)
class Portion:
    """Which shares of a batch, one a device, or of a set that is scored, one a worker, are this process's.

    These are `count` from number `first`, of `num_shares`.
    """

    num_shares: int = 1
    first: int = 0
    count: int = 1

    @property
    def is_all(self) -> bool:
        """Whether all shares are this process's."""
        return self.count == self.num_shares

    def of(self, batch: Sequence[_T]) -> list[Sequence[_T]]:
        """This process's shares of `batch`: neighbours, as equally many as possible."""
        bounds = [share * len(batch) // self.num_shares for share in range(self.num_shares + 1)]
        own = range(self.first, self.first + self.count)
        return [batch[bounds[share] : bounds[share + 1]] for share in own]

    def span(self, count: int) -> slice:
        """The same of `count` examples, as one slice."""
        first, last = (share * count // self.num_shares for share in (self.first, self.first + self.count))
        return slice(first, last)

    def has(self, number: int) -> bool:
        """Whether the example of this number in a stream is this process's: every so many-th one."""
        return self.first <= number % self.num_shares < self.first + self.count


@dataclass(frozen=True)
class BatchShares:
    """This process's shares of one batch, one a device, and how many of their examples count.

    A device cannot compute with nothing: a share without examples holds one that is to weigh nothing, and its size
    is 0. `num_examples` is how many examples of the whole batch count.
    """

    parts: tuple[dict[str, np.ndarray], ...]
    sizes: tuple[int, ...]
    num_examples: int


def parts_of(batch: dict[str, np.ndarray] | BatchShares) -> tuple[dict[str, np.ndarray], ...]:
    """A whole batch, or this process's shares of one."""
    return batch.parts if isinstance(batch, BatchShares) else (batch,)


def num_examples(batch: dict[str, np.ndarray] | BatchShares) -> int:
    """Examples of the whole batch."""
    return batch.num_examples if isinstance(batch, BatchShares) else len(next(iter(batch.values())))


# Sums over the devices of a step, inside the compiled step.

_here = threading.local()


@contextlib.contextmanager
def computing_share(share: tf.Tensor | None) -> Iterator[None]:
    """Within the block, this device computes `share` of a batch (a scalar from 0 to 1); None: all of it."""
    _here.share = share
    try:
        yield
    finally:
        _here.share = None


def share_here() -> tf.Tensor | None:
    """The share of the batch that is computed here, 0 for a stand-in; None where one device computes all of it."""
    return getattr(_here, "share", None)


def sum_over_batch(*values: tf.Tensor) -> list[tf.Tensor]:
    """Sums over the examples of this device made sums over the whole batch; gradients flow to all devices.

    A loss that is made of such sums, and not a mean over examples, is then the same as on one device.
    """
    import tensorflow as tf

    share = share_here()
    if share is None:
        return list(values)
    counts = tf.cast(share > 0, tf.float32)
    context = tf.distribute.get_replica_context()
    summed: list[tf.Tensor] = context.all_reduce(tf.distribute.ReduceOp.SUM, [value * counts for value in values])
    return summed


def mean_over_batch(total: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    """`total` / `weight` where both are sums over a batch: for losses that are no plain means over examples.

    On several devices the training step weighs each device's loss by its share of the examples. This divides by the
    weight in the whole batch and takes the share out again, so that the weighted losses add up to the mean over all.

    Args:
        total: the sum of losses over this device's examples, a scalar.
        weight: the sum of their weights, such as the number of words, a scalar; it counts as 1 at least.
    """
    import tensorflow as tf

    share = share_here()
    if share is None:
        return total / tf.maximum(weight, 1.0)
    (whole,) = sum_over_batch(tf.stop_gradient(weight))
    return tf.math.divide_no_nan(total * tf.cast(share > 0, tf.float32), share * tf.maximum(whole, 1.0))


def synchronise_norms(model: keras.Model) -> None:
    """Let batch normalisation in training go by the statistics of the whole batch, not of one device's share."""
    import keras

    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.synchronized = True


# Processes.


class Workers:
    """The processes of this training, this one being number `index`; alone, all of its answers are its own."""

    def __init__(self, cluster: Cluster | None = None, channel: Channel | None = None) -> None:
        self.cluster = cluster
        self._channel = channel
        self._depth = 0
        self.is_acting_alone = cluster is None
        self._hint: Callable[[], str] = lambda: "Start all workers again."
        self._watchdog: threading.Timer | None = None
        # Whether what all did together last ended with an error, which is then known to the program.
        self._has_stopped = False

    @property
    def count(self) -> int:
        """How many processes train together."""
        return 1 if self.cluster is None else len(self.cluster)

    @property
    def index(self) -> int:
        """This process's number, from 0."""
        return 0 if self.cluster is None else self.cluster.index

    @property
    def is_first(self) -> bool:
        """Whether this process writes files, shows progress and has the scores."""
        return self.index == 0

    @property
    def portion(self) -> Portion:
        """This process's part of what each example needs once: one share for each worker."""
        return Portion(self.count, self.index, 1)

    def require_alone(self, what: str) -> None:
        """Refuse what several workers cannot share.

        Raises:
            ValueError: where there are several.
        """
        if self.count > 1:
            raise ValueError(
                f"{what} has nothing that {self.count} workers could share. Run it by one process: workers=off."
            )

    def exchange(self, value: Any = None) -> list[Any]:
        """The plain values (JSON) that all workers give, by worker; all wait until all have given theirs.

        Raises:
            WorkerLostError: where one will never come.
        """
        return [value] if self._channel is None else self._channel.exchange(value)

    def to_first(self, arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        """For worker 0 the arrays that each gives, by worker; the others go on at once, with an empty list.

        Raises:
            WorkerLostError: where those of another will never come.
        """
        return [dict(arrays)] if self._channel is None else self._channel.to_first(arrays)

    def from_first(self, make: Callable[[], _T]) -> _T:
        """A plain value (JSON) that only worker 0 makes; the others wait for it, however long it takes."""
        return self.arrays_from_first(lambda: (make(), {}))[0]

    def arrays_from_first(
        self, make: Callable[[], tuple[_T, Mapping[str, np.ndarray]]]
    ) -> tuple[_T, dict[str, np.ndarray]]:
        """The same with arrays by name."""
        with self.acting_alone():
            value, arrays = make() if self.is_first else (None, {})
        if self._channel is None:
            return value, dict(arrays)  # type: ignore[return-value]
        return self._channel.from_first(value, arrays)

    @contextlib.contextmanager
    def acting_alone(self) -> Iterator[None]:
        """What is built in the block belongs to this process: for what one worker does while the others do not."""
        before, self.is_acting_alone = self.is_acting_alone, True
        try:
            yield
        finally:
            self.is_acting_alone = before

    @contextlib.contextmanager
    def together(self, hint: Callable[[], str] | None = None, *, wait: bool = False) -> Iterator[None]:
        """What all workers do together: in the block the loss of one stops all.

        Args:
            hint: what to do then, for the message.
            wait: leave the block only when all have come to its end.

        Raises:
            WorkerLostError: where another worker died, hung, or stopped with an error.
        """
        if self._channel is None:
            yield
            return
        self._hint, before = hint or self._hint, self._hint
        self._depth += 1
        self._has_stopped = False
        try:
            self._channel.watching = True
            self._channel.check(all_there=True)
            yield
            if wait:
                # Whoever is through may end from here on, and is not lost.
                self._channel.watching = False
                self._channel.exchange()
        except BaseException as error:
            self._translate(error, self._channel)
            raise
        finally:
            self._depth -= 1
            self._hint = before
            self._channel.watching = self._depth > 0

    def _translate(self, error: BaseException, channel: Channel) -> None:
        """Raise a `WorkerLostError` where `error` comes of one; else tell the others of it."""
        import tensorflow as tf

        from shared.pipeline import TrainingInterrupted

        self._has_stopped = True
        if isinstance(error, TrainingInterrupted):  # all have agreed on that
            return
        if isinstance(error, tf.errors.OpError):
            channel.wait_for_failure(_SECONDS_TO_LEARN)
        if channel.failure is None:
            channel.fail(f"{type(error).__name__}: {error}".strip(": "))
            return
        if self._watchdog is not None:
            self._watchdog.cancel()
        if isinstance(error, tf.errors.OpError | WorkerLostError):
            raise WorkerLostError(self._message(channel.failure)) from error

    def _message(self, failure: str) -> str:
        return f"Training stopped on worker {self.index}: {failure}. {self._hint()}"

    def _on_loss(self, failure: str) -> None:
        # The main thread may be waiting in an operation for the one that was lost: that is made to fail. Where this
        # does not help (an operation in C++ cannot be interrupted from Python), the process is ended.
        self._watchdog = threading.Timer(_SECONDS_TO_STOP, self._end, args=(failure,))
        self._watchdog.daemon = True
        self._watchdog.start()
        _abort_collectives(failure)

    def _leave(self, channel: Channel) -> None:
        """At the end of the process: wait for the others; where one is lost before the first is done, end so."""
        channel.leave()
        if channel.failure is not None and not self.is_first:
            self._end(channel.failure)

    def _end(self, failure: str) -> None:
        if self._has_stopped:
            return
        print(self._message(failure), file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(LOST_CODE)


def start_workers(cluster: Cluster, *, silence: float) -> tuple[tf.distribute.Strategy, Workers]:
    """Connect with all workers of `cluster` and return the strategy that they train by; all have to call it.

    Args:
        cluster: all workers, and which this one is.
        silence: seconds without a sign of life after which a worker counts as lost.

    Raises:
        RuntimeError: where TensorFlow was already in use.
        WorkerLostError: where a worker cannot be reached.
    """
    logger.info("%s: waiting for all workers", cluster)
    with _patience(cluster):
        strategy = _multi_worker_strategy(cluster)
    workers = Workers(cluster)
    channel = Channel(cluster.index, len(cluster), silence=silence, on_loss=workers._on_loss)
    workers._channel = channel
    host = cluster.addresses[0].rpartition(":")[0].strip("[]")
    listener, port = listening_socket(host) if cluster.index == 0 else (None, 0)
    port, token = _said_by_first(strategy, [port, secrets.randbits(40)], cluster.index)
    if listener is not None:
        channel.accept(listener, str(token))
    else:
        channel.connect(host, port, str(token))
    atexit.register(workers._leave, channel)
    return strategy, workers


def _multi_worker_strategy(cluster: Cluster) -> tf.distribute.Strategy:
    import tensorflow as tf

    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(cluster.addresses)}),
        task_type="worker",
        task_id=cluster.index,
        rpc_layer="grpc",
    )
    return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)


def _said_by_first(strategy: tf.distribute.Strategy, values: Sequence[int], index: int) -> list[int]:
    """Whole numbers of worker 0, on all workers, by a sum to which the others add nothing."""
    import tensorflow as tf

    def own() -> tf.Tensor:
        return tf.constant(values if index == 0 else [0] * len(values), tf.int64)

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def total() -> tf.Tensor:
        return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(own), axis=None)

    devices = len(strategy.extended.worker_devices)
    return [int(value) // devices for value in total().numpy()]


@contextlib.contextmanager
def _patience(cluster: Cluster) -> Iterator[None]:
    """While all wait for all: say from time to time who is missing, and give up in the end."""
    done = threading.Event()

    def watch() -> None:
        waited = 0.0
        while not done.wait(_SECONDS_TO_WARN):
            waited += _SECONDS_TO_WARN
            missing = ", ".join(unreachable(cluster.addresses)) or "none: all are there by now"
            if waited < _SECONDS_TO_START:
                logger.warning("%s has waited %.0f s; not there yet: %s", cluster, waited, missing)
                continue
            print(f"error: {cluster} gave up after {waited:.0f} s; not there: {missing}", file=sys.stderr, flush=True)
            os._exit(LOST_CODE)

    threading.Thread(target=watch, name="workers-start", daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _abort_collectives(reason: str) -> None:
    """Let sums over workers that are under way fail at once.

    The only use of TensorFlow's insides; without it they fail when the connection breaks, or the process is ended.
    """
    import tensorflow as tf
    from tensorflow.python.eager import context

    abort = getattr(context.context(), "abort_collective_ops", None)
    if abort is not None:
        abort(tf.errors.UNAVAILABLE, reason)
