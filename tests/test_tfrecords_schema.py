"""Bands, units, nodata, scaling, and the bytes of records."""

import hashlib

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tfrecords.errors import ArrayError, BandsError, RecordError, UnitsError
from tfrecords.schema import (
    BANDS,
    Image,
    Patches,
    Series,
    band_names,
    check_finite,
    decode_image,
    decode_patch,
    decode_series,
    default_nodata,
    encode_image,
    encode_patch,
    encode_series,
    group_of,
    guess_units,
    is_nodata,
    min_max,
    to_dn,
    to_scaled,
)

# --- bands ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "given_", "descriptions", "expected"),
    [
        (4, None, None, BANDS),
        (3, None, None, ("B04", "B03", "B02")),
        (1, None, None, ("unknown",)),
        (1, ["B08"], ["B04"], ("B08",)),
        (4, None, ["B04", "", "B02", "B08"], BANDS),
        (4, None, ["B04", None, "B02", "B08"], BANDS),
        (3, None, ["B11", "B08", "B03"], ("B11", "B08", "B03")),
        (4, None, ["Red", "green", "BLUE", "nir"], BANDS),
        (4, None, ["nbart_red", "nbart_green", "nbart_blue", "nbart_nir_1"], BANDS),
        (4, None, ["red", "green", "blue", "nir08"], ("B04", "B03", "B02", "B8A")),
        (2, None, ["B4, central wavelength 665 nm", "b8a"], ("B04", "B8A")),
        (5, ["a", "b", "c", "d", "e"], None, ("a", "b", "c", "d", "e")),
        (2, None, ["B12", "B10"], ("B12", "B10")),
    ],
)
def test_band_names(count, given_, descriptions, expected):
    assert band_names(count, given_, descriptions) == expected


@pytest.mark.parametrize(
    ("count", "given_", "descriptions", "message"),
    [
        (2, None, None, "Name all 2 with --bands"),
        (5, None, [None] * 5, "--bands"),
        (4, ["B04"], None, "--bands: 1 names"),
        (2, ["B04", "b4"], None, "B04 occurs twice"),
        (2, None, ["gray", "gray"], "occurs twice"),
        (2, ["B04", " "], None, "a distinct name"),
    ],
)
def test_bands_that_cannot_be_named(count, given_, descriptions, message):
    with pytest.raises(BandsError, match=message):
        band_names(count, given_, descriptions)


# --- units ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (np.array([0, 255], np.uint8), ("byte", True)),
        (np.array([0, 4000], np.uint16), ("dn", True)),
        (np.array([0, 200], np.uint16), ("dn", False)),
        (np.array([-20, 4000], np.int16), ("dn", True)),
        (np.array([-1, -0.5, 1], np.float16), ("scaled", True)),
        (np.array([-0.6, 0.3], np.float32), ("scaled", True)),
        (np.array([0.01, 0.4], np.float32), ("reflectance", False)),
        (np.array([0.0, 1.2], np.float64), ("reflectance", False)),
        (np.array([1.0, 3000.0], np.float16), ("dn", True)),
        (np.array([0.0, 255.0], np.float32), ("dn", False)),
        (np.array([-5.0, 3000.0], np.float32), ("dn", False)),
        (np.array([np.nan, -0.5], np.float32), ("scaled", True)),
        (np.array([np.nan], np.float32), ("reflectance", False)),
        (np.zeros(0, np.float32), ("reflectance", False)),
    ],
)
def test_guess_units(sample, expected):
    assert guess_units(sample, "x") == expected


def test_units_that_cannot_be_guessed():
    with pytest.raises(UnitsError, match=r"x: values from -3 to 1.*--units"):
        guess_units(np.array([-3.0, 1.0]), "x")
    with pytest.raises(ArrayError, match="dtype is <U1"):
        guess_units(np.array(["a"]), "x")


