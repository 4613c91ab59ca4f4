"""The spine: images to an index, patches to places, places to a score.

A stranger reads the product here. `build_index` embeds the windows of images and writes the index
folder; `Index.matches` embeds patches, searches, refines and says how sure it is; `evaluate` scores
a submission against the answers. Each step's own room does the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import ChipConfig, Device, IndexConfig, IndexKind, RefineConfig, SearchConfig
from retrieval.evaluation.figures import Score
from retrieval.evaluation.scoring import score
from retrieval.evaluation.submission import read_submission, write_submission
from retrieval.geo.coordinates import check_resolution
from retrieval.geo.filters import SearchFilter, keep_contained, read_filter
from retrieval.index.builder import write_index
from retrieval.index.device import on_device
from retrieval.index.faiss_index import VectorIndex
from retrieval.index.folder import KIND, IndexFolder
from retrieval.index.update import Change, add_images, remove_images
from retrieval.matching.exhaustive import exhaustive_search
from retrieval.matching.large_chips import Locator
from retrieval.matching.pyramid import finish
from retrieval.matching.rounds import look
from retrieval.matching.tensor_cache import TensorCache
from retrieval.models.calibration import ChipCalibration, calibration_features, calibration_of
from retrieval.models.embed import embed_patches
from retrieval.models.encoder import load_encoder
from retrieval.results.matches import Matches, check_outputs, patch_table_of, write_patch_table
from retrieval.results.tables import write_table
from retrieval.results.window_tifs import write_window_tifs
from retrieval.types import Encoder, Progress, RankedCandidates, silent
from tfrecords.artifacts import read_manifest
from tfrecords.read import ImageSource, read_images, read_queries
from tfrecords.schema import Chips, Patches


def open_and_read(
    path: str | Path,
    patches: str | Path | NDArray[Any],
    *,
    encoder: Encoder | None = None,
    bands: Sequence[str] | None = None,
    units: str | None = None,
    device: Device = "auto",
) -> tuple[Index, Patches | Chips]:
    """Open an index and read patches at the same time: each leaves a core idle.

    Args:
        path: as for `open_index`.
        patches: what `read_queries` opens.
        encoder: as for `open_index`.
        bands: names of the patches' bands, where the file does not say.
        units: units of the patches, where the range does not say.
        device: "auto", "cpu" or "gpu".

    Raises:
        RetrieveError: as of `open_index` and `read_queries`; of a folder that is no index at once.
    """
    read_manifest(path, KIND, verify=False)
    with ThreadPoolExecutor(1) as beside:
        opening = beside.submit(open_index, path, encoder=encoder, device=device)
        asked = read_queries(patches, bands=bands, units=units)
        return opening.result(), asked


BLOCK = 10_240
"""Patches answered at a time: bounds memory at any number of them."""

Asked = str | Path | NDArray[Any] | Patches | Chips
"""What `read_queries` opens, or has opened."""


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
    return Index(IndexFolder(Path(out), encoder=made_by, device=device, just_written=True), device)


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
        images: as for `build_index`; see `retrieval.index.update.add_images` for the ids that they get.
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
    """Remove images from a finished index, see `retrieval.index.update.remove_images`."""
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
        return Index(IndexFolder(Path(path), encoder=encoder, device=device), device)


def locate(
    index: Index,
    patches: Asked,
    out: str | Path,
    *,
    details: str | Path | None = None,
    cutouts: str | Path | None = None,
    between: str | None = None,
    within: str | Path | None = None,
    min_confidence: float | None = None,
    drop_unsure: bool = False,
    bands: Sequence[str] | None = None,
    units: str | None = None,
    search: SearchConfig | None = None,
    refinement: RefineConfig | None = None,
    chips: ChipConfig | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Matches:
    """Answer patches and write the submission, and every candidate where `details` is named.

    Where the patches came from files, one each, `patches.csv` beside the submission says which. Of a chip
    that sticks out of its image the submission, which knows no sign, has 0 for a negative x or y; the details
    have the true ones.

    Args:
        index: from `build_index` or `open_index`.
        patches: as for `Index.matches`.
        out: the CSV, `Patch ID,Result`, a row for every patch.
        details: a table of all candidates, `.parquet`, `.csv` or `.geojson`.
        cutouts: a folder for what was found, a GeoTIFF an answer.
        between: as for `Index.matches`.
        within: likewise.
        min_confidence: answers below it, 0 to 1, are marked `unsure` in the details.
        drop_unsure: leave them out of the submission.
        bands: names of the patches' bands, where the file does not say.
        units: units of the patches, where the range does not say.
        search: how many candidates are looked at.
        refinement: how their pixels are found.
        chips: how larger chips are located.
        overwrite: replace what is there.
        progress: told of each stage.

    Raises:
        RetrieveError: bad patches, or an output that exists.
    """
    asked = _opened(patches, bands, units)
    table = patch_table_of(Path(out), asked)
    # Before hours of work, not after them.
    check_outputs((out, table), details, folder=cutouts, overwrite=overwrite)
    found = index.matches(
        asked,
        between=between,
        within=within,
        search=search,
        refinement=refinement,
        chips=chips,
        progress=progress,
    )
    kept = ~found.unsure(min_confidence) if drop_unsure else np.ones(len(found.patch_ids), bool)
    image_ids, x, y = found.best()
    x, y = np.maximum(x, 0), np.maximum(y, 0)
    write_submission(out, found.patch_ids[kept], image_ids[kept], x[kept], y[kept], overwrite=overwrite)
    if table is not None:
        write_patch_table(table, asked, overwrite=overwrite)
    if details is not None:
        write_table(found.details(min_confidence), details, overwrite=overwrite)
    if cutouts is not None:
        write_window_tifs(found, Path(cutouts), kept, overwrite=overwrite, progress=progress)
    return found


def evaluate(submission: str | Path, answers: str | Path) -> Score:
    """Score a submission file against an answers file: SC_img, SC_loc, SC and the strict figures."""
    return score(read_submission(submission), read_submission(answers))


class Index:
    """An opened index: ask it where patches are."""

    def __init__(self, folder: IndexFolder, device: Device = "auto") -> None:
        """Wrap an index folder; use `open_index`."""
        self.folder, self.device = folder, device

    def locate(
        self,
        patches: Asked,
        *,
        between: str | None = None,
        within: str | Path | None = None,
        bands: Sequence[str] | None = None,
        units: str | None = None,
    ) -> Any:
        """Where each patch or chip is.

        Args:
            patches: (n, h, w, b) array, h and w 64 or more, or what `read_queries` opens.
            between: as for `matches`.
            within: likewise.
            bands: names of the bands, where the file does not say.
            units: units of the patches, where the range does not say.

        Returns:
            A `pandas.DataFrame`, a row for each patch in order: patch_id, image_id, x, y, dx, dy,
            confidence, similarity, ncc, longitude, latitude of the centre (NaN without a CRS). x and y of
            a chip that sticks out of its image may be negative.
        """
        return self.matches(patches, between=between, within=within, bands=bands, units=units).frame()

    def matches(
        self,
        patches: Asked,
        *,
        between: str | None = None,
        within: str | Path | None = None,
        bands: Sequence[str] | None = None,
        units: str | None = None,
        search: SearchConfig | None = None,
        refinement: RefineConfig | None = None,
        chips: ChipConfig | None = None,
        progress: Progress = silent,
    ) -> Matches:
        """Embed, search, refine, and say how sure: all candidates of each patch or chip, best first.

        Args:
            patches: as for `locate`.
            between: dates that an image must be of, such as "2019-01/2021-12" or "2019/..".
            within: GeoJSON file; the centre of an answer lies in one of its polygons.
            bands: names of the bands, where the file does not say.
            units: units of the patches, where the range does not say.
            search: how many candidates are looked at.
            refinement: how their pixels are found; its radius is raised to the index's stride.
            chips: how larger chips are located.
            progress: told of each stage.

        Raises:
            RetrieveError: bad patches, chips of another resolution, or a filter that leaves no image.
        """
        asked = _opened(patches, bands, units)
        check_resolution(self.folder.images, asked.georeferences, asked.paths)
        scope = read_filter(self.folder.images, between, within)
        # Wider strides leave more to the refinement: it must reach from one window to the next.
        search, refinement = search or SearchConfig(), refinement or RefineConfig()
        refinement = replace(refinement, radius_px=max(refinement.radius_px, self.folder.config.stride_px))
        with on_device(self.device):
            if isinstance(asked, Chips):
                return self._chips(asked, scope, search, refinement, chips or ChipConfig(), progress)
            return self._patches(asked, scope, search, refinement, progress)

    def _patches(
        self,
        asked: Patches,
        scope: SearchFilter | None,
        search: SearchConfig,
        refinement: RefineConfig,
        progress: Progress,
    ) -> Matches:
        """Answer patches, a block at a time."""
        parts, vectors = [], self._vectors(scope, refinement.radius_px)
        everywhere = sorted(scope.images if scope else self.folder.images)
        ground = TensorCache(self.folder)
        for start in range(0, max(1, len(asked)), BLOCK):
            part = asked.select(slice(start, start + BLOCK))
            seen = embed_patches(self.folder.encoder, part, progress)
            parts.append(look(vectors, seen, part, self.folder, search, refinement, progress, ground))
        refined = finish(
            RankedCandidates.concatenate(parts), asked, self.folder, refinement, progress, ground
        )
        refined = exhaustive_search(
            refined, asked, self.folder, everywhere, search, refinement, progress, ground
        )
        refined = refined if scope is None else keep_contained(refined, scope)
        confidence = calibration_of(self.folder.encoder.fingerprint).probability(
            calibration_features(refined)
        )
        return Matches(asked.patch_ids, refined, confidence, self.folder, asked)

    def _chips(
        self,
        asked: Chips,
        scope: SearchFilter | None,
        search: SearchConfig,
        refinement: RefineConfig,
        config: ChipConfig,
        progress: Progress,
    ) -> Matches:
        """Answer chips, each from all its windows."""
        # A window may lie half a chip away from the centre, which is what has to be in the area.
        reach = refinement.radius_px + float(asked.sizes.max(initial=0)) / 2
        locator = Locator(
            self.folder,
            TensorCache(self.folder),
            self._vectors(scope, reach),
            search,
            refinement,
            calibration_of(self.folder.encoder.fingerprint),
            ChipCalibration.load(),
            config,
            scope.contains if scope else None,
        )
        at = locator.locate(asked, progress)
        return Matches(asked.patch_ids, at.found, at.confidence, self.folder, asked, at.windows, at.agree)

    def _vectors(self, scope: SearchFilter | None, reach_px: float) -> VectorIndex:
        """The index's vectors, restricted to what may lead to an answer."""
        if scope is None:
            return self.folder.vectors
        return self.folder.vectors.restricted(scope.windows(self.folder.config.stride_px, reach_px))


def _opened(patches: Asked, bands: Sequence[str] | None, units: str | None) -> Patches | Chips:
    """What is asked about, read."""
    if isinstance(patches, (Patches, Chips)):
        return patches
    return read_queries(patches, bands=bands, units=units)
