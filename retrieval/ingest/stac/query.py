"""Catalogue queries: which catalogue, which ground, which days and how little cloud."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from retrieval.errors import ConfigError
from retrieval.geo.request import BoundingBox, DateSpan, check_percent
from retrieval.ingest.redaction import redact, redact_text

CATALOGUES = {
    "earth-search": "https://earth-search.aws.element84.com/v1",
    "planetary-computer": "https://planetarycomputer.microsoft.com/api/stac/v1",
    "copernicus": "https://stac.dataspace.copernicus.eu/v1",
}
"""Short names of public catalogues."""
SIGNERS = ("planetary-computer",)
"""Services that can sign file addresses."""


@dataclass(frozen=True)
class CatalogQuery:
    """A query to a STAC catalogue, and which of the items found are kept."""

    api: str
    """Address of the catalogue's root, or a name from `CATALOGUES`."""
    bbox: BoundingBox
    """The ground to fetch."""
    dates: DateSpan
    """Days to search, with a first and a last day."""
    collection: str = "sentinel-2-l2a"
    """Id of the collection."""
    max_cloud: float = 60.0
    """Largest cloud cover of an item over its whole tile, percent, 0 to 100."""
    max_hidden: float = 50.0
    """Largest share of the ground in `bbox` that is hidden on a day, percent, 0 to 100."""
    hide_snow: bool = False
    """Whether snow counts as hidden."""
    dates_per_place: int = 12
    """Largest number of dates kept per place, 1 or more."""
    sign: str | None = None
    """"planetary-computer" where file addresses must be signed."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "api", CATALOGUES.get(self.api, self.api).rstrip("/"))
        _check_address(self.api)
        check_percent("--max-cloud", self.max_cloud)
        check_percent("--max-hidden", self.max_hidden)
        if self.dates.first is None or self.dates.last is None:
            raise ConfigError(
                f"--dates {self.dates}: the span is open. Expected a first and a last day, such as "
                "2022-01/2023-12"
            )
        if self.dates_per_place < 1:
            raise ConfigError(f"--dates-per-place {self.dates_per_place}: too few. Expected 1 or more")
        if self.sign not in (None, *SIGNERS):
            raise ConfigError(f"--sign {self.sign}: unknown service. Expected {' or '.join(SIGNERS)}")

    @property
    def first(self) -> datetime.date:
        """First day."""
        assert self.dates.first is not None
        return self.dates.first

    @property
    def last(self) -> datetime.date:
        """Last day."""
        assert self.dates.last is not None
        return self.dates.last

    def to_json(self) -> dict[str, Any]:
        """Return the query as JSON values, without a key in the address of the catalogue."""
        values = {name: value for name, value in vars(self).items() if name not in ("bbox", "dates")}
        span = {"first": self.first.isoformat(), "last": self.last.isoformat()}
        return {"api": redact(values.pop("api")), "bbox": list(self.bbox.as_tuple()), **span, **values}


def _check_address(api: str) -> None:
    """Check that a catalogue's address is http or https and names a host.

    Raises:
        ConfigError: it is not.
    """
    try:
        parts = urlsplit(api)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(
            f"--api {redact_text(api)!r}: not the address of a catalogue. Expected one such as "
            f"{CATALOGUES['earth-search']}, or one of the names {', '.join(CATALOGUES)}"
        )
