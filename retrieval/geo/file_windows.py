"""Windows in the pixels of the source files, and in the upright pixels that an index holds.

A file may lie mirrored or turned; the index holds it north-up (`tfrecords.read.orientation`). The search
works on upright pixels. Answers name the pixels of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from retrieval.types import StoredImage
from tfrecords.read.orientation import UPRIGHT, file_windows, upright_windows

Images = Mapping[int, StoredImage]
Columns = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]
"""x, y, width and height of windows, (n,) each."""


def to_file(
    images: Images,
    image_ids: NDArray[Any],
    x: NDArray[Any],
    y: NDArray[Any],
    width: ArrayLike,
    height: ArrayLike,
) -> Columns:
    """Return windows of upright images as windows of their files.

    Args:
        images: the index's image table.
        image_ids: (n,) image of each window; -1 for none.
        x: (n,) smallest columns.
        y: (n,) smallest rows.
        width: columns of each window, one number or (n,).
        height: rows of each window, one number or (n,).

    Returns:
        x, y, width and height in the file, (n,) each; x and y are the smallest column and row.
    """
    return _turned(file_windows, images, image_ids, (x, y, width, height))


def to_upright(
    images: Images,
    image_ids: NDArray[Any],
    x: NDArray[Any],
    y: NDArray[Any],
    width: ArrayLike,
    height: ArrayLike,
) -> Columns:
    """Return windows of files as windows of their upright images; undoes `to_file`."""
    return _turned(upright_windows, images, image_ids, (x, y, width, height))


def shifts_to_file(
    images: Images, image_ids: NDArray[Any], dx: NDArray[Any], dy: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return shifts (n,) in upright pixels as shifts in the pixels of the files."""
    x, y, _, _ = _turned(file_windows, images, image_ids, (dx, dy, 0, 0), shifts=True)
    return x, y


def shifts_to_upright(
    images: Images, image_ids: NDArray[Any], dx: NDArray[Any], dy: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return shifts (n,) in the pixels of the files as shifts in upright pixels."""
    x, y, _, _ = _turned(upright_windows, images, image_ids, (dx, dy, 0, 0), shifts=True)
    return x, y


def _turned(
    turn: Callable[..., Columns],
    images: Images,
    image_ids: NDArray[Any],
    columns: tuple[ArrayLike, ...],
    *,
    shifts: bool = False,
) -> Columns:
    """Apply a function of `tfrecords.read.orientation` to the windows of each image that is not upright."""
    image_ids = np.asarray(image_ids)
    x, y, width, height = (np.broadcast_to(np.asarray(c), image_ids.shape).copy() for c in columns)
    for image_id in np.unique(image_ids):
        image = images.get(int(image_id))
        if image is not None and image.orientation != UPRIGHT:
            rows = image_ids == image_id
            size = (0, 0) if shifts else (image.height, image.width)
            window = turn(image.orientation, size, x[rows], y[rows], width[rows], height[rows])
            x[rows], y[rows], width[rows], height[rows] = window
    return x, y, width, height
