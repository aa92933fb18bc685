"""What every test gets: the same random numbers, whatever ran before it."""

from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np
import pytest


def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    keras: Any = sys.modules.get("keras")  # not imported for tests that do without
    if keras is not None:
        keras.utils.set_random_seed(0)


@pytest.fixture(scope="module", autouse=True)
def _seeded_module() -> None:
    """For fixtures that a module's tests share: they are made after this."""
    _seed()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    _seed()
