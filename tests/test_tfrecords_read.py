"""What lies on disk -> arrays, and one clear error for what is wrong with it."""

import shutil

import numpy as np
import pytest
import tensorflow as tf

from tfrecords.artifacts import writing_folder
from tfrecords.errors import (
    ArrayError,
    BandsError,
    DuplicateIdError,
    FormatVersionError,
    GridError,
    ManifestError,
    MissingInputError,
    RecordError,
    RetrieveError,
    UnitsError,
)
from tfrecords.read import (
    count_records,
    read_images,
    read_patches,
    read_queries,
    read_series,
    series_files,
)
from tfrecords.schema import (
    BANDS,
    Image,
    Patches,
    Series,
    encode_image,
    encode_patch,
    encode_series,
    to_scaled,
)
from tfrecords.write import write_images, write_patches, write_series

TILE = (10.0, 0.0, 600000.0, 0.0, -10.0, 5700000.0)


def dn(rng, *shape):
    return rng.integers(300, 4000, shape).astype(np.uint16)


def records(path, *raw):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in raw:
            writer.write(record)
    return path


# --- images: arrays ---------------------------------------------------------------------------------


def test_images_of_an_array_and_of_its_file(tmp_path, rng):
    array = dn(rng, 3, 70, 90, 4)
    np.save(tmp_path / "a.npy", array)
    for source in (array, tmp_path / "a.npy", str(tmp_path / "a.npy")):
        images = read_images(source)
        assert len(images) == 3 and "3 images, dn, B04 B03 B02 B08" in images.note
        for _ in range(2):  # again and again
            got = list(images)
            assert [i.image_id for i in got] == [0, 1, 2]
            assert all(i.units == "dn" and i.nodata == 0 and i.bands == BANDS for i in got)
            np.testing.assert_array_equal(np.stack([i.pixels for i in got]), array)


def test_units_of_an_array_are_decided_once(rng):
    scaled = to_scaled(dn(rng, 3, 64, 64, 4), "dn", None)
    scaled[1] = 0.5  # alone it would be reflectance
    assert [i.units for i in read_images(scaled)] == ["scaled"] * 3
    bright = np.abs(scaled)
    images = read_images(bright)
    assert [i.units for i in images] == [
        "reflectance"
    ] * 3 and "a guess from the range; --units" in images.note
    stated = read_images(bright, units="scaled")
    assert next(iter(stated)).units == "scaled" and "scaled (as stated)" in stated.note
    assert next(iter(read_images(np.full((1, 64, 64, 3), 9, np.uint8)))).units == "byte"


def test_values_outside_the_units_are_refused(rng):
    with pytest.raises(UnitsError, match=r"image 0: .*units 'scaled'.*--units"):
        list(read_images(dn(rng, 1, 64, 64, 4), units="scaled"))
    with pytest.raises(UnitsError, match="unknown units 'meters'"):
        read_images(dn(rng, 1, 64, 64, 4), units="meters")
    late = np.full((40, 64, 64, 1), 0.5, np.float32)
    late[1] = -40  # not among those that are looked at first
    with pytest.raises(
        UnitsError, match=r"image 1: 4096 values \(e\.g\. -40\) are outside the range of units 'reflectance'"
    ):
        list(read_images(late))


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (
            np.zeros((2, 64, 64), np.uint16),
            ArrayError,
            r"shape is \(2, 64, 64\); expected \(n, height, width, bands\)",
        ),
        (np.zeros((0, 64, 64, 4), np.uint16), MissingInputError, "it holds no images"),
        (np.zeros((2, 64, 64, 0), np.uint16), ArrayError, "expected"),
        (np.zeros((2, 63, 64, 4), np.uint16), GridError, "63 x 64 pixels.*at least 64 x 64"),
        (np.zeros((2, 64, 64, 4), bool), ArrayError, "dtype is bool"),
        (np.zeros((2, 64, 64, 4), complex), ArrayError, "dtype is complex128"),
        (np.zeros((2, 64, 64, 5), np.uint16), BandsError, "Name all 5 with --bands"),
        (np.full((2, 64, 64, 4), -3.5), UnitsError, "values from -3.5 to -3.5"),
    ],
)
def test_arrays_of_other_shapes_are_refused_as_images(tmp_path, array, error, message):
    with pytest.raises(error, match=message):
        read_images(array)
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(error, match=message):
        read_images(tmp_path / "a.npy")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(value):
    array = np.full((2, 64, 64, 4), 0.5, np.float32)
    array[1, 3, 4, 2] = value
    with pytest.raises(ArrayError, match=r"image 1: 1 values are NaN or infinite \(the first at \(3, 4, 2\)"):
        list(read_images(array))
    with pytest.raises(ArrayError, match="patches 0 to 1"):
        read_patches(array)


