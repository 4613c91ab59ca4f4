"""Encoder and index for other tools: STAC items, a GeoParquet of vectors, ONNX.

`vectors` streams the index's vectors into Parquet files, `stac` writes a catalogue around them,
`onnx` turns an encoder into a file that needs neither Keras nor TensorFlow; `footprint` says where
windows and images lie on the Earth.
"""

from retrieval.export.onnx import OnnxReport, export_onnx
from retrieval.export.stac import StacReport, export_stac
from retrieval.export.vectors import VectorsReport, export_vectors

__all__ = [
    "OnnxReport",
    "StacReport",
    "VectorsReport",
    "export_onnx",
    "export_stac",
    "export_vectors",
]
