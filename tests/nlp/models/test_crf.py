from __future__ import annotations

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from nlp.models.crf import LinearChainCRF
from nlp.tags import entities, tag_names, transitions

BATCH, LENGTH, TAGS = 5, 5, 3
# All positions, the first ones, with holes, a single one, none.
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 0, 1, 1], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]], bool)


def field(num_tags=TAGS, *, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    crf = LinearChainCRF(num_tags)
    crf.build((None, None, num_tags))
    for weight in crf.weights:
        weight.assign(rng.normal(scale=scale, size=weight.shape))
    return crf


def random_emissions(num_tags=TAGS, *, seed=1, scale=1.0):
    rng = np.random.default_rng(seed)
    return tf.constant(rng.normal(scale=scale, size=(BATCH, LENGTH, num_tags)), tf.float32)


def every_path(crf, emissions, mask, allowed=None):
    """Tags under the mask and scores of all sequences, by the definition and in float64."""
    pairs, first, last = (np.asarray(weight, np.float64) for weight in (crf.pairs, crf.first, crf.last))
    emissions = np.asarray(emissions, np.float64)[mask]
    for path in itertools.product(range(len(first)), repeat=len(emissions)):
        if not path:
            yield path, 0.0
            continue
        steps = list(itertools.pairwise(path))
        score = first[path[0]] + last[path[-1]] + sum(pairs[step] for step in steps)
        score += sum(emissions[position, tag] for position, tag in enumerate(path))
        if allowed is not None:
            possible = allowed.first[path[0]] and allowed.last[path[-1]] and all(allowed.pairs[step] for step in steps)
            score = score if possible else -np.inf
        yield path, score


def log_sum(scores):
    scores = np.array(list(scores))
    return scores.max() + np.log(np.exp(scores - scores.max()).sum())


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_likelihood_equals_its_definition(scale):
    crf, emissions = field(scale=scale), random_emissions(scale=scale)
    rng = np.random.default_rng(2)
    tags = np.where(MASK, rng.integers(0, TAGS, MASK.shape), -1).astype(np.int32)
    found = crf.log_likelihood(emissions, tf.constant(tags), tf.constant(MASK)).numpy()
    assert found.dtype == np.float32
    for row in range(BATCH):
        paths = dict(every_path(crf, emissions[row], MASK[row]))
        expected = paths[tuple(tags[row][MASK[row]].tolist())] - log_sum(paths.values())
        assert found[row] == pytest.approx(expected, rel=1e-5, abs=1e-5 * scale)


def test_probabilities_of_all_sequences_sum_to_one():
    crf, emissions = field(), random_emissions()
    tags = np.array(list(itertools.product(range(TAGS), repeat=LENGTH)), np.int32)
    repeated = tf.repeat(emissions[:1], len(tags), axis=0)
    log_likelihood = crf.log_likelihood(repeated, tf.constant(tags), tf.ones(tags.shape, tf.bool))
    assert float(tf.reduce_sum(tf.exp(log_likelihood))) == pytest.approx(1.0, abs=1e-5)


def test_what_is_outside_of_the_mask_does_not_matter():
    crf, emissions = field(), random_emissions()
    tags = tf.zeros((BATCH, LENGTH), tf.int32)
    mask = tf.constant(MASK)
    changed = tf.where(mask[:, :, None], emissions, 1e6)
    for call in (lambda e: crf.log_likelihood(e, tags, mask), lambda e: crf.decode(e, mask)[0],
                 lambda e: crf.decode(e, mask)[1], lambda e: crf.marginals(e, mask)):  # fmt: skip
        np.testing.assert_array_equal(call(emissions), call(changed))
    # Neither do positions that a batch is padded with.
    padded = tf.pad(emissions, [[0, 0], [0, 3], [0, 0]])
    more = tf.pad(mask, [[0, 0], [0, 3]])
    np.testing.assert_array_equal(crf.decode(padded, more)[0][:, :LENGTH], crf.decode(emissions, mask)[0])
    np.testing.assert_allclose(crf.marginals(padded, more)[:, :LENGTH], crf.marginals(emissions, mask), atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_best_path_is_the_best_of_all(seed):
    crf, emissions = field(seed=seed), random_emissions(seed=seed + 10)
    tags, score = (part.numpy() for part in crf.decode(emissions, tf.constant(MASK)))
    assert tags.dtype == np.int32
    for row in range(BATCH):
        path, best = max(every_path(crf, emissions[row], MASK[row]), key=lambda pair: pair[1])
        assert tuple(tags[row][MASK[row]].tolist()) == path
        assert score[row] == pytest.approx(best, abs=1e-5)
        assert not tags[row][~MASK[row]].any()


def test_of_equal_paths_the_one_of_lower_numbers_is_taken():
    crf = LinearChainCRF(TAGS)
    tags, _ = crf.decode(crf(tf.zeros((2, 4, TAGS))), tf.ones((2, 4), tf.bool))
    np.testing.assert_array_equal(tags, np.zeros((2, 4)))


def test_marginals_equal_their_definition():
    crf, emissions = field(), random_emissions()
    found = crf.marginals(emissions, tf.constant(MASK)).numpy()
    for row in range(BATCH):
        expected = np.zeros((LENGTH, TAGS))
        paths = list(every_path(crf, emissions[row], MASK[row]))
        log_partition = log_sum(score for _, score in paths)
        for path, score in paths:
            expected[np.flatnonzero(MASK[row]), list(path)] += np.exp(score - log_partition)
        np.testing.assert_allclose(found[row], expected, atol=1e-5)


def test_the_gradient_of_likelihood_is_truth_less_marginals():
    crf, emissions = field(), random_emissions()
    tags = tf.constant(np.random.default_rng(3).integers(0, TAGS, MASK.shape), tf.int32)
    mask = tf.constant(MASK)
    with tf.GradientTape() as tape:
        tape.watch(emissions)
        total = tf.reduce_sum(crf.log_likelihood(emissions, tags, mask))
    by_emissions, *by_weights = tape.gradient(total, [emissions, *(weight.value for weight in crf.weights)])
    truth = tf.one_hot(tags, TAGS) * MASK[:, :, None]
    np.testing.assert_allclose(by_emissions, truth - crf.marginals(emissions, mask), atol=1e-5)
    # Each weight's, against a difference of likelihoods.
    for weight, gradient in zip(crf.weights, by_weights, strict=True):
        place, step = tuple(0 for _ in weight.shape), 1e-2
        moved = np.zeros(weight.shape, np.float32)
        moved[place] = step
        before = weight.numpy()
        sides = []
        for sign in (1, -1):
            weight.assign(before + sign * moved)
            sides.append(float(tf.reduce_sum(crf.log_likelihood(emissions, tags, mask))))
        weight.assign(before)
        assert float(gradient[place]) == pytest.approx((sides[0] - sides[1]) / (2 * step), abs=2e-3)


def test_without_chain_scores_it_is_a_softmax():
    emissions, mask = random_emissions(), tf.constant(MASK)
    crf = LinearChainCRF(TAGS)
    tags = tf.constant(np.random.default_rng(3).integers(0, TAGS, MASK.shape), tf.int32)
    expected = -tf.nn.sparse_softmax_cross_entropy_with_logits(tags, emissions) * tf.cast(mask, tf.float32)
    found = crf.log_likelihood(crf(emissions), tags, mask)
    np.testing.assert_allclose(found, tf.reduce_sum(expected, axis=1), atol=1e-5)
    np.testing.assert_allclose(crf.marginals(emissions, mask), tf.where(mask[..., None], tf.nn.softmax(emissions), 0.0),
                               atol=1e-6)  # fmt: skip


@pytest.mark.parametrize("scheme", ["IOB1", "IOB2", "BIOES"])
def test_decoding_keeps_to_a_scheme(scheme):
    names = tag_names(["PER"] if scheme == "BIOES" else ["LOC", "PER"], scheme)
    allowed = transitions(names, scheme)
    crf, emissions = field(len(names)), random_emissions(len(names), scale=3.0)
    tags, score = (part.numpy() for part in crf.decode(emissions, tf.constant(MASK), allowed=allowed))
    marginals = crf.marginals(emissions, tf.constant(MASK), allowed=allowed).numpy()
    free = crf.decode(emissions, tf.constant(MASK))[0].numpy()
    assert (free != tags).any()
    for row in range(BATCH):
        paths = list(every_path(crf, emissions[row], MASK[row], allowed))
        path, best = max(paths, key=lambda pair: pair[1])
        assert tuple(tags[row][MASK[row]].tolist()) == path
        assert score[row] == pytest.approx(best, abs=1e-4)
        entities([names[tag] for tag in path], scheme)
        if path:
            sums = np.zeros((len(path), len(names)))
            weights = np.exp(np.array([score for _, score in paths]) - log_sum(score for _, score in paths))
            for (tags_of_path, _), weight in zip(paths, weights, strict=True):
                sums[np.arange(len(path)), list(tags_of_path)] += weight
            np.testing.assert_allclose(marginals[row][MASK[row]], sums, atol=1e-5)


@pytest.mark.parametrize("length", [1, 2])
def test_short_sentences(length):
    crf, emissions = field(), random_emissions()[:, :length]
    mask = tf.constant(MASK[:, :length])
    tags, score = crf.decode(emissions, mask)
    log_likelihood = crf.log_likelihood(emissions, tags, mask)
    for row in range(BATCH):
        paths = dict(every_path(crf, emissions[row], MASK[row, :length]))
        assert float(score[row]) == pytest.approx(max(paths.values()), abs=1e-5)
        assert float(log_likelihood[row]) == pytest.approx(max(paths.values()) - log_sum(paths.values()), abs=1e-5)


def test_a_graph_takes_any_batch():
    crf, emissions = field(), random_emissions()
    mask, tags = tf.constant(MASK), tf.zeros((BATCH, LENGTH), tf.int32)

    def everything(emissions, tags, mask):
        return crf.log_likelihood(emissions, tags, mask), *crf.decode(emissions, mask), crf.marginals(emissions, mask)

    expected = everything(emissions, tags, mask)
    signature = [tf.TensorSpec((None, LENGTH, TAGS)), tf.TensorSpec((None, LENGTH), tf.int32),
                 tf.TensorSpec((None, LENGTH), tf.bool)]  # fmt: skip
    graph = tf.function(everything, input_signature=signature)
    for rows in (BATCH, 2):
        for found, part in zip(graph(emissions[:rows], tags[:rows], mask[:rows]), expected, strict=True):
            np.testing.assert_allclose(found, part[:rows], atol=1e-5)


def test_xla_trains_and_decodes_alike():
    crf, emissions = field(), random_emissions()
    mask, tags = tf.constant(MASK), tf.zeros((BATCH, LENGTH), tf.int32)

    def step(emissions):
        with tf.GradientTape() as tape:
            tape.watch(emissions)
            total = tf.reduce_sum(crf.log_likelihood(emissions, tags, mask))
        return tape.gradient(total, emissions), crf.decode(emissions, mask)[0]

    for found, part in zip(tf.function(step, jit_compile=True)(emissions), step(emissions), strict=True):
        np.testing.assert_allclose(found, part, atol=1e-5)


def test_half_precision_emissions_are_computed_in_float32():
    crf, mask = field(), tf.constant(MASK)
    half = tf.cast(random_emissions(), tf.bfloat16)
    found = crf.log_likelihood(half, tf.zeros((BATCH, LENGTH), tf.int32), mask)
    exact = crf.log_likelihood(tf.cast(half, tf.float32), tf.zeros((BATCH, LENGTH), tf.int32), mask)
    np.testing.assert_array_equal(found, exact)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        assert LinearChainCRF(TAGS)(half).dtype == tf.float32
    finally:
        keras.config.set_dtype_policy("float32")


def test_it_learns_what_no_position_shows():
    """Tags that alternate, with emissions that tell only the first one."""
    tags = np.array([[0, 1] * 4, [1, 0] * 4], np.int32)
    emissions = np.zeros((2, 8, 2), np.float32)
    emissions[[0, 1], 0, [0, 1]] = 5.0
    crf, mask = LinearChainCRF(2), tf.ones((2, 8), tf.bool)
    inputs = crf(tf.constant(emissions))
    optimizer = keras.optimizers.Adam(0.2)

    @tf.function
    def gradients():
        with tf.GradientTape() as tape:
            loss = -tf.reduce_mean(crf.log_likelihood(inputs, tf.constant(tags), mask))
        return tape.gradient(loss, [weight.value for weight in crf.trainable_weights])

    for _ in range(30):
        optimizer.apply(gradients(), crf.trainable_weights)
    np.testing.assert_array_equal(crf.decode(inputs, mask)[0], tags)


def test_a_model_saves_and_rebuilds_it(tmp_path):
    inputs = keras.Input((None, 4))
    crf = LinearChainCRF(TAGS, name="crf")
    model = keras.Model(inputs, crf(keras.layers.Dense(TAGS)(inputs)))
    assert len(model.trainable_weights) == 5
    crf.pairs.assign(np.eye(TAGS))
    model.save_weights(tmp_path / "model.weights.h5")
    again = keras.Model(inputs, LinearChainCRF(**crf.get_config())(keras.layers.Dense(TAGS)(inputs)))
    again.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(again.get_layer("crf").pairs, np.eye(TAGS))


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"Emissions must have shape \(B, T, 3\); received \(2, 4, 5\)"):
        LinearChainCRF(3)(tf.zeros((2, 4, 5)))
    with pytest.raises(ValueError, match=r"a mask \(B, T\); received \(2, 4, 3\) and \(2, 5\)"):
        field().decode(tf.zeros((2, 4, 3)), tf.ones((2, 5), tf.bool))
