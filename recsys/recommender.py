"""What all recommenders of users and items are: pipelines that answer alike from what they know once fitted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from recsys.answering import pair_answers, recommendations, similar_answers
from recsys.answers import Id, Recommendations, Scores, SimilarItems
from recsys.fitted import Fitted
from shared.pipeline import Pipeline


class Recommender(Pipeline):
    """The base of recommenders, as `Pipeline` is of all tasks; one puts what it knows into `_fitted`."""

    _fitted: Fitted | None = None

    @property
    def is_fitted(self) -> bool:
        """Whether the pipeline can answer."""
        return self._fitted is not None

    @property
    def users(self) -> tuple[Id, ...]:
        """The users it knows, those who came after training too."""
        return tuple(self._parts("users").audience.users.entries.tolist())

    @property
    def items(self) -> tuple[Id, ...]:
        """The catalogue: the items of the training set, sorted, then those added, where items can be."""
        return tuple(self._parts("items").items.entries.tolist())

    def recommend(
        self,
        users: Sequence[Id],
        k: int = 10,
        *,
        seen: bool = True,
        exclude: Iterable[Id] = (),
        candidates: Iterable[Id] | None = None,
    ) -> list[Recommendations]:
        """The best `k` items for each user; see `CollaborativeFilter.recommend`."""
        return recommendations(self._parts("recommend"), users, k, seen=seen, exclude=exclude, candidates=candidates)

    def predict(self, inputs: Sequence[Any]) -> list[Scores]:
        """Scores of pairs, in their order; see `CollaborativeFilter.predict`."""
        return pair_answers(self._parts("predict"), inputs)

    def similar_items(self, items: Sequence[Id], k: int = 10) -> list[SimilarItems]:
        """The `k` items whose vectors have the largest cosines with that of each of `items`.

        Raises:
            NotFittedError: before `fit`.
            ValueError: for items that are not in the catalogue.
        """
        return similar_answers(self._parts("similar_items"), items, k)

    def _parts(self, verb: str) -> Fitted:
        """What is known; an error that names the call to make first where nothing is."""
        self._require_fitted(verb)
        assert self._fitted is not None
        return self._fitted
