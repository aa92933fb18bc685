from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys
from typing import Any, ClassVar

import numpy as np
import pytest

from nlp.decoding import decode
from nlp.seq2seq_model import Seq2SeqModel
from nlp.subwords import TranslationTokenizer
from nlp.translation import Translation, Translator, TranslatorConfig
from shared import Examples, NotFittedError, TrainingConfig
from shared.runtime import activated, current_runtime
from tests.contract import PipelineContract

ENGLISH = ["one", "two", "three", "four", "five", "six", "seven"]
GERMAN = ["eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben"]
TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_layers": 1,
    "num_heads": 2,
    "vocab_size": 330,
    "num_beams": 2,
    "max_length": 32,
    "dropout": 0.0,
}
TRAINING = TrainingConfig(epochs=25, batch_tokens=256, learning_rate=0.01, warmup=0.1)


def numbers(count: int = 160, seed: int = 0) -> Examples:
    rng = random.Random(seed)
    rows = [[rng.randrange(len(ENGLISH)) for _ in range(rng.randint(1, 4))] for _ in range(count)]
    return Examples(*([" ".join(words[i] for i in row) + "." for row in rows] for words in (ENGLISH, GERMAN)))


class TestTranslator(PipelineContract):
    pipeline_class = Translator
    config: ClassVar = TranslatorConfig(**TINY)
    training: ClassVar = TRAINING
    metric_names: ClassVar = ("bleu", "chrf")
    floor: ClassVar = 60.0

    @classmethod
    def data(cls) -> Any:
        return numbers()

    @classmethod
    def inputs(cls) -> list[Any]:
        return ["one two. three four five!\n\nseven", "", "🎬 \u200d", "six", " \t one\x00two \ud800", "x" * 100]

    @classmethod
    def inputs_as_code(cls) -> str:
        return repr(cls.inputs())

    @classmethod
    def wrong_inputs(cls) -> list[tuple[Any, type[Exception], str]]:
        return [
            ("one text", TypeError, "list of texts"),
            ([3], TypeError, "received int"),
            ([b"\xff\xfe"], ValueError, "not UTF-8"),
        ]


@pytest.fixture(scope="module")
def fitted() -> Translator:
    translator = Translator(TranslatorConfig(**TINY))
    translator.fit(numbers(400), training=TRAINING.replace(epochs=40))
    return translator


def test_sentences_are_translated_one_by_one_and_what_is_between_them_kept(fitted: Translator) -> None:
    (answer,) = fitted.predict(["  one.\n two.\n\n three.\t"])
    assert answer.text == "  eins.\n zwei.\n\n drei.\t"
    assert -1 < answer.score < 0


def test_what_has_no_letters_is_kept_as_it_is(fitted: Translator) -> None:
    kept = ["", " \n", "🎬!", "...", "—"]
    assert [(answer.text, answer.score) for answer in fitted.predict(kept)] == [(text, 0.0) for text in kept]


