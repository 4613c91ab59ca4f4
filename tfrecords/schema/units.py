"""Units of pixels, nodata, and the scaling that all rooms above file formats use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tfrecords.errors import ArrayError, UnitsError

Units = Literal["dn", "reflectance", "scaled", "byte"]
"""dn: 0-10000 and above, reflectance x 10000; reflectance: 0-1; scaled: [-1, 1]; byte: 0-255."""

UNITS: tuple[Units, ...] = get_args(Units)

DN_TOP = 4095.0
"""Digital numbers above this are compressed, or clipped in the challenge's form: reflectance 0.41."""
DN_HALF = DN_TOP / 2.0
DN_LIMIT = 65534.0
"""Largest digital number; 65535 stands for nodata in an index."""
BRIGHT = 512.0
"""Compression of bright ground, in DN: the contrast is half the ordinary one at 4095 + 512."""
SCALED_OF_DN = (
    "(numpy.minimum(dn, 4095) + 512 * numpy.log1p((numpy.maximum(dn, 4095) - 4095) / 512)) / 2047.5 - 1"
)
"""NumPy expression of `to_scaled` for digital numbers, for the metadata of exports."""
BYTE_HALF = 127.5
SCALED_SLACK = 1.001
"""float16 may round a scaled value past 1 by half its last bit."""
SIGN = 0x8000
"""The sign bit of half precision."""
REFLECTANCE_TOP = 2.0
"""Clouds and snow exceed 1; only glint exceeds this."""
REFLECTANCE_LOW = -0.2
"""No reflectance lies below this."""
SAMPLE_VALUES = 1 << 20
"""Values that decide the units at most."""


def check_units(units: str) -> Units:
    """Return the units if they are known.

    Args:
        units: the user's or a file's word.

    Raises:
        UnitsError: the word is not in `UNITS`.
    """
    if units not in UNITS:
        raise UnitsError(f"unknown units {units!r}; expected one of {', '.join(UNITS)}")
    return units


def check_dtype(dtype: np.dtype[Any], where: str) -> None:
    """Refuse a dtype that pixels cannot have.

    Args:
        dtype: dtype of an array.
        where: file or array, for the message.

    Raises:
        ArrayError: the dtype is neither integer nor float.
    """
    if dtype.kind not in "uif":
        raise ArrayError(
            f"{where}: dtype is {dtype}; expected whole numbers or floats (uint8, uint16, float16 ...)"
        )


@dataclass(frozen=True)
class UnitsGuess:
    """The units that fit a sample of pixels."""

    fitting: tuple[Units, ...]
    """Units that fit, the likeliest first; empty if the sample is."""
    sure: bool
    """Whether the first one is certain."""
    ambiguous: bool
    """Whether the first one is no likelier than the others: the sample alone does not decide."""
    low: float
    """Robust smallest value, the 1st percentile."""
    high: float
    """Robust largest value, the 99th percentile."""

    def settle(self, where: str) -> tuple[Units, bool]:
        """Return the units of a sample that stands alone, and whether they are certain.

        Raises:
            UnitsError: the sample is ambiguous.
        """
        if self.ambiguous:
            raise UnitsError(
                f"{where}: values from {self.low:g} to {self.high:g} fit {' and '.join(self.fitting)} alike. "
                f"State the units with --units."
            )
        return (self.fitting[0] if self.fitting else "reflectance"), self.sure


def guess_units(sample: NDArray[Any], where: str) -> tuple[Units, bool]:
    """Infer the units of a file or array from dtype and robust range; call it once per file or array.

    Args:
        sample: pixels of any shape, without nodata if its tag is known.
        where: file or array, for the message.

    Returns:
        The units, and whether they are certain; if not, ask the user to state them.

    Raises:
        UnitsError: the range fits no units, or several alike.
        ArrayError: pixels cannot have this dtype.
    """
    return fitting_units(sample, where).settle(where)


