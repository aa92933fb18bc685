"""The users of a recommender: who is known, what they have interacted with, and how the model sees them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from recsys.ids import IdIndex
from recsys.interactions import Interactions, interaction_matrix
from recsys.models.scorers import FactorScorer, Scorer, Users
from recsys.sequences import Sequences


@dataclass(frozen=True)
class Signals:
    """How a user's interactions become the numbers that an implicit or a rating model is trained on.

    `explicit` keeps ratings as they are. Otherwise those below `min_rating` are no sign of liking and are left out, and
    the rest count 1 each, or by their rating with `weighted`.
    """

    explicit: bool = False
    min_rating: float = 0.0
    weighted: bool = False
    rated: bool = True

    def __call__(self, histories: sp.csr_matrix) -> sp.csr_matrix:
        """The training matrix, of the same shape, from `histories` whose entries are ratings, or 1 without them."""
        if self.explicit or not self.rated:
            return histories
        kept = _selected(histories, histories.data >= self.min_rating)
        if self.weighted and (kept.data <= 0).any():
            raise ValueError("Ratings that are weights must be positive. Raise `min_rating`, or do not weight.")
        if not self.weighted:
            kept.data = np.ones_like(kept.data)
        return kept

    def liked(self, data: Interactions) -> Interactions:
        """The interactions that are signs of liking."""
        if self.explicit or data.ratings is None:
            return data
        return data.take(data.ratings >= self.min_rating)


@dataclass(frozen=True, eq=False)
class Audience:
    """Users with their histories (U, I), and the users as the scorer takes them; `usable` (U,): the model has a say.

    `by_features`, bool (U,), are those of whom it knows features and no history; None where there are none.
    """

    users: IdIndex
    histories: sp.csr_matrix
    represented: Users
    usable: np.ndarray
    by_features: np.ndarray | None = None

    @classmethod
    def of_training(cls, users: IdIndex, histories: sp.csr_matrix, matrix: sp.csr_matrix, scorer: Scorer) -> Audience:
        """The users of the training set: with their trained vectors, where the model has them."""
        represented = scorer.users if isinstance(scorer, FactorScorer) else matrix
        return cls(users, histories, represented, np.diff(matrix.indptr) > 0)

    def joined_by(self, more: Interactions, items: IdIndex, scorer: Scorer, signals: Signals) -> Audience:
        """This audience with further interactions of its users or of new ones; nothing is trained.

        A pair that is there already takes its new rating. Interactions with items that the model does not know are
        left out.
        """
        users = self.users.extended(more.users)
        values = more.ratings if signals.rated else None
        if signals.rated and values is None:
            raise ValueError("The model was trained on ratings, and these interactions have none. Give them ratings.")
        fresh = interaction_matrix(more, users, items, values=values)
        histories = _overlaid(_with_rows(self.histories, len(users)), fresh)
        matrix = signals(histories)
        touched = np.flatnonzero(np.diff(fresh.indptr) > 0)
        if isinstance(scorer, FactorScorer):
            assert isinstance(self.represented, np.ndarray)
            represented = np.zeros((len(users), self.represented.shape[1]), np.float32)
            represented[: len(self.represented)] = self.represented
            fixed = np.append(scorer.fixed, np.zeros(len(users) - len(scorer.fixed), bool))
            chose = np.diff(matrix.indptr) > 0
            # What nobody is known to have liked says nothing, but to those who had no vector at all.
            told = chose[touched] | (touched >= len(self.users))
            touched = touched[told & ~fixed[touched]]
            if len(touched):
                represented[touched] = scorer.represent(matrix[touched])
            if self.by_features is None:
                return Audience(users, histories, represented, chose)
            by_features = np.append(self.by_features, np.zeros(len(users) - len(self.users), bool)) & ~chose
            return Audience(users, histories, represented, chose | by_features, by_features)
        if isinstance(self.represented, Sequences):
            later = Sequences.of(signals.liked(more), users, items)
            sequences = self.represented.followed_by(later)
            return Audience(users, histories, sequences, sequences.lengths > 0)
        return Audience(users, histories, matrix, np.diff(matrix.indptr) > 0)


def _selected(matrix: sp.csr_matrix, kept: np.ndarray) -> sp.csr_matrix:
    """The entries that are `kept`, bool (entries,); a rating of 0 is an entry too."""
    offsets = np.concatenate([[0], np.cumsum(kept)])[matrix.indptr]
    return sp.csr_matrix((matrix.data[kept], matrix.indices[kept], offsets), shape=matrix.shape)


def _with_rows(matrix: sp.csr_matrix, count: int) -> sp.csr_matrix:
    """The matrix with empty rows at its end, `count` in all."""
    offsets = np.concatenate([matrix.indptr, np.full(count - matrix.shape[0], matrix.indptr[-1])])
    return sp.csr_matrix((matrix.data, matrix.indices, offsets), shape=(count, matrix.shape[1]))


def _overlaid(old: sp.csr_matrix, new: sp.csr_matrix) -> sp.csr_matrix:
    """Entries of both; those of `new` where both have one. A rating of 0 is an entry too."""
    rows, columns, values = [], [], []
    for matrix in (old, new):
        rows.append(np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr)))
        columns.append(matrix.indices)
        values.append(matrix.data)
    keys = np.concatenate(rows) * max(1, old.shape[1]) + np.concatenate(columns)
    order = np.argsort(keys, kind="stable")
    last = np.ones(len(order), bool)
    last[:-1] = keys[order][1:] != keys[order][:-1]
    kept = order[last]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(np.concatenate(rows)[kept], minlength=old.shape[0]))])
    return sp.csr_matrix((np.concatenate(values)[kept], np.concatenate(columns)[kept], offsets), shape=old.shape)
