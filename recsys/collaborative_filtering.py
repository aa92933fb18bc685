"""Collaborative filtering: config and pipeline. Who chose what is all that it knows; results are in `answers`.

SciPy and NumPy do the work. TensorFlow is imported for `.model` and for exports only.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import scipy.sparse as sp

from recsys.answering import pair_answers, recommendations, similar_answers
from recsys.answers import Explanation, Id, Recommendations, Scores, SimilarItems
from recsys.audience import Audience, Signals
from recsys.fitted import Fitted, fingerprint_of
from recsys.ids import IdIndex, numbered
from recsys.interactions import Interactions, as_interactions, pair_matrix
from recsys.item_index import ItemIndex
from recsys.models.ials import Solver
from recsys.models.item_knn import Weighting
from recsys.models.scorers import ItemScorer, PopularityScorer, Scorer
from recsys.recipes import SOLVED, factor_scorer, popularity_of, scorer_from_arrays, solved, trainer
from recsys.recommender import Recommender
from recsys.rounds import run_epochs
from shared.config import Config, option
from shared.data import Loading
from shared.pipeline import ExportFormat, FitOptions, History, Metrics
from shared.runtime import current_runtime

if TYPE_CHECKING:
    import keras

    from shared.export import ExportReport

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CollaborativeFilterConfig(Config):
    """Which model, and its hyper-parameters; those of other models have no effect."""

    model: Literal["popularity", "item_knn", "ease", "slim", "ials", "bpr", "biased_mf"] = option(
        "ease", "popularity, item_knn, ease and slim are solved at once; ials, bpr and biased_mf take epochs"
    )
    min_rating: float = option(0.0, "ratings below are no sign of liking (all models but biased_mf)")
    weighted: bool = option(False, "an interaction counts by its rating, not as 1 (all models but biased_mf)")
    neighbours: int = option(50, "neighbours of an item (item_knn)", minimum=1)
    weighting: Weighting = option("cosine", "how interactions are weighted (item_knn)")
    shrinkage: float = option(0.0, "damps similarities that rest on few users (item_knn)", minimum=0.0)
    bm25_k1: float = option(1.2, "saturation of bm25 (item_knn)", minimum=0.0)
    bm25_b: float = option(0.75, "normalisation by popularity of bm25 (item_knn)", minimum=0.0, maximum=1.0)
    ease_l2: float = option(100.0, "regularisation; grows with the data (ease)", minimum=1e-6)
    slim_l1: float = option(1.0, "regularisation that makes weights zero (slim)", minimum=0.0)
    slim_l2: float = option(10.0, "regularisation that makes weights small (slim)", minimum=0.0)
    slim_candidates: int = option(100, "items whose weights may differ from zero (slim)", minimum=1)
    factors: int = option(64, "numbers by which users and items are described (ials, bpr, biased_mf)", minimum=1)
    init_scale: float = option(0.1, "deviation of initial factors, times sqrt(factors)", minimum=1e-6)
    ials_l2: float = option(0.01, "regularisation (ials)", minimum=1e-9)
    unobserved_weight: float = option(0.1, "weight of what was not chosen (ials)", minimum=0.0)
    frequency_exponent: float = option(
        1.0, "how regularisation grows with a user's or item's frequency (ials)", minimum=0.0, maximum=1.0
    )
    ials_solver: Solver = option(
        "conjugate_gradient", "how each side is solved; exact takes several times as long (ials)"
    )
    bpr_l2: float = option(0.001, "regularisation (bpr)", minimum=0.0)
    mf_l2: float = option(2.0, "regularisation of factors (biased_mf)", minimum=1e-6)
    mf_bias_l2: float = option(5.0, "regularisation of biases (biased_mf)", minimum=1e-6)
    mf_frequency_exponent: float = option(
        0.5, "how regularisation of factors grows with frequency (biased_mf)", minimum=0.0, maximum=1.0
    )
    seed: int = option(0, "seed of the initial factors", minimum=0)


class CollaborativeFilter(Recommender):
    """Interactions in, items for users out.

    Users and items are the caller's own ids. The ladder for users: who has a history gets the model's answer, also
    when it came after training through `fold_in`; everybody else gets the most popular items (`origin` says so).
    Items that training did not have are never recommended, and their score is that of an item nobody chose.

    Example:
        >>> data = Interactions(["ann", "ann", "bob", "bob", "eve"], ["tea", "jam", "tea", "jam", "tea"])
        >>> recommender = CollaborativeFilter(CollaborativeFilterConfig(model="ease", ease_l2=1.0))
        >>> history = recommender.fit(data)
        >>> recommender.recommend(["eve"], 1)[0].items
        ('jam',)
    """

    task: ClassVar[str] = "collaborative_filtering"
    config_class: ClassVar[type[Config]] = CollaborativeFilterConfig
    config: CollaborativeFilterConfig

    def __init__(self, config: CollaborativeFilterConfig | None = None) -> None:
        super().__init__(config)
        self._fitted: Fitted | None = None
        self._network: keras.Model | None = None

    # Answers.

    def recommend(
        self,
        users: Sequence[Id],
        k: int = 10,
        *,
        seen: bool = True,
        exclude: Iterable[Id] = (),
        candidates: Iterable[Id] | None = None,
        index: ItemIndex | None = None,
    ) -> list[Recommendations]:
        """The best `k` items for each user; of equal scores the item that sorts first.

        Args:
            users: ids; unknown ones get the most popular items.
            k: at least 1. Fewer items come back where the catalogue, less what is left out, has no more.
            seen: leave out what the user has interacted with.
            exclude: items that are left out for everybody.
            candidates: the only items that may be recommended; None: the whole catalogue. Unknown ones are ignored.
            index: of `item_index`: about the best items, in a fraction of the time for very many; items that were added
                to it are recommended too.

        Raises:
            NotFittedError: before `fit`.
            TypeError: for ids of another kind than those of the training set.
            ValueError: for an index of another model, or with `candidates`.
        """
        fitted = self._parts("recommend")
        return recommendations(fitted, users, k, seen=seen, exclude=exclude, candidates=candidates, index=index)

    def item_index(self, *, links: int = 32, depth: int = 128) -> ItemIndex:
        """The items of a factor model in an index for `recommend`, for catalogues of hundreds of thousands.

        Args:
            links: links of each item in the graph; more find better and take more memory.
            depth: items that are looked at for an answer; more find better and take longer.

        Raises:
            NotFittedError: before `fit`.
            ValueError: for models without vectors of items.
            ImportError: without faiss; the message says how to install it.
        """
        return self._parts("item_index").item_index(links, depth)

    def predict(self, inputs: Sequence[Any]) -> list[Scores]:
        """Scores of pairs, in their order: ratings of biased_mf, and of the others what `recommend` ranks by.

        Unknown users get what popularity gives: the item's mean rating level (biased_mf), or the share of users who
        chose it. An item that training did not have scores as one that nobody chose: 0, or the user's mean level.

        Args:
            inputs: (user, item) pairs; in place of an item there may be a list of items for that user.

        Raises:
            NotFittedError: before `fit`.
            TypeError: for what is no pair, and for ids of another kind than those of the training set.
        """
        return pair_answers(self._parts("predict"), inputs)

    def similar_items(self, items: Sequence[Id], k: int = 10) -> list[SimilarItems]:
        """The `k` items most similar to each of `items`: weights of item models, cosines of factors.

        Raises:
            NotFittedError: before `fit`.
            ValueError: for items that training did not have, and for popularity, which knows no similarity.
        """
        return similar_answers(self._parts("similar_items"), items, k)

    def explain(self, user: Id, item: Id, k: int = 5) -> Explanation:
        """The `k` items of the user's history that speak most for `item`: "because you liked ...".

        For item models the parts add up to the score. For factors they are similarities to the item.

        Raises:
            NotFittedError: before `fit`.
            ValueError: for a user without history, an item that training did not have, and for popularity.
        """
        fitted = self._parts("explain")
        (row,) = fitted.audience.users.numbers([user])
        numbers = fitted.known_items([item])
        if isinstance(fitted.scorer, PopularityScorer):
            raise ValueError("Popularity gives everybody the same: no history explains it. Train another model.")
        if not fitted.usable(np.array([row]))[0]:
            raise ValueError(f"User {user!r} has no history to explain anything by. Give it with `fold_in`.")
        history = fitted.signals(fitted.audience.histories[[row]])
        exact = isinstance(fitted.scorer, ItemScorer)
        if isinstance(fitted.scorer, ItemScorer):
            parts = fitted.scorer.contributions(history, int(numbers[0]))
        else:
            similarities = fitted.scorer.similar(numbers)
            assert similarities is not None
            parts = similarities[0, history.indices]
        order = np.lexsort((history.indices, -parts))[:k]
        because = zip(fitted.items.ids(history.indices[order]), parts[order].tolist(), strict=True)
        return Explanation(user, item, self.predict([(user, item)])[0].score, tuple(because), exact)

    def fold_in(self, interactions: Any) -> None:
        """Take in interactions that came after training, of new users or known ones; the model stays as it is.

        Their users get the model's answers from now on, and `save` keeps them. Items that training did not have are
        left out.
        """
        fitted = self._parts("fold_in")
        self._fitted = fitted.joined_by(as_interactions(interactions, name="interactions"))
        self._network = None

    def evaluate(
        self,
        data: Any,
        *,
        max_bad_share: float = 0.01,
        seen: Interactions | None = None,
        cutoffs: Sequence[int] = (10,),
        negatives: int = 0,
        seed: int = 0,
    ) -> Metrics:
        """How well held-out interactions are found again, as means over their users.

        The whole catalogue is ranked, less what the user has seen. Users without history count with the popularity
        answer, held-out items that training did not have as not found; `details` says how many there were, and has a
        95 % bootstrap interval over users for each metric.

        Args:
            data: held-out `Interactions`; those below `min_rating` are left out.
            max_bad_share: has no effect here: readers refuse bad rows.
            seen: what is known of users beside the training set, as for users who were not in it.
            cutoffs: the k of `recall@k` and so on.
            negatives: rank each held-out item among so many sampled ones instead; such figures have names of their
                own (`sampled_100_ndcg@10`), and are not comparable with the others.
            seed: of the sampled items.

        Returns:
            `ndcg@k`, `recall@k`, `mrr@k`, `hit@k`, `map@k` for each k, `coverage@k` and `novelty`; and `rmse` of
            biased_mf where `data` has ratings.
        """
        fitted = self._parts("evaluate")
        held = as_interactions(data)
        fitted = fitted if seen is None else fitted.joined_by(seen)
        self.metrics = fitted.metrics(held, tuple(cutoffs), negatives=negatives, seed=seed)
        return self.metrics

    @property
    def model(self) -> keras.Model:
        """A Keras model with a copy of the weights: user numbers (B,) -> scores of all items (B, I), float32."""
        fitted = self._parts("model")
        if self._network is None:
            from recsys.models.network import recommender_network

            self._network = recommender_network(
                fitted.scorer, fitted.audience.represented, fitted.audience.usable, fitted.popular.popularity
            )
        return self._network

    # Training.

    def _fit(self, train: Any, validation: Any, options: FitOptions) -> History:
        if options.checkpoint is not None:  # all workers would write to it
            current_runtime().workers.require_alone(type(self).__name__)
        data = as_interactions(train, name="train")
        held = None if validation is None else as_interactions(validation, name="validation")
        if options.profile is not None:
            raise ValueError("`profile` is for pipelines that train a network in steps. Leave it out here.")
        if self.config.model == "biased_mf" and data.ratings is None:
            raise ValueError("biased_mf learns from ratings, and `train` has none. Choose another model, or give them.")
        signals = self._signals(rated=data.ratings is not None)
        (user_ids, rows), (item_ids, columns) = numbered(data.users), numbered(data.items)
        users, items = IdIndex(user_ids, "user"), IdIndex(item_ids, "item")
        shape = (len(users), len(items))
        histories = pair_matrix(rows, columns, shape, values=data.ratings, timestamps=data.timestamps)
        matrix = signals(histories)
        if not matrix.nnz:
            raise ValueError(f"No interaction has a rating of at least {self.config.min_rating}. Lower `min_rating`.")
        fingerprint = fingerprint_of(users, items, histories)
        self.provenance["data"] = {"fingerprint": fingerprint, "num_examples": len(data)}
        popular = PopularityScorer(popularity_of(matrix))

        def show(scorer: Scorer) -> None:
            audience = Audience.of_training(users, histories, matrix, scorer)
            self._fitted, self._network = Fitted(items, scorer, audience, popular, signals), None

        def validate() -> Metrics:
            assert held is not None
            return self._parts("evaluate").metrics(held, (10,))

        score = None if held is None else validate
        if self.config.model in SOLVED:
            history = self._solve(matrix, show, score, options)
        else:
            history = self._train(matrix, show, score, options, fingerprint)
        return replace(history, bad_records=tuple(map(str, data.bad_records)))

    def _solve(self, matrix: sp.csr_matrix, show: Any, validate: Any, options: FitOptions) -> History:
        started = time.monotonic()
        show(solved(self.config, matrix))
        seconds = time.monotonic() - started
        if validate is not None:
            metrics: Metrics = validate()
            logger.info("validation  %s", metrics)
            if options.after_epoch is not None:
                options.after_epoch({"epoch": 1, **{f"validation_{name}": value for name, value in metrics.items()}})
        return History(wall_seconds=seconds)

    def _train(self, matrix: sp.csr_matrix, show: Any, validate: Any, options: FitOptions, fingerprint: str) -> History:
        course = trainer(self.config, matrix, options.training)
        offset = {"offset": np.array([course.mean], np.float32)} if hasattr(course, "mean") else {}

        def scorer() -> Scorer:
            return factor_scorer(self.config, {**course.arrays, **offset})

        def validated() -> tuple[float, Metrics]:
            show(scorer())
            metrics: Metrics = validate()
            return (-metrics["rmse"] if "rmse" in metrics else metrics.first), metrics

        training = options.training
        history = run_epochs(
            course,
            options,
            num_examples=matrix.nnz,
            fingerprint={
                **self.config.to_dict(),
                "data": fingerprint,
                "training": [training.learning_rate, training.batch_size, training.seed],
            },
            validate=None if validate is None else validated,
        )
        show(scorer())
        return history

    def _evaluate(self, data: Any, loading: Loading) -> Metrics:
        return self.evaluate(data)

    def _signals(self, *, rated: bool) -> Signals:
        config = self.config
        return Signals(config.model == "biased_mf", config.min_rating, config.weighted, rated)

    # Files.

    def _manifest(self) -> dict[str, Any]:
        return {"rated": self._parts("save").signals.rated}

    def _write(self, directory: Path) -> None:
        self._parts("save").write(directory)

    @classmethod
    def _from_directory(cls, directory: Path, config: CollaborativeFilterConfig, manifest: Mapping[str, Any]) -> Self:
        recommender = cls(config)
        signals = recommender._signals(rated=bool(manifest["rated"]))
        recommender._fitted = Fitted.read(directory, signals, lambda arrays: scorer_from_arrays(config, arrays))
        return recommender

    def _export(self, path: Path, format: ExportFormat) -> ExportReport:
        if format != "saved_model":
            raise ValueError(
                f"Recommenders are exported as saved_model, which takes raw ids and k; {format} has no tables for "
                "them. For tensors, convert `.model`."
            )
        from recsys.models.serving import export_recommender

        return export_recommender(path, self._parts("export"), self.model)
