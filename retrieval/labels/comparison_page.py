"""The tiles of a comparison as records of its HTML page: pixels of the image, the map and the labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.labels.agreement import Block, Tolerance, differences
from retrieval.labels.classes import IGNORED, Classes
from retrieval.labels.files import find_files
from retrieval.labels.grids import Piece
from retrieval.labels.masks import alpha_bands, open_raster
from retrieval.report.comparison import (
    BOTH,
    NEAR_LABELS,
    NEAR_MAP,
    NEITHER,
    ONLY_LABELS,
    ONLY_MAP,
    ComparedTile,
)
from retrieval.report.pictures import stretch


def compared_tiles(
    shown: Sequence[tuple[Piece, Block]],
    rows: Any,
    classes: Classes,
    tolerance: Tolerance,
    images: str | Path | None,
) -> tuple[list[ComparedTile], int]:
    """Return the tiles of a page.

    Args:
        shown: pieces and their maps, most disagreement first.
        rows: frame of the tiles, in the same order.
        classes: the classes of the maps.
        tolerance: differences that are no disagreement.
        images: image or folder of images of the same names; None for none.

    Returns:
        The tiles, and the number of those without an image.
    """
    files = find_files(images) if images is not None else {}
    single = next(iter(files.values())) if images is not None and Path(images).is_file() else None
    tiles = []
    for rank, ((piece, block), row) in enumerate(zip(shown, rows.itertuples(), strict=False), start=1):
        path = single or files.get(piece.name)
        several = piece.x or piece.y or (piece.path is not None and not piece.name.count("/"))
        name = f"{piece.name}, column {piece.x}, row {piece.y}" if several else piece.name
        image = read_image(path, piece) if path else None
        tiles.append(_tile(name, rank, row, block, image, classes, tolerance))
    return tiles, sum(tile.image is None for tile in tiles)


def read_image(path: Path, piece: Piece) -> NDArray[np.float32] | None:
    """Read the part of an image that a piece covers.

    Args:
        path: an image of the same extent as the piece's file.
        piece: a piece of a class map.

    Returns:
        (h, w, 4) colours and opacity in [0, 1]; None where the image has another shape.
    """
    assert piece.path is not None
    with open_raster(piece.path) as own, open_raster(path) as dataset:
        if own.width * dataset.height != own.height * dataset.width:
            return None
        scale = dataset.width / own.width
        window = tuple((a * scale, b * scale) for a, b in piece.window)
        alpha = alpha_bands(dataset)
        bands = [band for band in range(1, dataset.count + 1) if band not in alpha]
        bands = bands[:3] if len(bands) >= 3 else bands[:1]
        from rasterio.windows import Window

        (top, bottom), (left, right) = window
        part = Window(left, top, right - left, bottom - top)
        shape = (len(bands), piece.height, piece.width)
        pixels = np.moveaxis(dataset.read(bands, window=part, out_shape=shape), 0, -1).astype(np.float32)
        if dataset.nodata is not None:
            pixels[(pixels == dataset.nodata).all(axis=-1)] = np.nan
        is_byte = dataset.dtypes[0] == "uint8"
    if not is_byte:
        return stretch(pixels)
    hidden = np.isnan(pixels).any(axis=-1)
    colours = np.repeat(np.nan_to_num(pixels) / 255, 3 // pixels.shape[-1], axis=-1)
    return np.dstack([colours, ~hidden]).astype(np.float32)


def _tile(
    name: str,
    rank: int,
    row: Any,
    block: Block,
    image: NDArray[np.float32] | None,
    classes: Classes,
    tolerance: Tolerance,
) -> ComparedTile:
    core = slice(block.halo, -block.halo) if block.halo else slice(None)
    predicted, labels = block.predicted[core, core], block.labels[core, core]
    agreement = np.full(predicted.shape, NEITHER, np.uint8)
    for value, mask in _layers(block, classes, tolerance, predicted, labels):
        agreement[mask] = value
    present = set(np.unique(predicted)) | set(np.unique(labels))
    names = tuple(classes.names[index] for index in classes.labels if index in present)
    return ComparedTile(
        name=name,
        rank=rank,
        quality=float(row.quality),
        disagreement=float(row.disagreement),
        only_map_px=int(row.only_predicted_px),
        only_labels_px=int(row.only_labels_px),
        classes=names,
        image=image,
        predicted=predicted,
        labels=labels,
        agreement=agreement,
    )


def _layers(
    block: Block,
    classes: Classes,
    tolerance: Tolerance,
    predicted: NDArray[np.uint8],
    labels: NDArray[np.uint8],
) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Yield the values of an agreement and their pixels, the later on top."""
    drawn = [index for index in classes.labels if index != IGNORED]
    both_known = (predicted != IGNORED) & ((labels != IGNORED) | (block.unlabelled == IGNORED))
    in_map, in_labels = np.isin(predicted, drawn) & both_known, np.isin(labels, drawn) & both_known
    yield BOTH, in_map & in_labels & (predicted == labels)
    yield NEAR_LABELS, in_labels & (predicted != labels)
    yield NEAR_MAP, in_map & ~in_labels
    for one in differences(block, classes.labels, tolerance):
        yield ONLY_LABELS, one.only_labels
        yield ONLY_MAP, one.only_predicted
