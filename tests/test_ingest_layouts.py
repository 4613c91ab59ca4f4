"""Layouts of other archives: tiles of AWS and products of MAJA give the numbers of the product of ESA."""

from dataclasses import replace

import numpy as np
import pytest
import rasterio
from safetree import BANDS, Spec, write_jp2, write_product, zipped

from retrieval.geo.request import ImageFilter
from retrieval.ingest.run import ingest
from tfrecords.errors import MissingInputError, ProductError
from tfrecords.read import read_images, read_raster
from tfrecords.schema import Provenance

SIDE = 160
TILE = """<?xml version="1.0" encoding="UTF-8"?>
<n1:Level-{level}_Tile_ID xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/S2_PDI_Level-{level}_Tile_Metadata.xsd">
<n1:General_Info>
<{id} metadataLevel="Brief">{name}</{id}>
<SENSING_TIME metadataLevel="Standard">2023-07-06T10:56:21.024Z</SENSING_TIME>
<Archiving_Info><ARCHIVING_TIME>2023-07-06T14:00:00.000000Z</ARCHIVING_TIME></Archiving_Info>
</n1:General_Info>
<n1:Quality_Indicators_Info><Image_Content_QI><CLOUDY_PIXEL_PERCENTAGE>12.5</CLOUDY_PIXEL_PERCENTAGE>
</Image_Content_QI></n1:Quality_Indicators_Info></n1:Level-{level}_Tile_ID>"""
MAJA = """<?xml version="1.0" encoding="UTF-8"?>
<Muscate_Metadata_Document><Dataset_Identification>
<GEOGRAPHICAL_ZONE type="Tile">{tile}</GEOGRAPHICAL_ZONE></Dataset_Identification>
<Product_Characteristics><PRODUCT_LEVEL>{level}</PRODUCT_LEVEL><PRODUCTION_DATE>2023-07-08T01:00:00.000Z</PRODUCTION_DATE>
<ACQUISITION_DATE>2023-07-06T10:56:21.024Z</ACQUISITION_DATE></Product_Characteristics>
<Radiometric_Informations><REFLECTANCE_QUANTIFICATION_VALUE>{divisor}</REFLECTANCE_QUANTIFICATION_VALUE>
<Special_Values_List><SPECIAL_VALUE name="nodata">-10000</SPECIAL_VALUE>
<SPECIAL_VALUE name="water_vapor_content_nodata">0</SPECIAL_VALUE></Special_Values_List>
</Radiometric_Informations>
<Quality_Informations><QUALITY_INDEX name="CloudPercent">13</QUALITY_INDEX></Quality_Informations>
</Muscate_Metadata_Document>"""
CORNER, GRID = (300000.0, 4900020.0), rasterio.Affine(10, 0, 300000, 0, -10, 4900020)
DATE = "31TCJ/2023-07-06.tif"


@pytest.fixture
def pixels(rng):
    """Digital numbers without an offset; a corner is nodata."""
    numbers = rng.integers(300, 9000, (SIDE, SIDE, 4)).astype(np.uint16)
    numbers[:20, :30] = 0
    return numbers


def images_of(source, out, **how):
    return ingest(source, out, as_="images", image_filter=ImageFilter(**how))


def found_in(out):
    return read_raster(out / DATE)[0]


# ---------------------------------------------------------------- AWS


