"""The page of a comparison: what it holds, and how it behaves in a browser."""

from base64 import b64decode
from io import BytesIO

import pytest

pytest.importorskip("mercantile", reason="needs the extra `labels`")
pytest.importorskip("geopandas", reason="needs the extra `labels`")

import numpy as np
from browsing import COLOURS, js, needs_browser, pick, take, wait_until
from labelground import CORNER, image_tile, polygon, run, square, write_geojson
from pages import Outline
from PIL import Image

from retrieval.errors import ConfigError
from retrieval.labels import compare
from retrieval.labels.classes import Classes
from retrieval.labels.masks import write_png

EVIL = """<script>alert("1")</script>&'"""
SIDE = 128


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """Six tiles: in the first the map and the labels agree, in the others one of them shows more."""
    folder = tmp_path_factory.mktemp("compare")
    classes = Classes(("background", "house", EVIL))
    (folder / "c.csv").write_text('name\nbackground\nhouse\n"' + EVIL.replace('"', '""') + '"\n')
    features = []
    for n in range(6):
        tile = CORNER._replace(x=CORNER.x + n)
        image_tile(folder / "images", tile, n, alpha=n % 2 == 0, size=SIDE)
        values = np.zeros((SIDE, SIDE), np.uint8)
        values[10:50, 10:50] = 2 if n == 5 else 1
        values[60 : 60 + 8 * n, 60:100] = 1
        path = folder / "map" / f"20/{tile.x}/{tile.y}.png"
        path.parent.mkdir(parents=True)
        write_png(path, values, classes)
        features.append(polygon(square(tile, 10, 10, 40, SIDE), kind=classes.names[2 if n == 5 else 1]))
        if n == 2:
            features.append(polygon(square(tile, 90, 10, 30, SIDE), kind="house"))
    write_geojson(folder / "labels.geojson", features)
    return folder


@pytest.fixture(scope="module")
def page(ground):
    options = {"classes": ground / "c.csv", "attribute": "kind", "images": ground / "images"}
    compare(ground / "map", ground / "labels.geojson", page=ground / "compare.html", **options)
    return ground / "compare.html"


def test_the_page_is_complete_and_escaped(page):
    html = page.read_text()
    outline = Outline(html)
    assert outline.problems == []
    assert "<script>alert" not in html and EVIL in outline.text
    assert not [a for _, a, _ in outline.elements if str(a.get("src", "data:")).startswith("http")]
    cards = [a for a in outline.all("article")]
    assert [a["data-rank"] for a in cards] == list("123456")
    quality = [float(a["data-quality"]) for a in cards]
    assert quality[-1] == 100 and min(quality) < 60
    assert [len(a["alt"].split(" of tile ")) for a in outline.all("img")] == [2] * 24
    assert all(a.get("alt") and a["src"].startswith("data:image/webp") for a in outline.all("img"))


def test_the_agreement_shows_grey_orange_and_blue(page):
    outline = Outline(page.read_text())
    place = f"20/{CORNER.x + 2}/{CORNER.y}"
    uri = next(a["src"] for a in outline.all("img") if a["alt"] == f"agreement of tile {place}")
    pixels = np.array(Image.open(BytesIO(b64decode(uri.partition(",")[2]))).convert("RGB")).astype(int)
    red, _, blue = (pixels[15:45, 15:45].mean((0, 1)), 0, 0)
    assert np.ptp(red) < 15  # grey in both
    only_labels, only_map = pixels[15:35, 95:115].mean((0, 1)), pixels[63:73, 65:95].mean((0, 1))
    assert only_labels[0] > only_labels[2] + 100 and only_map[2] > only_map[0] + 100
    assert blue == 0


