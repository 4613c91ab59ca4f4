"""Versions, devices, libraries, threads, memory and disk: looked at, nothing done."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from retrieval.doctor.report import Finding
from retrieval.kernels.executors import cores

NEEDED = ("numpy", "numba", "keras", "pandas", "pyarrow", "rasterio", "typer", "matplotlib")
"""Modules that every installation has."""
BACKENDS = ("tensorflow", "jax", "torch")
"""Modules that Keras can compute with."""
RIVALS = (("tensorflow", "tensorflow-cpu"), ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu12", "faiss-gpu-cuvs"))
"""Packages that own the same module: one of each at most."""
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
"""What TensorFlow 2.21 opens for a GPU, and what brings it; itself it says only that some are missing."""
MEMORY_GB, DISK_GB = 4.0, 5.0
"""What the reference job takes."""
INSTALL = "pip install 'patch-retrieval[cpu]', or '[gpu]' on a machine with an NVIDIA GPU"


def look(device: str = "auto") -> list[Finding]:
    """All findings, in the order in which they depend on each other.

    Args:
        device: "auto", "cpu" or "gpu"; what only a GPU needs is broken with "gpu" alone, else a note.
    """
    gpu = _nvidia()
    found = [_python(), *(_module(name) for name in NEEDED), *_rivals(), _backend(), *_faiss(gpu, device)]
    if device != "cpu":
        found += [_driver(gpu, device), *_tensorflow_gpu(gpu, device)]
    return [*found, _threads(), _memory(), *_disks()]


# --- packages ---------------------------------------------------------------------------------------


def _python() -> Finding:
    text = f"{platform.python_version()}, {platform.platform()}"
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Finding("python", text)
    return Finding("python", text, "note", "3.11, 3.12 and 3.13 are what this release is tested with")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of an unknown version"


def _module(name: str) -> Finding:
    """Whether a module that is needed is there; it is not imported."""
    if find_spec(name) is None:
        return Finding(name, "missing", "broken", f"install it: {INSTALL}")
    return Finding(name, _version(name))


def _rivals() -> list[Finding]:
    """Packages that overwrite each other's files."""
    installed = {(d.metadata["Name"] or "").lower().replace("_", "-") for d in distributions()}
    found = []
    for group in RIVALS:
        several = sorted(installed & set(group))
        if len(several) > 1:
            advice = f"pip uninstall {' '.join(several)}, then install one of them again"
            found.append(Finding("packages", f"{' and '.join(several)} own one module", "broken", advice))
    return found


def _backend() -> Finding:
    """What Keras computes with."""
    if find_spec("keras") is None:
        return Finding("backend", "none without keras", "broken", INSTALL)
    there = [name for name in BACKENDS if find_spec(name)]
    try:
        import keras

        name = keras.backend.backend()
        import_module(name)
    except Exception as error:  # an import of a backend fails in ways of its own
        asked = os.environ.get("KERAS_BACKEND", "tensorflow")
        advice = INSTALL if not there else f"set KERAS_BACKEND to one that is installed: {', '.join(there)}"
        return Finding("backend", f"{asked} does not open: {_short(error)}", "broken", advice)
    package = "tensorflow-cpu" if name == "tensorflow" and not _has("tensorflow") else name
    others = [f"{n} {_version(n)}" for n in there if n != name]
    return Finding(
        "backend", f"{name} {_version(package)}" + (f"; also {', '.join(others)}" if others else "")
    )


def _has(package: str) -> bool:
    return any((d.metadata["Name"] or "").lower() == package for d in distributions())


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:150]}" if lines else type(error).__name__


# --- a GPU ------------------------------------------------------------------------------------------


