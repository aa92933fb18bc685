from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest

from nlp.ner import Entities, Entity, EntityRecognizer, EntityRecognizerConfig
from nlp.tags import convert
from shared import Examples, TrainingConfig
from tests.contract import PipelineContract

PEOPLE = ("Ada Lovelace", "Alan Turing", "Grace Hopper", "Emmy Noether")
PLACES = ("London", "Paris", "New York", "Rome")
TINY: dict[str, Any] = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 300, "dropout": 0.0}
TRAINING = TrainingConfig(epochs=12, batch_size=8, learning_rate=0.01)


def sentence(person: str, place: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    words = [*person.split(), "went", "to", *place.split(), "."]
    tags = [*("B-PER", "I-PER")[: len(person.split())], "O", "O", *("B-LOC", "I-LOC")[: len(place.split())], "O"]
    return tuple(words), tuple(tags)


def travels() -> Examples:
    pairs = [sentence(person, place) for person in PEOPLE for place in PLACES]
    return Examples([words for words, _ in pairs], [tags for _, tags in pairs])


def spans() -> Examples:
    texts, targets = [], []
    for person in PEOPLE:
        for place in PLACES:
            texts.append(f"{person} went to {place}.")
            start = texts[-1].index(place)
            targets.append(((0, len(person), "PER"), (start, start + len(place), "LOC")))
    return Examples(texts, targets)


class TestEntityRecognizer(PipelineContract):
    pipeline_class = EntityRecognizer
    config: ClassVar = EntityRecognizerConfig(**TINY)
    training: ClassVar = TRAINING
    metric_names: ClassVar = ("f1", "precision", "recall", "f1_LOC", "f1_PER")
    floor: ClassVar = 0.9

    @classmethod
    def data(cls) -> Any:
        return travels()

    @classmethod
    def inputs(cls) -> list[Any]:
        return ["Alan Turing went to Rome.", "", ["Ada", "Lovelace", "went", "to", "Paris", "."], "🎬 \u200d", []]

    @classmethod
    def inputs_as_code(cls) -> str:
        return repr(cls.inputs())

    @classmethod
    def wrong_inputs(cls) -> list[tuple[Any, type[Exception], str]]:
        return [
            ("one text", TypeError, "list of texts"),
            ([3], TypeError, "received int"),
            ([b"\xff\xfe"], ValueError, "not UTF-8"),
            ([["a", 3]], TypeError, "list of words"),
        ]


@pytest.fixture(scope="module")
def fitted() -> EntityRecognizer:
    recognizer = EntityRecognizer(EntityRecognizerConfig(**TINY))
    recognizer.fit(travels(), training=TRAINING)
    return recognizer


def test_entities_have_places_in_the_text(fitted: EntityRecognizer) -> None:
    text = "  Grace Hopper went\tto New York ."
    (answer,) = fitted.predict([text])
    assert isinstance(answer, Entities)
    assert [(e.text, e.label) for e in answer] == [("Grace Hopper", "PER"), ("New York", "LOC")]
    assert all(text[e.start : e.end] == e.text and 0.5 < e.score <= 1 and e.words is None for e in answer)


def test_entities_of_word_lists_name_their_words(fitted: EntityRecognizer) -> None:
    words = ["Ada", "Lovelace", "went", "to", "New", "York", "."]
    (answer,) = fitted.predict([words])
    assert [e.words for e in answer] == [(0, 2), (4, 6)]
    assert all(" ".join(words)[e.start : e.end] == e.text for e in answer)


def test_entities_are_found_at_the_end_of_a_long_document(fitted: EntityRecognizer) -> None:
    text = "they went to it . " * 4000 + "Emmy Noether went to Rome."
    (answer,) = fitted.predict([text])
    assert [(e.text, e.label) for e in answer[-2:]] == [("Emmy Noether", "PER"), ("Rome", "LOC")]
    assert answer[-1].end == len(text) - 1


@pytest.mark.parametrize("scheme", ["IOB1", "IOB2", "BIOES"])
def test_files_in_any_scheme_give_the_same_scores(fitted: EntityRecognizer, scheme: Any) -> None:
    data = travels()
    written = Examples(data.inputs, convert(list(data.targets), "IOB2", scheme))
    assert dict(fitted.evaluate(written)) == dict(fitted.evaluate(data))


@pytest.mark.parametrize("options", [{"crf": True}, {"scheme": "BIOES"}, {"encoder": "gru"}, {"constrained": False}])
def test_variants_learn(options: dict[str, Any]) -> None:
    recognizer = EntityRecognizer(EntityRecognizerConfig(**TINY, **options))
    history = recognizer.fit(travels(), training=TRAINING.replace(epochs=25))
    assert history.losses[-1] < 0.5 * history.losses[0]
    assert recognizer.evaluate(travels()).first > 0.9


def test_spans_of_characters_train_as_well(fitted: EntityRecognizer) -> None:
    recognizer = EntityRecognizer(EntityRecognizerConfig(**TINY))
    recognizer.fit(spans(), training=TRAINING)
    assert recognizer.labels == ("LOC", "PER")
    assert recognizer.evaluate(spans()).first > 0.9
    assert fitted.evaluate(spans()).first > 0.9


def test_a_field_is_saved_with_the_rest(tmp_path) -> None:
    recognizer = EntityRecognizer(EntityRecognizerConfig(**TINY, crf=True))
    recognizer.fit(travels(), training=TRAINING.replace(epochs=2))
    recognizer.save(tmp_path / "saved")
    inputs = TestEntityRecognizer.inputs()
    assert EntityRecognizer.load(tmp_path / "saved").predict(inputs) == recognizer.predict(inputs)


def test_bad_tags_are_named(fitted: EntityRecognizer) -> None:
    with pytest.raises(ValueError, match="2 words have 1 tags"):
        fitted.evaluate(Examples([("a", "b")], [("O",)]))
    with pytest.raises(ValueError, match="ORG"):
        fitted.evaluate(Examples([("a", "b")], [("B-ORG", "O")]))
    with pytest.raises(ValueError, match="no entities"):
        EntityRecognizer(EntityRecognizerConfig(**TINY)).fit(Examples([("a", "b")], [("O", "O")]))


def test_offsets_hold_for_hard_strings(fitted: EntityRecognizer) -> None:
    rng = np.random.default_rng(0)
    latin = ["Ada", "Rome", "e\u0301", "ß", "\ufb01", ".", "\t", "  ", "\u00a0", "\u200b"]
    pieces = [*latin, "🎬", "👨\u200d👩\u200d👧", "東京", "שלום", "مرحبا", "ไทย"]
    texts = ["".join(rng.choice(pieces, rng.integers(1, 12))) for _ in range(500)]
    found = 0
    for text, answer in zip(texts, fitted.predict(texts), strict=True):
        for entity in answer:
            assert text[entity.start : entity.end] == entity.text != ""
            found += 1
    assert found > 100


def test_an_answer_in_plain_values() -> None:
    answer = Entities([Entity("Rome", "LOC", 3, 7, 0.9, (1, 2))])
    assert answer.to_dict() == {
        "entities": [{"text": "Rome", "label": "LOC", "start": 3, "end": 7, "words": [1, 2], "score": 0.9}]
    }


def test_hugging_face_and_back(fitted: EntityRecognizer, tmp_path) -> None:
    fitted.save_hugging_face(tmp_path / "exported")
    again = EntityRecognizer.from_preset(tmp_path / "exported")
    assert again.is_fitted
    assert (again.labels, again.config.constrained) == (("LOC", "PER"), False)
    for mine, theirs in zip(*(r.predict(TestEntityRecognizer.inputs()) for r in (fitted, again)), strict=True):
        assert [(e.text, e.label, e.start) for e in mine] == [(e.text, e.label, e.start) for e in theirs]
        assert [e.score for e in mine] == pytest.approx([e.score for e in theirs], abs=1e-5)
    with pytest.raises(ValueError, match="ORG"):
        again.fit(Examples([("Acme",)], [("B-ORG",)]), training=TRAINING.replace(epochs=1))
    new = EntityRecognizer.from_preset(tmp_path / "exported", labels=("ORG",), crf=True)
    assert not new.is_fitted
    assert new.model.output_shape == (None, None, 3)
    new.fit(Examples([("Acme", "sells")] * 8, [("B-ORG", "O")] * 8), training=TRAINING.replace(epochs=2))
    with pytest.raises(ValueError, match="conditional random field"):
        new.save_hugging_face(tmp_path / "other")


@pytest.mark.parametrize("fields", [{"scheme": "BIOES"}, {"crf": True}, {"num_layers": 2}])
@pytest.mark.parametrize("start", ["saved", "exported"])
def test_a_pretrained_network_stays_what_it_is(fitted: EntityRecognizer, tmp_path, start, fields) -> None:
    fitted.save(tmp_path / "saved")
    fitted.save_hugging_face(tmp_path / "exported")
    (field,) = fields
    with pytest.raises(ValueError, match=field):
        EntityRecognizer.from_preset(tmp_path / start, **fields)
    again = EntityRecognizer.from_preset(tmp_path / start)
    text = "Alan Turing went to Rome."
    assert [(e.text, e.label) for e in again.predict([text])[0]] == [
        (e.text, e.label) for e in fitted.predict([text])[0]
    ]
