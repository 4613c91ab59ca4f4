"""The HTML report: its content, its safety, and its arithmetic."""

import re
import warnings
from itertools import pairwise

import numpy as np
import pandas as pd
import PIL.Image
import pytest
from engine import texture
from hypothesis import given
from hypothesis import strategies as st
from pages import EVIL, SIDE, Outline, cards, world

from retrieval.errors import ConfigError
from retrieval.pipeline import Index
from retrieval.report.cards import Filters
from retrieval.report.charts import Chart, Figure, Table, coverage, number, reliability, round_ticks, wilson
from retrieval.report.html import digest
from retrieval.report.image_crops import SHIFT_PX, Window, correlations, crop_window, shifts_inside
from retrieval.report.layout import lay_out, metres, scale_bar
from retrieval.report.map import MapView
from retrieval.report.page import PageView, render, write_page
from retrieval.report.patch_results import PatchResults, choose, judge, read_details
from retrieval.report.pictures import infrared, natural, overview
from retrieval.types import StoredImage
from tfrecords.errors import MissingInputError, OutputExistsError
from tfrecords.read import read_queries


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """A world, and the pages of it: with answers and without."""
    folder = tmp_path_factory.mktemp("page")
    it = world(folder)
    it.details["note"] = [f"{EVIL} {rank}" for rank in it.details["rank"]]
    it.details["geometry"] = [b"\x01<b>"] * len(it.details)
    given = (it.index, it.patches, it.details)
    it.made = write_page(folder / "a.html", *given, answers=it.answers, title=f"Of {EVIL}", limit=20)
    it.blind = write_page(folder / "b.html", *given, limit=7)
    it.html, it.blind_html = (made.path.read_text(encoding="utf-8") for made in (it.made, it.blind))
    it.outline, it.blind_outline = Outline(it.html), Outline(it.blind_html)
    it.folder = folder
    return it


