"""Sentinel-2 products, and GeoTIFFs, one folder a place and one file a date, into what all above reads."""

from tfrecords.ingest.places import Dated, Place, date_of, find_places
from tfrecords.ingest.run import IngestReport, ingest
from tfrecords.ingest.wanted import Box, Dates, Wanted

__all__ = [
    "Box",
    "Dated",
    "Dates",
    "IngestReport",
    "Place",
    "Wanted",
    "date_of",
    "find_places",
    "ingest",
]
