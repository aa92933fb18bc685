from __future__ import annotations

import json

import pytest

from nlp.subwords import TranslationTokenizer

PAIRS = [
    (f"the {a} {b} sleeps.", f"der {a}e {b} schläft.") for a in ("rot", "klein", "alt") for b in ("Hund", "Wal", "Ast")
]
HARD = [
    "",
    " ",
    "the rot Hund",
    "😀😀👍🏽",
    "مرحبا 中文 Ж",
    "a\ud800b",
    "nul \x00 here",
    "x" * 10_000,
    "e\u0301 é ﬁ",
    "two\nlines\t tab",
]


@pytest.fixture(scope="module")
def tokenizer():
    return TranslationTokenizer.train(PAIRS, vocab_size=320)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_texts_come_back_from_a_learned_vocabulary(kind, shared):
    tokenizer = TranslationTokenizer.train(PAIRS, vocab_size=300, kind=kind, shared=shared)
    texts = [text for _, text in PAIRS]
    rows = tokenizer.encode_targets(texts)
    assert tokenizer.decode(rows) == texts
    assert all(row[-1] == tokenizer.end_id and tokenizer.pad_id not in row for row in rows)
    assert max(max(row) for row in rows) < tokenizer.target_size <= 300
    assert tokenizer.shared is shared


def test_nothing_is_unknown_to_it(tokenizer):
    decoded = tokenizer.decode(tokenizer.encode(HARD))
    assert decoded[:5] == ["", "", "the rot Hund", "😀😀👍🏽", "مرحبا 中文 Ж"]
    assert decoded[5] == "a b"  # SentencePiece takes U+FFFD for white space
    assert decoded[6] == "nul \x00 here"
    assert decoded[7] == HARD[7]
    assert decoded[8:] == ["é é fi", "two lines tab"]  # SentencePiece's NFKC and white space
    assert all(tokenizer.unknown_id not in row for row in tokenizer.encode(HARD))


def test_special_tokens_are_no_text(tokenizer):
    (row,) = tokenizer.encode_targets(["der Wal"])
    assert tokenizer.decode([[tokenizer.pad_id, *row, tokenizer.pad_id]]) == ["der Wal"]
    assert tokenizer.encode([""]) == [[tokenizer.end_id]]
    assert tokenizer.encode([]) == []


def test_the_same_texts_give_the_same_vocabulary(tokenizer, tmp_path):
    again = TranslationTokenizer.train(PAIRS, vocab_size=320)
    for name, one in (("a", tokenizer), ("b", again)):
        (tmp_path / name).mkdir()
        one.save(tmp_path / name)
    files = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert files == ["source.spm", "target.spm", "tokenizer_config.json", "vocab.json"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


@pytest.mark.parametrize("shared", [True, False])
def test_what_was_saved_is_loaded(tmp_path, shared):
    tokenizer = TranslationTokenizer.train(PAIRS, vocab_size=300, shared=shared)
    tokenizer.save(tmp_path)
    loaded = TranslationTokenizer.from_directory(tmp_path)
    assert loaded.encode(HARD) == tokenizer.encode(HARD)
    assert loaded.encode_targets(HARD) == tokenizer.encode_targets(HARD)
    assert (loaded.source_size, loaded.target_size, loaded.shared) == (
        tokenizer.source_size,
        tokenizer.target_size,
        shared,
    )


def test_a_vocabulary_is_no_larger_than_the_texts_allow():
    tokenizer = TranslationTokenizer.train(PAIRS, vocab_size=5000)
    assert 256 < tokenizer.source_size < 1000


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="No vocabulary of 100 pieces"):
        TranslationTokenizer.train(PAIRS, vocab_size=100)
    with pytest.raises(ValueError, match="text"):
        TranslationTokenizer.train([], vocab_size=100)


def test_a_multilingual_model_is_told_the_language(tmp_path):
    tokenizer = TranslationTokenizer.train(PAIRS, vocab_size=320, languages=("deu", "nld"))
    tokenizer.save(tmp_path)
    for one in (tokenizer, TranslationTokenizer.from_directory(tmp_path)):
        assert sorted(one.languages) == ["deu", "nld"]
        (row,), (plain,) = one.encode(["the"], language="nld"), one.encode(["the"])
        assert row[1:] == plain
        assert one.encode([">>nld<<the"]) == [row]
        with pytest.raises(ValueError, match=r"does not know the language 'fra': it knows .*deu"):
            one.encode(["the"], language="fra")


def test_one_language_needs_no_name(tokenizer):
    with pytest.raises(ValueError, match="'deu': it is for one language; leave `language` out"):
        tokenizer.encode(["the"], language="deu")


def test_unknown_pieces_are_known_to_be_unknown(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    ids = json.loads((tmp_path / "vocab.json").read_text())
    without_bytes = {name: number for name, number in ids.items() if not name.startswith("<0x")}
    (tmp_path / "vocab.json").write_text(json.dumps(without_bytes))
    marian = TranslationTokenizer.from_directory(tmp_path)
    assert [marian.knows(row) for row in marian.encode(["the", "中文", "", "中 the"])] == [True, False, False, True]


def test_marians_own_vocabulary_is_read_by_its_numbers(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "source.spm").rename(tmp_path / "own" / "vocab.ende.spm")
    assert TranslationTokenizer.from_directory(tmp_path / "own").encode(HARD) == tokenizer.encode(HARD)


def test_damaged_and_missing_files_are_named(tmp_path, tokenizer):
    with pytest.raises(FileNotFoundError, match=r"no source.spm with target.spm and vocab.json"):
        TranslationTokenizer.from_directory(tmp_path)
    tokenizer.save(tmp_path)
    (tmp_path / "source.spm").write_bytes(b"no model" * 100)
    with pytest.raises(ValueError, match=r"source.spm"):
        TranslationTokenizer.from_directory(tmp_path)


def test_texts_must_be_texts(tokenizer):
    with pytest.raises(TypeError, match="received bytes"):
        tokenizer.encode([b"bytes"])
