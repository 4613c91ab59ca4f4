"""The spine: images to an index, patches to places, places to a score.

A stranger reads the product here: `build_index`, `locate` and `evaluate`. Each line calls one room.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from retrieval.config import ChipConfig, Device, IndexConfig, RefineConfig, SearchConfig
from retrieval.errors import UncalibratedWarning
from retrieval.evaluation.figures import Score
from retrieval.evaluation.scoring import score
from retrieval.evaluation.submission import read_submission
from retrieval.geo.coordinates import check_resolution
from retrieval.geo.filters import SearchFilter, keep_contained, read_filter
from retrieval.index.builder import write_index
from retrieval.index.device import on_device
from retrieval.index.folder import IndexFolder
from retrieval.matching.exhaustive import exhaustive_search
from retrieval.matching.large_chips import locate_chips
from retrieval.matching.pyramid import refine_full_resolution
from retrieval.matching.rounds import search_in_rounds
from retrieval.matching.session import Session
from retrieval.models.encoder import load_encoder
from retrieval.results.calibrate import CalibrationReport, calibrate_from
from retrieval.results.matches import Matches
from retrieval.types import Encoder, Executor, Progress, silent
from tfrecords.read import ImageSource, read_images, read_queries
from tfrecords.schema import Chips, Patches

Queries = str | Path | NDArray[Any] | Patches | Chips
"""Input of `read_queries`, or its result."""


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
        images: a TFRecord, an `.npy` file or array (n, h, w, b), a GeoTIFF, a folder or a glob of them, or an
            opened source.
        out: the folder, written as a whole; an interrupted run resumes.
        encoder: an encoder, a `.keras` file or a shipped encoder's name; None for the default.
        config: stride, kind of index, visibility.
        bands: names of the bands; None reads them from the file.
        units: "dn", "reflectance", "scaled" or "byte"; None infers them from the values.
        device: "auto", "cpu" or "gpu".
        overwrite: replace a finished index.
        progress: hears of each image.

    Raises:
        RetrieveError: one of its kinds: what was received, what was expected, how to fix it.
    """
    source = images if isinstance(images, ImageSource) else read_images(images, bands=bands, units=units)
    chosen, settings = load_encoder(encoder), config or IndexConfig()
    with on_device(device):
        write_index(
            source,
            Path(out),
            chosen,
            settings,
            source=source.note,
            overwrite=overwrite,
            device=device,
            progress=progress,
        )
    return Index(IndexFolder(Path(out), encoder=chosen, device=device, just_written=True), device)


def open_index(path: str | Path, *, encoder: Encoder | None = None, device: Device = "auto") -> Index:
    """Open an index folder.

    Args:
        path: written by `build_index` or `retrieve index`.
        encoder: only for an index of an encoder that is not a Keras model.
        device: "auto", "cpu" or "gpu".

    Raises:
        RetrieveError: the folder is missing, damaged, of another format version or of another encoder.
    """
    with on_device(device):
        return Index(IndexFolder(Path(path), encoder=encoder, device=device), device)


def locate(
    index: Index,
    queries: Queries,
    *,
    search_filter: SearchFilter | None = None,
    bands: Sequence[str] | None = None,
    units: str | None = None,
    search: SearchConfig | None = None,
    refinement: RefineConfig | None = None,
    chips: ChipConfig | None = None,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> Matches:
    """Find all candidates of each patch or chip, best first, with the confidence of the best.

    Args:
        index: from `build_index` or `open_index`.
        queries: (n, h, w, b) array, h and w 64 or more, or an input of `tfrecords.read.read_queries`.
        search_filter: images and area that may be answered, from `retrieval.geo.filters.read_filter`.
        bands: names of the bands; None reads them from the file.
        units: units of the pixels; None infers them from the values.
        search: settings of the search.
        refinement: settings of the refinement; its radius is at least the index's stride.
        chips: settings for chips larger than a patch.
        executor: runs the batches of each stage; None for threads of this process.
        progress: hears of each stage.

    Raises:
        RetrieveError: bad patches, or chips of another resolution.
    """
    if not isinstance(queries, (Patches, Chips)):
        queries = read_queries(queries, bands=bands, units=units)
    check_resolution(index.folder.images, queries.georeferences, queries.paths)
    with on_device(index.device):
        session = Session.open(
            index.folder, queries, search_filter, search, refinement, chips, executor, progress
        )
        if isinstance(queries, Chips):
            return Matches.of_chips(index.folder, queries, locate_chips(session, queries))
        candidates = search_in_rounds(session)
        candidates = refine_full_resolution(session, candidates)
        candidates = exhaustive_search(session, candidates)
        candidates = keep_contained(candidates, search_filter)
        return Matches.of_patches(index.folder, queries, candidates)


def calibrate(
    index: Index,
    queries: Queries,
    answers: str | Path,
    out: Path | None = None,
    *,
    bands: Sequence[str] | None = None,
    units: str | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> CalibrationReport:
    """Fit the confidence of an index to queries with known answers; see `calibrate_from`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncalibratedWarning)
        matches = locate(index, queries, bands=bands, units=units, progress=progress)
    return calibrate_from(matches, read_submission(answers), out, overwrite=overwrite)


def evaluate(submission: str | Path, answers: str | Path) -> Score:
    """Score a submission file against an answers file: SC_img, SC_loc, SC and the strict figures."""
    return score(read_submission(submission), read_submission(answers))


@dataclass(frozen=True, eq=False)
class Index:
    """An opened index."""

    folder: IndexFolder
    """The index folder."""
    device: Device = "auto"
    """Where FAISS and the encoder compute."""

    def locate(
        self, queries: Queries, *, between: str | None = None, within: str | Path | None = None, **more: Any
    ) -> Any:
        """Find the best place of each patch or chip.

        Args:
            queries: as for `retrieval.pipeline.locate`.
            between: dates of the images, such as "2019-01/2021-12" or "2019/..".
            within: GeoJSON file; the centre of an answer lies in one of its polygons.
            more: other arguments of `retrieval.pipeline.locate`.

        Returns:
            A `pandas.DataFrame`, a row for each patch in order: patch_id, image_id, x, y, dx, dy, confidence,
            similarity, ncc, longitude, latitude of the centre (NaN without a CRS). x and y of a chip that
            begins outside of its image may be negative.
        """
        return self.matches(queries, between=between, within=within, **more).frame()

    def matches(
        self, queries: Queries, *, between: str | None = None, within: str | Path | None = None, **more: Any
    ) -> Matches:
        """Find all candidates of each patch or chip; arguments as for `locate`."""
        search_filter = read_filter(self.folder.images, between, within)
        return locate(self, queries, search_filter=search_filter, **more)
