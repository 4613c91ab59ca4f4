"""Vector files that lead elsewhere: GDAL would open the address that they name.

A file from a stranger must neither open other files of this machine nor connect to a server. GDAL follows
virtual layers, services in XML, schemas of GML, and a CRS that GeoJSON gives as an address.
"""

from __future__ import annotations

import json
import mmap
import re
from pathlib import Path
from typing import Any

from retrieval.errors import LabelsError

OFFLINE = {"GML_DOWNLOAD_SCHEMA": "NO", "GDAL_HTTP_PROXY": "127.0.0.1:9", "GDAL_HTTPS_PROXY": "127.0.0.1:9"}
"""GDAL's settings while vector files are read: nothing listens at this address."""
HEAD_BYTES = 1 << 16
ROOTS = re.compile(rb"<\s*(OGR\w*DataSource|VRTDataset|GDAL_\w+|OGRVRT\w*|OGCAPI\w*)", re.IGNORECASE)
"""Elements of files that name other files or services."""
CRS = re.compile(rb'"(?:c|\\u0063)(?:r|\\u0072)(?:s|\\u0073)"\s*:\s*(?=\{)', re.IGNORECASE)
"""A member called crs that is an object, also if its name is escaped."""
CRS_BYTES = 1 << 14
"""Longest text of such an object that is read."""


def refuse_pointer(path: Path) -> None:
    """Refuse a vector file that names another file or a server.

    Args:
        path: a file that exists.

    Raises:
        LabelsError: it names one.
    """
    if not path.is_file() or not path.stat().st_size:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if ROOTS.search(content[:HEAD_BYTES]):
            raise LabelsError(
                f"{path}: it holds no features but names other files. Name the file with the features."
            )
        if content[:HEAD_BYTES].lstrip(b"\xef\xbb\xbf \t\r\n")[:1] != b"{":
            return
        for match in CRS.finditer(content):
            if _is_address(content[match.end() : match.end() + CRS_BYTES]):
                raise LabelsError(
                    f"{path}: its CRS is an address, which is not opened. Give the CRS by name: ogr2ogr "
                    "-a_srs EPSG:NUMBER out.geojson in."
                )


def _is_address(text: bytes) -> bool:
    """Return whether the object at the start of a text is a CRS to fetch, or none that can be read."""
    try:
        crs: Any = json.JSONDecoder().raw_decode(text.decode("utf-8", errors="ignore"))[0]
    except (ValueError, RecursionError):
        return True
    properties = crs.get("properties")
    named = set(properties) if isinstance(properties, dict) else set()
    return str(crs.get("type", "")).lower() in ("url", "link") or bool(named & {"url", "href"})