def with_outliers(values, *outliers):
    """Return values with one outlier for each 400."""
    values = values.astype(np.float32).ravel()
    values[::400] = np.resize(np.array(outliers), len(values[::400]))
    return values


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (np.linspace(0.02, 0.4, 4000), "reflectance"),
        (with_outliers(np.linspace(0.02, 0.4, 4000), 2.41, 6), "reflectance"),  # glint
        (with_outliers(np.linspace(0.02, 0.4, 4000), -0.7), "reflectance"),  # dead pixels
        (np.linspace(-0.05, 0.4, 4000), "reflectance"),  # dark water after atmospheric correction
        (np.r_[np.zeros(4000), np.linspace(0.02, 1.4, 400)], "reflectance"),  # zeros may be nodata
        (np.r_[np.full(900, 2.41), np.linspace(0.02, 0.4, 4000)], "reflectance"),  # a lake of glint
        (np.r_[np.zeros(40000), np.linspace(100, 3000, 100)], "dn"),
        (np.r_[np.ones(4000), np.linspace(900, 3000, 400)], "dn"),  # dark water is at least 1 in L2A
        (with_outliers(np.linspace(100, 3000, 4000), 0.5), "dn"),
        (with_outliers(np.linspace(-0.9, 0.4, 4000), 1.3, -1.4), "scaled"),  # overshoot of a resampling
        (np.r_[np.full(4000, -1), np.linspace(-0.9, 0.4, 4000)], "scaled"),
    ],
)
def test_few_extremes_do_not_decide_the_units(sample, expected):
    assert guess_units(sample.astype(np.float32), "x")[0] == expected


@pytest.mark.parametrize(
    "sample",
    [
        np.linspace(-0.15, 0.3, 4000),  # bright ground in scaled, or very dark reflectance
        np.linspace(-0.08, 0.01, 4000),  # most of it below 0
        np.r_[np.full(400, -1.0), np.linspace(0.02, 0.4, 4000)],  # -1 is perhaps nodata of either
        np.linspace(0.5, 60, 4000),  # percent
    ],
)
def test_ambiguous_units_are_refused(sample):
    with pytest.raises(UnitsError, match=r"x: values from .* fit \w+ and \w+ alike\. .*--units"):
        guess_units(sample.astype(np.float32), "x")


def test_default_nodata():
    units = ("dn", "scaled", "byte", "reflectance")
    assert [default_nodata(u) for u in units] == [0.0, -1.0, None, None]


@pytest.mark.parametrize("units", ["dn", "reflectance"])
def test_bright_ground_keeps_its_texture(units):
    dn = np.arange(1, 65535, dtype=np.float64).reshape(1, -1, 1)
    pixels = (dn / 10000 if units == "reflectance" else dn).astype(np.float32)
    scaled, clipped = (to_scaled(pixels, units, None, c)[0, :, 0] for c in (False, True))
    ordinary = dn[0, :, 0] < 4095
    np.testing.assert_array_equal(scaled[ordinary], clipped[ordinary])
    assert (np.diff(scaled) > 0).all() and scaled.max() < 2.5
    assert (clipped[~ordinary] == 1).all()
    slope = np.diff(scaled)[4090:4100] * 2047.5
    np.testing.assert_allclose(slope, 1, atol=0.02)  # no kink


def test_scaling_of_each_unit():
    dn = np.array([[[0, 2047]], [[4095, 10000]]], np.uint16)
    expected = np.clip(dn.astype(float), 0, 4095) / 2047.5 - 1
    np.testing.assert_allclose(to_scaled(dn, "dn", None), expected, atol=1e-6)
    np.testing.assert_allclose(to_scaled(dn / 10000, "reflectance", None), expected, atol=1e-6)
    np.testing.assert_allclose(to_scaled(expected, "scaled", None), expected, atol=1e-6)
    byte = np.array([[[0, 51, 255]]], np.uint8)
    np.testing.assert_allclose(to_scaled(byte, "byte", None), byte / 127.5 - 1, atol=1e-6)