def aws(folder, pixels, level="1C", baseline="05.09", offset=1000, scene=None):
    """Write a tile of AWS; returns the topmost folder of the archive and the tile's."""
    tile = folder / "tiles/31/T/CJ/2023/7/6/0"
    stored = np.where(pixels == 0, 0, pixels + offset).astype(np.uint16)
    for number, band in enumerate(BANDS):
        where = tile / "R10m" if level == "2A" else tile
        write_jp2(where / f"{band}.jp2", stored[..., number], CORNER, 32631, 10)
    if level == "2A":
        scene = np.full((SIDE // 2, SIDE // 2), 4) if scene is None else scene
        write_jp2(tile / "R20m/SCL.jp2", scene.astype(np.uint8), CORNER, 32631, 20)
    name = f"S2A_OPER_MSI_L{level}_TL_2APS_20230706T140000_A041978_T31TCJ_N{baseline}"
    tag = "TILE_ID_2A" if level == "2A" and offset == 0 else "TILE_ID"
    (tile / "metadata.xml").write_text(TILE.format(level=level, id=tag, name=name))
    (tile / "tileInfo.json").write_text('{"path": "tiles/31/T/CJ/2023/7/6/0"}')
    return folder, tile


@pytest.mark.parametrize("level", ["1C", "2A"])
@pytest.mark.parametrize(
    ("baseline", "offset"), [("02.08", 0), ("03.01", 0), ("04.00", 1000), ("05.11", 1000)]
)
def test_a_tile_of_aws_gives_its_digital_numbers(tmp_path, pixels, level, baseline, offset):
    top, tile = aws(tmp_path / "bucket", pixels, level, baseline, offset)
    for number, source in enumerate((top, tile, tile / "metadata.xml")):
        report = images_of(source, tmp_path / f"out{number}")
        assert (report.places, report.records) == (1, 1)
        assert np.array_equal(found_in(tmp_path / f"out{number}"), pixels)
    (image,) = read_images(tmp_path / "out0")
    assert (image.bands, image.crs, image.date) == (BANDS, "EPSG:32631", "2023-07-06")
    name = f"S2A_OPER_MSI_L{level}_TL_2APS_20230706T140000_A041978_T31TCJ_N{baseline}"
    expected = Provenance(name, "2023-07-06T10:56:21.024Z", baseline, 12.5, image.provenance.recipe)
    assert image.provenance == expected


@pytest.mark.parametrize("packed", [False, True])
def test_the_scene_classification_of_aws_hides_cloud(tmp_path, pixels, packed):
    scene = np.full((SIDE // 2, SIDE // 2), 4)
    scene[30:40, 50:70] = 9
    source, _ = aws(tmp_path / "bucket", pixels, "2A", scene=scene)
    images_of(zipped(source) if packed else source, tmp_path / "out")
    pixels[60:80, 100:140] = 0
    assert np.array_equal(found_in(tmp_path / "out"), pixels)


def test_the_cloud_polygons_of_aws_hide_cloud(tmp_path, pixels):
    source, tile = aws(tmp_path / "bucket", pixels, "1C", "02.08", 0)
    corners = [(40, 50), (90, 50), (90, 80), (40, 80), (40, 50)]
    ring = " ".join(f"{CORNER[0] + 10 * x:g} {CORNER[1] - 10 * y:g}" for x, y in corners)
    (tile / "qi").mkdir()
    (tile / "qi/MSK_CLOUDS_B00.gml").write_text(
        '<eop:Mask xmlns:eop="http://www.opengis.net/eop/2.0" xmlns:gml="http://www.opengis.net/gml/3.2">'
        f"<gml:Polygon><gml:exterior><gml:LinearRing><gml:posList>{ring}</gml:posList></gml:LinearRing>"
        "</gml:exterior></gml:Polygon></eop:Mask>"
    )
    images_of(source, tmp_path / "out")
    pixels[50:80, 40:90] = 0
    assert np.array_equal(found_in(tmp_path / "out"), pixels)


def test_an_incomplete_tile_of_aws_is_explained(tmp_path, pixels):
    _, tile = aws(tmp_path / "bucket", pixels)
    (tile / "B08.jp2").rename(tmp_path / "B08.jp2")
    with pytest.raises(ProductError, match=r"no image of B08 of 10 m next to its metadata\. Add it"):
        images_of(tile, tmp_path / "out")
    (tmp_path / "B08.jp2").rename(tile / "B08.jp2")
    text = (tile / "metadata.xml").read_text()
    (tile / "metadata.xml").write_text(text.replace("_N05.09", ""))
    with pytest.raises(ProductError, match="no tile and baseline in the name"):
        images_of(tile, tmp_path / "out")
    (tile / "metadata.xml").unlink()
    with pytest.raises(ProductError, match=r"a tile of AWS without its metadata\. Add metadata\.xml"):
        images_of(tile, tmp_path / "out")


def test_index_points_to_ingest_for_a_tile_of_aws(tmp_path, pixels):
    source, _ = aws(tmp_path / "bucket", pixels)
    with pytest.raises(MissingInputError, match=rf"retrieve ingest {source} --as images"):
        read_images(source)


def test_index_does_not_read_the_bands_of_a_product_as_images(tmp_path, pixels):
    """Of MAJA, and of ESA where images are GeoTIFFs; GeoTIFFs next to a product are read."""
    root = write_product(tmp_path / "esa", Spec(pixels))
    for path in list(root.rglob("*.jp2")):
        with rasterio.open(path) as file:
            write_tif(path.with_suffix(".tif"), file.read(1), file.transform)
        path.unlink()
    for source in (maja(tmp_path / "maja", pixels).parent, root, root.parent):
        with pytest.raises(MissingInputError, match=rf"of a Sentinel-2 product\. .*ingest {source} --as"):
            read_images(source)
    beside = tmp_path / "beside"
    write_product(beside / "downloads", Spec(pixels))
    write_tif(beside / "2020-01-01.tif", pixels[..., 0])
    assert len(read_images(beside)) == 1


# ---------------------------------------------------------------- MAJA


def write_tif(path, numbers, grid=GRID, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {"height": numbers.shape[0], "width": numbers.shape[1], "count": 1, "dtype": numbers.dtype}
    with rasterio.open(path, "w", driver="GTiff", crs="EPSG:32631", transform=grid, **shape, **how) as file:
        file.write(numbers, 1)


def maja(folder, pixels, kinds=("FRE", "SRE"), masks=(), tile="T31TCJ", level="L2A", divisor=10000):
    """Write a product of MAJA; SRE is 7 lower than FRE. Masks are (h, w) by name."""
    name = f"SENTINEL2A_20230706-105621-024_{level}_T31TCJ_C_V3-1"
    root = folder / name
    for kind in kinds:
        change = 7 if kind == "SRE" and "FRE" in kinds else 0
        stored = np.where(pixels == 0, -10000, pixels.astype(np.int64) - change).astype(np.int16)
        for number, band in enumerate(BANDS):
            write_tif(root / f"{name}_{kind}_B{int(band[1:])}.tif", stored[..., number], nodata=-10000)
    write_tif(root / f"{name}_FRE_B8A.tif", np.zeros((SIDE // 2, SIDE // 2), np.int16))
    for mask, marks in dict(masks).items():
        write_tif(root / f"MASKS/{name}_{mask}_R1.tif", marks.astype(np.uint8))
    (root / f"{name}_MTD_ALL.xml").write_text(MAJA.format(tile=tile, level=level, divisor=divisor))
    return root


@pytest.mark.parametrize("kinds", [("FRE", "SRE"), ("SRE",)])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("tile", ["T31TCJ", "31TCJ"])
def test_a_product_of_maja_gives_its_digital_numbers(tmp_path, pixels, kinds, packed, tile):
    root = maja(tmp_path / "in", pixels, kinds, tile=tile)
    notes = images_of(zipped(root) if packed else tmp_path / "in", tmp_path / "out").notes
    assert np.array_equal(found_in(tmp_path / "out"), pixels)
    assert any("SRE is read" in note for note in notes) is ("FRE" not in kinds)
    assert any("no cloud is hidden" in note for note in notes)
    (image,) = read_images(tmp_path / "out")
    assert image.provenance.datetime == "2023-07-06T10:56:21.024Z" and image.provenance.cloud_cover == 13
    assert image.provenance.source == root.name and not image.provenance.baseline


def test_reflectance_of_maja_may_be_0_or_negative(tmp_path, pixels):
    """Both are ground, so they become 1; another quantification is undone."""
    root = maja(tmp_path / "in", pixels, divisor=5000)
    for path in root.glob("*_FRE_B4.tif"):
        with rasterio.open(path, "r+") as file:
            numbers = file.read(1)
            numbers[50, 60:63] = 0, -37, -10000
            file.write(numbers, 1)
    images_of(root, tmp_path / "out")
    found = found_in(tmp_path / "out")
    assert found[50, 60:63, 0].tolist() == [1, 1, 0] and (found[50, 62] == 0).all()
    assert np.array_equal(found[60:], 2 * pixels[60:])


@pytest.mark.parametrize("snow", [False, True])
def test_the_masks_of_maja_hide_pixels(tmp_path, pixels, snow):
    clouds, edge, ground = (np.zeros((SIDE, SIDE), np.uint8) for _ in range(3))
    clouds[30:40, 50:60], clouds[70:75, 80:85], clouds[90:95, 20:25] = 3, 16, 32
    edge[:, 150:] = 1
    ground[100:110, 100:110], ground[120:130, 30:50] = 4, 1  # snow, water
    root = maja(tmp_path / "in", pixels, masks={"CLM": clouds, "EDG": edge, "MG2": ground})
    notes = images_of(root, tmp_path / "out", hide_snow=snow).notes
    hidden = (clouds > 0) | (edge > 0) | (snow & (ground == 4))
    assert np.array_equal(found_in(tmp_path / "out"), np.where(hidden[..., None], 0, pixels))
    assert not any("no cloud is hidden" in note for note in notes)


def test_other_products_of_maja_are_explained(tmp_path, pixels):
    root = maja(tmp_path / "a", pixels, level="L3A")
    with pytest.raises(ProductError, match=r"L3A\. Expected a product of MAJA, L2A"):
        images_of(root, tmp_path / "out")
    root = maja(tmp_path / "b", pixels)
    next(root.glob("*_MTD_ALL.xml")).unlink()
    with pytest.raises(ProductError, match=r"bands of MAJA without their metadata\. Add the product's file"):
        images_of(root, tmp_path / "out")
    root = maja(tmp_path / "c", pixels, ("FRE",))
    next(root.glob("*_FRE_B3.tif")).unlink()
    with pytest.raises(ProductError, match="no image of B03 of 10 m next to its metadata"):
        images_of(root, tmp_path / "out")


def test_products_of_esa_come_before_products_of_maja(tmp_path, pixels):
    """MAJA fills what the other lacks."""
    maja(tmp_path / "in", np.where(pixels == 0, 0, 4321).astype(np.uint16))
    esa = replace(Spec(pixels.copy()), scene=None)
    esa.pixels[:50] = 0
    write_product(tmp_path / "in", esa)
    notes = images_of(tmp_path / "in", tmp_path / "out").notes
    found = found_in(tmp_path / "out")
    assert np.array_equal(found[50:], pixels[50:])
    assert (found[20:50] == 4321).all() and (found[:20, :30] == 0).all()
    assert any("its nodata filled from SENTINEL2A_20230706" in note for note in notes)
