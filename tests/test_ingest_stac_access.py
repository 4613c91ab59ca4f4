"""Signed addresses, and catalogues and files that fail."""

from __future__ import annotations

import json
import logging
import sys
import threading
import types
import warnings

import numpy as np
import pytest
import rasterio
from stac_ground import SIZE, clear, ground_of
from stac_job import QUICK, pixels, query_of, run, truth

from retrieval.ingest.retry import RetryPolicy
from retrieval.ingest.stac.access import explain_final, signer
from retrieval.ingest.stac.run import ingest_stac
from tfrecords.errors import (
    CatalogueError,
    ManifestError,
    MissingPackageError,
    OutputExistsError,
)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "places"


def test_addresses_are_signed_just_before_reading(tiles, catalogue, files, out, monkeypatch):
    tiles.put("31TCJ", "2022-05-01", scl=clear())
    with pytest.raises(MissingPackageError, match="pip install planetary-computer"):
        monkeypatch.setitem(sys.modules, "planetary_computer", None)
        run(out, catalogue, sign="planetary-computer")
    fake = types.ModuleType("planetary_computer")
    fake.sign = lambda href: href + "?sig=1"
    monkeypatch.setitem(sys.modules, "planetary_computer", fake)
    assert run(out, catalogue, sign="planetary-computer").dates == 1
    assert files.requests and all(path.endswith("?sig=1") for _, path, _ in files.requests)
    assert "sig=1" not in (out / "items.csv").read_text()


def signing(monkeypatch, sign):
    """Replace the package that signs."""
    fake = types.ModuleType("planetary_computer")
    fake.sign = sign
    monkeypatch.setitem(sys.modules, "planetary_computer", fake)
    return fake


def test_an_unreachable_signing_service_is_tried_four_times_and_explained(tiles, catalogue, out, monkeypatch):
    for day in ("2022-05-01", "2022-05-06", "2022-05-11"):
        tiles.put("31TCJ", day, scl=clear())
    calls, slept = [], []

    def sign(href):
        calls.append(href)
        raise ConnectionError("HTTPSConnectionPool: Max retries exceeded with url: /token?key=hush")

    signing(monkeypatch, sign)
    with pytest.raises(CatalogueError) as error:
        ingest_stac(
            out, query_of(catalogue.url, sign="planetary-computer"), retry=RetryPolicy(sleep=slept.append)
        )
    assert "the signing service cannot be reached, tried 4 times" in str(error.value)
    assert "hush" not in str(error.value)
    # One request serves all items, and is not repeated for each.
    assert (len(calls), slept) == (4, [1, 2, 4])


def test_a_signing_service_that_does_not_answer_is_left(tiles, catalogue, out, monkeypatch):
    tiles.put("31TCJ", "2022-05-01", scl=clear())
    signing(monkeypatch, lambda href: threading.Event().wait(30))
    retry = RetryPolicy(attempts=2, pause_s=0.01, timeout_s=0.2)
    with pytest.raises(CatalogueError, match=r"cannot be reached, tried 2 times .no answer in time"):
        ingest_stac(out, query_of(catalogue.url, sign="planetary-computer"), retry=retry)


def test_the_package_that_signs_does_not_repeat_requests_itself(monkeypatch):
    asked = []
    fake = signing(monkeypatch, lambda href: href + "?sig=1")
    fake.sas = types.SimpleNamespace(get_token=lambda *where, **how: asked.append((where, how)))
    sign = signer("planetary-computer", QUICK)
    assert sign("https://data.blob.core.windows.net/s2/a.tif") == (
        "https://data.blob.core.windows.net/s2/a.tif?sig=1"
    )
    assert asked == [(("data", "s2"), {"retry_total": 0})]


def test_a_signing_service_that_refuses_is_asked_once(tiles, catalogue, out, monkeypatch):
    tiles.put("31TCJ", "2022-05-01", scl=clear())
    calls = []

    def sign(href):
        calls.append(href)
        error = RuntimeError("404")
        error.response = types.SimpleNamespace(status_code=404)
        raise error

    signing(monkeypatch, sign)
    with pytest.raises(CatalogueError, match=r"the signing service refuses \(404\).*check --api"):
        run(out, catalogue, sign="planetary-computer")
    assert len(calls) == 1


# --- what goes wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [429, 500, 503, "cut"])
def test_a_catalogue_that_fails_for_a_while_is_retried(tiles, catalogue, out, kind):
    tiles.put("31TCJ", "2022-05-01")
    catalogue.fail(kind, times=2)
    assert run(out, catalogue).dates == 1


