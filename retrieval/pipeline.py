"""The spine: images to an index, patches to places, places to a score.

A stranger reads the product here. `build_index` embeds the windows of images and writes the index
folder; `Index.matches` embeds patches, searches, refines and says how sure it is; `evaluate` scores
a submission against the answers. Each step's own room does the work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.answer import find
from retrieval.calibrate import calibration_of, evidence
from retrieval.config import Device, IndexConfig, IndexKind, RefineConfig, SearchConfig
from retrieval.embed import embed_patches
from retrieval.encoder import load_encoder
from retrieval.grow import Change, add_images, remove_images
from retrieval.index import resolve_device
from retrieval.matches import Matches, check_outputs, patch_table_of, write_patch_table, write_table
from retrieval.score import Score, read_submission, score, write_submission
from retrieval.store import Store, write_index
from retrieval.types import Encoder, Progress, Refined, silent
from tfrecords.read import ImageSource, read_images, read_patches
from tfrecords.schema import Image, Patches

BLOCK = 40_960
"""Patches answered at a time: bounds memory to about 2 GB at any number of them."""
EMBED_BLOCK = 1024
"""Patches read and embedded at a time."""


def build_index(
    images: str | Path | NDArray[Any] | ImageSource,
    out: str | Path,
    *,
    encoder: str | Path | Encoder | None = None,
    config: IndexConfig | None = None,
    bands: Sequence[str] | None = None,
    units: str | None = None,
    device: Device = "auto",
    overwrite: bool = False,
    progress: Progress = silent,
) -> Index:
    """Embed images and write an index folder.

    Args:
        images: what `tfrecords.read.read_images` opens: a TFRecord, an `.npy` file or array
            (n, h, w, b), a GeoTIFF, a folder or a glob of them; or an opened source.
        out: the folder; written whole, resumed if an earlier run was stopped.
        encoder: an encoder, a `.keras` file or a shipped encoder's name; None for the default one.
        config: stride, kind of index, visibility.
        bands: names of the bands, where the file does not say.
        units: "dn", "reflectance", "scaled" or "byte", where the range does not say.
        device: "auto", "cpu" or "gpu".
        overwrite: replace a finished index.
        progress: told after each image.

    Returns:
        The index, opened.

    Raises:
        RetrieveError: one of its kinds, with what was received, what was expected and how to fix it.
    """
    source = images if isinstance(images, ImageSource) else read_images(images, bands=bands, units=units)
    made_by = load_encoder(encoder) if encoder is None or isinstance(encoder, (str, Path)) else encoder
    what = str(images) if isinstance(images, (str, Path)) else "memory"
    with on_device(device):
        write_index(
            source,
            Path(out),
            made_by,
            config or IndexConfig(),
            source=f"{what} ({source.note})",
            overwrite=overwrite,
            device=device,
            progress=progress,
        )
    return Index(Store(Path(out), encoder=made_by, device=device), device)


def add_to_index(
    images: str | Path | NDArray[Any] | ImageSource,
    out: str | Path,
    *,
    encoder: str | Path | Encoder | None = None,
    stride_px: int | None = None,
    kind: IndexKind | None = None,
    bands: Sequence[str] | None = None,
    units: str | None = None,
    device: Device = "auto",
    overwrite: bool = False,
    progress: Progress = silent,
) -> Change:
    """Put images into a finished index: only they are embedded.

    Args:
        images: as for `build_index`; see `retrieval.grow.add_images` for the ids that they get.
        out: the index.
        encoder: refused if it is not the index's, as are the next two; None takes the index's.
        stride_px: pixels between windows.
        kind: kind of index.
        bands: names of the bands, where the file does not say.
        units: "dn", "reflectance", "scaled" or "byte", where the range does not say.
        device: "auto", "cpu" or "gpu".
        overwrite: begin an unfinished change of other settings anew.
        progress: told after each image.

    Returns:
        Which images were added, and how many were there already.

    Raises:
        RetrieveError: one of its kinds; the index is then as it was.
    """
    source = images if isinstance(images, ImageSource) else read_images(images, bands=bands, units=units)
    what = str(images) if isinstance(images, (str, Path)) else "memory"
    with on_device(device):
        return add_images(
            source,
            Path(out),
            source=f"{what} ({source.note})",
            encoder=load_encoder(encoder) if isinstance(encoder, (str, Path)) else encoder,
            stride_px=stride_px,
            kind=kind,
            overwrite=overwrite,
            device=device,
            progress=progress,
        )


def remove_from_index(
    out: str | Path,
    names: Sequence[str | int],
    *,
    encoder: Encoder | None = None,
    device: Device = "auto",
    overwrite: bool = False,
    progress: Progress = silent,
) -> Change:
    """Take images out of a finished index: nothing is embedded; see `retrieval.grow.remove_images`."""
    with on_device(device):
        return remove_images(
            Path(out), names, encoder=encoder, device=device, overwrite=overwrite, progress=progress
        )


def open_index(path: str | Path, *, encoder: Encoder | None = None, device: Device = "auto") -> Index:
    """Open an index folder.

    Args:
        path: written by `build_index` or `retrieve index`.
        encoder: only for an index that was made with an encoder that is no Keras model.
        device: "auto", "cpu" or "gpu".

    Raises:
        RetrieveError: missing, damaged, of another format version, or of another encoder.
    """
    with on_device(device):
        return Index(Store(Path(path), encoder=encoder, device=device), device)


def locate(
    index: Index,
    patches: str | Path | NDArray[Any] | Patches,
    out: str | Path,
    *,
    details: str | Path | None = None,
    min_confidence: float | None = None,
    drop_unsure: bool = False,
    bands: Sequence[str] | None = None,
    units: str | None = None,
    search: SearchConfig | None = None,
    refinement: RefineConfig | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Matches:
    """Answer patches and write the submission, and every candidate where `details` is named.

    Where the patches came from files, one each, `patches.csv` beside the submission says which.

    Args:
        index: from `build_index` or `open_index`.
        patches: as for `Index.matches`.
        out: the CSV, `Patch ID,Result`, a row for every patch.
        details: a table of all candidates, `.parquet` or `.csv`.
        min_confidence: answers below it, 0 to 1, are marked `unsure` in the details.
        drop_unsure: leave them out of the submission.
        bands: names of the patches' bands, where the file does not say.
        units: units of the patches, where the range does not say.
        search: how many candidates are looked at.
        refinement: how their pixels are found.
        overwrite: replace what is there.
        progress: told of each stage.

    Raises:
        RetrieveError: bad patches, or an output that exists.
    """
    asked = patches if isinstance(patches, Patches) else read_patches(patches, bands=bands, units=units)
    table = patch_table_of(Path(out), asked)
    check_outputs((out, table), details, overwrite=overwrite)  # before hours of work, not after them
    found = index.matches(asked, search=search, refinement=refinement, progress=progress)
    kept = ~found.unsure(min_confidence) if drop_unsure else slice(None)
    image_ids, x, y = found.best()
    write_submission(out, found.patch_ids[kept], image_ids[kept], x[kept], y[kept], overwrite=overwrite)
    if table is not None:
        write_patch_table(table, asked, overwrite=overwrite)
    if details is not None:
        write_table(found.details(min_confidence), details, overwrite=overwrite)
    return found


def evaluate(submission: str | Path, answers: str | Path) -> Score:
    """Score a submission file against an answers file: SC_img, SC_loc, SC and the strict figures."""
    return score(read_submission(submission), read_submission(answers))


class Index:
    """An opened index: ask it where patches are."""

    def __init__(self, store: Store, device: Device = "auto") -> None:
        """Wrap a store; use `open_index`."""
        self.store, self.device = store, device

    def locate(
        self,
        patches: str | Path | NDArray[Any] | Patches,
        *,
        bands: Sequence[str] | None = None,
        units: str | None = None,
    ) -> Any:
        """Where each patch is.

        Args:
            patches: (n, 64, 64, b) array or what `read_patches` opens.
            bands: names of the bands, where the file does not say.
            units: units of the patches, where the range does not say.

        Returns:
            A `pandas.DataFrame`, a row for each patch in order: patch_id, image_id, x, y, dx, dy,
            confidence, similarity, ncc, longitude, latitude (NaN without a CRS).
        """
        return self.matches(patches, bands=bands, units=units).frame()

    def matches(
        self,
        patches: str | Path | NDArray[Any] | Patches,
        *,
        bands: Sequence[str] | None = None,
        units: str | None = None,
        search: SearchConfig | None = None,
        refinement: RefineConfig | None = None,
        progress: Progress = silent,
    ) -> Matches:
        """Embed, search, refine, and say how sure: all candidates of each patch, best first.

        Args:
            patches: (n, 64, 64, b) array or what `read_patches` opens.
            bands: names of the bands, where the file does not say.
            units: units of the patches, where the range does not say.
            search: how many candidates are looked at.
            refinement: how their pixels are found; its radius is raised to the index's stride.
            progress: told of each stage.
        """
        asked = patches if isinstance(patches, Patches) else read_patches(patches, bands=bands, units=units)
        # Wider strides leave more to the refinement: it must reach from one window to the next.
        search, refinement = search or SearchConfig(), refinement or RefineConfig()
        refinement = replace(refinement, radius_px=max(refinement.radius_px, self.store.config.stride_px))
        parts = []
        with on_device(self.device):
            for start in range(0, max(1, len(asked)), BLOCK):
                part = _rows(asked, slice(start, start + BLOCK))
                vectors = embed_patches(self.store.encoder, _blocks(part, progress))
                parts.append(
                    find(self.store.vectors, vectors, part, self.store, search, refinement, progress)
                )
        refined = Refined(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Refined)))
        confidence = calibration_of(self.store.encoder.fingerprint).probability(evidence(refined))
        return Matches(asked.patch_ids, refined, confidence, self.store, asked)


def _rows(patches: Patches, rows: slice) -> Patches:
    """A run of rows; a memory map stays one."""
    return replace(patches, patch_ids=patches.patch_ids[rows], pixels=patches.pixels[rows], paths=())


def _blocks(patches: Patches, progress: Progress) -> Iterator[NDArray[np.float32]]:
    """Patches as the encoder sees them, a block at a time."""
    for i in range(0, len(patches), EMBED_BLOCK):
        yield patches.scaled(slice(i, i + EMBED_BLOCK))
        progress("embedding patches", min(i + EMBED_BLOCK, len(patches)), len(patches))


def on_device(device: Device) -> AbstractContextManager[Any]:
    """Keras's arithmetic on the CPU where "cpu" is asked for; otherwise where the backend puts it."""
    from contextlib import nullcontext

    resolve_device(device)
    if device != "cpu":
        return nullcontext()
    import keras

    return keras.device("cpu:0")


__all__ = [
    "Image",
    "Index",
    "Matches",
    "add_to_index",
    "build_index",
    "evaluate",
    "locate",
    "open_index",
    "remove_from_index",
]
