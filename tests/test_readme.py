"""Every block of the README, the tutorial and two how-to pages runs, in order, on small generated data.

A block after `<!-- parse only: why -->` needs hours, a GPU or a network: it is parsed, not run. Lines that
begin with `retrieve` run in this process, all others in a shell.
"""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import typer
from labelled import pictures, write_npz
from typer.testing import CliRunner

from retrieval.cli import app
from retrieval.synthetic.scene import Scene
from retrieval.synthetic.sets import make_challenge

ROOT = Path(__file__).parent.parent
_BLOCK = re.compile(
    r"(?P<mark><!-- parse only: [^\n]+ -->\n)?^```(?P<language>sh|python)\n(?P<text>.*?)^```$", re.M | re.S
)
PAGES = ("README.md", "docs/tutorial.md", "docs/how-to/place-a-chip.md", "docs/how-to/report.md")
SHORT = ["--recipe", "short.json"]
"""Flags added to a training so that it ends soon."""
SHORT_CLASSIFIER = ["--recipe", "short-classifier.json"]
CLASSIFIER_RECIPE = (
    """{"steps": 2, "batch": 6, "unlabelled_batch": 6, "width": 4, "blocks": 1, "compile": false}"""
)
RECIPE = """{"steps": 2, "batch": 8, "per_place": 4, "pool": 16, "shuffle": 16, "projection_crops": 640,
"crops_per_series": 32, "validation_queries": 8, "learned": {"width": 8, "dim": 8}, "workers": 1}"""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    line: int
    runs: bool


def blocks_of(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(m["language"], m["text"], text[: m.start("text")].count("\n") + 1, m["mark"] is None)
        for m in _BLOCK.finditer(text)
    ]


def commands_of(block: Block) -> list[list[str]]:
    """Return the lines of a shell block that call `retrieve`, split as a shell does."""
    lines = (shlex.split(line, comments=True) for line in block.text.splitlines())
    return [words for words in lines if words[:1] == ["retrieve"]]


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    """Enter and return an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def prepared(workplace, write_tif) -> Path:
    """Write the files that a reader of the README has: a challenge, scenes, chips and an array."""
    make_challenge("challenge", images=2, patches=8, size_px=160, seed=1)
    for file in Path("challenge").iterdir():
        file.rename(file.name)
    images = [Scene(seed, 160, 160).render(150) for seed in (1, 2)]
    for number, pixels in enumerate(images):
        place = {"crs": "EPSG:32631", "transform": (10, 0, 500_000 + 9_000 * number, 0, -10, 5_600_000)}
        write_tif(f"scenes/{number}.tif", pixels, **place)
        write_tif(f"chips/{number}.tif", pixels[30:94, 40:104], **place)
    for seed, name in enumerate(("train", "unsup", "valid", "test")):
        write_npz(Path(f"{name}.npz"), *pictures(12, seed=seed, side=16))
    np.save("more.npy", np.stack([pixels[5:69, 17:81] for pixels in images]))
    return workplace


def run_page(page: str, monkeypatch) -> dict:
    """Run all blocks of a page in order; return the names that its Python defined."""
    names: dict = {}
    Path("short.json").write_text(RECIPE)
    Path("short-classifier.json").write_text(CLASSIFIER_RECIPE)
    here = Path.cwd()
    for block in (b for b in blocks_of(page) if b.runs):
        if block.language == "python":
            code = compile(block.text, f"{page}, from line {block.line}", "exec")
            exec(code, names)
            continue
        for line in filter(None, map(str.strip, block.text.splitlines())):
            words = shlex.split(line, comments=True)
            if words[:1] == ["cd"]:
                monkeypatch.chdir(words[1])
            elif words[:1] == ["retrieve"]:
                (Path.cwd() / "short.json").write_text(RECIPE)
                short = SHORT if words[1] == "train" else []
                short = SHORT_CLASSIFIER if words[1:3] == ["classify", "train"] else short
                done = CliRunner().invoke(app, [*words[1:], *short])
                assert done.exit_code == 0, f"{page}, from line {block.line}: {line}\n{done.output}"
            else:
                subprocess.run(["sh", "-ec", line], check=True, capture_output=True)
    monkeypatch.chdir(here)
    return names


@pytest.mark.parametrize("page", PAGES)
def test_every_block_parses(page, tmp_path):
    blocks = blocks_of(page)
    text = (ROOT / page).read_text(encoding="utf-8")
    assert len(blocks) == text.count("```") // 2  # no other language
    assert text.count("<!-- parse only") == sum(not block.runs for block in blocks)
    for block in blocks:
        if block.language == "python":
            ast.parse(block.text)
            continue
        subprocess.run(["sh", "-n"], input=block.text, text=True, check=True)
        for _, name, *arguments in commands_of(block):
            group = typer.main.get_command(app)
            command = group.get_command(typer.Context(group), name)
            command.make_context(name, list(arguments))


def test_the_readme_runs(prepared, monkeypatch):
    names = run_page("README.md", monkeypatch)
    frame = names["frame"]
    assert frame[["image_id", "x", "y"]].to_numpy().tolist() == [[0, 17, 5], [1, 17, 5]]
    assert frame.longitude.notna().all()
    assert (prepared / "found" / "patches.csv").read_text().splitlines()[1:] == [
        "0,chips/0.tif",
        "1,chips/1.tif",
    ]
    for name in ("submission.csv", "report.html", "found/matches.parquet", "found.html"):
        assert (prepared / name).exists(), name


def test_the_tutorial_runs(workplace, monkeypatch):
    names = run_page("docs/tutorial.md", monkeypatch)
    assert len(names["found"]) == 60
    assert (workplace / "demo" / "matches.png").stat().st_size > 10_000
    assert np.allclose(np.linalg.norm(names["vectors"], axis=-1), 1, atol=1e-4)
    for name in ("sure.csv", "mine.csv", "encoder.keras", "catalogue", "vectors.parquet"):
        assert (workplace / "job" / name).exists(), name


def test_locating_a_chip_runs(workplace, monkeypatch):
    names = run_page("docs/how-to/place-a-chip.md", monkeypatch)
    best = names["matches"].details().query("rank == 0")
    assert best.image_id.tolist() == [0, 1] and best.agree.tolist() == best.windows.tolist()
    assert (best.off_m < 30).all()
    for name in ("found/windows/patch_1.tif", "picture/matches.geojson", "here/submission.csv"):
        assert (workplace / name).exists(), name


def test_links_of_the_pages_have_targets():
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            path = (ROOT / page).parent / target
            assert path.exists(), f"{page} links to {target}, which is missing"


def test_pictures_are_small():
    for path in (ROOT / "docs" / "images").iterdir():
        assert path.stat().st_size < 300_000, path


def test_the_two_commands_are_targets_of_the_makefile():
    targets = {
        line.split()[1]
        for block in blocks_of("README.md")
        for line in block.text.splitlines()
        if line[:5] == "make "
    }
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets == {"demo", "test"}
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M)


def test_the_architecture_page_lists_every_room_of_the_contract():
    contract = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    layers = re.findall(r"^layers =\n((?:    .+\n)+)", contract, re.M)
    rooms = {room for text in layers for room in re.findall(r"[\w()]+", text)}
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert [room for room in sorted(rooms) if f"`{room.strip('()')}`" not in page] == []
