"""Pieces of a step of decoding that XLA compiles one by one, between products that it does not take part in."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

import tensorflow as tf

_P = ParamSpec("_P")
_T = TypeVar("_T")

_compiled: ContextVar[bool] = ContextVar("compiled_pieces", default=False)


@contextlib.contextmanager
def compiled_pieces() -> Iterator[None]:
    """Within this, graphs that are made have their pieces compiled."""
    before = _compiled.set(True)
    try:
        yield
    finally:
        _compiled.reset(before)


def piece(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """A function of tensors, and of values that never change, which is compiled within `compiled_pieces`.

    It must not use variables, so that layers share what is compiled for a size.
    """
    compiled: Callable[_P, _T] = tf.function(function, autograph=False, jit_compile=True)

    @functools.wraps(function)
    def either(*arguments: _P.args, **options: _P.kwargs) -> _T:
        return (compiled if _compiled.get() else function)(*arguments, **options)

    return either