# --- the page as a whole --------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["outline", "blind_outline"])
def test_the_page_is_well_formed_and_its_links_lead_somewhere(seen, which):
    outline = getattr(seen, which)
    assert outline.problems == []
    ids = [attributes["id"] for _, attributes, _ in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes, _ in outline.elements:
        for name in ("aria-labelledby", "for"):
            assert attributes.get(name, ids[0]) in ids
        if (attributes.get("href") or "").startswith("#"):
            assert attributes["href"][1:] in ids


def test_the_page_loads_nothing_from_a_network(seen):
    for _, attributes, _ in seen.outline.elements:
        for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (name, value)
    assert not re.search(r"https?://|//[a-z]|@import|url\(|fetch\(|XMLHttp|WebSocket", _code(seen.html))


def _code(html):
    return "".join(re.findall(r"<(?:style|script)>(.*?)</(?:style|script)>", html, re.S)).replace("//", "")


def test_names_out_of_files_stay_text(seen):
    assert "alert(" not in re.sub(r"&lt;script&gt;alert\(", "", seen.html)
    assert seen.html.count("<script") == seen.html.count("</script") == 1
    assert EVIL in seen.outline.text  # it is there, and harmless
    values = [value or "" for _, attributes, _ in seen.outline.elements for value in attributes.values()]
    assert any(EVIL in value for value in values)


def test_only_its_own_script_and_style_may_run(seen):
    (policy,) = [
        a["content"] for a in seen.outline.all("meta") if "content" in a and "default-src" in a["content"]
    ]
    script, style = (re.search(f"<{kind}>(.*?)</{kind}>", seen.html, re.S)[1] for kind in ("script", "style"))
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert f"script-src '{digest(script)}'" in policy and f"style-src '{digest(style)}'" in policy
    assert not [a for _, a, _ in seen.outline.elements if "style" in a or any(n.startswith("on") for n in a)]


def test_everything_has_a_name(seen):
    for tag_, attributes, inside in seen.outline.elements:
        if tag_ == "img":
            assert attributes["alt"] and {"width", "height"} <= set(attributes)
        if tag_ == "svg":
            assert attributes.get("aria-hidden") == "true" or attributes["aria-label"]
        if tag_ in ("input", "select"):
            assert "label" in inside or attributes.get("aria-label")
        if tag_ == "section":
            assert attributes["aria-labelledby"]
    assert seen.outline.all("html", lang="en") and seen.outline.all("main") and seen.outline.all("nav")
    assert seen.outline.all("output", **{"aria-live": "polite"})
    levels = [int(t[1]) for t, _, _ in seen.outline.elements if re.fullmatch("h[1-6]", t)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


def test_every_chart_has_its_numbers_as_a_table(seen):
    charts = [a for a in seen.outline.all("svg") if a.get("class") == "chart"]
    assert len(charts) == 3
    tables = [inside for t, _, inside in seen.outline.elements if t == "table" and "figure" in inside]
    assert len(tables) == 3


def test_the_same_input_gives_the_same_page(seen):
    given = (seen.index, seen.patches, seen.details)
    again = write_page(seen.folder / "again.html", *given, limit=7)
    assert again.path.read_bytes() == seen.blind.path.read_bytes()


def test_the_report_has_the_numbers_of_the_page(seen):
    assert (seen.made.patches, seen.made.shown) == (22, 20)
    assert seen.made.bytes < 2_000_000 and seen.made.bytes == len(seen.made.path.read_bytes())
    verdicts = [card["data-verdict"] for card in cards(seen.outline)]
    assert seen.made.failures == sum(verdict != "right" for verdict in verdicts) >= 4
    assert seen.blind.failures == 0 and seen.blind.shown == 7


def test_existing_files_are_kept_and_bad_arguments_refused(seen, tmp_path):
    given = (seen.index, seen.patches, seen.details)
    path = tmp_path / "r.html"
    path.write_text("mine")
    with pytest.raises(OutputExistsError):
        write_page(path, *given)
    with pytest.raises(ConfigError, match=r"the ending is '.pdf'. Expected .html"):
        write_page(tmp_path / "r.pdf", *given)
    for limit in (0, 501):
        with pytest.raises(ConfigError, match=f"{limit} patches to show: out of range. Expected 1 to 500"):
            write_page(tmp_path / "s.html", *given, limit=limit)
    assert path.read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def matched(details):
    """The best candidate of each patch that finds something."""
    return details[(details["rank"] == 0) & (details["status"] != "not_found")]


# --- what it tells --------------------------------------------------------------------------------


def test_cards_agree_with_the_table_and_failures_come_first(seen):
    shown = cards(seen.outline)
    table = judge(seen.details, seen.patches.patch_ids, seen.index.images, seen.answers).best
    table = table.set_index("patch_id")
    for n, card in enumerate(shown):
        at = table.loc[int(card["data-patch"])]
        assert (int(card["data-order"]), card["data-verdict"]) == (n, at.verdict)
        assert int(card["data-image"]) == at.image_id
        assert float(card["data-confidence"]) == pytest.approx(at.confidence, abs=1e-6)
    verdicts = [card["data-verdict"] == "right" for card in shown]
    assert verdicts == sorted(verdicts)  # all that is not right, then all that is
    sure = [float(card["data-confidence"]) for card in shown]
    failed = verdicts.count(False)
    assert sure[:failed] == sorted(sure[:failed], reverse=True) and sure[failed:] == sorted(sure[failed:])


def test_verdicts_follow_from_distance_and_image(seen):
    table = judge(seen.details, seen.patches.patch_ids, seen.index.images, seen.answers).best
    for row, at in enumerate(table.itertuples()):
        right = seen.answers.image_ids[row], seen.answers.x[row], seen.answers.y[row]
        off = float(np.hypot(at.x - right[1], at.y - right[2]))
        same = at.image_id == right[0]
        assert at.verdict == ("wrong" if not same else "right" if off <= 5 else "shifted")
        assert (off if same else None) == (
            None if np.isnan(at.distance_px) else pytest.approx(at.distance_px)
        )
    assert (table.verdict[:18] == "right").all() and (table.verdict[18:] != "right").all()


def test_the_score_equals_the_scorers(seen):
    from retrieval.evaluation.scoring import score
    from retrieval.evaluation.submission import Submission

    best = matched(seen.details)
    columns = [best[name].to_numpy(np.int64) for name in ("patch_id", "image_id", "x", "y")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = score(Submission(*columns), seen.answers)
    for figure in expected.figures().values():
        assert f"{figure.value:.4f}" in seen.outline.text
        assert f"{figure.low:.4f} to {figure.high:.4f}" in seen.outline.text
    assert "SC_img" not in seen.blind_outline.text


def test_without_answers_the_least_confident_come_first(seen):
    shown = cards(seen.blind_outline)
    sure = [float(card["data-confidence"]) for card in shown]
    all_ = sorted(judge(seen.details, seen.patches.patch_ids, seen.index.images).confidence)
    assert sure == sorted(sure) and sure[:4] == pytest.approx(all_[:4], abs=1e-6)
    assert sure[-1] == pytest.approx(all_[-1], abs=1e-6)
    assert {card["data-verdict"] for card in shown} == {"unknown"}
    assert not seen.blind_outline.all("input", name="verdict")


def test_matches_without_a_calibration_have_no_confidence(seen, tmp_path):
    details = seen.details.assign(confidence=np.nan)
    given = (seen.index, seen.patches, details)
    for answers in (None, seen.answers):
        made = write_page(tmp_path / "r.html", *given, answers=answers, limit=5, overwrite=True)
        outline = Outline(made.path.read_text(encoding="utf-8"))
        assert outline.problems == [] and "run retrieve calibrate" in outline.text
        assert [card["data-confidence"] for card in cards(outline)] == [""] * 5
        assert "nan" not in outline.text and not [a for a in outline.all("p") if a.get("class") == "sure"]


def test_a_flat_patch_has_a_card_without_a_match(seen):
    (flat,) = [card for card in cards(seen.outline) if card["data-patch"] == "64"]
    assert flat["data-image"] == "-1" and float(flat["data-confidence"]) == 0
    assert "No match" in seen.outline.text and "1 not found" in seen.outline.text


def test_footprints_have_the_positions_of_the_table(seen):
    prints = [a for _, a, _ in seen.outline.elements if "data-label" in a]
    best = matched(seen.details).set_index("patch_id")
    assert {int(a["data-patch"]) for a in prints} == set(best.index)
    linked = {int(a["data-patch"]) for a in prints if "href" in a}
    assert linked == {int(card["data-patch"]) for card in cards(seen.outline) if card["data-image"] != "-1"}
    for match in re.finditer(r'data-patch="(\d+)"[^>]*data-label[^>]*><rect x="(\d+)" y="(\d+)"', seen.html):
        at = best.loc[int(match[1])]
        assert (int(match[2]), int(match[3])) == (at.x, at.y)


def test_dates_places_and_other_columns_are_shown_but_no_geometry(seen):
    assert "2019-07-01" in seen.outline.text and "° N" in seen.outline.text
    names = [word.strip() for word in seen.outline.words]
    assert "note" in names and "geometry" not in names and f"{EVIL} 0" in names
    assert len(seen.outline.all("select", name="place")) == 1  # of three places one holds several images


def test_infrared_is_there_where_there_are_the_bands_for_it(seen, tmp_path):
    from dataclasses import replace

    assert seen.outline.all("input", name="colour", value="infrared")
    red = replace(seen.patches, pixels=seen.patches.pixels[..., :1], bands=("B04",))
    made = write_page(tmp_path / "red.html", seen.index, red, seen.details, limit=2)
    outline = Outline(made.path.read_text(encoding="utf-8"))
    assert outline.problems == [] and not outline.all("input", name="colour")


# --- the table ------------------------------------------------------------------------------------


def test_tables_of_both_kinds_are_read_and_others_refused(seen, tmp_path):
    plain = seen.details.drop(columns=["geometry"])
    plain.to_parquet(tmp_path / "m.parquet")
    plain.to_csv(tmp_path / "m.csv", index=False)
    for name in ("m.parquet", "m.csv"):
        read = read_details(tmp_path / name)
        assert read.patch_id.tolist() == sorted(plain.patch_id[plain.status != "not_found"])
        assert read.image_id.dtype == np.int64
    with pytest.raises(MissingInputError, match="run `retrieve query --details"):
        read_details(tmp_path / "none.parquet")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1nonsense")
    with pytest.raises(ConfigError, match="can't be read as a table"):
        read_details(tmp_path / "torn.parquet")
    plain.drop(columns=["ncc", "x"]).to_csv(tmp_path / "few.csv", index=False)
    with pytest.raises(ConfigError, match="no column x, ncc"):
        read_details(tmp_path / "few.csv")
    plain.astype({"x": str}).assign(x="here").to_csv(tmp_path / "words.csv", index=False)
    with pytest.raises(ConfigError, match="column x has the type"):
        read_details(tmp_path / "words.csv")


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [("patch_id", 2, "names patch 2"), ("image_id", 3, "names image 3"), ("x", SIDE, f"at x {SIDE}")],
)
def test_a_table_of_another_query_is_refused(seen, column, value, told):
    other = seen.details.copy()
    other.loc[0, column] = value
    with pytest.raises(ConfigError, match=told):
        judge(other, seen.patches.patch_ids, seen.index.images)


def test_answers_of_some_patches_leave_the_others_open_and_of_none_are_refused(seen):
    from retrieval.evaluation.submission import Submission

    a = seen.answers
    some = Submission(a.patch_ids[:5], a.image_ids[:5], a.x[:5], a.y[:5])
    found = judge(seen.details, seen.patches.patch_ids, seen.index.images, some)
    assert found.has_answer.sum() == 5 and found.score.n == 5
    none = Submission(a.patch_ids + 1, a.image_ids, a.x, a.y, source="mine.csv")
    with pytest.raises(ConfigError, match="it holds none of the 22 patches"):
        judge(seen.details, seen.patches.patch_ids, seen.index.images, none)


@given(
    st.lists(
        st.tuples(st.sampled_from(["right", "wrong", "shifted"]), st.floats(0, 1)), min_size=1, max_size=60
    ),
    st.integers(1, 40),
    st.booleans(),
)
def test_choice_of_patches(rows, most, answered):
    verdicts = [verdict if answered else "unknown" for verdict, _ in rows]
    best = pd.DataFrame({"verdict": verdicts, "confidence": [sure for _, sure in rows]})
    chosen = choose(PatchResults(best, None, object() if answered else None), most)
    assert len(chosen) == len(set(chosen)) and len(chosen) <= most
    failures = sum(verdict not in ("right", "unknown") for verdict in verdicts)
    if answered:
        kinds = [verdicts[row] != "right" for row in chosen]
        if failures <= most * 2 / 3:
            assert sum(kinds) == failures and kinds == sorted(kinds, reverse=True)
    else:
        sure = best.confidence.iloc[chosen].tolist()
        assert sure == sorted(sure) and sure[0] == best.confidence.min()
    if len(rows) <= most and not (answered and failures > most * 2 / 3):
        assert len(chosen) == len(rows)


# --- pictures and correlation ---------------------------------------------------------------------


def test_a_window_is_that_of_the_padded_image(rng):
    image = rng.normal(size=(90, 80, 2)).astype(np.float32)
    for margin in (0, 5, 70):
        padded = np.pad(image, ((200, 200), (200, 200), (0, 0)), constant_values=np.nan)
        for x, y in ((0, 0), (16, 26), (79, 89), (5, 3)):
            side = 64 + 2 * margin
            top, left = 200 + y - margin, 200 + x - margin
            cut = crop_window(image, Window(0, x, y, margin))
            np.testing.assert_array_equal(cut, padded[top : top + side, left : left + side])


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (5, -7), (-16, 16)])
def test_the_surface_peaks_where_the_patch_lies(dx, dy):
    image = texture(200, 200, seed=4)
    x, y = 60, 70
    patch = image[y : y + 64, x : x + 64]
    region = crop_window(image, Window(0, x - dx, y - dy, SHIFT_PX))
    inside = shifts_inside(200, 200, x - dx, y - dy)
    (surface,) = correlations(patch[None], region[None], inside[None])
    row, col = np.unravel_index(surface.argmax(), surface.shape)
    assert (col - SHIFT_PX, row - SHIFT_PX) == (dx, dy) and surface.max() == pytest.approx(1, abs=1e-3)


