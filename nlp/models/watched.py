"""Values of variables, and whether they are still what they were."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf


def on_cpu(variable: keras.Variable) -> bool:
    """Whether a variable lies on a CPU."""
    return tf.DeviceSpec.from_string(variable.value.device).device_type in (None, "CPU")


class Watched:
    """Variables on a CPU whose values are kept, so that any change is seen.

    They are kept without copies: while they are, TensorFlow writes new values elsewhere. So who is about to change them
    for good should `forget` them first, or they take memory twice. Of a variable of which rows were once written alone
    TensorFlow gives copies: it counts as changed ever after.
    """

    def __init__(self, variables: Sequence[keras.Variable]) -> None:
        self.values: list[tf.Tensor] = []

        def read() -> list[tf.Tensor]:
            with tf.device("CPU"):
                return [tf.convert_to_tensor(variable.value) for variable in variables]

        self._read = tf.function(read, autograph=False).get_concrete_function()

    def changed(self) -> bool:
        """Whether any was written since this was asked last, or since `forget`. `values` are the present ones then."""
        values: list[tf.Tensor] = self._read()
        same = len(values) == len(self.values) and all(map(_in_one_place, values, self.values))
        self.values = values
        return not same

    def forget(self) -> None:
        """Keep nothing: values are about to change."""
        self.values = []


def _in_one_place(value: tf.Tensor, other: tf.Tensor) -> bool:
    return _place(value) == _place(other)


def _place(tensor: tf.Tensor) -> int:
    place: int = np.asarray(memoryview(tensor)).__array_interface__["data"][0]
    return place
