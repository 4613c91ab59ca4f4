"""Pixels and map coordinates: positions, footprints, and filters by date and area."""