def test_shifts_out_of_the_image_are_open():
    inside = shifts_inside(100, 64, 30, 0)
    rows, cols = np.nonzero(inside)
    assert set(rows - SHIFT_PX) == {0} and set(cols - SHIFT_PX) == set(range(-16, 7))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (70, 130), (500, 333)])
def test_an_overview_covers_whole_squares_only(rng, height, width):
    scaled = rng.uniform(-1, 1, (height, width, 4)).astype(np.float32)
    scaled[:20] = np.nan
    made = overview(scaled, ("B04", "B03", "B02", "B08"), 50)
    step = max(1, round(max(height, width) / 50))
    assert (made.width, made.height) == (width // step * step, height // step * step)
    assert made.uri.startswith("data:image/webp;base64,")


def test_colours_go_by_the_names_of_the_bands(rng):
    pixels = rng.uniform(-1, 1, (8, 8, 4)).astype(np.float32)
    turned = pixels[..., ::-1]
    for draw in (natural, infrared):
        np.testing.assert_allclose(
            draw(pixels, ("B04", "B03", "B02", "B08")), draw(turned, ("B08", "B02", "B03", "B04")), atol=1e-6
        )
    assert infrared(pixels[..., :3], ("B04", "B03", "B02")) is None
    assert natural(pixels[..., :2], ("B11", "B12")).shape == (8, 8, 4)


# --- places ---------------------------------------------------------------------------------------


def stored(image_id, path="", crs=None, transform=None, date=None, size=(100, 100)):
    return StoredImage(image_id, path, *size, ("B04",), crs, transform, date, 1)


def test_neighbours_share_a_sheet_and_dates_of_one_ground_do_not():
    def at(x, y):
        return (10.0, 0.0, x, 0.0, -10.0, y)

    utm = "EPSG:32631"
    images = [
        stored(0, "a/x.tif", utm, at(0, 5000)),
        stored(1, "a/y.tif", utm, at(1000, 5000)),
        stored(2, "a/z.tif", utm, at(0, 5000), "2020-01-01"),
        stored(3, "b/far.tif", utm, at(90_000, 5000)),
        stored(4, "b/no.tif"),
        stored(5, "c/other.tif", "EPSG:32632", at(0, 5000)),
    ]
    layout = lay_out(images)
    assert [[p.image.image_id for p in s.images] for s in layout.sheets] == [[0, 1], [2], [3], [4], [5]]
    assert layout.place_of == {0: 0, 1: 0, 2: 0, 3: 1, 4: 2, 5: 3}
    assert layout.labels[0] == "a/x" and layout.places[0] == "a"
    left, right = layout.sheets[0].images
    assert left.box() == (0, 0, 1000, 1000) and right.box() == (1000, 0, 2000, 1000)
    assert left.affine == (10, 0, 0, 0, 10, 0)  # north is up, and y goes down
    assert [sheet.unit_m for sheet in layout.sheets] == [1, 1, 1, None, 1]
    assert "2020-01-01" in layout.sheets[1].name


def test_degrees_of_longitude_are_shortened_and_strange_systems_do_not_stop_it():
    images = [
        stored(0, crs="EPSG:4326", transform=(1e-3, 0, 10, 0, -1e-3, 60.05)),
        stored(1, crs="no such system", transform=(1, 0, 0, 0, -1, 0)),
    ]
    layout = lay_out(images)
    (placed,) = layout.sheets[0].images
    left, top, right, bottom = placed.box()
    assert (right - left) / (bottom - top) == pytest.approx(0.5, abs=1e-3)  # cos 60 degrees
    assert layout.sheets[0].unit_m == pytest.approx(111_320) and layout.sheets[1].unit_m is None
    assert layout.labels == {0: "image 0", 1: "image 1"}


@given(st.floats(1, 1e7))
def test_a_scale_is_round_and_fits(extent):
    bar = scale_bar(extent)
    assert extent / 12 < bar <= extent / 4 * (1 + 1e-9)
    assert f"{bar:e}"[0] in "125" and metres(bar)


# --- charts and markup ----------------------------------------------------------------------------


@given(st.floats(-1e4, 1e4), st.floats(0.01, 1e5), st.integers(3, 8))
def test_ticks_are_round_and_within(low, span, about):
    made = round_ticks(low, low + span, about)
    assert 1 <= len(made) <= 2 * about + 2
    assert low - span * 1e-6 <= made[0] and made[-1] <= low + span * (1 + 1e-6)


def test_a_chart_puts_ends_on_its_edges():
    chart = Chart((0, 10), (0, 1))
    (left, foot), (right, top) = chart.at(0, 0), chart.at(10, 1)
    assert left < right and top < foot and chart.at(99, 9) == (right, top)


def test_wilson_by_hand():
    low, high = wilson(0.0, 10)
    assert low == pytest.approx(0, abs=1e-12) and high == pytest.approx(0.2775, abs=1e-4)
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)


