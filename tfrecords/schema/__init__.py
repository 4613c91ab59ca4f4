"""What is in a record: bands, units and scaling, the record kinds, and their bytes.

`to_scaled` makes the one array that encoders, refinement and training see: float32 in [-1, 1],
axes (..., y, x, b), NaN where a pixel is nodata.
"""

from tfrecords.schema.bands import BANDS, band_names
from tfrecords.schema.dates import date_of, days_of, sure_date_of
from tfrecords.schema.decode import (
    PatchBytes,
    decode_image,
    decode_patch,
    decode_series,
    group_of,
    image_of,
    patch_bytes,
    patch_of,
    series_of,
)
from tfrecords.schema.encode import encode_image, encode_patch, encode_series
from tfrecords.schema.fields import Fields, parse
from tfrecords.schema.records import (
    ID_LIMIT,
    UNKNOWN,
    Chips,
    Georeference,
    Image,
    Patches,
    Provenance,
    Series,
    check_id,
)
from tfrecords.schema.units import (
    UNITS,
    Units,
    check_dtype,
    check_finite,
    check_units,
    default_nodata,
    extremes,
    guess_units,
    is_nodata,
    quickly_compared,
    to_dn,
    to_scaled,
)

__all__ = [
    "BANDS",
    "ID_LIMIT",
    "UNITS",
    "UNKNOWN",
    "Chips",
    "Fields",
    "Georeference",
    "Image",
    "PatchBytes",
    "Patches",
    "Provenance",
    "Series",
    "Units",
    "band_names",
    "check_dtype",
    "check_finite",
    "check_id",
    "check_units",
    "date_of",
    "days_of",
    "decode_image",
    "decode_patch",
    "decode_series",
    "default_nodata",
    "encode_image",
    "encode_patch",
    "encode_series",
    "extremes",
    "group_of",
    "guess_units",
    "image_of",
    "is_nodata",
    "parse",
    "patch_bytes",
    "patch_of",
    "quickly_compared",
    "series_of",
    "sure_date_of",
    "to_dn",
    "to_scaled",
]
