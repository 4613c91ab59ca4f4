"""The short form of the campaign of faults: `benchmarks/faults.py` with few kills, readers and writers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
def test_no_fault_gives_a_wrong_or_lost_output(tmp_path):
    campaign = ("--kills", "4", "--rounds", "4", "--readers", "2", "--seed", "5")
    command = [sys.executable, str(ROOT / "benchmarks" / "faults.py"), *campaign, "--json", "counts.json"]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert set(counts["kills"]) == {"index", "add", "remove", "query"}
    for name, of_command in counts["kills"].items():
        assert of_command["faults"] == [], name
        assert of_command["former"] + of_command["new"] == 1, name
    seen, written = counts["readers"], counts["writers"]
    assert seen.pop("whole") > 0 and seen.pop("changes") == 4
    assert set(seen) <= {"refused: IndexMismatchError"}
    assert written.pop("added") > 0 and written.pop("leftovers") == 0
    assert set(written) <= {"refused: IndexMismatchError", "refused: UnfinishedOutputError"}
