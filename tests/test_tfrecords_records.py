"""Images and patches of TFRecords, the challenge's and ours, and of every other kind of source."""

import numpy as np
import pytest
import tensorflow as tf

from tfrecords.errors import (
    ArrayError,
    BandsError,
    DuplicateIdError,
    GridError,
    MissingInputError,
    RecordError,
)
from tfrecords.read import (
    read_images,
    read_patches,
    series_files,
)
from tfrecords.schema import (
    BANDS,
    Image,
    Patches,
    encode_image,
    encode_patch,
    to_scaled,
)
from tfrecords.write import write_images, write_patches

TILE = (10.0, 0.0, 600000.0, 0.0, -10.0, 5700000.0)


def dn(rng, *shape):
    return rng.integers(300, 4000, shape).astype(np.uint16)


def records(path, *raw):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in raw:
            writer.write(record)
    return path


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


def test_a_part_of_the_images_reads_its_records_alone(tmp_path, rng):
    raw = [encode_image(Image(i, dn(rng, 64, 64, 4), "dn", BANDS, 0.0)) for i in range(5)]
    path = records(tmp_path / "i.tfrecords", *raw)
    images, content = read_images(path), bytearray(path.read_bytes())
    content[content.index(raw[1]) + 100] ^= 1
    path.write_bytes(content)
    assert [image.image_id for image in images.part(2, 4)] == [2, 3]
    assert not list(images.part(4, 4)) and len(list(images.part(4, 9))) == 1
    with pytest.raises(RecordError, match=r"record 1 \(counted from 0\): its bytes are damaged"):
        list(images.part(0, 3))


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
