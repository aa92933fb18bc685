"""Where a checkpoint's tensors lie in a network."""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np


@dataclass(frozen=True)
class Place:
    """Where a checkpoint's tensor lies in the network: in a variable, or in one of the equal parts of its columns.

    `transposed`: PyTorch has matrices as (out, in) and convolutions as (out, in, width): all axes the other way round.
    `as_row`: the checkpoint has the vector as a matrix of one row.
    """

    variable: keras.Variable
    transposed: bool = False
    part: int = 0
    num_parts: int = 1
    as_row: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the checkpoint's tensor."""
        *rows, columns = self.variable.shape
        shape = (*rows, columns // self.num_parts)
        shape = (1, *shape) if self.as_row else shape
        return shape[::-1] if self.transposed else shape

    def value(self) -> np.ndarray:
        """The tensor as a checkpoint has it."""
        value: np.ndarray = self.variable.numpy()[..., self._columns]
        value = value[None] if self.as_row else value
        return value.T if self.transposed else value

    def assign(self, value: np.ndarray) -> None:
        """Put a checkpoint's tensor in its place."""
        value = np.asarray(value, np.float32)
        value = value[0] if self.as_row else value
        if self.num_parts == 1:
            self.variable.assign(value.T if self.transposed else value)
            return
        whole = self.variable.numpy().copy()
        whole[..., self._columns] = value.T if self.transposed else value
        self.variable.assign(whole)

    @property
    def _columns(self) -> slice:
        width = self.variable.shape[-1] // self.num_parts
        return slice(self.part * width, (self.part + 1) * width)


def linear_places(name: str, layer: keras.layers.Layer, *, part: int = 0, num_parts: int = 1) -> dict[str, Place]:
    """The places of weight and bias of a linear map, or of one of the equal parts of one."""
    places = {f"{name}.weight": Place(layer.kernel, transposed=True, part=part, num_parts=num_parts)}
    return places | ({f"{name}.bias": Place(layer.bias, part=part, num_parts=num_parts)} if layer.use_bias else {})


def norm_places(name: str, layer: keras.layers.Layer) -> dict[str, Place]:
    """The places of a norm's weights; a norm of the mean square has no bias."""
    if isinstance(layer, keras.layers.RMSNormalization):
        return {f"{name}.weight": Place(layer.scale)}
    return {f"{name}.weight": Place(layer.gamma), f"{name}.bias": Place(layer.beta)}
