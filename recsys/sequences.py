"""What each user interacted with, in the order of time; repeats count. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from recsys.ids import IdIndex
from recsys.interactions import Interactions

NO_ITEM = -1


@dataclass(frozen=True, eq=False)
class Sequences:
    """The items of user n are `items[offsets[n] : offsets[n + 1]]`, oldest first.

    Attributes:
        offsets: int64 (U + 1,), rising.
        items: item numbers, int32 (N,).
    """

    offsets: np.ndarray
    items: np.ndarray

    @classmethod
    def of_pairs(cls, rows: np.ndarray, columns: np.ndarray, num_users: int, order: np.ndarray | None) -> Sequences:
        """Sequences from numbers of users and items, -1 for those that are left out.

        Args:
            rows: users (N,).
            columns: items (N,).
            num_users: U.
            order: timestamps (N,), of which equal ones keep the order of rows; None: the order of rows is that of time.
        """
        known = np.flatnonzero((rows >= 0) & (columns >= 0))
        keys = (rows[known],) if order is None else (order[known], rows[known])
        known = known[np.lexsort(keys)]
        offsets = np.concatenate([[0], np.cumsum(np.bincount(rows[known], minlength=num_users))]).astype(np.int64)
        return cls(offsets, columns[known].astype(np.int32))

    @classmethod
    def of(cls, data: Interactions, users: IdIndex, items: IdIndex) -> Sequences:
        """Sequences of interactions; those with an unknown user or item are left out."""
        return cls.of_pairs(users.numbers(data.users), items.numbers(data.items), len(users), data.timestamps)

    @property
    def shape(self) -> tuple[int]:
        """(U,), so that blocks of users are cut as those of matrices are."""
        return (len(self.offsets) - 1,)

    @property
    def lengths(self) -> np.ndarray:
        """Items of each user, int64 (U,)."""
        return np.diff(self.offsets)

    def __getitem__(self, rows: Any) -> Sequences:
        """The sequences in some rows: a slice, numbers, or one bool each."""
        chosen = np.arange(self.shape[0])[rows]
        lengths = self.lengths[chosen]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        places = np.arange(offsets[-1]) + np.repeat(self.offsets[chosen] - offsets[:-1], lengths)
        return Sequences(offsets, self.items[places])

    def followed_by(self, more: Sequences) -> Sequences:
        """Each sequence with that of `more` after it; `more` may have further users at its end."""
        num_users = more.shape[0]
        rows = np.concatenate([np.repeat(np.arange(part.shape[0]), part.lengths) for part in (self, more)])
        return self.of_pairs(rows, np.concatenate([self.items, more.items]), num_users, None)

    def last(self, limit: int, *, multiple: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """The last `limit` items of each, padded with -1 at the end.

        Args:
            limit: items of each that are kept.
            multiple: the padded length is rounded up to a multiple of it, for fewer shapes.

        Returns:
            Items, int32 (U, T), and how many of each are real, int32 (U,).
        """
        lengths = np.minimum(self.lengths, limit)
        width = min(-(-max(1, int(lengths.max(initial=0))) // multiple) * multiple, max(limit, 1))
        steps = np.arange(width)
        places = (self.offsets[1:] - lengths)[:, None] + steps
        real = steps < lengths[:, None]
        padded = np.full(places.shape, NO_ITEM, np.int32)
        padded[real] = self.items[places[real]]
        return padded, lengths.astype(np.int32)

    def windows(self, width: int) -> list[np.ndarray]:
        """Parts of at most `width` items, each item but a user's first once after another of the same part.

        They are cut from the end, and the first item of a part is the last of the one before it; what has fewer than
        2 items gives none.
        """
        parts = []
        for start, end in zip(self.offsets[:-1].tolist(), self.offsets[1:].tolist(), strict=True):
            while end - start > 1:
                first = max(start, end - width)
                parts.append(self.items[first:end])
                end = first + 1
        return parts
