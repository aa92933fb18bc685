from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from nlp.classification import TextClassification, TextClassifier, TextClassifierConfig
from shared import Examples, NotFittedError, TrainingConfig
from tests.contract import PipelineContract

GOOD = ("a fine film", "warm and funny", "i liked it", "what a joy", "moving, clever, great")
BAD = ("a dull film", "cold and slow", "i hated it", "what a bore", "flat, stupid, awful")
TINY = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 200, "dropout": 0.0}
TRAINING = TrainingConfig(epochs=8, batch_size=8, learning_rate=0.01)


def reviews(repeats: int = 3) -> Examples:
    texts = [f"{text} {'!' * i}" for i in range(repeats) for text in (*GOOD, *BAD)]
    return Examples(texts, (["good"] * 5 + ["bad"] * 5) * repeats)


class TestTextClassifier(PipelineContract):
    pipeline_class = TextClassifier
    config = TextClassifierConfig(**TINY)
    training = TRAINING
    metric_names = ("accuracy", "top_5_accuracy", "macro_f1")
    floor = 0.9

    @classmethod
    def data(cls) -> Any:
        return reviews()

    @classmethod
    def inputs(cls) -> list[Any]:
        return ["i liked this film", "", "slow, flat and awful", "🎬 " * 9, "great " * 400]

    @classmethod
    def inputs_as_code(cls) -> str:
        return repr(cls.inputs())

    @classmethod
    def wrong_inputs(cls) -> list[tuple[Any, type[Exception], str]]:
        return [
            ("one text", TypeError, "list of texts"),
            ([3], TypeError, "received int"),
            ([b"\xff\xfe"], ValueError, "not UTF-8"),
            ([("a", "b", "c")], TypeError, "tuple of two"),
        ]


@pytest.fixture(scope="module")
def fitted() -> TextClassifier:
    classifier = TextClassifier(TextClassifierConfig(**TINY))
    classifier.fit(reviews(), training=TRAINING)
    return classifier


def test_tf_data_and_class_numbers_as_tfds_gives_them() -> None:
    data = reviews()
    numbers = [int(label == "good") for label in data.targets]
    dataset = tf.data.Dataset.from_tensor_slices((list(data.inputs), numbers))
    classifier = TextClassifier(TextClassifierConfig(**TINY))
    classifier.fit(dataset, training=TRAINING)
    assert list(classifier.labels or ()) == ["0", "1"]
    assert classifier.evaluate(dataset).first > 0.9


@pytest.mark.parametrize("encoder", ["gru", "lstm"])
def test_recurrent_networks_learn(encoder: Any, tmp_path: Path) -> None:
    classifier = TextClassifier(TextClassifierConfig(**TINY, encoder=encoder))
    classifier.fit(reviews(), training=TRAINING.replace(epochs=12))
    assert classifier.evaluate(reviews()).first > 0.9
    classifier.save(tmp_path / "saved")
    assert TextClassifier.load(tmp_path / "saved").predict(list(GOOD)) == classifier.predict(list(GOOD))
    with pytest.raises(ValueError, match="recurrent network"):
        classifier.save_hugging_face(tmp_path / "exported")


def test_a_mean_over_tokens_learns_from_scratch_and_over_a_checkpoint(fitted: TextClassifier, tmp_path: Path) -> None:
    fitted.save_hugging_face(tmp_path / "checkpoint")
    classifiers = [
        TextClassifier(TextClassifierConfig(**TINY, token_pooling="mean")),
        TextClassifier.from_preset(tmp_path / "checkpoint", labels="from_data", token_pooling="mean"),
    ]
    texts = ["a fine film", "cold, slow and awful " * 200]
    for number, classifier in enumerate(classifiers):
        classifier.fit(reviews(), training=TRAINING)
        assert classifier.evaluate(reviews())["accuracy"] > 0.9
        classifier.save(tmp_path / f"saved{number}")
        again = TextClassifier.load(tmp_path / f"saved{number}")
        np.testing.assert_array_equal(
            again._logits(again._exported(texts)[0]), classifier._logits(again._exported(texts)[0])
        )
        with pytest.raises(ValueError, match="look at a text's first token"):
            classifier.save_hugging_face(tmp_path / "exported")
    with pytest.raises(ValueError, match="`token_pooling` cannot be 'mean'"):
        TextClassifier.from_preset(tmp_path / "checkpoint", token_pooling="mean")
    with pytest.raises(ValueError, match="`token_pooling` cannot be 'first'"):
        TextClassifier.from_preset(tmp_path / "saved0", labels=["x", "y"], token_pooling="first")
    with pytest.raises(ValueError, match="no effect: a gru takes the largest"):
        TextClassifierConfig(encoder="gru", token_pooling="mean")


def test_pairs_of_texts() -> None:
    pairs = [(left, right) for left in GOOD + BAD for right in (GOOD[1], BAD[1])]
    labels = ["good" if right in GOOD else "bad" for _, right in pairs]
    classifier = TextClassifier(TextClassifierConfig(**TINY))
    classifier.fit((pairs * 3, labels * 3), training=TRAINING.replace(epochs=15))
    assert classifier.evaluate((pairs, labels)).first > 0.9
    answer = classifier.predict([pairs[0]])[0]
    assert answer != classifier.predict([pairs[0][0]])[0]
    assert answer == classifier.predict([list(pairs[0])])[0]


