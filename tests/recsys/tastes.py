"""Made interactions with something to learn in them: users choose among the items of their own taste."""

from __future__ import annotations

import numpy as np

from recsys import Interactions, Split
from recsys.splitting import leave_one_out

TASTES, ITEMS_EACH = 3, 10


def tastes(users: int = 60, chosen: int = 6, seed: int = 0) -> Interactions:
    """Users of three tastes with `chosen` of their taste's ten items, rated 4 or 5, and a stranger rated 1 or 2."""
    rng = np.random.default_rng(seed)
    rows: list[tuple[str, int, float]] = []
    for user in range(users):
        taste = user % TASTES
        own = 100 * (taste + 1) + rng.permutation(ITEMS_EACH)[:chosen]
        stranger = 100 * ((taste + 1) % TASTES + 1) + int(rng.integers(ITEMS_EACH))
        items = [(int(item), float(rng.integers(4, 6))) for item in own] + [(stranger, float(rng.integers(1, 3)))]
        # The stranger comes first in time, so that what is left out in the end belongs to the taste.
        rows += [(f"u{user:03d}", item, rating) for item, rating in items[::-1]]
    names, items, ratings = zip(*rows, strict=True)
    return Interactions(list(names), list(items), list(ratings), np.arange(len(rows)))


def split(seed: int = 0) -> Split:
    """The last item of each user left out."""
    return leave_one_out(tastes(seed=seed))