@given(
    st.sampled_from(["dn", "reflectance", "scaled", "byte"]),
    st.sampled_from([np.uint8, np.uint16, np.int16, np.float16, np.float32, np.float64]),
    st.sampled_from([None, 0.0, -1.0, 7.0, -8192.0, float("nan")]),
    st.integers(0, 2**32 - 1),
)
def test_scaled_is_in_range_and_nan_exactly_where_nodata(units, dtype, nodata, seed):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 9, (2, 5, 6, 3)).astype(dtype)
    if (nodata is not None and np.isin(nodata, pixels.astype(dtype))) or np.dtype(dtype).kind == "f":
        pixels[rng.random((2, 5, 6)) < 0.3] = 5 if nodata is None else nodata
    scaled = to_scaled(pixels, units, nodata)
    slow = np.zeros((2, 5, 6), bool)
    for at in np.ndindex(slow.shape):
        values = [float(v) for v in pixels[at]]
        slow[at] = nodata is not None and all(v == nodata or (v != v and nodata != nodata) for v in values)
    assert scaled.dtype == np.float32
    np.testing.assert_array_equal(is_nodata(pixels, nodata), slow)
    np.testing.assert_array_equal(np.isnan(scaled).all(axis=-1), slow)
    assert np.nanmin(scaled, initial=0) >= -1 and np.nanmax(scaled, initial=0) <= 1


def test_a_pixel_with_one_band_of_the_tag_is_ground():
    pixels = np.array([[[0, 5], [0, 0]]], np.uint16)
    assert is_nodata(pixels, 0.0).tolist() == [[False, True]]


def test_tag_beyond_the_dtype_marks_no_pixel():
    pixels = np.full((2, 2, 1), 3, np.uint8)
    for tag in (-9999.0, 259.0, 1e10, float("nan"), float("inf")):
        assert not is_nodata(pixels, tag).any()
    half = np.full((2, 2, 1), -9999, np.float16)  # becomes -10000, as the tag does
    assert is_nodata(half, -9999.0).all()


def test_to_dn_gives_the_values_of_the_challenge():
    dn = np.array([[[0, 0], [100, 9000]]], np.uint16)
    np.testing.assert_array_equal(to_dn(dn, "dn", 0.0), dn)
    np.testing.assert_allclose(to_dn(dn / 10000, "reflectance", None), dn, atol=1e-3)
    scaled = to_scaled(dn, "dn", 0.0)
    np.testing.assert_allclose(to_dn(scaled, "scaled", float("nan")), np.minimum(dn, 4095), atol=1e-3)


def test_nan_is_an_error_unless_it_is_the_tag():
    pixels = np.array([[1.0, np.nan]], np.float32)
    with pytest.raises(ArrayError, match=r"x: 1 values are NaN or infinite \(the first at \(0, 1\)"):
        check_finite(pixels, None, "x")
    with pytest.raises(ArrayError):
        check_finite(pixels, -1.0, "x")
    check_finite(pixels, float("nan"), "x")
    with pytest.raises(ArrayError):
        check_finite(np.array([np.inf]), float("nan"), "x")
    check_finite(np.array([1, 2]), None, "x")


# --- records ----------------------------------------------------------------------------------------


def make_series(pixels, units="dn", bands=None, nodata=0.0, **more):
    bands = bands or band_names(pixels.shape[-1])
    dates = tuple(f"2020-01-{i + 1:02d}" for i in range(len(pixels)))
    return Series(pixels, units, bands, nodata, dates, **{"place": "somewhere", **more})


def test_records_refuse_inconsistent_fields():
    pixels = np.zeros((3, 8, 9, 4), np.uint16)
    with pytest.raises(ArrayError, match=r"expected axes \(t, y, x, b\)"):
        make_series(pixels[0], bands=BANDS)
    with pytest.raises(ArrayError, match="at least 2"):
        make_series(pixels[:1])
    with pytest.raises(BandsError):
        make_series(pixels, bands=("B04",))
    with pytest.raises(UnitsError, match="expected one of dn"):
        make_series(pixels, units="meters")
    for number in (-1, 2**31):
        with pytest.raises(ArrayError, match="out of range"):
            Image(number, pixels[0], "dn", BANDS, 0.0)
    with pytest.raises(ArrayError, match="one id for each"):
        Patches(np.arange(2), pixels, "dn", BANDS, 0.0)


