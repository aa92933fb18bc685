"""GPT-2 checkpoints as classifiers, against what transformers said of them; see tests/golden/make_text_encoders.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nlp import EntityRecognizer, TextClassifier
from nlp.checkpoints import read_hugging_face
from nlp.text_model import TextModel
from shared import TrainingConfig, load_pipeline
from tests.golden.make_text_encoders import batch_of, random_state

golden = np.load(Path(__file__).parents[1] / "golden" / "text_encoders.npz")
TEXTS = ["a good day", "a bad day", "good good", "", "the bad, the good and the ugly 🎬"]


def checkpoint(directory: Path, **changes: Any) -> Path:
    directory.mkdir()
    values = json.loads(str(golden["gpt2.config"])) | changes
    (directory / "config.json").write_text(json.dumps(values))
    save_file(random_state(json.loads(str(golden["gpt2.shapes"]))), directory / "model.safetensors")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["a good day, a bad day"] * 2, trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    return directory


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> TextClassifier:
    directory = checkpoint(tmp_path_factory.mktemp("gpt2") / "model", id2label={"0": "bad", "1": "so-so", "2": "good"})
    return TextClassifier.from_preset(directory)


def test_logits_are_those_of_transformers(classifier: TextClassifier) -> None:
    inputs = batch_of(json.loads(str(golden["gpt2.config"])))
    logits, expected = np.asarray(classifier.model(inputs, training=False)), golden["gpt2.logits"]
    assert np.abs(expected).max() > 0.3
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=0)


def test_texts_are_answered_alone_and_together(classifier: TextClassifier) -> None:
    answers = classifier.predict(TEXTS)
    assert {label for answer in answers for label in answer.labels} == {"bad", "so-so", "good"}
    for text, answer in zip(TEXTS, answers, strict=True):
        (alone,) = classifier.predict([text])
        assert alone.labels == answer.labels
        np.testing.assert_allclose(alone.probabilities, answer.probabilities, atol=1e-6)


def test_it_is_trained_for_other_labels_saved_and_loaded(tmp_path: Path) -> None:
    classifier = TextClassifier.from_preset(checkpoint(tmp_path / "model"), labels=("no", "yes"), max_length=32)
    examples = (["good good", "bad bad"] * 8, ["yes", "no"] * 8)
    training = TrainingConfig(epochs=15, batch_size=4, learning_rate=1e-2, layer_decay=0.8, freeze_epochs=1)
    history = classifier.fit(examples, training=training)
    assert history.losses[-1] < history.losses[0] / 2
    assert classifier.evaluate(examples)["accuracy"] == 1.0
    classifier.save(tmp_path / "saved")
    assert load_pipeline(tmp_path / "saved").predict(TEXTS) == classifier.predict(TEXTS)


def test_an_export_takes_strings(classifier: TextClassifier, tmp_path: Path) -> None:
    assert classifier.export(tmp_path / "export").max_difference < 1e-4
    serve = tf.saved_model.load(str(tmp_path / "export")).signatures["serve"]
    assert serve(tf.constant(TEXTS[:3]))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"activation_function": "relu"}, "`activation_function` must be 'gelu_new'"),
        ({"n_inner": 100}, "`n_inner` must be four times `n_embd`"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ({"n_layer": 1}, "has weights that its network has no places for: h.1.attn.c_attn.bias, .*12 in all"),
        ({"n_layer": 3}, "lacks h.2.attn.c_attn.bias, .*12 in all"),
    ],
)
def test_what_would_compute_otherwise_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        TextClassifier.from_preset(checkpoint(tmp_path / "model", **changes))


def test_a_missing_weight_is_named_and_heads_of_other_tasks_are_left(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path / "model")
    state = load_file(directory / "model.safetensors")
    other = {"classifier.weight": np.zeros((4, 8), np.float32), "classifier.bias": np.zeros(4, np.float32)}
    save_file(state | other, directory / "model.safetensors")
    TextClassifier.from_preset(directory)
    (name,) = [name for name in state if name.endswith("h.1.ln_2.bias")]
    save_file({key: value for key, value in state.items() if key != name}, directory / "model.safetensors")
    with pytest.raises(ValueError, match=r"lacks h\.1\.ln_2\.bias \(1 in all\)"):
        TextClassifier.from_preset(directory)


def test_it_answers_for_texts_only_and_is_not_written_back(classifier: TextClassifier, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reads from left to right"):
        EntityRecognizer.from_preset(checkpoint(tmp_path / "model"), labels=("PER",))
    with pytest.raises(ValueError, match="gpt2 networks are read from Hugging Face, not written; use `save`"):
        classifier.save_hugging_face(tmp_path / "written")
    assert not (tmp_path / "written").exists()


def test_a_checkpoint_without_a_head_waits_for_one(tmp_path: Path) -> None:
    directory = checkpoint(tmp_path / "model", architectures=["GPT2LMHeadModel"])
    preset = read_hugging_face(directory)
    assert preset.head_config is None
    text_model = TextModel.from_checkpoint(preset, per_text=True, keep_head=False, seed=0)
    assert text_model.require_network().head is None