def test_coverage_and_reliability_hold_the_counted_numbers(rng):
    confidence = rng.random(400)
    is_right = rng.random(400) < confidence
    kept = confidence >= 0.9
    text = f"0.9: {kept.mean():.1%} kept, {is_right[kept].mean():.1%} right"
    assert text in coverage(confidence, is_right).caption
    tenth = (confidence >= 0.3) & (confidence < 0.4)
    row = ["0.3 to 0.4", tenth.sum(), f"{confidence[tenth].mean():.3f}", f"{is_right[tenth].mean():.3f}"]
    assert row in [list(r[:4]) for r in reliability(confidence, is_right).table.rows]


@given(st.text(), st.text())
def test_every_text_and_attribute_of_the_page_is_escaped(text, attribute):
    clean, name = (
        "".join(c for c in t if c not in "\r\x00" and not "\ud800" <= c <= "\udfff")
        for t in (text, attribute)
    )
    figure = Figure(clean, Chart((0, 1), (0, 1), name), "", Table(name, [clean], [[name, clean]]))
    html = render(
        PageView(clean, name, None, [figure], MapView([], [], ""), [], "", Filters((), (), (), False))
    )
    outline = Outline(html)
    assert outline.problems == [] and len(outline.all("script")) == 1
    assert outline.words.count(clean) >= 4 or not clean.strip()
    assert outline.all("svg", **{"class": "chart"})[0]["aria-label"] == f"{name}. "