def test_image_and_patches_scale_themselves(rng):
    pixels = rng.integers(0, 5000, (3, 64, 64, 4)).astype(np.uint16)
    pixels[1, :5] = 0
    image = Image(0, pixels[1], "dn", BANDS, 0.0)
    patches = Patches(np.arange(3), pixels, "dn", BANDS, 0.0)
    assert (image.height, image.width) == (64, 64)
    np.testing.assert_array_equal(patches.scaled(slice(1, 2))[0], image.scaled())
    assert np.isnan(image.scaled()[:5]).all() and not np.isnan(image.scaled()[5:]).any()


# --- bytes ------------------------------------------------------------------------------------------

STORED = [
    ("dn", np.uint16, 0.0, 2000),
    ("dn", np.uint16, 0.0, 65535),
    ("dn", np.uint16, 65535.0, 65535),
    ("dn", np.float16, 0.0, 3000),
    ("dn", np.int16, None, 9000),
    ("dn", ">u2", 0.0, 9000),
    ("byte", np.uint8, None, 255),
    ("byte", np.uint8, 0.0, 255),
    ("reflectance", np.float32, None, 1),
    ("reflectance", np.float64, float("nan"), 1),
    ("scaled", np.float16, -1.0, 1),
    ("scaled", np.float32, -1.0, 1),
]


def pixels_of(rng, shape, dtype, top, units):
    values = rng.random(shape) * top if np.dtype(dtype).kind == "f" else rng.integers(0, top + 1, shape)
    return (values * 2 - 1 if units == "scaled" else values).astype(dtype)


@pytest.mark.parametrize(("units", "dtype", "nodata", "top"), STORED)
@pytest.mark.parametrize("shape", [(2, 5, 7, 1), (3, 6, 4, 4), (2, 4, 4, 13)])
def test_series_come_back_bit_for_bit(rng, shape, units, dtype, nodata, top):
    pixels = pixels_of(rng, shape, dtype, top, units)
    pixels[0, 0, 0] = 0 if nodata is None else nodata
    bands = tuple(f"x{i}" for i in range(shape[-1]))
    sent = make_series(pixels, units, bands, nodata, x0=3, y0=70000, overlap_group=2**63 - 1)
    got = decode_series(encode_series(sent))
    np.testing.assert_array_equal(got.pixels, pixels)
    assert got.pixels.dtype == np.dtype(dtype).newbyteorder("<")
    for name in ("units", "bands", "dates", "place", "x0", "y0", "overlap_group"):
        assert getattr(got, name) == getattr(sent, name)
    np.testing.assert_equal(got.nodata, nodata)


@pytest.mark.parametrize(("units", "dtype", "nodata", "top"), STORED)
def test_images_and_patches_come_back_bit_for_bit(rng, units, dtype, nodata, top):
    pixels = pixels_of(rng, (9, 7, 3), dtype, top, units)
    pixels[0] = 0 if nodata is None else nodata
    place = {"crs": "EPSG:32631", "transform": (10.0, 0.0, 1 / 3, 0.0, -10.0, 5e6), "date": "2020-01-01"}
    sent = Image(7, pixels, units, BANDS[:3], nodata, path="a/b.tif", **place)
    got = decode_image(encode_image(sent))
    np.testing.assert_array_equal(got.pixels, pixels)
    for name in ("image_id", "units", "bands", "path", *place):
        assert getattr(got, name) == getattr(sent, name)
    number, patch, bands = decode_patch(encode_patch(8, pixels, units, BANDS[:3], nodata))
    np.testing.assert_array_equal(patch, pixels)
    assert (number, bands) == (8, BANDS[:3])


def published_series(raw):
    """The challenge's own decoder of training records."""
    parsed = tf.io.parse_single_example(raw, {"time_series_raw": tf.io.FixedLenFeature([], tf.string)})
    return tf.io.decode_raw(parsed["time_series_raw"], tf.float16).numpy()


