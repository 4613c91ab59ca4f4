"""The doctor names broken requirements and their fix, and raises for none of them."""

import json
import sys

import pytest
from typer.testing import CliRunner

from retrieval.cli import app
from retrieval.doctor import Finding, Report, checks, examine, run_checks, run_trial


def run(*arguments):
    return CliRunner().invoke(app, ["doctor", *arguments], prog_name="retrieve")


def test_a_complete_installation_works():
    report = examine("cpu")
    assert not report.broken, str(report)
    assert {f.name for f in report.findings} >= {"python", "numpy", "backend", "faiss", "memory", "trial"}
    trial = report.findings[-1]
    assert "patches of another day found on the CPU" in trial.value
    for stage in ("generate", "embed and index", "embed patches", "search and refine"):
        assert stage in trial.value
    assert "All requirements work." in str(report)


def test_every_package_of_the_metadata_is_checked():
    requirements = ["numpy>=2.0", "keras<4,>=3.15", "Pillow", 'onnx>=1.17; extra == "onnx"']
    assert checks.package_names(requirements) == ["numpy", "keras", "Pillow"]
    required = checks.package_names(checks.installed_requirements())
    assert {"numpy", "shapely", "pillow"} <= set(required) <= {f.name for f in run_checks("cpu")}


def test_a_missing_package_is_named_with_its_fix():
    finding = checks.check_package("no-such-package")
    assert (finding.value, finding.state) == ("missing", "broken") and "pip install" in finding.advice


def test_the_trial_is_skipped_where_a_requirement_is_broken():
    report = examine("cpu", checks=lambda device: [Finding("numpy", "missing", "broken", "install it")])
    assert report.broken and "skipped" in report.findings[-1].value
    assert "X numpy" in str(report) and "-> install it" in str(report)


def test_a_missing_faiss_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    (finding,) = checks.check_faiss("", "cpu")
    assert finding.state == "broken" and "ModuleNotFoundError" in finding.value and "[cpu]" in finding.advice


def test_a_backend_that_cannot_be_imported_is_named():
    def broken(name):
        raise ImportError(f"lib{name}.so: cannot open shared object file\nand more")

    finding = checks.check_backend(broken)
    assert finding.state == "broken" and "cannot open shared object" in finding.value
    assert "and more" not in finding.value and "KERAS_BACKEND" in finding.advice


def test_packages_that_provide_the_same_module_are_named():
    (finding,) = checks.check_rivals(["numpy", "tensorflow", "tensorflow-cpu", "faiss-cpu"])
    assert finding.state == "broken" and "tensorflow and tensorflow-cpu" in finding.value
    assert checks.check_rivals(["numpy", "tensorflow-cpu", "faiss-cpu"]) == []


@pytest.mark.parametrize(("device", "state"), [("gpu", "broken"), ("auto", "note")])
def test_a_gpu_without_its_packages_is_noted(device, state):
    if checks.nvidia_gpus():
        pytest.skip("this machine has a GPU")
    gpu = "NVIDIA H200, 143771 MiB, 570.1"
    assert checks.check_driver(gpu, device).state == "ok"
    assert checks.check_faiss(gpu, device)[1].state == state
    (finding,) = checks.check_tensorflow_gpu(gpu, device)
    assert finding.state == state and "patch-retrieval[gpu]" in finding.advice
    assert len(checks.check_faiss(gpu, "cpu")) == 1


def test_missing_cuda_libraries_are_named(tmp_path, monkeypatch):
    folder = tmp_path / "nvidia/cudnn/lib"
    folder.mkdir(parents=True)
    (folder / "libcudnn.so.9").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])

    def open_library(place):  # the driver, and cuDNN from pip, exist
        if place != "libcuda.so.1" and not place.endswith("/libcudnn.so.9"):
            raise OSError(f"{place}: cannot open shared object file")

    missing = checks.missing_libraries(open_library)
    assert set(missing) == set(checks.CUDA) - {"libcuda.so.1", "libcudnn.so.9"}
    assert missing["libcusolver.so.11"] == "nvidia-cusolver-cu12"


def test_little_memory_little_disk_and_too_many_threads_are_notes(tmp_path):
    findings = [
        checks.check_memory(8.0, 1.5),
        checks.check_disk("working folder", tmp_path, 0.5),
        checks.check_threads(2, {"OMP_NUM_THREADS": "999"}),
    ]
    assert [f.state for f in findings] == ["note"] * 3 and all(f.advice for f in findings)
    assert not Report("cpu", tuple(findings)).broken
    assert checks.check_memory(float("nan"), float("nan")) == Finding("memory", "unknown on this system")
    assert checks.check_memory(8.0, 6.0).state == checks.check_disk("here", tmp_path, 9.0).state == "ok"
    assert checks.check_threads(2, {"OMP_NUM_THREADS": "2"}).state == "ok"


def test_a_trial_that_fails_names_its_last_stage():
    def broken(device, stages):
        stages["generate"] = 0.1
        raise RuntimeError("cuBLAS failed\nand more")

    finding = run_trial("cpu", broken)
    assert finding.state == "broken"
    assert "after generate" in finding.value and finding.value.endswith("cuBLAS failed")


def test_wrong_positions_are_a_broken_requirement():
    finding = run_trial("cpu", lambda device, stages: 0.5)
    assert finding.state == "broken" and "50%" in finding.value


def test_the_command_prints_lines_or_json():
    done = run("--device", "cpu", "--no-trial")
    assert done.exit_code == 0 and "faiss" in done.stdout and "trial" not in done.stdout
    report = json.loads(run("--device", "cpu", "--no-trial", "--json").stdout)
    assert report["broken"] is False and report["device"] == "cpu"
    assert set(report["findings"][0]) == {"name", "value", "state", "advice"}


def test_the_command_exits_1_where_a_requirement_is_broken():
    if checks.nvidia_gpus():
        pytest.skip("this machine has a GPU")
    done = run("--device", "gpu")
    assert done.exit_code == 1 and "X gpu" in done.stdout and "->" in done.stdout
