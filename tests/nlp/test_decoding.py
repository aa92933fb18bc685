from __future__ import annotations

import dataclasses
import gc
import itertools
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from nlp.decoding import Decoded, DecodingConfig, decode, forget_weights, search_function
from nlp.models.search import _on_first_device, beam_search, rules_of
from nlp.models.seq2seq import build_seq2seq
from nlp.models.seq2seq_config import Seq2SeqConfig
from nlp.models.token_choice import best_tokens, log_sum, random_tokens, top_tokens, without_repeats, without_tokens
from shared.runtime import activated, current_runtime, seeded

START, END, PAD = 1, 0, 1
CONFIG = Seq2SeqConfig(
    vocab_size=30,
    hidden_size=16,
    encoder_layers=1,
    decoder_layers=1,
    encoder_heads=2,
    decoder_heads=2,
    encoder_intermediate_size=16,
    decoder_intermediate_size=16,
    max_length=64,
    tied_output=False,
)
_IDS = {"start_id": START, "end_ids": (END,), "pad_id": PAD}


@pytest.fixture(scope="module")
def model() -> Any:
    with seeded(0):
        network = build_seq2seq(CONFIG)
    rng = np.random.default_rng(0)
    for weight in network.trainable_variables:
        weight.assign(weight + 0.5 * rng.standard_normal(weight.shape))
    network.output_bias.assign(0.5 * rng.standard_normal(30) + 5.0 * (np.arange(30) == END))
    return network


def network_in(precision: str, **changes: Any) -> Any:
    with activated(dataclasses.replace(current_runtime(), precision=precision)), seeded(1):
        return build_seq2seq(CONFIG.replace(**changes))


def source(count: int = 5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    mask = np.arange(6) < rng.integers(1, 7, (count, 1))
    return rng.integers(2, 30, (count, 6)).astype(np.int32), mask


def found(model: Any, *, prefix: np.ndarray | None = None, **fields: Any) -> Decoded:
    config = DecodingConfig(**{"max_length": 12, **_IDS, **fields})
    return decode(model, *source(), config, prefix=prefix)


def answers(decoded: Decoded) -> list[list[tuple[int, ...]]]:
    return [
        [tuple(row[:length]) for row, length in zip(rows.tolist(), lengths.tolist(), strict=True)]
        for rows, lengths in zip(decoded.token_ids, decoded.lengths, strict=True)
    ]


def log_probabilities(model: Any, tokens: tuple[int, ...], text: int, given: int = 0) -> float:
    """The sum over a target's tokens, all but the first `given`, by the face that takes them all at once."""
    source_ids, mask = source()
    read = np.asarray([[START, *tokens[:-1]]], np.int32)
    inputs = {"source_ids": source_ids[text : text + 1], "source_mask": mask[text : text + 1], "target_ids": read}
    logs = np.asarray(tf.nn.log_softmax(model(inputs)))[0]
    return float(sum(logs[i, token] for i, token in enumerate(tokens) if i >= given))


# Greedy search.


def test_greedy_search_takes_the_likeliest_token_at_each_step(model: Any) -> None:
    source_ids, mask = source()
    decoded = found(model, num_beams=1)
    for text, ((tokens,), (score,)) in enumerate(zip(answers(decoded), decoded.scores, strict=True)):
        read = np.asarray([[START, *tokens[:-1]]], np.int32)
        inputs = {"source_ids": source_ids[text : text + 1], "source_mask": mask[text : text + 1], "target_ids": read}
        assert np.asarray(model(inputs))[0].argmax(axis=1).tolist() == list(tokens)
        assert tokens[-1] == END or len(tokens) == 12
        assert score == pytest.approx(log_probabilities(model, tokens, text) / len(tokens), abs=1e-5)
    assert len({len(tokens) for (tokens,) in answers(decoded)}) > 1
    rest = np.arange(decoded.token_ids.shape[2]) >= decoded.lengths[..., None]
    assert (decoded.token_ids[rest] == PAD).all()


def test_one_beam_and_no_scores_find_the_same(model: Any) -> None:
    greedy = found(model, num_beams=1)
    unscored = found(model, num_beams=1, scores=False)
    assert answers(greedy) == answers(unscored)
    assert np.isnan(unscored.scores).all()

    source_ids, mask = source()
    config = DecodingConfig(num_beams=1, max_length=12, stop="first", **_IDS)
    state = model.start(model.encode(source_ids, mask), mask, 12)
    rules = rules_of(config, tf.constant(mask), tf.zeros((5, 0), tf.int32))
    tokens, lengths, scores = beam_search(model, config, rules, state, tf.constant(mask))
    np.testing.assert_array_equal(lengths, greedy.lengths)
    np.testing.assert_array_equal(tokens[:, :, : greedy.token_ids.shape[2]], greedy.token_ids)
    np.testing.assert_allclose(scores, greedy.scores, atol=1e-5)


def test_texts_do_not_depend_on_their_batch(model: Any) -> None:
    source_ids, mask = source()
    for fields in ({"num_beams": 1}, {"num_beams": 3, "num_answers": 2}):
        config = DecodingConfig(max_length=12, **_IDS, **fields)
        together = decode(model, source_ids, mask, config)
        for text in range(len(source_ids)):
            length = int(mask[text].sum())
            alone = decode(model, source_ids[text : text + 1, :length], mask[text : text + 1, :length], config)
            assert answers(alone)[0] == answers(together)[text]
            np.testing.assert_allclose(alone.scores[0], together.scores[text], atol=1e-5)


# Beam search.


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"length_penalty": 0.0, "stop": "never"},
        {"length_penalty": 0.6, "length_norm": "wu", "stop": "never"},
        {"length_penalty": 1.4, "stop": "first"},
    ],
)
def test_answers_are_sorted_and_distinct_and_have_the_scores_of_their_tokens(
    model: Any, fields: dict[str, Any]
) -> None:
    decoded = found(model, num_beams=4, num_answers=4, **fields)
    config = DecodingConfig(num_beams=4, **fields)
    for text, (tokens, scores) in enumerate(zip(answers(decoded), decoded.scores, strict=True)):
        assert len(set(tokens)) == 4
        assert (np.diff(scores) <= 0).all()
        for answer, score in zip(tokens, scores, strict=True):
            length = (5 + len(answer)) / 6 if config.length_norm == "wu" else len(answer)
            expected = log_probabilities(model, answer, text) / length**config.length_penalty
            assert score == pytest.approx(expected, abs=1e-5)


