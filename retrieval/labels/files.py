"""Images, masks and predictions in folders: their names, and the pairs that they form.

A file's name is its path relative to the folder, without its ending and without `_sat` or `_mask` at the end.
Images, masks and predictions of one name belong together. A name `z/x/y` of three numbers is an XYZ tile.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from retrieval.errors import LabelsError
from tfrecords.errors import MissingInputError
from tfrecords.read.sources import files_below

if TYPE_CHECKING:
    from mercantile import Tile

RASTER_ENDINGS = (".tif", ".tiff", ".vrt", ".jp2", ".png", ".jpg", ".jpeg", ".webp")
"""Endings of images and masks, in lower case."""
MASK_ENDINGS = (".png", ".tif", ".tiff", ".vrt")
"""Endings of masks: lossless formats."""
MAX_ZOOM = 30
_TILE = re.compile(r"(?:^|/)(\d{1,2})/(\d+)/(\d+)$")

Role = Literal["image", "mask"]


@dataclass(frozen=True)
class Pairs:
    """Images and masks of the same names."""

    names: tuple[str, ...]
    """Names that have both, sorted."""
    images: dict[str, Path]
    """File of each image by name, also of images without a mask."""
    masks: dict[str, Path]
    """File of each mask by name, also of masks without an image."""

    @property
    def without_mask(self) -> list[str]:
        """Names of images without a mask, sorted."""
        return sorted(set(self.images) - set(self.masks))

    @property
    def without_image(self) -> list[str]:
        """Names of masks without an image, sorted."""
        return sorted(set(self.masks) - set(self.images))


@contextmanager
def reading_csv(path: Path, columns: str) -> Iterator[csv.DictReader[str]]:
    """Yield the rows of a CSV.

    Args:
        path: the file; it exists.
        columns: the expected columns, for the message.

    Raises:
        LabelsError: it is no text in UTF-8, or no CSV.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield csv.DictReader(file)
    except (UnicodeDecodeError, csv.Error) as error:
        raise LabelsError(f"{path}: not a CSV ({error}). Expected {columns}, in UTF-8.") from None


def name_of(relative: str) -> str:
    """Return the name of a file from its relative POSIX path."""
    stem = relative.rpartition(".")[0] if "." in relative.rpartition("/")[2] else relative
    for end in ("_sat", "_mask"):
        if stem.endswith(end) and not stem.endswith("/" + end):
            return stem.removesuffix(end)
    return stem


def tile_of(name: str) -> Tile | None:
    """Return the XYZ tile that a name stands for; None for other names."""
    from mercantile import Tile

    match = _TILE.search(name)
    if not match:
        return None
    z, x, y = map(int, match.groups())
    return Tile(x, y, z) if z <= MAX_ZOOM and max(x, y) < 2**z else None


def find_files(source: str | Path, role: Role = "image", zoom: int | None = None) -> dict[str, Path]:
    """Find images or masks.

    Args:
        source: one file, or a folder that is searched at every depth; hidden files are left out.
        role: "image" leaves out files called `*_mask`, "mask" those called `*_sat` and JPEGs.
        zoom: only the XYZ tiles of this zoom.

    Returns:
        The files by name, in the order of the names.

    Raises:
        MissingInputError: nothing there, or no image or mask in it.
        LabelsError: two files have one name.
    """
    source = Path(source)
    if source.is_file():
        return {name_of(source.name): source}
    if not source.is_dir():
        raise MissingInputError(f"{source}: no such file or folder. Expected a folder of {role}s.")
    found: dict[str, Path] = {}
    for path in _walk(source, role):
        name = name_of(path.relative_to(source).as_posix())
        tile = tile_of(name) if zoom is not None else None
        if zoom is not None and (tile is None or tile.z != zoom):
            continue
        found[name] = _chosen(found[name], path, role) if name in found else path
    if not found:
        endings = ", ".join(MASK_ENDINGS if role == "mask" else RASTER_ENDINGS)
        at_zoom = "" if zoom is None else f" at zoom {zoom}"
        raise MissingInputError(f"{source}: no {role}{at_zoom} in it. Expected files that end in {endings}.")
    return dict(sorted(found.items()))


def find_pairs(images: str | Path, masks: str | Path, zoom: int | None = None) -> Pairs:
    """Pair the images of a folder with the masks of a folder, which may be the same one.

    Raises:
        MissingInputError: no image, no mask, or none of one name.
        LabelsError: two files have one name.
    """
    first, second = find_files(images, "image", zoom), find_files(masks, "mask", zoom)
    if Path(images).is_file() and Path(masks).is_file():  # two files named by the user belong together
        second = {next(iter(first)): next(iter(second.values()))}
    names = tuple(name for name in first if name in second and first[name] != second[name])
    if not names:
        raise MissingInputError(
            f"{masks}: no mask has the name of an image in {images}, such as {next(iter(first))!r}. Expected "
            "equal paths up to the ending and _sat or _mask."
        )
    return Pairs(names, first, second)


def _walk(folder: Path, role: Role) -> Iterator[Path]:
    endings = MASK_ENDINGS if role == "mask" else RASTER_ENDINGS
    other = "_sat" if role == "mask" else "_mask"
    yield from (path for path in files_below(folder, endings) if not path.stem.endswith(other))


def _chosen(first: Path, second: Path, role: Role) -> Path:
    """Return the image or the mask of two files with one name: a PNG next to another format is the mask."""
    is_png = [path.suffix.lower() == ".png" for path in (first, second)]
    if is_png[0] == is_png[1]:
        raise LabelsError(
            f"{first} and {second}: both have one name. Expected one {role} of each name. Remove one."
        )
    return first if is_png[0] == (role == "mask") else second