def test_unreadable_array_files_are_refused(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"not an array")
    with pytest.raises(ArrayError, match=r"a\.npy cannot be opened as an array"):
        read_images(tmp_path / "a.npy")
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ArrayError, match="cannot be opened"):
        read_images(tmp_path / "o.npy")
    np.save(tmp_path / "t.npy", np.zeros((2, 64, 64, 4)))
    whole = (tmp_path / "t.npy").read_bytes()
    for length in (0, 5, 60, 128, len(whole) - 1):
        (tmp_path / "t.npy").write_bytes(whole[:length])
        with pytest.raises(ArrayError, match="cannot be opened"):
            read_images(tmp_path / "t.npy")


# --- images: GeoTIFFs -------------------------------------------------------------------------------


def test_ids_are_ranks_among_the_tifs(tmp_path, rng, write_tif):
    order = ["B.TIF", "a/z.tiff", "a.tif", "b/c/d.TiFF"]
    for number, name in enumerate(order):
        write_tif(name, np.full((64, 80, 1), number + 1000, np.uint16))
    for name in ("notes.txt", "a/._z.tif", ".cache/x.tif", "b.tif.aux.xml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    got = list(read_images(tmp_path))
    expected = sorted(order)  # POSIX paths: capitals first, "a.tif" before "a/z.tiff"
    assert [i.image_id for i in got] == [0, 1, 2, 3]
    assert [i.path for i in got] == [(tmp_path / n).as_posix() for n in expected]
    assert [int(i.pixels[0, 0, 0]) - 1000 for i in got] == [order.index(n) for n in expected]


def test_globs_and_single_files(tmp_path, write_tif):
    for name in ("b1.tif", "b2.tif", "c.tif"):
        write_tif(name, np.full((64, 64, 1), 5, np.uint8))
    assert [i.path[-6:] for i in read_images(f"{tmp_path}/b*")] == ["b1.tif", "b2.tif"]
    assert [(i.image_id, i.units) for i in read_images(tmp_path / "c.tif")] == [(0, "byte")]


def test_bands_come_from_descriptions_and_masks_from_nodata(write_tif, rng):
    pixels = dn(rng, 70, 66, 4)
    pixels[:5] = 7
    path = write_tif(
        "a.tif",
        pixels,
        descriptions=["B11", "nir", "Red", "b3"],
        nodata=7,
        crs="EPSG:32631",
        transform=TILE,
        photometric="RGB",  # GDAL calls the fourth band alpha then
    )
    (image,) = read_images(path)
    assert image.bands == ("B11", "B08", "B04", "B03") and image.nodata == 7
    assert image.crs == "EPSG:32631" and image.transform == TILE
    np.testing.assert_array_equal(image.pixels, pixels)
    assert np.isnan(image.scaled()[:5]).all() and not np.isnan(image.scaled()[5:]).any()
    (image,) = read_images(path, bands=["a", "b", "c", "d"])
    assert image.bands == ("a", "b", "c", "d")


def test_bytes_without_a_tag_have_no_nodata(write_tif):
    (image,) = read_images(write_tif("a.tif", np.zeros((64, 64, 3), np.uint8)))
    assert image.nodata is None and image.crs is None and image.transform is None
    assert not np.isnan(image.scaled()).any()
    (image,) = read_images(write_tif("b.tif", np.zeros((64, 64, 3), np.uint16)))
    assert image.nodata == 0 and np.isnan(image.scaled()).all()


def test_nan_is_nodata_if_it_is_the_tag(write_tif):
    pixels = np.full((64, 64, 4), 0.25, np.float32)
    pixels[0, 0] = np.nan
    (image,) = read_images(write_tif("tagged.tif", pixels, nodata=np.nan))
    assert np.isnan(image.scaled()).all(axis=-1).sum() == 1
    with pytest.raises(ArrayError, match=r"plain\.tif: 4 values are NaN"):
        list(read_images(write_tif("plain.tif", pixels)))


def test_a_folder_may_mix_dtypes_bands_and_sizes(tmp_path, rng, write_tif):
    write_tif("a.tif", dn(rng, 64, 64, 4))
    write_tif("b.tif", np.full((65, 90, 3), 5, np.uint8))
    write_tif("c.tif", np.full((64, 64, 1), 0.5, np.float32) * -1)
    write_tif("d.tif", np.full((64, 64, 1), -0.5, np.float32))
    images = read_images(tmp_path)
    assert [i.units for i in images] == ["dn", "byte", "scaled", "scaled"]
    assert (
        "byte, B04 B03 B02 (1 files); dn, B04 B03 B02 B08 (1 files); scaled, unknown (2 files)" in images.note
    )


def test_each_file_of_a_folder_has_its_units(tmp_path, rng, write_tif):
    ground = [dn(rng, 64, 64, 4).astype(np.float32) for _ in range(4)]
    write_tif("a.tif", ground[0])
    write_tif("b.tif", ground[1] / 10000)
    glint = ground[2] / 10000
    glint[30, 31, :3] = 2.41
    write_tif("c/glint.tif", glint)
    write_tif("d.tif", ground[3])
    write_tif("e.tif", np.zeros((64, 64, 4), np.float32))
    for images in (read_images(tmp_path), read_queries(tmp_path)):
        assert [i.units for i in images] == ["dn", "reflectance", "reflectance", "dn", "dn"]
        for image, pixels in zip(images, ground, strict=False):
            expected = to_scaled(pixels, "dn", 0)
            different = np.abs(np.nan_to_num(image.scaled()) - np.nan_to_num(expected)) > 1e-5
            assert different.sum() <= 3
        note = images.note
        assert "units differ from dn in" in note and "b.tif (reflectance), " in note
        assert note.endswith("glint.tif (reflectance)") and "a.tif" not in note
    with pytest.raises(UnitsError, match=r"b\.tif looks like reflectance; .*a\.tif like dn"):
        read_patches(tmp_path)


PLACE = {"crs": "EPSG:32631", "transform": TILE}


def tag(path, scale, offset):
    import rasterio

    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = scale, offset
    return path


@pytest.mark.parametrize(
    ("scale", "offset", "dtype", "nodata"),
    [
        (2e-5, -0.2, np.uint16, 0),  # Landsat collection 2
        (2.75e-5, -0.2, np.uint16, None),  # without a tag 0 is nodata
        (1e-4, 0, np.int16, -9999),
        (1e-4, -0.1, np.uint16, 65535),  # Sentinel-2 from baseline 04.00 on
        (0.5, 0, np.float32, np.nan),
        (1 / 255, 0, np.uint8, 255),
    ],
)
def test_tags_scale_and_offset_are_applied(rng, write_tif, scale, offset, dtype, nodata):
    reflectance = rng.uniform(0.0 if dtype == np.uint8 else -0.05, 0.4, (90, 70, 4))
    stored = (reflectance - offset) / scale
    stored = (stored if dtype == np.float32 else stored.round()).astype(dtype)
    stored[5, 6] = 0 if nodata is None else nodata
    path = tag(write_tif("a.tif", stored, nodata=nodata, **PLACE), (scale,) * 4, (offset,) * 4)
    for images in (read_images(path), read_queries(path)):
        assert f"tags SCALE and OFFSET are applied to 1 files (e.g. {path}: scale {scale:g}" in images.note
        (image,) = images
        assert image.units == "reflectance" and "reflectance (a guess" not in images.note
        nothing = np.isnan(image.scaled()).all(-1)
        assert nothing[5, 6] and nothing.sum() == 1
        error = np.abs(image.pixels - reflectance)[~nothing]
        assert error.max() < (1e-6 if dtype == np.float32 else 0.51 * scale)


def test_each_band_has_its_scale_and_zero_is_refused(rng, write_tif):
    stored = dn(rng, 64, 64, 2)
    path = tag(write_tif("a.tif", stored, descriptions=("B04", "B08"), **PLACE), (1e-4, 2e-4), (0, -0.1))
    (image,) = read_images(path)
    np.testing.assert_allclose(image.pixels, stored * [1e-4, 2e-4] + [0, -0.1], rtol=1e-6, atol=1e-7)
    digital = tag(write_tif("b.tif", stored, descriptions=("B04", "B08"), **PLACE), (1, 1), (-1000, -1000))
    (image,) = read_images(digital)
    assert image.units == "dn" and image.pixels.max() == stored.max() - 1000
    with pytest.raises(ArrayError, match=r"c\.tif: its tags are SCALE \(0\.0, 1\.0\)"):
        read_images(tag(write_tif("c.tif", stored, descriptions=("B04", "B08"), **PLACE), (0, 1), (0, 0)))


def test_reflectance_next_to_scaled_files_is_ambiguous(tmp_path, rng, write_tif):
    pixels = dn(rng, 64, 64, 4).astype(np.float32)
    write_tif("a.tif", to_scaled(pixels, "dn", 0))
    write_tif("b.tif", pixels / 10000)
    with pytest.raises(UnitsError, match=r"b\.tif: .* reflectance and scaled alike, and .*a\.tif is scaled"):
        read_images(tmp_path)


def test_an_array_that_mixes_units_is_refused(rng):
    pixels = dn(rng, 40, 64, 64, 4).astype(np.float32)
    pixels[1] /= 10000
    with pytest.raises(UnitsError, match=r"image 1: values up to .* look like reflectance"):
        list(read_images(pixels))
    with pytest.raises(UnitsError, match=r"patch 1: values up to .* look like reflectance"):
        read_patches(pixels)
    whole = pixels[2:4] * 0 + 1  # dark water
    assert read_patches(np.concatenate([pixels[5:9], whole])).units == "dn"
    reflectance = np.delete(pixels, 1, axis=0) / 10000
    reflectance[7, 5:7, 5] = 2.41  # glint
    assert [i.units for i in read_images(reflectance)] == ["reflectance"] * 39
    reflectance[1] *= 10000
    with pytest.raises(UnitsError, match=r"patch 1: .* values .* are outside the range of units"):
        read_patches(reflectance)


def test_note_names_other_resolutions(write_tif, rng):
    note = read_images(
        write_tif("a.tif", dn(rng, 64, 64, 4), crs="EPSG:32631", transform=(20, 0, 5e5, 0, -20, 5e6))
    ).note
    assert "1 have pixels of another size than 10 m (e.g." in note and "20 x 20 m)" in note
    for latitude, text in ((0, "11.1 x 11.1 m)"), (60, "5.58 x 11.1 m)")):
        degrees = write_tif(
            "b.tif", dn(rng, 64, 64, 4), crs="EPSG:4326", transform=(1e-4, 0, 0, 0, -1e-4, latitude)
        )
        assert text in read_images(degrees).note


def test_missing_inputs_are_named(tmp_path, write_tif):
    for source in (tmp_path, tmp_path / "x.npy", f"{tmp_path}/*.tif", tmp_path / "none"):
        with pytest.raises(MissingInputError, match="expected images as"):
            read_images(source)
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(MissingInputError, match=r"cannot read \.png as images"):
        read_images(tmp_path / "a.png")
    (tmp_path / "a.tif").write_bytes(b"II*\0 damaged")
    with pytest.raises(ArrayError, match=r"a\.tif cannot be read as a GeoTIFF"):
        read_images(tmp_path / "a.tif")
    with pytest.raises(GridError, match=r"small\.tif has 63 x 64 pixels"):
        read_images(write_tif("small.tif", np.zeros((63, 64, 1), np.uint8)))


def test_truncated_geotiff_is_named(tmp_path, rng, write_tif):
    path = write_tif("a.tif", dn(rng, 128, 128, 4))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ArrayError, match=r"a\.tif cannot be read"):
        list(read_images(path))


