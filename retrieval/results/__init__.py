"""Matches, and the files they become: tables, GeoJSON, window GeoTIFFs."""
