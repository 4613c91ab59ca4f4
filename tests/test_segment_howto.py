"""The how-to page of segmentation: its blocks run, and print what the page shows, but for the numbers.

The training is shortened, so the numbers are others.
"""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("mercantile", reason="needs the extra `labels`")
pytest.importorskip("geopandas", reason="needs the extra `labels`")

from labelground import run
from segmentable import TINY

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "segment.md"
BLOCK = re.compile(
    r"(?P<mark><!-- parse only[^\n]+\n)?^```(?P<kind>sh|python|text)\n(?P<text>.*?)^```$", re.M | re.S
)


def shape(text):
    """Return a text without its numbers and the blanks in front of them."""
    return re.sub(r" *-?\d[\d.,]*", "#", text)


def test_the_blocks_run_and_print_lines_like_those_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("short.json").write_text(json.dumps(TINY.to_dict()))
    printed = ""
    for block in BLOCK.finditer(PAGE.read_text(encoding="utf-8")):
        text = block["text"]
        if block["mark"]:
            continue
        if block["kind"] == "text":
            assert shape(text) == shape(printed)
        elif block["kind"] == "python":
            exec(compile(text, str(PAGE), "exec"), {})
        else:
            printed = ""
            for line in filter(None, text.splitlines()):
                words = shlex.split(line)
                if words[0] != "retrieve":
                    subprocess.run(["sh", "-ec", line], check=True)
                    continue
                short = ["--recipe", "short.json", "--steps", 2] if words[1:3] == ["segment", "train"] else []
                done = run(*words[1:], *short)
                assert done.exit_code == 0, done.output
                printed += done.stdout
    assert Path("far-map.tif").is_file() and Path("far-polygons.gpkg").is_file()
