"""The records that readers return: an image, patches, chips, a series."""

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
    """Origin of the pixels of one date; stored as tags of the GeoTIFF under these names in capitals."""

    source: str = ""
    """Name of the product, or the STAC item's id."""
    datetime: str = ""
    """Time of acquisition, ISO 8601, UTC."""
    baseline: str = ""
    """Processing baseline, such as 04.00."""
    cloud_cover: float | None = None
    """Cloud cover of the tile in its metadata, in percent, 0 to 100."""
    recipe: str = ""
    """Fingerprint of all that decided the pixels, with window and mask; a file with the same one is kept."""

    def tags(self) -> dict[str, str]:
        """Return the tags to write, without empty ones."""
        return {name.upper(): str(value) for name, value in vars(self).items() if value not in ("", None)}

    @classmethod
    def from_tags(cls, tags: Mapping[str, str]) -> Provenance:
        """Return the record in a file's tags; a missing or malformed tag leaves its field empty."""
        cover: float | None
        try:
            cover = float(tags["CLOUD_COVER"])
        except (KeyError, ValueError):
            cover = None
        names = ("SOURCE", "DATETIME", "BASELINE", "RECIPE")
        source, when, baseline, recipe = (tags.get(name, "") for name in names)
        return cls(source, when, baseline, cover, recipe)


UNKNOWN = Provenance()
"""Provenance of pixels of unknown origin."""


ID_LIMIT = 2**31
"""Image and patch ids are whole numbers in [0, ID_LIMIT)."""


def _check(what: str, pixels: NDArray[Any], axes: str, bands: tuple[str, ...], units: str) -> None:
    """Refuse pixels, bands and units that do not fit each other."""
    if pixels.ndim != len(axes) or 0 in pixels.shape[1:]:
        raise ArrayError(f"{what}: pixels have shape {pixels.shape}; expected axes ({', '.join(axes)})")
    check_dtype(pixels.dtype, what)
    check_units(units)
    if len(bands) != pixels.shape[-1] or len(set(bands)) != len(bands):
        raise BandsError(
            f"{what}: bands {bands} for pixels of shape {pixels.shape}. Name each of the {pixels.shape[-1]} "
            "bands once."
        )


def check_id(number: int, what: str) -> None:
    """Refuse ids that an index cannot hold.

    Args:
        number: an image or patch id.
        what: the image or patch, for the message.

    Raises:
        ArrayError: negative, or 2**31 and above.
    """
    if not 0 <= number < ID_LIMIT:
        raise ArrayError(
            f"{what}: id {number} is out of range; expected a whole number from 0 to {ID_LIMIT - 1}"
        )


@dataclass(frozen=True)
class Georeference:
    """Position of pixels on the map."""

    crs: str
    """Coordinate reference system as rasterio writes it."""
    transform: tuple[float, float, float, float, float, float]
    """(a, b, c, d, e, f) from pixel corners to map coordinates."""


@dataclass(frozen=True, eq=False)
class Image:
    """One image to search."""

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
    """Its file; empty for an array in memory."""
    crs: str | None = None
    """Coordinate reference system as rasterio writes it, or None."""
    transform: tuple[float, float, float, float, float, float] | None = None
    """(a, b, c, d, e, f) from pixel corners to map coordinates, or None."""
    date: str | None = None
    """Day of acquisition, ISO; a month if the day is unknown; None if both are."""
    provenance: Provenance = UNKNOWN
    """Product and time of the pixels."""
    orientation: int = 1
    """EXIF number of the way the file lies; `pixels` and `transform` are north-up in any case."""
    clipped: bool = False
    """Whether bright ground is clipped at 4095 DN, as in the challenge's own form."""

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
        """Return (h, w, b) float32, -1 to 1 or 2.2 on bright ground, NaN where nodata."""
        return to_scaled(np.asarray(self.pixels), self.units, self.nodata, self.clipped)


