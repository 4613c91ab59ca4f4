"""The how-to page of change: its blocks run, and its output is the real one."""

import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("geopandas", reason="needs the extra `labels`")

from changeground import run

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "change.md"
BLOCK = re.compile(
    r"(?P<mark><!-- parse only[^\n]+\n)?^```(?P<kind>sh|python|text)\n(?P<text>.*?)^```$", re.M | re.S
)


def test_the_blocks_run_and_print_what_the_page_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = ""
    for block in BLOCK.finditer(PAGE.read_text(encoding="utf-8")):
        text = block["text"]
        if block["mark"]:
            continue
        if block["kind"] == "text":
            assert text == printed
        elif block["kind"] == "python":
            exec(compile(text, str(PAGE), "exec"), {})
        else:
            done = run(*shlex.split(text)[1:])
            assert done.exit_code == 0, done.output
            printed = done.stdout
    assert Path("change.gpkg").stat().st_size > 1000
