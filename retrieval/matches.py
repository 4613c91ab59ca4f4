"""The answers to a set of patches, and the tables that people and tools read."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ConfigError
from retrieval.geo import lonlat
from retrieval.store import Store
from retrieval.types import Refined
from tfrecords.manifest import check_free, writing_file
from tfrecords.schema import Patches


@dataclass(frozen=True, eq=False)
class Matches:
    """The answers to a set of patches."""

    patch_ids: NDArray[np.int64]
    """(n,)."""
    candidates: Refined
    """(n, k) refined candidates, best first."""
    confidence: NDArray[np.float64]
    """(n,) probability that the best candidate is right, within 5 px."""
    store: Store
    """The index that was asked."""
    patches: Patches
    """What was asked."""

    def best(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """image_id, x, y of each answer, (n,) each; the first image's corner where nothing was found."""
        first = min(self.store.images, default=0)
        found = self.candidates.image_ids[:, 0]
        none = found < 0
        zero = np.zeros_like(found)
        c = self.candidates
        return np.where(none, first, found), np.where(none, zero, c.x[:, 0]), np.where(none, zero, c.y[:, 0])

    def frame(self) -> Any:
        """A row for each patch; see `Index.locate`."""
        import pandas as pd

        image_id, x, y = self.best()
        c = self.candidates
        columns: dict[str, Any] = {"patch_id": self.patch_ids, "image_id": image_id, "x": x, "y": y}
        columns |= {"dx": c.dx[:, 0], "dy": c.dy[:, 0], "confidence": self.confidence}
        columns |= {"similarity": np.maximum(c.similarity[:, 0], -1), "ncc": c.ncc[:, 0]}
        # Where nothing was found the answer is a stand-in: it has no place on the map.
        at = c.image_ids[:, 0], x + c.dx[:, 0], y + c.dy[:, 0]
        columns["longitude"], columns["latitude"] = self._lonlat(*at)
        return pd.DataFrame(columns)

    def unsure(self, min_confidence: float | None) -> NDArray[np.bool_]:
        """Which answers have a confidence below a limit, (n,); none where the limit is None.

        Raises:
            ConfigError: the limit is not in [0, 1].
        """
        if min_confidence is not None and not 0 <= min_confidence <= 1:
            raise ConfigError(f"a least confidence of {min_confidence}; expected a probability, 0 to 1")
        return self.confidence < (0.0 if min_confidence is None else min_confidence)

    def details(self, min_confidence: float | None = None) -> Any:
        """A row for each candidate kept: patch_id, rank (0 is the answer) and what `frame` has.

        Args:
            min_confidence: where it is given, a column `unsure` says whose answer is below it.
        """
        import pandas as pd

        c = self.candidates
        row, rank = np.nonzero(c.image_ids >= 0)
        columns: dict[str, Any] = {"patch_id": self.patch_ids[row], "rank": rank}
        names = ("image_id", "x", "y", "dx", "dy", "similarity", "ncc")
        values: tuple[NDArray, ...] = (c.image_ids, c.x, c.y, c.dx, c.dy, c.similarity, c.ncc)
        columns |= {n: v[row, rank] for n, v in zip(names, values, strict=True)}
        columns["confidence"] = np.where(rank == 0, self.confidence[row], np.nan)
        if min_confidence is not None:
            columns["unsure"] = self.unsure(min_confidence)[row]
        at = columns["x"] + columns["dx"], columns["y"] + columns["dy"]
        columns["longitude"], columns["latitude"] = self._lonlat(columns["image_id"], *at)
        return pd.DataFrame(columns)

    def _lonlat(self, image_ids: NDArray, x: NDArray, y: NDArray) -> tuple[NDArray, NDArray]:
        return lonlat(self.store.images, image_ids, x, y)


def check_outputs(
    files: Sequence[str | Path | None], table: str | Path | None, *, overwrite: bool = False
) -> None:
    """Refuse outputs that could not be written, before the work that they would hold.

    Args:
        files: to be made; None for those that are not.
        table: to be made by `write_table`, or None.
        overwrite: replace what is there.

    Raises:
        ConfigError: `table` has an ending that `write_table` doesn't know, or two of them are one file.
        OutputExistsError: one is there and `overwrite` is not set.
    """
    if table is not None:
        _table_ending(table)
    named = [Path(path).absolute() for path in (*files, table) if path is not None]
    for number, path in enumerate(named):
        if path in named[:number]:
            raise ConfigError(f"two outputs would be written to {path}; expected a name of its own for each")
        check_free(path, overwrite=overwrite)


def _table_ending(path: str | Path) -> str:
    ending = Path(path).suffix.lower()
    if ending not in (".parquet", ".csv"):
        raise ConfigError(f"{path}: received the ending {ending!r} for a table; expected .parquet or .csv")
    return ending


def write_table(frame: Any, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a pandas frame, whole or not at all.

    Args:
        frame: the table; its index is not written.
        path: ends in `.parquet` or `.csv`.
        overwrite: replace a file that is there.

    Raises:
        ConfigError: another ending.
        OutputExistsError: the file is there and `overwrite` is not set.
    """
    ending = _table_ending(path)
    with writing_file(path, overwrite=overwrite) as temporary:
        if ending == ".parquet":
            frame.to_parquet(temporary, index=False)
        else:
            frame.to_csv(temporary, index=False, lineterminator="\n")


def patch_table_of(submission: Path, patches: Patches) -> Path | None:
    """`patches.csv` beside the submission where each patch came from a GeoTIFF of its own, else None."""
    files = len(patches.paths) == len(patches) and patches.paths[0].lower().endswith((".tif", ".tiff"))
    return submission.with_name("patches.csv") if files else None


def write_patch_table(path: Path, patches: Patches, *, overwrite: bool = False) -> None:
    """Write which file each patch came from: `Patch ID,path`."""
    with writing_file(path, overwrite=overwrite) as temporary:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("Patch ID", "path"))
            writer.writerows(zip(patches.patch_ids.tolist(), patches.paths, strict=True))