def test_with_enough_beams_the_best_of_all_targets_is_found(model: Any) -> None:
    allowed = [END, 2, 3, 4]
    banned = tuple(token for token in range(30) if token not in allowed)
    fields = {"banned_ids": banned, "max_length": 3, "length_penalty": 0.0, "stop": "never"}
    decoded = found(model, num_beams=16, num_answers=3, **fields)
    targets = [
        (*start, last)
        for length in range(3)
        for start in itertools.product(allowed[1:], repeat=length)
        for last in (allowed if length == 2 else [END])
    ]
    for text, tokens in enumerate(answers(decoded)):
        best = sorted(targets, key=lambda target: -log_probabilities(model, target, text))
        assert tokens == best[:3]


def test_coverage_counts_what_was_looked_at(model: Any) -> None:
    plain = found(model, num_beams=4, num_answers=4, length_norm="wu", stop="never")
    penalised = found(model, num_beams=4, num_answers=4, length_norm="wu", stop="never", coverage_penalty=0.3)
    by_tokens = [
        dict(zip(tokens, scores, strict=True)) for tokens, scores in zip(answers(plain), plain.scores, strict=True)
    ]
    lowered = [
        known[tokens] - score
        for known, text, scores in zip(by_tokens, answers(penalised), penalised.scores, strict=True)
        for tokens, score in zip(text, scores, strict=True)
        if tokens in known
    ]
    assert len(lowered) > 5
    assert min(lowered) > -1e-6
    assert max(lowered) > 0.1


# Sampling.


def test_samples_are_those_of_their_seed(model: Any) -> None:
    fields = {"num_beams": 1, "sample": True, "num_answers": 3}
    one, same, other = (found(model, seed=seed, **fields) for seed in (1, 1, 2))
    assert answers(one) == answers(same)
    assert answers(one) != answers(other)
    assert (np.diff(one.scores, axis=1) <= 0).all()
    for text, (tokens, scores) in enumerate(zip(answers(one), one.scores, strict=True)):
        assert scores[0] == pytest.approx(log_probabilities(model, tokens[0], text) / len(tokens[0]), abs=1e-5)


def test_a_cold_sample_or_one_of_the_likeliest_token_is_greedy(model: Any) -> None:
    greedy = answers(found(model, num_beams=1))
    for fields in ({"temperature": 1e-3}, {"top_k": 1}, {"top_p": 0.0}):
        assert answers(found(model, num_beams=1, sample=True, **fields)) == greedy


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [({}, {0, 1, 2, 3}), ({"top_k": 2}, {1, 2}), ({"top_p": 0.6}, {1, 2}), ({"top_p": 0.4}, {1})],
)
def test_tokens_are_drawn_from_the_likeliest(fields: dict[str, Any], allowed: set[int]) -> None:
    logits = np.log(np.tile([[0.1], [0.5], [0.3], [0.1]], 400)).astype(np.float32)
    options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | fields
    drawn = random_tokens(tf.constant(logits), tf.constant([0, 1]), **options).numpy()
    assert set(drawn.tolist()) == allowed
    if not fields:
        np.testing.assert_allclose(np.bincount(drawn) / 400, [0.1, 0.5, 0.3, 0.1], atol=0.08)


