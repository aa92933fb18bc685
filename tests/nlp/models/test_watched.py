"""Values of variables that are watched."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from nlp.models.watched import Watched


def test_every_change_is_seen_once() -> None:
    variables = [keras.Variable(np.full((2, 3), number, np.float32)) for number in (1, 2)]
    watched = Watched(variables)
    assert watched.changed()
    np.testing.assert_array_equal(watched.values[1], np.full((2, 3), 2))
    assert not watched.changed()
    for change in (
        lambda: variables[1].assign(np.full((2, 3), 3)),
        lambda: variables[0].value.assign_add(np.ones((2, 3))),
    ):
        before = [value.numpy().copy() for value in watched.values]
        kept = watched.values
        change()
        for value, copy in zip(kept, before, strict=True):
            np.testing.assert_array_equal(value, copy)
        assert watched.changed()
        assert not watched.changed()
    np.testing.assert_array_equal(watched.values[0], np.full((2, 3), 2))


def test_a_variable_of_which_rows_were_written_counts_as_changed() -> None:
    variable = keras.Variable(np.zeros((2, 3), np.float32))
    watched = Watched([variable])
    assert watched.changed()
    before = watched.values[0]
    variable.value.scatter_update(tf.IndexedSlices([[7.0, 7, 7]], [1]))
    assert watched.changed()
    np.testing.assert_array_equal(before, np.zeros((2, 3)))
    np.testing.assert_array_equal(watched.values[0], [[0, 0, 0], [7, 7, 7]])


def test_what_is_forgotten_counts_as_changed() -> None:
    watched = Watched([keras.Variable(np.zeros(4))])
    assert watched.changed()
    watched.forget()
    assert not watched.values
    assert watched.changed()
