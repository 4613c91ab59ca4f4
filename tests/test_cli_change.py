"""`retrieve index --add` and `--remove`, as a user types them."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from retrieval.cli import app
from retrieval.synthetic.scene import Scene


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="retrieve")


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    folder = tmp_path_factory.mktemp("change")
    for seed in (1, 2):
        np.save(folder / f"{seed}.npy", Scene(seed, 128, 128).render(150)[None])
    return folder


def test_an_index_that_grows_and_shrinks(ground, tmp_path):
    out = tmp_path / "index"
    settings = ("--encoder", "structure-tensor", "--stride", "16")
    assert run("index", ground / "1.npy", "--out", out, *settings).exit_code == 0
    done = run("index", ground / "2.npy", "--out", out, "--add", "--json", "--quiet")
    told = json.loads(done.stdout)
    assert (told["added"], told["present"], told["images"], told["windows"]) == ([1], 0, 2, 50)
    again = run("index", ground / "2.npy", "--out", out, "--add")
    assert again.stdout == f"{out}: 1 there already; now 2 images, 50 windows, exact search\n"
    gone = run("index", "--out", out, "--remove", "1.npy", "--remove", 1, "--quiet")
    assert gone.exit_code == 1 and "no image left" in gone.stderr
    gone = run("index", "--out", out, "--remove", "1.npy")
    assert gone.stdout == f"{out}: 1 removed; now 1 images, 25 windows, exact search\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--add", "--remove", "1"],
        ["images.npy", "--remove", "1"],
        ["--remove", "1", "--stride", "8"],
    ],
    ids=" ".join,
)
def test_what_does_not_go_together(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    done = run("index", *arguments)
    assert done.exit_code == 2 and "--remove" in done.stderr and not list(tmp_path.iterdir())


def test_settings_of_another_index_and_no_index(ground, tmp_path):
    out = tmp_path / "index"
    done = run("index", ground / "1.npy", "--out", out, "--add")
    assert done.exit_code == 1 and "no such folder" in done.stderr
    run("index", ground / "1.npy", "--out", out, "--encoder", "structure-tensor", "--stride", "16")
    for flags, reason in (
        (("--stride", "8"), "--stride 16, not 8"),
        (("--encoder", "siamese"), "made with encoder 'structure-tensor'"),
    ):
        done = run("index", ground / "2.npy", "--out", out, "--add", *flags)
        assert done.exit_code == 1 and reason in done.stderr
