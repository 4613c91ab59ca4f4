"""The short form of `benchmarks/mutations.py`: damaged files of every kind are read or refused by name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("geopandas", reason="needs the extra `labels`")

from retrieval.config.settings import read_settings
from retrieval.errors import ConfigError, LabelsError
from retrieval.labels.classes import Classes
from retrieval.labels.covers import read_cover
from retrieval.labels.masks import read_mask, write_png
from retrieval.labels.selection import subset
from retrieval.training.recipes import read_recipe
from tfrecords.errors import parse_json

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

from guided import PARSERS, Outcomes  # noqa: E402


@pytest.mark.parametrize("name", PARSERS)
def test_a_parser_reads_its_valid_inputs_and_names_what_is_damaged(tmp_path, name):
    for folder in ("made", "work"):
        (tmp_path / folder).mkdir()
    valid = PARSERS[name].seeds(tmp_path / "made")
    outcomes = Outcomes(PARSERS[name].reader(tmp_path / "work"), tmp_path / "report.json")
    for content in valid:
        outcomes.attempt(content)
    assert outcomes.seen == {"read": len(valid)} and valid
    for content in valid:
        for end in (0, 1, len(content) // 2, len(content) - 1):
            outcomes.attempt(content[:end])
    assert outcomes.faults == {} and sum(outcomes.seen.values()) == 5 * len(valid)


def test_a_fault_of_a_parser_is_kept_with_its_place_and_bytes(tmp_path):
    outcomes = Outcomes(lambda data: data[4], tmp_path / "report.json")
    for data in (b"short", b"is", b"no", b"longer"):
        outcomes.attempt(data)
    ((what, text),) = json.loads((tmp_path / "report.json").read_text())["faults"].items()
    assert what.startswith("IndexError at ") and "test_faults_files.py" in what and "b'is'" in text
    assert outcomes.seen == {"read": 2, "faulty": 2}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
def test_no_damaged_file_gives_another_error_than_ours(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "mutations.py"), "--count", "14", "--seed", "3"]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, "--json", "counts.json"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kinds = json.loads((tmp_path / "counts.json").read_text())["kinds"]
    assert len(kinds) >= 20
    for name, of in kinds.items():
        assert of["faults"] == [], name
        assert of["mutations"] == 14 == sum(of.get(k, 0) for k in ("read", "refused", "unchanged")), name


KILLING = """
import json, os, signal, sys
from pathlib import Path
from mutations import Kind, in_children

content = b"ten bytes."

def make(folder):
    (folder / "file").write_bytes(content)
    return folder / "file"

def read(folder):
    if len((folder / "file").read_bytes()) < len(content):
        os.kill(os.getpid(), signal.SIGKILL)

print(json.dumps(in_children(Kind(make, read), 30, 0, Path("kind"))))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
def test_the_campaign_continues_behind_a_mutation_that_kills_its_process(tmp_path):
    paths = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths}
    command = [sys.executable, "-c", KILLING]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    outcome = json.loads(done.stdout)
    assert outcome["mutations"] == 30
    assert 3 < len(outcome["faults"]) < 20
    assert all("ended with 9" in fault for fault in outcome["faults"])
    assert outcome["read"] + outcome.get("unchanged", 0) + len(outcome["faults"]) == 30


def test_a_cut_mask_is_refused_and_not_decoded_into_noise(tmp_path, rng):
    write_png(tmp_path / "m.png", rng.integers(0, 3, (40, 50)).astype("uint8"), Classes(("a", "b", "c")))
    content = (tmp_path / "m.png").read_bytes()
    for share in (0.2, 0.5, 0.8, 0.95):
        (tmp_path / "m.png").write_bytes(content[: int(len(content) * share)])
        with pytest.raises(LabelsError, match="truncated or damaged"):
            read_mask(tmp_path / "m.png")


def test_lists_of_tiles_in_another_encoding_are_refused(tmp_path):
    cover = tmp_path / "cover.csv"
    cover.write_bytes("z,x,y,split\n12,2100,1500,tr\u00e4in\n".encode("latin-1"))
    for job in (lambda: read_cover(cover), lambda: subset(tmp_path, cover, tmp_path / "out")):
        with pytest.raises(LabelsError, match="not a CSV"):
            job()


def test_json_that_nests_too_deeply_is_damage_like_any_other(tmp_path):
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 100_000)
    for text in ("[" * 100_000, b"[" * 100_000):
        with pytest.raises(ValueError, match="nests too deeply"):
            parse_json(text)
    with pytest.raises(ConfigError, match="is no JSON"):
        read_recipe(deep)
    (tmp_path / "deep.toml").write_text("a = " + "[" * 100_000)
    with pytest.raises(ConfigError, match="is no TOML"):
        read_settings(tmp_path / "deep.toml")