def published_image(raw, kind):
    """The challenge's own decoder of images and patches."""
    features = {
        f"{kind}_raw": tf.io.FixedLenFeature([], tf.string),
        f"{kind}_id": tf.io.FixedLenFeature([], tf.int64),
    }
    parsed = tf.io.parse_single_example(raw, features)
    return int(parsed[f"{kind}_id"]), tf.io.decode_raw(parsed[f"{kind}_raw"], tf.float16).numpy()


@pytest.mark.parametrize("challenge", [True, False])
def test_the_published_decoder_reads_our_series(rng, challenge):
    pixels = rng.integers(0, 2048, (12, 512, 512, 4), dtype=np.uint16)
    raw = encode_series(make_series(pixels), challenge=challenge)
    read = published_series(raw).reshape(512, 512, 48)
    for date, band, y, x in [(0, 0, 0, 0), (3, 2, 17, 400), (11, 3, 511, 511)]:
        assert read[y, x, date * 4 + band] == pixels[date, y, x, band]
    np.testing.assert_array_equal(decode_series(raw).pixels, pixels)


@pytest.mark.parametrize("challenge", [True, False])
def test_the_published_decoder_reads_our_images_and_patches(rng, challenge):
    pixels = rng.integers(0, 5000, (512, 512, 4), dtype=np.uint16)
    pixels[:3] = 0
    number, read = published_image(
        encode_image(Image(5, pixels, "dn", BANDS, 0.0), challenge=challenge), "image"
    )
    expected = np.clip(pixels, 0, 4095) / 2047.5 - 1
    assert number == 5
    np.testing.assert_allclose(read.reshape(512, 512, 4), expected, atol=5e-4)
    assert (read.reshape(512, 512, 4)[:3] == -1).all()
    patch = pixels[:64, :64]
    number, read = published_image(encode_patch(6, patch, "dn", BANDS, 0.0, challenge=challenge), "patch")
    np.testing.assert_allclose(read.reshape(64, 64, 4), expected[:64, :64], atol=5e-4)
    assert number == 6


def example(**features):
    """Bytes of a record with these features, made by TensorFlow alone."""

    def feature(value):
        if isinstance(value, bytes):
            return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        if isinstance(value, float):
            return tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
        return tf.train.Feature(
            int64_list=tf.train.Int64List(value=value if isinstance(value, list) else [value])
        )

    features = {name: feature(value) for name, value in features.items()}
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def test_the_challenges_own_records_are_read(rng):
    stored = rng.integers(0, 2048, (512, 512, 48)).astype("<f2")
    series = decode_series(example(time_series_raw=stored.tobytes()), place="tile#3")
    assert series.pixels.shape == (12, 512, 512, 4) and series.units == "dn" and series.nodata == 0
    assert series.bands == BANDS and series.place == "tile#3" and series.overlap_group == group_of("tile#3")
    np.testing.assert_array_equal(series.pixels[5], stored[..., 20:24])
    image = decode_image(example(image_raw=stored[..., :4].tobytes(), image_id=9), units="dn")
    np.testing.assert_array_equal(image.pixels, stored[..., :4])
    assert image.image_id == 9 and image.units == "dn" and image.nodata == 0


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"no example", "not a tf.train.Example"),
        (example(image_id=1), "feature 'image_raw' is missing; it has \\['image_id'\\]"),
        (example(image_id=1, image_raw=3), "'image_raw' holds 0 values of int64_list; expected bytes_list"),
        (example(image_id=b"1", image_raw=b"x" * 2097152), "'image_id' holds 0 values of bytes_list"),
        (example(image_id=[], image_raw=b"x" * 2097152), "'image_id' holds 0 values"),
        (example(image_id=-1, image_raw=b"x" * 2097152), "'image_id' is -1; expected 0 to 2147483647"),
        (
            example(image_id=1, image_raw=b"xx"),
            "has 2 bytes; expected 2097152 .*the challenge's shape",
        ),
        (example(image_id=1, image_raw=b"xx", height=0, width=4), "'height' is 0"),
        (example(image_id=1, image_raw=b"xx", height=9, width=9, bands=b"B04"), "has 2 bytes; expected 162"),
        (example(image_id=1, image_raw=b"xx", height=1, width=1, bands=b"\xff"), "'bands' is not a text"),
        (example(image_id=1, image_raw=b"xx", height=1, width=1, bands=b"a", units=b"m"), "'units' is 'm'"),
        (example(image_id=1, image_raw=b"xx", height=1, width=1, bands=b"a", dtype=b"O"), "'dtype' is 'O'"),
        (
            example(image_id=1, image_raw=b"xx", height=1, width=1, bands=b"a", units=b"dn", nodata=b"?"),
            "'nodata'",
        ),
        (example(image_id=1, image_raw=b"xx", height=1, width=1, bands=b"a", transform=b"1"), "'transform'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "record",
)
def test_errors_of_malformed_records_name_the_fault(raw, message):
    with pytest.raises(RecordError, match=f"file: record 3: .*{message}"):
        decode_image(raw, "file: record 3")


