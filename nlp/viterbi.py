"""The best sequence of tags for a text of any length, in NumPy: Viterbi's algorithm and marginals.

The same numbers as `nlp.models.crf`, whose functions run inside a graph in batches; here one text is one chain, put
together from all of its windows.

Shapes: n words, K tags.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nlp.tags import Transitions

# Taken off the score of what is not allowed: more than any real score.
_FORBIDDEN = -1e9


class TagChain:
    """Scores of transitions between K tags, learned ones or none, and which of them are allowed.

    Args:
        num_tags: K.
        scores: `pairs` (K, K), from row to column, `first` (K,) and `last` (K,), of a conditional random field; None
            without one.
        allowed: the transitions of a scheme; None allows all.
    """

    def __init__(
        self, num_tags: int, scores: Sequence[np.ndarray] | None = None, allowed: Transitions | None = None
    ) -> None:
        self._is_field = scores is not None
        parts = scores or (np.zeros((num_tags, num_tags)), np.zeros(num_tags), np.zeros(num_tags))
        self._pairs, self._first, self._last = (np.asarray(part, np.float64).copy() for part in parts)
        if allowed is not None:
            self._pairs[~allowed.pairs] += _FORBIDDEN
            self._first[~allowed.first] += _FORBIDDEN
            self._last[~allowed.last] += _FORBIDDEN

    def decode(self, emissions: np.ndarray) -> tuple[list[int], np.ndarray]:
        """The best tag of each word, and its probability (n,): its softmax, or with a field its marginal.

        Args:
            emissions: logits (n, K); n may be 0.
        """
        if not len(emissions):
            return [], np.zeros(0)
        emissions = emissions.astype(np.float64)
        path = self._best_path(emissions)
        chances = self._marginals(emissions) if self._is_field else _softmax(emissions)
        return path, chances[np.arange(len(path)), path]

    def _best_path(self, emissions: np.ndarray) -> list[int]:
        total = self._first + emissions[0]
        came_from = np.zeros(emissions.shape, np.int64)
        for word in range(1, len(emissions)):
            through = total[:, None] + self._pairs
            came_from[word] = through.argmax(axis=0)
            total = through.max(axis=0) + emissions[word]
        path = [int(np.argmax(total + self._last))]
        for word in range(len(emissions) - 1, 0, -1):
            path.append(int(came_from[word, path[-1]]))
        return path[::-1]

    def _marginals(self, emissions: np.ndarray) -> np.ndarray:
        forward, backward = np.empty_like(emissions), np.empty_like(emissions)
        forward[0], backward[-1] = self._first + emissions[0], self._last
        for word in range(1, len(emissions)):
            forward[word] = _log_sum(forward[word - 1][:, None] + self._pairs, axis=0) + emissions[word]
        for word in range(len(emissions) - 2, -1, -1):
            backward[word] = _log_sum(self._pairs + emissions[word + 1] + backward[word + 1], axis=1)
        return _softmax(forward + backward)


def _softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def _log_sum(scores: np.ndarray, axis: int) -> np.ndarray:
    top = scores.max(axis=axis)
    sums: np.ndarray = top + np.log(np.exp(scores - np.expand_dims(top, axis)).sum(axis=axis))
    return sums