@pytest.mark.parametrize(("asked", "pause"), [("7", 7), ("3600", 120)])
def test_a_pause_that_a_catalogue_asks_for_is_kept_up_to_two_minutes(tiles, catalogue, out, asked, pause):
    tiles.put("31TCJ", "2022-05-01")
    catalogue.fail(429, times=1, headers={"Retry-After": asked})
    slept = []
    retry = RetryPolicy(pause_s=0.02, sleep=slept.append)
    assert ingest_stac(out, query_of(catalogue.url), retry=retry).dates == 1
    assert slept == [pause]


@pytest.mark.parametrize(
    ("kind", "path", "message"),
    [
        (429, "/search", "too many requests (429)"),
        (500, "/search", "the server failed (500), also when retried"),
        (503, "/", "the server failed (503)"),
        (400, "/search", "the search was refused (400)"),
        (403, "/", "access refused (403)"),
        (404, "/", "no such page (404)"),
        ("html", "/", "does not answer as a STAC catalogue"),
        ("html", "/search", "does not answer as a STAC catalogue"),
        ("other", "/", "does not answer as a STAC catalogue"),
        ("cut", "/search", "the connection was cut"),
    ],
)
def test_a_failing_catalogue_is_explained_on_one_line(tiles, catalogue, out, kind, path, message):
    tiles.put("31TCJ", "2022-05-01")
    catalogue.fail(kind, path=path)
    with pytest.raises(CatalogueError) as error:
        run(out, catalogue)
    assert message in str(error.value) and catalogue.url in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 420
    assert not out.exists()


@pytest.mark.parametrize("conforms", [None, (), ("core",)])
@pytest.mark.parametrize("hidden", [(), ("data",)])
def test_a_root_with_a_search_link_is_searched_whatever_it_conforms_to(
    tiles, catalogue, out, conforms, hidden
):
    tiles.put("31TCJ", "2022-05-01", cloud=5)
    tiles.put("31TCJ", "2022-05-02", cloud=99)
    catalogue.conforms, catalogue.hidden_links = conforms, hidden
    assert run(out, catalogue).dates == 1
    message = "no item of" if hidden else "no collection 'sentinel-3'. It has sentinel-2-l2a"
    with pytest.raises(CatalogueError, match=message):
        run(out.with_name("other"), catalogue, collection="sentinel-3")


@pytest.mark.parametrize("conforms", [None, (), ("core", "collections")])
def test_a_root_without_a_search_link_is_refused_in_one_sentence(tiles, catalogue, out, conforms):
    tiles.put("31TCJ", "2022-05-01")
    catalogue.conforms, catalogue.hidden_links = conforms, ("search",)
    with pytest.raises(CatalogueError) as error:
        run(out, catalogue)
    assert str(error.value).startswith(
        f"{catalogue.url}: it cannot be searched, its root has no search link. Expected"
    )


def test_an_unreachable_catalogue_is_explained(out):
    with pytest.raises(CatalogueError, match=r"127.0.0.1:9/v1: it cannot be reached .connection refused"):
        ingest_stac(out, query_of("http://127.0.0.1:9/v1"), retry=QUICK)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"collection": "sentinel-3"}, "no collection 'sentinel-3'. It has sentinel-2-l2a"),
        ({"dates": "2001"}, "Check --bbox and --dates"),
        ({"bbox": (100.0, 10.0, 101.0, 11.0)}, "no item of sentinel-2-l2a for 100,10,101,11"),
        ({"max_cloud": 10}, "The clearest of 2 items has 20.0 %. Raise --max-cloud"),
    ],
)
@pytest.mark.parametrize("query", [True, False])
def test_a_search_without_results_is_explained(tiles, catalogue, out, more, message, query):
    tiles.put("31TCJ", "2022-05-01", cloud=20)
    tiles.put("31TCJ", "2022-05-02", cloud=30)
    if not query:
        catalogue.conforms = ("core", "search", "collections")
    with pytest.raises(CatalogueError) as error:
        run(out, catalogue, **more)
    assert message in str(error.value)
    assert not out.exists()


@pytest.mark.parametrize("kind", [503, 429, "html", "cut"])
def test_a_file_that_fails_for_a_while_is_retried(tiles, catalogue, files, out, kind):
    tiles.put("31TCJ", "2022-05-01", scl=clear())
    files.fail(kind, times=2, path="B03.tif")
    run(out, catalogue)
    path = out / "31TCJ" / "2022-05-01.tif"
    assert np.array_equal(pixels(path), truth(path, "31TCJ", ground_of("31TCJ")))


