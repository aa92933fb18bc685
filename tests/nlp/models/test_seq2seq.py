from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from nlp.models.positions import relative_buckets, sinusoids
from nlp.models.seq2seq import Seq2SeqTransformer, build_seq2seq
from nlp.models.seq2seq_config import Seq2SeqConfig
from nlp.models.ssru import running_states
from shared.runtime import float32_policy, seeded

_GOLDEN = Path(__file__).parents[2] / "golden" / "seq2seq.npz"
_SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_heads": 2,
    "decoder_heads": 4,
    "encoder_intermediate_size": 24,
    "decoder_intermediate_size": 20,
    "max_length": 64,
}
CONFIGS = {
    "marian": Seq2SeqConfig(**_SMALL),
    "ssru": Seq2SeqConfig(**_SMALL, decoder_unit="ssru", positions="marian", activation="relu"),
    "bart": Seq2SeqConfig(
        **_SMALL, positions="learned", position_offset=2, embedding_norm=True, embedding_scale=False, activation="gelu"
    ),
    "mbart": Seq2SeqConfig(**_SMALL, positions="learned", norm_first=True, final_norm=True, embedding_norm=True),
    "two_tables": Seq2SeqConfig(**_SMALL, target_vocab_size=40, shared_embeddings=False, tied_output=False),
    "t5": Seq2SeqConfig(
        **_SMALL,
        positions="relative",
        relative_buckets=8,
        max_distance=10,
        norm="rms",
        norm_first=True,
        final_norm=True,
        gated=True,
        use_bias=False,
        attention_scale=False,
        head_size=6,
        output_bias=False,
        output_scale=True,
    ),
}


def built(name: str) -> Seq2SeqTransformer:
    """A network whose every weight matters: biases and norms too are drawn."""
    with seeded(0):
        model = build_seq2seq(CONFIGS[name])
    rng = np.random.default_rng(0)
    for weight in model.trainable_variables:
        weight.assign(weight + 0.2 * rng.standard_normal(weight.shape))
    return model


def batch(target_length: int = 6) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "source_ids": rng.integers(1, 50, (3, 7)).astype(np.int32),
        "source_mask": np.arange(7) < np.asarray([7, 4, 1])[:, None],
        "target_ids": rng.integers(1, 40, (3, target_length)).astype(np.int32),
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_steps_give_the_logits_of_the_whole_whatever_lane_they_come_from(name: str) -> None:
    model, inputs = built(name), batch(40)  # longer than a cache is at first
    expected = np.asarray(model(inputs))
    state = model.start(model.encode(inputs["source_ids"], inputs["source_mask"]), inputs["source_mask"], 40, lanes=2)
    for position in range(40):
        token_ids = np.stack([inputs["target_ids"][:, position]] * 2, axis=1)
        if position % 3 == 1:
            token_ids[:, 1] = 3  # a beam that goes astray, and is dropped
        logits, state = model.step(tf.constant(token_ids), tf.constant(position), state)
        np.testing.assert_allclose(logits[:, 0], expected[:, position], atol=2e-5)
        parents = [0, 0] if position % 3 == 1 else [1, 0]
        state = model.reorder(state, tf.constant([parents] * 3))
    assert expected.std() > 0.1


@pytest.mark.parametrize("name", CONFIGS)
def test_padding_and_what_comes_later_change_nothing(name: str) -> None:
    model, inputs = built(name), batch()
    expected = np.asarray(model(inputs))
    longer = {
        "source_ids": np.pad(inputs["source_ids"], ((0, 0), (0, 3)), constant_values=9),
        "source_mask": np.pad(inputs["source_mask"], ((0, 0), (0, 3))),
        "target_ids": np.pad(inputs["target_ids"], ((0, 0), (0, 4)), constant_values=9),
    }
    longer["source_ids"][~longer["source_mask"]] = 5
    np.testing.assert_allclose(np.asarray(model(longer))[:, :6], expected, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_weight_is_trained_and_saved(name: str, tmp_path: Path) -> None:
    model, inputs = built(name), batch()
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(inputs, training=True)))
    for weight, gradient in zip(model.trainable_variables, tape.gradient(loss, model.trainable_variables), strict=True):
        assert gradient is not None, weight.path
        assert float(tf.reduce_sum(tf.abs(gradient))) >= 0
    model.save_weights(tmp_path / "model.weights.h5")
    again = build_seq2seq(CONFIGS[name])
    again.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(np.asarray(again(inputs)), np.asarray(model(inputs)))


def test_dropout_acts_in_training_only() -> None:
    model, inputs = built("marian"), batch()
    assert np.abs(np.asarray(model(inputs, training=True)) - np.asarray(model(inputs))).max() > 0.01
    np.testing.assert_array_equal(np.asarray(model(inputs)), np.asarray(model(inputs)))