# Rules.


@pytest.mark.parametrize("beams", [1, 4])
def test_no_sequence_of_tokens_comes_twice(model: Any, beams: int) -> None:
    free = found(model, num_beams=beams, num_answers=beams, min_length=11)
    ruled = found(model, num_beams=beams, num_answers=beams, min_length=11, no_repeat_ngram=2)

    def repeats(decoded: Decoded) -> int:
        pairs = [list(itertools.pairwise((START, *tokens))) for text in answers(decoded) for tokens in text]
        return sum(len(found) - len(set(found)) for found in pairs)

    assert repeats(free) > 0
    assert repeats(ruled) == 0


@pytest.mark.parametrize("beams", [1, 4])
def test_targets_begin_with_their_prefix_which_scores_nothing(model: Any, beams: int) -> None:
    prefix = np.asarray([[5, 6, 7], [8, -1, -1], [-1, -1, -1], [9, 9, -1], [4, 4, 4]], np.int32)
    decoded = found(model, num_beams=beams, prefix=prefix)
    for text, (tokens,) in enumerate(answers(decoded)):
        given = [token for token in prefix[text].tolist() if token >= 0]
        assert list(tokens[: len(given)]) == given
        expected = log_probabilities(model, tokens, text, len(given)) / (len(tokens) - len(given))
        assert decoded.scores[text, 0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
def test_lengths_and_tokens_keep_to_their_rules(model: Any, beams: int) -> None:
    decoded = found(model, num_beams=beams, min_length=4, banned_ids=(3, 7, 11), forced_first_id=13, forced_last_id=17)
    for (tokens,) in answers(decoded):
        assert tokens[0] == 13
        assert not {3, 7, 11} & set(tokens)
        assert END not in tokens[:4]
        assert len(tokens) < 12 or tokens[-1] == 17
    short = found(model, num_beams=beams, max_length_factor=0.5)
    limits = np.ceil(0.5 * source()[1].sum(axis=1))
    assert (short.lengths[:, 0] <= limits).all()
    assert (short.lengths[:, 0] == limits).any()


def test_no_texts_give_no_answers(model: Any) -> None:
    decoded = decode(model, np.zeros((0, 4)), np.zeros((0, 4), bool), DecodingConfig(num_beams=2, num_answers=2))
    assert (decoded.token_ids.shape, decoded.lengths.shape, decoded.scores.shape) == ((0, 2, 0), (0, 2), (0, 2))


def test_one_graph_serves_all_shapes(model: Any) -> None:
    config = DecodingConfig(num_beams=2, max_length=5, **_IDS)
    for count in (1, 3, 5):
        decode(model, *(part[:, :count] for part in source(count)), config)
    weights = model.prepared()
    made = search_function(model, config, prepared=weights)
    assert made.experimental_get_tracing_count() == 1
    assert search_function(model, config.replace(seed=7), prepared=weights) is made


def test_a_search_can_be_exported(model: Any, tmp_path: Any) -> None:
    config = DecodingConfig(num_beams=3, max_length=8, **_IDS)
    expected = decode(model, *source(), config)
    module = tf.Module()
    module.model, module.search = model, search_function(model, config)
    tf.saved_model.save(module, str(tmp_path))
    source_ids, mask = source()
    loaded = tf.saved_model.load(str(tmp_path))
    tokens, lengths, scores = loaded.search(source_ids, mask, np.zeros((5, 0), np.int32), np.int32(0))
    np.testing.assert_array_equal(tokens[:, :, : expected.lengths.max()], expected.token_ids)
    np.testing.assert_array_equal(lengths, expected.lengths)
    np.testing.assert_allclose(scores, expected.scores, atol=1e-6)


# Choosing tokens.


@pytest.mark.parametrize("vocab_size", [5, 900, 4000])
def test_top_tokens_are_those_of_a_sort(vocab_size: int) -> None:
    logits = np.random.default_rng(0).normal(size=(vocab_size, 7)).astype(np.float32)
    logits[-1] += np.arange(7)  # behind the last whole chunk
    values, ids = top_tokens(tf.constant(logits), 4)
    expected = np.argsort(-logits, axis=0)[:4].T
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(logits.T, expected, axis=1))
    np.testing.assert_allclose(log_sum(tf.constant(logits)), np.log(np.exp(logits).sum(axis=0)), rtol=1e-5)