@dataclass(frozen=True, eq=False)
class Patches:
    """Query patches, all of one size and one set of bands."""

    patch_ids: NDArray[np.int64]
    """(n,) the record's own, the row in the array, or the rank of the file; distinct."""
    pixels: NDArray[Any]
    """(n, h, w, b) as stored; an array, a memory map, or `LazyPixels`."""
    units: Units
    """Units of all pixels."""
    bands: tuple[str, ...]
    """Names of the b bands in their order."""
    nodata: float | None
    """A pixel is nodata where all bands equal this; None = nothing is nodata."""
    paths: tuple[str, ...] = ()
    """File of each patch, or one for all; empty for an array in memory."""
    note: str = ""
    """Units and bands that the reader inferred, one sentence for standard error."""
    georeferences: tuple[Georeference | None, ...] = ()
    """Georeference per patch, or None; empty if no patch has one."""
    clipped: bool = False
    """Whether bright ground is clipped at 4095 DN, as in the challenge's own form."""

    def __post_init__(self) -> None:
        _check("patches", self.pixels, "nyxb", self.bands, self.units)
        if self.patch_ids.shape != (len(self.pixels),):
            raise ArrayError(
                f"patches: ids of shape {self.patch_ids.shape} for {len(self.pixels)} patches; expected one "
                "id for each"
            )

    def __len__(self) -> int:
        return len(self.pixels)

    def scaled(self, rows: slice | NDArray[np.intp] = slice(None)) -> NDArray[np.float32]:
        """Return patches as the encoder's input.

        Args:
            rows: a slice or an array of rows; all by default, which needs twice the file's size in memory.

        Returns:
            (m, h, w, b) float32, -1 to 1 or 2.2 on bright ground, NaN where nodata.
        """
        return to_scaled(np.asarray(self.pixels[rows]), self.units, self.nodata, self.clipped)

    def select(self, rows: slice | NDArray[np.intp]) -> Patches:
        """Return the patches of some rows, without their files; a slice of a memory map stays one."""
        return replace(self, patch_ids=self.patch_ids[rows], pixels=self.pixels[rows], paths=())

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Rows and columns of each patch, (n, 2)."""
        return np.full((len(self), 2), self.pixels.shape[1:3], np.int64)

    def bands_of(self, row: int) -> tuple[str, ...]:
        """Return the names of the bands in a row."""
        return self.bands

    def scaled_one(self, row: int) -> NDArray[np.float32]:
        """Return one row as the encoder's input, (h, w, b)."""
        patch: NDArray[np.float32] = self.scaled(slice(row, row + 1))[0]
        return patch


@dataclass(frozen=True, eq=False)
class Chips:
    """Query chips, which differ in size, bands or units; one in memory at a time."""

    patch_ids: NDArray[np.int64]
    """(n,) the row in the array, or the rank of the file; distinct."""
    sizes: NDArray[np.int64]
    """(n, 2) rows and columns of each, 64 or more."""
    bands: tuple[tuple[str, ...], ...]
    """Names of the bands of each of the n chips, in their order."""
    read: Callable[[int], Image]
    """Returns the chip of a row, checked, as an `Image` whose id is the patch id."""
    paths: tuple[str, ...] = ()
    """File of each chip, or one for all; empty for an array in memory."""
    note: str = ""
    """Units and bands that the reader inferred, one sentence for standard error."""
    georeferences: tuple[Georeference | None, ...] = ()
    """Georeference per chip, or None; empty if no chip has one."""
    unpadded: NDArray[np.int64] | None = None
    """(n, 2) rows and columns of each without padding at the right and below; None if no chip is padded."""

    def __len__(self) -> int:
        return len(self.patch_ids)

    def __iter__(self) -> Iterator[Image]:
        return map(self.read, range(len(self)))

    def bands_of(self, row: int) -> tuple[str, ...]:
        """Return the names of the bands in a row."""
        return self.bands[row]

    def scaled_one(self, row: int) -> NDArray[np.float32]:
        """Return one row as the encoder's input, (h, w, b)."""
        return self.read(row).scaled()


@dataclass(frozen=True, eq=False)
class Series:
    """One piece of ground on several dates, co-registered."""

    pixels: NDArray[Any]
    """(t, h, w, b) as stored, t at least 2."""
    units: Units
    """Units of all dates."""
    bands: tuple[str, ...]
    """Names of the b bands in their order."""
    nodata: float | None
    """A pixel is nodata where all bands of the date equal this; None = nothing is nodata."""
    dates: tuple[str, ...]
    """Names of the t dates, ISO where known, in order of time."""
    place: str
    """Name of the place; all series of a place share a pixel grid."""
    x0: int = 0
    """Column of the top-left pixel in the place's grid."""
    y0: int = 0
    """Row of the top-left pixel in the place's grid."""
    overlap_group: int = 0
    """Number in [0, 2**63) shared by places that overlap: they are never each other's negatives."""

    def __post_init__(self) -> None:
        what = f"series of {self.place!r}"
        _check(what, self.pixels, "tyxb", self.bands, self.units)
        if len(self.pixels) < 2 or len(self.dates) != len(self.pixels):
            raise ArrayError(
                f"{what}: pixels of {len(self.pixels)} dates and {len(self.dates)} names of dates; expected "
                "equal numbers of at least 2"
            )
