"""File formats: arrays, rasters and records on disk; no models, no FAISS, no command line.

From the lowest floor up:

- `errors`
- `storage`: files that appear whole
- `grid`, window arithmetic, and `artifacts`, folders with a manifest
- `schema`: kinds of record, bands, units
- `read` and `write`
- `challenge`
"""