@pytest.mark.parametrize("vocab_size", [40, 4095, 9000])
@pytest.mark.parametrize("count", [1, 6])
def test_best_tokens_of_blocks_are_those_of_all_that_are_allowed(vocab_size: int, count: int) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(vocab_size, 5)).astype(np.float32)
    order = np.argsort(-logits, axis=0)
    # The best of some rows, two of one chunk, and the last of all.
    banned = (int(order[0, 0]), int(order[0, 0]) ^ 1, vocab_size - 1)
    sometimes, where = (int(order[0, 1]), int(order[1, 2])), np.asarray([False, True, True, False, True])
    values, ids, total = best_tokens(
        lambda tokens: tf.constant(logits[tokens]) + 0.0,
        vocab_size,
        count,
        scored=True,
        banned=banned,
        banned_in=(sometimes, tf.constant(where)),
    )
    allowed = logits.copy()
    allowed[list(banned)] = -np.inf
    allowed[np.ix_(list(sometimes), np.flatnonzero(where))] = -np.inf
    expected = np.argsort(-allowed, axis=0)[:count].T
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(allowed.T, expected, axis=1))
    np.testing.assert_allclose(total, np.log(np.exp(logits).sum(axis=0)), rtol=1e-5)


def test_tokens_are_banned_in_all_rows_or_some() -> None:
    where = tf.constant([True, False])
    for given, expected in ((None, [[0, 0], [1, 1], [0, 0]]), (where, [[0, 0], [1, 0], [0, 0]])):
        banned = without_tokens(tf.zeros((3, 2)) + 1.0, (1,), given).numpy()
        np.testing.assert_array_equal(np.isinf(banned), expected)


@pytest.mark.parametrize(
    ("tokens", "size", "banned"),
    [
        ([4, 2, 4], 2, {2}),
        ([4, 2, 3], 2, set()),
        ([1, 2, 1, 2, 3, 1, 2], 3, {1, 3}),
        ([3, 4], 1, {3, 4}),
        ([3], 4, set()),
    ],
)
def test_tokens_that_end_a_known_sequence_are_banned(tokens: list[int], size: int, banned: set[int]) -> None:
    padded = tf.constant([[*tokens, *[0] * 5]])
    logits = without_repeats(tf.zeros((6, 1)), padded, tf.constant(len(tokens)), size)
    assert set(np.flatnonzero(np.isinf(logits.numpy()[:, 0])).tolist()) == banned


