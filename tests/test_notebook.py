"""The notebook in docs/ runs, locates its patches, and becomes a complete page."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
NOTEBOOK = DOCS / "from-geotiffs-to-a-map.ipynb"


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


def test_the_notebook_stores_its_outputs_and_is_small():
    stored = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (stored["nbformat"], len({cell["id"] for cell in stored["cells"]})) == (4, len(stored["cells"]))
    pictures = [o for c in stored["cells"] for o in c.get("outputs", ()) if "image/png" in o.get("data", {})]
    assert len(pictures) == 2
    assert NOTEBOOK.stat().st_size < 400_000 * 4 / 3


def test_the_page_has_every_cell_and_every_picture():
    pytest.importorskip("mkdocs")
    stored = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    text, pictures = script("notebook_pages").page(stored, NOTEBOOK.stem)
    assert all(source in text for source in sources(stored))
    assert text.count("![") == len(pictures) == 2
    assert all(content.startswith(b"\x89PNG") and len(content) < 300_000 for content in pictures.values())