def fitting_units(sample: NDArray[Any], where: str) -> UnitsGuess:
    """Return the units that fit a sample; like `guess_units`, but an ambiguous sample is no error.

    The range is that of the 1st and 99th percentiles, without zeros, which may be nodata: glint and dead
    pixels do not decide. Reflectance of water may be negative, down to -0.2 by atmospheric correction.

    Args:
        sample: pixels of any shape, without nodata if its tag is known.
        where: file or array, for the message.

    Raises:
        UnitsError: the range fits no units.
        ArrayError: pixels cannot have this dtype.
    """
    check_dtype(sample.dtype, where)
    if sample.dtype == np.uint8:
        return UnitsGuess(("byte",), True, False, 0.0, 255.0)
    values = sample.ravel()[:: 1 + 2 * (sample.size // (2 * SAMPLE_VALUES))]  # an odd step meets all bands
    values = as_comparable(values[np.isfinite(values) & (values != 0)])
    integer = sample.dtype.kind in "ui"
    if not values.size:
        return UnitsGuess(("dn",) if integer else (), False, False, 0.0, 0.0)
    low, high = _robust_range(values)
    if integer:
        return UnitsGuess(("dn",), high > 255, False, low, high)
    dark = values[values <= REFLECTANCE_TOP]
    if 2 * dark.size < values.size or (high > REFLECTANCE_TOP and _whole(dark)):
        ambiguous = high <= 255 and not _whole(values)  # perhaps percent, or bytes that were resampled
        fitting: tuple[Units, ...] = ("dn", "byte") if ambiguous else ("dn",)
        return UnitsGuess(fitting, low >= 0 and high > 255, ambiguous, low, high)
    filled = float((values == -1).mean()) > 0.001
    known = values[values != -1] if filled else values
    low = _robust_range(known)[0] if known.size else -1.0
    if low >= REFLECTANCE_LOW:
        # All of a scaled image may be this bright; a few values below 0 are dark water in reflectance.
        fitting = ("reflectance", "scaled") if high <= SCALED_SLACK else ("reflectance",)
        rival = len(fitting) > 1 and (filled or low < -0.1 or float(np.median(known)) < 0)
        return UnitsGuess(fitting, False, rival, low, high)
    if low >= -SCALED_SLACK and high <= SCALED_SLACK:
        return UnitsGuess(("scaled",), True, False, low, high)
    raise UnitsError(
        f"{where}: values from {low:g} to {high:g} are neither scaled [-1, 1], reflectance [0, 1] nor "
        f"digital numbers. State the units with --units, or rescale the values."
    )


def _robust_range(values: NDArray[Any]) -> tuple[float, float]:
    """Return the 1st and 99th percentiles; of few values the smallest and largest."""
    return tuple(float(np.quantile(values, q, method=m)) for q, m in ((0.01, "lower"), (0.99, "higher")))  # type: ignore


def _whole(values: NDArray[Any]) -> bool:
    """Return whether all values are whole numbers."""
    return bool((values == np.rint(values)).all())


def default_nodata(units: Units) -> float | None:
    """Return the nodata value of a file without a tag: 0 for dn, -1 for scaled, else None."""
    return {"dn": 0.0, "scaled": -1.0}.get(units)


def is_nodata(pixels: NDArray[Any], nodata: float | None) -> NDArray[np.bool_]:
    """Return which pixels are nodata: those whose bands *all* equal the tag.

    Args:
        pixels: (..., y, x, b) as stored.
        nodata: the tag; NaN is a tag; None = nothing is nodata.

    Returns:
        (..., y, x) bool.
    """
    mask = np.zeros(pixels.shape[:-1], np.bool_)
    if nodata is None:
        return mask
    with np.errstate(over="ignore", invalid="ignore"):
        tag = np.asarray(nodata).astype(pixels.dtype)
    if np.isnan(nodata):
        if pixels.dtype.kind != "f":
            return mask
    elif not np.isclose(float(tag), nodata, rtol=1e-3, atol=0):
        return mask  # the dtype cannot hold the tag, so no pixel has it
    # Band by band: most images have no nodata, which the first band shows.
    mask = _equals(pixels[..., 0], tag)
    for band in range(1, pixels.shape[-1]):
        if not mask.any():
            break
        mask &= _equals(pixels[..., band], tag)
    return mask


def _equals(values: NDArray[Any], tag: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where values equal the tag; NaN equals NaN."""
    values = as_comparable(values)
    equal: NDArray[np.bool_] = np.isnan(values) if tag != tag else values == tag
    return equal


def as_comparable(values: NDArray[Any]) -> NDArray[Any]:
    """Return the same numbers, half precision as single, which NumPy compares ten times as fast.

    Args:
        values: any shape and dtype.
    """
    return values.astype(np.float32) if values.dtype == np.float16 else values


def min_max(values: NDArray[Any]) -> tuple[float, float]:
    """Return the smallest and largest value, NaN if there is a NaN.

    Args:
        values: any shape that is not empty, any dtype.
    """
    if values.dtype != np.float16:
        return float(values.min()), float(values.max())
    # Compare bits: they have the order of the numbers, reversed below 0. It takes a tenth of the time.
    bits = np.ascontiguousarray(values).reshape(-1).view(np.int16)
    high, low = bits.max(), bits.view(np.uint16).max()
    high = high if high >= 0 else bits.min()
    low = low if low >= SIGN else bits.min()
    ends = np.array([low, high]).astype(np.uint16).view(np.float16).astype(np.float64)
    return (np.nan, np.nan) if np.isnan(ends).any() else (float(ends[0]), float(ends[1]))


def to_scaled(
    pixels: NDArray[Any], units: Units, nodata: float | None, clipped: bool = True
) -> NDArray[np.float32]:
    """Return pixels of any units as scaled pixels, the encoder's input.

    Args:
        pixels: (..., y, x, b) as stored.
        units: their units.
        nodata: the tag, None = nothing is nodata.
        clipped: True clips bright ground at 1, the challenge's own form, which training uses; False keeps
            its texture, see `compress_bright`.

    Returns:
        (..., y, x, b) float32 in [-1, 1], or up to 2.2 if not clipped. A copy; NaN in all bands of nodata
        pixels, and where the input is NaN.
    """
    values = pixels.astype(np.float32)
    if units == "reflectance":
        values *= np.float32(10000)
    if units in ("dn", "reflectance"):
        np.clip(values, 0, DN_TOP if clipped else DN_LIMIT, out=values)
        if not clipped:
            compress_bright(values)
        values /= np.float32(DN_HALF)
        values -= np.float32(1)
    elif units == "byte":
        values /= np.float32(BYTE_HALF)
        values -= np.float32(1)
    np.clip(values, -1, 1 if clipped else None, out=values)
    mask = is_nodata(pixels, nodata)
    if mask.any():
        values[mask] = np.nan
    return values


def compress_bright(dn: NDArray[np.float32]) -> None:
    """Compress digital numbers above 4095 in place by a logarithm; the others stay as they are.

    A number becomes `4095 + 512 ln(1 + (dn - 4095) / 512)`: value and slope are continuous at 4095, and no
    two whole numbers become equal.

    Args:
        dn: any shape, 0 to 65534; NaN stays NaN.
    """
    bright = dn > DN_TOP
    if bright.any():
        k, top = np.float32(BRIGHT), np.float32(DN_TOP)
        dn[bright] = top + k * np.log1p((dn[bright] - top) / k)


def expand_bright(dn: NDArray[np.float32]) -> None:
    """Undo `compress_bright` in place, exact to a tenth of a digital number.

    Args:
        dn: any shape; NaN stays NaN.
    """
    bright = dn > DN_TOP
    if bright.any():
        dn[bright] = DN_TOP + BRIGHT * np.expm1((dn[bright].astype(np.float64) - DN_TOP) / BRIGHT)


def to_dn(pixels: NDArray[Any], units: Units, nodata: float | None) -> NDArray[np.float32]:
    """Return pixels of any units as digital numbers with nodata 0, as in the challenge's series.

    Args:
        pixels: (..., y, x, b) as stored.
        units: their units.
        nodata: the tag, None = nothing is nodata.

    Returns:
        (..., y, x, b) float32; dn and reflectance are not clipped.
    """
    values = pixels.astype(np.float32)
    if units == "reflectance":
        values *= np.float32(10000)
    elif units == "scaled":
        values = (values + np.float32(1)) * np.float32(DN_HALF)
    elif units == "byte":
        values *= np.float32(DN_HALF / BYTE_HALF)
    values[is_nodata(pixels, nodata)] = 0
    return np.nan_to_num(values, copy=False, nan=0.0)


def check_finite(pixels: NDArray[Any], nodata: float | None, where: str) -> None:
    """Refuse NaN and infinity, unless they are the nodata tag.

    Args:
        pixels: any shape.
        nodata: the file's tag, None where it has none.
        where: file, array or record, for the message.

    Raises:
        ArrayError: names the number of such values and the position of the first.
    """
    if pixels.dtype.kind != "f" or (pixels.size and np.isfinite(min_max(pixels)).all()):
        return
    bad = ~np.isfinite(as_comparable(pixels))
    if nodata is not None and bad.any():
        bad &= ~(np.isnan(pixels) if np.isnan(nodata) else pixels == nodata)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ArrayError(
            f"{where}: {int(bad.sum())} values are NaN or infinite (the first at {first}: {pixels[first]}); "
            f"expected finite numbers. Replace them, or tag NaN as the file's nodata."
        )
