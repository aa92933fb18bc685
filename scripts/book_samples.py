"""Readers and the books they took home, made by chance: what the quickstart recommends from.

Each book belongs to a shelf, which its title shows. A reader loves two shelves and takes most books from these; on each
shelf, and in the whole shop, few books are taken by many and many by few.
"""

from __future__ import annotations

from typing import Any

import numpy as np

SHELVES = {
    "sea": (("Salt", "Drowned", "Outer", "Last"), ("Harbour", "Lighthouse", "Tide", "Captain", "Reef")),
    "crime": (("Quiet", "Second", "Locked", "Paid"), ("Witness", "Alibi", "Inspector", "Cellar", "Verdict")),
    "kitchen": (("Slow", "Honest", "Winter", "Borrowed"), ("Bread", "Soup", "Pantry", "Orchard", "Onion")),
    "stars": (("Silent", "Folded", "Ninth", "Frozen"), ("Orbit", "Colony", "Comet", "Signal", "Moon")),
    "garden": (("Wild", "Walled", "Small", "Late"), ("Rose", "Meadow", "Pond", "Hedge", "Beekeeper")),
    "history": (("Forgotten", "Iron", "Royal", "Burnt"), ("Treaty", "Siege", "Chronicle", "Empress", "Bridge")),
}
_LOVED = 0.85  # share of a reader's books that come from the two shelves


def shelf_of(book: str) -> str:
    """The shelf on which a book stands."""
    return book.partition(": ")[0]


def books() -> list[str]:
    """All titles, each with its shelf before it."""
    return [
        f"{shelf}: The {first} {second}"
        for shelf, words in SHELVES.items()
        for first in words[0]
        for second in words[1]
    ]


def book_loans(readers: int, *, seed: int = 0) -> Any:
    """`Interactions` of readers with books, in the order of time; a reader takes a book once."""
    from recsys import Interactions

    rng = np.random.default_rng(seed)
    titles = np.array(books(), object)
    shelves = np.array([shelf_of(title) for title in titles])
    fame = 1 / (1 + rng.permutation(len(titles)))
    loans: list[tuple[str, str]] = []
    for reader in range(readers):
        loved = np.isin(shelves, rng.permutation(list(SHELVES))[:2])
        chances = np.sqrt(fame) * np.where(loved, _LOVED / loved.sum(), (1 - _LOVED) / (~loved).sum())
        taken = rng.choice(titles, rng.integers(6, 16), replace=False, p=chances / chances.sum())
        loans += [(f"reader {reader:03d}", title) for title in taken.tolist()]
    order = rng.permutation(len(loans)).tolist()
    names, taken_titles = np.array([loans[place] for place in order], object).T
    return Interactions(names, taken_titles, timestamps=np.arange(len(loans)))
