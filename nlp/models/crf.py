"""A linear-chain conditional random field over tags: likelihood, best path, marginals.

    score(y) = first[y_1] + sum_t emissions[t, y_t] + sum_t pairs[y_(t-1), y_t] + last[y_n]
    p(y) = exp(score(y)) / Z, where Z sums over all sequences of tags

Only positions under the mask count, wherever they are: of words in several pieces, say, the first piece of each. All is
computed in float32. Lafferty, McCallum and Pereira 2001; with a network's emissions, Lample et al. 2016
(arXiv:1603.01360, section 2.2).

Shapes: B sentences, T positions, K tags.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from nlp.tags import Transitions

# Taken off the score of what is not allowed: more than any real score, and still exact beside sums of 1e5.
_FORBIDDEN = -1e9


class ChainScores(NamedTuple):
    """What a tag's place is worth, float32: `pairs` (K, K), from row to column, `first` (K,) and `last` (K,)."""

    pairs: tf.Tensor
    first: tf.Tensor
    last: tf.Tensor

    def allowing(self, allowed: Transitions | None) -> ChainScores:
        """These scores, with those of transitions that are not allowed out of reach."""
        if allowed is None:
            return self
        masks = (allowed.pairs, allowed.first, allowed.last)
        return ChainScores(*(tf.where(mask, part, part + _FORBIDDEN) for mask, part in zip(masks, self, strict=True)))


def path_score(emissions: tf.Tensor, tags: tf.Tensor, mask: tf.Tensor, scores: ChainScores) -> tf.Tensor:
    """Score (B,) of `tags` (B, T); what they are outside of the mask does not matter. 0 where nothing is under it."""
    tags = tf.where(mask, tags, 0)
    chosen = tf.gather(emissions, tags, axis=2, batch_dims=2)
    total = tf.reduce_sum(tf.where(mask, chosen, 0.0), axis=1)
    # Tags under the mask side by side: (B, T), their number (B,).
    tags = tf.gather(tags, _mask_first(mask), axis=1, batch_dims=1)
    length = tf.reduce_sum(tf.cast(mask, tf.int32), axis=1)
    joints = tf.gather_nd(scores.pairs, tf.stack([tags[:, :-1], tags[:, 1:]], axis=2))
    total += tf.reduce_sum(tf.where(tf.sequence_mask(length - 1, tf.shape(mask)[1] - 1), joints, 0.0), axis=1)
    final = tf.gather(tags, tf.maximum(length - 1, 0), axis=1, batch_dims=1)
    ends = tf.gather(scores.first, tags[:, 0]) + tf.gather(scores.last, final)
    return total + tf.where(length > 0, ends, 0.0)


def log_partition(emissions: tf.Tensor, mask: tf.Tensor, scores: ChainScores) -> tf.Tensor:
    """Logarithm of Z, (B,); 0 where nothing is under the mask."""
    total = tf.reduce_logsumexp(_forward(emissions, mask, scores)[-1] + scores.last, axis=1)
    return tf.where(tf.reduce_any(mask, axis=1), total, 0.0)


def best_path(emissions: tf.Tensor, mask: tf.Tensor, scores: ChainScores) -> tuple[tf.Tensor, tf.Tensor]:
    """The best tags (B, T) int32, 0 outside of the mask, and their score (B,), by Viterbi's algorithm.

    Of equal scores the tag of lower number wins.
    """
    batch, num_tags = tf.shape(emissions)[0], scores.pairs.shape[0]
    same = tf.tile(tf.range(num_tags)[None], [batch, 1])

    def step(carry: Any, position: Any) -> Any:
        (total, _), (emission, here, begins) = carry, position
        through = total[:, :, None] + scores.pairs  # (B, K before, K)
        reached = tf.where(begins, scores.first, tf.reduce_max(through, axis=1)) + emission
        came_from = tf.argmax(through, axis=1, output_type=tf.int32)
        return tf.where(here, reached, total), tf.where(here & ~begins, came_from, same)

    start = (tf.zeros([batch, num_tags]), same)
    totals, came_from = tf.scan(step, _by_position(emissions, mask), start)
    final = totals[-1] + scores.last
    tag = tf.argmax(final, axis=1, output_type=tf.int32)
    before = tf.scan(lambda tag, origin: tf.gather(origin, tag, batch_dims=1), came_from, tag, reverse=True)
    tags = tf.transpose(tf.concat([before[1:], tag[None]], axis=0))
    score = tf.where(tf.reduce_any(mask, axis=1), tf.reduce_max(final, axis=1), 0.0)
    return tf.where(mask, tags, 0), score