def test_longer_sentences_than_the_model_takes_are_cut(fitted: Translator) -> None:
    text = "one three " * 40 + "four."
    (answer,) = fitted.predict([text])
    assert len(fitted.tokenizer.encode([text])[0]) > fitted.config.max_length
    rows = [piece.ids for piece in fitted._pieces(text, "") if piece.ids]
    assert max(len(row) for row in rows) <= fitted.config.max_length
    assert sum(len(row) - 1 for row in rows) >= len(fitted.tokenizer.encode([text])[0]) - 1
    assert answer.text.count("drei") >= len(rows) > 2


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("one two " * 1250, id="words"),
        pytest.param("x" * 10_000, id="no_spaces"),
        pytest.param("एक दो तीन।", id="devanagari"),
        pytest.param("一二三。四五六", id="han"),
        pytest.param("🎬🎬🎬 👩\u200d👩\u200d👧", id="emoji"),
        pytest.param("\ud800\udfff\ud800", id="surrogates"),
        pytest.param("\x00\x00", id="nul"),
        pytest.param("a\x00b", id="nul_inside"),
        pytest.param("\u202e", id="direction"),
    ],
)
@pytest.mark.parametrize("beams", [1, 2])
def test_strange_texts_are_answered_and_leave_their_neighbours_alone(fitted: Translator, text: str, beams: int) -> None:
    decoding = fitted.decoding.replace(num_beams=beams)
    texts = [f"one.\n{text}\r\ntwo.", "three."]
    answers = fitted.predict(texts, decoding=decoding)
    first, _, rest = answers[0].text.partition("\n")
    middle, _, last = rest.rpartition("\r\n")
    plain = [answer.text for answer in fitted.predict(["one.", "two.", "three."], decoding=decoding)]
    assert [first, last, answers[1].text] == plain
    # At most three tokens for each of the source, of which there are no more than bytes and a few.
    assert len(middle) <= 30 * (len(text.encode("utf-8", "replace")) + 8)
    if not any(character.isalnum() for character in text):
        assert middle == text


def test_alternatives_come_with_falling_scores(fitted: Translator) -> None:
    (answer,) = fitted.predict(["one two."], num_answers=3)
    assert len(answer.alternatives) == 2
    scores = [answer.score, *(other.score for other in answer.alternatives)]
    assert scores == sorted(scores, reverse=True)
    assert len({answer.text, *(other.text for other in answer.alternatives)}) == 3
    assert set(answer.to_dict()) == {"text", "score", "alternatives"}
    assert fitted.predict(["one two."])[0].alternatives == ()
    with pytest.raises(ValueError, match="at least 1"):
        fitted.predict(["one"], num_answers=0)


def test_another_search_can_be_asked_for(fitted: Translator) -> None:
    sampling = fitted.decoding.replace(num_beams=1, sample=True, temperature=5.0, seed=1)
    drawn = fitted.predict(["one two three four."] * 8, decoding=sampling)
    assert len({answer.text for answer in drawn}) > 1
    assert fitted.predict(["one two three four."] * 8, decoding=sampling) == drawn


def test_scores_carry_their_signatures(fitted: Translator) -> None:
    metrics = fitted.evaluate(numbers(20, seed=1))
    assert metrics["bleu"] > 50
    assert metrics.details["signatures"]["bleu"].startswith("nrefs:1|case:mixed|eff:no|tok:13a")


def test_empty_sides_and_too_long_pairs_are_bad_examples(fitted: Translator) -> None:
    data = numbers(40)
    broken = Examples([*data.inputs, "one.", "two " * 100], [*data.targets, " ", "zwei"])
    translator = Translator(TranslatorConfig(**TINY))
    history = translator.fit(broken, training=TRAINING.replace(epochs=1, max_bad_share=0.1))
    assert [bad.partition(": ")[2] or bad for bad in history.bad_records] != []
    with pytest.raises(ValueError, match="cannot be read"):
        Translator(TranslatorConfig(**TINY)).fit(broken, training=TRAINING.replace(epochs=1))


@pytest.mark.parametrize(
    "options",
    [
        {"shared_vocabulary": False},
        {"vocabulary": "bpe"},
        {"num_beams": 1},
        {"network": "recurrent"},
        {"subword_sampling": 0.2},
    ],
)
def test_variants_learn(options: dict[str, Any]) -> None:
    translator = Translator(TranslatorConfig(**(TINY | options)))
    history = translator.fit(numbers(), training=TRAINING.replace(epochs=45))
    assert history.losses[-1] < 0.5 * history.losses[0]
    assert translator.evaluate(numbers()).first > 40


