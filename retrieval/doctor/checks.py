"""Checks of packages, devices, libraries, threads, memory and disk, and the report of their findings."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distributions, requires, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from retrieval.kernels.executors import cores

PACKAGE = "patch-retrieval"
BACKENDS = ("tensorflow", "jax", "torch")
"""Modules that Keras can compute with."""
RIVALS = (("tensorflow", "tensorflow-cpu"), ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12", "faiss-gpu-cuvs"))
"""Packages that provide the same module; an environment may hold one of each group."""
CUDA = {
    "libcuda.so.1": "the NVIDIA driver",
    "libcudart.so.12": "nvidia-cuda-runtime-cu12",
    "libcublas.so.12": "nvidia-cublas-cu12",
    "libcublasLt.so.12": "nvidia-cublas-cu12",
    "libcufft.so.11": "nvidia-cufft-cu12",
    "libcusolver.so.11": "nvidia-cusolver-cu12",
    "libcusparse.so.12": "nvidia-cusparse-cu12",
    "libcudnn.so.9": "nvidia-cudnn-cu12",
    "libcupti.so.12": "nvidia-cuda-cupti-cu12",
    "libnvJitLink.so.12": "nvidia-nvjitlink-cu12",
}
"""Libraries that TensorFlow 2.21 opens for a GPU, and the package of each; its log does not name them."""
MEMORY_GB, DISK_GB = 4.0, 5.0
"""Needs of the reference job."""
INSTALL = f"run pip install '{PACKAGE}[cpu]', or '[gpu]' on a machine with an NVIDIA GPU"
INSTALL_GPU = f"run pip install '{PACKAGE}[gpu]' in a separate environment"

State = Literal["ok", "note", "broken"]
MARK = {"ok": " ", "note": "!", "broken": "X"}
"""Mark of each state at the start of a line."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    name: str
    """Subject, a word or two."""
    value: str
    """Observation."""
    state: State = "ok"
    """"note": works, but could be better; "broken": a requirement does not work."""
    advice: str = ""
    """Suggested fix, if there is one."""