def test_multi_label_answers_may_be_empty() -> None:
    data = reviews()
    targets = [("good",) if label == "good" else () for label in data.targets]
    classifier = TextClassifier(TextClassifierConfig(**TINY, multi_label=True))
    classifier.fit(Examples(data.inputs, targets), training=TRAINING)
    metrics = classifier.evaluate(Examples(data.inputs, targets))
    assert list(metrics) == ["macro_f1", "accuracy"]
    assert metrics.first > 0.9
    assert [answer.label for answer in classifier.predict([GOOD[0], BAD[0]])] == ["good", None]


def test_regression_gives_values() -> None:
    data = reviews()
    values = [4.0 if label == "good" else 1.0 for label in data.targets]
    classifier = TextClassifier(TextClassifierConfig(**TINY, regression=True))
    classifier.fit((list(data.inputs), values), training=TRAINING.replace(epochs=20))
    metrics = classifier.evaluate((list(data.inputs), values))
    assert list(metrics) == ["spearman", "pearson", "rmse"]
    assert metrics["rmse"] < 0.5
    answer = classifier.predict([GOOD[0]])[0]
    assert answer.value == pytest.approx(4, abs=1)
    assert answer.to_dict() == {"value": round(answer.value or 0, 6), "num_windows": 1}
    with pytest.raises(ValueError, match="number"):
        classifier.evaluate((["a"], ["high"]))


def test_long_texts_are_read_in_windows_to_their_end(fitted: TextClassifier) -> None:
    long = " ".join(["film"] * 2000)
    plain, ending = fitted.predict([long, long + " awful hated bore dull" * 100])
    assert ending.num_windows > plain.num_windows > 5
    assert dict(zip(plain.labels, plain.probabilities, strict=True)) != dict(
        zip(ending.labels, ending.probabilities, strict=True)
    )


def test_predictions_of_windows_are_the_mean_of_their_logits(fitted: TextClassifier) -> None:
    config = fitted.config.replace(max_length=8, window_overlap=0)
    narrow = TextClassifier(config)
    narrow.labels, narrow._text_model, narrow._trained = fitted.labels, fitted._text_model, True
    words = ["i", "liked", "it", "what", "a", "joy", "i", "hated"]
    assert fitted.tokenizer is not None
    windows = fitted.tokenizer.windows(" ".join(words), max_length=8, overlap=0)
    logits = [
        fitted.model(
            {
                "token_ids": window.token_ids[None],
                "segment_ids": window.segment_ids[None],
                "mask": np.ones((1, len(window)), bool),
            }
        )[0]
        for window in windows
    ]
    mean = np.mean([np.asarray(row) for row in logits], axis=0)
    expected = np.exp(mean) / np.exp(mean).sum()
    (answer,) = narrow.predict([" ".join(words)])
    assert answer.num_windows == len(windows) > 1
    found = dict(zip(answer.labels, answer.probabilities, strict=True))
    assert [found[str(name)] for name in fitted.labels or ()] == pytest.approx(expected, abs=1e-5)