def test_training_cuts_words_anew_in_each_epoch_and_equally_in_each_run(fitted: Translator) -> None:
    def epochs(share: float) -> list[list[list[int]]]:
        translator = Translator(TranslatorConfig(**TINY, subword_sampling=share))
        translator._seq2seq = fitted._seq2seq
        batches = translator.training_task(numbers(40), TRAINING.replace(batch_tokens=128)).batches
        return [
            [row[row >= 0].tolist() for batch in batches.epoch(epoch) for row in batch["targets"]] for epoch in (0, 1)
        ]

    plain, varied, again = epochs(0.0), epochs(0.5), epochs(0.5)
    texts = [sorted(fitted.tokenizer.decode(rows)) for rows in (*plain, *varied)]
    assert texts == [texts[0]] * 4
    assert varied == again
    assert sorted(plain[0]) == sorted(plain[1])
    assert sorted(varied[0]) != sorted(varied[1]) != sorted(plain[0])


@pytest.mark.parametrize("options", [{}, {"prefix": ">>deu<< "}, {"language": "deu"}])
def test_sources_with_a_language_are_cut_anew(options: dict[str, Any]) -> None:
    data = numbers(20)
    translator = Translator(TranslatorConfig(**TINY, subword_sampling=1.0, **options))
    tokenizer = TranslationTokenizer.train(
        zip(data.inputs, data.targets, strict=True), vocab_size=340, languages=["deu"]
    )
    translator._seq2seq = Seq2SeqModel(tokenizer)
    text = "one two three" if options else ">>deu<< one two three"
    translator._seq2seq.ensure([], translator.config)
    example, rng = translator._encode_with_texts(text, "eins zwei drei"), np.random.default_rng(0)
    drawn = [translator._resampling()(example, rng)["source_ids"].tolist() for _ in range(10)]
    assert len(set(map(tuple, drawn))) > 2
    assert {row[0] for row in drawn} == {tokenizer.language_id("deu")}
    assert len(set(tokenizer.decode(drawn))) == 1


def test_vocabularies_without_probabilities_have_no_random_pieces() -> None:
    translator = Translator(TranslatorConfig(**TINY, subword_sampling=0.1, vocabulary="bpe"))
    with pytest.raises(ValueError, match="needs a unigram vocabulary"):
        translator.fit(numbers(20), training=TRAINING.replace(epochs=1))


def test_a_saved_translator_is_a_start_for_another(fitted: Translator, tmp_path: Any) -> None:
    fitted.save(tmp_path / "saved")
    again = Translator.from_preset(tmp_path / "saved", num_beams=1)
    assert again.config.num_beams == 1
    assert again.predict(["one."])[0].text == "eins."
    history = again.fit(numbers(), training=TRAINING.replace(epochs=1, learning_rate=1e-4))
    assert history.losses[0] < 1


