from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from nlp.models.attention import distance_buckets
from nlp.models.encoder import EncoderConfig, build_encoder
from nlp.models.heads import HeadConfig, build_head
from shared.runtime import seeded

_GOLDEN = Path(__file__).parents[2] / "golden" / "text_encoders.npz"
_SMALL = {
    "vocab_size": 50,
    "num_layers": 2,
    "hidden_size": 16,
    "num_heads": 2,
    "intermediate_size": 24,
    "max_length": 24,
}
CONFIGS = {
    "bert": EncoderConfig(**_SMALL),
    "roberta": EncoderConfig(**_SMALL, positions="after_pad", pad_id=1, num_segments=1),
    "albert": EncoderConfig(
        **_SMALL, num_weight_groups=1, embedding_size=8, embedding_projection="after_norm", activation="gelu_tanh"
    ),
    "deberta_v3": EncoderConfig(
        **_SMALL,
        positions="none",
        num_segments=0,
        attention="disentangled",
        distance_terms=("c2p", "p2c"),
        distance_buckets=4,
        max_distance=12,
        distance_norm=True,
        shared_projections=True,
    ),
    "deberta_v2": EncoderConfig(
        **_SMALL,
        attention="disentangled",
        distance_terms=("c2p", "p2c"),
        max_distance=6,
        conv_size=3,
        embedding_size=8,
        embedding_projection="before_norm",
    ),
}


def batch(*lengths: int, length: int = 9) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (len(lengths), length)
    return {
        "token_ids": rng.integers(2, 50, shape).astype(np.int32),
        "segment_ids": rng.integers(0, 2, shape).astype(np.int32),
        "mask": np.arange(length) < np.asarray(lengths)[:, None],
    }


def with_random_weights(encoder: keras.Model) -> keras.Model:
    """New weights are small, and norms hide most mistakes: larger ones show them."""
    rng = np.random.default_rng(3)
    for variable in encoder.trainable_variables:
        is_scale = variable.path.endswith("gamma")
        variable.assign(
            rng.uniform(0.7, 1.3, variable.shape) if is_scale else 0.4 * rng.standard_normal(variable.shape)
        )
    return encoder


@pytest.fixture(scope="module", params=CONFIGS)
def config(request: pytest.FixtureRequest) -> EncoderConfig:
    return CONFIGS[request.param]


@pytest.fixture(scope="module")
def encoder(config: EncoderConfig) -> keras.Model:
    return with_random_weights(build_encoder(config))


def test_padding_changes_nothing(encoder: keras.Model) -> None:
    inputs = batch(9, 4)
    longer = {name: np.pad(value, ((0, 0), (0, 3))) for name, value in inputs.items()}
    expected = np.asarray(encoder(inputs))
    received = np.asarray(encoder(longer))[:, :9]
    np.testing.assert_allclose(received[inputs["mask"]], expected[inputs["mask"]], atol=1e-5)


def test_texts_do_not_see_each_other_and_neither_padding_ids(encoder: keras.Model) -> None:
    inputs = batch(9, 4)
    other = inputs | {"token_ids": np.where(inputs["mask"], inputs["token_ids"], 7).astype(np.int32)}
    alone = {name: value[1:] for name, value in inputs.items()}
    expected = np.asarray(encoder(inputs))
    np.testing.assert_allclose(np.asarray(encoder(other))[inputs["mask"]], expected[inputs["mask"]], atol=1e-5)
    np.testing.assert_allclose(np.asarray(encoder(alone))[0, :4], expected[1, :4], atol=1e-5)


def test_the_first_token_alone_is_the_same(encoder: keras.Model, config: EncoderConfig) -> None:
    first = build_encoder(config, first_token_only=True)
    first.set_weights(encoder.get_weights())
    inputs = batch(9, 4)
    received = np.asarray(first(inputs))
    assert received.shape == (2, 1, 16)
    np.testing.assert_allclose(received, np.asarray(encoder(inputs))[:, :1], atol=1e-5)


def test_the_mean_is_that_of_real_tokens(encoder: keras.Model, config: EncoderConfig) -> None:
    mean = build_encoder(config, mean_over_tokens=True)
    mean.set_weights(encoder.get_weights())
    inputs = batch(9, 4, 0)
    whole, received = np.asarray(encoder(inputs)), np.asarray(mean(inputs))
    assert received.shape == (3, 1, 16)
    for row, length in enumerate((9, 4)):
        np.testing.assert_allclose(received[row, 0], whole[row, :length].mean(axis=0), atol=1e-5)
    assert not received[2].any()


def test_first_token_with_a_convolution_beside_the_only_layer() -> None:
    config = CONFIGS["deberta_v2"].replace(num_layers=1)
    encoder, first = with_random_weights(build_encoder(config)), build_encoder(config, first_token_only=True)
    first.set_weights(encoder.get_weights())
    np.testing.assert_allclose(first(batch(9, 4)), encoder(batch(9, 4))[:, :1], atol=1e-5)


def test_one_trace_serves_all_lengths_and_empty_texts_stay_finite(encoder: keras.Model) -> None:
    ids = tf.TensorSpec((None, None), tf.int32)
    compiled = tf.function(
        lambda token_ids, segment_ids, mask: encoder(
            {"token_ids": token_ids, "segment_ids": segment_ids, "mask": mask}
        ),
        input_signature=(ids, ids, tf.TensorSpec((None, None), tf.bool)),
        autograph=False,
    )
    for lengths, length in (((1,), 1), ((0, 5), 5), ((24, 20, 1), 24)):
        inputs = batch(*lengths, length=length)
        received = compiled(*inputs.values()).numpy()
        assert np.isfinite(received).all()
        np.testing.assert_allclose(received[inputs["mask"]], np.asarray(encoder(inputs))[inputs["mask"]], atol=1e-5)


