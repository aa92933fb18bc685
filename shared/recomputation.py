"""Gradient checkpointing: activations inside a layer are forgotten and computed again in the backward pass.

Memory then holds the inputs of each layer and the insides of one, not of all, for about a third more computation (Chen
et al. 2016, arXiv:1604.06174). A layer takes part where its `call` is marked `recomputable`; nothing changes in it
except within `recomputing`, which the training step enters on request.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import keras
import tensorflow as tf
from keras.src.backend.common.variables import AutocastScope  # Keras has no public name for it

_CallT = TypeVar("_CallT", bound=Callable[..., Any])


class _Recomputing:
    """Whether layers recompute at present, and how many have done so."""

    on = False
    num_layers = 0


@contextlib.contextmanager
def recomputing(on: bool = True) -> Iterator[None]:
    """Marked layers that are called in training mode within the block recompute their activations.

    Raises:
        ValueError: where no layer in the block could.
    """
    if not on:
        yield
        return
    before = _Recomputing.on, _Recomputing.num_layers
    _Recomputing.on, _Recomputing.num_layers = True, 0
    try:
        yield
        used = _Recomputing.num_layers
    finally:
        _Recomputing.on, _Recomputing.num_layers = before
    if not used:
        raise ValueError(
            "`gradient_checkpointing` has no effect on this network, which has no transformer layers of ours. Leave it "
            "out; smaller batches with `accumulation_steps` save memory, too."
        )


def recomputable(call: _CallT) -> _CallT:
    """Mark a layer's `call`, which takes tensors and plain values and gives one tensor.

    Values and gradients are the same either way, also with dropout: the seeds drawn in the forward pass are used again.
    """

    @functools.wraps(call)
    def marked(layer: keras.layers.Layer, *arguments: Any, **options: Any) -> Any:
        if not (_Recomputing.on and options.get("training")):
            return call(layer, *arguments, **options)
        _Recomputing.num_layers += 1
        return _recomputed(layer, functools.partial(call, layer), arguments, options)

    return marked  # type: ignore[return-value]


def _recomputed(
    layer: keras.layers.Layer, call: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]
) -> tf.Tensor:
    given = (arguments, options)
    leaves = tf.nest.flatten(given)
    places = [i for i, leaf in enumerate(leaves) if tf.is_tensor(leaf) and not isinstance(leaf, keras.Variable)]
    # All that the layer reads is an input of the function below, weights and seeds too. `_value` and not `value`, which
    # is cast to the layer's precision already.
    variables, cast_to = layer.variables, layer.compute_dtype if layer.autocast else None
    states = [tf.convert_to_tensor(variable._value) for variable in variables]

    def function(*inputs: tf.Tensor) -> tuple[tf.Tensor, list[tuple[keras.Variable, tf.Tensor]]]:
        """The layer as a pure function: output, and the variables that it changes with their new values."""
        filled = list(leaves)
        for place, value in zip(places, inputs[: len(places)], strict=True):
            filled[place] = value
        values = list(zip(variables, inputs[len(places) :], strict=True))
        filled_arguments, filled_options = tf.nest.pack_sequence_as(given, filled)
        # The backward pass comes when the layer's own scope of reduced precision has ended.
        with AutocastScope(cast_to), keras.StatelessScope() as scope:
            # Not given to the scope's constructor, which would round float32 weights to the layer's precision.
            for value in values:
                scope.add_update(value)
            output = call(*filled_arguments, **filled_options)
        now = [(variable, scope.get_current_value(variable), value) for variable, value in values]
        return output, [(variable, new) for variable, new, old in now if new is not old]

    changes: list[tuple[keras.Variable, tf.Tensor]] = []

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def run(*inputs: tf.Tensor) -> tuple[tf.Tensor, Callable[..., list[tf.Tensor | None]]]:
        output, changes[:] = function(*inputs)
        return output, lambda upstream: _gradients_again(function, inputs, upstream)

    output = run(*[leaves[place] for place in places], *states)
    for variable, value in changes:
        variable.assign(value)
    return output


def _gradients_again(
    function: Callable[..., tuple[tf.Tensor, Any]], inputs: tuple[tf.Tensor, ...], upstream: tf.Tensor
) -> list[tf.Tensor | None]:
    # Nothing is computed before the gradient arrives, or all insides would be there at once again.
    with tf.control_dependencies([upstream]):
        again = [tf.identity(value) for value in inputs]
        # XLA knows no control dependencies, and would find that all of it was computed before: a 0 that it cannot
        # foresee makes it depend on the gradient. The first input is the layer's own; adding 0 changes no number.
        zero = tf.minimum(tf.abs(tf.reshape(upstream, [-1])[0]), 0.0)
        again[0] += tf.cast(zero, again[0].dtype)
        floats = [value for value in again if value.dtype.is_floating]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(floats)
            output, _ = function(*again)
        found = iter(tape.gradient(output, floats, output_gradients=upstream))
    return [next(found) if value.dtype.is_floating else None for value in again]
