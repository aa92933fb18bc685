from __future__ import annotations

import itertools

import numpy as np
import pytest

from nlp.tags import tag_names, transitions
from nlp.viterbi import TagChain

RNG = np.random.default_rng(0)


def all_paths(emissions, pairs, first, last):
    """Every path with its score, by definition."""
    for path in itertools.product(range(emissions.shape[1]), repeat=len(emissions)):
        score = first[path[0]] + last[path[-1]] + sum(emissions[i, tag] for i, tag in enumerate(path))
        yield path, score + sum(pairs[a, b] for a, b in itertools.pairwise(path))


@pytest.mark.parametrize("length", [1, 2, 5])
def test_a_field_decodes_as_by_trying_everything(length):
    scores = [RNG.normal(size=shape) for shape in ((3, 3), (3,), (3,))]
    emissions = RNG.normal(size=(length, 3))
    paths, values = zip(*all_paths(emissions, *scores), strict=True)
    best = paths[int(np.argmax(values))]
    shares = np.exp(values) / np.exp(values).sum()
    path, chances = TagChain(3, scores).decode(emissions)
    assert tuple(path) == best
    for word, tag in enumerate(best):
        expected = sum(share for share, other in zip(shares, paths, strict=True) if other[word] == tag)
        assert chances[word] == pytest.approx(expected, rel=1e-9)


def test_without_a_field_and_rules_each_word_decides():
    emissions = RNG.normal(size=(20, 4)).astype(np.float32)
    path, chances = TagChain(4).decode(emissions)
    assert path == emissions.argmax(axis=1).tolist()
    assert chances == pytest.approx(np.exp(emissions).max(axis=1) / np.exp(emissions).sum(axis=1), rel=1e-6)


@pytest.mark.parametrize("scheme", ["IOB1", "IOB2", "BIOES"])
def test_answers_keep_to_the_scheme(scheme):
    names = tag_names(["PER", "LOC"], scheme)
    allowed = transitions(names, scheme)
    chain = TagChain(len(names), allowed=allowed)
    for _ in range(50):
        path, _ = chain.decode(RNG.normal(size=(7, len(names))) * 3)
        assert allowed.first[path[0]]
        assert allowed.last[path[-1]]
        assert all(allowed.pairs[a, b] for a, b in itertools.pairwise(path))


def test_no_words_have_no_tags():
    path, chances = TagChain(3).decode(np.zeros((0, 3)))
    assert (path, len(chances)) == ([], 0)
