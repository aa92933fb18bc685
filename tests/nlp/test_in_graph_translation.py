"""Within a graph a text gets the ids of the tokenizer, and ids the text, whatever is in it."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from nlp.in_graph_translation import in_graph_translation
from nlp.sentence_pieces import parse_sentence_pieces
from nlp.subwords import PieceVocabulary, TranslationTokenizer
from tests.golden.make_tokenizers import TEXT
from tests.golden.make_translation_tokenizers import KEPT, assemble, texts, train
from tests.nlp.hard_texts import HARD_TEXTS, random_text

PAIRS = list(zip(TEXT[:26], TEXT[:-27:-1], strict=True))
KINDS = ("marian", "separate", "unigram", "bpe", "target_bpe", "plain")
BATCH = tf.TensorSpec((None,), tf.string)


def encoded(rows):
    return tf.constant([text.encode("utf-8") for text in rows], tf.string)


def of_model(data):
    model = parse_sentence_pieces(data, "test")
    side = PieceVocabulary(model, model.numbers)
    return TranslationTokenizer((side, side))


def made(kind, folder):
    if kind in ("marian", "separate"):
        return TranslationTokenizer.from_directory(assemble(folder, kind))
    if kind == "plain":  # no character map, and pieces that reach over spaces
        data = train(TEXT * 3, "bpe", 700, unk_id=2, bos_id=-1, eos_id=1, pad_id=0, split_by_whitespace=False)
        return of_model(data)
    if kind == "target_bpe":  # BPE without bytes
        target = TranslationTokenizer.from_directory(assemble(folder, "marian")).sides[1]
        return TranslationTokenizer((target, target))
    return TranslationTokenizer.train(PAIRS, vocab_size=800, kind=kind)


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    done = {}

    def twin(kind):
        if kind not in done:
            tokenizer = made(kind, tmp_path_factory.mktemp("twins"))
            module = in_graph_translation(tokenizer)
            encode = tf.function(module.encode, input_signature=[BATCH], autograph=False)
            done[kind] = tokenizer, module, encode
        return done[kind]

    return twin


def require_equal(twin, rows):
    tokenizer, _, encode = twin
    token_ids, mask = encode(encoded(rows))
    assert (token_ids.dtype, mask.dtype) == (tf.int32, tf.bool)
    for text, ids, real, expected in zip(rows, token_ids.numpy(), mask.numpy(), tokenizer.encode(rows), strict=True):
        assert ids[real].tolist() == expected, ascii(text)
        assert real.tolist() == [True] * len(expected) + [False] * (len(real) - len(expected))
        assert (ids[~real] == tokenizer.source_pad_id).all()


@pytest.mark.parametrize("kind", KINDS)
def test_hard_texts_get_the_same_ids(twins, kind):
    require_equal(twins(kind), [*texts(), *TEXT])


@pytest.mark.parametrize("kind", KINDS)
def test_random_texts_get_the_same_ids(twins, kind):
    rng = random.Random(3)
    require_equal(twins(kind), [random_text(rng) for _ in range(250)])


@pytest.mark.parametrize("kind", ["marian", "bpe"])
def test_every_character_of_the_first_planes_gets_the_same_ids(twins, kind):
    codes = [code for code in range(0x20000) if not 0xD800 <= code < 0xE000]
    rng = random.Random(4)
    require_equal(twins(kind), ["".join(chr(code) + "a" for code in rng.sample(codes, 100)) for _ in range(20)])


@pytest.mark.parametrize("kind", ["unigram", "bpe", "plain"])
def test_ways_that_are_as_good_as_each_other_are_told_apart_alike(twins, kind):
    rng = random.Random(5)
    repeated = ["".join(rng.choices(letters, k=rng.randint(1, 90))) for letters in ("ab", "aeh ", "n", "the ") * 40]
    require_equal(twins(kind), repeated)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_get_the_same_text(twins, kind):
    tokenizer, module, _ = twins(kind)
    rng = random.Random(6)
    width = 40
    rows = [ids[:width] for ids in tokenizer.encode_targets([*HARD_TEXTS, *TEXT])]
    rows += [[rng.randrange(-2, tokenizer.target_size + 2) for _ in range(width)] for _ in range(100)]
    filled = np.array([[*row, *[tokenizer.pad_id] * (width - len(row))] for row in rows], np.int32)
    found = [text.decode("utf-8") for text in module.decode(tf.constant(filled)).numpy()]
    assert found == tokenizer.decode(rows)


def test_nothing_and_empty_texts(twins):
    _, module, encode = twins("unigram")
    assert encode(encoded([]))[0].shape == (0, 0)
    token_ids, mask = encode(encoded(["", " \t", "\x01"]))
    assert token_ids.numpy().tolist() == [[1]] * 3
    assert mask.numpy().all()
    assert module.decode(tf.zeros((2, 0), tf.int32)).numpy().tolist() == [b"", b""]
    assert module.decode(tf.zeros((0, 3), tf.int64)).shape == (0,)


def test_invalid_utf8_is_read_as_replacement_characters(twins):
    _, _, encode = twins("bpe")
    found = encode(tf.constant([b"a\xff b", b"\xe2\x82"]))[0].numpy().tolist()
    assert found == encode(encoded(["a\ufffd b", "\ufffd"]))[0].numpy().tolist()


def test_a_caller_on_a_gpu_reads_and_writes_texts_on_the_cpu(twins):
    _, twin, _ = twins("unigram")

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)], autograph=False)
    def called(texts: tf.Tensor) -> tf.Tensor:
        with tf.device("/device:GPU:0"):
            token_ids, mask = twin.encode(texts)
            token_ids, mask, _ = twin.parts(token_ids, mask, 8)
            return twin.decode(token_ids), twin.knows(token_ids, mask)

    operations = called.get_concrete_function().graph.get_operations()
    assert {operation.type for operation in operations if "GPU" in operation.device} <= {"Identity"}


def test_a_language_is_put_before_texts_that_name_none(twins):
    tokenizer, _, _ = twins("marian")
    module = in_graph_translation(tokenizer, language="fra")
    rows = ["The river", ">>por_Latn<< The river", ">>deu<< The river", "", ">>fra<<\nline >>fra<< more"]
    token_ids, mask = module.encode(encoded(rows))
    expected = tokenizer.encode(rows, language="fra")
    assert [ids[real].tolist() for ids, real in zip(token_ids.numpy(), mask.numpy(), strict=True)] == expected
    with pytest.raises(ValueError, match="does not know the language 'deu'"):
        in_graph_translation(tokenizer, language="deu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"user_defined_symbols": ["<br>"]}, "pieces of a user"),
        ({"add_dummy_prefix": False}, "its own rules for white space"),
        ({"remove_extra_whitespaces": False}, "its own rules for white space"),
        ({"treat_whitespace_as_suffix": True}, "its own rules for white space"),
    ],
)
def test_what_has_no_twin_is_refused(options, message):
    data = train(TEXT, "unigram", 400, unk_id=2, bos_id=-1, eos_id=1, pad_id=0, **options)
    with pytest.raises(ValueError, match=message):
        in_graph_translation(of_model(data))


def test_other_kinds_have_no_twin():
    with pytest.raises(ValueError, match="type 4 has no twin"):
        in_graph_translation(of_model(train(TEXT, "char", 400, unk_id=2, bos_id=-1, eos_id=1, pad_id=0)))
    with pytest.raises(ValueError, match="`tokenizers` library"):
        in_graph_translation(TranslationTokenizer.from_directory(KEPT / "t5"))


def test_a_saved_model_runs_in_plain_tensorflow(twins, tmp_path):
    _, module, encode = twins("marian")
    holder = tf.Module()
    holder.twin = module

    def serve(rows):
        token_ids, _ = module.encode(rows)
        return {"token_ids": token_ids, "texts": module.decode(token_ids)}

    graph = tf.function(serve, input_signature=[BATCH], autograph=False)
    tf.saved_model.save(holder, str(tmp_path / "model"), signatures=graph.get_concrete_function())
    rows = [">>fra<< The river rises.", "", "Straße ½ 😀"]
    program = f"""
import json, sys
import tensorflow as tf
serve = tf.saved_model.load({str(tmp_path / "model")!r}).signatures["serving_default"]
print(json.dumps(serve(tf.constant({rows!r}))["token_ids"].numpy().tolist()))
assert not {{"sentencepiece", "tokenizers", "nlp"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert json.loads(done.stdout) == encode(encoded(rows))[0].numpy().tolist()
