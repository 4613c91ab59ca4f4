"""Sentinel-2 products, STAC items and GeoTIFFs to places, training series and challenge files.

A place is a folder of GeoTIFFs, one file per date. `run` holds the one call of the command, `sources` chooses
between products (`safe`) and GeoTIFFs (`cogs`), `places_writer` writes places. `survey` inspects a place, and
`series` and `challenge` make records of it. `stac` fills places from a catalogue.
"""

from retrieval.geo.request import BoundingBox, DateSpan, ImageFilter
from retrieval.ingest.places import DatedFile, Place, find_places
from retrieval.ingest.run import IngestReport, ingest
from tfrecords.schema.dates import date_of

__all__ = [
    "BoundingBox",
    "DateSpan",
    "DatedFile",
    "ImageFilter",
    "IngestReport",
    "Place",
    "date_of",
    "find_places",
    "ingest",
]
