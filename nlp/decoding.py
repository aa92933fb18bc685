"""From source token ids to target token ids: greedy search, beam search, sampling.

Scores and stopping are those of transformers' `generate`, so that a checkpoint gives the sequences that it gave there;
the normalisation and the coverage penalty of Wu et al. 2016 (arXiv:1609.08144, section 7) are there besides.

Shapes: B texts, S source positions, T target positions, N answers for each text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from shared.config import Config, option
from shared.runtime import current_runtime

if TYPE_CHECKING:
    from nlp.models.kept_weights import KeptWeights


@dataclass(frozen=True, kw_only=True)
class DecodingConfig(Config):
    """How targets are found, and the ids that a model gives a meaning to.

    With `num_beams` 1 the likeliest token is taken at each step, or with `sample` a random one.
    """

    num_beams: int = option(4, "beams; 1: greedy search or sampling", minimum=1, maximum=64)
    num_answers: int = option(1, "answers for each text", minimum=1, maximum=64)
    max_length: int = option(128, "longest target, its end token included", minimum=1, unit="tokens")
    max_length_factor: float = option(
        0.0, "longest target for each source token besides; 0: no such limit", minimum=0.0
    )
    min_length: int = option(0, "shortest target, without its end token", minimum=0, unit="tokens")
    length_penalty: float = option(1.0, "alpha: exponent of the length that scores are divided by")
    length_norm: Literal["power", "wu"] = option(
        "power", "divide by length^alpha, as Marian and transformers do, or by ((5 + length) / 6)^alpha"
    )
    coverage_penalty: float = option(0.0, "beta: weight of source tokens that were looked at too little", minimum=0.0)
    stop: Literal["first", "usual", "never"] = option(
        "usual",
        "end a beam search with the first `num_beams` answers; when no beam can improve on them at its present length; "
        "or at any length",
    )
    no_repeat_ngram: int = option(0, "no sequence of so many tokens occurs twice; 0: no such rule", minimum=0)
    sample: bool = option(False, "draw tokens at random; needs `num_beams` 1")
    temperature: float = option(1.0, "below 1 likely tokens become likelier (sample)", minimum=1e-3)
    top_k: int = option(0, "draw from the so many likeliest tokens; 0: all (sample)", minimum=0)
    top_p: float = option(1.0, "draw from the likeliest tokens of this probability (sample)", minimum=0.0, maximum=1.0)
    seed: int = option(0, "of the random numbers (sample)")
    scores: bool = option(True, "give scores; greedy search is a little quicker without")

    start_id: int = option(0, "token before the first", minimum=0)
    end_ids: tuple[int, ...] = option((0,), "tokens that end a target")
    pad_id: int = option(0, "what fills up shorter targets", minimum=0)
    banned_ids: tuple[int, ...] = option((), "tokens that are never chosen")
    forced_first_id: int | None = option(None, "first token of all targets")
    forced_last_id: int | None = option(None, "last token of targets of the longest length")

    def __post_init__(self) -> None:
        """Refuse fields that do not go together."""
        super().__post_init__()
        if self.sample and self.num_beams > 1:
            raise ValueError(f"`sample` draws one token at a time: needs `num_beams` 1; received {self.num_beams}.")
        if self.num_answers > self.num_beams and not self.sample:
            raise ValueError(
                f"`num_answers` {self.num_answers} needs as many beams; received `num_beams` {self.num_beams}."
            )

    @property
    def lanes(self) -> int:
        """Sequences of each text that are followed at the same time."""
        return self.num_answers if self.sample else self.num_beams


@dataclass(frozen=True)
class Decoded:
    """What was found, the best answer of each text first.

    Attributes:
        token_ids: int32 (B, N, T), without the start token, with the end token, then padded with `pad_id`.
        lengths: int32 (B, N), tokens with the end token.
        scores: float32 (B, N): the sum of the tokens' log probabilities over the length penalty, with the coverage
            penalty; NaN where none were wanted.
    """

    token_ids: np.ndarray
    lengths: np.ndarray
    scores: np.ndarray


def decode(
    model: Any,
    source_ids: np.ndarray,
    mask: np.ndarray,
    config: DecodingConfig,
    *,
    prefix: np.ndarray | None = None,
) -> Decoded:
    """Find the targets of a batch. The first call with a model and a config builds a graph, which serves all shapes.

    Kernels are turned, and in bfloat16 rounded, once, as long as they stay what they are; `forget_weights` frees these
    copies.

    Args:
        model: a `Seq2SeqTransformer` or a `RecurrentSeq2Seq`.
        source_ids: int32 (B, S).
        mask: bool (B, S), True for real tokens.
        config: how.
        prefix: int32 (B, P), tokens that targets begin with; -1 fills up the shorter ones. They count neither in scores
            nor in the length of the penalty.

    Raises:
        ValueError: where shapes do not fit, or a target may become longer than the model has positions for.
    """
    source_ids, mask = np.asarray(source_ids, np.int32), np.asarray(mask, bool)
    if source_ids.ndim != 2 or source_ids.shape != mask.shape:
        raise ValueError(
            f"`source_ids` and `mask` must have one shape, (B, S); received {source_ids.shape} and {mask.shape}."
        )
    prefix = np.zeros((len(source_ids), 0), np.int32) if prefix is None else np.asarray(prefix, np.int32)
    if prefix.ndim != 2 or len(prefix) != len(source_ids) or prefix.shape[1] >= config.max_length:
        raise ValueError(
            f"`prefix` must have shape (B, P), B {len(source_ids)} and P below `max_length` {config.max_length}; "
            f"received {prefix.shape}."
        )
    if not len(source_ids):
        empty = np.zeros((0, config.num_answers), np.int32)
        return Decoded(np.zeros((0, config.num_answers, 0), np.int32), empty, empty.astype(np.float32))
    weights = _kept_weights(model)
    search = search_function(model, config, xla=current_runtime().xla, prepared=weights)
    inputs = (source_ids, mask, prefix, np.int32(config.seed))
    token_ids, lengths, scores = search(*inputs) if weights is None else search(*inputs, weights)
    lengths = lengths.numpy()
    return Decoded(token_ids.numpy()[:, :, : lengths.max()], lengths, scores.numpy())


def forget_weights(model: Any) -> None:
    """Free what `decode` keeps of a model's weights: they are about to change."""
    kept: KeptWeights | None = model.__dict__.get("_kept_weights")
    if kept is not None:
        kept.forget()


