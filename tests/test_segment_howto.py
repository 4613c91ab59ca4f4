"""The how-to page of segmentation: its blocks run, and print what the page shows, but for the numbers.

The training is shortened, so the numbers are others.
"""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("mercantile", reason="needs the extra `labels`")
pytest.importorskip("geopandas", reason="needs the extra `labels`")

from howto import run_howto
from segmentable import TINY


def shape(text):
    """Return a text without its numbers and the blanks in front of them."""
    return re.sub(r" *-?\d[\d.,]*", "#", text)


def test_the_blocks_run_and_print_lines_like_those_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("short.json").write_text(json.dumps(TINY.to_dict()))
    short = ["--recipe", "short.json", "--steps", 2]
    run_howto("segment.md", shape, lambda words: short if words[1:3] == ["segment", "train"] else [])
    assert Path("far-map.tif").is_file() and Path("far-polygons.gpkg").is_file()
