"""Queries to ranked candidates: search, normalized cross-correlation, verification, exhaustive search."""
