from __future__ import annotations

import numpy as np
import pytest

from nlp.subword_sampling import SubwordSampler
from nlp.subwords import PieceVocabulary, TranslationTokenizer

TEXTS = ["the cat sat on the mat", "a hat and a cat", "that is the hat on the mat"]


@pytest.fixture(scope="module")
def vocabulary() -> PieceVocabulary:
    tokenizer = TranslationTokenizer.train([(text, text) for text in TEXTS * 20], vocab_size=300)
    assert tokenizer.sides is not None
    return tokenizer.sides[0]


@pytest.mark.parametrize("text", ["", " ", *TEXTS, "  the\u00a0cat  \ufb01nds 🎬", "\ud800 the", "x" * 50 + " cat"])
def test_all_ways_to_cut_a_text_spell_it(vocabulary: PieceVocabulary, text: str) -> None:
    (best,) = vocabulary.encode([text.replace("\ud800", "\ufffd")])
    assert SubwordSampler(vocabulary, 0.0).encode(text, np.random.default_rng(0)) == best
    rng, sampler = np.random.default_rng(0), SubwordSampler(vocabulary, 1.0)
    drawn = [sampler.encode(text, rng) for _ in range(20)]
    assert set(vocabulary.decode(drawn)) == set(vocabulary.decode([best]))
    assert all(ids[-1] == vocabulary.end_id for ids in drawn)
    if "cat" in text:
        assert len({tuple(ids) for ids in drawn}) > 2


def test_ways_come_as_often_as_their_probabilities_say(vocabulary: PieceVocabulary) -> None:
    sampler, rng = SubwordSampler(vocabulary, 1.0), np.random.default_rng(0)
    drawn = [tuple(sampler.encode("that", rng)[:-1]) for _ in range(4000)]
    ways = vocabulary.model.processor.nbest_encode("that", nbest_size=32, out_type=int)
    chances = np.exp([0.2 * sum(vocabulary.model.pieces[number][1] for number in way) for way in ways])
    ids = [tuple(vocabulary.id_of_piece[number] for number in way) for way in ways]
    shares = [drawn.count(way) / len(drawn) for way in ids]
    np.testing.assert_allclose(shares, chances / chances.sum(), atol=0.03)
    some = SubwordSampler(vocabulary, 0.3)
    changed = np.mean([tuple(some.encode("that", rng)[:-1]) != ids[0] for _ in range(4000)])
    assert changed == pytest.approx(0.3 * (1 - (chances / chances.sum())[0]), abs=0.03)
