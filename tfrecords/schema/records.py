"""The records that storage hands up: one image, a set of patches, one series."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrecords.errors import ArrayError, BandsError
from tfrecords.schema.units import Units, check_dtype, check_units, to_scaled


@dataclass(frozen=True)
class Provenance:
    """Where the pixels of one date came from; kept as tags of the GeoTIFF under these names in capitals."""

    source: str = ""
    """Name of the product, or the STAC item's id."""
    datetime: str = ""
    """When it was taken, ISO 8601, UTC."""
    baseline: str = ""
    """Processing baseline, such as 04.00."""
    cloud_cover: float | None = None
    """Share of the tile under cloud as its metadata say, in percent, 0 to 100."""
    recipe: str = ""
    """Fingerprint of all that decided the pixels, window and mask too: says whether the file may be kept."""

    def tags(self) -> dict[str, str]:
        """The tags to be written, empty ones left out."""
        return {name.upper(): str(value) for name, value in vars(self).items() if value not in ("", None)}

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Provenance:
        """Read it back from a file's tags; what is missing or no number stays empty."""
        cover: float | None
        try:
            cover = float(tags["CLOUD_COVER"])
        except (KeyError, ValueError):
            cover = None
        names = ("SOURCE", "DATETIME", "BASELINE", "RECIPE")
        source, when, baseline, recipe = (tags.get(name, "") for name in names)
        return cls(source, when, baseline, cover, recipe)


UNKNOWN = Provenance()
"""Where nothing is known."""


ID_LIMIT = 2**31
"""Image and patch ids are whole numbers in [0, ID_LIMIT)."""


def _check(what: str, pixels: NDArray, axes: str, bands: tuple[str, ...], units: str) -> None:
    """Refuse pixels, bands and units that do not fit each other."""
    if pixels.ndim != len(axes) or 0 in pixels.shape[1:]:
        raise ArrayError(f"{what}: pixels have shape {pixels.shape}; expected axes ({', '.join(axes)})")
    check_dtype(pixels.dtype, what)
    check_units(units)
    if len(bands) != pixels.shape[-1] or len(set(bands)) != len(bands):
        raise BandsError(
            f"{what}: bands {bands} do not name the {pixels.shape[-1]} bands of {pixels.shape} once each"
        )


def check_id(number: int, what: str) -> None:
    """Refuse ids that no index can hold.

    Args:
        number: an image or patch id.
        what: whose it is, for the message.

    Raises:
        ArrayError: negative, or 2**31 and above.
    """
    if not 0 <= number < ID_LIMIT:
        raise ArrayError(
            f"{what}: id {number} is out of range; expected a whole number from 0 to {ID_LIMIT - 1}"
        )


@dataclass(frozen=True)
class Georeference:
    """Where pixels say that they lie."""

    crs: str
    """Coordinate reference system as rasterio writes it."""
    transform: tuple[float, float, float, float, float, float]
    """(a, b, c, d, e, f) from pixel corners to map coordinates."""


