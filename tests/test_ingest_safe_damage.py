"""Damaged and foreign Sentinel-2 products: each has one clear error."""

from __future__ import annotations

import re
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import rasterio
from safe_job import SIDE, edited, ground, images_of, metadata, no_partial_files, pixels_of, tags_of
from safetree import Spec, write_jp2, write_product, zipped
from typer.testing import CliRunner

from retrieval.cli import app
from tfrecords.errors import (
    DiskFullError,
    MissingInputError,
    ProductError,
    StorageError,
)


def band_file(root, band):
    return next(root.rglob(f"*_{band}*.jp2"))


def missing_band(root):
    band_file(root, "B03").unlink()


def cut_band(root):
    path = band_file(root, "B08")
    path.write_bytes(path.read_bytes()[:-5000])


def empty_band(root):
    band_file(root, "B08").write_bytes(b"")


def cut_xml(root):
    metadata(root).write_text(metadata(root).read_text()[:700])


def entities(root):
    text = metadata(root).read_text().replace("?>\n", '?>\n<!DOCTYPE x [<!ENTITY a "aaaa">]>\n', 1)
    metadata(root).write_text(text)


def entities_in_utf16(root):
    entities(root)
    text = metadata(root).read_text().replace("UTF-8", "UTF-16")
    metadata(root).write_bytes(text.encode("utf-16"))


