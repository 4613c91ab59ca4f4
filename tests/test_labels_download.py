"""Downloads of tiles from a server on the loopback: addresses, retries, resuming, cache, rate and credits."""

from __future__ import annotations

import io
import json
from urllib.parse import parse_qs, urlsplit

import pytest

pytest.importorskip("mercantile", reason="needs the extra `labels`")

import mercantile
import numpy as np
from labelground import run
from loopback import Handler, listening
from PIL import Image

from retrieval.errors import LabelsError
from retrieval.ingest.retry import RetryPolicy
from retrieval.labels import cover, download
from retrieval.labels.downloading import RateLimit, TileSource
from tfrecords.errors import OutputExistsError, RemoteError

TILES = list(mercantile.children(mercantile.Tile(9, 6, 5)))
QUICK = RetryPolicy(sleep=lambda _: None)
KEY = "key=SECRET"


def picture(seed, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (16, 16, 3), np.uint8)).save(file, kind)
    return file.getvalue()


class Server:
    """Serves a picture for each address; `plan` holds other answers to the first requests of a path."""

    def __init__(self, root):
        self.root, self.asked, self.plan = root, [], {}

    def answer(self, path):
        return picture(sum(path.encode()), "JPEG" if path.endswith(".jpg") else "PNG")


class TileHandler(Handler):
    def do_GET(self):
        server, path = self.state, self.path.partition("?")[0]
        server.asked.append(self.path)
        planned = server.plan.get(path, [])
        step = planned.pop(0) if len(planned) > 1 else (planned or ["ok"])[0]
        if step == "ok":
            self.send(200, server.answer(path), "image/png")
        elif step == "cut":
            self.send(200, server.answer(path), "image/png", cut=True)
        elif step == "html":
            self.send(200, b"<html>Please log in with key=SECRET</html>", "text/html")
        elif isinstance(step, dict):
            self.send(200, json.dumps(step).encode(), "application/json")
        else:
            self.send(step, b"no", "text/plain", {"Retry-After": "0"})


@pytest.fixture
def server():
    with listening(TileHandler, Server) as served:
        yield served


@pytest.fixture
def listed(tmp_path):
    rows = [f"{t.z},{t.x},{t.y},{'val' if n == 3 else 'train'}" for n, t in enumerate(TILES)]
    (tmp_path / "cover.csv").write_text("z,x,y,split\n" + "\n".join(rows) + "\n")
    return tmp_path / "cover.csv"


def path_of(tile, end=".png"):
    return f"/{tile.z}/{tile.x}/{tile.y}{end}"


def get(server, listed, out, url="/{z}/{x}/{y}.png", **options):
    options = {"retry": QUICK, "per_second": 1e6, "credits": "Jane Doe"} | options
    return download(listed, f"{server.root}{url}", out, **options)


def test_tiles_are_stored_as_they_were_sent(server, listed, tmp_path):
    report = get(server, listed, tmp_path / "t", f"/{{z}}/{{x}}/{{y}}.png?{KEY}")
    assert (report.tiles, report.new, report.missing) == (4, 4, ())
    for tile in TILES:
        assert (tmp_path / "t" / path_of(tile)[1:]).read_bytes() == server.answer(path_of(tile))
    assert sorted(server.asked) == sorted(f"{path_of(t)}?{KEY}" for t in TILES)
    for file in (tmp_path / "t").rglob("*"):  # no key is written
        assert file.is_dir() or b"SECRET" not in file.read_bytes()
    assert (tmp_path / "t" / "CREDITS.txt").read_text().startswith("Jane Doe\nSource: http://127.0.0.1")
    assert json.loads((tmp_path / "t" / "manifest.json").read_text())["extra"]["credits"] == "Jane Doe"
    with pytest.raises(OutputExistsError):
        get(server, listed, tmp_path / "t", "/{z}/{x}/{y}.png")
    again = cover(tmp_path / "t", tmp_path / "again.csv", split="1/0/0")
    assert again.tiles == 4


def test_a_split_chooses_tiles_and_jpegs_keep_their_ending(server, listed, tmp_path):
    assert get(server, listed, tmp_path / "t", "/{z}/{x}/{y}.jpg", split="val").tiles == 1
    assert (tmp_path / "t" / path_of(TILES[3], ".jpg")[1:]).is_file()


def test_addresses_of_tms_quadkeys_wms_and_hosts():
    tile = mercantile.Tile(3, 1, 2)
    assert TileSource("http://{switch:a,b}.x/{z}/{x}/{-y}").address(tile) == "http://a.x/2/3/2"
    assert TileSource("http://x/{q}.png").address(tile) == f"http://x/{mercantile.quadkey(tile)}.png"
    wms = TileSource(
        "http://x/wms?srs=EPSG:3857&bbox={bbox}&width={size}&height={size}", size_px=512
    ).address(tile)
    asked = parse_qs(urlsplit(wms).query)
    box = [float(side) for side in asked["bbox"][0].split(",")]
    assert box == pytest.approx(list(mercantile.xy_bounds(tile))) and asked["width"] == ["512"]
    for wrong in ("http://x/{z}/{x}.png", "file:///etc/{z}/{x}/{y}", "tiles/{z}/{x}/{y}"):
        with pytest.raises(LabelsError, match="not an address of tiles"):
            TileSource(wrong)


