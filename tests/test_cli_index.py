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


def test_add_and_remove_change_an_index(ground, tmp_path):
    out = tmp_path / "index"
    settings = ("--encoder", "structure-tensor", "--stride", "16")
    assert run("index", ground / "1.npy", "--out", out, *settings).exit_code == 0
    done = run("index", ground / "2.npy", "--out", out, "--add", "--json", "--quiet")
    result = json.loads(done.stdout)
    assert (result["added"], result["present"], result["images"], result["windows"]) == ([1], 0, 2, 50)
    again = run("index", ground / "2.npy", "--out", out, "--add")
    assert again.stdout == f"{out}: 1 already present; now 2 images, 50 windows, exact search\n"
    done = run("index", "--out", out, "--remove", "1.npy", "--remove", 1, "--quiet")
    assert done.exit_code == 1 and "no image left" in done.stderr
    done = run("index", "--out", out, "--remove", "1.npy")
    assert done.stdout == f"{out}: 1 removed; now 1 images, 25 windows, exact search\n"


def test_replaced_and_outdated_entries_are_named(tmp_path, write_tif, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scenes = [Scene(seed, 128, 128).render(150) for seed in range(4)]
    for number in range(3):
        write_tif(f"scenes/{number}.tif", scenes[number])
    assert run("index", "scenes", "--encoder", "structure-tensor", "--stride", "16").exit_code == 0
    for number in (0, 2):
        write_tif(f"scenes/{number}.tif", scenes[number][::-1])
    write_tif("scenes/3.tif", scenes[3])
    done = run("index", tmp_path / "scenes", "--add")
    counts = "1 added (ids 3), 2 replaced (ids 0, 2), 1 already present; now 4 images, 100 windows"
    assert done.stdout == f"index: {counts}, exact search\n"
    result = json.loads(run("index", tmp_path / "scenes", "--add", "--json", "--quiet").stdout)
    assert [result[k] for k in ("added", "replaced", "outdated", "present")] == [[], [], [], 4]
    np.save("rows.npy", np.stack(scenes[:3]))
    assert run("index", "rows.npy", "--add").stdout.startswith("index: 3 added (ids 4 to 6);")
    np.save("rows.npy", scenes[0][None])
    assert "ids 5 to 6: their file no longer holds them" in run("index", "rows.npy", "--add").stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--add", "--remove", "1"],
        ["images.npy", "--remove", "1"],
        ["--remove", "1", "--stride", "8"],
        ["--remove", "1", "--overwrite"],
        ["--add", "--overwrite"],
        ["--restart"],
    ],
    ids=" ".join,
)
def test_flags_that_exclude_each_other_are_refused(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    done = run("index", *arguments)
    assert done.exit_code == 2 and "--remove" in done.stderr and not list(tmp_path.iterdir())


def test_an_unfinished_change_needs_restart_for_another_one(ground, tmp_path, monkeypatch):
    out = tmp_path / "index"
    run("index", ground / "1.npy", "--out", out, "--encoder", "structure-tensor", "--stride", "16")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("retrieval.index.faiss_index.VectorIndex.build", interrupted)
        done = run("index", ground / "2.npy", "--out", out, "--add")
        assert done.exit_code == 130 and "to resume" in done.stderr
    np.save(tmp_path / "3.npy", Scene(3, 128, 128).render(150)[None])
    done = run("index", tmp_path / "3.npy", "--out", out, "--add")
    assert done.exit_code == 1 and "--restart" in done.stderr and "--overwrite" not in done.stderr
    done = run("index", tmp_path / "3.npy", "--out", out, "--add", "--restart", "--json", "--quiet")
    assert done.exit_code == 0 and json.loads(done.stdout)["images"] == 2


def test_add_refuses_other_settings_and_a_missing_index(ground, tmp_path):
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