def other_size(root):
    path = band_file(root, "B02")
    path.unlink()
    write_jp2(path, np.ones((SIDE // 2, SIDE // 2), np.uint16), (300000, 4900020), 32631, 20)


def other_place(root):
    path = band_file(root, "B02")
    path.unlink()
    write_jp2(path, np.ones((SIDE, SIDE), np.uint16), (300010, 4900020), 32631, 10)


def other_scene(root):
    path = band_file(root, "SCL")
    path.unlink()
    write_jp2(path, np.ones((SIDE // 2 + 3, SIDE // 2), np.uint8), (300000, 4900020), 32631, 20)


def a_list_of_files(root):
    target = band_file(root, "B04")
    band_file(root, "B03").write_text(
        f'<VRTDataset rasterXSize="{SIDE}" rasterYSize="{SIDE}"><VRTRasterBand dataType="UInt16" band="1">'
        f"<SimpleSource><SourceFilename>{target}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>"
        "</VRTRasterBand></VRTDataset>"
    )


DAMAGES = [
    (missing_band, "_B03_10m.jp2 is missing"),
    (cut_band, "is truncated"),
    (empty_band, "is not a JPEG 2000 file"),
    (a_list_of_files, "is not a JPEG 2000 file"),
    (lambda root: metadata(root).unlink(), "no MTD_MSIL1C.xml or MTD_MSIL2A.xml"),
    (cut_xml, "MTD_MSIL2A.xml: damaged"),
    (entities, "declares a document type"),
    (entities_in_utf16, "declares a document type"),
    (edited("BOA_QUANTIFICATION", "OTHER_QUANTIFICATION"), "no BOA_QUANTIFICATION_VALUE"),
    (edited('unit="none">10000<', 'unit="none">0<'), "Expected a number above 0"),
    (edited(">-1000<", ">much<"), "BOA_ADD_OFFSET is 'much'. Expected a number"),
    (edited('band_id="7"', 'band_id="17"'), "no BOA_ADD_OFFSET for B08"),
    (edited("<PRODUCT_START_TIME>2023", "<PRODUCT_START_TIME>20x3"), "Expected a time"),
    (edited("GRANULE/L2A", "../GRANULE/L2A"), "is not inside the product"),
    (edited("GRANULE/L2A", "GRANULE/" + 300 * "x" + "L2A"), "is missing"),
    (edited("<IMAGE_FILE>", "<OTHER_FILE>"), "MTD_MSIL2A.xml: damaged"),
    (edited("_B04_10m</IMAGE", "_B04_20m</IMAGE"), "name no image of B04"),
    (edited("Level-2A_User", "Level-3_User"), "describes a Level-3_User_Product"),
    (edited("granuleIdentifier", "identifier"), "names no granule"),
    (other_size, "B02: pixels of 20 x 20 m. Expected 10 m"),
    (other_place, "B02: 160 x 160 px at 300010"),
    (other_scene, "its scene classification has 83 x 80 px"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=range(len(DAMAGES)))
def test_a_damaged_product_is_explained_and_skipped(safes, tmp_path, spec, damage, message):
    root = write_product(safes, spec)
    damage(root)
    with pytest.raises(StorageError) as caught:
        images_of(root, tmp_path / "alone")
    text = str(caught.value)
    assert message in text and spec.name in text and "\n" not in text
    good = write_product(safes, replace(spec, taken="2023-08-05T10:56:21"))
    report = images_of(safes, tmp_path / "out")
    assert [p.stem for p in (tmp_path / "out").rglob("*.tif")] == ["2023-08-05"]
    assert any(note.startswith("skipped: ") and message in note for note in report.notes)
    assert good.exists() and not (tmp_path / "alone").exists()


def test_an_image_with_damaged_blocks_is_explained(safes, tmp_path, rng):
    spec = Spec(ground(rng, 300, 300))
    root = write_product(safes, spec)
    path = band_file(root, "B08")
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 :] = bytes(len(raw) - len(raw) // 2)
    path.write_bytes(raw)
    with pytest.raises(StorageError, match=r"B08_10m\.jp2 is damaged and cannot be decoded"):
        images_of(root, tmp_path / "alone")
    assert not (tmp_path / "alone").exists()
    write_product(safes, replace(spec, taken="2023-08-05T10:56:21"))
    report = images_of(safes, tmp_path / "out")
    assert report.records == 1 and any("cannot be decoded" in note for note in report.notes)
    assert no_partial_files(tmp_path / "out")


@pytest.mark.parametrize("prefix", ["", "downloads/2023/", "a/b/c/d/"])
@pytest.mark.parametrize("separator", ["/", "\\"])
def test_a_zip_can_hold_its_product_at_any_depth(safes, tmp_path, spec, prefix, separator):
    root = write_product(safes, spec)
    with zipfile.ZipFile(safes / "packed.zip", "w") as archive:
        for file in sorted(p for p in root.rglob("*") if p.is_file()):
            info = zipfile.ZipInfo("x")
            info.filename = (prefix + file.relative_to(safes).as_posix()).replace("/", separator)
            archive.writestr(info, file.read_bytes())
    shutil.rmtree(root)
    images_of(safes, tmp_path / "out")
    assert np.array_equal(pixels_of(tmp_path / "out"), spec.pixels)
    assert tags_of(tmp_path / "out/31TCJ/2023-07-06.tif")["SOURCE"] == spec.name


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_product_of_another_mission_is_named(safes, tmp_path, kind):
    root = safes / "S1A_IW_GRDH_1SDV_20230706T060000_20230706T060025_049300_05ED9A_1B2C.SAFE"
    (root / "annotation").mkdir(parents=True)
    (root / "manifest.safe").write_text("<xfdu/>")
    source = root if kind == "folder" else zipped(root)
    with pytest.raises(ProductError, match=r"a product of Sentinel-1\. Expected Sentinel-2") as error:
        images_of(source, tmp_path / "out")
    assert "again" not in str(error.value)


def test_a_run_of_sen2cor_at_20_m_is_named(safes, tmp_path, spec):
    root = write_product(safes, spec)
    path = metadata(root)
    path.write_text(re.sub(r"<IMAGE_FILE>[^<]*_10m</IMAGE_FILE>", "", path.read_text()))
    with pytest.raises(
        ProductError, match=r"B04, B03, B02, B08 are not of 10 m. Run Sen2Cor with --resolution 10"
    ):
        images_of(root, tmp_path / "out")


@pytest.mark.parametrize("level", ["1C", "2A"])
def test_a_product_of_geotiffs_is_read(safes, tmp_path, spec, level):
    root = write_product(safes, replace(spec, level=level))
    for path in list(root.rglob("*.jp2")):
        with rasterio.open(path) as file:
            profile = file.profile | {"driver": "GTiff"}
            with rasterio.open(path.with_suffix(".tif"), "w", **profile) as copy:
                copy.write(file.read())
        path.unlink()
    images_of(root, tmp_path / "out")
    assert np.array_equal(pixels_of(tmp_path / "out"), spec.pixels)


def test_other_archives_are_named(tmp_path):
    (tmp_path / "x.SAFE.tar").write_bytes(bytes(1024))
    with pytest.raises(MissingInputError, match=r"x\.SAFE\.tar: a file that cannot be read here.*Unpack"):
        images_of(tmp_path / "x.SAFE.tar", tmp_path / "out")


@pytest.mark.parametrize("kind", ["product", "folder", "zip"])
def test_index_points_to_ingest_for_products(safes, tmp_path, spec, kind):
    root = write_product(safes, spec)
    source = {"product": root, "folder": safes}.get(kind) or zipped(root)
    done = CliRunner().invoke(app, ["index", str(source), "--out", str(tmp_path / "index")])
    assert done.exit_code == 1
    assert f"retrieve ingest {source} --as images --out places" in done.output.replace("\n", " ")


def test_damaged_and_other_zips_are_explained(safes, tmp_path, spec):
    whole = zipped(write_product(safes, spec))
    other = safes / "other.zip"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("readme.txt", "hello")
    cut = safes / "cut.zip"
    cut.write_bytes(whole.read_bytes()[:-2000])
    with pytest.raises(ProductError, match=r"other\.zip: no MTD_MSIL1C"):
        images_of(other, tmp_path / "out")
    with pytest.raises(ProductError, match=r"cut\.zip: truncated, or not a zip"):
        images_of(cut, tmp_path / "out")
    report = images_of(safes, tmp_path / "out")
    assert report.records == 1 and sum("zip" in note for note in report.notes) == 2
    with pytest.raises(MissingInputError, match="no such file"):
        images_of(safes / "nothing.zip", tmp_path / "other")


def test_days_without_ground_in_the_box_are_skipped(safes, tmp_path, spec):
    write_product(safes, spec)
    scene = np.full((SIDE // 2, SIDE // 2), 9)
    write_product(safes, replace(spec, taken="2023-08-05T10:56:21", scene=scene))
    report = images_of(safes, tmp_path / "out")
    assert [p.stem for p in (tmp_path / "out").rglob("*.tif")] == ["2023-07-06"]
    assert any("no visible ground: 31TCJ 2023-08-05" in note for note in report.notes)
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(MissingInputError, match="no visible ground"):
        images_of(safes, tmp_path / "out", dates="2023-08")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_no_file(safes, tmp_path, spec, monkeypatch):
    write_product(safes, spec)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("retrieval.ingest.dated_image.DateWriter.write", full)
    with pytest.raises(DiskFullError, match="the disk is full"):
        images_of(safes, tmp_path / "out")
    assert not (tmp_path / "out").exists()
