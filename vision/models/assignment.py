"""The cheapest one-to-one assignment, inside the graph: what detectors of sets (DETR and its heirs) are matched by.

Shapes: G problems that are solved side by side, N rows to be placed, Q columns to place them in.
"""

from __future__ import annotations

import tensorflow as tf


def cheapest_assignment(costs: tf.Tensor, present: tf.Tensor) -> tf.Tensor:
    """The column of each row, int32 (G, N), so that no two rows share one and the sum of costs is least; -1 for none.

    Rows are placed one after the other, each along the shortest path of rows that make room for it (Jonker and
    Volgenant 1987; Crouse 2016, doi:10.1109/TAES.2016.140952, algorithm 1). The answer is exact, up to rounding of the
    sums. As plain tensor operations it runs on every device, and under XLA.

    Args:
        costs: finite float32 (G, N, Q).
        present: bool (G, N); other rows are not placed. Of more rows than columns the last are not placed either.
    """
    columns = tf.shape(costs)[2]
    wanted = tf.logical_and(present, tf.cumsum(tf.cast(present, tf.int32), axis=1) <= columns)
    owners = tf.fill(tf.stack([tf.shape(costs)[0], columns]), -1)
    start = (tf.constant(0), owners, tf.zeros(tf.shape(present)), tf.zeros(tf.shape(owners)))

    def place(row: tf.Tensor, *state: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return (row + 1, *_placed(row, costs, wanted[:, row], *state))

    owners = tf.while_loop(lambda row, *_: row < tf.shape(costs)[1], place, start)[1]
    return _columns_of(tf.range(tf.shape(costs)[1])[None, :], owners)


def _placed(
    row: tf.Tensor,
    costs: tf.Tensor,
    wanted: tf.Tensor,
    owners: tf.Tensor,
    row_prices: tf.Tensor,
    column_prices: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Owners of columns (G, Q), prices of rows (G, N) and of columns (G, Q) after `row` is placed where `wanted`."""
    far = tf.fill(tf.shape(column_prices), costs.dtype.max)
    everywhere = tf.fill(tf.shape(wanted), row)
    nothing = tf.fill(tf.shape(wanted), -1)
    # Distance of each column, the row from which it is reached, whether it is settled; the row that is looked from,
    # its distance, the free column at the end.
    search = (far, tf.fill(tf.shape(owners), -1), far < 0, everywhere, tf.zeros_like(row_prices[:, 0]), nothing)

    def look(
        distances: tf.Tensor,
        origins: tf.Tensor,
        settled: tf.Tensor,
        current: tf.Tensor,
        least: tf.Tensor,
        end: tf.Tensor,
    ) -> tuple[tf.Tensor, ...]:
        goes_on = tf.logical_and(wanted, end < 0)
        price = tf.gather(row_prices, current, batch_dims=1)[:, None]
        through = least[:, None] + tf.gather(costs, current, batch_dims=1) - price - column_prices
        nearer = goes_on[:, None] & ~settled & (through < distances)
        distances = tf.where(nearer, through, distances)
        origins = tf.where(nearer, current[:, None], origins)
        unsettled = tf.where(settled, costs.dtype.max, distances)
        nearest = tf.argmin(unsettled, axis=1, output_type=tf.int32)
        least = tf.where(goes_on, tf.reduce_min(unsettled, axis=1), least)
        here = tf.range(tf.shape(owners)[1])[None, :] == nearest[:, None]
        owner = tf.gather(owners, nearest, batch_dims=1)
        return (
            distances,
            origins,
            settled | (here & goes_on[:, None]),
            tf.where(goes_on & (owner >= 0), owner, current),
            least,
            tf.where(goes_on & (owner < 0), nearest, end),
        )

    distances, origins, settled, _, least, end = tf.while_loop(
        lambda *state: tf.reduce_any(tf.logical_and(wanted, state[-1] < 0)), look, search
    )
    # Prices change so that every owned column stays the cheapest for its owner.
    gains = tf.where(settled, least[:, None] - distances, 0.0)
    rows = tf.range(tf.shape(row_prices)[1])[None, :]
    of_rows = tf.where(owners[:, None, :] == rows[:, :, None], gains[:, None, :], 0.0)
    is_row = tf.logical_and(rows == row, wanted[:, None])
    row_prices += tf.reduce_sum(of_rows, axis=-1) + tf.where(is_row, least[:, None], 0.0)
    return _shifted(row, wanted, owners, origins, end), row_prices, column_prices - gains


def _shifted(row: tf.Tensor, wanted: tf.Tensor, owners: tf.Tensor, origins: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
    """Owners after each row on the path to the column `end` has moved on to the next."""
    places = tf.range(tf.shape(owners)[1])[None, :]

    def move(moving: tf.Tensor, column: tf.Tensor, moved: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        mover = tf.gather(origins, tf.maximum(column, 0), batch_dims=1)
        moved = tf.where((places == column[:, None]) & moving[:, None], mover[:, None], moved)
        return moving & (mover != row), _columns_of(mover[:, None], owners)[:, 0], moved

    return tf.while_loop(lambda moving, *_: tf.reduce_any(moving), move, (wanted, end, owners))[2]


def _columns_of(rows: tf.Tensor, owners: tf.Tensor) -> tf.Tensor:
    """The column (G, M) that each of `rows` (G or 1, M) owns, -1 where none."""
    owned = owners[:, None, :] == rows[:, :, None]
    found = tf.argmax(owned, axis=-1, output_type=tf.int32)
    return tf.where(tf.reduce_any(owned, axis=-1), found, -1)
