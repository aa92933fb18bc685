"""Subword regularisation: in training, some words are cut into other pieces than the likeliest ones (Kudo 2018).

Of the likeliest ways to cut a word one is drawn with chances P(pieces)^alpha (arXiv:1804.10959, section 3.2; here word
by word: pieces of our vocabularies never reach over a space). A model sees many spellings of the same few texts, which
helps where there is little data. SentencePiece's own sampling has one random state for the whole process; here each
example has its own generator, so that runs can be repeated and resumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from nlp.sentence_pieces import META, UNIGRAM
from nlp.subwords import PieceVocabulary
from nlp.tokenizer_files import encodable

# Ways to cut a word that one is drawn from, and the exponent of their probabilities; Kudo has 64 and 0.2 for texts.
_WAYS = 32
_ALPHA = 0.2
# Longer words, such as whole sentences of scripts without spaces, are cut in the likeliest way.
_LONGEST_WORD = 40
# Words whose ways are remembered.
_REMEMBERED = 200_000


class SubwordSampler:
    """Texts to ids as `PieceVocabulary.encode` gives them, with some words cut at random.

    Args:
        vocabulary: of a unigram model.
        share: of words whose way is drawn.

    Raises:
        ValueError: where the vocabulary has no probabilities (BPE), or does not begin words with a space.
    """

    def __init__(self, vocabulary: PieceVocabulary, share: float) -> None:
        model = vocabulary.model
        if model.model_type != UNIGRAM or not (model.add_dummy_prefix and model.escape_whitespaces) or model.suffix:
            raise ValueError(
                "`subword_sampling` needs a unigram vocabulary whose words begin with a space. Set it to 0, or "
                "`vocabulary` to 'unigram'."
            )
        self.vocabulary, self.share = vocabulary, share
        self._ways: dict[str, tuple[list[list[int]], np.ndarray]] = {}

    def encode(self, text: str, rng: np.random.Generator) -> list[int]:
        """The ids of a text with the end token."""
        words = [word for word in self.vocabulary.model.processor.normalize(encodable(text)).split(META) if word]
        drawn, places = rng.random(len(words)) < self.share, rng.random(len(words))
        ids: list[int] = []
        for word, random, place in zip(words, drawn.tolist(), places.tolist(), strict=True):
            ways, sums = self._ways_of(word)
            ids += ways[int(np.searchsorted(sums, place)) if random else 0]
        return [*ids, self.vocabulary.end_id]

    def _ways_of(self, word: str) -> tuple[list[list[int]], np.ndarray]:
        """The ways to cut a word, the likeliest first, and the running sums of their chances but the last."""
        known = self._ways.get(word)
        if known is None:
            known = self._new_ways(word)
            if len(self._ways) < _REMEMBERED:
                self._ways[word] = known
        return known

    def _new_ways(self, word: str) -> tuple[list[list[int]], np.ndarray]:
        model = self.vocabulary.model
        best = self.vocabulary.encode([word])[0][:-1]
        if len(word) > _LONGEST_WORD:
            return [best], np.zeros(0)
        found: Sequence[Any] = model.processor.nbest_encode(word, nbest_size=_WAYS, out_type=int)
        cuts = [list(numbers) for numbers in found if model.unknown not in numbers]
        if len(cuts) < 2:
            return [best], np.zeros(0)
        logs = _ALPHA * np.asarray([sum(model.pieces[number][1] for number in numbers) for numbers in cuts])
        chances = np.exp(logs - logs.max())
        ways = [[self.vocabulary.id_of_piece[number] for number in numbers] for numbers in cuts]
        return [best, *ways], np.cumsum([0.0, *(chances / chances.sum())])[:-1]
