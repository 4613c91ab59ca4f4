"""The split of tiles or windows into train, val and test by blocks of ground.

A block is an XYZ tile of a coarse zoom. All that lies in a block goes to one split, so no ground is in two
splits. Blocks are shuffled by the seed; each goes to the split that lacks the most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from retrieval.errors import LabelsError

if TYPE_CHECKING:
    from mercantile import Tile

SPLITS = ("train", "val", "test")
"""Names of the splits, in the order of `--split`."""
MIN_BLOCKS = 20
"""Blocks that the largest block size must give, unless the user names a zoom."""


def parse_split(text: str) -> tuple[float, float, float]:
    """Return the shares of train, val and test in "70/20/10", each 0 to 1.

    Raises:
        LabelsError: not two or three numbers of 0 or more, or all are 0.
    """
    try:
        numbers = [float(part) for part in text.split("/")]
    except ValueError:
        numbers = []
    if len(numbers) not in (2, 3) or not all(0 <= n < float("inf") for n in numbers) or not sum(numbers):
        raise LabelsError(f"--split {text!r}: not a split. Expected train/val/test, such as 70/20/10.")
    train, val, test = (*numbers, 0.0)[:3]
    total = train + val + test
    return train / total, val / total, test / total


def assign(blocks: Sequence[Tile], shares: Sequence[float], seed: int) -> dict[Tile, str]:
    """Assign blocks to splits.

    Args:
        blocks: block of each tile.
        shares: wanted share of the tiles, by split.
        seed: decides the order of the blocks.

    Returns:
        The split of each block. Every split with a share gets a block while there are enough.
    """
    sizes = Counter(blocks)
    order = sorted(sizes)
    np.random.default_rng(seed).shuffle(order)
    # Large blocks first: the small ones then even out the shares.
    order = [order[i] for i in sorted(range(len(order)), key=lambda i: -sizes[order[i]])]
    done, filled = dict[Any, str](), Counter[str]()
    wanted = [(name, share) for name, share in zip(SPLITS, shares, strict=True) if share > 0]
    total = len(blocks)
    for number, block in enumerate(order):
        open_splits = [entry for entry in wanted if not filled[entry[0]]]
        if open_splits and len(order) - number <= len(open_splits):
            wanted_now = open_splits  # the last blocks go to splits that have none
        else:
            wanted_now = wanted
        name = max(wanted_now, key=lambda entry: entry[1] * total - filled[entry[0]])[0]
        done[block] = name
        filled[name] += sizes[block]
    return done


def blocks_of(tiles: Sequence[Tile], shares: Sequence[float], zoom: int | None) -> tuple[list[Tile], int]:
    """Return the block of each tile, and the zoom of the blocks.

    Raises:
        LabelsError: a block is no larger than a tile, or there are fewer blocks than splits.
    """
    coarsest = tiles[0].z
    splits = sum(share > 0 for share in shares)
    if zoom is not None and not 0 <= zoom <= coarsest:
        raise LabelsError(f"--block-zoom {zoom}: out of range. Expected 0 to {coarsest}, the tiles' zoom.")
    chosen = zoom if zoom is not None else max(0, coarsest - 1)
    if zoom is None:
        parents = {ancestor(tile, chosen) for tile in tiles}
        while chosen > 0 and splits > 1:
            larger = {ancestor(tile, chosen - 1) for tile in parents}
            if len(larger) < MIN_BLOCKS:
                break
            parents, chosen = larger, chosen - 1
        chosen = chosen if splits > 1 else 0
        if len(parents) < splits and tiles[-1].z > coarsest:
            chosen = coarsest  # tiles of finer zooms make these tiles blocks
    blocks = [ancestor(tile, chosen) for tile in tiles]
    if len(set(blocks)) < splits:
        raise LabelsError(
            f"{len(set(blocks))} blocks of zoom {chosen} for {splits} splits: too few. Expected a larger "
            f"area, a finer --zoom, a smaller --window, or --block-zoom up to {coarsest}."
        )
    return blocks, chosen


def ancestor(tile: Tile, zoom: int) -> Tile:
    """Return the tile of a zoom that contains a tile, or is it."""
    import mercantile

    return tile if tile.z == zoom else mercantile.parent(tile, zoom=zoom)


def share_note(counts: Counter[str], shares: Sequence[float]) -> list[str]:
    """Return a note where a split is more than five points from its share."""
    total = max(1, counts.total())
    off = [
        f"{name} has {counts[name] / total:.0%} instead of {share:.0%}"
        for name, share in zip(SPLITS, shares, strict=True)
        if abs(counts[name] / total - share) > 0.05
    ]
    return [f"{', '.join(off)} of it, because blocks are large"] if off else []
