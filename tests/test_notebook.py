"""The notebook in docs/ runs, finds what it looks for, and the page made of it is whole."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
NOTEBOOK = DOCS / "from-geotiffs-to-a-map.ipynb"


def script(name):
    """A module of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def sources(notebook):
    return ["".join(cell["source"]) for cell in notebook["cells"]]


def test_the_notebook_runs_and_finds_its_patches(tmp_path):
    kept = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    run, names = script("run_notebook").run(NOTEBOOK, tmp_path)
    assert sources(run) == sources(kept)
    sure = names["found"].confidence > 0.5
    assert sure.sum() >= 7 and (names["off"][sure] <= 5).all()
    assert names["found"].longitude.between(3, 3.1).all()
    kinds = [output["output_type"] for cell in run["cells"] for output in cell.get("outputs", ())]
    assert kinds == [output["output_type"] for cell in kept["cells"] for output in cell.get("outputs", ())]
    assert {path.name for path in tmp_path.iterdir()} >= {"found.geojson", "vectors.parquet", "scenes.index"}


def test_the_notebook_is_kept_with_what_it_shows_and_is_small():
    kept = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (kept["nbformat"], len({cell["id"] for cell in kept["cells"]})) == (4, len(kept["cells"]))
    pictures = [o for c in kept["cells"] for o in c.get("outputs", ()) if "image/png" in o.get("data", {})]
    assert len(pictures) == 2
    assert NOTEBOOK.stat().st_size < 400_000 * 4 / 3


def test_the_page_has_every_cell_and_every_picture():
    pytest.importorskip("mkdocs")
    kept = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    text, pictures = script("notebook_pages").page(kept, NOTEBOOK.stem)
    assert all(source in text for source in sources(kept))
    assert text.count("![") == len(pictures) == 2
    assert all(content.startswith(b"\x89PNG") and len(content) < 300_000 for content in pictures.values())