def test_a_page_without_images_and_of_a_raster(tmp_path, write_tif):
    import geopandas
    import shapely

    values = np.zeros((600, 520, 1), np.uint8)
    values[500:540, 10:60] = 1
    grid = (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0)
    path = write_tif("map.tif", values, crs="EPSG:32631", transform=grid)
    image = write_tif(
        "scene.tif", (values.astype(np.uint16) * 900 + 500).repeat(4, -1), crs="EPSG:32631", transform=grid
    )
    box = shapely.box(500_100, 4_994_600, 500_600, 4_995_000)
    geopandas.GeoDataFrame(geometry=[box], crs="EPSG:32631").to_file(tmp_path / "house.gpkg")
    for images, count in ((None, 3), (image, 4)):
        compare(
            path, tmp_path / "house.gpkg", page=tmp_path / "p.html", images=images, most=2, overwrite=True
        )
        outline = Outline((tmp_path / "p.html").read_text())
        assert outline.problems == [] and len(outline.all("img")) == 2 * count
    with pytest.raises(ConfigError, match=r"Expected \.html"):
        compare(path, tmp_path / "house.gpkg", page=tmp_path / "p.txt")


def test_the_command_writes_the_page(ground, tmp_path):
    arguments = ("labels", "compare", ground / "map", ground / "labels.geojson", "--attribute", "kind")
    more = ("--classes", ground / "c.csv", "--images", ground / "images", "--most", 2)
    done = run(*arguments, *more, "--out", tmp_path / "p.html")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("quality of the labels: ") and "1 unsupported" in done.stdout
    assert len(Outline((tmp_path / "p.html").read_text()).all("article")) == 2


# --- in a browser -------------------------------------------------------------------------------


def shown(browser):
    code = "[...document.querySelectorAll('.card')].filter(c => !c.hidden).map(c => c.dataset.rank)"
    return js(browser, code)


def visible(browser, kind):
    return js(browser, f"document.querySelector('.card .layer.{kind}').getClientRects().length > 0")


def press(browser, key):
    browser.find_element("tag name", "body").send_keys(key)


@needs_browser
def test_keys_change_the_view_and_the_tile(look):
    browser = look()
    kinds = ("image", "labels", "map", "agreement")
    assert [visible(browser, kind) for kind in kinds] == [True, True, True, False]
    press(browser, "2")
    assert [visible(browser, kind) for kind in kinds] == [False, True, True, False]
    press(browser, "3")
    assert [visible(browser, kind) for kind in kinds] == [True, False, False, True]
    press(browser, "j")
    assert js(browser, "document.activeElement.dataset.rank") == "1"
    browser.switch_to.active_element.send_keys("j")
    assert js(browser, "document.activeElement.dataset.rank") == "2"
    browser.switch_to.active_element.send_keys("k")
    assert js(browser, "document.activeElement.dataset.rank") == "1"


@needs_browser
def test_the_swipe_moves_with_the_arrow_keys(look):
    from selenium.webdriver.common.keys import Keys

    browser = look()
    press(browser, "2")
    cut = browser.find_element("css selector", ".card .cut")
    cut.send_keys(Keys.ARROW_RIGHT * 5)
    assert js(browser, "document.querySelector('.stage').style.getPropertyValue('--cut')") == "55%"


@needs_browser
def test_filters_and_sorting_choose_tiles(look):
    browser = look()
    assert shown(browser) == list("123456")
    pick(browser, "input[name=only][value=labels]")
    wait_until(lambda: len(shown(browser)) == 1)
    pick(browser, "input[name=only][value=labels]")
    js(browser, "document.querySelector('[name=class]').selectedIndex = 1")
    js(browser, "document.querySelector('form').dispatchEvent(new Event('input'))")
    wait_until(lambda: len(shown(browser)) == 1)
    pick(browser, "button[type=reset]")
    wait_until(lambda: shown(browser) == list("123456"))
    take(browser, "sort", "name")
    wait_until(lambda: shown(browser) != list("123456"))
    assert browser.find_element("id", "count").text == "6 of 6 tiles"


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_narrow_and_wide_light_and_dark(look, scheme, width):
    browser = look(width, prefers_color_scheme=scheme)
    assert js(browser, "document.documentElement.scrollWidth <= window.innerWidth")
    for selector in ("h1", ".card h3", ".quiet", "footer p"):
        ink, ground = js(browser, COLOURS, selector)
        assert contrast(ink, ground) >= 4.5, selector


def contrast(ink, ground):
    """Contrast of two CSS colours by WCAG."""
    lights = []
    for colour in (ink, ground):
        parts = np.array([float(v) for v in colour[colour.index("(") + 1 : -1].split(",")[:3]]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        lights.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(lights) + 0.05) / (min(lights) + 0.05)
