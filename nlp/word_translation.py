"""What a translator has to beat: words translated one by one with a dictionary that is learned from the same pairs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from nlp.metrics import translation_scores
from shared.examples import Examples
from shared.pipeline import Metrics

_ITERATIONS = 5
# Pairs that the dictionary is learned from, words of a text that count, and words of a vocabulary, at most.
_PAIRS, _WORDS, _VOCABULARY = 50_000, 60, 50_000
_TOKEN = re.compile(r"\w+|[^\w\s]")
_OPENING = re.compile(r"(?<=[(\[{«„“¿¡]) | (?=[.,;:!?)\]}»”…])")


def word_translation_baseline(train: Examples, held_out: Examples) -> Metrics:
    """`bleu` and `chrf` of a dictionary's word-by-word translations; IBM's model 1 (Brown et al. 1993, section 4.1).

    `details["copy"]` has the scores of the sources as their own translations.
    """
    dictionary = learn_dictionary(train)
    translated = [translate_words(text, dictionary) for text in held_out.inputs]
    metrics = translation_scores(translated, list(held_out.targets))
    metrics.details["copy"] = translation_scores(list(held_out.inputs), list(held_out.targets))
    return metrics


def learn_dictionary(train: Examples) -> dict[str, str]:
    """The likeliest translation of each source word, in lower case; an empty one where it is left out.

    Expectation maximisation over all pairs at once: each of a target's words comes from one of the source's, or from
    an empty word. A source word is translated by the t that maximises P(t | s) P(s aligned to t), so that rare words
    that come along with everything do not win.
    """
    count = min(len(train), _PAIRS)
    sources = [_words(train.inputs[i]) for i in range(count)]
    targets = [_words(train.targets[i]) for i in range(count)]
    source_ids, target_ids = _numbered(sources), _numbered(targets)
    pairs, groups, num_targets = _cooccurrences(sources, targets, source_ids, target_ids)
    keys, index = np.unique(pairs, return_inverse=True)
    owners = keys // num_targets  # the source word of each pair of words
    chances = np.ones(len(keys))
    for _ in range(_ITERATIONS):
        weights = chances[index]
        weights /= np.bincount(groups, weights)[groups]
        counts = np.bincount(index, weights, len(keys))
        chances = counts / np.bincount(owners, counts)[owners]
    # Behind a stable sort the best of each source word is its last.
    order = np.lexsort((chances * counts, owners))
    last = np.append(owners[order][1:] != owners[order][:-1], True)
    source_words, target_words = ["", *source_ids], list(target_ids)
    return {
        source_words[key // num_targets]: target_words[key % num_targets]
        for key in keys[order[last]]
        if key >= num_targets
    }


def translate_words(text: str, dictionary: dict[str, str]) -> str:
    """A text with each word replaced by its translation; unknown words stay, and the first letter stays large."""
    words = [dictionary.get(word.lower(), word) for word in _TOKEN.findall(text)]
    joined = _OPENING.sub("", " ".join(words))
    return joined[:1].upper() + joined[1:] if text[:1].isupper() else joined


def _words(text: str) -> list[str]:
    return _TOKEN.findall(text)[:_WORDS]


def _numbered(texts: Iterable[Sequence[str]]) -> dict[str, int]:
    counts = Counter(word for words in texts for word in words)
    return {word: number for number, (word, _) in enumerate(counts.most_common(_VOCABULARY))}


def _cooccurrences(
    sources: Sequence[Sequence[str]],
    targets: Sequence[Sequence[str]],
    source_ids: dict[str, int],
    target_ids: dict[str, int],
) -> tuple[np.ndarray, np.ndarray, int]:
    """All pairs of a text's words, as source number times targets plus target number; which target word each is for."""
    num_targets, group = len(target_ids), 0
    pairs: list[np.ndarray] = []
    groups: list[np.ndarray] = []
    for source, target in zip(sources, targets, strict=True):
        # 0 is the empty word.
        left = np.array([0, *(1 + source_ids[word] for word in source if word in source_ids)], np.int64)
        right = np.array([target_ids[word] for word in target if word in target_ids], np.int64)
        pairs.append((left[None, :] * num_targets + right[:, None]).ravel())
        groups.append(np.repeat(group + np.arange(len(right)), len(left)))
        group += len(right)
    return np.concatenate(pairs), np.concatenate(groups), num_targets
