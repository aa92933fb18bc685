"""The softmax over the items of a batch, corrected for how often each is drawn.

Each user's own item is told from the other items of the batch, which stand for the whole catalogue. Item j comes into a
batch with probability q_j, so its score counts as s_j - log q_j (Yi et al. 2019, doi:10.1145/3298689.3346996, equation
3), for popular items would otherwise be pushed down. An item that is in the batch more than once is one column, which
counts as often as it was drawn; of a user's own item the other draws are accidental hits, and do not count.

Legend: B users, C columns (distinct items, drawn ones among them), D width.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

# Users whose scores of all columns are there at a time.
_ROWS_AT_ONCE = 512
# Added to what must not count: far below any score, and finite, for 0 times infinity is NaN.
_NEVER = -1e9


def in_batch_softmax(
    users: tf.Tensor,
    items: tf.Tensor,
    targets: tf.Tensor,
    shifts: tf.Tensor,
    log_counts: tf.Tensor,
    *,
    temperature: float = 1.0,
    hard_negatives: int = 0,
    fused: bool = True,
) -> tf.Tensor:
    """The mean cross-entropy of each user's own column, differentiable in `users` and `items`.

    Column j counts as exp(s_j / temperature + shifts_j), and as a user's own with its log count taken off: once.

    Args:
        users: vectors (B, D), of any float type.
        items: vectors (C, D), of the same type.
        targets: the column of each user's own item, int32 (B,).
        shifts: log(c_j / q_j) float32 (C,), where column j was drawn c_j times; -1e9 for columns that are padding.
        log_counts: log c_j, float32 (C,).
        temperature: divides the scores.
        hard_negatives: only so many columns count beside the user's own, those that score highest; 0: all.
        fused: compute loss and gradients together, block by block of users, in less time and memory than TensorFlow's
            own operations, to which it is equal.

    Returns:
        A scalar, float32.
    """
    if not fused:
        return _plain(users, items, targets, shifts, log_counts, temperature, hard_negatives)

    def loss(users: tf.Tensor, items: tf.Tensor) -> Any:
        total, user_slopes, item_slopes = _summed_by_blocks(
            users, items, targets, shifts, log_counts, temperature, hard_negatives
        )
        count = tf.cast(tf.maximum(tf.shape(users)[0], 1), tf.float32)

        def gradients(above: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            scale = above / count
            return tf.cast(user_slopes * scale, users.dtype), tf.cast(item_slopes * scale, items.dtype)

        return total / count, gradients

    result: tf.Tensor = tf.custom_gradient(loss)(users, items)
    return result


def _plain(
    users: tf.Tensor,
    items: tf.Tensor,
    targets: tf.Tensor,
    shifts: tf.Tensor,
    log_counts: tf.Tensor,
    temperature: float,
    hard_negatives: int,
) -> tf.Tensor:
    """With TensorFlow's own gradients, for XLA, which fuses the steps itself."""
    logits = tf.cast(tf.matmul(users, items, transpose_b=True), tf.float32) / temperature + shifts
    own = tf.one_hot(targets, tf.shape(items)[0])
    logits -= own * log_counts
    if hard_negatives:
        others = tf.stop_gradient(logits) + own * _NEVER
        logits += tf.where((others < _lowest_kept(others, hard_negatives)) & (own == 0), _NEVER, 0.0)
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(targets, logits))


def _lowest_kept(others: tf.Tensor, hard_negatives: int) -> tf.Tensor:
    """The score of the last column that counts, (B, 1)."""
    best, _ = tf.math.top_k(others, tf.minimum(hard_negatives, tf.shape(others)[1]))
    return best[:, -1:]


def _summed_by_blocks(
    users: tf.Tensor,
    items: tf.Tensor,
    targets: tf.Tensor,
    shifts: tf.Tensor,
    log_counts: tf.Tensor,
    temperature: float,
    hard_negatives: int,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """The sum of losses over users, and its gradients in both sides' vectors, float32.

    With powers e_j = exp(logit_j) of a user, their sum S, own column t drawn c times: the loss is log S' - logit_t with
    S' = S - e_t (1 - 1 / c), and its slope in logit_j is e_j / S', less (e_t / S') (1 - 1 / c) + 1 for the own one.
    """
    count, width = tf.shape(users)[0], items.shape[1]
    num_blocks = (count + _ROWS_AT_ONCE - 1) // _ROWS_AT_ONCE
    own_items = tf.gather(items, targets)
    too_often = 1.0 - tf.exp(-tf.gather(log_counts, targets))

    def block(number: tf.Tensor, total: tf.Tensor, item_slopes: tf.Tensor, slopes: Any, own_slopes: Any) -> Any:
        rows = slice(number * _ROWS_AT_ONCE, (number + 1) * _ROWS_AT_ONCE)
        some, own, columns, over = users[rows], own_items[rows], targets[rows], too_often[rows]
        logits = tf.cast(tf.matmul(some, items, transpose_b=True), tf.float32) / temperature + shifts
        mine = tf.gather(logits, columns, batch_dims=1)
        if hard_negatives:
            places = tf.stack([tf.range(tf.size(columns)), columns], axis=1)
            others = tf.tensor_scatter_nd_update(logits, places, tf.fill([tf.size(columns)], _NEVER))
            kept = others >= _lowest_kept(others, hard_negatives)
            logits = tf.where(kept, logits, _NEVER)
            logits = tf.tensor_scatter_nd_update(logits, places, mine)
        highest = tf.reduce_max(logits, axis=1, keepdims=True)
        powers = tf.exp(logits - highest)
        my_powers = tf.exp(mine - highest[:, 0]) * over
        sums = tf.reduce_sum(powers, axis=1) - my_powers
        total += tf.reduce_sum(tf.math.log(sums) + highest[:, 0] - mine - tf.math.log1p(-over))
        own_slope = (-1.0 - my_powers / sums)[:, None]
        scaled = tf.cast(some, tf.float32) / sums[:, None]
        item_slopes += _product(powers, scaled, items.dtype, transpose_a=True)
        user_slopes = _product(powers, items, items.dtype) / sums[:, None] + own_slope * tf.cast(own, tf.float32)
        return (
            number + 1,
            total,
            item_slopes,
            slopes.write(number, user_slopes),
            own_slopes.write(number, own_slope * tf.cast(some, tf.float32)),
        )

    arrays = [tf.TensorArray(tf.float32, num_blocks, infer_shape=False, element_shape=(None, width)) for _ in range(2)]
    start = (tf.constant(0), tf.constant(0.0), tf.zeros(tf.shape(items), tf.float32), *arrays)
    _, total, item_slopes, slopes, own_slopes = tf.while_loop(
        lambda number, *_: number < num_blocks, block, start, parallel_iterations=1
    )
    item_slopes = tf.tensor_scatter_nd_add(item_slopes, targets[:, None], own_slopes.concat())
    return total, slopes.concat() / temperature, item_slopes / temperature


def _product(left: tf.Tensor, right: tf.Tensor, dtype: tf.DType, *, transpose_a: bool = False) -> tf.Tensor:
    """A matrix product in `dtype`, as float32."""
    product = tf.matmul(tf.cast(left, dtype), tf.cast(right, dtype), transpose_a=transpose_a)
    return tf.cast(product, tf.float32)