@pytest.mark.parametrize(
    ("kind", "path"), [(404, "B03.tif"), (500, "B08.tif"), (404, "SCL.tif"), ("html", "B02.tif")]
)
def test_an_unreadable_item_is_named_and_the_others_are_written(tiles, catalogue, files, out, kind, path):
    tiles.put("31TCJ", "2022-05-01", scl=clear())
    tiles.put("31TCJ", "2022-06-01", scl=clear())
    files.fail(kind, path=f"20220501_0_L2A/{path}")
    report = run(out, catalogue)
    assert (report.dates, [row.item for row in report.left_out]) == (1, ["S2A_31TCJ_20220501_0_L2A"])
    assert "cannot be read" in report.left_out[0].left_out
    assert report.notes == (f"skipped: S2A_31TCJ_20220501_0_L2A, {report.left_out[0].left_out}",)
    assert sorted(p.name for p in out.rglob("*.tif")) == ["2022-06-01.tif"]
    files.trouble, files.served = lambda _: None, 0
    again = run(out, catalogue)  # only what is missing
    assert (again.dates, again.new, again.left_out) == (2, 1, ())
    assert not [path for _, path, _ in files.requests[-20:] if "20220601" in path]


@pytest.mark.parametrize("status", [401, 403, 409])
@pytest.mark.parametrize("sign", [None, "planetary-computer"])
def test_refused_files_are_tried_once_and_the_remedy_is_named(
    tiles, catalogue, files, out, monkeypatch, status, sign
):
    tiles.put("31TCJ", "2022-05-01")
    signing(monkeypatch, lambda href: href + "?sig=hush")
    files.fail(status, path=".tif")
    slept = []
    with pytest.raises(CatalogueError) as error:
        ingest_stac(out, query_of(catalogue.url, sign=sign), retry=RetryPolicy(sleep=slept.append))
    remedy = "add --sign planetary-computer" if sign is None else "check that --sign fits the catalogue"
    assert f"access is refused (HTTP response code: {status}). " in str(error.value)
    assert remedy in str(error.value) and "hush" not in str(error.value) and not slept


