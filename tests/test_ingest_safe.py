"""Sentinel-2 products, as folders and zips, to places: numbers, masks, parts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import rasterio
from safe_job import SIDE, edited, ground, images_of, no_partial_files, pixels_of, tags_of
from safetree import BANDS, Spec, write_product, write_small_world, zipped
from test_readme import run_page
from typer.testing import CliRunner

from retrieval.cli import app
from retrieval.errors import ConfigError
from retrieval.ingest.grids import overlapping
from retrieval.ingest.run import ingest
from tfrecords.errors import (
    GridError,
    MissingInputError,
    OutputExistsError,
    ProductError,
)
from tfrecords.read import describe_raster, read_images, read_raster, read_series
from tfrecords.schema.records import Provenance


@pytest.mark.parametrize("level", ["1C", "2A"])
@pytest.mark.parametrize("packed", [False, True, "top"])
@pytest.mark.parametrize(
    ("baseline", "offset", "quantification"),
    [("02.08", None, 10000), ("05.09", -1000, 10000), ("05.09", -500, 5000)],
)
def test_every_kind_of_product_gives_the_same_numbers(
    safes, tmp_path, spec, level, packed, baseline, offset, quantification
):
    if quantification != 10000:
        spec.pixels -= spec.pixels % 2  # half numbers would be rounded in the product
        spec.pixels += 2
    spec.pixels[:20, :30] = 0
    spec = replace(spec, level=level, baseline=baseline, offset=offset, quantification=quantification)
    source = write_product(safes, spec)
    if packed:
        source = zipped(source, at_top=packed == "top")
    for named in (source, safes):
        out = tmp_path / named.name.replace(".", "_")
        report = images_of(named, out)
        assert (report.places, report.records) == (1, 1)
        assert np.array_equal(pixels_of(out), spec.pixels)
    image = next(iter(read_images(out)))
    assert image.bands == BANDS and image.nodata == 0 and image.units == "dn" and image.crs == "EPSG:32631"
    assert image.transform == (10, 0, 300000, 0, -10, 4900020)
    found = Provenance.from_tags(tags_of(out / "31TCJ" / "2023-07-06.tif"))
    name = spec.name if packed != "top" else source.name.removesuffix(".SAFE.zip")
    assert found == Provenance(name, "2023-07-06T10:56:21.024Z", baseline, 12.5, found.recipe)
    assert found.recipe and no_partial_files(out)


@pytest.mark.parametrize("level", ["1C", "2A"])
def test_products_before_december_2016(safes, tmp_path, spec, level):
    scene = np.full((SIDE // 2, SIDE // 2), 4)
    scene[:8] = 9
    old = replace(spec, level=level, baseline="02.04", offset=None, old=True, scene=scene)
    write_product(safes, old)
    images_of(safes, tmp_path / "out")
    expected = spec.pixels.copy()
    if level == "2A":
        expected[:16] = 0
    assert np.array_equal(pixels_of(tmp_path / "out"), expected)


@pytest.mark.parametrize("snow", [False, True])
def test_the_scene_classification_hides_pixels(safes, tmp_path, spec, snow, rng):
    scene = rng.integers(0, 12, (SIDE // 2, SIDE // 2))
    write_product(safes, replace(spec, scene=scene))
    images_of(safes, tmp_path / "out", hide_snow=snow)
    hidden = np.isin(scene, (0, 1, 3, 8, 9, 10, *((11,) if snow else ()))).repeat(2, 0).repeat(2, 1)
    found = pixels_of(tmp_path / "out")
    assert (found[hidden] == 0).all() and np.array_equal(found[~hidden], spec.pixels[~hidden])
    from tfrecords.schema import is_nodata

    assert np.array_equal(
        is_nodata(found, describe_raster(tmp_path / "out/31TCJ/2023-07-06.tif").nodata), hidden
    )


def test_a_pixel_that_one_band_lacks_is_nodata_in_all(safes, tmp_path, spec):
    spec.pixels[10:20, 30:40, 2] = 0
    write_product(safes, spec)
    images_of(safes, tmp_path / "out")
    found = pixels_of(tmp_path / "out")
    assert (found[10:20, 30:40] == 0).all() and (found == 0).any(axis=-1).sum() == 100


def test_a_product_without_classification_is_noted(safes, tmp_path, spec):
    write_product(safes, replace(spec, level="1C"))
    assert any("no cloud is hidden" in note for note in images_of(safes, tmp_path / "out").notes)


GML = """<?xml version="1.0" encoding="UTF-8"?>
<eop:Mask xmlns:eop="http://www.opengis.net/eop/2.0" xmlns:gml="http://www.opengis.net/gml/3.2">
<eop:maskMembers><eop:MaskFeature><eop:maskType>OPAQUE</eop:maskType><eop:extentOf><gml:Polygon><gml:exterior>
<gml:LinearRing><gml:posList srsDimension="2">{ring}</gml:posList></gml:LinearRing></gml:exterior>
</gml:Polygon></eop:extentOf></eop:MaskFeature></eop:maskMembers></eop:Mask>"""


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_the_polygons_of_level_1c_hide_cloud(safes, tmp_path, rng, old, packed):
    spec = Spec(ground(rng), level="1C", baseline="02.04", offset=None, old=old)
    root = write_product(safes, spec)
    left, top = spec.corner
    corners = [(20, 30), (80, 30), (80, 90), (20, 90), (20, 30)]
    ring = " ".join(f"{left + 10 * x:g} {top - 10 * y:g}" for x, y in corners)
    (folder,) = (path for path in (root / "GRANULE").iterdir())
    name = "S2A_OPER_MSK_CLOUDS_EPAE_20230706T105621_A000001_T31TCJ_B00_MSIL1C" if old else "MSK_CLOUDS_B00"
    (folder / "QI_DATA").mkdir()
    (folder / "QI_DATA" / f"{name}.gml").write_text(GML.format(ring=ring))
    if packed:
        zipped(root)
    notes = images_of(safes, tmp_path / "out").notes
    expected = spec.pixels.copy()
    expected[30:90, 20:80] = 0
    assert np.array_equal(pixels_of(tmp_path / "out"), expected)
    assert not any("no cloud is hidden" in note for note in notes)


SQUARES = [[(20, 30), (120, 30), (120, 130), (20, 130)], [(40, 50), (70, 50), (70, 80), (40, 80)]]
"""Corners of a cloud and of a hole in it, columns and rows."""


@pytest.mark.parametrize("order", ["xy", "xyz"])
def test_holes_of_cloud_polygons_stay_visible(safes, tmp_path, rng, order):
    """A second cloud lies in the hole of the first; three numbers a corner are read alike."""
    spec = Spec(ground(rng), level="1C", baseline="02.04", offset=None)
    root = write_product(safes, spec)
    squares = [*SQUARES, [(50, 60), (60, 60), (60, 70), (50, 70)], [(80, 90), (90, 90), (90, 95), (80, 95)]]
    rings = [ring_text(spec, [*corners, corners[0]], order) for corners in squares]
    outer, hole, inner, other_hole = (
        f'<gml:LinearRing><gml:posList srsDimension="{len(order)}">{ring}</gml:posList></gml:LinearRing>'
        for ring in rings
    )
    text = GML.format(ring="").partition("<gml:exterior>")[0]
    text += f"<gml:exterior>{outer}</gml:exterior><gml:interior>{hole}</gml:interior>"
    text += f"<gml:interior>{other_hole}</gml:interior></gml:Polygon><gml:Polygon>"
    text += f"<gml:exterior>{inner}</gml:exterior>" + GML.partition("</gml:exterior>")[2].lstrip()
    (folder,) = (path for path in (root / "GRANULE").iterdir())
    (folder / "QI_DATA").mkdir()
    (folder / "QI_DATA" / "MSK_CLOUDS_B00.gml").write_text(text)
    images_of(safes, tmp_path / "out")
    hidden = np.zeros((SIDE, SIDE), bool)
    hidden[30:130, 20:120] = True
    hidden[50:80, 40:70] = hidden[90:95, 80:90] = False
    hidden[60:70, 50:60] = True
    assert np.array_equal(pixels_of(tmp_path / "out"), np.where(hidden[..., None], 0, spec.pixels))


def ring_text(spec, corners, order):
    left, top = spec.corner
    third = " 0" if order == "xyz" else ""
    return " ".join(f"{left + 10 * x:g} {top - 10 * y:g}{third}" for x, y in corners)


@pytest.mark.parametrize("snow", [False, True])
def test_the_classes_of_level_1c_hide_cloud(safes, tmp_path, rng, snow):
    spec = Spec(ground(rng), level="1C")
    root = write_product(safes, spec)
    classes = np.zeros((3, 27, 27), np.uint8)  # opaque cloud, cirrus, snow; pixels of 60 m
    classes[0, 2:4, 5:9], classes[1, 10, 10], classes[2, 20:22, 1:3] = 1, 1, 1
    (folder,) = (path for path in (root / "GRANULE").iterdir())
    (folder / "QI_DATA").mkdir()
    profile = {"height": 27, "width": 27, "count": 3, "dtype": "uint8", "driver": "JP2OpenJPEG"}
    place = {"crs": "EPSG:32631", "transform": rasterio.Affine(60, 0, spec.corner[0], 0, -60, spec.corner[1])}
    with rasterio.open(
        folder / "QI_DATA/MSK_CLASSI_B00.jp2",
        "w",
        QUALITY="100",
        REVERSIBLE="YES",
        YCBCR420="NO",
        **profile,
        **place,
    ) as file:
        file.write(classes)
    images_of(safes, tmp_path / "out", hide_snow=snow)
    marks = (classes if snow else classes[:2]).any(0).repeat(6, 0).repeat(6, 1)[:SIDE, :SIDE]
    expected = np.where(marks[..., None], 0, spec.pixels)
    assert np.array_equal(pixels_of(tmp_path / "out"), expected)


def test_a_damaged_cloud_mask_is_named(safes, tmp_path, rng):
    root = write_product(safes, Spec(ground(rng), level="1C", baseline="02.04", offset=None))
    (folder,) = (path for path in (root / "GRANULE").iterdir())
    (folder / "QI_DATA").mkdir()
    (folder / "QI_DATA" / "MSK_CLOUDS_B00.gml").write_text(GML.format(ring="1 2 three"))
    with pytest.raises(ProductError, match=r"MSK_CLOUDS_B00\.gml: a ring is no list of coordinates"):
        images_of(root, tmp_path / "out")


def lonlat(x, y, epsg=32631):
    from rasterio.warp import transform

    lon, lat = transform(f"EPSG:{epsg}", "EPSG:4326", [x], [y])
    return lon[0], lat[0]


def test_only_the_part_in_the_box_is_read(safes, tmp_path, rng, monkeypatch):
    big = Spec(ground(rng, 400, 420))
    write_product(safes, big)
    west, south = lonlat(301303, 4897303)
    east, north = lonlat(302507, 4898507)
    reads = []
    from retrieval.ingest.safe import tile

    original = tile.read_window
    monkeypatch.setattr(
        tile, "read_window", lambda d, part, name: reads.append(part) or original(d, part, name)
    )
    report = images_of(safes, tmp_path / "out", bbox=f"{west},{south},{east},{north}")
    raster = describe_raster(tmp_path / "out/31TCJ/2023-07-06.tif")
    _, _, left, _, _, top = raster.transform
    x0, y0 = round((left - 300000) / 10), round((4900020 - top) / 10)
    assert np.array_equal(
        pixels_of(tmp_path / "out"), big.pixels[y0 : y0 + raster.height, x0 : x0 + raster.width]
    )
    # The box is inside, and no edge is further off than the tilt of meridians there makes it.
    assert left <= 301303 and left + 10 * raster.width >= 302507 and top >= 4898507
    assert top - 10 * raster.height <= 4897303 and raster.width < 130 and raster.height < 130
    assert report.records == 1 and {(p.width <= 130, p.height <= 130) for p in reads} == {(True, True)}


@pytest.mark.parametrize(("epsg", "lon"), [(32701, -179.99), (32760, 179.985)])
@pytest.mark.parametrize("box", ["179.98,-17.02,-179.98,-17.005", "179.98,-17.02,180,-17.005"])
def test_a_tile_across_the_antimeridian(safes, tmp_path, rng, epsg, lon, box):
    from rasterio.warp import transform

    x, y = transform("EPSG:4326", f"EPSG:{epsg}", [lon], [-17.0])
    left = round(x[0] / 10) * 10 - 2500
    across = Spec(ground(rng, 400, 400), tile="01KAB", epsg=epsg, corner=(left, round(y[0] / 10) * 10.0))
    write_product(safes, across)
    images_of(safes, tmp_path / "out", bbox=box)
    (path,) = (tmp_path / "out/01KAB").glob("*.tif")
    raster = describe_raster(path)
    *_, east, _ = (float(v) for v in box.split(","))
    middle, _ = lonlat(raster.transform[2] + 5 * raster.width, raster.transform[5] - 500, epsg)
    # 10:56 UTC is nearly 23:00 of the same day at 180 degrees east, and of the day before at 180 west.
    assert raster.date == path.stem == ("2023-07-06" if middle > 0 else "2023-07-05")
    assert abs(middle) > 179.97 and 64 <= raster.width < 400
    if east == 180:
        assert middle > 0


def test_the_command_takes_a_box_across_the_antimeridian(safes, tmp_path, rng):
    across = Spec(ground(rng, 400, 400), tile="01KAB", epsg=32701, corner=(178_000, 8_118_000))
    write_product(safes, across)
    how = ["--as", "images", "--out", str(tmp_path / "out"), "--bbox", "179.99,-17.02,-179.99,-17"]
    done = CliRunner().invoke(app, ["ingest", str(safes), *how])
    assert done.exit_code == 0, done.output
    (path,) = (tmp_path / "out/01KAB").glob("*.tif")
    raster = describe_raster(path)
    west, _ = lonlat(raster.transform[2], raster.transform[5], 32701)
    east, _ = lonlat(raster.transform[2] + 10 * raster.width, raster.transform[5], 32701)
    assert 179.98 < west < 179.9901 and -179.9901 < east < -179.98


def test_places_on_both_sides_of_the_antimeridian_share_ground(safes, tmp_path, rng):
    from rasterio.warp import transform

    rasters = []
    for number, (epsg, lon) in enumerate([(32701, 179.99), (32760, 179.99), (32701, -179.9)]):
        (x,), (y,) = transform("EPSG:4326", f"EPSG:{epsg}", [lon], [-17.0])
        write_product(safes, Spec(ground(rng), tile=f"01KA{'BCD'[number]}", epsg=epsg, corner=(x, y)))
    images_of(safes, tmp_path / "out")
    rasters = [describe_raster(path) for path in sorted((tmp_path / "out").rglob("*.tif"))]
    assert overlapping(rasters) == [0, 0, 2]


def test_a_box_outside_of_the_tile_or_too_small(safes, tmp_path, spec):
    write_product(safes, spec)
    with pytest.raises(MissingInputError, match=r"outside of the box: S2A_MSIL2A_20230706"):
        images_of(safes, tmp_path / "out", bbox="5,44,6,45")
    west, north = lonlat(300100, 4900000)
    with pytest.raises(MissingInputError, match=r"less than 64 x 64 px within the box"):
        images_of(safes, tmp_path / "out", bbox=f"{west},{north - 0.002},{west + 0.002},{north}")
    assert not (tmp_path / "out").exists()
    assert images_of(safes, tmp_path / "out", bbox="-180,-90,180,90").records == 1


def test_dates_and_cloud_choose_products(safes, tmp_path, spec):
    for year, cloud in ((2021, 5), (2022, 60), (2023, 10)):
        write_product(safes, replace(spec, taken=f"{year}-07-06T10:56:21", cloud=cloud))
    report = images_of(safes, tmp_path / "out", dates="2022/", max_cloud=20)
    assert [p.stem for p in sorted((tmp_path / "out").rglob("*.tif"))] == ["2023-07-06"]
    message = " ".join(report.notes)
    assert "skipped, outside of the dates 2022-01-01/..: S2A_MSIL2A_20210706" in message
    assert "skipped, more than 20 % cloud: S2A_MSIL2A_20220706" in message
    with pytest.raises(
        MissingInputError, match=r"nothing to ingest: outside of the dates 2030.*20210706.*20220706"
    ):
        images_of(safes, tmp_path / "none", dates="2030/")
    with pytest.raises(ConfigError, match="--max-cloud"):
        images_of(safes, tmp_path / "none", max_cloud=101)
    assert not (tmp_path / "none").exists()


FIJI = {"tile": "60KXF", "epsg": 32760, "corner": (604_000.0, 8_118_000.0)}
"""Ground at 178 degrees east, where the solar day begins at 12:08 UTC."""


def test_the_acquisition_day_is_the_solar_day(safes, tmp_path, rng):
    times = ("2023-08-21T00:07:11", "2023-08-21T22:19:41", "2023-08-21T23:37:00")
    specs = [Spec(ground(rng), taken=taken, made="2023-08-25T00:00:00", **FIJI) for taken in times[::2]]
    for spec in specs:
        write_product(safes, spec)
    images_of(safes, tmp_path / "out")
    assert np.array_equal(pixels_of(tmp_path / "out", "60KXF/2023-08-21.tif"), specs[0].pixels)
    assert np.array_equal(pixels_of(tmp_path / "out", "60KXF/2023-08-22.tif"), specs[1].pixels)
    # The tag holds UTC, from which the index computes the same day.
    path = tmp_path / "out/60KXF/2023-08-22.tif"
    assert tags_of(path)["DATETIME"] == "2023-08-21T23:37:00.024Z" and describe_raster(path).date == path.stem
    # --dates selects by that day, of products and of the files made from them.
    for number, source in enumerate((safes, tmp_path / "out")):
        part = tmp_path / f"part{number}"
        images_of(source, part, dates="2023-08-22")
        assert [file.name for file in part.rglob("*.tif")] == ["2023-08-22.tif"]


def test_the_newest_baseline_of_a_day_comes_first_and_others_fill_it(safes, tmp_path, rng):
    first, second, third = ground(rng), ground(rng), ground(rng)
    first[:, :60] = 0
    second[:, :20] = 0
    scene = np.full((SIDE // 2, SIDE // 2), 4)
    scene[:10] = 8
    write_product(safes, Spec(second, baseline="04.00", made="2024-01-01T00:00:00"))
    write_product(safes, Spec(first, baseline="05.10", scene=scene))
    write_product(safes, Spec(third, level="1C"))
    report = images_of(safes, tmp_path / "out")
    expected = first.copy()
    expected[:20] = 0
    expected[:, 20:60] = second[:, 20:60]
    expected[:, :20] = 0
    assert np.array_equal(pixels_of(tmp_path / "out"), expected)
    message = " ".join(report.notes)
    assert "its nodata filled from S2A_MSIL2A_20230706T105621_N0400" in message
    assert "is taken from S2A_MSIL2A_20230706T105621_N0510" in message and "MSIL1C" in message
    source = tags_of(tmp_path / "out/31TCJ/2023-07-06.tif")["SOURCE"]
    assert source.split() == [
        Spec(first, baseline="05.10").name,
        Spec(second, baseline="04.00", made="2024-01-01T00:00:00").name,
    ]


def test_a_second_run_keeps_existing_dates_and_adds_new_ones(safes, tmp_path, spec, monkeypatch):
    out = tmp_path / "out"
    write_product(safes, spec)
    images_of(safes, out)
    first = out / "31TCJ/2023-07-06.tif"
    before = first.stat().st_mtime_ns
    write_product(safes, replace(spec, taken="2023-08-05T10:56:21"))
    report = images_of(safes, out)
    assert report.records == 2 and first.stat().st_mtime_ns == before
    assert any("1 dates exist already" in note for note in report.notes)
    with pytest.raises(OutputExistsError, match=r"2023-07-06\.tif.*--overwrite"):
        images_of(safes, out, hide_snow=True)
    assert first.stat().st_mtime_ns == before
    images_of(safes, out, hide_snow=True, overwrite=True)
    assert first.stat().st_mtime_ns != before
    west, south = lonlat(300200, 4898600)
    write_product(safes, replace(spec, taken="2023-09-05T10:56:21"))
    with pytest.raises(GridError, match="another box"):
        images_of(safes, out, dates="2023-09", bbox=f"{west},{south},{west + 0.01},{south + 0.007}")


def test_an_interrupted_run_resumes(safes, tmp_path, spec):
    for month in (6, 7, 8):
        write_product(safes, replace(spec, taken=f"2023-0{month}-05T10:56:21"))

    def stop(stage, done, total):
        if (stage, done, total) == ("reading blocks", 2, 3):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(safes, tmp_path / "out", as_="series", progress=stop)
    assert not (tmp_path / "out").exists()
    work = tmp_path / "out.places"
    assert [p.stem for p in sorted(work.rglob("*.tif"))] == ["2023-06-05"] and no_partial_files(work)
    calls = []
    report = ingest(safes, tmp_path / "out", as_="series", progress=lambda *call: calls.append(call))
    assert calls[:2] == [("reading blocks", 1, 2), ("reading blocks", 2, 2)]
    assert calls[-1] == ("writing series", 1, 1) and report.records == 1 and not work.exists()
    assert next(iter(read_series(tmp_path / "out"))).dates == ("2023-06-05", "2023-07-05", "2023-08-05")


def test_files_of_the_user_in_the_temporary_folder_are_kept(safes, tmp_path, spec):
    write_product(safes, spec)
    mine = tmp_path / "out.places" / "mine.tif"
    mine.parent.mkdir()
    mine.write_bytes(b"mine")
    with pytest.raises(OutputExistsError, match=r"mine\.tif in it was not written by this command"):
        ingest(safes, tmp_path / "out")
    assert mine.read_bytes() == b"mine"


def test_products_become_series_and_challenges(safes, tmp_path, spec, rng):
    second = ground(rng)
    write_product(safes, spec)
    write_product(safes, replace(spec, pixels=second, taken="2023-08-05T10:56:21"))
    report = ingest(safes, tmp_path / "c", as_="challenge", patches_per_image=3)
    assert (report.places, report.records, report.patches) == (1, 1, 3)
    image = next(iter(read_images(tmp_path / "c" / "test_images.tfrecords")))
    assert np.array_equal(image.pixels, second) and image.crs == "EPSG:32631"
    ingest(safes, tmp_path / "s")
    series = next(iter(read_series(tmp_path / "s")))
    assert np.array_equal(series.pixels, np.stack([spec.pixels, second])) and series.place == "31TCJ"
    with pytest.raises(OutputExistsError):
        ingest(safes, tmp_path / "s")


def test_a_wrong_offset_gives_a_warning_and_changes_nothing(safes, tmp_path, rng):
    for month, offset in ((5, -1000), (6, -1000), (7, -1000), (8, -1000)):
        pixels = rng.integers(100 + month, 5000, (SIDE, SIDE, 4)).astype(np.uint16)
        write_product(safes, Spec(pixels, taken=f"2023-0{month}-05T10:56:21", offset=offset))
    assert not [note for note in images_of(safes, tmp_path / "right").notes if "warning" in note]
    root = next(safes.glob("*20230705*"))
    edited(">-1000<", ">0<")(root)
    (note,) = (note for note in images_of(safes, tmp_path / "wrong").notes if "warning" in note)
    assert (
        "31TCJ" in note
        and "2023-07-05 (+1001 DN)" in note
        and "2023-06" not in note
        and "left unchanged" in note
    )
    wrong, right = (pixels_of(tmp_path / name, "31TCJ/2023-07-05.tif") for name in ("wrong", "right"))
    assert np.array_equal(wrong, right + 1000)


def test_products_that_are_not_used_are_not_noted(safes, tmp_path, rng):
    write_product(safes, Spec(ground(rng), level="1C", offset=None))  # without offsets and without classes
    write_product(safes, Spec(ground(rng), level="2A"))
    notes = images_of(safes, tmp_path / "out").notes
    assert not any("offset" in note or "no cloud is hidden" in note for note in notes), notes


def test_a_new_baseline_without_offsets_is_noted(safes, tmp_path, spec):
    write_product(safes, replace(spec, offset=None))
    assert any(
        "no BOA_ADD_OFFSET in its metadata: an offset of 0 was assumed" in n
        for n in images_of(safes, tmp_path / "o").notes
    )


def test_the_command_prints_what_it_wrote_and_skipped(safes, tmp_path, spec, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_product(safes, spec)
    write_product(safes, replace(spec, taken="2023-08-05T10:56:21", cloud=80))
    done = CliRunner().invoke(
        app, ["ingest", "safes", "--as", "images", "--out", "places", "--max-cloud", "50"]
    )
    assert done.exit_code == 0 and done.stdout == "places: 1 dates of 1 places\n"
    assert "skipped, more than 50 % cloud: S2A_MSIL2A_20230805" in done.stderr
    done = CliRunner().invoke(app, ["ingest", "safes", "--out", "s", "--bbox", "-1,44,-2,45"])
    assert done.exit_code == 1 and "west -1 is not less than east -2" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["places", "safes"]


def test_the_how_to_runs(tmp_path, monkeypatch, write_tif):
    monkeypatch.chdir(tmp_path)
    write_small_world(tmp_path / "downloads")
    images_of(tmp_path / "downloads", tmp_path / "first")
    seen = read_raster(tmp_path / "first" / "31TCJ" / "2019-07-07.tif")[0]
    write_tif("chips/field.tif", seen[96:160, 40:104], descriptions=BANDS, nodata=0)
    run_page("docs/how-to/safe.md", monkeypatch)
    assert (tmp_path / "found" / "submission.csv").read_text().startswith("Patch ID,Result\n0,0 ")
    assert [p.stem for p in sorted((tmp_path / "part" / "31TCJ").iterdir())] == ["2022-07-11", "2023-09-04"]
    assert sorted(p.name for p in tmp_path.glob("*.places")) == []
    found = read_raster(tmp_path / "places" / "31TCJ" / "2022-07-11.tif")[0]
    assert (found[20:60, 180:220] == 0).all() and (found[:20] != 0).all()
