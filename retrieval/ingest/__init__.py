"""Sentinel-2 products, and GeoTIFFs, one folder a place and one file a date, into what all above reads."""

from retrieval.ingest.places import Dated, Place, find_places
from retrieval.ingest.run import IngestReport, ingest
from tfrecords.schema.dates import date_of

__all__ = [
    "Dated",
    "IngestReport",
    "Place",
    "date_of",
    "find_places",
    "ingest",
]
