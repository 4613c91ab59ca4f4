"""The spine: images to an index, patches to places, places to a score; each line calls one room."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from retrieval.config import ChipConfig, Device, IndexConfig, RefineConfig, SearchConfig
from retrieval.distributed.shard_builder import write_shards
from retrieval.distributed.shards import Folders, open_folder
from retrieval.evaluation import Score, read_submission, score
from retrieval.geo.filters import SearchFilter, keep_contained, read_filter
from retrieval.index.device import on_device
from retrieval.index.folder import IndexFolder
from retrieval.matching.blocks import match_in_blocks
from retrieval.matching.exhaustive import search_uncertain
from retrieval.matching.large_chips import locate_chips
from retrieval.matching.session import Session, adapt_to_images
from retrieval.models.encoder import load_encoder
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
    shards: int | None = None,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> Index:
    """Embed images and write an index folder as a whole; an interrupted run resumes.

    Args:
        images: input of `tfrecords.read.read_images`, or its result.
        out: the folder, or its URL.
        encoder: an encoder, a `.keras` file or a shipped encoder's name; None for the default.
        config: stride, kind of index, visibility.
        bands: names of the bands; None reads them from the file.
        units: "dn", "reflectance", "scaled" or "byte"; None infers them from the values.
        device: "auto", "cpu" or "gpu".
        overwrite: replace a finished index.
        shards: number of index folders to write, joined by a file; None for one folder.
        executor: embeds images or builds shards, see `retrieval.open_executor`; None for threads.
        progress: hears of each image.

    Raises:
        RetrieveError: bad images, encoder or settings, no window at all, or an output that exists.
    """
    source = images if isinstance(images, ImageSource) else read_images(images, bands=bands, units=units)
    chosen, settings = load_encoder(encoder), config or IndexConfig()
    with on_device(device):
        write_shards(source, out, chosen, settings, shards, overwrite, device, executor, progress)
        return Index(open_folder(out, encoder=chosen, device=device, just_written=True), device)


def open_index(path: Folders, *, encoder: Encoder | None = None, device: Device = "auto") -> Index:
    """Open an index, or several as one; name the encoder if it is no Keras model. RetrieveError if bad."""
    with on_device(device):
        return Index(open_folder(path, encoder=encoder, device=device), device)


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
        queries: (n, h, w, b) array, h and w 64 or more, or input of `tfrecords.read.read_queries`.
        search_filter: images and area that may be answered, from `retrieval.geo.filters.read_filter`.
        bands: names of the bands; None reads them from the file.
        units: units of the pixels; None infers them from the values.
        search: settings of the search.
        refinement: settings of the refinement; its radius is at least the index's stride.
        chips: settings for chips larger than a patch.
        executor: runs the batches of each stage, or blocks of patches on a cluster; None for threads.
        progress: hears of each stage.

    Raises:
        RetrieveError: bad patches, or chips whose pixels are no image's size within a factor of 1.5.
    """
    if not isinstance(queries, (Patches, Chips)):
        queries = read_queries(queries, bands=bands, units=units)
    folder, settings = index.folder, (search, refinement, chips)
    queries = adapt_to_images(folder.images, queries)
    with on_device(index.device):
        here = executor if executor and executor.in_process else None
        session = Session.open(folder, queries, search_filter, *settings, here, progress)
        if isinstance(queries, Chips):
            return Matches.of_chips(folder, queries, locate_chips(session, queries))
        candidates = match_in_blocks(session, folder, queries, executor)
        searched = search_uncertain(session, candidates)
        found = keep_contained(searched.candidates, search_filter)
        return Matches.of_patches(folder, queries, found, searched)


def evaluate(submission: str | Path, answers: str | Path) -> Score:
    """Score a submission file against an answers file: SC_img, SC_loc, SC and the strict figures."""
    return score(read_submission(submission), read_submission(answers))


@dataclass(frozen=True, eq=False)
class Index:
    """An opened index: its folder, and where FAISS and the encoder compute."""

    folder: IndexFolder
    device: Device = "auto"

    def matches(
        self, queries: Queries, *, between: str | None = None, within: str | Path | None = None, **more: Any
    ) -> Matches:
        """Call `retrieval.pipeline.locate` on the images of dates and in the polygons of a GeoJSON file."""
        search_filter = read_filter(self.folder.images, between, within)
        return locate(self, queries, search_filter=search_filter, **more)

    def locate(self, queries: Queries, **more: Any) -> Any:
        """Return a `pandas.DataFrame`, a row for the place of each patch or chip; arguments as for `matches`.

        Columns: patch_id, image_id, x, y, dx, dy, confidence, similarity, ncc, longitude and latitude of the
        centre (NaN without a CRS). A chip may have a negative x or y.
        """
        return self.matches(queries, **more).frame()