def test_every_weight_gets_a_finite_gradient_even_beside_an_empty_text(
    encoder: keras.Model, config: EncoderConfig
) -> None:
    inputs = {name: tf.constant(value) for name, value in batch(9, 4, 0).items()}
    with tf.GradientTape() as tape:
        features = encoder(inputs, training=True)
        # Weighted, since the sum of what a norm gives does not depend on its input.
        loss = tf.reduce_sum(tf.boolean_mask(features, inputs["mask"]) * tf.range(16, dtype=tf.float32))
    for variable, gradient in zip(
        encoder.trainable_variables, tape.gradient(loss, encoder.trainable_variables), strict=True
    ):
        values = tf.convert_to_tensor(gradient).numpy()
        assert np.isfinite(values).all(), variable.path
        assert np.abs(values).max() > 0, variable.path


def test_dropout_acts_in_training_only(encoder: keras.Model) -> None:
    inputs = batch(9, 4)
    np.testing.assert_array_equal(encoder(inputs), encoder(inputs, training=False))
    assert np.abs(encoder(inputs, training=True) - encoder(inputs)).max() > 0.01


def test_weights_survive_a_file(encoder: keras.Model, config: EncoderConfig, tmp_path: Path) -> None:
    encoder.save_weights(tmp_path / "encoder.weights.h5")
    copy = build_encoder(config)
    copy.load_weights(tmp_path / "encoder.weights.h5")
    np.testing.assert_array_equal(copy(batch(9, 4)), encoder(batch(9, 4)))


def test_half_precision_is_close_and_logits_are_whole(encoder: keras.Model, config: EncoderConfig) -> None:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        half = build_encoder(config)
        head = build_head(HeadConfig(hidden_activation="tanh"), 16, 3)
    finally:
        keras.config.set_dtype_policy(before)
    half.set_weights(encoder.get_weights())
    inputs = batch(9, 4, 0)
    features = half(inputs)
    assert features.dtype == "bfloat16"
    assert head(features).dtype == "float32"
    features, expected = np.asarray(tf.cast(features, tf.float32)), np.asarray(encoder(inputs))
    assert np.isfinite(features).all()
    real = inputs["mask"]
    assert np.abs(features[real] - expected[real]).mean() < 0.05 * np.abs(expected[real]).mean()


def test_initial_weights_follow_the_seed() -> None:
    def weights(seed: int) -> list[np.ndarray]:
        with seeded(seed):
            return [variable.numpy() for variable in build_encoder(CONFIGS["deberta_v2"]).trainable_variables]

    first, again, other = weights(1), weights(1), weights(2)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert any(not np.array_equal(one, two) for one, two in zip(first, other, strict=True))


def test_albert_shares_the_weights_of_its_layers() -> None:
    paths = [variable.path for variable in build_encoder(CONFIGS["albert"]).trainable_variables]
    assert {path.split("/")[0] for path in paths} == {"embeddings", "embedding_projection", "layer_0"}
    assert [EncoderConfig(num_layers=6, num_weight_groups=2).weights_of_layer(i) for i in range(6)] == [
        0,
        0,
        0,
        1,
        1,
        1,
    ]


def test_variables_have_stable_names() -> None:
    paths = [variable.path for variable in build_encoder(CONFIGS["bert"]).trainable_variables]
    assert paths[:6] == [
        "embeddings/words",
        "embeddings/positions",
        "embeddings/segments",
        "embeddings/norm/gamma",
        "embeddings/norm/beta",
        "layer_0/attention/qkv/kernel",
    ]


def test_positions_after_the_padding_id_count_real_tokens() -> None:
    config = CONFIGS["roberta"]
    assert config.num_position_rows == 26
    encoder = with_random_weights(build_encoder(config))
    ends = batch(4, length=4)
    begins = {name: np.pad(value, ((0, 0), (3, 0))) for name, value in ends.items()}
    np.testing.assert_allclose(encoder(begins)[:, 3:], encoder(ends), atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_texts_longer_than_the_position_table(name: str) -> None:
    with pytest.raises(ValueError, match=r"positions for 24 tokens; received 25\. Use shorter windows"):
        build_encoder(CONFIGS[name])(batch(25, length=25))


def test_buckets_of_distances_are_those_of_deberta() -> None:
    expected = np.load(_GOLDEN)["distance_buckets"]
    np.testing.assert_array_equal(distance_buckets(np.arange(-700, 701), 256, 512), expected)


# The config.


def test_config_round_trip(config: EncoderConfig) -> None:
    assert EncoderConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_heads": 5}, "multiple of `num_heads`; received 768 and 5"),
        ({"embedding_size": 128}, "`embedding_size` 128 differs from `hidden_size` 768"),
        ({"distance_terms": ("c2p", "p2p")}, "may have c2p and p2c; received p2p"),
        ({"activation": "mish"}, "one of 'gelu', 'gelu_tanh'"),
        ({"hidden": 8}, "no field 'hidden'"),
    ],
)
def test_bad_configs(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncoderConfig.from_dict(fields)
