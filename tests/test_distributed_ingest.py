"""Ingest on each executor: the same files, also where a worker is killed with its task."""

import numpy as np
import pytest

pytest.importorskip("distributed")

from lost_workers import Losing
from safetree import Spec, write_product
from stac_ground import clear
from stac_job import QUICK, query_of

from retrieval.distributed.executors import open_executor
from retrieval.ingest.challenge import draw_task, target_task
from retrieval.ingest.places_writer import write_date_task
from retrieval.ingest.run import ingest, survey_task
from retrieval.ingest.series import cut_task
from retrieval.ingest.stac.day_tasks import day_task, hidden_task
from retrieval.ingest.stac.run import ingest_stac
from tfrecords.errors import ArrayError

BANDS = ("B04", "B03", "B02", "B08")


@pytest.fixture(scope="module")
def dask():
    with open_executor("dask:2") as executor:
        yield executor


@pytest.fixture
def places(write_tif, tmp_path, rng):
    """Two places of three dates, one of them on another grid, and a place of one date."""
    for place, x in (("a", 500000.0), ("b", 520000.0), ("one", 540000.0)):
        for month in range(1, 2 if place == "one" else 4):
            pixels = rng.integers(300, 5000, (140, 200, 4)).astype(np.uint16)
            pixels[:30, :20] = 0
            moved = 4.0 if (place, month) == ("b", 2) else 0.0
            write_tif(
                f"{place}/2020-0{month}-05.tif",
                pixels,
                folder=tmp_path / "places",
                descriptions=BANDS,
                nodata=0,
                crs="EPSG:32631",
                transform=(10.0, 0.0, x + moved, 0.0, -10.0, 5e6),
            )
    return tmp_path / "places"


def content(folder):
    """The bytes of all files of a folder by their paths, without manifests, which hold a date."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "manifest.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def on_each(dask, folder, job, *steps):
    """Run a job without an executor and on each; the cluster loses a worker in each step."""
    expected = job(folder / "none", None)
    with open_executor("threads:2") as executor:
        assert job(folder / "threads", executor) == expected
    losing = Losing(dask, folder)
    assert job(folder / "dask", losing) == expected
    assert losing.killed == {step.__name__ for step in steps}
    return expected


def test_series_have_the_same_bytes(tmp_path, dask, places):
    def job(out, executor):
        report = ingest(places, out, size_px=96, series_per_shard=3, executor=executor)
        assert not out.with_name(f"{out.name}.places").exists()
        return report.records, report.notes, content(out)

    records, notes, files = on_each(dask, tmp_path, job, survey_task, cut_task)
    assert records == 2 * 2 * 3 and len(files) == 4 and any("one date only" in note for note in notes)


def test_a_challenge_has_the_same_bytes(tmp_path, dask, places):
    def job(out, executor):
        report = ingest(places, out, as_="challenge", size_px=96, patches_per_image=3, executor=executor)
        return report.records, report.patches, content(out)

    records, patches, _ = on_each(dask, tmp_path, job, survey_task, draw_task, target_task)
    assert records == 12 and patches == 36


def test_dates_of_products_have_the_same_bytes(tmp_path, dask, rng):
    for day in (6, 11):
        pixels = rng.integers(1, 6000, (160, 160, 4)).astype(np.uint16)
        write_product(tmp_path / "safes", Spec(pixels, taken=f"2023-07-{day:02}T10:50:31"))

    def job(out, executor):
        report = ingest(tmp_path / "safes", out, as_="images", executor=executor)
        return report.records, report.notes, content(out)

    records, _, files = on_each(dask, tmp_path, job, write_date_task)
    assert records == 2 and set(files) == {"31TCJ/2023-07-06.tif", "31TCJ/2023-07-11.tif"}


def test_a_damaged_date_is_skipped_or_refused_as_without_a_cluster(tmp_path, dask, places):
    path = places / "a" / "2020-02-05.tif"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    def job(out, executor):
        report = ingest(places / "a", out, as_="images", executor=executor)
        return report.records, report.notes, content(out)

    records, notes, files = on_each(dask, tmp_path, job, write_date_task)
    assert records == len(files) == 2 and any("2020-02-05.tif" in note for note in notes)
    messages = set()
    for executor in (None, dask):
        with pytest.raises(ArrayError, match=r"2020-02-05\.tif") as raised:
            ingest(places, tmp_path / "series", executor=executor)
        messages.add(str(raised.value))
        assert not (tmp_path / "series").exists()
    assert len(messages) == 1


def test_days_of_a_catalogue_have_the_same_bytes(tmp_path, dask, tiles, catalogue):
    for day in ("2021-05-01", "2022-05-01", "2022-07-01"):
        tiles.put("31TCJ", day, scl=clear())
    tiles.put("31TCJ", "2022-06-01", scl=np.full_like(clear(), 9))

    def job(out, executor):
        report = ingest_stac(out, query_of(catalogue.url), retry=QUICK, executor=executor)
        return report.dates, report.new, len(report.left_out), report.notes, content(out)

    dates, new, left_out, _, files = on_each(dask, tmp_path, job, hidden_task, day_task)
    assert (dates, new, left_out) == (3, 3, 1)
    assert sum(name.endswith(".tif") for name in files) == 3 and "items.csv" in files


def test_a_day_that_cannot_be_read_is_noted_once(tmp_path, dask, tiles, catalogue, files):
    for day in ("2021-05-01", "2022-05-01"):
        tiles.put("31TCJ", day, scl=clear())
    named = files.folder.rglob("*.tif")
    next(path for path in named if "20220501" in str(path) and path.stem != "SCL").unlink()

    def job(out, executor):
        report = ingest_stac(out, query_of(catalogue.url), retry=QUICK, executor=executor)
        return report.dates, report.left_out, report.notes, content(out)

    dates, left_out, notes, _ = on_each(dask, tmp_path, job, hidden_task, day_task)
    assert dates == 1 and len(left_out) == len(notes) == 1
