"""Put files of one band each together: `x_B02.tif`, `x_B03.tif`, `x_B04.tif` and `x_B08.tif` are one image.

Names alone decide nothing: `paris_b1.tif` can be a whole image. Files become one image if they lie in one
folder, have one stem and end in different bands. Each then holds one band, and all show the same ground.
Without a georeference the names must be unmistakable.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tfrecords.errors import BandsError, listed
from tfrecords.grid import pixel_to_map
from tfrecords.read.layers import BandFiles, RasterFile
from tfrecords.read.rasters import Raster, describe_raster, stack_of_files
from tfrecords.schema.bands import COMMON_NAMES, canonical

SUFFIXES = (".tif", ".tiff", ".jp2", ".png")
"""Suffixes of files of one band; JPEG stores no measurements."""
NAMED = 3
"""Files that a note names."""

_COMMON = "|".join(sorted(COMMON_NAMES, key=len, reverse=True))
_NAME = re.compile(
    rf"(?:(?P<stem>.*)[_.-])?(?P<band>B(?:0?[1-9]|1[0-2]|8A)|{_COMMON})(?P<pixel>_\d\dm)?", re.IGNORECASE
)
_NO_BAND = re.compile(
    r"(?:(?P<stem>.*)[_.-])?(?:TCI|AOT|WVP|SCL|CLD|SNW|PVI|visual|Fmask|S[AZ]A|V[AZ]A"
    r"|(?:SR_)?(?:QA|CLOUD_QA|ATMOS_OPACITY)\w*|ST_\w+)(?:_\d\dm)?",
    re.IGNORECASE,
)
"""Files that archives put next to bands: previews, masks, angles, temperature."""
_ARCHIVE_ENDINGS = ("", "_SR")
"""What can follow the stem of such a file in the stem of the bands."""

_LANDSAT = (
    (
        re.compile(r"(?:L[CO]0[89]_|HLS\.L30\.)"),
        {1: "coastal", 2: "blue", 3: "green", 4: "red", 5: "nir08", 6: "swir16", 7: "swir22", 9: "cirrus"},
    ),
    (
        re.compile(r"L(?:T0[45]|E07)_"),
        {1: "blue", 2: "green", 3: "red", 4: "nir08", 5: "swir16", 7: "swir22"},
    ),
)
"""Bands of Landsat sensors by number (USGS, Landsat band designations); others measure heat or all light."""


@dataclass(frozen=True)
class _Part:
    """A file whose name ends in a band."""

    path: Path
    """The file."""
    stem: str
    """Its name before the band."""
    key: tuple[Path, str, str, str]
    """Folder, stem, pixel size and suffix: the same for the bands of one image."""
    band: str
    """Name of the band; empty for a band of Landsat that measures no reflected light."""
    unmistakable: bool
    """Whether the name is spelled as archives do (B02, red); `b2` may count images."""


def group_band_files(paths: Sequence[Path]) -> tuple[tuple[RasterFile, ...], tuple[str, ...]]:
    """Put files of one band each together.

    Args:
        paths: files in their order.

    Returns:
        The images in the order of their first files, and notes on what was put together, left out or lacks a
        band.

    Raises:
        GridError: bands of one image differ in pixel size or grid.
        ArrayError: they differ in dtype or nodata tag, or a file is damaged.
        BandsError: two files hold the same band.
    """
    groups: dict[tuple[Path, str, str, str], list[_Part]] = {}
    for part in filter(None, map(_part_of, paths)):
        groups.setdefault(part.key, []).append(part)
    scenes = [scene for parts in groups.values() if len(parts) > 1 and (scene := _scene_of(parts))]
    if not scenes:
        return tuple(paths), ()
    keys = {part.key for part in map(_part_of, (scene.path for scene in scenes)) if part}
    lone = [parts[0] for parts in groups.values() if len(parts) == 1 and parts[0].band]
    scenes += [BandFiles((p.path,), (p.band,)) for p in lone if describe_raster(p.path).count == 1]
    first_of = {file: scene for scene in scenes for file in scene.files}
    extra = [path for path in paths if path not in first_of and _is_extra(path, keys)]
    items = [
        first_of.get(path, path)
        for path in paths
        if path not in extra and (path not in first_of or first_of[path].path == path)
    ]
    return tuple(items), tuple(_notes(scenes, extra))


def _part_of(path: Path) -> _Part | None:
    """Return what the name of a file says; None if it ends in no band."""
    match = _NAME.fullmatch(path.stem)
    if match is None or path.suffix.lower() not in SUFFIXES:
        return None
    stem, name = match["stem"] or "", match["band"]
    for pattern, bands in _LANDSAT:
        if pattern.match(stem) and name[1:].isdigit():
            name = bands.get(int(name[1:]), "")
    key = (path.parent, stem, (match["pixel"] or "").lower(), path.suffix.lower())
    spelled = re.fullmatch(r"B\d[\dA]", match["band"]) or match["band"].lower() in COMMON_NAMES
    return _Part(path, stem, key, canonical(name) if name else "", bool(spelled))


def _scene_of(parts: Sequence[_Part]) -> BandFiles | None:
    """Return files of one stem as an image; None if they are whole images."""
    bands = [part for part in parts if part.band]
    rasters = [describe_raster(part.path) for part in bands]
    if len(bands) < 2 or any(raster.count != 1 for raster in rasters):
        return None
    if not all(_same_ground(raster, rasters[0]) for raster in rasters[1:]):
        return None
    if rasters[0].georeference is None and not all(part.unmistakable for part in bands):
        return None  # nothing says that they show the same ground
    for number, part in enumerate(bands):
        if other := next((p for p in bands[:number] if p.band == part.band), None):
            raise BandsError(
                f"{part.path} and {other.path} are both {part.band} of one image. Expected one file per "
                "band. Move one."
            )
    scene = BandFiles(tuple(part.path for part in bands), tuple(part.band for part in bands))
    stack_of_files(scene)
    return scene


def _same_ground(a: Raster, b: Raster) -> bool:
    """Return whether two files can be bands of one image, at any pixel size.

    With a georeference, their corners agree within a pixel. Without one, their sizes are equal or differ by a
    whole factor, as 10, 20 and 60 m do.
    """
    if a.georeference is None or b.georeference is None:
        sizes = np.array([(a.height, a.width), (b.height, b.width)], float)
        small, large = sizes[sizes[:, 0].argsort()]
        factors = large / small
        return a.georeference is b.georeference and bool(factors[0] == factors[1] == round(factors[0]))
    if a.crs != b.crs:
        return False
    corners = [_corners(raster) for raster in (a, b)]
    pixel = max(np.abs(np.array(r.transform)[[0, 1, 3, 4]]).max() for r in (a, b))
    return bool(np.abs(corners[0] - corners[1]).max() <= pixel)


def _corners(raster: Raster) -> np.ndarray:
    """Return map coordinates of two opposite corners, (2, 2)."""
    assert raster.transform is not None
    ends = ((0, 0), (raster.width, raster.height))
    return np.array([pixel_to_map(raster.transform, *end) for end in ends])


def _is_extra(path: Path, keys: Iterable[tuple[Path, str, str, str]]) -> bool:
    """Return whether a file belongs to an image but holds no band of it."""
    part, match = _part_of(path), _NO_BAND.fullmatch(path.stem)
    if match:
        stem = match["stem"] or ""
    elif part and not part.band:
        stem = part.stem
    else:
        return False
    stems = {stem + ending for ending in _ARCHIVE_ENDINGS}
    return any(folder == path.parent and of_bands in stems for folder, of_bands, _, _ in keys)


def _notes(scenes: Sequence[BandFiles], extra: Sequence[Path]) -> list[str]:
    """Say which files are one image, which were left out, and which bands are missing."""
    files = sum(len(scene.files) for scene in scenes)
    first = scenes[0]
    notes = [
        f"{files} files of one band each are {len(scenes)} images "
        f"(e.g. {first.path}: {' '.join(first.bands)})"
    ]
    if extra:
        names = listed([str(path) for path in extra], NAMED)
        notes.append(f"{len(extra)} files next to them hold no band and are left out ({names})")
    everything = {band for scene in scenes for band in scene.bands}
    lacking = [(scene, sorted(everything - set(scene.bands))) for scene in scenes]
    texts = [f"{scene.path} has no {', '.join(bands)}" for scene, bands in lacking if bands]
    if texts:
        notes.append(f"bands are missing that other images have: {listed(texts, NAMED)}")
    return notes
