from __future__ import annotations

import numpy as np
import pytest

from nlp.models.heads import HeadConfig, build_head

FEATURES = np.random.default_rng(0).standard_normal((3, 5, 8)).astype(np.float32)


def test_a_text_is_judged_by_its_first_token() -> None:
    head = build_head(HeadConfig(hidden_activation="tanh"), 8, 4)
    logits = np.asarray(head(FEATURES))
    assert logits.shape == (3, 4)
    np.testing.assert_allclose(head(FEATURES[:, :1]), logits, atol=1e-6)
    hidden, last = head.get_layer("hidden"), head.get_layer("logits")
    expected = np.tanh(FEATURES[:, 0] @ hidden.kernel + hidden.bias) @ last.kernel + last.bias
    np.testing.assert_allclose(logits, expected, atol=1e-6)


def test_tokens_are_judged_one_by_one() -> None:
    head = build_head(HeadConfig(kind="tokens"), 8, 4)
    logits = np.asarray(head(FEATURES))
    assert logits.shape == (3, 5, 4)
    np.testing.assert_allclose(np.asarray(head(FEATURES[:, 2:3]))[:, 0], logits[:, 2], atol=1e-6)


@pytest.mark.parametrize("config", [HeadConfig(dropout=0.5), HeadConfig(hidden_activation="relu", hidden_dropout=0.5)])
def test_dropout_acts_in_training_only(config: HeadConfig) -> None:
    head = build_head(config, 8, 4)
    np.testing.assert_array_equal(head(FEATURES), head(FEATURES, training=False))
    assert not np.array_equal(head(FEATURES, training=True), head(FEATURES))


def test_config_round_trip() -> None:
    config = HeadConfig(kind="tokens", hidden_activation="gelu", dropout=0.2)
    assert HeadConfig.from_json(config.to_json()) == config
    with pytest.raises(ValueError, match="no field 'pooling'"):
        HeadConfig.from_dict({"pooling": "mean"})