@dataclass(frozen=True, eq=False)
class Image:
    """One image to be searched in."""

    image_id: int
    """The record's own, the row in an array, or the rank of the file; in [0, 2**31)."""
    pixels: NDArray[Any]
    """(h, w, b) as stored."""
    units: Units
    """Units of the pixels."""
    bands: tuple[str, ...]
    """Names of the b bands in their order."""
    nodata: float | None
    """A pixel is nodata where all bands equal this; NaN is possible; None = nothing is nodata."""
    path: str = ""
    """File it came from; empty for an array in memory."""
    crs: str | None = None
    """Coordinate reference system as rasterio writes it, or None."""
    transform: tuple[float, float, float, float, float, float] | None = None
    """(a, b, c, d, e, f) from pixel corners to map coordinates, or None."""
    date: str | None = None
    """Day of acquisition, ISO, where it is known; a month where no day is."""
    provenance: Provenance = UNKNOWN
    """What it came from, where it is known."""

    def __post_init__(self) -> None:
        _check(f"image {self.image_id}", self.pixels, "yxb", self.bands, self.units)
        check_id(self.image_id, f"image {self.path or 'in memory'}")

    @property
    def height(self) -> int:
        """Rows."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """Columns."""
        return int(self.pixels.shape[1])

    def scaled(self) -> NDArray[np.float32]:
        """The (h, w, b) float32 in [-1, 1] that the encoder sees, NaN where nodata."""
        return to_scaled(np.asarray(self.pixels), self.units, self.nodata)


@dataclass(frozen=True, eq=False)
class Patches:
    """Patches that are asked about, all of one size and one set of bands."""

    patch_ids: NDArray[np.int64]
    """(n,) the record's own, the row in the array, or the rank of the file; distinct."""
    pixels: NDArray[Any]
    """(n, h, w, b) as stored; may be a memory map, or what `numpy.asarray` reads from a file."""
    units: Units
    """Units of all pixels."""
    bands: tuple[str, ...]
    """Names of the b bands in their order."""
    nodata: float | None
    """A pixel is nodata where all bands equal this; None = nothing is nodata."""
    paths: tuple[str, ...] = ()
    """File of each patch, or one for all; empty for an array in memory."""
    note: str = ""
    """What the reader took units and bands for, one sentence for standard error."""
    georeferences: tuple[Georeference | None, ...] = ()
    """Where each patch says that it lies, None where it doesn't; empty where none does."""

    def __post_init__(self) -> None:
        _check("patches", self.pixels, "nyxb", self.bands, self.units)
        if self.patch_ids.shape != (len(self.pixels),):
            raise ArrayError(
                f"{self.patch_ids.shape} patch ids for {len(self.pixels)} patches; expected one for each"
            )

    def __len__(self) -> int:
        return len(self.pixels)

    def scaled(self, rows: slice | NDArray[np.intp] = slice(None)) -> NDArray[np.float32]:
        """Patches as the encoder sees them.

        Args:
            rows: which, a slice or an array; all by default, which for a big file takes twice its size
                of memory.

        Returns:
            (m, h, w, b) float32 in [-1, 1], NaN where nodata.
        """
        return to_scaled(np.asarray(self.pixels[rows]), self.units, self.nodata)

    def select(self, rows: slice | NDArray[np.intp]) -> Patches:
        """Some of them, without their files; a slice of a memory map stays one."""
        return replace(self, patch_ids=self.patch_ids[rows], pixels=self.pixels[rows], paths=())

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(n, 2) rows and columns of each."""
        return np.full((len(self), 2), self.pixels.shape[1:3], np.int64)

    def bands_of(self, row: int) -> tuple[str, ...]:
        """Names of the bands of one."""
        return self.bands

    def scaled_one(self, row: int) -> NDArray[np.float32]:
        """One of them as the encoder sees it, (h, w, b)."""
        return self.scaled(slice(row, row + 1))[0]


@dataclass(frozen=True, eq=False)
class Chips:
    """Chips that are asked about, each of a size, bands and units of its own; one in memory at a time."""

    patch_ids: NDArray[np.int64]
    """(n,) the row in the array, or the rank of the file; distinct."""
    sizes: NDArray[np.int64]
    """(n, 2) rows and columns of each, 64 or more."""
    bands: tuple[tuple[str, ...], ...]
    """n times the names of its bands, in their order."""
    read: Callable[[int], Image]
    """Gives the chip of a row, checked, as an `Image` whose id is the patch id."""
    paths: tuple[str, ...] = ()
    """File of each chip, or one for all; empty for an array in memory."""
    note: str = ""
    """What the reader took units and bands for, one sentence for standard error."""
    georeferences: tuple[Georeference | None, ...] = ()
    """Where each chip says that it lies, None where it doesn't; empty where none does."""

    def __len__(self) -> int:
        return len(self.patch_ids)

    def __iter__(self) -> Iterator[Image]:
        return map(self.read, range(len(self)))

    def bands_of(self, row: int) -> tuple[str, ...]:
        """Names of the bands of one."""
        return self.bands[row]

    def scaled_one(self, row: int) -> NDArray[np.float32]:
        """One of them as the encoder sees it, (h, w, b)."""
        return self.read(row).scaled()


@dataclass(frozen=True, eq=False)
class Series:
    """One cut of ground on several dates, registered to each other."""

    pixels: NDArray[Any]
    """(t, h, w, b) as stored, t at least 2."""
    units: Units
    """Units of all dates."""
    bands: tuple[str, ...]
    """Names of the b bands in their order."""
    nodata: float | None
    """A pixel is nodata where all bands of the date equal this; None = nothing is nodata."""
    dates: tuple[str, ...]
    """t names of dates, ISO where they are known, in time's order."""
    place: str
    """Name of the place; the cuts of one place share a pixel grid."""
    x0: int = 0
    """Column, in the place's grid, of the top-left pixel of this cut."""
    y0: int = 0
    """Row, likewise."""
    overlap_group: int = 0
    """Places that share ground share this number, in [0, 2**63): none is a negative of another."""

    def __post_init__(self) -> None:
        what = f"series of {self.place!r}"
        _check(what, self.pixels, "tyxb", self.bands, self.units)
        if len(self.pixels) < 2 or len(self.dates) != len(self.pixels):
            raise ArrayError(
                f"{what}: {len(self.pixels)} dates of pixels and {len(self.dates)} names of dates; "
                f"expected at least 2, and as many of the one as of the other"
            )
