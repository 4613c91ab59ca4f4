"""Imports run one way, every room has a floor, and nothing heavy is loaded before it is used."""

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = (
    "tensorflow",
    "keras",
    "faiss",
    "rasterio",
    "pandas",
    "matplotlib",
    "pyarrow",
    "scipy",
    "shapely",
    "jax",
    "torch",
    "numba",
)


def python(code):
    """Run code in a fresh interpreter, in the root of the project."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "module",
    [
        "retrieval",
        "retrieval.cli",
        "retrieval.pipeline",
        "retrieval.models.encoder",
        "retrieval.matching.pyramid",
        "tfrecords.read",
    ],
)
def test_importing_loads_nothing_heavy(module):
    done = python(f"import sys, {module}; print(*(m for m in {HEAVY!r} if m in sys.modules))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def contracts():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return [parser[s] for s in parser.sections() if s.startswith("importlinter:contract:")]


def test_the_contract_is_kept():
    from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

    assert lint_imports(config_filename=str(ROOT / "setup.cfg"), no_cache=True) == EXIT_STATUS_SUCCESS


def test_the_contract_is_exhaustive_and_names_every_room():
    layered = [c for c in contracts() if c["type"] == "layers"]
    assert {c["containers"].strip() for c in layered} == {"retrieval", "tfrecords"}
    for contract in layered:
        assert contract.getboolean("exhaustive")
        named = set(contract["layers"].replace("|", " ").replace("(", " ").replace(")", " ").split())
        folder = ROOT / contract["containers"].strip()
        rooms = {p.stem for p in folder.glob("*.py")} | {p.parent.name for p in folder.glob("*/__init__.py")}
        assert rooms - {"__init__", *contract.get("exhaustive_ignores", "").split()} <= named


def test_storage_never_imports_the_engine():
    assert not [
        p
        for p in (ROOT / "tfrecords").rglob("*.py")
        if "import retrieval" in p.read_text() or "from retrieval" in p.read_text()
    ]


def test_files_have_60_to_600_lines_and_nothing_is_unpickled():
    for path in [*(ROOT / "retrieval").rglob("*.py"), *(ROOT / "tfrecords").rglob("*.py")]:
        text = path.read_text()
        lines, exempt = text.count("\n"), path.stem in ("__init__", "__main__", "errors")
        assert exempt or 60 <= lines <= 600, f"{path} has {lines} lines: fold it, or make it a folder"
        assert "import pickle" not in text and "allow_pickle=True" not in text, path
        for call in re.findall(r"np\.load\((?:[^()]|\([^()]*\))*\)", text):
            assert "allow_pickle=False" in call, f"{path}: {call}"
