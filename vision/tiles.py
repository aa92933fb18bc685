"""Large images in overlapping tiles."""

from __future__ import annotations

# Share of a tile that the next one repeats: what is cut by the edge of one lies within another.
_OVERLAP = 0.25


def tile_corners(height: int, width: int, tile_height: int, tile_width: int | None = None) -> list[tuple[int, int]]:
    """(top, left) of tiles that cover an image of `height` x `width` pixels, evenly spread, row by row.

    Neighbours overlap by a quarter of their size at least. An image that is smaller than a tile is one tile.

    Raises:
        ValueError: for tiles without pixels.
    """
    tile_width = tile_height if tile_width is None else tile_width
    if min(tile_height, tile_width) < 1:
        raise ValueError(f"Tiles must have pixels; received {tile_height} x {tile_width}.")
    return [(top, left) for top in _starts(height, tile_height) for left in _starts(width, tile_width)]


def _starts(length: int, tile: int) -> list[int]:
    if length <= tile:
        return [0]
    count = 1 + -(-(length - tile) // max(1, int(tile * (1 - _OVERLAP))))
    return [round(number * (length - tile) / (count - 1)) for number in range(count)]
