"""The files of a query: the submission and, on request, details, windows and a table of the patches."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retrieval.errors import ConfigError
from retrieval.evaluation.submission import write_submission
from retrieval.results.matches import Matches
from retrieval.results.tables import table_ending, write_table
from retrieval.results.window_tifs import write_window_tifs
from retrieval.types import Progress, silent
from tfrecords.artifacts import check_free, writing_file
from tfrecords.remote import url_of
from tfrecords.schema import Chips, Patches

RASTERS = (".tif", ".tiff", ".jp2", ".vrt", ".png", ".jpg", ".jpeg")
"""Endings of files that hold one patch each."""


@dataclass(frozen=True)
class QueryOutputs:
    """Where the answers of a query go."""

    submission: Path
    """CSV `Patch ID,Result`, a row a patch."""
    details: Path | None = None
    """Table of all candidates: .parquet, .csv or .geojson."""
    windows: Path | None = None
    """Folder of GeoTIFFs, the matched window of each patch."""
    overwrite: bool = False
    """Replace existing outputs."""

    def patch_table(self, queries: Patches | Chips) -> Path | None:
        """Return the path of `patches.csv` where each patch came from a file, else None."""
        files = len(queries.paths) == len(queries) and queries.paths[0].lower().endswith(RASTERS)
        return self.submission.with_name("patches.csv") if files else None

    def check(self, queries: Patches | Chips) -> None:
        """Refuse outputs that cannot be written, before hours of work.

        Raises:
            ConfigError: the details have an unknown ending, or two outputs share a path.
            OutputExistsError: an output exists and `overwrite` is false.
        """
        if self.details is not None:
            table_ending(self.details)
        files = [self.submission, self.patch_table(queries), self.details]
        paths = [path if url_of(path) else path.absolute() for path in files if path is not None]
        for number, path in enumerate(paths):
            if path in paths[:number]:
                raise ConfigError(f"{path}: two outputs have this name. Expected distinct names. Rename one.")
            check_free(path, overwrite=self.overwrite)
        if self.windows is not None:
            self._check_folder(self.windows.absolute(), paths)

    def _check_folder(self, folder: Path, files: Sequence[Path]) -> None:
        """Refuse a folder that exists or that would hold or replace another output."""
        inside = [file for file in files if folder in (file, *file.parents)]
        if inside:
            raise ConfigError(
                f"{inside[0]}: the folder {folder} is replaced as a whole. Expected a file outside of it."
            )
        check_free(folder, overwrite=self.overwrite, folder=True)

    def write(
        self,
        matches: Matches,
        min_confidence: float | None = None,
        drop_unsure: bool = False,
        progress: Progress = silent,
    ) -> None:
        """Write all outputs.

        The submission has no signs: a chip that begins outside of its image gets 0 for a negative x or y.
        The details hold the true position.

        Args:
            matches: the answers.
            min_confidence: answers below it, 0 to 1, are marked `unsure` in the details.
            drop_unsure: leave them out of the submission and the windows.
            progress: hears of each window.
        """
        keep = ~matches.unsure(min_confidence) if drop_unsure else np.ones(len(matches.patch_ids), bool)
        image_ids, x, y = matches.best()
        x, y = np.maximum(x, 0)[keep], np.maximum(y, 0)[keep]
        ids = matches.patch_ids[keep]
        write_submission(self.submission, ids, image_ids[keep], x, y, overwrite=self.overwrite)
        table = self.patch_table(matches.patches)
        if table is not None:
            write_patch_table(table, matches.patches, overwrite=self.overwrite)
        if self.details is not None:
            write_table(matches.details(min_confidence), self.details, overwrite=self.overwrite)
        if self.windows is not None:
            write_window_tifs(matches, self.windows, keep, overwrite=self.overwrite, progress=progress)


def write_patch_table(path: Path, queries: Patches | Chips, *, overwrite: bool = False) -> None:
    """Write the file of each patch: `Patch ID,path`."""
    with writing_file(path, overwrite=overwrite) as temporary:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("Patch ID", "path"))
            writer.writerows(zip(queries.patch_ids.tolist(), queries.paths, strict=True))
