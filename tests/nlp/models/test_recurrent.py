from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from nlp.models.recurrent import BidirectionalRecurrence, RecurrentConfig, build_recurrent_encoder

CELLS = ["gru", "lstm"]
MASK = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 1, 0], [0, 0, 0, 0, 0, 0]], bool)


def random_features(seed=0, *, batch=4, length=6, width=5):
    return tf.constant(np.random.default_rng(seed).normal(size=(batch, length, width)), tf.float32)


def built(cell, units=3, *, seed=1):
    layer = BidirectionalRecurrence(units, cell)
    layer.build((None, None, 5))
    rng = np.random.default_rng(seed)
    for weight in layer.weights:
        weight.assign(rng.normal(scale=0.5, size=weight.shape))
    return layer


def inputs(token_ids, mask=None, segment_ids=None):
    token_ids = np.asarray(token_ids, np.int32)
    return {
        "token_ids": token_ids,
        "segment_ids": np.zeros_like(token_ids) if segment_ids is None else np.asarray(segment_ids, np.int32),
        "mask": np.ones(token_ids.shape, bool) if mask is None else np.asarray(mask, bool),
    }


def by_definition(layer, features, mask):
    """The recurrences one text, one direction, one position at a time."""

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    units = layer.units
    states = np.zeros((*mask.shape, 2 * units))
    for direction in (0, 1):
        w, u = (part[direction].numpy() for part in (layer.kernels, layer.state_kernels))
        b, c = layer.biases[direction].numpy()
        for row in range(len(mask)):
            h = memory = np.zeros(units)
            positions = np.flatnonzero(mask[row])
            for position in positions if direction == 0 else positions[::-1]:
                x, s = np.split(features[row, position] @ w + b, w.shape[1] // units), h @ u + c
                s = np.split(s, w.shape[1] // units)
                if layer.cell == "gru":
                    z, r = sigmoid(x[0] + s[0]), sigmoid(x[1] + s[1])
                    h = z * h + (1 - z) * np.tanh(x[2] + r * s[2])
                else:
                    i, f, o = (sigmoid(x[gate] + s[gate]) for gate in (0, 1, 3))
                    memory = f * memory + i * np.tanh(x[2] + s[2])
                    h = o * np.tanh(memory)
                states[row, position, direction * units : (direction + 1) * units] = h
    return states


@pytest.mark.parametrize("cell", CELLS)
def test_states_equal_their_definition_under_any_mask(cell):
    layer, features = built(cell), random_features()
    found = layer(features, tf.constant(MASK)).numpy()
    np.testing.assert_allclose(found, by_definition(layer, features.numpy(), MASK), atol=1e-5)
    assert not found[~MASK].any()


@pytest.mark.parametrize("cell", CELLS)
def test_states_and_gradients_equal_the_layers_of_keras(cell):
    layer, features, mask = built(cell), random_features(), MASK[:2]
    one = (keras.layers.GRU if cell == "gru" else keras.layers.LSTM)(3, return_sequences=True)
    theirs = keras.layers.Bidirectional(one)
    theirs.build((None, 6, 5))
    weights = []
    for kernel, state_kernel, biases in zip(layer.kernels, layer.state_kernels, layer.biases, strict=True):
        # The LSTM of Keras has one bias, the sum of both.
        weights += [kernel, state_kernel, biases if cell == "gru" else biases.numpy().sum(axis=0)]
    theirs.set_weights([np.asarray(weight) for weight in weights])
    real = tf.constant(mask[:, :, None], tf.float32)
    gradients, outputs = [], []
    for network in (lambda x: layer(x, tf.constant(mask)), lambda x: theirs(x, mask=tf.constant(mask))):
        x = features[:2]
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs.append(network(x) * real)
            total = tf.reduce_sum(tf.square(outputs[-1]))
        gradients.append(tape.gradient(total, x))
    np.testing.assert_allclose(outputs[0], outputs[1], atol=1e-5)
    np.testing.assert_allclose(gradients[0], gradients[1], atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_what_is_outside_of_the_mask_does_not_matter(cell):
    layer, features, mask = built(cell), random_features(), tf.constant(MASK)
    changed = tf.where(mask[:, :, None], features, 1e3)
    np.testing.assert_array_equal(layer(features, mask), layer(changed, mask))
    longer = layer(tf.pad(features, [[0, 0], [0, 2], [0, 0]]), tf.pad(mask, [[0, 0], [0, 2]]))
    np.testing.assert_allclose(longer[:, :6], layer(features, mask), atol=1e-6)
    assert not np.any(longer[:, 6:])


@pytest.mark.parametrize("cell", CELLS)
def test_each_half_reads_its_own_direction(cell):
    layer, features, mask = built(cell), random_features(), tf.ones((4, 6), tf.bool)
    changed = features + tf.one_hot([3], 6)[:, :, None] * 2.0
    moved = np.abs(layer(features, mask) - layer(changed, mask)).max(axis=(0, 2))
    halves = np.abs(layer(features, mask).numpy() - layer(changed, mask).numpy()).reshape(4, 6, 2, 3).max(axis=(0, 3))
    assert (moved > 1e-4).all()
    np.testing.assert_array_equal(halves[:, 0] > 1e-6, [False, False, False, True, True, True])
    np.testing.assert_array_equal(halves[:, 1] > 1e-6, [True, True, True, True, False, False])


def test_new_weights_are_as_described():
    layer = BidirectionalRecurrence(4, "lstm")
    layer.build((None, None, 5))
    np.testing.assert_array_equal(layer.biases[0].numpy(), [[0] * 4 + [1] * 4 + [0] * 8, [0] * 16])
    turn = layer.state_kernels[1].numpy()
    np.testing.assert_allclose(turn @ turn.T, np.eye(4), atol=1e-5)
    assert not np.allclose(layer.state_kernels[0], turn)


@pytest.mark.parametrize("cell", CELLS)
def test_the_encoder_has_the_common_inputs(cell):
    config = RecurrentConfig(vocab_size=20, embedding_size=6, hidden_size=4, num_layers=2, cell=cell)
    encoder = build_recurrent_encoder(config)
    assert encoder.output_shape == (None, None, 8)
    for shape in ((2, 7), (3, 1)):
        rng = np.random.default_rng(0)
        batch = inputs(rng.integers(0, 20, shape), mask=rng.random(shape) < 0.8, segment_ids=rng.integers(0, 2, shape))
        features = encoder(batch)
        assert features.shape == (*shape, 8)
        assert features.dtype == tf.float32
        assert not np.any(features.numpy()[~batch["mask"]])
        np.testing.assert_array_equal(features, encoder(batch))


def test_dropout_is_for_training_and_segments_are_told_apart():
    encoder = build_recurrent_encoder(RecurrentConfig(vocab_size=20, embedding_size=6, hidden_size=4))
    batch = inputs([[3, 4, 5, 6]])
    assert np.any(encoder(batch, training=True) != encoder(batch))
    second = inputs([[3, 4, 5, 6]], segment_ids=[[0, 0, 1, 1]])
    np.testing.assert_array_equal(encoder(batch), encoder(second))
    encoder.get_layer("segments").embeddings.assign(np.eye(2, 6))
    assert np.any(encoder(batch) != encoder(second))


def test_the_same_seed_gives_the_same_weights(tmp_path):
    config = RecurrentConfig(vocab_size=20, embedding_size=6, hidden_size=4)
    built_encoders = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        built_encoders.append(build_recurrent_encoder(config))
    batch = inputs([[3, 4, 5]])
    first, again, other = (encoder(batch).numpy() for encoder in built_encoders)
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
    built_encoders[0].save_weights(tmp_path / "model.weights.h5")
    built_encoders[2].load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(built_encoders[2](batch), first)


def test_mixed_precision_keeps_the_states_in_float32():
    config = RecurrentConfig(vocab_size=20, embedding_size=6, hidden_size=4, dropout=0.0)
    exact = build_recurrent_encoder(config)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        mixed = build_recurrent_encoder(config)
    finally:
        keras.config.set_dtype_policy("float32")
    mixed.set_weights(exact.get_weights())
    batch = inputs(np.random.default_rng(0).integers(0, 20, (2, 9)))
    assert mixed(batch).dtype == tf.float32
    np.testing.assert_allclose(mixed(batch), exact(batch), atol=1e-3)


@pytest.mark.parametrize("cell", CELLS)
def test_xla_gives_the_same(cell):
    layer, features, mask = built(cell), random_features(), tf.constant(MASK)
    compiled = tf.function(lambda x: layer(x, mask), jit_compile=True, autograph=False)
    np.testing.assert_allclose(compiled(features), layer(features, mask), atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_it_learns_what_stands_far_away(cell):
    """Whether a text begins with token 1 or 2, answered at its last position and the other way round."""
    rng = np.random.default_rng(0)
    token_ids = rng.integers(3, 12, (64, 10))
    first = rng.integers(0, 2, 64)
    token_ids[:, 0] = 1 + first
    keras.utils.set_random_seed(0)
    encoder = build_recurrent_encoder(
        RecurrentConfig(vocab_size=12, embedding_size=8, hidden_size=8, cell=cell, dropout=0.0)
    )
    model = keras.Model(encoder.input, keras.layers.Dense(1)(encoder.output[:, -1, :8]))
    batch = {name: tf.constant(values) for name, values in inputs(token_ids).items()}
    targets = tf.constant(first[:, None], tf.float32)
    optimizer = keras.optimizers.Adam(0.03)
    optimizer.build(model.trainable_variables)

    @tf.function(autograph=False)
    def train():
        with tf.GradientTape() as tape:
            logits = model(batch, training=True)
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(targets, logits))
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, [variable.value for variable in variables]), variables)
        return loss

    losses = [float(train()) for _ in range(50)]
    assert losses[0] > 0.5
    assert losses[-1] < 0.05


def test_the_config_speaks_json_and_refuses_what_it_does_not_know():
    config = RecurrentConfig(vocab_size=20, cell="lstm")
    assert RecurrentConfig.from_json(config.to_json()) == config
    with pytest.raises(ValueError, match=r"no field 'hiden_size'\. Did you mean 'hidden_size'"):
        RecurrentConfig.from_dict({"hiden_size": 3})
    with pytest.raises(ValueError, match="one of 'gru', 'lstm'; received 'rnn'"):
        RecurrentConfig(cell="rnn")
