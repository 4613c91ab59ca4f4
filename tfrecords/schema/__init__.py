"""Records: bands, units and scaling, the kinds of record, and their bytes.

`to_scaled` makes the one form of pixels that encoders, matching and training use: float32 in [-1, 1],
axes (..., y, x, b), NaN where a pixel is nodata.
"""

from tfrecords.schema.bands import BANDS, band_names
from tfrecords.schema.dates import acquisition_day, date_of, days_of, solar_day, sure_date_of
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
    as_comparable,
    check_dtype,
    check_finite,
    check_units,
    default_nodata,
    guess_units,
    is_nodata,
    min_max,
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
    "acquisition_day",
    "as_comparable",
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
    "group_of",
    "guess_units",
    "image_of",
    "is_nodata",
    "min_max",
    "parse",
    "patch_bytes",
    "patch_of",
    "series_of",
    "solar_day",
    "sure_date_of",
    "to_dn",
    "to_scaled",
]