@pytest.mark.parametrize("failures", [[503, 429, 500], ["cut", 503, "cut"]], ids=["busy", "cut"])
def test_failures_that_may_pass_are_retried(server, listed, tmp_path, failures):
    server.plan[path_of(TILES[1])] = [*failures, "ok"]
    assert get(server, listed, tmp_path / "t").tiles == 4
    assert server.asked.count(path_of(TILES[1])) == 4
    assert (tmp_path / "t" / path_of(TILES[1])[1:]).read_bytes() == server.answer(path_of(TILES[1]))


def test_a_failed_run_resumes_with_what_it_has(server, listed, tmp_path):
    server.plan[path_of(TILES[2])] = [500]
    with pytest.raises(RemoteError, match=r"tried 4 times: .*status 500"):
        get(server, listed, tmp_path / "t")
    assert not (tmp_path / "t").exists()
    server.plan.clear()
    first = set(server.asked)
    server.asked.clear()
    report = get(server, listed, tmp_path / "t")
    assert report.tiles == 4 and report.new < 4 and path_of(TILES[0]) not in server.asked
    assert first | set(server.asked) == {path_of(t) for t in TILES}


@pytest.mark.parametrize(
    ("step", "message", "requests"),
    [(403, "status 403", 1), (401, "status 401", 1), ("html", "not an image: '<html>", 1)],
)
def test_refusals_are_tried_once_and_show_no_key(server, listed, tmp_path, step, message, requests):
    server.plan[path_of(TILES[0])] = [step]
    with pytest.raises(RemoteError, match=message) as caught:
        get(server, listed, tmp_path / "t", f"/{{z}}/{{x}}/{{y}}.png?{KEY}")
    assert server.asked.count(f"{path_of(TILES[0])}?{KEY}") == requests
    assert "SECRET" not in str(caught.value)


def test_missing_tiles_are_listed(server, listed, tmp_path):
    server.plan |= {path_of(TILES[0]): [404], path_of(TILES[3]): [204]}
    report = get(server, listed, tmp_path / "t")
    assert report.tiles == 2 and len(list((tmp_path / "t").rglob("*.png"))) == 2
    assert report.missing == tuple(path_of(TILES[n])[1:-4] for n in (0, 3))
    server.plan |= {path_of(t): [404] for t in TILES}
    with pytest.raises(LabelsError, match="none of the 4 tiles"):
        get(server, listed, tmp_path / "u")
    assert not list(tmp_path.glob("u*"))


def test_a_cache_spares_requests(server, listed, tmp_path):
    server.plan[path_of(TILES[1])] = [404]
    options = {"cache": tmp_path / "cache"}
    get(server, listed, tmp_path / "a", **options)
    server.asked.clear()
    report = get(server, listed, tmp_path / "b", **options)
    assert (report.tiles, report.new, server.asked) == (3, 0, [])
    for file in (tmp_path / "a").rglob("*.png"):
        assert (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes() == file.read_bytes()


def test_a_tilejson_names_template_scheme_and_credits(server, listed, tmp_path):
    page = {
        "tiles": [f"{server.root}/x/{{z}}/{{x}}/{{y}}.png"],
        "scheme": "tms",
        "attribution": "<a href='#'>Doe</a> 2020",
    }
    server.plan["/tiles.json"] = [page]
    report = get(server, listed, tmp_path / "t", "/tiles.json", credits="")
    assert report.credits == "Doe 2020" and report.tiles == 4 and not report.notes
    rows = 2 ** TILES[0].z - 1
    assert f"/x/{TILES[0].z}/{TILES[0].x}/{rows - TILES[0].y}.png" in server.asked
    server.plan["/other.json"] = [{"name": "no tiles"}]
    with pytest.raises(LabelsError, match="not a TileJSON"):
        get(server, listed, tmp_path / "u", "/other.json")


def test_requests_keep_to_the_rate():
    waits = []
    limit = RateLimit(4, waits.append, clock=lambda: 7.0)
    for _ in range(5):
        limit.wait()
    assert waits == [0.25, 0.5, 0.75, 1.0]  # the clock stands, so each turn is a quarter of a second later
    with pytest.raises(LabelsError, match="more than 0"):
        download("cover.csv", "http://x/{z}/{x}/{y}", "t", per_second=0)


def test_the_command_prints_numbers_and_notes(server, listed, tmp_path):
    server.plan[path_of(TILES[0])] = [404]
    url = server.root + "/{z}/{x}/{y}.png"
    done = run("labels", "download", listed, "--url", url, "--out", tmp_path / "t", "--rate", 1000)
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == f"{tmp_path / 't'}: 3 tiles, 4 of them new"
    assert "1 tiles do not exist" in done.stderr and "names no credits" in done.stderr
