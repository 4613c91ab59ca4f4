"""The notebooks in docs/ run, find what they look for, and become complete pages."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
NOTEBOOK = DOCS / "from-geotiffs-to-a-map.ipynb"
CLASSES, WATER = DOCS / "classes-from-a-few-labels.ipynb", DOCS / "water-or-land.ipynb"
POLYGONS = DOCS / "from-polygons-to-a-map.ipynb"
PICTURES = {NOTEBOOK: 2, CLASSES: 5, WATER: 6, POLYGONS: 6}
"""Pictures of each notebook."""


def script(name):
    """Import a script of docs/, which is not a package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def sources(notebook):
    return ["".join(cell["source"]) for cell in notebook["cells"]]


def test_the_notebook_runs_and_locates_its_patches(tmp_path):
    stored = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    run, names = script("run_notebook").run(NOTEBOOK, tmp_path)
    assert sources(run) == sources(stored)
    confident = names["found"].confidence > 0.5
    assert confident.sum() >= 7 and (names["off"][confident] <= 5).all()
    assert names["found"].longitude.between(3, 3.1).all()
    kinds = [output["output_type"] for cell in run["cells"] for output in cell.get("outputs", ())]
    assert kinds == [output["output_type"] for cell in stored["cells"] for output in cell.get("outputs", ())]
    assert {path.name for path in tmp_path.iterdir()} >= {"found.geojson", "vectors.parquet", "scenes.index"}


def test_the_classes_are_learned_and_wrong_labels_found(tmp_path):
    pytest.importorskip("pandas")
    stored = json.loads(CLASSES.read_text(encoding="utf-8"))
    run, names = script("run_notebook").run(CLASSES, tmp_path)
    assert sources(run) == sources(stored)
    assert names["report"].accuracy >= 0.7 and names["figures"].accuracy.n == 200
    assert len(set(names["suspects"]) & set(names["WRONG"])) >= 2 and len(names["suspects"]) <= 20
    assert (tmp_path / "submission.csv").read_text().count("\n") == 201
    assert (tmp_path / "explore.html").is_file()


def test_water_is_mapped(tmp_path):
    pytest.importorskip("geopandas")
    stored = json.loads(WATER.read_text(encoding="utf-8"))
    run, names = script("run_notebook").run(WATER, tmp_path)
    assert sources(run) == sources(stored)
    assert 0 < names["threshold"] < 1 and names["wet"].recall.value >= 0.6
    assert names["agreement"] >= 0.85


def test_faulty_polygons_are_found_by_a_map_that_they_taught(tmp_path):
    for extra in ("geopandas", "mercantile", "scipy"):
        pytest.importorskip(extra)
    stored = json.loads(POLYGONS.read_text(encoding="utf-8"))
    run, names = script("run_notebook").run(POLYGONS, tmp_path)
    assert sources(run) == sources(stored)
    states = names["states"]
    assert states.unsupported[states.label.isin(["invented", "renamed"])].all()
    assert states.unsupported[states.label == "correct"].mean() <= 0.06
    assert sum(names["found"]) == 4 and len(names["areas"]) <= 8
    assert names["polygons"].features >= 35
    assert (tmp_path / "compare.html").is_file() and (tmp_path / "map.gpkg").is_file()


@pytest.mark.parametrize("path", list(PICTURES), ids=lambda path: path.stem)
def test_a_notebook_stores_its_outputs_and_is_small(path):
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert (stored["nbformat"], len({cell["id"] for cell in stored["cells"]})) == (4, len(stored["cells"]))
    pictures = [o for c in stored["cells"] for o in c.get("outputs", ()) if "image/png" in o.get("data", {})]
    assert len(pictures) == PICTURES[path]
    assert path.stat().st_size < 400_000 * 4 / 3
    assert path.name in script("run_notebook").NAMES


@pytest.mark.parametrize("path", list(PICTURES), ids=lambda path: path.stem)
def test_the_page_has_every_cell_and_every_picture(path):
    pytest.importorskip("mkdocs")
    stored = json.loads(path.read_text(encoding="utf-8"))
    text, pictures = script("notebook_pages").page(stored, path.stem)
    assert all(source in text for source in sources(stored))
    assert text.count("![") == len(pictures) == PICTURES[path]
    assert all(content.startswith(b"\x89PNG") and len(content) < 300_000 for content in pictures.values())