def test_seeds_give_the_weights_and_sizes_are_as_counted() -> None:
    with seeded(3):
        one = build_seq2seq(CONFIGS["marian"])
    with seeded(3):
        other = build_seq2seq(CONFIGS["marian"])
    for a, b in zip(one.weights, other.weights, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    size, source, target = 16, 24, 20
    attention, norm = 4 * (size * size + size), 2 * size
    encoder = attention + norm + 2 * size * source + source + size + norm
    decoder = 2 * (attention + norm) + 2 * size * target + target + size + norm
    assert one.count_params() == 50 * size + 50 + encoder + 2 * decoder


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoder_heads": 3}, "multiple of `encoder_heads`; received 16 and 3"),
        ({"target_vocab_size": 9}, "one vocabulary"),
        ({"hidden_size": 15, "encoder_heads": 5, "decoder_heads": 5}, "even `hidden_size`"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(fields: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Seq2SeqConfig(**{**_SMALL, **fields})


def test_texts_that_are_too_long_are_refused() -> None:
    model = built("bart")
    memory, mask = model.encode(tf.ones((1, 3), tf.int32), tf.ones((1, 3), tf.bool)), tf.ones((1, 3), tf.bool)
    with pytest.raises(ValueError, match="positions for 64 tokens; received 65"):
        model.start(memory, mask, 65)
    with pytest.raises(ValueError, match="positions for 64 tokens; received 65"):
        model.encode(tf.ones((1, 65), tf.int32), tf.ones((1, 65), tf.bool))


def test_config_speaks_json() -> None:
    for config in CONFIGS.values():
        assert Seq2SeqConfig.from_json(config.to_json()) == config


# Parts.


def test_running_states_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    keep, taken = rng.uniform(size=(2, 11, 3)).astype(np.float32), rng.normal(size=(2, 11, 3)).astype(np.float32)
    state, expected = np.zeros((2, 3)), []
    for position in range(11):
        state = keep[:, position] * state + taken[:, position]
        expected.append(state)
    np.testing.assert_allclose(running_states(keep, taken), np.stack(expected, axis=1), atol=1e-6)
    np.testing.assert_allclose(running_states(keep[:, :1], taken[:, :1]), taken[:, :1], atol=1e-7)


@pytest.mark.parametrize("name", ["both_ways", "one_way"])
def test_buckets_are_those_of_t5(name: str) -> None:
    found = relative_buckets(np.arange(-200, 201), 32, 128, both_ways=name == "both_ways")
    np.testing.assert_array_equal(found, np.load(_GOLDEN)[f"buckets_{name}"])


def test_sinusoids_by_definition() -> None:
    table = sinusoids(5, 6)
    assert table[3, 1] == pytest.approx(np.sin(3 / 10000 ** (2 / 6)))
    assert table[3, 5] == pytest.approx(np.cos(3 / 10000 ** (4 / 6)))
    assert sinusoids(5, 6, as_marian=True)[3, 2] == pytest.approx(np.sin(3 / 10000))


def test_mixed_precision_decodes_with_weights_of_16_bits() -> None:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build_seq2seq(CONFIGS["marian"])
    finally:
        keras.config.set_dtype_policy(before)
    with float32_policy():
        twin = build_seq2seq(CONFIGS["marian"])
    twin.set_weights(model.get_weights())
    inputs = batch()
    logits = model(inputs)
    assert logits.dtype == tf.float32
    np.testing.assert_allclose(logits, twin(inputs), atol=0.1)
    memory = twin.encode(inputs["source_ids"], inputs["source_mask"])
    states = [network.start(memory, inputs["source_mask"], 4) for network in (model, twin)]
    assert {part.dtype for part in tf.nest.flatten(states[0].prepared)} == {tf.bfloat16}
    assert {part.dtype for part in tf.nest.flatten(states[1].prepared)} == {tf.float32}
    steps = [
        network.step(tf.ones((3, 1), tf.int32), tf.constant(0), state)
        for network, state in zip((model, twin), states, strict=True)
    ]
    assert steps[0][0].dtype == steps[0][1].units[0].keys.dtype == tf.float32
    np.testing.assert_allclose(steps[0][0], steps[1][0], atol=0.05)


@pytest.mark.parametrize(
    "changes",
    [{}, {"target_vocab_size": 50, "shared_embeddings": False}, {"shared_embeddings": False, "tied_output": False}],
    ids=["one table", "two tables", "three tables"],
)
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("mixed_bfloat16", 0.02)])
def test_gradients_of_tables_are_sums_in_float32_over_all_their_uses(
    changes: dict[str, Any], precision: str, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        model = build_seq2seq(CONFIGS["marian"].replace(**changes, dropout=0.0))
    finally:
        keras.config.set_dtype_policy(before)
    # A token that comes hundreds of times: in 16 bits its sum would soon stay where it is.
    rng = np.random.default_rng(0)
    ids = np.where(rng.random((24, 40)) < 0.5, 7, rng.integers(1, 50, (24, 40))).astype(np.int32)
    inputs = {"source_ids": ids, "source_mask": np.ones(ids.shape, bool), "target_ids": ids[:, ::-1]}
    aims = rng.standard_normal((24, 40, 50)).astype(np.float32)
    tables = {id(t): t for t in (model.source_tokens, model.target_tokens, model.output_tokens)}.values()

    def gradients() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(inputs, training=True) * aims)
        return [tf.convert_to_tensor(g) for g in tape.gradient(loss, [table.table.value for table in tables])]

    own = gradients()
    monkeypatch.setattr("nlp.models.seq2seq._rows_and_table", lambda table, ids: (tf.gather(table, ids), table))
    for found, expected in zip(own, gradients(), strict=True):
        assert found.dtype == tf.float32
        assert np.linalg.norm(found - expected) < tolerance * np.linalg.norm(expected)
        assert np.linalg.norm(found[7] - expected[7]) < tolerance * np.linalg.norm(expected[7])