def test_any_prefix_of_a_record_is_an_error_or_the_record(rng):
    """What is cut off within a record; the frame's checksum finds this before."""
    sent = Image(7, rng.integers(0, 9, (4, 5, 1)).astype(np.uint8), "byte", ("unknown",), None)
    raw = encode_image(sent)
    for length in range(len(raw)):
        with pytest.raises(RecordError):
            decode_image(raw[:length])


@pytest.mark.parametrize("shape", [(12, 512, 512, 3), (11, 512, 512, 4), (12, 511, 512, 4)])
def test_challenge_layout_refuses_other_shapes(shape):
    with pytest.raises(ArrayError, match="the challenge's record is"):
        encode_series(make_series(np.zeros(shape, np.uint8), "byte"), challenge=True)


def test_without_exact_copies_a_series_is_float16_dn(rng):
    pixels = rng.integers(1, 9000, (2, 6, 6, 4)).astype(np.uint16)
    small, whole = (encode_series(make_series(pixels), exact=exact) for exact in (False, True))
    got = decode_series(small)
    assert len(small) < 0.7 * len(whole) and got.units == "dn" and got.pixels.dtype == np.float16
    np.testing.assert_array_equal(got.pixels, pixels.astype(np.float16))


def test_the_same_record_has_the_same_bytes(rng):
    pixels = np.arange(2 * 3 * 4 * 4, dtype=np.uint16).reshape(2, 3, 4, 4)
    raw = encode_series(make_series(pixels))
    assert raw == encode_series(make_series(pixels))
    assert hashlib.sha256(raw).hexdigest()[:16] == "0a17719cf54bd836"


def test_record_beyond_the_size_limit_is_refused():
    with pytest.raises(ArrayError, match="Cut smaller pieces"):
        encode_series(make_series(np.ones((2, 6, 6, 4), np.uint16)), limit=100)


def test_group_is_a_number_per_name():
    assert group_of("a") != group_of("b") and 0 <= group_of("a") < 2**63
    assert group_of("venice") == int(hashlib.sha256(b"venice").hexdigest()[:16], 16) >> 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint16, np.int16])
def test_min_max_against_numpy(dtype):
    rng = np.random.default_rng(0)
    for low, high in ((-3, 5), (-9, -2), (2, 7), (0, 1)):
        if np.dtype(dtype).kind == "u" and low < 0:
            continue
        values = rng.uniform(low, high, (5, 4, 3)).astype(dtype)
        assert min_max(values) == (float(values.min()), float(values.max()))
        assert min_max(values[:, ::2]) == (float(values[:, ::2].min()), float(values[:, ::2].max()))
    if np.dtype(dtype).kind == "f":
        for odd in (np.inf, -np.inf, 0.0, -0.0):
            values[2, 1, 1] = odd
            assert min_max(values) == (float(values.min()), float(values.max()))
        for odd in (np.nan, -np.nan):
            values[2, 1, 1] = odd
            assert np.isnan(min_max(values)).all()
