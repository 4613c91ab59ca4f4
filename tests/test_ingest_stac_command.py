"""The command `retrieve ingest-stac`."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from stac_ground import clear, ground_of, lonlat
from stac_job import ASKED, pixels, truth
from typer.testing import CliRunner

from retrieval.cli import app
from retrieval.ingest.stac.query import CATALOGUES


@pytest.fixture
def out(tmp_path):
    return tmp_path / "places"


def call(*arguments):
    return CliRunner().invoke(app, ["ingest-stac", *map(str, arguments)], prog_name="retrieve")


def test_the_command(tiles, catalogue, out):
    tiles.put("31TCJ", "2022-05-01", scl=clear())
    tiles.put("31TCJ", "2022-06-01", cloud=30, scl=clear())
    asked = ("--api", catalogue.url, "--bbox", ",".join(map(str, ASKED)), "--dates", "2022", "--out", out)
    done = call(*asked)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{out}: 2 dates of 1 places, 2 of them new; 0 of 2 items left out\n"
    assert "searching: 2" in done.stderr and "reading dates: 2" in done.stderr
    again = json.loads(call(*asked, "--json", "--quiet").stdout)
    assert (again["dates"], again["new"], again["left_out"]) == (2, 0, 0)
    refused = call(*asked, "--max-cloud", 20)
    assert refused.exit_code == 1 and "holds the files of another query (max_cloud 60.0)" in refused.stderr
    fewer = call(*asked, "--max-cloud", 20, "--overwrite", "--quiet")
    assert fewer.stdout == f"{out}: 1 dates of 1 places, 1 of them new; 0 of 1 items left out\n"
    with (out / "items.csv").open(newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == ["31TCJ/2022-05-01.tif"]


def test_a_box_across_the_antimeridian_is_searched_on_both_sides(tiles, catalogue, out):
    tiles.put("01KAB", "2022-05-01", scl=clear())
    box = lonlat("01KAB", 180, 200, 330, 300)
    assert box[0] > 179.9 and box[2] < -179.9
    done = call("--api", catalogue.url, "--bbox", ",".join(map(str, box)), "--dates", "2022", "--out", out)
    assert done.stdout == f"{out}: 1 dates of 1 places, 1 of them new; 0 of 1 items left out\n", done.output
    path = out / "01KAB" / "2022-05-01.tif"
    found = pixels(path)
    assert np.array_equal(found, truth(path, "01KAB", ground_of("01KAB")))
    assert 98 <= found.shape[0] <= 106 and 148 <= found.shape[1] <= 156
    asked = [query["bbox"] for _, where, query in catalogue.requests if where == "/search"]
    assert [(west, east) for west, _, east, _ in asked] == [(box[0], 180), (-180, box[2])]


def test_boxes_that_begin_with_a_minus_are_values(tmp_path):
    for box in (["--bbox", "-1.5,43,-1.2,42"], ["--bbox=-1.5,43,-1.2,42"]):
        done = call(*box, "--dates", "2022", "--out", tmp_path / "x")
        assert done.exit_code == 1 and "-1.5,43,-1.2,42: south 43 is not below north 42" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bbox", "1,2", "--dates", "2022"], "Expected west,south,east,north"),
        (["--bbox", "1,2,3,4", "--dates", "then"], "Expected FROM/TO"),
        (["--bbox", "1,2,3,4", "--dates", "2022", "--api", "there"], "not the address of a catalogue"),
        (["--bbox", "1,2,3,4", "--dates", "2022", "--api", "http://127.0.0.1:9"], "connection refused"),
    ],
)
def test_failures_of_the_command_are_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    done = call(*arguments, "--out", tmp_path / "x")
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_commands_in_the_how_to_parse():
    import typer

    page = (Path(__file__).parent.parent / "docs" / "how-to" / "stac.md").read_text(encoding="utf-8")
    commands = [line.split() for line in page.splitlines() if line.startswith("retrieve ")]
    assert len(commands) == 3
    for _, name, *arguments in commands:
        group = typer.main.get_command(app)
        group.get_command(typer.Context(group), name).make_context(name, arguments)
    assert all(address in page for address in CATALOGUES.values())


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    Path(tmp_path / "x").touch()
    done = call("--bbox", "1,2,3,4", "--dates", "2022", "--out", tmp_path / "x")
    assert done.exit_code == 1 and "x: a file" in done.stderr
