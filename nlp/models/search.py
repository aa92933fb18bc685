"""The loops of decoding, as graphs: greedy search and sampling, and beam search.

A model has `vocab_size`, `encode`, `start`, `advance`, `logits_by_token` and `reorder`, as
`nlp.models.seq2seq.Seq2SeqTransformer` has them, or is a `CompiledSteps` or `CompiledPieces` of one; a config is a
`nlp.decoding.DecodingConfig`.

Shapes: B texts, K lanes of a text (beams or samples), R = B K rows, S source positions, T longest target, V tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import tensorflow as tf

from nlp.models.compiled_steps import CompiledPieces, CompiledSteps
from nlp.models.seq2seq import Seq2SeqTransformer
from nlp.models.token_choice import (
    BLOCK,
    best_tokens,
    is_one_of,
    log_sum,
    random_tokens,
    top_tokens,
    without_repeats,
    without_tokens,
)
from nlp.models.watched import on_cpu

if TYPE_CHECKING:
    from nlp.decoding import DecodingConfig

# Scores of what is not there yet: below those of all sequences.
_NOTHING = -1e9


class Rules(NamedTuple):
    """What holds for each text.

    `limit` (B,): most tokens; `prefix` (B, P): tokens to begin with, -1 where there is none; `prefix_length` (B,).
    """

    limit: tf.Tensor
    prefix: tf.Tensor
    prefix_length: tf.Tensor


class Lanes(NamedTuple):
    """The sequences that are followed: tokens (B, K, T + 1) from the start token on, sums (B, K) of log probabilities.

    `done` (B, K) and `lengths` (B, K) say which are ended and how long they are; in a beam search, which has no use for
    them, all are open.
    """

    tokens: tf.Tensor
    sums: tf.Tensor
    done: tf.Tensor
    lengths: tf.Tensor


class Answers(NamedTuple):
    """The best ended sequences of a beam search, as `Lanes`, from the best down; `open` (B,): better ones may come."""

    tokens: tf.Tensor
    scores: tf.Tensor
    there: tf.Tensor
    lengths: tf.Tensor
    open: tf.Tensor


def build_search(model: Any, config: DecodingConfig, *, xla: bool, prepared: Any = None) -> Callable[..., Any]:
    """A `tf.function` of source ids, mask, prefix and seed; see `nlp.decoding.search_function`.

    With `prepared`, what a model's method of this name gives, it takes such weights as its last argument.
    """
    # XLA cannot look for sequences that repeat themselves, and draws other random numbers.
    compilable = isinstance(model, Seq2SeqTransformer) and not (config.sample or config.no_repeat_ngram)
    if xla and compilable and _on_first_device(model):
        widened = model.compute_dtype == "bfloat16" and on_cpu(model.source_tokens.table)
        model = CompiledPieces(model) if widened else CompiledSteps(model)
    signature = (
        tf.TensorSpec((None, None), tf.int32, name="source_ids"),
        tf.TensorSpec((None, None), tf.bool, name="mask"),
        tf.TensorSpec((None, None), tf.int32, name="prefix"),
        tf.TensorSpec((), tf.int32, name="seed"),
    )
    weights = () if prepared is None else (tf.nest.map_structure(tf.TensorSpec.from_tensor, prepared),)

    def search(source_ids: tf.Tensor, mask: tf.Tensor, prefix: tf.Tensor, seed: tf.Tensor, *weights: Any) -> Any:
        memory = model.encode(source_ids, mask)
        known = {"prepared": weights[0]} if weights else {}
        with_seen = config.coverage_penalty > 0
        state = model.start(memory, mask, config.max_length, lanes=config.lanes, with_seen=with_seen, **known)
        rules = rules_of(config, mask, prefix)
        if config.num_beams > 1:
            return beam_search(model, config, rules, state, mask)
        return _one_by_one(model, config, rules, state, mask, seed)

    compiled: Callable[..., Any] = tf.function(search, input_signature=(*signature, *weights), autograph=False)
    return compiled


def _on_first_device(model: Seq2SeqTransformer) -> bool:
    """Whether XLA, which compiles for the first device of a kind, finds the weights there."""
    return tf.DeviceSpec.from_string(model.source_tokens.table.value.device).device_index in (None, 0)


def rules_of(config: DecodingConfig, mask: tf.Tensor, prefix: tf.Tensor) -> Rules:
    """What holds for texts of these masks and prefixes."""
    prefix_length = tf.reduce_sum(tf.cast(prefix >= 0, tf.int32), axis=1)
    limit = tf.fill((tf.shape(mask)[0],), config.max_length)
    if config.max_length_factor:
        source = tf.reduce_sum(tf.cast(mask, tf.float32), axis=1)
        own = tf.cast(tf.math.ceil(config.max_length_factor * source), tf.int32)
        limit = tf.minimum(limit, tf.maximum(own + prefix_length, 1))
    return Rules(limit, prefix, prefix_length)


def _first_lanes(config: DecodingConfig, batch_size: tf.Tensor) -> Lanes:
    tokens = tf.fill((batch_size, config.lanes, config.max_length), config.pad_id)
    start = tf.fill((batch_size, config.lanes, 1), config.start_id)
    nothing = tf.zeros((batch_size, config.lanes))
    return Lanes(
        tf.concat([start, tokens], axis=2), nothing, tf.zeros_like(nothing, tf.bool), tf.zeros_like(nothing, tf.int32)
    )


# A step.


def _forced(config: DecodingConfig, rules: Rules, position: tf.Tensor) -> tf.Tensor:
    """The token that each text must have next, int32 (B,), -1 where it is free."""
    longest = tf.shape(rules.prefix)[1]
    padded = tf.pad(rules.prefix, ((0, 0), (0, 1)), constant_values=-1)
    forced = tf.gather(padded, tf.minimum(position, longest), axis=1)
    if config.forced_first_id is not None:
        forced = tf.where(position == rules.prefix_length, config.forced_first_id, forced)
    if config.forced_last_id is not None:
        forced = tf.where(position + 1 == rules.limit, config.forced_last_id, forced)
    return forced


def _best(
    model: Any,
    config: DecodingConfig,
    rules: Rules,
    logits_of: Callable[..., tf.Tensor],
    tokens: tf.Tensor,
    position: tf.Tensor,
    count: int,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
    """The best tokens that may come next: logits and tokens (R, count), and the sum over all.

    `logits_of` gives logits (V, R), of a slice of the tokens or of all.
    """
    scored = config.scores or config.num_beams > 1
    if config.no_repeat_ngram:  # needs all logits at once
        logits = logits_of()
        total = log_sum(logits) if scored else None
        with tf.control_dependencies([total] if scored else []):  # before logits are overwritten
            logits = _allowed(config, rules, logits, tokens, position)
        return *top_tokens(logits, count), total
    return best_tokens(
        logits_of,
        model.vocab_size,
        count,
        scored=scored,
        # XLA would copy each block of the table.
        block=model.vocab_size if isinstance(model, CompiledSteps | CompiledPieces) else BLOCK,
        banned=config.banned_ids,
        banned_in=(config.end_ids, _early(config, rules, position)) if config.min_length else None,
    )


def _early(config: DecodingConfig, rules: Rules, position: tf.Tensor) -> tf.Tensor:
    """Where targets are too short to end, (R,)."""
    return tf.repeat(position - rules.prefix_length < config.min_length, config.lanes)


def _allowed(
    config: DecodingConfig, rules: Rules, logits: tf.Tensor, tokens: tf.Tensor, position: tf.Tensor
) -> tf.Tensor:
    """Logits (V, R) with what may not come next out of reach; they are overwritten."""
    logits = without_tokens(logits, config.banned_ids)
    if config.min_length:
        logits = without_tokens(logits, config.end_ids, _early(config, rules, position))
    if config.no_repeat_ngram:
        rows = tf.reshape(tokens, (-1, config.max_length + 1))
        logits = without_repeats(logits, rows, position + 1, config.no_repeat_ngram)
    return logits


def _put(tokens: tf.Tensor, position: tf.Tensor, new: tf.Tensor) -> tf.Tensor:
    """Tokens (B, K, T + 1) with new ones (B, K) in a column."""
    here = tf.range(tf.shape(tokens)[2]) == position
    return tf.where(here, new[:, :, None], tokens)


def _normalised(config: DecodingConfig, sums: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """Sums of log probabilities over the length penalty; both of shapes that go together."""
    length = tf.cast(tf.maximum(length, 1), tf.float32)
    if config.length_norm == "wu":
        length = (5.0 + length) / 6.0
    return sums / length**config.length_penalty


def _coverage(config: DecodingConfig, seen: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Equation 14 of Wu et al. 2016: beta times the sum over the source of log(min(seen, 1)); (B, K, S) -> (B, K)."""
    logs = tf.math.log(tf.clip_by_value(seen, 1e-9, 1.0))
    return config.coverage_penalty * tf.reduce_sum(tf.where(mask[:, None, :], logs, 0.0), axis=2)


