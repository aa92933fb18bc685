from __future__ import annotations

import time

import numpy as np
import tensorflow as tf

from shared.examples import Examples, as_source
from shared.fingerprint import data_fingerprint


def test_examples_tell_targets_contents_and_files_apart(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (1000, 4, 4), np.uint8)
    (tmp_path / "a.png").write_bytes(b"abc")
    paths = Examples([tmp_path / "a.png"], ["x"])
    cases = [
        Examples(images, ["x"] * 1000),
        Examples(images, ["x"] * 999 + ["y"]),
        Examples(images + 1, ["x"] * 1000),
        Examples(images[:999], ["x"] * 999),
        Examples(["a text"], ["x"]),
        Examples([("a", "text")], ["x"]),
        paths,
    ]
    prints = [data_fingerprint(case) for case in cases]
    assert len(set(prints)) == len(cases)
    assert prints == [data_fingerprint(case) for case in cases]
    (tmp_path / "a.png").write_bytes(b"abcd")
    assert data_fingerprint(paths) != prints[-1]


def test_that_of_a_dataset_is_of_its_first_examples():
    one, same, other = (
        data_fingerprint(as_source(tf.data.Dataset.from_tensor_slices((np.arange(30) + n, np.arange(30)))))
        for n in (0, 0, 1)
    )
    assert one == same != other


def test_that_of_many_arrays_is_cheap():
    examples = Examples(np.zeros((60_000, 28, 28), np.uint8), np.zeros(60_000, np.int64))
    start = time.monotonic()
    data_fingerprint(examples)
    assert time.monotonic() - start < 2
