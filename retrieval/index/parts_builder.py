"""Describe the images of an index for its parts, and write the parts index.

The first images fit the projection of parts, and a changed index keeps it. So the parts of an image depend on
its pixels alone: an interrupted run resumes, and a change describes new images only. The codes of windows are
made from all parts again. A changed index equals a new one byte for byte if the first images are the same.

Ground under cloud is not described: the cloud network finds it. A part counts by what shows of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX, IndexConfig
from retrieval.index.folder import from_codes
from retrieval.index.parts import CODED_DIM, CODES, PARTS, SIDE, STEP, PartsIndex, Projection, write_parts
from retrieval.kernels.executors import prefetch_map
from retrieval.models.cloud_mask import MARGIN_PX, shipped_cloud_mask
from retrieval.models.local_descriptors import STEP_PX, VIEW_PX, shipped_descriptors
from retrieval.types import Progress, StoredImage
from tfrecords.artifacts import PartialFolder

FIT_PARTS = 100_000
"""Parts that the projection is fitted to: whole images until there are as many."""
STRIP = 128
"""Rows of descriptors of an image that are made at a time."""
MIN_CLOUD_SHARE = 0.02
"""Share of an image below which what looks like cloud counts as bright ground."""
RECALL_QUERIES, RECALL_K = 256, 2048
"""Windows that measure the recall of an index, half hidden, and windows that they find."""
PART_PX = STEP_PX * STEP
"""Distance between parts, in pixels."""
IN_PROGRESS_PX = 1 << 22
"""Pixels of images that are described in parallel, about."""


def has_parts(config: IndexConfig, rows: Iterable[StoredImage]) -> bool:
    """Return whether an index of some images gets an index of parts."""
    megapixels = sum(row.width * row.height for row in rows if row.windows) / 1e6
    return config.parts == "always" or (config.parts == "auto" and megapixels >= config.parts_above)


def write_parts_index(
    folder: PartialFolder,
    rows: Sequence[StoredImage],
    pixels: Mapping[int, str],
    previous: PartsIndex | None,
    progress: Progress,
) -> dict[str, Any]:
    """Write the index of the parts of images.

    Args:
        folder: holds their pixels.
        rows: images with windows, ascending by id.
        pixels: name of the file of pixels of each image that is described; the others are in `previous`.
        previous: the index of parts before a change.
        progress: called after each image.

    Returns:
        Recall on windows of the images, for the manifest.
    """
    projection = previous.projection if previous is not None else _fitted_projection(folder, rows, pixels)
    _describe(folder, rows, pixels, projection, progress)

    def parts() -> Iterator[tuple[int, NDArray[np.uint8]]]:
        for row in rows:
            if row.image_id in pixels:
                yield row.image_id, np.load(folder.path / part_name(row.image_id), allow_pickle=False)
            else:
                assert previous is not None
                yield row.image_id, previous.stored.image(row.image_id)

    progress("building the index of parts", 0, None)
    with folder.part(PARTS) as path, folder.part(CODES) as codes:
        write_parts(path, codes, parts(), projection)
    return measured_recall(PartsIndex.open(folder.path))


def part_name(image_id: int) -> str:
    """Return the name of the part that holds an image's parts until all are written."""
    return f"work/{image_id}.parts.npy"