# Greedy search and sampling.


def _one_by_one(
    model: Any, config: DecodingConfig, rules: Rules, state: Any, mask: tf.Tensor, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    def choose(logits_of: Callable[..., tf.Tensor], position: tf.Tensor, lanes: Lanes) -> Lanes:
        if config.sample:
            token, chance = _drawn(model, config, rules, logits_of, lanes.tokens, position, seed)
        else:
            value, ids, total = _best(model, config, rules, logits_of, lanes.tokens, position, 1)
            token, chance = ids[:, 0], value[:, 0] - (value[:, 0] if total is None else total)
        token, chance = (tf.reshape(part, (-1, config.lanes)) for part in (token, chance))
        forced = _forced(config, rules, position)[:, None]
        token, chance = tf.where(forced >= 0, forced, token), tf.where(forced >= 0, 0.0, chance)
        token = tf.where(lanes.done, config.pad_id, token)
        ended = is_one_of(token, config.end_ids) | (position + 1 >= rules.limit)[:, None]
        return Lanes(
            _put(lanes.tokens, position + 1, token),
            lanes.sums + tf.where(lanes.done, 0.0, chance),
            lanes.done | ended,
            lanes.lengths + tf.cast(~lanes.done, tf.int32),
        )

    choice = _choice(model, choose)

    def body(position: tf.Tensor, lanes: Lanes, state: Any) -> tuple[tf.Tensor, Lanes, Any]:
        features, state = model.advance(tf.gather(lanes.tokens, position, axis=2), position, state)
        return position + 1, choice(features, state, position, lanes), state

    lanes = _first_lanes(config, tf.shape(mask)[0])
    _, lanes, state = _loop(
        lambda position, lanes, state: (position < config.max_length) & ~tf.reduce_all(lanes.done),
        _turn(model, body),
        (tf.constant(0), lanes, state),
    )
    scores = _normalised(config, lanes.sums, lanes.lengths - rules.prefix_length[:, None])
    if not (config.scores or config.sample):
        scores = tf.fill(tf.shape(scores), float("nan"))
    if config.coverage_penalty:
        scores += _coverage(config, state.seen, mask)
    if config.sample:  # the best first
        scores, order = tf.math.top_k(scores, config.num_answers)
        lanes = tf.nest.map_structure(lambda part: tf.gather(part, order, batch_dims=1), lanes)
    return lanes.tokens[:, :, 1:], lanes.lengths, scores


def _drawn(
    model: Any,
    config: DecodingConfig,
    rules: Rules,
    logits_of: Callable[..., tf.Tensor],
    tokens: tf.Tensor,
    position: tf.Tensor,
    seed: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Random next tokens (R,) and their log probabilities."""
    logits = logits_of()
    total = log_sum(logits)
    with tf.control_dependencies([total]):  # before logits are overwritten
        logits = _allowed(config, rules, logits, tokens, position)
    token = random_tokens(
        logits,
        tf.stack([seed, position]),
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
    )
    return token, tf.gather_nd(logits, tf.stack([token, tf.range(tf.shape(token)[0])], axis=1)) - total


# Beam search.


def beam_search(
    model: Any, config: DecodingConfig, rules: Rules, state: Any, mask: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Tokens, lengths and scores as `build_search` gives them, by the search of transformers' `generate`.

    Of 2 K continuations of K beams, ended ones become answers. Twice as many, or more where several tokens end a
    target, so that K are left to go on with.
    """
    beams = config.num_beams
    kept = beams * max(2, 1 + len(config.end_ids))

    def choose(
        logits_of: Callable[..., tf.Tensor], position: tf.Tensor, lanes: Lanes, answers: Answers, seen: tf.Tensor
    ) -> tuple[Lanes, Answers, tf.Tensor]:
        chances, ids = _continuations(model, config, rules, logits_of, lanes, position, kept)
        sums, places = tf.math.top_k(chances, kept)  # of (B, K kept)
        parents = places // (chances.shape[1] // beams)
        token = tf.gather(ids, places, batch_dims=1)
        tokens = _put(tf.gather(lanes.tokens, parents, batch_dims=1), position + 1, token)
        ended = is_one_of(token, config.end_ids) | (position + 1 >= rules.limit)[:, None]
        length = position + 1 - rules.prefix_length[:, None]
        scores = _normalised(config, sums, length)
        if config.coverage_penalty:
            scores += tf.gather(_coverage(config, seen, mask), parents, batch_dims=1)
        answers = _with_ended(config, answers, tokens, scores, ended, position + 1)
        sums, best = tf.math.top_k(sums + tf.where(ended, _NOTHING, 0.0), beams)
        lanes = lanes._replace(tokens=tf.gather(tokens, best, batch_dims=1), sums=sums)
        return lanes, _with_open(config, rules, answers, sums, length), tf.gather(parents, best, batch_dims=1)

    choice = _choice(model, choose)

    def body(position: tf.Tensor, lanes: Lanes, answers: Answers, state: Any) -> tuple[tf.Tensor, Lanes, Answers, Any]:
        features, state = model.advance(tf.gather(lanes.tokens, position, axis=2), position, state)
        lanes, answers, parents = choice(features, state, position, lanes, answers, state.seen)
        return position + 1, lanes, answers, model.reorder(state, parents)

    def goes_on(position: tf.Tensor, lanes: Lanes, answers: Answers, state: Any) -> tf.Tensor:
        waiting = answers.open
        if config.stop == "first":
            waiting &= ~tf.reduce_all(answers.there, axis=1)
        return tf.reduce_any(waiting & (position < rules.limit))

    lanes = _first_lanes(config, tf.shape(mask)[0])
    # One beam to begin with: the others would find the same.
    sums = tf.where(tf.range(beams) == 0, lanes.sums, _NOTHING)
    answers = Answers(
        lanes.tokens, tf.fill(tf.shape(sums), _NOTHING), lanes.done, lanes.lengths, tf.ones_like(lanes.done[:, 0])
    )
    _, _, answers, _ = _loop(goes_on, _turn(model, body), (tf.constant(0), lanes._replace(sums=sums), answers, state))
    count = config.num_answers
    return answers.tokens[:, :count, 1:], answers.lengths[:, :count], answers.scores[:, :count]


def _continuations(
    model: Any,
    config: DecodingConfig,
    rules: Rules,
    logits_of: Callable[..., tf.Tensor],
    lanes: Lanes,
    position: tf.Tensor,
    kept: int,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The best continuations of each beam: sums of log probabilities and tokens, (B, K count)."""
    count = min(kept, model.vocab_size)
    values, ids, total = _best(model, config, rules, logits_of, lanes.tokens, position, count)
    assert total is not None
    shape = (-1, config.num_beams, count)
    chances, ids = tf.reshape(values - total[:, None], shape), tf.reshape(ids, shape)
    forced = _forced(config, rules, position)[:, None, None]
    only = tf.where(tf.range(count) == 0, 0.0, -float("inf"))
    chances = tf.where(forced >= 0, only, chances) + lanes.sums[:, :, None]
    ids = tf.where(forced >= 0, forced, ids)
    width = config.num_beams * count
    return tf.reshape(chances, (-1, width)), tf.reshape(ids, (-1, width))


def _with_ended(
    config: DecodingConfig,
    answers: Answers,
    tokens: tf.Tensor,
    scores: tf.Tensor,
    ended: tf.Tensor,
    length: tf.Tensor,
) -> Answers:
    """Answers with those of the best K continuations that are ended, if they are better than the worst."""
    new = ended & (tf.range(tf.shape(ended)[1]) < config.num_beams) & answers.open[:, None]
    if config.stop == "first":
        new &= ~tf.reduce_all(answers.there, axis=1, keepdims=True)
    scores = tf.concat([answers.scores, tf.where(new, scores, -float("inf"))], axis=1)
    scores, best = tf.math.top_k(scores, config.num_beams)
    lengths = tf.broadcast_to(length, tf.shape(new))
    merged = ((answers.tokens, tokens), (answers.there, new), (answers.lengths, lengths))
    picked = (tf.gather(tf.concat(pair, axis=1), best, batch_dims=1) for pair in merged)
    tokens, there, lengths = picked
    return Answers(tokens, scores, there, lengths, answers.open)


def _with_open(config: DecodingConfig, rules: Rules, answers: Answers, sums: tf.Tensor, length: tf.Tensor) -> Answers:
    """Answers that know whether the best beam can still become better than the worst of them.

    With `stop` "usual" it is measured at its present length, with "never" at the length that does it most good.
    """
    if config.stop == "never" and config.length_penalty > 0:
        length = rules.limit[:, None] - rules.prefix_length[:, None]
    best = _normalised(config, sums[:, :1], length)
    worst = tf.where(answers.there, tf.reduce_min(answers.scores, axis=1, keepdims=True), _NOTHING)
    return answers._replace(open=answers.open & tf.reduce_any(best > worst, axis=1))


def _choice(model: Any, choose: Callable[..., Any]) -> Callable[..., Any]:
    """`choose`, whose first argument gives logits, with features and state in the place of that."""
    if isinstance(model, CompiledPieces):
        return model.choice(choose)

    def choice(features: tf.Tensor, state: Any, *arguments: Any) -> Any:
        return choose(functools.partial(model.logits_by_token, features, state), *arguments)

    return choice


def _turn(model: Any, body: Callable[..., Any]) -> Callable[..., Any]:
    return model.turn(body) if isinstance(model, CompiledSteps) else body


def _loop(goes_on: Callable[..., Any], body: Callable[..., Any], start: tuple[Any, ...]) -> Any:
    """A `tf.while_loop` whose tensors may change all sizes but their last, where that is known."""
    shapes = tf.nest.map_structure(_loose, start)
    return tf.while_loop(goes_on, body, start, shape_invariants=shapes)


def _loose(tensor: tf.Tensor) -> tf.TensorShape:
    rank = tensor.shape.rank
    return tf.TensorShape([None] * (rank - 1) + [tensor.shape[-1]] if rank else [])