def test_with_xla_batches_have_few_sizes_and_the_same_answers(
    fitted: Translator, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = numbers(7, seed=3).inputs
    plain = fitted.predict(texts)
    shapes = []

    def noted(model: Any, source_ids: np.ndarray, mask: np.ndarray, config: Any) -> Any:
        shapes.append(mask.shape)
        return decode(model, source_ids, mask, config)

    monkeypatch.setattr("nlp.seq2seq_model.decode", noted)
    with activated(dataclasses.replace(current_runtime(), xla=True)):
        compiled = fitted.predict(texts)
    assert [answer.text for answer in compiled] == [answer.text for answer in plain]
    np.testing.assert_allclose([a.score for a in compiled], [a.score for a in plain], rtol=1e-4, atol=1e-5)
    assert {rows for rows, _ in shapes} == {8}


def test_there_is_no_model_before_the_vocabulary() -> None:
    with pytest.raises(NotFittedError, match="vocabulary"):
        _ = Translator().model


def test_heads_must_share_the_features() -> None:
    with pytest.raises(ValueError, match="multiple of `num_heads`"):
        TranslatorConfig(hidden_size=30, num_heads=4)


def test_an_answer_is_plain_data() -> None:
    assert Translation("x", -0.5).to_dict() == {"text": "x", "score": -0.5}


def test_a_translator_can_be_written_as_hugging_faces_marian(fitted: Translator, tmp_path: Any) -> None:
    fitted.save_hugging_face(tmp_path)
    again = Translator.from_preset(tmp_path)
    texts = ["one two three.", "seven"]
    assert again.predict(texts) == fitted.predict(texts)
    assert again.config.num_beams == fitted.config.num_beams


def test_the_longest_pairs_fit_whatever_their_padding() -> None:
    # 34 tokens would be padded to 40, and the network has positions for 34.
    translator = Translator(TranslatorConfig(**(TINY | {"max_length": 34})))
    data = numbers()
    long = Examples([*data.inputs, " ".join(["seven"] * 33)], [*data.targets, " ".join(["sieben"] * 33)])
    translator.fit(long, training=TRAINING.replace(epochs=1))
    assert translator.tokenizer is not None
    sizes = {len(row) for row in translator.tokenizer.encode([" ".join(["one"] * n) for n in range(30, 36)])}
    assert 34 in sizes
    assert len(translator.predict([" ".join(["one"] * n) for n in range(30, 36)])) == 6


def test_a_preset_says_how_long_its_texts_may_be(fitted: Translator, tmp_path: Any) -> None:
    fitted.save(tmp_path / "saved")
    with pytest.raises(ValueError, match="at most 32 tokens; received `max_length` 40"):
        Translator.from_preset(tmp_path / "saved", max_length=40)


def test_an_exported_translator_takes_strings_without_this_project(fitted: Translator, tmp_path: Any) -> None:
    fitted.export(tmp_path / "exported")
    texts = ["one two.", "six", "", " ?! ", "three  four\x00", "☃☃", "seven six five."]
    long = " ".join(["four"] * 100)
    code = (
        "import json, sys, tensorflow as tf\n"
        "served = tf.saved_model.load(sys.argv[1])\n"
        "assert not any(name in sys.modules for name in ('nlp', 'shared', 'keras_hub', 'tensorflow_text'))\n"
        "answers = served.serve(tf.constant(json.loads(sys.argv[2]))).numpy()\n"
        "assert served.serve(tf.constant([], tf.string)).shape == (0,)\n"
        "print('ANSWERS', json.dumps([answer.decode() for answer in answers]))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "exported"), json.dumps([*texts, long])]
    child = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert child.returncode == 0, child.stderr
    line = next(line for line in child.stdout.splitlines() if line.startswith("ANSWERS "))
    *answers, of_long = json.loads(line.removeprefix("ANSWERS "))
    assert answers == [answer.text for answer in fitted.predict(texts)]
    assert of_long.count("vier") >= 8


@pytest.mark.parametrize("fields", [{"hidden_size": 64}, {"vocabulary": "bpe"}, {"dropout": 0.5}])
def test_a_pretrained_network_stays_what_it_is(fitted: Translator, tmp_path: Any, fields: dict[str, Any]) -> None:
    fitted.save(tmp_path / "saved")
    fitted.save_hugging_face(tmp_path / "exported")
    (field,) = fields
    for start in ("saved", "exported"):
        with pytest.raises(ValueError, match=field):
            Translator.from_preset(tmp_path / start, **fields)


def test_training_frees_the_kernels_that_answering_has_kept() -> None:
    training = TrainingConfig(epochs=1, batch_tokens=256)
    translator = Translator(TranslatorConfig(**TINY))
    translator.fit(numbers(), training=training)
    translator.predict(["one two."])
    kept = translator.model.__dict__["_kept_weights"]
    assert kept._prepared is not None
    assert kept._watched.values
    task = translator.training_task(numbers(), training)
    assert (kept._prepared, kept._watched.values) == (None, [])
    translator.predict(["one two."])
    translator.fit(numbers(), numbers(8, seed=1), training=training)  # a validation is the last thing that it does
    assert task.model is translator.model
    assert (kept._prepared, kept._watched.values) == (None, [])
