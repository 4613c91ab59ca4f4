"""An index is checked and opened while the patches that it is asked about are read."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from retrieval.config import Device
from retrieval.pipeline import Index, open_index
from retrieval.store import KIND
from retrieval.types import Encoder
from tfrecords.manifest import read_manifest
from tfrecords.read import read_queries
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