# --- images: TFRecords ------------------------------------------------------------------------------


def example(**features):
    """A record as another program writes it: int64 and bytes only."""

    def feature(value):
        if isinstance(value, bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    features = {name: feature(value) for name, value in features.items()}
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


@pytest.mark.parametrize("units", ["scaled", "dn"])
def test_challenge_images_scaled_or_not(tmp_path, rng, units):
    """The published decoder does not scale: the range tells."""
    pixels = dn(rng, 3, 512, 512, 4)
    stored = (to_scaled(pixels, "dn", None) if units == "scaled" else pixels).astype("<f2")
    path = records(
        tmp_path / "test_images.tfrecords",
        *(example(image_raw=p.tobytes(), image_id=10 - i) for i, p in enumerate(stored)),
    )
    images = read_images(path)
    assert len(images) == 3 and f"3 images, {units}," in images.note
    got = list(images)
    assert [i.image_id for i in got] == [10, 9, 8] and {i.units for i in got} == {units}
    assert got[0].nodata == (0 if units == "dn" else -1) and got[0].path == str(path)
    np.testing.assert_array_equal(got[2].pixels, stored[2])


def test_our_images_of_any_size_and_bands(tmp_path, rng):
    sent = [
        Image(5, dn(rng, 64, 70, 4), "dn", BANDS, 0.0, path="x.tif", crs="EPSG:32631", transform=TILE),
        Image(2, rng.integers(0, 255, (99, 64, 1)).astype(np.uint8), "byte", ("B08",), None),
    ]
    write_images(sent, tmp_path / "i.tfrecords")
    for a, b in zip(read_images(tmp_path / "i.tfrecords"), sent, strict=True):
        np.testing.assert_array_equal(a.pixels, b.pixels)
        assert (a.image_id, a.units, a.bands, a.nodata, a.crs, a.transform) == (
            b.image_id,
            b.units,
            b.bands,
            b.nodata,
            b.crs,
            b.transform,
        )


@pytest.mark.parametrize("kind", ["images", "patches", "series"])
def test_shards_are_one_source(tmp_path, rng, kind):
    encode = {
        "images": lambda i: encode_image(Image(i, dn(rng, 64, 64, 4), "dn", BANDS, 0.0)),
        "patches": lambda i: encode_patch(i, dn(rng, 64, 64, 4), "dn", BANDS, 0.0),
    }["images" if kind == "series" else kind]
    name = "train.tfrecords" if kind == "series" else f"test_{kind}.tfrecords"
    shards = [tmp_path / f"{name}-{n:05d}-of-00003" for n in range(3)]
    for number, shard in enumerate(shards):
        records(shard, encode(2 * number), encode(2 * number + 1))
    read = {"images": read_images, "patches": read_patches, "series": series_files}[kind]
    sources = [tmp_path, str(tmp_path / f"{name}*")] + ([] if kind == "series" else [tmp_path / name])
    for source in sources:
        assert len(read(source)) == (3 if kind == "series" else 6)
    if kind == "images":
        assert [image.image_id for image in read(tmp_path)] == list(range(6))
    shards[1].unlink()
    for source in sources if kind != "series" else sources[:1]:
        with pytest.raises(MissingInputError, match=r"tfrecords-00001-of-00003: missing, 2 of 3 files"):
            read(source)


def test_a_record_with_two_ids_is_refused_by_name(tmp_path, rng):
    raw = encode_image(Image(1, dn(rng, 64, 64, 4), "dn", BANDS, 0.0))
    record = tf.train.Example.FromString(raw)
    record.features.feature["image_id"].int64_list.value.append(2)
    path = records(tmp_path / "i.tfrecords", raw, record.SerializeToString())
    with pytest.raises(
        RecordError, match=r"i\.tfrecords: record 1 .*'image_id' holds 2 numbers; expected one"
    ):
        list(read_images(path))


def test_wrong_images_are_named_by_file_and_record(tmp_path, rng):
    raw = [encode_image(Image(i, dn(rng, 64, 64, 4), "dn", BANDS, 0.0)) for i in (1, 2, 1)]
    path = records(tmp_path / "i.tfrecords", *raw)
    with pytest.raises(DuplicateIdError, match=r"i\.tfrecords: record 2 .*id 1 is also that of .*record 0"):
        list(read_images(path))
    path = records(tmp_path / "i.tfrecords", raw[0], encode_patch(1, dn(rng, 64, 64, 4), "dn", BANDS, 0.0))
    with pytest.raises(RecordError, match=r"i\.tfrecords: record 1 .*'image_raw' is missing"):
        list(read_images(path))
    path = records(tmp_path / "i.tfrecords", encode_image(Image(3, dn(rng, 63, 64, 4), "dn", BANDS, 0.0)))
    with pytest.raises(GridError, match=r"record 0 .*63 x 64 pixels"):
        list(read_images(path))
    with pytest.raises(BandsError, match="--bands: 1 names"):
        read_images(path, bands=["B04"])


# --- patches ----------------------------------------------------------------------------------------


def test_patches_from_every_kind_of_source(tmp_path, rng, write_tif):
    pixels = dn(rng, 3, 64, 64, 4)
    np.save(tmp_path / "p.npy", pixels)
    write_patches(Patches(np.array([7, 3, 5]), pixels, "dn", BANDS, 0.0), tmp_path / "p.tfrecords")
    for number, chip in enumerate(pixels):
        write_tif(f"chips/{number}.tif", chip, descriptions=BANDS)
    for source, ids in [
        (pixels, [0, 1, 2]),
        (tmp_path / "p.npy", [0, 1, 2]),
        (tmp_path / "p.tfrecords", [7, 3, 5]),
        (tmp_path / "chips", [0, 1, 2]),
        (f"{tmp_path}/chips/[01].tif", [0, 1]),
    ]:
        got = read_patches(source)
        assert got.patch_ids.tolist() == ids and len(got) == len(ids)
        assert (got.units, got.bands, got.nodata) == ("dn", BANDS, 0)
        assert f"{len(ids)}" in got.note and "dn" in got.note
        np.testing.assert_array_equal(got.pixels, pixels[: len(ids)])
        np.testing.assert_array_equal(got.scaled(slice(1, 2)), to_scaled(pixels[1:2], "dn", 0.0))
    assert isinstance(read_patches(tmp_path / "p.npy").pixels, np.memmap)
    assert read_patches(tmp_path / "chips").paths[2].endswith("chips/2.tif")


@pytest.mark.parametrize("units", ["scaled", "dn"])
def test_challenge_patches_scaled_or_not(tmp_path, rng, units):
    pixels = dn(rng, 3, 64, 64, 4)
    stored = (to_scaled(pixels, "dn", None) if units == "scaled" else pixels).astype("<f2")
    raw = (example(patch_raw=p.tobytes(), patch_id=i) for i, p in enumerate(stored))
    patches = read_patches(records(tmp_path / "test_patches.tfrecords", *raw))
    assert patches.units == units and patches.pixels.dtype == np.float16
    np.testing.assert_array_equal(patches.pixels, stored)
    np.testing.assert_allclose(patches.scaled(), to_scaled(pixels, "dn", None), atol=6e-4)


def test_wrong_patches_are_refused(tmp_path, rng, write_tif):
    for side in (63, 65):
        with pytest.raises(ArrayError, match=f"{side} x 64 pixels.*expected 64 x 64"):
            read_patches(dn(rng, 2, side, 64, 4))
    ours = [encode_patch(i, dn(rng, 64, 64, b), "dn", BANDS[:b], 0.0) for i, b in [(1, 4), (1, 4), (2, 3)]]
    with pytest.raises(DuplicateIdError, match=r"record 1 .*patch id 1 is also that of .*record 0"):
        read_patches(records(tmp_path / "p.tfrecords", *ours[:2]))
    with pytest.raises(RecordError, match=r"record 1 .*B04 B03 B02, the first uint16 B04 B03 B02 B08"):
        read_patches(records(tmp_path / "p.tfrecords", ours[0], ours[2]))
    small = encode_patch(3, dn(rng, 64, 32, 4), "dn", BANDS, 0.0)
    with pytest.raises(ArrayError, match=r"record 0 .*64 x 32"):
        read_patches(records(tmp_path / "p.tfrecords", small))
    write_tif("chips/0.tif", dn(rng, 64, 64, 4))
    write_tif("chips/1.tif", dn(rng, 64, 64, 3))
    with pytest.raises(BandsError, match=r"1\.tif has bands B04 B03 B02; .*0\.tif has B04 B03 B02 B08"):
        read_patches(tmp_path / "chips")
    write_tif("chips/1.tif", dn(rng, 64, 64, 4).astype(np.float32))
    with pytest.raises(ArrayError, match="in two runs"):
        read_patches(tmp_path / "chips")


# --- series, and what can be wrong with any TFRecord ------------------------------------------------


def small_series(count=3, **more):
    for number in range(count):
        pixels = np.random.default_rng(number).integers(1, 60000, (2, 2, 3, 1)).astype(np.uint16)
        yield Series(pixels, "dn", ("unknown",), 0.0, ("a", "b"), f"p{number}", x0=number, **more)


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """A tiny file of three series, and what is in it."""
    folder = tmp_path_factory.mktemp("shard") / "s"
    write_series(small_series(), folder)
    return folder / "series-00000.tfrecords"


def outcome(path):
    """Pixels and places of a file, or the name of the error, which names the file."""
    try:
        return [(s.place, s.x0, s.nodata, s.pixels.tobytes()) for s in read_series(path)]
    except RetrieveError as err:
        assert isinstance(err, (RecordError, MissingInputError)) and path.name in str(err)
        assert isinstance(err, MissingInputError) or "record " in str(err)
        return type(err)


def test_any_prefix_of_a_file_is_an_error(shard, tmp_path):
    content = shard.read_bytes()
    path = tmp_path / "cut.tfrecords"
    assert len(content) < 1500
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert outcome(path) is (RecordError if length else MissingInputError), length


def test_any_flipped_byte_of_a_file_is_an_error(shard, tmp_path):
    # One record: each try costs TensorFlow some 20 ms.
    content = shard.read_bytes()[: len(shard.read_bytes()) // 3]
    path = tmp_path / "flipped.tfrecords"
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        assert outcome(path) is RecordError, position


def test_the_number_of_the_damaged_record_is_right(shard, tmp_path):
    content, path = shard.read_bytes(), tmp_path / "x.tfrecords"
    third = len(content) // 3
    for record in range(3):
        damaged = bytearray(content)
        damaged[record * third + third // 2] ^= 255
        path.write_bytes(damaged)
        with pytest.raises(RecordError, match=rf"x\.tfrecords: record {record} \(counted from 0\)"):
            list(read_series(path))


def test_prefixes_of_the_challenges_own_files(tmp_path, rng):
    """Without an end mark a file that ends between two records is a whole shorter one."""
    raw = [example(patch_raw=dn(rng, 64, 64, 4).astype("<f2").tobytes(), patch_id=i) for i in range(3)]
    content = records(tmp_path / "whole.tfrecords", *raw).read_bytes()
    frame = len(content) // 3
    path = tmp_path / "cut.tfrecords"
    for length in [*range(1, 30), *range(frame - 20, frame + 20), *range(2 * frame - 9, len(content), 997)]:
        path.write_bytes(content[:length])
        if length % frame:
            with pytest.raises(RecordError, match=f"cut.tfrecords: record {length // frame} .*truncated"):
                read_patches(path)
        else:
            assert read_patches(path).patch_ids.tolist() == list(range(length // frame))


def test_file_of_another_format_is_refused(tmp_path):
    path = tmp_path / "x.tfrecords"
    path.write_bytes(b"\x1f\x8b\x08" + b"zipped" * 30)
    with pytest.raises(RecordError, match="compressed: gunzip it"):
        count_records(path)
    path.write_bytes(b"something else altogether")
    with pytest.raises(RecordError, match="not a TFRecord file"):
        count_records(path)
    records(path, b"no example")
    with pytest.raises(RecordError, match=r"record 0 .*not a tf\.train\.Example"):
        list(read_series(path))


def test_sources_of_series(shard, tmp_path):
    for name in (
        "b.tfrecords",
        "a.tfrecords",
        "sub/c.tfrecords",
        "test_images.tfrecords",
        "test_patches.tfrecords",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(shard, tmp_path / name)
    named = [p.relative_to(tmp_path).as_posix() for p in series_files(tmp_path)]
    assert named == ["a.tfrecords", "b.tfrecords", "sub/c.tfrecords"]
    assert [p.name for p in series_files(f"{tmp_path}/[ab].tfrecords")] == ["a.tfrecords", "b.tfrecords"]
    assert series_files([tmp_path / "b.tfrecords", shard]) == (tmp_path / "b.tfrecords", shard)
    assert len(list(read_series(shard))) == 3
    (tmp_path / "none").mkdir()
    for nothing in (tmp_path / "none", tmp_path / "x", f"{tmp_path}/*.tfr", []):
        with pytest.raises(MissingInputError, match="no TFRecord files of series"):
            read_series(nothing)
    with pytest.raises(MissingInputError, match="cannot be read: No such file"):
        list(read_series([tmp_path / "x.tfrecords"]))


def test_a_folder_is_checked_against_its_manifest(tmp_path):
    folder = tmp_path / "s"
    write_series(small_series(4), folder, per_shard=2)
    shutil.copy(folder / "series-00000.tfrecords", folder / "stray.tfrecords")
    assert len(list(read_series(folder))) == 4
    (folder / "series-00001.tfrecords").rename(tmp_path / "moved")
    with pytest.raises(ManifestError, match=r"series-00001\.tfrecords is missing"):
        read_series(folder)
    (folder / "series-00001.tfrecords").write_bytes((tmp_path / "moved").read_bytes()[:-1])
    with pytest.raises(ManifestError, match=r"series-00001\.tfrecords has \d+ bytes"):
        read_series(folder)
    (tmp_path / "moved").rename(folder / "series-00001.tfrecords")
    page = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(page.replace('"version": 1', '"version": 2'))
    with pytest.raises(FormatVersionError):
        read_series(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(ManifestError, match="damaged"):
        read_series(folder)
    with writing_folder(tmp_path / "index", kind="index", config={}) as other:
        (other.path / "x").write_text("x")
    with pytest.raises(MissingInputError, match="no TFRecord files of series"):
        read_series(tmp_path / "index")


def test_series_with_nan_are_refused(tmp_path):
    pixels = np.full((2, 3, 3, 1), 0.5, np.float32)
    pixels[1, 2, 0] = np.nan
    one = Series(pixels, "reflectance", ("unknown",), None, ("a", "b"), "p")
    with pytest.raises(RecordError, match=r"record 0 .*1 values are NaN"):
        list(read_series(records(tmp_path / "x.tfrecords", encode_series(one))))
