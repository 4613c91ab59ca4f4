"""A hostile STAC server: links and redirects to local files, paging and answers without end."""

import json
import resource

import pytest
from stac_ground import clear
from stac_job import query_of, run

pytest.importorskip("pystac_client", reason="needs the extra `stac`")

from retrieval.ingest.retry import RetryPolicy
from retrieval.ingest.stac import connection
from retrieval.ingest.stac.catalogue import MOST_ITEMS, find_items
from tfrecords.errors import CatalogueError

ONCE = RetryPolicy(attempts=1)


@pytest.fixture
def items(tiles):
    """Two items of the catalogue."""
    for day in ("2022-05-01", "2022-06-01"):
        tiles.put("31TCJ", day, scl=clear())


@pytest.fixture
def secret(tmp_path):
    """A local file that looks like a page of a catalogue."""
    path = tmp_path / "secret.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [{"id": "secret"}], "links": []}))
    return path


def refused(catalogue, match):
    with pytest.raises(CatalogueError, match=match) as caught:
        find_items(query_of(catalogue.url), ONCE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["/search", "/"])
def test_a_redirect_to_a_local_file_is_refused(items, catalogue, secret, path):
    catalogue.fail(302, path=path, headers={"Location": secret.as_uri()})
    refused(catalogue, "it cannot be reached|not on the web")


@pytest.mark.parametrize("form", ["uri", "path"])
def test_a_next_page_in_a_local_file_is_refused(items, catalogue, secret, monkeypatch, form):
    link = {"rel": "next", "href": secret.as_uri() if form == "uri" else str(secret), "method": "GET"}
    monkeypatch.setattr(catalogue, "next", lambda *_: link)
    catalogue.page = 1
    refused(catalogue, "an address that is not on the web. Expected http or https")


def test_links_of_the_root_to_local_files_are_not_opened(items, catalogue, secret, monkeypatch):
    answer = catalogue.landing

    def hostile():
        told = answer()
        for link in told["links"]:
            if link["rel"] in ("self", "root", "data"):
                link["href"] = str(secret.with_name("secret.json"))
        return told

    monkeypatch.setattr(catalogue, "landing", hostile)
    opened, original = [], open
    monkeypatch.setattr(
        "builtins.open", lambda name, *a, **k: opened.append(str(name)) or original(name, *a, **k)
    )
    try:
        find_items(query_of(catalogue.url), ONCE)
    except CatalogueError:
        pass
    assert str(secret) not in opened


def test_paging_without_end_is_refused(items, catalogue, monkeypatch):
    item, page = catalogue.items[0], 0

    def search(method, asked):
        nonlocal page
        page += 1
        features = [item | {"id": f"{page}-{n}"} for n in range(500)]
        links = [{"rel": "next", "href": f"{catalogue.url}/search", "method": method, "body": asked}]
        return {"type": "FeatureCollection", "features": features, "links": links}

    monkeypatch.setattr(catalogue, "search", search)
    refused(catalogue, f"more than {MOST_ITEMS} items")
    assert page <= MOST_ITEMS / 500 + 1


def test_an_answer_without_end_is_refused_in_bounded_memory(items, catalogue, monkeypatch):
    monkeypatch.setattr(connection, "MOST_BYTES", 4 << 20)
    sent = 0

    def reply(self, method, asked):
        nonlocal sent
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(10 << 30))
        self.end_headers()
        try:
            while sent < 1 << 28:
                sent += self.wfile.write(b" " * (1 << 16))
        except OSError:
            pass
        self.close_connection = True

    monkeypatch.setattr("stac_server._Handler.reply", reply)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(catalogue, "an answer of more than 4 MB")
    assert sent < 1 << 27 and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_an_answer_that_nests_thousands_of_lists_is_refused(items, catalogue, monkeypatch):
    text = b'{"features": ' + b"[" * 100_000

    def reply(self, method, asked):
        self.send(200, text, "application/geo+json")

    monkeypatch.setattr("stac_server._Handler.reply", reply)
    refused(catalogue, "does not answer as a STAC catalogue")


def test_a_tile_whose_files_hold_a_virtual_raster_is_refused(items, catalogue, tiles, tmp_path, secret):
    source = f"<SimpleSource><SourceFilename>{secret}</SourceFilename></SimpleSource>"
    band = f'<VRTRasterBand dataType="UInt16" band="1">{source}</VRTRasterBand>'
    text = f'<VRTDataset rasterXSize="512" rasterYSize="512">{band}</VRTDataset>'
    for file in tiles.folder.rglob("*.tif"):
        file.write_text(text)
    with pytest.raises(CatalogueError, match="cannot be read"):
        run(tmp_path / "out", catalogue)


def test_files_of_items_on_the_own_disk_are_refused(items, catalogue, tmp_path):
    local = tmp_path / "local.tif"
    for item, href in zip(catalogue.items, (local.as_uri(), f"/vsimem/../{local}"), strict=True):
        item["links"] = []
        for asset in item["assets"].values():
            asset["href"] = href
    with pytest.raises(CatalogueError, match="no address on the network"):
        run(tmp_path / "out", catalogue)