def _nvidia() -> str:
    """What the NVIDIA driver says of its GPUs; empty without one."""
    ask = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    try:
        done = subprocess.run(ask, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return "; ".join(done.stdout.split("\n")).strip("; ")


def _missed(device: str) -> Any:
    """State of what only a GPU needs."""
    return "broken" if device == "gpu" else "note"


def _driver(gpu: str, device: str) -> Finding:
    if gpu:
        return Finding("gpu", gpu)
    if device == "gpu":
        advice = "run on a machine with an NVIDIA GPU and its driver (nvidia-smi must work), or --device cpu"
        return Finding("gpu", "none: nvidia-smi finds none", "broken", advice)
    return Finding("gpu", "none: all is computed on the CPU")


def _faiss(gpu: str, device: str) -> list[Finding]:
    """FAISS, and whether it has GPU code and sees a GPU."""
    try:
        import faiss
    except Exception as error:  # a missing library of the system is an ImportError, a broken one is not
        return [Finding("faiss", f"does not open: {_short(error)}", "broken", f"install it: {INSTALL}")]
    options = " ".join(faiss.get_compile_options().split())
    found = [Finding("faiss", f"{faiss.__version__}, {options}")]
    if device == "cpu":
        return found
    code = hasattr(faiss, "StandardGpuResources")
    count = faiss.get_num_gpus() if code else 0
    if count:
        return [*found, Finding("faiss on gpu", f"{count} GPUs")]
    if not gpu and device == "auto":
        return found
    what = "no GPU is visible to it" if code else "this FAISS has no GPU code"
    advice = (
        "look at CUDA_VISIBLE_DEVICES, and at the libraries below"
        if code
        else "in an environment of its own: pip install 'patch-retrieval[gpu]'"
    )
    return [*found, Finding("faiss on gpu", what, _missed(device), advice)]


def _tensorflow_gpu(gpu: str, device: str) -> list[Finding]:
    """TensorFlow's GPUs, and the libraries by name that it could not open."""
    if find_spec("tensorflow") is None or not (gpu or device == "gpu"):
        return []
    import tensorflow as tf

    if not tf.sysconfig.get_build_info().get("is_cuda_build"):
        advice = "in an environment of its own: pip install 'patch-retrieval[gpu]'"
        return [Finding("tensorflow on gpu", "this TensorFlow has no GPU code", _missed(device), advice)]
    seen = tf.config.list_physical_devices("GPU")
    missing = missing_libraries()
    found = [
        Finding(
            "library", f"{name} is missing", "note" if seen else _missed(device), f"it comes with {package}"
        )
        for name, package in missing.items()
    ]
    if seen:
        return [Finding("tensorflow on gpu", f"{len(seen)} GPUs"), *found]
    advice = "install what is missing, see below" if missing else "look at CUDA_VISIBLE_DEVICES"
    return [Finding("tensorflow on gpu", "no GPU is visible to it", _missed(device), advice), *found]


def missing_libraries(opens: Callable[[str], Any] = ctypes.CDLL) -> dict[str, str]:
    """Names of CUDA's libraries that do not open, and what brings them.

    Args:
        opens: opens a library by name or path, or raises OSError.
    """
    folders = [Path(p) / "nvidia" for p in sys.path if (Path(p) / "nvidia").is_dir()]
    missing = {}
    for name, package in CUDA.items():
        # TensorFlow finds those that pip installed beside it, where the system's search does not.
        places = [name, *(str(p) for folder in folders for p in folder.glob(f"*/lib/{name}"))]
        if not any(_opens(place, opens) for place in places):
            missing[name] = package
    return missing


def _opens(place: str, opens: Callable[[str], Any]) -> bool:
    try:
        opens(place)
    except OSError:
        return False
    return True


# --- the machine ------------------------------------------------------------------------------------


def _threads() -> Finding:
    count = cores()
    names = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    set_to = {name: os.environ[name] for name in names if name in os.environ}
    text = f"{count} cores" + "".join(f", {name}={value}" for name, value in set_to.items())
    unfit = [n for n, v in set_to.items() if v.isdecimal() and not 1 <= int(v) <= count]
    if unfit:
        return Finding(
            "threads", text, "note", f"unset {', '.join(unfit)}: as many threads as cores are best"
        )
    return Finding("threads", text)


def memory_gb() -> tuple[float, float]:
    """Memory that is there and that is free, in GB; NaN where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        read = {line.split(":")[0]: int(line.split()[1]) / 1e6 for line in lines}
        return read["MemTotal"], read["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):
        return float("nan"), float("nan")


def _memory() -> Finding:
    total, free = memory_gb()
    text = f"{total:.1f} GB, {free:.1f} GB of it free" if total == total else "not known on this system"
    if free < MEMORY_GB:
        return Finding(
            "memory",
            text,
            "note",
            f"the reference job takes {MEMORY_GB:g} GB: close something, or index less",
        )
    return Finding("memory", text)


def _disks() -> list[Finding]:
    """Room where outputs go and where temporary files go."""
    found = []
    for name, place in (("disk here", Path.cwd()), ("disk for temporary files", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(place).free / 1e9
        text, advice = f"{free:.1f} GB free in {place}", f"an index of the reference job takes {DISK_GB:g} GB"
        found.append(Finding(name, text, "note", advice) if free < DISK_GB else Finding(name, text))
    return found
