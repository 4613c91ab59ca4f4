"""Whether the offset of a date may be told wrongly: its darkest ground against that of the other dates.

From baseline 04.00 on, 1000 is added to every number before it is stored. Where that is not told, or told of
numbers that have none, a date is 1000 brighter or darker than the others. Seasons don't do that: there is
shadow or water somewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np

from retrieval.ingest.ground import quiet_gdal
from tfrecords.errors import ArrayError
from tfrecords.schema.records import Provenance

PERCENT = 0.1
"""The darkest ground is this percentile over all bands."""
OFF_DN = (700, 1300)
"""A difference of so many digital numbers is about 1000."""
SIDE_PX = 1024
"""A date is looked at in at most so many pixels each way."""


def doubts(paths: Sequence[Path]) -> list[str]:
    """Compare the dates of each place.

    Args:
        paths: files of digital numbers, `<place>/<date>.tif`; those beside them are looked at too.

    Returns:
        A sentence for each place with dates whose darkest ground is about 1000 off; nothing is changed.

    Raises:
        ArrayError: a file is damaged.
    """
    groups: dict[tuple[Path, str], dict[str, float]] = {}
    for folder in sorted({path.parent for path in paths}):
        for path in sorted(folder.glob("[!.]*.tif")):
            level, value = darkest(path)
            if value is not None:
                groups.setdefault((folder, level), {})[path.stem] = value
    return [text for (folder, _), values in groups.items() for text in _doubt(folder.name, values)]


def _doubt(place: str, values: dict[str, float]) -> list[str]:
    usual = median(values.values())
    if len(values) == 2:  # neither can be told to be the right one
        usual = min(values.values())
    low, high = OFF_DN
    off = {date: value - usual for date, value in values.items() if low <= abs(value - usual) <= high}
    if not off:
        return []
    told = ", ".join(f"{date} ({difference:+.0f})" for date, difference in off.items())
    return [
        f"warning: {place}: the darkest ground of {told} is about 1000 off that of the other dates: the "
        "metadata may tell the offset of these, or of the others, wrongly; nothing was changed"
    ]


def darkest(path: Path) -> tuple[str, float | None]:
    """The darkest ground of a date.

    Args:
        path: a file of digital numbers, 0 = no data.

    Returns:
        The level of the product that it was made of ("1C", "2A", or "" if that is not known), since the air
        is in the one and not in the other; and the percentile, None where nothing is to be seen.

    Raises:
        ArrayError: the file is damaged.
    """
    import rasterio
    from rasterio.errors import RasterioError

    try:
        with quiet_gdal(), rasterio.open(path) as dataset:
            shape = dataset.count, min(SIDE_PX, dataset.height), min(SIDE_PX, dataset.width)
            pixels = dataset.read(out_shape=shape)
            source = Provenance.from_tags(dataset.tags()).source
    except RasterioError as error:
        raise ArrayError(f"{path} can't be read ({error}): it is damaged; get it anew") from error
    known = pixels[:, pixels.any(axis=0)]
    level = next((level for level in ("1C", "2A") if f"MSIL{level}" in source), "")
    return level, float(np.percentile(known, PERCENT)) if known.size else None
