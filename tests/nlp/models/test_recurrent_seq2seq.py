from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from nlp.decoding import DecodingConfig, decode
from nlp.models.recurrent_seq2seq import RecurrentSeq2Seq, RecurrentSeq2SeqConfig, build_recurrent_seq2seq
from shared.losses import cross_entropy
from shared.runtime import seeded

CONFIGS = {
    "one_table": RecurrentSeq2SeqConfig(vocab_size=20, embedding_size=6, hidden_size=8),
    "two_tables": RecurrentSeq2SeqConfig(vocab_size=30, target_vocab_size=20, embedding_size=6, hidden_size=8),
}


def built(name: str) -> RecurrentSeq2Seq:
    with seeded(0):
        model = build_recurrent_seq2seq(CONFIGS[name])
    rng = np.random.default_rng(0)
    for weight in model.trainable_variables:
        weight.assign(weight + 0.3 * rng.standard_normal(weight.shape))
    return model


def batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "source_ids": rng.integers(1, 20, (3, 5)).astype(np.int32),
        "source_mask": np.arange(5) < np.asarray([5, 3, 1])[:, None],
        "target_ids": rng.integers(1, 20, (3, 7)).astype(np.int32),
    }


@pytest.mark.parametrize("name", CONFIGS)
def test_steps_give_the_logits_of_the_whole_whatever_lane_they_come_from(name: str) -> None:
    model, inputs = built(name), batch()
    expected = np.asarray(model(inputs))
    assert expected.shape == (3, 7, 20)
    assert expected.std() > 0.1
    memory = model.encode(inputs["source_ids"], inputs["source_mask"])
    state = model.start(memory, inputs["source_mask"], 7, lanes=2, with_seen=True)
    for position in range(7):
        token_ids = np.stack([inputs["target_ids"][:, position], np.full(3, position)], axis=1)
        logits, state = model.step(tf.constant(token_ids), tf.constant(position), state)
        np.testing.assert_allclose(logits[:, 0], expected[:, position], atol=1e-5)
        state = model.reorder(state, tf.constant([[0, 0]] * 3))
    np.testing.assert_allclose(tf.reduce_sum(state.seen, axis=2), np.full((3, 2), 7.0), rtol=1e-5)
    assert not state.seen.numpy()[~np.repeat(inputs["source_mask"][:, None], 2, axis=1)].any()


def test_padding_and_what_comes_later_change_nothing() -> None:
    model, inputs = built("one_table"), batch()
    longer = {
        "source_ids": np.pad(inputs["source_ids"], ((0, 0), (0, 3)), constant_values=9),
        "source_mask": np.pad(inputs["source_mask"], ((0, 0), (0, 3))),
        "target_ids": np.pad(inputs["target_ids"], ((0, 0), (0, 2)), constant_values=9),
    }
    np.testing.assert_allclose(np.asarray(model(longer))[:, :7], np.asarray(model(inputs)), atol=1e-6)


def test_weights_are_trained_and_saved(tmp_path: Path) -> None:
    model, inputs = built("two_tables"), batch()
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(inputs, training=True)))
    for weight, gradient in zip(model.trainable_variables, tape.gradient(loss, model.trainable_variables), strict=True):
        assert gradient is not None, weight.path
    model.save_weights(tmp_path / "model.weights.h5")
    again = build_recurrent_seq2seq(CONFIGS["two_tables"])
    again.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(np.asarray(again(inputs)), np.asarray(model(inputs)))


def test_it_learns_to_turn_sequences_round() -> None:
    start, end = 1, 0
    config = RecurrentSeq2SeqConfig(vocab_size=12, embedding_size=24, hidden_size=32, dropout=0.0)
    with seeded(1):
        model = build_recurrent_seq2seq(config)
    rng = np.random.default_rng(0)
    source_ids = rng.integers(2, 12, (256, 4)).astype(np.int32)
    targets = np.pad(source_ids[:, ::-1], ((0, 0), (0, 1)), constant_values=end)
    read = np.pad(targets[:, :-1], ((0, 0), (1, 0)), constant_values=start)
    mask = np.ones(source_ids.shape, bool)
    optimizer = keras.optimizers.Adam(0.01)

    @tf.function
    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            logits = model({"source_ids": source_ids, "source_mask": mask, "target_ids": read}, training=True)
            loss = cross_entropy(tf.reshape(logits, (-1, 12)), tf.reshape(targets, (-1,)))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    optimizer.build(model.trainable_variables)
    losses = [float(step()) for _ in range(150)]
    assert losses[-1] < 0.1 * losses[0]
    for beams in (1, 3):
        decoding = DecodingConfig(num_beams=beams, max_length=8, start_id=start, end_ids=(end,), pad_id=end)
        found = decode(model, source_ids[:64], mask[:64], decoding).token_ids[:, 0]
        assert (
            np.mean([row[:5].tolist() == target.tolist() for row, target in zip(found, targets[:64], strict=True)])
            > 0.9
        )
