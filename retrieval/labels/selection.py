"""A selection of tiles, files or windows: copied, linked or cut into a new folder, with the same names."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from retrieval.errors import LabelsError
from retrieval.labels.covers import read_cover
from retrieval.labels.files import RASTER_ENDINGS, find_files, name_of, reading_csv
from retrieval.labels.grids import moved
from retrieval.labels.masks import open_raster
from retrieval.labels.window_cover import SceneWindow, read_windows
from retrieval.types import Progress, silent
from tfrecords.artifacts import writing_folder
from tfrecords.errors import MissingInputError
from tfrecords.geotiff import silent_georeference
from tfrecords.read.sources import files_below


@dataclass(frozen=True)
class SubsetReport:
    """Result of `subset`."""

    path: Path
    """The folder."""
    files: int
    """Number of files copied, linked or cut."""
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

    A list of windows cuts them: `<name>_<col_off>_<row_off>.tif`, with georeference, bands and nodata.

    Args:
        source: folder of images, masks or predictions; for windows also one raster.
        cover: CSV with the columns z, x and y, or of `cover(..., window=...)`, or with a column `name`: paths
            without an ending.
        out: folder to write.
        split: only the rows of this split.
        link: make symbolic links instead of copies.
        overwrite: replace an existing folder.
        progress: called after each file.

    Returns:
        The number of files, and chosen names without a file.

    Raises:
        MissingInputError: no such folder or CSV, or no chosen file in the folder.
        LabelsError: the CSV has other columns, a window leaves its raster, or `link` with windows.
        OutputExistsError: the folder exists and `overwrite` is not set.
    """
    source = Path(source)
    if _lists_windows(Path(cover)):
        return _cut_windows(source, Path(cover), Path(out), split, link, overwrite, progress)
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


def _lists_windows(cover: Path) -> bool:
    """Return whether a CSV has the columns of windows."""
    if not cover.is_file():
        return False
    with reading_csv(cover, "name") as rows:
        return {"name", "col_off", "row_off"} <= set(rows.fieldnames or ())


def _cut_windows(
    source: Path, cover: Path, out: Path, split: str | None, link: bool, overwrite: bool, progress: Progress
) -> SubsetReport:
    """Write the windows that a CSV lists as GeoTIFFs."""
    if link:
        raise LabelsError(f"{cover}: it lists windows, which are cut. Expected tiles or files. Omit --link.")
    windows = [window for window, _ in read_windows(cover, split)]
    files = find_files(source) if source.is_file() else {n: p[0] for n, p in _files_by_name(source).items()}
    names = list(dict.fromkeys(window.name for window in windows))
    if source.is_file() and len(names) == 1:  # two files named by the user belong together
        files = {names[0]: source}
    missing = tuple(name for name in names if name not in files)
    if len(missing) == len(names):
        raise MissingInputError(
            f"{source}: no raster has one of the {len(names)} names in {cover}, such as {names[0]!r}. "
            "Expected equal paths without ending."
        )
    chosen = [window for window in windows if window.name in files]
    goals = [f"{window.name}_{window.col_off}_{window.row_off}.tif" for window in chosen]
    config = {"source": str(source.resolve()), "windows": [[*map(str, _numbers(w))] for w in chosen]}
    with writing_folder(out, kind="tiles", config=config, overwrite=overwrite) as folder:
        for done, (window, goal) in enumerate(zip(chosen, goals, strict=True), start=1):
            if not folder.done(goal):
                with folder.part(goal) as partial:
                    _cut(files[window.name], window, partial)
            progress("cutting windows", done, len(chosen))
        folder.counts |= {"files": len(chosen)}
    return SubsetReport(out, len(chosen), missing)


def _numbers(window: SceneWindow) -> Sequence[str | int]:
    return window.name, window.col_off, window.row_off, window.width, window.height


def _cut(path: Path, window: SceneWindow, out: Path) -> None:
    """Write a window of a raster as a GeoTIFF with the raster's bands, nodata, colours and georeference."""
    import rasterio
    from rasterio.enums import ColorInterp
    from rasterio.windows import Window

    part = Window(window.col_off, window.row_off, window.width, window.height)
    with open_raster(path) as source:
        if window.col_off + window.width > source.width or window.row_off + window.height > source.height:
            raise LabelsError(
                f"{path}: {source.width} x {source.height} pixels; a window reaches column "
                f"{window.col_off + window.width} and row {window.row_off + window.height}. Expected windows "
                "of this raster. List them again with `retrieve labels cover --window`."
            )
        profile = dict(driver="GTiff", dtype=source.dtypes[0], count=source.count, nodata=source.nodata)
        profile |= dict(width=window.width, height=window.height, compress="deflate")
        if source.crs:
            profile |= dict(crs=source.crs, transform=moved(source.transform, window.col_off, window.row_off))
        pixels, tags, colours = source.read(window=part), source.tags(), source.colorinterp
        described = {name: getattr(source, name) for name in ("descriptions", "scales", "offsets")}
        colormap = source.colormap(1) if colours[0] == ColorInterp.palette else None
    with silent_georeference(), rasterio.open(out, "w", **profile) as target:
        target.write(pixels)
        for name, values in described.items():
            setattr(target, name, values)
        target.update_tags(**tags)
        if colormap:
            target.write_colormap(1, colormap)
        else:
            target.colorinterp = colours


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
