"""Forward passes over windows of tokens; a network that no longer changes answers with constants for weights.

For each product oneDNN brings the weights into blocks, which takes longer than the product itself where few windows go
through at once: of constants it does so only once. In 16 bits, where products are fast, that is half of the time.
TensorFlow keeps a graph several times over, so only what gains by it becomes constant: kernels, in 16 bits, and norms.

Shapes: N windows, T tokens, K classes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from nlp.models.layers import Linear
from nlp.models.network import INPUT_NAMES
from nlp.models.watched import Watched
from shared.data import Arrays
from shared.normalization import FastLayerNormalization
from shared.runtime import current_runtime

# Making the graph with constants takes as long as so many windows of a small network.
_ENOUGH_WINDOWS = 1024
# Of kernels in 16 bits; the graph takes some ten times as much.
_MOST_BYTES = 64 * 2**20


class WindowFunction:
    """A compiled forward pass of `model` for NumPy batches (N, T) of any size: one trace serves all of them.

    Called, it computes with the model's weights as they are then. `settled` gives what to call for many windows in a
    row, during which the weights stay as they are.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self._by_variables = self._compiled(lambda inputs: model(inputs, training=False), xla=current_runtime().xla)
        self._watched: Watched | None = None
        self._lock = threading.Lock()  # pipelines answer in several threads
        self._windows = 0
        self._by_constants: Callable[..., tf.Tensor] | None = None

    def __call__(self, batch: Arrays) -> np.ndarray:
        """`token_ids`, `segment_ids` and `mask` (N, T) -> logits float32 (N, K), or (N, T, K)."""
        return _result(self._by_variables, batch)

    def settled(self, num_windows: int) -> Callable[[Arrays], np.ndarray]:
        """What to call for the next `num_windows` windows: after many with the same weights, a graph of constants."""
        if not self._may_settle():
            return self
        with self._lock:
            if self._watched is None:
                self._watched = Watched(self._model.variables)
            if self._watched.changed():
                self._windows, self._by_constants = 0, None
            self._windows += num_windows
            if self._by_constants is None and self._windows >= _ENOUGH_WINDOWS:
                self._by_constants = self._compiled(self._constant_model(self._watched.values), xla=False)
            trace = self._by_constants
        return self if trace is None else lambda batch: _result(trace, batch)

    def unsettle(self) -> None:
        """Keep nothing of the weights: they are about to change."""
        with self._lock:
            self._windows, self._by_constants = 0, None
            if self._watched is not None:
                self._watched.forget()

    def _compiled(self, model: Callable[[dict[str, tf.Tensor]], tf.Tensor], *, xla: bool) -> Callable[..., tf.Tensor]:
        ids = tf.TensorSpec((None, None), tf.int32)
        signature = [ids, ids, tf.TensorSpec((None, None), tf.bool)]

        def forward(token_ids: tf.Tensor, segment_ids: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
            inputs = dict(zip(INPUT_NAMES, (token_ids, segment_ids, mask), strict=True))
            return tf.cast(model(inputs), tf.float32)

        compiled = tf.function(forward, input_signature=signature, autograph=False, jit_compile=xla)
        # Its one trace, called without a search for it: a millisecond less for each call.
        trace: Callable[..., tf.Tensor] = compiled.get_concrete_function()
        return trace

    def _may_settle(self) -> bool:
        """Whether constants gain anything (with 32 bits the products themselves take the time), and have room."""
        if self._model.compute_dtype != "bfloat16" or current_runtime().few_shapes:
            return False
        kernels = [layer.kernel for layer in self._model._flatten_layers() if _is_product(layer)]
        return bool(kernels) and sum(2 * int(np.prod(kernel.shape)) for kernel in kernels) <= _MOST_BYTES

    def _constant_model(self, weights: list[tf.Tensor]) -> Callable[[dict[str, tf.Tensor]], tf.Tensor]:
        """The model with these weights in the place of its own, those that gain by it as constants."""
        model = self._model
        present = dict(zip((id(v) for v in model.variables), weights, strict=True))

        def constant(variable: keras.Variable, dtype: tf.DType) -> tf.Tensor:
            return tf.constant(present[id(variable)].numpy().astype(dtype.as_numpy_dtype))

        def answer(inputs: dict[str, tf.Tensor]) -> tf.Tensor:
            with keras.StatelessScope() as scope:
                for layer in model._flatten_layers():
                    if _is_product(layer) or isinstance(layer, FastLayerNormalization):
                        for variable in layer.weights:
                            kernel = _is_product(layer) and variable is layer.kernel
                            # Not as an argument of the scope, which would bring 16 bits back to 32.
                            dtype = tf.bfloat16 if kernel else tf.float32
                            scope.state_mapping[id(variable)] = constant(variable, dtype)
                logits: tf.Tensor = model(inputs, training=False)
            return logits

        return answer


def _is_product(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, Linear) and layer.compute_dtype == "bfloat16"


def _result(trace: Callable[..., tf.Tensor], batch: Arrays) -> np.ndarray:
    result: np.ndarray = trace(*(tf.convert_to_tensor(batch[key]) for key in INPUT_NAMES)).numpy()
    return result
