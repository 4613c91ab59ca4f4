"""GeoTIFFs, one folder a place and one file a date, into the records that everything above reads."""

from tfrecords.ingest.places import Dated, Place, date_of, find_places
from tfrecords.ingest.run import IngestReport, ingest

__all__ = ["Dated", "IngestReport", "Place", "date_of", "find_places", "ingest"]
