"""Where the pixels of an image came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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