# What does not fit.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sample": True, "num_beams": 4}, "one token at a time"),
        ({"num_beams": 2, "num_answers": 3}, "needs as many beams"),
        ({"max_length": 0}, "at least 1"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecodingConfig(**fields)


def test_arrays_of_other_shapes_are_refused(model: Any) -> None:
    source_ids, mask = source()
    config = DecodingConfig(num_beams=1, max_length=4)
    with pytest.raises(ValueError, match=r"one shape, \(B, S\); received \(5, 6\) and \(5, 5\)"):
        decode(model, source_ids, mask[:, :5], config)
    with pytest.raises(ValueError, match=r"`prefix` must have shape \(B, P\).*received \(5, 4\)"):
        decode(model, source_ids, mask, config, prefix=np.ones((5, 4)))
    with pytest.raises(ValueError, match="positions for 64 tokens; received 80"):
        decode(model, source_ids, mask, config.replace(max_length=80))


def test_kept_weights_follow_those_of_the_model() -> None:
    config = DecodingConfig(num_beams=2, max_length=8, scores=True, **_IDS)
    networks = []
    for seed in (1, 2):
        with seeded(seed):
            networks.append(build_seq2seq(CONFIG))
    network, other = networks
    first, expected = (decode(each, *source(), config) for each in networks)
    assert decode(network, *source(), config).scores.tolist() == first.scores.tolist()
    assert not np.array_equal(first.scores, expected.scores)
    network.set_weights(other.get_weights())
    np.testing.assert_array_equal(decode(network, *source(), config).scores, expected.scores)
    # One kernel alone, as a step of training would.
    kernel = network.decoder.blocks[0][2].part.inner.kernel
    kernel.value.assign_add(tf.ones(kernel.shape))
    changed = decode(network, *source(), config)
    assert not np.array_equal(changed.scores, expected.scores)
    plain = search_function(network, config)(*source(), np.zeros((5, 0), np.int32), 0)
    np.testing.assert_allclose(changed.scores, plain[2], rtol=1e-6)


def test_weights_can_be_forgotten(model: Any) -> None:
    config = DecodingConfig(num_beams=1, max_length=4, **_IDS)
    before = decode(model, *source(), config)
    copies = weakref.ref(model.__dict__["_kept_weights"].present().kernels[0][0][0])
    assert copies() is not None
    forget_weights(model)
    gc.collect()
    assert copies() is None
    np.testing.assert_array_equal(decode(model, *source(), config).token_ids, before.token_ids)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize(
    "fields", [{"num_beams": 1}, {"num_beams": 2}, {"sample": True, "num_beams": 1}, {"no_repeat_ngram": 2}]
)
def test_a_network_without_output_bias_answers_from_several_blocks(fields: dict[str, Any], precision: str) -> None:
    network = network_in(precision, vocab_size=5000, output_bias=False)
    decoded = found(network, **fields)
    assert decoded.token_ids.shape[0] == 5
    assert np.all(decoded.token_ids < 5000)


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({}, {"num_beams": 1, "scores": False}),
        # Longer than the caches are at first.
        ({}, {"num_beams": 1, "max_length": 40, "min_length": 36}),
        ({"vocab_size": 700}, {"num_beams": 2, "coverage_penalty": 0.2, "banned_ids": (7, 8)}),
        (
            {"positions": "relative", "norm": "rms", "output_bias": False, "use_bias": False},
            {"num_beams": 3, "num_answers": 3, "max_length": 40, "min_length": 34, "stop": "never"},
        ),
        ({"decoder_unit": "ssru"}, {"num_beams": 2}),
    ],
    ids=["greedy", "long", "coverage", "t5", "ssru"],
)
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_compiled_steps_find_what_plain_ones_find(
    precision: str, changes: dict[str, Any], fields: dict[str, Any]
) -> None:
    network = network_in(precision, **changes)
    config = DecodingConfig(**{"max_length": 12, **_IDS, **fields})
    ids, mask = source()
    prefix = np.asarray([[3, 4], [5, -1], [-1, -1], [6, -1], [-1, -1]], np.int32)
    plain, compiled = (search_function(network, config, xla=xla)(ids, mask, prefix, 0) for xla in (False, True))
    np.testing.assert_array_equal(compiled[1], plain[1])
    np.testing.assert_array_equal(compiled[0], plain[0])
    np.testing.assert_allclose(compiled[2], plain[2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("beams", [1, 2])
def test_in_bfloat16_what_lies_between_products_is_compiled(beams: int) -> None:
    network = network_in("mixed_bfloat16", gated=True)
    config = DecodingConfig(num_beams=beams, max_length=8, **_IDS)
    plain = decode(network, *source(), config)
    with activated(dataclasses.replace(current_runtime(), xla=True)):
        compiled = decode(network, *source(), config)
    np.testing.assert_array_equal(compiled.token_ids, plain.token_ids)
    np.testing.assert_allclose(compiled.scores, plain.scores, rtol=1e-5)
    # Products with kernels are those of bfloat16; there are six in a layer that is gated, and the logits.
    search = search_function(network, config, xla=True, prepared=network.prepared())
    functions = search.get_concrete_function().graph.as_graph_def().library.function
    pieces = [function for function in functions if function.attr["_XlaMustCompile"].b]
    products = {
        name: sum(node.op == "MatMul" and node.attr["T"].type == tf.bfloat16.as_datatype_enum for node in body.node_def)
        for name, body in ((function.signature.name, function) for function in functions)
    }
    assert len(pieces) >= 5
    assert all(products[piece.signature.name] == 0 for piece in pieces)
    assert sum(products.values()) == 8


@pytest.mark.parametrize("fields", [{"num_beams": 1, "sample": True}, {"num_beams": 2, "no_repeat_ngram": 2}])
def test_what_xla_cannot_do_stays_plain(model: Any, fields: dict[str, Any]) -> None:
    config = DecodingConfig(max_length=6, **_IDS, **fields)
    plain, compiled = (
        search_function(model, config, xla=xla)(*source(), np.zeros((5, 0), np.int32), 3) for xla in (False, True)
    )
    np.testing.assert_array_equal(compiled[0], plain[0])


def test_xla_is_left_alone_where_the_weights_lie_on_another_device(model: Any) -> None:
    assert _on_first_device(model)
    name = "/job:localhost/replica:0/task:0/device:CPU:1"
    elsewhere = SimpleNamespace(
        source_tokens=SimpleNamespace(table=SimpleNamespace(value=SimpleNamespace(device=name)))
    )
    assert not _on_first_device(elsewhere)
