"""Pieces of a step of decoding that XLA compiles one by one, between products that it does not take part in."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

import tensorflow as tf

_Function = TypeVar("_Function", bound=Callable[..., Any])

_compiled: ContextVar[bool] = ContextVar("compiled_pieces", default=False)


@contextlib.contextmanager
def compiled_pieces() -> Iterator[None]:
    """Within this, graphs that are made have their pieces compiled."""
    before = _compiled.set(True)
    try:
        yield
    finally:
        _compiled.reset(before)


def piece(function: _Function) -> _Function:
    """A function of tensors, and of values that never change, which is compiled within `compiled_pieces`.

    It must not use variables, so that layers share what is compiled for a size.
    """
    compiled = tf.function(function, autograph=False, jit_compile=True)

    @functools.wraps(function)
    def either(*arguments: Any) -> Any:
        return (compiled if _compiled.get() else function)(*arguments)

    return either  # type: ignore[return-value]
