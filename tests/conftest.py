"""What all tests share: no network, the same chance in every run, and small files to order."""

import os
import socket
from pathlib import Path

from cores import share_cores

# Before anything imports TensorFlow: its notes on instruction sets are not ours to read.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("MPLBACKEND", "Agg")
if "PYTEST_XDIST_WORKER" in os.environ:
    share_cores()

import numpy as np
import pytest
from browsing import opened
from hypothesis import HealthCheck, settings

# No deadline: the first call of a function may import TensorFlow. The same examples in every run.
settings.register_profile(
    "house",
    derandomize=True,
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("house")

LONG_FILES = (
    *(
        "test_frozen_answers",
        "test_pipeline_accuracy_floor",
        "test_tasks_segment_floor",
        "test_tasks_eurosat",
    ),
    *("test_faults", "test_open_files", "test_notebook", "test_distributed_same_answers", "test_readme"),
    *("test_distributed_flags", "test_covered", "test_training_verifier", "test_training_encoder"),
    *("test_tasks_change_training", "test_tasks_segment_training", "test_training_representation"),
)
"""Files that take longest. A worker that begins one at the end leaves the others idle."""


def pytest_collection_modifyitems(items):
    """Let the longest files begin, for the scheduler of workers."""
    order = {name: number for number, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


LOOPBACK = ("127.0.0.1", "::1", "localhost")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A test that reaches for another machine fails at once; clusters on this one may talk."""
    connect = socket.socket.connect

    def guarded(self, address):
        if isinstance(address, tuple) and address[0] not in LOOPBACK:
            raise RuntimeError(f"a test tried to connect to {address}: tests run without a network")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def seeded():
    """Whatever draws from NumPy's global chance draws the same in every run."""
    np.random.seed(0)  # noqa: NPY002 - third parties' code uses it


@pytest.fixture
def rng():
    """A generator that gives the same in every run."""
    return np.random.default_rng(20240229)


@pytest.fixture
def write_tif(tmp_path):
    """A function that writes a GeoTIFF and returns its path."""

    def write(
        name,
        pixels,
        *,
        descriptions=None,
        nodata=None,
        crs=None,
        transform=None,
        folder: Path = tmp_path,
        **options,
    ):
        import warnings

        import rasterio
        from rasterio.errors import NotGeoreferencedWarning

        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width, count = pixels.shape
        profile = {
            "driver": "GTiff",
            "height": height,
            "width": width,
            "count": count,
            "dtype": pixels.dtype,
            "nodata": nodata,
            "crs": crs,
        }
        if transform is not None:
            profile["transform"] = rasterio.Affine(*transform)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path, "w", **profile, **options) as dataset:
                dataset.write(np.moveaxis(pixels, -1, 0))
                for number, text in enumerate(descriptions or (), start=1):
                    dataset.set_band_description(number, text)
        return path

    return write


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless browser."""
    with opened(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def look(browser, page):
    """A function that opens the page: (width, height, preferences of the reader)."""

    def open_(width=1280, height=900, **prefers):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        wishes = [{"name": name.replace("_", "-"), "value": value} for name, value in prefers.items()]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": wishes})
        browser.get(page.as_uri())
        return browser

    yield open_
    assert [line for line in browser.get_log("browser") if line["level"] in ("SEVERE", "WARNING")] == []


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The working folder: empty."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def files(tmp_path):
    """A server of files on the loopback."""
    from rangeserver import serving

    (tmp_path / "files").mkdir()
    with serving(tmp_path / "files") as server:
        yield server


@pytest.fixture
def catalogue():
    """A STAC catalogue on the loopback."""
    from stac_server import cataloguing

    with cataloguing() as server:
        yield server


@pytest.fixture
def tiles(files, catalogue):
    """The catalogue's two tiles, whose files the server offers."""
    from stac_ground import Tiles

    made = Tiles(files.folder, files.url)
    catalogue.items = made.items
    return made


@pytest.fixture
def safes(tmp_path):
    """A folder for Sentinel-2 products."""
    folder = tmp_path / "safes"
    folder.mkdir()
    return folder


@pytest.fixture
def spec(rng):
    """A Sentinel-2 product of random ground."""
    from safe_job import ground
    from safetree import Spec

    return Spec(ground(rng))