def tag_marginals(emissions: tf.Tensor, mask: tf.Tensor, scores: ChainScores) -> tf.Tensor:
    """Probability of each tag at each position over all sequences, (B, T, K); 0 outside of the mask."""

    def step(carry: Any, position: Any) -> Any:
        (behind, _), (emission, here, _) = carry, position
        ahead = tf.reduce_logsumexp(scores.pairs + (emission + behind)[:, None, :], axis=2)
        return tf.where(here, ahead, behind), behind

    nothing = tf.zeros_like(emissions[:, 0]) + scores.last
    _, backward = tf.scan(step, _by_position(emissions, mask), (nothing, nothing), reverse=True)
    # (T, B, K) -> (B, T, K)
    log_joint = tf.transpose(_forward(emissions, mask, scores) + backward, [1, 0, 2])
    return tf.where(mask[:, :, None], tf.nn.softmax(log_joint), 0.0)


def _forward(emissions: tf.Tensor, mask: tf.Tensor, scores: ChainScores) -> tf.Tensor:
    """Log of the summed scores of all beginnings that end in a tag, (T, B, K); unchanged outside of the mask."""

    def step(total: tf.Tensor, position: Any) -> tf.Tensor:
        emission, here, begins = position
        through = tf.reduce_logsumexp(total[:, :, None] + scores.pairs, axis=1)
        return tf.where(here, tf.where(begins, scores.first, through) + emission, total)

    return tf.scan(step, _by_position(emissions, mask), tf.zeros_like(emissions[:, 0]))


def _by_position(emissions: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Position first: emissions (T, B, K), whether it counts (T, B, 1), and whether it is the first to count."""
    here = tf.transpose(mask)[:, :, None]
    seen = tf.cumsum(tf.cast(here, tf.int32), axis=0)
    return tf.transpose(emissions, [1, 0, 2]), here, here & (seen == 1)


def _mask_first(mask: tf.Tensor) -> tf.Tensor:
    """The positions (B, T) int32 in an order that has those under the mask first."""
    positions = tf.range(tf.shape(mask)[1])
    return tf.argsort(tf.where(mask, positions, positions + tf.shape(mask)[1]), axis=1)


class LinearChainCRF(keras.layers.Layer):
    """The scores of a chain, trained with the network below; emissions (B, T, K) pass through it as float32.

    Its methods take these emissions and a mask (B, T) of bool. All scores begin at 0, where the field is a softmax at
    each position.

    Args:
        num_tags: K.
        name: of the layer.

    Example:
        >>> crf = LinearChainCRF(3)
        >>> emissions = crf(tf.constant([[[0.0, 2.0, 0.0], [1.0, 0.0, 0.0]]]))
        >>> crf.decode(emissions, tf.constant([[True, True]]))[0].numpy().tolist()
        [[1, 0]]
    """

    def __init__(self, num_tags: int, *, name: str | None = None) -> None:
        super().__init__(name=name, dtype="float32")
        self.num_tags = num_tags

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the scores.

        Raises:
            ValueError: for emissions of another shape than (B, T, K).
        """
        if len(input_shape) != 3 or input_shape[-1] != self.num_tags:
            raise ValueError(f"Emissions must have shape (B, T, {self.num_tags}); received {tuple(input_shape)}.")
        self.pairs = self.add_weight((self.num_tags, self.num_tags), initializer="zeros", name="pairs")
        self.first = self.add_weight((self.num_tags,), initializer="zeros", name="first")
        self.last = self.add_weight((self.num_tags,), initializer="zeros", name="last")

    def call(self, emissions: tf.Tensor) -> tf.Tensor:
        """The emissions, as float32."""
        return emissions

    def get_config(self) -> dict[str, Any]:
        """What the layer is made of."""
        return {"name": self.name, "num_tags": self.num_tags}

    def scores(self) -> ChainScores:
        """The scores as they are now."""
        return ChainScores(*(tf.convert_to_tensor(part) for part in (self.pairs, self.first, self.last)))

    def log_likelihood(self, emissions: tf.Tensor, tags: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """Logarithm of p(tags) for each sentence, (B,); `tags` (B, T) of int32 may be anything outside of the mask."""
        emissions, mask = _checked(emissions, mask)
        scores = self.scores()
        return path_score(emissions, tags, mask, scores) - log_partition(emissions, mask, scores)

    def decode(
        self, emissions: tf.Tensor, mask: tf.Tensor, *, allowed: Transitions | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The best tags (B, T) int32, 0 outside of the mask, and their score (B,).

        `allowed` keeps to the sequences of a scheme, see `nlp.tags.transitions`.
        """
        return best_path(*_checked(emissions, mask), self.scores().allowing(allowed))

    def marginals(self, emissions: tf.Tensor, mask: tf.Tensor, *, allowed: Transitions | None = None) -> tf.Tensor:
        """Probability of each tag at each position, (B, T, K); 0 outside of the mask, and for what is not allowed."""
        return tag_marginals(*_checked(emissions, mask), self.scores().allowing(allowed))


def _checked(emissions: tf.Tensor, mask: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    if emissions.shape.rank != 3 or not emissions.shape[:2].is_compatible_with(mask.shape):
        raise ValueError(
            f"Expected emissions (B, T, K) and a mask (B, T); received {emissions.shape} and {mask.shape}."
        )
    return tf.cast(emissions, tf.float32), tf.cast(mask, tf.bool)
