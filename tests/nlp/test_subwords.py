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
    assert tokenizer.unknown_id is None


def test_special_tokens_are_no_text(tokenizer):
    (row,) = tokenizer.encode_targets(["der Wal"])
    assert tokenizer.decode([[tokenizer.pad_id, *row, tokenizer.pad_id]]) == ["der Wal"]
    assert tokenizer.encode([""]) == [[tokenizer.end_id]]
    assert tokenizer.encode([]) == []


def test_the_same_texts_give_the_same_vocabulary(tokenizer, tmp_path):
    again = TranslationTokenizer.train(PAIRS, vocab_size=320)
    for name, one in (("a", tokenizer), ("b", again)):
        one.save(tmp_path / name)
    files = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert files == ["source.spm", "subwords.json"]
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


def test_a_vocabulary_is_no_larger_than_the_texts_allow(caplog):
    tokenizer = TranslationTokenizer.train(PAIRS, vocab_size=5000)
    assert 256 < tokenizer.source_size < 1000
    assert "not 5000" in caplog.text


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="A vocabulary of 100 tokens cannot be learned"):
        TranslationTokenizer.train(PAIRS, vocab_size=100)
    with pytest.raises(ValueError, match="no texts"):
        TranslationTokenizer.train([], vocab_size=100)


def marian_directory(directory, tokenizer, extra=()):
    """The learned vocabulary as Hugging Face's files of Marian have one, its ids the other way round."""
    tokenizer.save(directory)
    (directory / "subwords.json").unlink()
    (directory / "target.spm").write_bytes((directory / "source.spm").read_bytes())
    pieces = tokenizer._source.processor
    names = [pieces.id_to_piece(i) for i in range(tokenizer.source_size)]
    ids = {name: number for number, name in enumerate([*reversed(names), *extra])}
    (directory / "vocab.json").write_text(json.dumps(ids))
    return ids


def test_hugging_faces_marian_has_its_ids_in_a_list(tmp_path, tokenizer):
    ids = marian_directory(tmp_path, tokenizer)
    marian = TranslationTokenizer.from_directory(tmp_path)
    assert (marian.end_id, marian.pad_id, marian.unknown_id) == (ids["</s>"], ids["<pad>"], ids["<unk>"])
    ours = [[tokenizer.source_size - 1 - i for i in row] for row in tokenizer.encode(HARD)]
    assert marian.encode(HARD) == ours
    assert marian.decode(marian.encode_targets(HARD[2:5])) == HARD[2:5]
    marian.save(tmp_path / "again")
    assert TranslationTokenizer.from_directory(tmp_path / "again").encode(HARD) == ours


def test_a_multilingual_model_is_told_the_language(tmp_path, tokenizer):
    ids = marian_directory(tmp_path, tokenizer, extra=(">>deu<<", ">>nld<<"))
    marian = TranslationTokenizer.from_directory(tmp_path)
    assert marian.languages == ("deu", "nld")
    (row,) = marian.encode(["the"], language="nld")
    assert row[0] == ids[">>nld<<"]
    for language in ("", "fra"):
        with pytest.raises(ValueError, match=f"several languages: deu, nld; received '{language}'"):
            marian.encode(["the"], language=language)


def test_one_language_needs_no_name(tokenizer):
    with pytest.raises(ValueError, match="one target language; received `language` 'deu'"):
        tokenizer.encode(["the"], language="deu")


def test_unknown_pieces_are_known_to_be_unknown(tmp_path, tokenizer):
    ids = marian_directory(tmp_path, tokenizer)
    bytes_out = {name: number for name, number in ids.items() if not name.startswith("<0x")}
    (tmp_path / "vocab.json").write_text(json.dumps(bytes_out))
    marian = TranslationTokenizer.from_directory(tmp_path)
    assert [marian.knows(row) for row in marian.encode(["the", "中文", "", "中 the"])] == [True, False, False, True]


def test_marians_own_vocabulary_has_a_row_more_for_padding(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    (tmp_path / "subwords.json").unlink()
    (tmp_path / "source.spm").rename(tmp_path / "vocab.ende.spm")
    marian = TranslationTokenizer.from_directory(tmp_path)
    assert marian.pad_id == tokenizer.source_size == marian.source_size - 1
    assert marian.encode(HARD) == tokenizer.encode(HARD)
    marian.save(tmp_path / "again")
    again = TranslationTokenizer.from_directory(tmp_path / "again")
    assert (again.pad_id, again.source_size, again.end_id) == (marian.pad_id, marian.source_size, marian.end_id)


def test_damaged_and_missing_files_are_named(tmp_path, tokenizer):
    with pytest.raises(FileNotFoundError, match=r"expected subwords.json, or source.spm with vocab.json"):
        TranslationTokenizer.from_directory(tmp_path)
    tokenizer.save(tmp_path)
    (tmp_path / "source.spm").write_bytes(b"no model" * 100)
    with pytest.raises(ValueError, match=r"source.spm is no SentencePiece model, or damaged"):
        TranslationTokenizer.from_directory(tmp_path)
    (tmp_path / "source.spm").unlink()
    with pytest.raises(FileNotFoundError, match=r"source.spm is missing"):
        TranslationTokenizer.from_directory(tmp_path)
    (tmp_path / "subwords.json").write_text('{"kind": "pickle", "shared": true, "pad_id": 0, "end_id": 1}')
    with pytest.raises(ValueError, match="found 'pickle'"):
        TranslationTokenizer.from_directory(tmp_path)


def test_texts_must_be_texts(tokenizer):
    with pytest.raises(TypeError, match="received bytes"):
        tokenizer.encode([b"bytes"])
