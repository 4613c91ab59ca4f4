"""Images that give no window to index: the reason, and how messages and JSON name them.

A window is left out if too little of it has data, or if it is flat. An image whose windows are all left out
stays in the table of the index, but no query finds it. So each such image is named with the reason, and an
index without any window is refused.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX, IndexConfig
from retrieval.errors import NoWindowsError, NoWindowsWarning
from retrieval.types import StoredImage
from tfrecords.errors import listed
from tfrecords.grid import valid_share
from tfrecords.schema import Image

REASONS = "images_without_windows"
"""Entry of the manifest's `extra`: the reason for each such image, by its id as text."""


def reason_without_window(image: Image, scaled: NDArray[np.float32], config: IndexConfig) -> str:
    """Return why an image has no window, in a few words.

    Args:
        image: the image as it was read.
        scaled: (h, w, b) its pixels as the encoder saw them, NaN = nodata.
        config: visibility.
    """
    known = np.logical_not(np.isnan(scaled).all(-1))
    if not known.any():
        return "all pixels are nodata"
    visible = valid_share(known, PATCH_PX, config.stride_px) >= config.min_visible - 1e-6
    if _is_constant(scaled, known):
        limit = np.iinfo(image.pixels.dtype).max if image.pixels.dtype.kind in "ui" else np.inf
        clipped = not _is_constant(image.pixels, known) or scaled[known].min() >= 1
        return f"all pixels are {'saturated' if clipped or image.pixels.min() >= limit else 'equal'}"
    if not visible.any():
        return f"no window has data in {config.min_visible:.0%} of its pixels"
    return "no window has texture"


def _is_constant(pixels: NDArray[Any], known: NDArray[np.bool_]) -> bool:
    """Return whether each band has one value in the known pixels (h, w); NaN does not count."""
    values = pixels[known].astype(np.float64)
    low, high = np.fmin.reduce(values), np.fmax.reduce(values)
    return bool((np.isnan(low) | (low == high)).all())


def name_images(images: Mapping[int, StoredImage], reasons: Mapping[int, str]) -> list[str]:
    """Return the name of each image with its reason in brackets, by ascending id.

    An image has the name of its file, and its id where a file holds several images.
    """
    files = Counter(image.path for image in images.values())

    def name(image_id: int) -> str:
        path = images[image_id].path
        number = f"image {image_id}"
        return path if path and files[path] == 1 else f"{path}: {number}" if path else number

    return [f"{name(i)} ({reasons[i]})" if reasons[i] else name(i) for i in sorted(reasons)]


def no_windows(images: Mapping[int, StoredImage], reasons: Mapping[int, str]) -> NoWindowsError:
    """Return the error on an index without any window.

    Args:
        images: the table of the index, by id.
        reasons: why they have no window, by id.
    """
    which = "the image has no" if len(images) == 1 else f"none of the {len(images)} images has a"
    return NoWindowsError(
        f"{which} window to index: {listed(name_images(images, reasons))}. Expected texture in a window "
        f"of {PATCH_PX} x {PATCH_PX} pixels. Check the files, their nodata tag and --units."
    )


def warn_without_windows(images: Mapping[int, StoredImage], reasons: Mapping[int, str]) -> None:
    """Name new images without a window.

    Args:
        images: the table of the index, by id.
        reasons: why new images have no window, by id; empty if all have one.

    Warns:
        NoWindowsWarning: some have none.
    """
    if not reasons:
        return
    count = f"{len(reasons)} of {len(images)} images"
    warnings.warn(
        f"{count} have no window in the index, so queries don't find them: "
        f"{listed(name_images(images, reasons))}",
        NoWindowsWarning,
        stacklevel=4,
    )


def stored_reasons(images: Mapping[int, StoredImage], extra: Mapping[str, object]) -> dict[int, str]:
    """Return the images of an index without a window, and why.

    Args:
        images: the table of the index, by id.
        extra: of the manifest.

    Returns:
        The reason by id; empty for images of an index that did not store it.
    """
    known = extra.get(REASONS)
    texts = known if isinstance(known, dict) else {}
    return {i: str(texts.get(str(i), "")) for i, image in sorted(images.items()) if not image.windows}


def as_records(images: Mapping[int, StoredImage], reasons: Mapping[int, str]) -> Sequence[dict[str, object]]:
    """Return image_id, path and reason of each image without a window, for JSON."""
    return [{"image_id": i, "path": images[i].path, "reason": reasons[i]} for i in sorted(reasons)]