def test_numbers_in_a_chart_are_short():
    assert [number(v) for v in (1.0, 0.5, -0.001, 12.345)] == ["1", "0.5", "0", "12.35"]


# --- chips ----------------------------------------------------------------------------------------


def test_chips_of_any_size_and_bands_are_shown_as_large_as_they_are(seen, tmp_path):
    by_id = {
        image.image_id: (image.pixels[..., :3] / 17).clip(0, 255).astype(np.uint8) for image in seen.images
    }
    PIL.Image.fromarray(by_id[1][20:120, 30:150]).save(tmp_path / "wide.png")
    PIL.Image.fromarray(by_id[7][8:72, 40:104]).save(tmp_path / "small.png")
    chips = read_queries(str(tmp_path))
    found = Index(seen.index).matches(chips)
    assert found.best()[0].tolist() == [7, 1]
    made = write_page(tmp_path / "chips.html", seen.index, chips, found.details())
    outline = Outline(made.path.read_text(encoding="utf-8"))
    assert not outline.problems and made.shown == 2
    prints = [(a["x"], a["y"]) for a in outline.all("rect", width="120", height="100") if a["x"] != "64"]
    assert prints == [("30", "20")]
    sides = [(a["width"], a["height"]) for a in outline.all("img") if a["alt"] == "patch 1, the query"]
    assert sides == [("120", "100")] and "wide.png" in outline.text


@pytest.mark.parametrize(("x", "fits"), [(-40, True), (-200, False), (170, False)])
def test_a_chip_may_stick_out_of_its_image_and_no_further(x, fits):
    row = {"patch_id": 3, "rank": 0, "image_id": 0, "x": x, "y": 0}
    row |= dict.fromkeys(("dx", "dy", "similarity", "ncc", "confidence"), 0.5)
    given = pd.DataFrame([row]), np.array([3]), {0: stored(0)}
    if fits:
        assert judge(*given, sizes=np.array([[80, 150]])).best.width.tolist() == [150]
        return
    with pytest.raises(ConfigError, match="puts patch 3 at"):
        judge(*given, sizes=np.array([[80, 150]]))
