"""Encoder and index for other tools: STAC items, GeoParquet, ONNX."""
