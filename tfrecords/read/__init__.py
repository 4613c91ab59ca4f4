"""Read images and patches in order, and series in order or streamed as crops.

Sources are TFRecords (the challenge's or ours), `.npy` files, GeoTIFFs, and arrays in memory. TFRecords need
TensorFlow, GeoTIFFs rasterio. Units and bands are decided once per source, and its `note` states them.
"""

from tfrecords.read.chips import read_queries
from tfrecords.read.crops import CropPlan, Crops, cut_crops
from tfrecords.read.images import ImageSource, read_images, scaling_note
from tfrecords.read.patches import read_patches
from tfrecords.read.rasters import Raster, describe_raster, read_raster, units_of_sample
from tfrecords.read.records import count_records, read_fields
from tfrecords.read.series import read_series, series_files
from tfrecords.read.stream import naming_bad_records, stream_crops

__all__ = [
    "CropPlan",
    "Crops",
    "ImageSource",
    "Raster",
    "count_records",
    "cut_crops",
    "describe_raster",
    "naming_bad_records",
    "read_fields",
    "read_images",
    "read_patches",
    "read_queries",
    "read_raster",
    "read_series",
    "scaling_note",
    "series_files",
    "stream_crops",
    "units_of_sample",
]