@pytest.mark.parametrize(
    ("href", "message", "remedy"),
    [
        (
            "s3://b/a.tif",
            "AWS_SECRET_ACCESS_KEY and AWS_NO_SIGN_REQUEST configuration options not defined, and "
            "/root/.aws/credentials not filled",
            "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        ),
        ("s3://b/a.tif", "Access Denied", "AWS_NO_SIGN_REQUEST=YES"),
        (
            "gs://b/a.tif",
            "GS_SECRET_ACCESS_KEY, or GS_NO_SIGN_REQUEST=YES configuration options not defined",
            "Set GOOGLE_APPLICATION_CREDENTIALS",
        ),
        (
            "az://b/a.tif",
            "CURL error: Could not resolve host: None.blob.core.windows.net",
            "Set AZURE_STORAGE_ACCOUNT",
        ),
        ("https://h/a.tif", "HTTP response code: 409", "add --sign planetary-computer"),
        ("https://h/a.tif", "HTTP response code: 404", "it cannot be read (HTTP response code: 404)"),
        ("https://h/a.tif", "HTTP response code: 422", "it cannot be read"),
        ("https://h/a.tif", "HTTP response code: 429", None),
        ("https://h/a.tif", "HTTP response code: 503", None),
        ("https://h:4043/403/a.tif", "CURL error: Failed to connect to h port 4043", None),
    ],
)
def test_failures_that_stay_have_a_remedy(href, message, remedy):
    reason = explain_final(message, href, signed=False)
    assert (remedy in reason) if remedy else reason == ""


def test_files_in_a_store_without_credentials_are_tried_once(tiles, catalogue, out, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_NO_SIGN_REQUEST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(out.parent))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("CPL_AWS_AUTODETECT_EC2", "NO")
    item = tiles.put("31TCJ", "2022-05-01")
    for asset_ in item["assets"].values():
        asset_["href"] = asset_["href"].replace(tiles.url, "s3://eodata")
    slept = []
    with pytest.raises(CatalogueError, match="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        ingest_stac(out, query_of(catalogue.url), retry=RetryPolicy(sleep=slept.append))
    assert not slept


@pytest.mark.parametrize("known", [True, False])
def test_files_without_a_georeference_are_named(tiles, catalogue, out, known):
    item = tiles.put("31TCJ", "2022-05-01")
    for path in tiles.folder.rglob("*.tif"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with rasterio.open(path) as file:
                pixels_ = file.read()
            profile = {"height": SIZE, "width": SIZE, "count": 1, "dtype": "uint16"}
            with rasterio.open(path, "w", driver="GTiff", **profile) as file:
                file.write(pixels_)
    if not known:
        for asset_ in item["assets"].values():
            asset_.pop("proj:transform", None)
    with pytest.raises(CatalogueError, match="georeference") as error:
        run(out, catalogue)
    assert "tried" not in str(error.value)


def test_notes_speak_of_dates_that_are_used(tiles, catalogue, out):
    tiles.put("31TCJ", "2022-05-01", scl=clear())
    hazy = tiles.put("31TCJ", "2022-05-02", cloud=50, style="planetary-computer")
    hazy["properties"]["s2:processing_baseline"] = None
    report = run(out, catalogue, dates_per_place=1)
    assert report.dates == 1 and not any("guessed" in n or "classification" in n for n in report.notes)


@pytest.mark.parametrize("kind", [404, 409, 500, "html", "cut"])
def test_a_signature_is_neither_printed_nor_written(
    tiles, catalogue, files, out, monkeypatch, caplog, capfd, kind
):
    caplog.set_level(logging.DEBUG)
    tiles.put("31TCJ", "2022-05-01", scl=clear())
    tiles.put("31TCJ", "2022-06-01", scl=clear())
    signing(monkeypatch, lambda href: href + "?st=1&sig=hush%2Fhush")
    files.fail(kind, path="20220501_0_L2A/B03")
    report = run(out, catalogue, sign="planetary-computer")
    assert report.dates == 1 and len(report.left_out) == 1
    logging.getLogger("odc").error("Aborting load of %s", "https://h/a.tif?sig=hush")
    texts = [*report.notes, report.left_out[0].left_out, caplog.text, *capfd.readouterr()]
    texts += [path.read_text() for path in (out / "items.csv", out / "search.json")]
    texts += [path.read_bytes().decode("latin-1") for path in out.rglob("*.tif")]
    assert "hush" not in "\n".join(texts) and "https://h/a.tif" in caplog.text


def test_a_key_in_the_address_of_the_catalogue_is_neither_printed_nor_written(tiles, catalogue, out):
    tiles.put("31TCJ", "2022-05-01", scl=clear())
    secret = catalogue.url.replace("://", "://user:hush@")
    assert "hush" not in json.dumps(query_of(secret + "?key=hush").to_json())
    with pytest.raises(CatalogueError) as error:
        ingest_stac(out, query_of(secret, dates="2001"), retry=QUICK)
    assert "hush" not in str(error.value)


def test_nothing_is_written_if_no_item_can_be_read(tiles, catalogue, files, out):
    tiles.put("31TCJ", "2022-05-01", scl=clear())
    files.fail(404, path=".tif")
    with pytest.raises(CatalogueError, match=r"nothing was written, all 1 items were skipped. 1 item: .*404"):
        run(out, catalogue)
    assert not list(out.rglob("*.tif"))


def test_an_interrupted_run_resumes(tiles, catalogue, files, out):
    for month in (1, 2, 3):
        tiles.put("31TCJ", f"2022-0{month}-01", scl=clear())

    def stop(stage, done, total):
        if (stage, done) == ("reading dates", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest_stac(out, query_of(catalogue.url), retry=QUICK, progress=stop)
    assert [path.stem for path in sorted(out.rglob("*.tif"))] == ["2022-01-01", "2022-02-01"]
    files.requests.clear()
    report = run(out, catalogue)
    assert (report.dates, report.new) == (3, 1)
    assert {path.split("/")[1] for _, path, _ in files.requests} == {"S2A_31TCJ_20220301_0_L2A"}


def test_a_folder_of_another_query_is_kept(tiles, catalogue, out):
    tiles.put("31TCJ", "2022-05-01")
    tiles.put("31TCJ", "2022-06-01")
    run(out, catalogue)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(OutputExistsError, match=r"holds the files of another query \(last 2023-12-31\)"):
        run(out, catalogue, dates="2020/2022-05")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    (out / "31TCJ" / "mine.tif").write_bytes(b"mine")
    report = ingest_stac(out, query_of(catalogue.url, dates="2020/2022-05"), overwrite=True, retry=QUICK)
    assert report.dates == 1
    assert sorted(path.name for path in out.rglob("*.tif")) == ["2022-05-01.tif", "mine.tif"]


def test_a_file_of_the_user_is_kept(tiles, catalogue, out, write_tif, rng):
    tiles.put("31TCJ", "2022-05-01")
    tiles.put("31TCJ", "2022-06-01")
    path = write_tif("31TCJ/2022-05-01.tif", rng.integers(1, 99, (64, 64, 4)).astype(np.uint16), folder=out)
    before = path.read_bytes()
    report = run(out, catalogue)
    assert report.dates == 1 and path.read_bytes() == before
    assert "did not write" in report.left_out[0].left_out


def test_a_damaged_journal_is_named(tiles, catalogue, out):
    tiles.put("31TCJ", "2022-05-01")
    run(out, catalogue)
    (out / "items.csv").write_text("item,place\nx,y\n")
    with pytest.raises(ManifestError, match=r"items.csv: damaged"):
        run(out, catalogue)
    (out / "search.json").write_text("{")
    with pytest.raises(ManifestError, match=r"search.json: damaged"):
        run(out, catalogue)


def test_the_missing_extra_is_named(out, monkeypatch):
    monkeypatch.setitem(sys.modules, "pystac_client", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'patch-retrieval\[stac\]'"):
        ingest_stac(out, query_of("earth-search"))