def _fitted_projection(
    folder: PartialFolder, rows: Sequence[StoredImage], pixels: Mapping[int, str]
) -> Projection:
    """Fit the projection to the first images; an interrupted run kept it if their pixels are the same."""
    counts = np.cumsum([row.width * row.height // PART_PX**2 for row in rows])
    first = rows[: int(np.searchsorted(counts, FIT_PARTS)) + 1]
    name, made_of = "work/projection.npz", {str(r.image_id): folder.sha256(pixels[r.image_id]) for r in first}
    if not (folder.done(name) and folder.meta(name) == made_of):
        fitted = Projection.fit(describe_file(folder.path / pixels[row.image_id]) for row in first)
        with folder.part(name, made_of) as path, path.open("wb") as file:
            np.savez(file, axes=fitted.axes, steps=fitted.steps)
    with np.load(folder.path / name, allow_pickle=False) as stored:
        return Projection(stored["axes"], stored["steps"])


def _describe(
    folder: PartialFolder,
    rows: Sequence[StoredImage],
    pixels: Mapping[int, str],
    projection: Projection,
    progress: Progress,
) -> None:
    """Write the parts of each image, except those that an interrupted run made of the same pixels."""
    sizes = {row.image_id: row.width * row.height for row in rows}
    by = hashlib.sha256(projection.axes.tobytes() + projection.steps.tobytes()).hexdigest()
    made_of = {i: f"{folder.sha256(pixels[i])} {by}" for i in sizes if i in pixels}
    waiting = [
        i
        for i, source in made_of.items()
        if not (folder.done(part_name(i)) and folder.meta(part_name(i)).get("made_of") == source)
    ]
    beyond = {row.image_id: parts_beyond(row.height, row.width) for row in rows}
    described = prefetch_map(
        lambda i: projection.parts(describe_file(folder.path / pixels[i]), beyond[i]),
        waiting,
        lambda image_id: sizes[image_id],
        IN_PROGRESS_PX,
    )
    for number, (image_id, parts) in enumerate(zip(waiting, described, strict=True), 1):
        with folder.part(part_name(image_id), {"made_of": made_of[image_id]}) as path:
            np.save(path, parts, allow_pickle=False)
        progress("describing parts", number, len(waiting))


def parts_beyond(height: int, width: int) -> tuple[int, int]:
    """Return the rows and columns of parts beyond an image that its last patches need, 0 or 1 each.

    Windows are `PART_PX` apart, and a patch is compared with windows that begin up to 2 px before it and 4 px
    behind it. So the last patch may need a window that reaches beyond the edge.
    """
    rows, columns = ((size - PATCH_PX) % PART_PX >= PART_PX // 2 for size in (height, width))
    return int(rows), int(columns)


def describe_file(pixels: Path, strip: int = STRIP) -> NDArray[np.float32]:
    """Return the descriptors of an image from its file of pixels, a strip at a time.

    Args:
        pixels: (h, w, b) codes of pixels, `.npy`; h and w at least `VIEW_PX`.
        strip: rows of descriptors at a time.

    Returns:
        As `LocalDescriptors.describe_image`; 0 where nodata or cloud hides the ground.
    """
    codes = np.load(pixels, mmap_mode="r", allow_pickle=False)
    height, fields = codes.shape[0], []
    tops = range(0, (height - VIEW_PX) // STEP_PX + 1, strip)
    cloud = [_strip_cloud(codes, top, strip) for top in tops]
    is_cloudy = sum(int(c.sum()) for c in cloud) >= MIN_CLOUD_SHARE * codes.shape[0] * codes.shape[1]
    for top, hidden in zip(tops, cloud, strict=True):
        first = STEP_PX * top
        scaled = from_codes(np.asarray(codes[first : first + len(hidden)]))
        if is_cloudy:
            scaled[hidden] = np.nan
        fields.append(shipped_descriptors().describe_image(scaled, strip))
    return np.concatenate(fields)


def _strip_cloud(codes: NDArray[np.uint16], top: int, strip: int) -> NDArray[np.bool_]:
    """Return the cloud (h, w) in the pixels that a strip of descriptors sees."""
    first = STEP_PX * top
    last = min(first + STEP_PX * (strip - 1) + VIEW_PX, codes.shape[0])
    start = max(0, first - MARGIN_PX)
    scaled = from_codes(np.asarray(codes[start : last + MARGIN_PX]))
    return shipped_cloud_mask().of_image(scaled)[first - start : last - start]


def measured_recall(index: PartsIndex) -> dict[str, Any]:
    """Return how many half-hidden windows of the images find themselves by their codes.

    Returns:
        Shares among the first and among `RECALL_K`, the number of windows, and their source; empty where the
        index has none.
    """
    rng, count = np.random.default_rng(0), len(index)
    rows = np.sort(rng.choice(count, min(count, RECALL_QUERIES), replace=False))
    windows = index.stored.windows(rows).reshape(len(rows), SIDE, SIDE, CODED_DIM)
    for window, side in zip(windows, rng.integers(4, size=len(rows)), strict=True):
        np.rot90(window, side)[: SIDE // 2] = 0
    found = index.search(windows, min(RECALL_K, count)) == rows[:, None]
    shares = {f"recall_at_{k}": round(float(found[:, :k].any(1).mean()), 4) for k in (1, RECALL_K)}
    source = "windows of the indexed images, a half of each hidden"
    return shares | {"queries": len(rows), "source": source} if count else {}
