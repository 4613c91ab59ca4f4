"""A selection of tiles or files: copied or linked into a new folder, with the same names."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path

from retrieval.errors import LabelsError
from retrieval.labels.covers import read_cover
from retrieval.labels.files import RASTER_ENDINGS, name_of, reading_csv
from retrieval.types import Progress, silent
from tfrecords.artifacts import writing_folder
from tfrecords.errors import MissingInputError
from tfrecords.read.sources import files_below


@dataclass(frozen=True)
class SubsetReport:
    """Result of `subset`."""

    path: Path
    """The folder."""
    files: int
    """Number of files copied or linked."""
    missing: tuple[str, ...]
    """Chosen names of which the folder has no file."""
    notes: tuple[str, ...] = field(default=())


def subset(
    source: str | Path,
    cover: str | Path,
    out: str | Path,
    *,
    split: str | None = None,
    link: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
) -> SubsetReport:
    """Copy or link a selection of tiles or files, such as hard negatives or tiles with high disagreement.

    Args:
        source: folder of images, masks or predictions.
        cover: CSV with the columns z, x and y, or with a column `name`: paths without an ending.
        out: folder to write.
        split: only the rows of this split.
        link: make symbolic links instead of copies.
        overwrite: replace an existing folder.
        progress: called after each file.

    Returns:
        The number of files, and chosen names without a file.

    Raises:
        MissingInputError: no such folder or CSV, or no chosen file in the folder.
        LabelsError: the CSV has other columns.
        OutputExistsError: the folder exists and `overwrite` is not set.
    """
    source = Path(source)
    if not source.is_dir():
        raise MissingInputError(f"{source}: no such folder. Expected a folder of tiles or files.")
    wanted = dict.fromkeys(_names(Path(cover), split))
    files = _files_by_name(source)
    chosen = [path for name in wanted for path in files.get(name, ())]
    missing = tuple(name for name in wanted if name not in files)
    if not chosen:
        raise MissingInputError(
            f"{source}: no file has one of the {len(wanted)} names in {cover}, such as "
            f"{next(iter(wanted))!r}. Expected equal paths without ending."
        )
    config = {"source": str(source.resolve()), "files": [p.relative_to(source).as_posix() for p in chosen]}
    with writing_folder(out, kind="tiles", config=config | {"link": link}, overwrite=overwrite) as folder:
        for done, path in enumerate(chosen, start=1):
            name = path.relative_to(source).as_posix()
            if not folder.done(name):
                with folder.part(name) as partial:
                    _put(path, partial, link)
            progress("linking files" if link else "copying files", done, len(chosen))
        folder.counts |= {"files": len(chosen)}
    return SubsetReport(Path(out), len(chosen), missing)


def _put(path: Path, partial: Path, link: bool) -> None:
    if link:
        partial.symlink_to(path.resolve())
    else:
        shutil.copyfile(path, partial)


def _files_by_name(source: Path) -> dict[str, list[Path]]:
    """Return the rasters of a folder by name, images and masks of one name together."""
    files: dict[str, list[Path]] = {}
    for path in files_below(source, RASTER_ENDINGS):
        files.setdefault(name_of(path.relative_to(source).as_posix()), []).append(path)
    return files


def _names(cover: Path, split: str | None) -> list[str]:
    """Return the names that a CSV lists."""
    if not cover.is_file():
        raise MissingInputError(
            f"{cover}: no such file. Expected a CSV with the columns z, x and y, or name."
        )
    with reading_csv(cover, "z,x,y,split or name") as rows:
        columns = set(rows.fieldnames or ())
        if "name" in columns and not {"z", "x", "y"} <= columns:
            if split is not None and "split" not in columns:
                raise LabelsError(f"{cover}: no column split. Leave --split out, or add the column.")
            return [row["name"] for row in rows if row["name"] and split in (None, row.get("split"))]
    return [f"{tile.z}/{tile.x}/{tile.y}" for tile, _ in read_cover(cover, split)]
