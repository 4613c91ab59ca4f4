"""One query session: what every stage of matching needs, in one record.

A stage takes the session and the candidates of the stage before. A session for fewer queries or with other
settings shares the tensor cache: `select` and `with_settings`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.config import ChipConfig, Device, RefineConfig, SearchConfig
from retrieval.geo.filters import SearchFilter
from retrieval.geo.pixel_size import match_pixel_size
from retrieval.index.device import on_device
from retrieval.index.faiss_index import VectorIndex
from retrieval.index.folder import KIND, SHARDS, IndexFolder
from retrieval.index.parts import PartsIndex
from retrieval.kernels.executors import ThreadExecutor
from retrieval.matching.tensor_cache import TensorCache
from retrieval.models.verifier import Verifier
from retrieval.types import Encoder, Executor, PatchPixels, Pixels, Progress, StoredImage, silent
from tfrecords.artifacts import read_manifest
from tfrecords.read import read_queries
from tfrecords.remote import url_of
from tfrecords.schema import Chips, Patches

BATCH_PAIRS = {2: 32768, 1: 8192, 0: 256}
"""At most about 70 MB of regions, by level: 0 is full resolution."""


@dataclass(frozen=True, eq=False)
class Session:
    """The index, the queries, the settings and the cache of one query."""

    images: Pixels
    """Pixels of the indexed images."""
    queries: PatchPixels
    """Patches, (n, 64, 64, b)."""
    vectors: VectorIndex | None = None
    """Vectors of the windows that may be answered; None where candidates are given."""
    parts: PartsIndex | None = None
    """Parts of the images, for patches of which only a part is visible; None compares every place."""
    encoder: Encoder | None = None
    """Made the vectors; None where the vectors of the queries are given."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """How many candidates are compared, and when a patch counts as certain."""
    refinement: RefineConfig = field(default_factory=RefineConfig)
    """How the pixel of a candidate is found."""
    chips: ChipConfig = field(default_factory=ChipConfig)
    """How a chip larger than a patch is located."""
    image_ids: Sequence[int] = ()
    """Images that exhaustive search covers."""
    table: Mapping[int, StoredImage] = field(default_factory=dict)
    """The image table; images that it lacks have no position on the map."""
    search_filter: SearchFilter | None = None
    """Which images and which area may be answered; None for all."""
    executor: Executor = field(default_factory=ThreadExecutor)
    """Runs the batches of a stage."""
    progress: Progress = silent
    """Hears of every stage."""
    verifier: Verifier | None = None
    """Decides between the best candidates; None for the shipped one."""
    batch_pairs: Mapping[int, int] = field(default_factory=lambda: BATCH_PAIRS)
    """Pairs of patch and candidate that are correlated at a time, by level."""
    tensors: TensorCache = None  # type: ignore[assignment]  # __post_init__ makes it
    """Structure tensors of the images used last."""

    def __post_init__(self) -> None:
        if self.tensors is None:
            object.__setattr__(self, "tensors", TensorCache(self.images))

    @classmethod
    def open(
        cls,
        index: IndexFolder,
        queries: Any,
        search_filter: SearchFilter | None = None,
        search: SearchConfig | None = None,
        refinement: RefineConfig | None = None,
        chips: ChipConfig | None = None,
        executor: Executor | None = None,
        progress: Progress = silent,
    ) -> Self:
        """Start a session on an opened index.

        Args:
            index: the index folder.
            queries: patches or chips.
            search_filter: which images and which area may be answered.
            search: settings of the search; None for the defaults.
            refinement: settings of the refinement. Its radius is at least the stride of the index: it must
                reach from one window to the next.
            chips: settings for larger chips.
            executor: runs the batches; None for threads.
            progress: hears of every stage.
        """
        refinement = refinement or RefineConfig()
        radius = max(refinement.radius_px, index.config.stride_px)
        # A window may lie half a chip away from the centre, which the area must contain.
        half_chip = float(queries.sizes.max(initial=0)) / 2 if isinstance(queries, Chips) else 0.0
        reach = radius + half_chip
        vectors = index.vectors
        if search_filter is not None:
            vectors = vectors.restricted(search_filter.windows(index.config.stride_px, reach))
        return cls(
            images=index,
            queries=queries,
            vectors=vectors,
            parts=index.parts,
            encoder=index.encoder,
            search=search or SearchConfig(),
            refinement=replace(refinement, radius_px=radius),
            chips=chips or ChipConfig(),
            image_ids=sorted(search_filter.images if search_filter else index.images),
            table=index.images,
            search_filter=search_filter,
            executor=executor or ThreadExecutor(),
            progress=progress,
        )

    def select(self, rows: slice | NDArray[np.intp]) -> Self:
        """Return the session of some queries."""
        return replace(self, queries=self.queries.select(rows))

    def with_queries(self, queries: PatchPixels) -> Self:
        """Return the session of other queries."""
        return replace(self, queries=queries)

    def with_settings(
        self, search: SearchConfig | None = None, refinement: RefineConfig | None = None
    ) -> Self:
        """Return the session with other settings."""
        return replace(self, search=search or self.search, refinement=refinement or self.refinement)


def open_index_and_queries(
    path: Path | Sequence[Path],
    queries: str | Path | NDArray[Any],
    *,
    open_folder: Callable[..., IndexFolder] = IndexFolder,
    encoder: Encoder | None = None,
    bands: Sequence[str] | None = None,
    units: str | None = None,
    device: Device = "auto",
) -> tuple[IndexFolder, Patches | Chips]:
    """Open an index and read queries at the same time: each leaves a core idle.

    Args:
        path: the index folder, or several for an `open_folder` that takes a list.
        open_folder: opens it, given the path, and `encoder` and `device` by name.
        queries: input of `tfrecords.read.read_queries`.
        encoder: only for an index of an encoder that is not a Keras model.
        bands: names of the queries' bands; None reads them from the file.
        units: units of the queries; None infers them from the values.
        device: "auto", "cpu" or "gpu".

    Raises:
        RetrieveError: the index or the queries cannot be opened, or their pixel sizes do not fit; a folder
            that is no index fails at once.
    """
    for one in [path] if isinstance(path, Path) else path:
        if not url_of(one) and not (one / SHARDS).is_file():
            read_manifest(one, KIND, verify=False)

    def opened_folder() -> IndexFolder:
        with on_device(device):
            return open_folder(path, encoder=encoder, device=device)

    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(opened_folder)
        opened = read_queries(queries, bands=bands, units=units)
        folder = opening.result()
        return folder, adapt_to_images(folder.images, opened)


def adapt_to_images(images: Mapping[int, StoredImage], queries: Patches | Chips) -> Patches | Chips:
    """Return queries in the pixel size and, where all images are clipped, with the clip of the images.

    Args:
        images: the image table.
        queries: patches or chips.

    Raises:
        GridError: see `match_pixel_size`.
    """
    queries = match_pixel_size(images, queries)
    if not all(image.clipped for image in images.values()):
        return queries
    if isinstance(queries, Patches):
        return replace(queries, clipped=True)
    read = queries.read
    return replace(queries, read=lambda row: replace(read(row), clipped=True))
