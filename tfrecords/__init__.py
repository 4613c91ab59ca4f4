"""Storage: arrays, maps and bytes on disk; never models, FAISS or the command line.

From the ground up: `errors`; `grid` (window arithmetic) and `manifest` (the one way anything is
written whole); `schema` (record kinds, bands, units); `write` and `read`; `ingest` and `synthetic`.
"""