def _kept_weights(model: Any) -> Any:
    """What the model's steps take in the place of its weights; None where that is made in the graph of a search."""
    from nlp.models.kept_weights import KeptWeights

    if "_kept_weights" not in model.__dict__:
        model.__dict__["_kept_weights"] = KeptWeights(model) if KeptWeights.can_keep(model) else None
    kept: KeptWeights | None = model.__dict__["_kept_weights"]
    return None if kept is None else kept.present()


def search_function(
    model: Any, config: DecodingConfig, *, xla: bool = False, prepared: Any = None
) -> Callable[..., Any]:
    """The graph of a search, a `tf.function` made once for each model and config.

    It takes source ids (B, S) int32, mask (B, S) bool, prefix (B, P) int32 and a seed int32, all of any size, and gives
    token ids (B, N, `max_length`), lengths and scores (B, N). With `xla`, greedy and beam search of transformers have
    compiled steps (`nlp.models.compiled_steps`): that pays where many batches have the same sizes. With `prepared`,
    what the model's method of this name gives, it takes such weights as its last argument.
    """
    from nlp.models.search import build_search

    # In the model's own dictionary: the graph refers to the model, and both go together. Keras need not track it.
    made: dict[Any, Callable[..., Any]] = model.__dict__.setdefault("_search_functions", {})
    key = (config.replace(seed=0), xla, prepared is not None)
    if key not in made:
        made[key] = build_search(model, key[0], xla=xla, prepared=prepared)
    return made[key]
