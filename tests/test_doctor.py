"""The doctor names what is missing, says what to do, and never falls ill itself."""

import json
import sys
from importlib.util import find_spec

import pytest
from typer.testing import CliRunner

import retrieval.doctor as doctor
import retrieval.doctor.installed as look_room
import retrieval.doctor.trial as trial_room
from retrieval.cli import app
from retrieval.doctor import Finding, Report, examine, look, try_out


def states(findings):
    return {f.name: f.state for f in findings}


def run(*arguments):
    return CliRunner().invoke(app, ["doctor", *arguments], prog_name="retrieve")


def without(module):
    return lambda name: None if name == module else find_spec(name)


def test_a_whole_installation_works(capsys):
    report = examine("cpu")
    assert not report.broken, str(report)
    assert {f.name for f in report.findings} >= {"python", "numpy", "backend", "faiss", "memory", "trial"}
    trial = report.findings[-1]
    assert "patches of another day found on the CPU" in trial.value
    for stage in ("generate", "embed and index", "embed patches", "search and refine"):
        assert stage in trial.value
    assert "all that is needed works" in str(report)


@pytest.mark.parametrize("module", ["numpy", "rasterio", "pyarrow"])
def test_a_missing_module_is_named_with_what_installs_it(monkeypatch, module):
    monkeypatch.setattr(look_room, "find_spec", without(module))
    report = examine("cpu")
    found = next(f for f in report.findings if f.name == module)
    assert (found.value, found.state) == ("missing", "broken") and "pip install" in found.advice
    assert report.broken and "left out" in report.findings[-1].value


def test_no_faiss(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    found = next(f for f in look("cpu") if f.name == "faiss")
    assert found.state == "broken" and "ModuleNotFoundError" in found.value and "[cpu]" in found.advice


def test_a_backend_that_does_not_open(monkeypatch):
    def broken(name):
        raise ImportError(f"lib{name}.so: cannot open shared object file\nand more")

    monkeypatch.setattr(look_room, "import_module", broken)
    found = next(f for f in look("cpu") if f.name == "backend")
    assert found.state == "broken" and "cannot open shared object" in found.value
    assert "and more" not in found.value and "KERAS_BACKEND" in found.advice


class Package:
    def __init__(self, name):
        self.metadata = {"Name": name}


def test_packages_that_own_the_same_module(monkeypatch):
    names = ("numpy", "tensorflow", "tensorflow_cpu", "faiss-cpu")
    monkeypatch.setattr(look_room, "distributions", lambda: [Package(n) for n in names])
    found = next(f for f in look("cpu") if f.name == "packages")
    assert found.state == "broken" and "tensorflow and tensorflow-cpu" in found.value


@pytest.mark.parametrize(("device", "state"), [("gpu", "broken"), ("auto", "note")])
def test_a_gpu_without_the_packages_for_it(monkeypatch, device, state):
    if look_room._nvidia():
        pytest.skip("this machine has a GPU")
    monkeypatch.setattr(look_room, "_nvidia", lambda: "NVIDIA H200, 143771 MiB, 570.1")
    found = look(device)
    assert states(found)["gpu"] == "ok" and states(found)["faiss on gpu"] == state
    assert "patch-retrieval[gpu]" in next(f for f in found if f.name == "tensorflow on gpu").advice
    assert not any(f.name.endswith("on gpu") for f in look("cpu"))


def test_libraries_that_are_missing_are_named(tmp_path, monkeypatch):
    folder = tmp_path / "nvidia/cudnn/lib"
    folder.mkdir(parents=True)
    (folder / "libcudnn.so.9").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])

    def opens(place):  # the driver and cuDNN, which pip brought, are there
        if place != "libcuda.so.1" and not place.endswith("/libcudnn.so.9"):
            raise OSError(f"{place}: cannot open shared object file")

    missing = look_room.missing_libraries(opens)
    assert set(missing) == set(look_room.CUDA) - {"libcuda.so.1", "libcudnn.so.9"}
    assert missing["libcusolver.so.11"] == "nvidia-cusolver-cu12"


def test_little_memory_little_room_and_too_many_threads_are_noted(monkeypatch):
    monkeypatch.setattr(look_room, "memory_gb", lambda: (8.0, 1.5))
    monkeypatch.setattr(look_room, "DISK_GB", 1e9)
    monkeypatch.setenv("OMP_NUM_THREADS", "999")
    found = look("cpu")
    assert [states(found)[n] for n in ("memory", "disk here", "threads")] == ["note"] * 3
    assert not Report("cpu", tuple(found)).broken
    monkeypatch.setattr(look_room, "memory_gb", lambda: (float("nan"), float("nan")))
    assert next(f for f in look("cpu") if f.name == "memory").value == "not known on this system"


def test_a_trial_that_fails_says_where(monkeypatch):
    def broken(*_):
        raise RuntimeError("cuBLAS fell over\nand more")

    monkeypatch.setattr("retrieval.matching.rounds.find", broken)
    (found,) = try_out("cpu")
    assert found.state == "broken"
    assert "after generate" in found.value and found.value.endswith("cuBLAS fell over")


def test_wrong_answers_are_broken(monkeypatch):
    monkeypatch.setattr(trial_room, "_job", lambda device, stages: 0.5)
    (found,) = try_out("cpu")
    assert found.state == "broken" and "50%" in found.value


def test_the_command(monkeypatch):
    done = run("--device", "cpu", "--no-trial")
    assert done.exit_code == 0 and "faiss" in done.stdout and "trial" not in done.stdout
    told = json.loads(run("--device", "cpu", "--no-trial", "--json").stdout)
    assert told["broken"] is False and told["device"] == "cpu"
    assert set(told["findings"][0]) == {"name", "value", "state", "advice"}
    monkeypatch.setattr(doctor, "look", lambda device: [Finding("x", "gone", "broken", "mend it")])
    done = run()
    assert done.exit_code == 1 and "X x" in done.stdout and "-> mend it" in done.stdout