def test_a_saved_model_takes_strings_without_this_project(fitted: TextClassifier, tmp_path: Path) -> None:
    fitted.export(tmp_path / "exported")
    code = (
        "import sys, tensorflow as tf\n"
        "served = tf.saved_model.load(sys.argv[1])\n"
        "assert not any(name in sys.modules for name in ('nlp', 'shared', 'keras_hub', 'tensorflow_text'))\n"
        "print('SHARES', served.serve(tf.constant(['i liked it', 'great ' * 900])).numpy().tolist())\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "exported")]
    child = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert child.returncode == 0, child.stderr
    line = next(line for line in child.stdout.splitlines() if line.startswith("SHARES "))
    for answer, served in zip(fitted.predict(["i liked it", "great " * 900]), json.loads(line[7:]), strict=True):
        found = dict(zip(answer.labels, answer.probabilities, strict=True))
        assert served == pytest.approx([found[str(name)] for name in fitted.labels or ()], abs=1e-4)


def test_hugging_face_and_back(fitted: TextClassifier, tmp_path: Path) -> None:
    fitted.save_hugging_face(tmp_path / "exported")
    again = TextClassifier.from_preset(tmp_path / "exported")
    assert again.is_fitted
    assert again.config.labels == ("bad", "good")
    texts = [*GOOD, *BAD, "", "great " * 300]
    for mine, theirs in zip(fitted.predict(texts), again.predict(texts), strict=True):
        assert mine.labels == theirs.labels
        assert mine.probabilities == pytest.approx(theirs.probabilities, abs=1e-5)


def test_other_labels_give_a_new_head_on_the_same_encoder(
    fitted: TextClassifier, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "nlp")
    fitted.save_hugging_face(tmp_path / "exported")
    fitted.save(tmp_path / "saved")
    for start in (tmp_path / "exported", tmp_path / "saved"):
        TextClassifier.from_preset(start)
        assert "is new" not in caplog.text
        classifier = TextClassifier.from_preset(start, labels=("awful", "great", "so-so"))
        assert f"the head of {start} is new: call `fit`" in caplog.text
        caplog.clear()
        assert not classifier.is_fitted
        assert classifier.model.output_shape == (None, 3)
        networks = [part._text_model.require_network() for part in (classifier, fitted)]
        own, theirs = (network.encoder.get_weights()[0] for network in networks)
        np.testing.assert_array_equal(own, theirs)
        with pytest.raises(NotFittedError, match="fit"):
            classifier.predict(["a"])


@pytest.mark.parametrize(
    "fields",
    [
        {"regression": True},
        {"multi_label": True},
        {"encoder": "gru"},
        {"hidden_size": 32},
        {"max_length": 300},
        {"labels": ("a", "b"), "num_layers": 3},
    ],
)
@pytest.mark.parametrize("start", ["saved", "exported"])
def test_a_pretrained_network_stays_what_it_is(
    fitted: TextClassifier, tmp_path: Path, start: str, fields: dict[str, Any]
) -> None:
    fitted.save(tmp_path / "saved")
    fitted.save_hugging_face(tmp_path / "exported")
    field = next(name for name in fields if name != "labels")
    with pytest.raises(ValueError, match=field):
        TextClassifier.from_preset(tmp_path / start, **fields)


def test_the_first_preset_is_remembered_through_later_ones(fitted: TextClassifier, tmp_path: Path) -> None:
    fitted.save_hugging_face(tmp_path / "exported")
    first = TextClassifier.from_preset(tmp_path / "exported")
    first.save(tmp_path / "saved")
    second = TextClassifier.from_preset(tmp_path / "saved")
    before, after = (classifier.provenance["preset"] for classifier in (first, second))
    assert after == before | {"ref": str(tmp_path / "saved")}
    assert len(before) > 1


def test_one_unreadable_text_does_not_stop_training_from_scratch() -> None:
    data = reviews(5)
    texts = [*data.inputs[:40], b"\xff\xfe", *data.inputs[41:]]
    training = TRAINING.replace(epochs=1, max_bad_share=0.05)
    history = TextClassifier(TextClassifierConfig(**TINY)).fit((texts, data.targets), training=training)
    assert history.bad_records == ("example 40: not UTF-8: byte 0xff at position 0",)


def test_a_preset_says_how_long_its_texts_may_be(fitted: TextClassifier, tmp_path: Path) -> None:
    fitted.save_hugging_face(tmp_path / "exported")
    with pytest.raises(ValueError, match="at most 256 tokens"):
        TextClassifier.from_preset(tmp_path / "exported", max_length=300)


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match="exclude each other"):
        TextClassifierConfig(multi_label=True, regression=True)
    with pytest.raises(ValueError, match="exclude each other"):
        TextClassifierConfig(labels=("a", "b"), regression=True)
    with pytest.raises(ValueError, match="multiple of `num_heads`"):
        TextClassifierConfig(hidden_size=30, num_heads=4)
    with pytest.raises(ValueError, match="which `regression` has not"):
        TextClassifierConfig(consistency=1.0, regression=True)


def test_class_weights_raise_rare_classes() -> None:
    texts, labels = [*GOOD * 4, *BAD[:1]], ["good"] * 20 + ["bad"]
    means = []
    for weights in ("none", "balanced"):
        classifier = TextClassifier(TextClassifierConfig(**TINY, class_weights=weights))
        classifier.fit((texts, labels), training=TRAINING)
        answers = classifier.predict(texts)
        means.append(np.mean([dict(zip(a.labels, a.probabilities, strict=True))["bad"] for a in answers]))
    assert means[1] > means[0] + 0.1


@pytest.mark.parametrize("multi_label", [False, True])
def test_consistency_adds_what_passes_with_other_dropout_differ_by(multi_label: bool) -> None:
    data = reviews()
    if multi_label:
        data = Examples(data.inputs, [(label,) for label in data.targets])
    losses = {}
    for dropout in (0.0, 0.5):
        for consistency in (0.0, 100.0):
            config = {**TINY, "dropout": dropout, "consistency": consistency, "multi_label": multi_label}
            task = TextClassifier(TextClassifierConfig(**config)).training_task(data, TRAINING)
            head = task.model.trainable_variables[-2]  # new, and so small that dropout would hardly show
            head.assign(100 * head)
            batch = {name: tf.constant(array) for name, array in next(iter(task.batches.epoch(0))).items()}
            losses[dropout, consistency] = float(task.loss(batch))
    assert losses[0.0, 100.0] == pytest.approx(losses[0.0, 0.0], rel=1e-5)
    assert losses[0.5, 100.0] > 1.5 * losses[0.5, 0.0]


def test_an_answer_in_plain_values() -> None:
    answer = TextClassification(("good", "bad"), (0.75, 0.25), num_windows=2)
    assert answer.to_dict() == {"labels": ["good", "bad"], "probabilities": [0.75, 0.25], "num_windows": 2}
    assert (answer.label, answer.value) == ("good", None)
