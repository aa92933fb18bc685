"""A trained recommender without its config: catalogue, users, scorer, and how they answer together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from recsys.answers import Id
from recsys.audience import Audience, Signals
from recsys.evaluation import HeldOut, full_ranking, sampled_ranking
from recsys.ids import IdIndex, numbered
from recsys.interactions import Interactions
from recsys.item_index import ItemIndex
from recsys.metrics import rmse
from recsys.models.ials import pair_products
from recsys.models.scorers import Arrays, FactorScorer, PopularityScorer, Scorer
from recsys.sequences import Sequences
from shared.distribution import Portion
from shared.pipeline import Metrics
from shared.scoring import measured

_WEIGHTS = "model.safetensors"
_HISTORY = ("data", "indices", "indptr")
_SEQUENCES = ("offsets", "items")
# Items whose vectors tell whether an index is of a model.
_COMPARED = 8
_ALL = Portion()


@dataclass(frozen=True, eq=False)
class Fitted:
    """The parts of a trained recommender. Users and items are numbers here, -1 for unknown ones."""

    items: IdIndex
    scorer: Scorer
    audience: Audience
    popular: PopularityScorer
    signals: Signals

    def joined_by(self, more: Interactions) -> Fitted:
        """The same with further interactions of its users or new ones; nothing is trained."""
        return replace(self, audience=self.audience.joined_by(more, self.items, self.scorer, self.signals))

    # Answers.

    def usable(self, users: np.ndarray) -> np.ndarray:
        """Whether the model has a say on each of these users: bool (B,)."""
        return np.asarray((users >= 0) & np.append(self.audience.usable, False)[users])

    def ranked(
        self,
        users: np.ndarray,
        k: int,
        *,
        seen: bool = True,
        blocked: np.ndarray | None = None,
        index: ItemIndex | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best items and their scores, (B, min(k, I)), -1 and -inf where there are no more.

        Users on whom the model has no say get the popular items. With `seen`, what users have interacted with is left
        out; so is what is `blocked`, bool (I,). An `index` is searched in place of the catalogue, which may have fewer
        items.
        """
        width = min(k, len(self.items))
        offset = self.scorer.offset if isinstance(self.scorer, FactorScorer) else 0.0
        numbers = np.full((len(users), width), -1, np.int64)
        scores = np.full((len(users), width), -np.inf, np.float32)
        usable = self.usable(users)
        for part, by_model in ((usable, True), (~usable, False)):
            if part.any():
                histories = rows_or_empty(self.audience.histories, users[part])
                hidden = histories if seen else None
                if by_model and index is not None:
                    represented = np.asarray(self.audience.represented[users[part]])
                    found, values = index.best(represented, width, hidden=hidden, blocked=blocked)
                    values += np.float32(offset)
                elif by_model:
                    represented = self.audience.represented[users[part]]
                    found, values = self.scorer.best(represented, width, hidden=hidden, blocked=blocked)
                else:
                    fewer = None if blocked is None else blocked[: self.popular.num_items]
                    found, values = self.popular.best(histories, width, hidden=hidden, blocked=fewer)
                place = np.flatnonzero(part)[:, None], np.arange(found.shape[1])
                numbers[place], scores[place] = found, values
        return numbers, scores

    def item_index(self, links: int, depth: int) -> ItemIndex:
        """The items of a factor model in an index.

        Raises:
            ValueError: for other models.
        """
        if not isinstance(self.scorer, FactorScorer):
            raise ValueError("Only factor models have vectors of items: ials, bpr and biased_mf. Train one of these.")
        return ItemIndex(self.items.entries.tolist(), self.scorer.items, links=links, depth=depth)

    def over(self, index: ItemIndex) -> Fitted:
        """The same with the items of an index that `item_index` made, and those that were added to it.

        Raises:
            ValueError: for an index of another model, or of this one before it was trained again.
        """
        scorer = self.scorer
        if not isinstance(scorer, FactorScorer):
            raise ValueError("Only factor models are searched by an index: ials, bpr and biased_mf. Leave out `index`.")
        fits = index.dim == scorer.items.shape[1] and len(index) >= len(self.items)
        fits = fits and np.array_equal(index.items.entries[: len(self.items)], self.items.entries)
        if fits:  # another training on the same items shows in a few vectors
            places = np.linspace(0, len(self.items) - 1, min(_COMPARED, len(self.items))).astype(np.int64)
            vectors = index.vectors(self.items.ids(places))
            fits = np.array_equal(vectors, scorer.items[places].astype(np.float32))
        if not fits:
            raise ValueError(
                "The index is not of this model as it is now, trained on these items. Make one with `item_index()`."
            )
        return replace(self, items=index.items)

    def pair_scores(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Scores of pairs, float32 (N,)."""
        usable = self.usable(users)
        if self.signals.explicit:
            return self._ratings(users, items, usable)
        scores = np.zeros(len(users), np.float32)
        here = usable & (items >= 0)
        if here.any():
            scores[here] = self.scorer.pair_scores(self.audience.represented, users[here], items[here])
        popular = ~usable & (items >= 0)
        scores[popular] = self.popular.popularity[items[popular]]
        return scores

    def _ratings(self, users: np.ndarray, items: np.ndarray, usable: np.ndarray) -> np.ndarray:
        """Ratings within the range of those in training; of what is unknown, vector and bias are 0."""
        scorer, vectors = self.scorer, self.audience.represented
        assert isinstance(scorer, FactorScorer)
        assert isinstance(vectors, np.ndarray)
        nobody, nothing = (np.zeros((1, vectors.shape[1]), np.float32) for _ in range(2))
        nobody[0, -1], nothing[0, -2] = 1, 1
        left, right = np.vstack([vectors, nobody]), np.vstack([scorer.items, nothing])
        scores = pair_products(left, np.where(usable, users, len(vectors)), right, np.where(items >= 0, items, -1))
        known = self.audience.histories.data
        return np.clip(scores + np.float32(scorer.offset), known.min(), known.max())

    def known_items(self, items: Sequence[Id]) -> np.ndarray:
        """Numbers of items, all of which must be in the catalogue.

        Raises:
            ValueError: naming some that are not.
        """
        numbers = self.items.numbers(items)
        if (numbers < 0).any():
            missing = [items[place] for place in np.flatnonzero(numbers < 0)[:3]]
            raise ValueError(f"{int((numbers < 0).sum())} items were not in the training set, such as {missing}.")
        return numbers

    def blocked(self, exclude: Iterable[Id], candidates: Iterable[Id] | None) -> np.ndarray | None:
        """The items that are not to be recommended to anybody, bool (I,); None where there are none."""
        excluded = self.items.numbers(list(exclude))
        if not len(excluded) and candidates is None:
            return None
        blocked = np.zeros(len(self.items), bool)
        if candidates is not None:
            allowed = self.items.numbers(list(candidates))
            blocked[:] = True
            blocked[allowed[allowed >= 0]] = False
        blocked[excluded[excluded >= 0]] = True
        return blocked

    # Scores.

    def metrics(
        self,
        data: Interactions,
        cutoffs: tuple[int, ...],
        *,
        negatives: int = 0,
        seed: int = 0,
        portion: Portion = _ALL,
    ) -> Metrics:
        """How well held-out `data` is found again; see `CollaborativeFilter.evaluate`.

        Of several workers, each ranks for the users of its `portion`, all call this together, and the first gets the
        metrics: full rankings only.
        """
        if not cutoffs or min(cutoffs) < 1 or negatives < 0:
            raise ValueError(
                "`cutoffs` must be whole numbers, at least one of them and each at least 1, and `negatives` 0 or more; "
                f"received {cutoffs} and {negatives}."
            )
        data = data.unique()
        held, users, details = self._held_out(data)

        def complete(values: dict[str, float], more: dict[str, Any]) -> Metrics:
            if self.signals.explicit and data.ratings is not None:
                pairs = self.audience.users.numbers(data.users), self.items.numbers(data.items)
                values["rmse"] = rmse(self.pair_scores(*pairs), data.ratings)
            return Metrics(values, details={**details, **more})

        if negatives:
            return complete(*self._sampled_ranking(held, users, cutoffs, negatives, seed))
        own = users[portion.span(len(users))]
        return measured(
            {"items": self.ranked(own, max(cutoffs))[0]},
            lambda found: complete(*full_ranking(held, found["items"], cutoffs)),
            portion,
            lambda: hashlib.sha256(b"".join(part.tobytes() for part in (users, held.rows, held.items))).hexdigest(),
        )

    def _sampled_ranking(
        self, held: HeldOut, users: np.ndarray, cutoffs: tuple[int, ...], negatives: int, seed: int
    ) -> tuple[dict[str, float], dict[str, Any]]:
        histories = rows_or_empty(self.audience.histories, users)
        owners = np.repeat(np.arange(len(users)), np.diff(histories.indptr))
        return sampled_ranking(
            held,
            lambda rows, items: self.pair_scores(users[rows], items),
            cutoffs,
            negatives=negatives,
            seen_keys=owners * len(self.items) + histories.indices,
            seed=seed,
        )

    def _held_out(self, data: Interactions) -> tuple[HeldOut, np.ndarray, dict[str, Any]]:
        """The pairs to be found, the numbers of their users, and what was left out."""
        if data.ratings is not None and not self.signals.explicit:
            data = data.take(data.ratings >= self.signals.min_rating)
        entries, places = numbered(data.users)
        known, items = self.audience.users.numbers(entries), self.items.numbers(data.items)
        seen = rows_or_empty(self.audience.histories, known)
        owners = np.repeat(np.arange(len(known)), np.diff(seen.indptr))
        again = (items >= 0) & np.isin(places * len(self.items) + items, owners * len(self.items) + seen.indices)
        if again.all():
            raise ValueError(
                "There is nothing to be found: all of these interactions were seen before, or are rated below "
                "`min_rating`. Give held-out ones."
            )
        kept, rows = np.unique(places[~again], return_inverse=True)
        num_users = self.audience.histories.shape[0]
        counts = np.round(self.popular.popularity * num_users)
        held = HeldOut(rows, items[~again], len(kept), len(self.items), counts, num_users)
        details = {
            "users": len(kept),
            "users_without_history": int(np.count_nonzero(~self.usable(known[kept]))),
            "unknown_items": int(np.count_nonzero(held.items < 0)),
            "seen_before": int(np.count_nonzero(again)),
        }
        return held, known[kept], details

    # Files.

    def write(self, directory: Path) -> None:
        """Vocabularies of users and items, and all arrays in one file."""
        from safetensors.numpy import save_file

        self.audience.users.save(directory / "users.vocab.txt")
        self.items.save(directory / "items.vocab.txt")
        arrays = {f"model/{name}": array for name, array in self.scorer.arrays().items()}
        arrays |= {f"histories/{name}": getattr(self.audience.histories, name) for name in _HISTORY}
        arrays["popularity"] = self.popular.popularity
        if self.audience.by_features is not None:
            arrays["by_features"] = self.audience.by_features
        if isinstance(self.audience.represented, np.ndarray):
            arrays["model/users"] = self.audience.represented  # those who were folded in too
        if isinstance(self.audience.represented, Sequences):
            arrays |= {f"sequences/{name}": getattr(self.audience.represented, name) for name in _SEQUENCES}
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, directory / _WEIGHTS)

    @classmethod
    def read(cls, directory: Path, signals: Signals, scorer_from: Any) -> Fitted:
        """What `write` wrote; `scorer_from` makes the scorer of its arrays."""
        from safetensors.numpy import load_file

        users = IdIndex.load(directory / "users.vocab.txt", "user")
        items = IdIndex.load(directory / "items.vocab.txt", "item")
        arrays = load_file(directory / _WEIGHTS)
        own: Arrays = {key.removeprefix("model/"): array for key, array in arrays.items() if key.startswith("model/")}
        scorer: Scorer = scorer_from(own)
        parts = tuple(arrays[f"histories/{name}"] for name in _HISTORY)
        histories = sp.csr_matrix(parts, shape=(len(users), len(items)))
        if "sequences/items" in arrays:
            sequences = Sequences(*(arrays[f"sequences/{name}"] for name in _SEQUENCES))
            audience = Audience(users, histories, sequences, sequences.lengths > 0)
        else:
            audience = Audience.of_training(users, histories, signals(histories), scorer)
        if "by_features" in arrays:
            known = arrays["by_features"]
            audience = replace(audience, usable=audience.usable | known, by_features=known)
        return cls(items, scorer, audience, PopularityScorer(arrays["popularity"]), signals)


def rows_or_empty(matrix: sp.csr_matrix, rows: np.ndarray) -> sp.csr_matrix:
    """Rows of a matrix by number; -1 gives an empty one."""
    lengths = np.where(rows >= 0, np.diff(matrix.indptr)[rows], 0)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    places = np.repeat(matrix.indptr[np.maximum(rows, 0)] - offsets[:-1], lengths) + np.arange(offsets[-1])
    return sp.csr_matrix((matrix.data[places], matrix.indices[places], offsets), shape=(len(rows), matrix.shape[1]))


def fingerprint_of(users: IdIndex, items: IdIndex, histories: sp.csr_matrix) -> str:
    """A short hash of all that training sees."""
    digest = hashlib.sha256()
    for index in (users, items):
        digest.update("\0".join(map(str, index.entries.tolist())).encode("utf-8", "surrogatepass"))
    for array in (histories.indptr, histories.indices, histories.data):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
