"""The how-to page of the labels: its blocks run, and its output is the real one."""

from pathlib import Path

import pytest

pytest.importorskip("mercantile", reason="needs the extra `labels`")
pytest.importorskip("geopandas", reason="needs the extra `labels`")

from howto import run_howto


def test_the_blocks_run_and_print_what_the_page_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_howto("labels.md")
    assert Path("compare.html").stat().st_size > 100_000
