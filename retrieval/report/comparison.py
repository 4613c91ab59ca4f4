"""The HTML page of a map against labels: one self-contained file, one card per tile, most disagreement first.

Each card shows the image, the labels and the map on it, and their agreement. Grey is shown by both; orange is
in the labels only, and blue in the map only. The two colours differ in lightness too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ConfigError
from retrieval.report.html import check_page, render_template, write_html
from retrieval.report.pictures import small_uri

NEITHER, BOTH, ONLY_LABELS, ONLY_MAP, NEAR_LABELS, NEAR_MAP = range(6)
"""Values of an agreement: the last two are differences within the tolerance."""
AGREEMENT_COLOURS = np.array(
    [[0, 0, 0], [120, 120, 120], [230, 120, 0], [0, 100, 190], [230, 120, 0], [0, 100, 190]], np.uint8
)
AGREEMENT_OPACITY = np.array([0, 0.7, 0.85, 0.85, 0.3, 0.3], np.float32)
MAP_OPACITY = 0.55
"""Opacity of the colours of classes on an image."""
MAX_TILES = 500
KIND_TEXTS = {
    "supported": "label features that the map supports",
    "unsupported": "label features without support",
    "unseen": "label features outside of the map",
    "missing": "areas of the map without a label",
    "conflict": "areas with another label",
}


@dataclass(frozen=True, eq=False)
class ComparedTile:
    """One tile of a comparison, with its pixels."""

    name: str
    rank: int
    """1 for most disagreement."""
    quality: float
    """0 to 100."""
    disagreement: float
    """Share of the tile's pixels, 0 to 1."""
    only_map_px: int
    only_labels_px: int
    classes: tuple[str, ...]
    """Classes in the map or the labels."""
    image: NDArray[np.float32] | None
    """(h, w, 4) colours and opacity in [0, 1]; None without an image."""
    predicted: NDArray[np.uint8]
    """(h, w) classes of the map; 255 without data."""
    labels: NDArray[np.uint8]
    """(h, w) classes of the labels; 255 without a label."""
    agreement: NDArray[np.uint8]
    """(h, w) of NEITHER to NEAR_MAP."""


@dataclass(frozen=True)
class ComparisonSummary:
    """The numbers at the head of the page."""

    title: str
    quality: float
    """0 to 100."""
    features: Mapping[str, int]
    """Rows by kind."""
    iou: Mapping[str, float]
    tiles: int
    """Number of tiles of the comparison."""
    tolerance: str
    """What is no disagreement, in words."""


@dataclass(frozen=True)
class _Card:
    """A tile, ready for the template."""

    tile: ComparedTile
    pictures: tuple[tuple[str, str, str], ...]
    """Kind, caption and address of each picture."""


def check_comparison(out: Path, overwrite: bool, limit: int) -> None:
    """Refuse a page of another ending, one that exists, or too many tiles.

    Raises:
        ConfigError: another ending, or a number out of range.
        OutputExistsError: the file exists and `overwrite` is not set.
    """
    if not 1 <= limit <= MAX_TILES:
        raise ConfigError(f"{limit} tiles to show: out of range. Expected 1 to {MAX_TILES}.")
    check_page(out, overwrite)


def write_comparison(
    out: str | Path,
    tiles: Sequence[ComparedTile],
    summary: ComparisonSummary,
    colours: NDArray[np.uint8],
    background: int | None,
    *,
    overwrite: bool = False,
) -> None:
    """Write the page.

    Args:
        out: the file, ending in `.html`; written as a whole.
        tiles: the tiles to show, most disagreement first.
        summary: the numbers of the whole comparison.
        colours: (256, 3) colours of the classes.
        background: class that is not drawn; None for none.
        overwrite: replace an existing file.

    Raises:
        OutputExistsError: the file exists and `overwrite` is not set.
    """
    opacity = np.full(256, MAP_OPACITY, np.float32)
    opacity[[255, *([] if background is None else [background])]] = 0
    cards = [_Card(tile, _pictures(tile, colours, opacity)) for tile in tiles]
    write_html(out, _render(cards, summary), overwrite)


def _pictures(
    tile: ComparedTile, colours: NDArray[np.uint8], opacity: NDArray[np.float32]
) -> tuple[tuple[str, str, str], ...]:
    ground = tile.image
    if ground is None:
        ground = np.ones((*tile.predicted.shape, 4), np.float32)
    grey = ground.copy()
    grey[..., :3] = 0.6 + 0.35 * ground[..., :3].mean(axis=-1, keepdims=True)
    layers = [] if tile.image is None else [("image", "image", ground)]
    layers += [
        ("labels", "labels", _drawn(ground, tile.labels, colours, opacity)),
        ("map", "map", _drawn(ground, tile.predicted, colours, opacity)),
        ("agreement", "agreement", _drawn(grey, tile.agreement, AGREEMENT_COLOURS, AGREEMENT_OPACITY)),
    ]
    return tuple((kind, caption, small_uri(picture)) for kind, caption, picture in layers)


def _drawn(
    ground: NDArray[np.float32],
    values: NDArray[np.uint8],
    colours: NDArray[np.uint8],
    opacity: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Draw values (h, w) in their colours on a picture (h, w, 4)."""
    share = opacity[values][..., None]
    drawn = ground.copy()
    drawn[..., :3] = (1 - share) * ground[..., :3] + share * colours[values] / np.float32(255)
    drawn[..., 3] = np.maximum(ground[..., 3], share[..., 0])
    return drawn


def _render(cards: Sequence[_Card], summary: ComparisonSummary) -> str:
    """Return the HTML; every text and attribute is escaped."""
    return render_template(
        "comparison.html",
        summary.title,
        styles=["comparison.css"],
        script="comparison.js",
        cards=cards,
        summary=summary,
        classes=sorted({name for card in cards for name in card.tile.classes}),
        kinds=KIND_TEXTS,
    )