@dataclass(frozen=True)
class Report:
    """The results of all checks."""

    device: str
    """"auto", "cpu" or "gpu"."""
    findings: tuple[Finding, ...]
    """In the order of the checks."""

    @property
    def broken(self) -> bool:
        """Whether a requirement is broken."""
        return any(finding.state == "broken" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        findings = [asdict(finding) for finding in self.findings]
        return {"device": self.device, "broken": self.broken, "findings": findings}

    def __str__(self) -> str:
        width = max(len(finding.name) for finding in self.findings)
        lines = []
        for finding in self.findings:
            lines.append(f"{MARK[finding.state]} {finding.name:{width}}  {finding.value}")
            if finding.advice:
                lines.append(f"  {'':{width}}  -> {finding.advice}")
        count = sum(bool(finding.advice) for finding in self.findings)
        end = "A requirement is broken, see X." if self.broken else "All requirements work."
        return "\n".join([*lines, "", end + (f" {count} suggestions, see ->." if count else "")])


def run_checks(device: str = "auto") -> list[Finding]:
    """Return the findings of all checks, dependencies first.

    Args:
        device: "auto", "cpu" or "gpu"; GPU packages are required with "gpu" only.
    """
    gpu = nvidia_gpus()
    names = {(d.metadata["Name"] or "").lower().replace("_", "-") for d in distributions()}
    findings = [check_python(), *(check_package(name) for name in package_names(installed_requirements()))]
    findings += [*check_rivals(names), check_backend(), *check_faiss(gpu, device)]
    if device != "cpu":
        findings += [check_driver(gpu, device), *check_tensorflow_gpu(gpu, device)]
    findings += [check_threads(cores(), os.environ), check_memory(*memory_gb())]
    folders = {"working folder": Path.cwd(), "temporary folder": Path(tempfile.gettempdir())}
    return findings + [check_disk(name, path, free_disk_gb(path)) for name, path in folders.items()]


# --- packages ---------------------------------------------------------------------------------------


def installed_requirements() -> list[str]:
    """Return the requirements in the metadata of this package, such as "numpy>=2.0"."""
    try:
        return requires(PACKAGE) or []
    except PackageNotFoundError:
        return [PACKAGE]  # run from a source tree: the check reports it


def package_names(requirements: Iterable[str]) -> list[str]:
    """Return the package names of requirements; requirements of an extra are left out."""
    return [re.split(r"[^\w.-]", line)[0] for line in requirements if "extra ==" not in line]


def check_python(release: tuple[int, int] = sys.version_info[:2]) -> Finding:
    """Check the version of Python."""
    text = f"{platform.python_version()}, {platform.platform()}"
    if (3, 11) <= release <= (3, 13):
        return Finding("python", text)
    return Finding("python", text, "note", "use Python 3.11, 3.12 or 3.13: this release is tested with them")


def check_package(name: str) -> Finding:
    """Check that a required package is installed, without importing it."""
    try:
        return Finding(name, version(name))
    except PackageNotFoundError:
        return Finding(name, "missing", "broken", INSTALL)


def check_rivals(installed: Iterable[str]) -> list[Finding]:
    """Find packages that overwrite each other's files.

    Args:
        installed: lower-case names of the installed packages.
    """
    findings = []
    for group in RIVALS:
        rivals = sorted({*installed} & {*group})
        if len(rivals) > 1:
            advice = f"run pip uninstall {' '.join(rivals)}, then reinstall one of them"
            findings.append(Finding("packages", f"{' and '.join(rivals)} conflict", "broken", advice))
    return findings


def check_backend(import_backend: Callable[[str], ModuleType] = import_module) -> Finding:
    """Check that the backend of Keras can be imported.

    Args:
        import_backend: imports a module by name.
    """
    if find_spec("keras") is None:
        return Finding("backend", "missing, like Keras", "broken", INSTALL)
    available = [name for name in BACKENDS if find_spec(name)]
    try:
        import keras

        name = keras.backend.backend()
        import_backend(name)
    except Exception as error:  # backends fail to import with many kinds of errors
        name = os.environ.get("KERAS_BACKEND", "tensorflow")
        advice = f"set KERAS_BACKEND to an installed one: {', '.join(available)}" if available else INSTALL
        return Finding("backend", f"{name} cannot be imported: {_first_line(error)}", "broken", advice)
    others = "; ".join(f"also {other} {_version(other)}" for other in available if other != name)
    return Finding("backend", f"{name} {_version(name)}" + (f"; {others}" if others else ""))


def _version(module: str) -> str:
    for name in (module, f"{module}-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "(unknown version)"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:150]}" if lines else type(error).__name__


# --- GPU --------------------------------------------------------------------------------------------


def nvidia_gpus() -> str:
    """Return name, memory and driver of the NVIDIA GPUs for people; empty without one."""
    query = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return "; ".join(done.stdout.split("\n")).strip("; ")


def _missing_state(device: str) -> State:
    """Return the state of a missing GPU requirement."""
    return "broken" if device == "gpu" else "note"


def check_driver(gpu: str, device: str) -> Finding:
    """Check that there is an NVIDIA GPU with a driver.

    Args:
        gpu: from `nvidia_gpus`.
        device: "auto", "cpu" or "gpu".
    """
    if gpu:
        return Finding("gpu", gpu)
    if device == "gpu":
        advice = "use a machine with an NVIDIA GPU and driver (nvidia-smi must work), or --device cpu"
        return Finding("gpu", "none: nvidia-smi finds no GPU", "broken", advice)
    return Finding("gpu", "none: the CPU computes everything")


def check_faiss(gpu: str, device: str) -> list[Finding]:
    """Check that FAISS can be imported, and whether it sees a GPU; arguments as for `check_driver`."""
    try:
        import faiss
    except Exception as error:  # a missing system library raises ImportError, a broken one other errors
        return [Finding("faiss", f"cannot be imported: {_first_line(error)}", "broken", INSTALL)]
    findings = [Finding("faiss", f"{faiss.__version__}, {' '.join(faiss.get_compile_options().split())}")]
    has_code = hasattr(faiss, "StandardGpuResources")
    count = faiss.get_num_gpus() if has_code else 0
    if device == "cpu" or not (count or gpu or device == "gpu"):
        return findings
    if count:
        return [*findings, Finding("faiss on gpu", f"{count} GPUs")]
    value = "no GPU is visible to FAISS" if has_code else "this FAISS has no GPU code"
    advice = "check CUDA_VISIBLE_DEVICES and the libraries below" if has_code else INSTALL_GPU
    return [*findings, Finding("faiss on gpu", value, _missing_state(device), advice)]


def check_tensorflow_gpu(gpu: str, device: str) -> list[Finding]:
    """Check TensorFlow's GPUs and name missing CUDA libraries; arguments as for `check_driver`."""
    if find_spec("tensorflow") is None or not (gpu or device == "gpu"):
        return []
    import tensorflow as tf

    if not tf.sysconfig.get_build_info().get("is_cuda_build"):
        value = "this TensorFlow has no GPU code"
        return [Finding("tensorflow on gpu", value, _missing_state(device), INSTALL_GPU)]
    count, missing = len(tf.config.list_physical_devices("GPU")), missing_libraries()
    state: State = "note" if count else _missing_state(device)
    findings = [
        Finding("library", f"{name} is missing", state, f"install {package}")
        for name, package in missing.items()
    ]
    if count:
        return [Finding("tensorflow on gpu", f"{count} GPUs"), *findings]
    advice = "install the missing libraries below" if missing else "check CUDA_VISIBLE_DEVICES"
    return [Finding("tensorflow on gpu", "no GPU is visible to TensorFlow", state, advice), *findings]


def missing_libraries(open_library: Callable[[str], Any] = ctypes.CDLL) -> dict[str, str]:
    """Return the CUDA libraries that cannot be opened, and the package of each.

    Args:
        open_library: opens a library by name or path, or raises OSError.
    """
    folders = [Path(p) / "nvidia" for p in sys.path if (Path(p) / "nvidia").is_dir()]
    missing = {}
    for name, package in CUDA.items():
        # TensorFlow also finds libraries that pip installed next to it; the system's search does not.
        places = [name, *(str(p) for folder in folders for p in folder.glob(f"*/lib/{name}"))]
        if not any(_opens(place, open_library) for place in places):
            missing[name] = package
    return missing


def _opens(place: str, open_library: Callable[[str], Any]) -> bool:
    try:
        open_library(place)
    except OSError:
        return False
    return True


# --- machine ----------------------------------------------------------------------------------------


def check_threads(count: int, environment: Mapping[str, str]) -> Finding:
    """Check the variables that set the number of threads.

    Args:
        count: number of cores.
        environment: variables by name.
    """
    names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    given = {name: environment[name] for name in names if name in environment}
    text = f"{count} cores" + "".join(f", {name}={value}" for name, value in given.items())
    unfit = [name for name, value in given.items() if value.isdecimal() and not 1 <= int(value) <= count]
    if unfit:
        return Finding("threads", text, "note", f"unset {', '.join(unfit)}: one thread per core is fastest")
    return Finding("threads", text)


def memory_gb() -> tuple[float, float]:
    """Return total and free memory in GB; NaN where the system does not report it."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        values = {line.split(":")[0]: int(line.split()[1]) / 1e6 for line in lines}
        return values["MemTotal"], values["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):
        return float("nan"), float("nan")


def check_memory(total_gb: float, free_gb: float) -> Finding:
    """Check that the reference job fits into memory; arguments from `memory_gb`."""
    text = f"{total_gb:.1f} GB, {free_gb:.1f} GB free" if total_gb == total_gb else "unknown on this system"
    if free_gb < MEMORY_GB:
        advice = f"close other programs or index less: the reference job needs {MEMORY_GB:g} GB"
        return Finding("memory", text, "note", advice)
    return Finding("memory", text)


def free_disk_gb(folder: Path) -> float:
    """Return the free space of a folder's disk in GB."""
    return shutil.disk_usage(folder).free / 1e9


def check_disk(name: str, folder: Path, free_gb: float) -> Finding:
    """Check that an index of the reference job fits into a folder."""
    text = f"{free_gb:.1f} GB free in {folder}"
    if free_gb < DISK_GB:
        return Finding(name, text, "note", f"an index of the reference job needs {DISK_GB:g} GB")
    return Finding(name, text)
