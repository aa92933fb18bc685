"""What recommenders answer with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

Id: TypeAlias = str | int
# Where an answer comes from: the model, or, for users without a usable history, the model by their features alone where
# it takes any and knows some, or else the popularity of items.
Origin: TypeAlias = Literal["model", "features", "popularity"]


@dataclass(frozen=True)
class Recommendations:
    """Items for one user, best first, with the model's scores: fewer than asked for where no more are there."""

    user: Id
    items: tuple[Id, ...]
    scores: tuple[float, ...]
    origin: Origin = "model"

    def __len__(self) -> int:
        return len(self.items)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        scores = [round(score, 6) for score in self.scores]
        return {"user": self.user, "items": list(self.items), "scores": scores, "origin": self.origin}


@dataclass(frozen=True)
class Scores:
    """Scores of some items for one user, in the order in which they were asked for."""

    user: Id
    items: tuple[Id, ...]
    scores: tuple[float, ...]
    origin: Origin = "model"

    @property
    def score(self) -> float:
        """The first, which is the only one where a pair was asked for."""
        return self.scores[0]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        scores = [round(score, 6) for score in self.scores]
        return {"user": self.user, "items": list(self.items), "scores": scores, "origin": self.origin}


@dataclass(frozen=True)
class SimilarItems:
    """The items most similar to one item, most similar first."""

    item: Id
    items: tuple[Id, ...]
    scores: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"item": self.item, "items": list(self.items), "scores": [round(score, 6) for score in self.scores]}


@dataclass(frozen=True)
class Explanation:
    """Why an item: the items of the user's history with their parts in it, largest first.

    With `exact`, the parts add up to the score (of ratings: to what the history adds to the item's own level).
    Otherwise they are similarities.
    """

    user: Id
    item: Id
    score: float
    because: tuple[tuple[Id, float], ...]
    exact: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        because = [[item, round(part, 6)] for item, part in self.because]
        return {"user": self.user, "item": self.item, "score": round(self.score, 6), "because": because}


@dataclass(frozen=True)
class RowScore:
    """The score of a row: the probability of a click, or a rating. `id` is the row's, where its table has ids."""

    score: float
    id: Id | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        score = {"score": round(self.score, 6)}
        return score if self.id is None else {"id": self.id, **score}
