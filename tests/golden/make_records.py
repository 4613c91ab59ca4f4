"""Makes the golden TFRecords: one small file of every kind and format version.

    python tests/golden/make_records.py FOLDER

Run it for a *new* format version only, into a new folder, and keep the old files: they are what users
have on their disks. The challenge's kinds are made by TensorFlow alone, as its publishers made theirs.
Pixels follow a rule, so that nothing but the rule need be remembered, and are packed with xz.
"""

import lzma
import shutil
import sys
from pathlib import Path

import numpy as np

CHALLENGE = {
    "challenge-series": ("time_series_raw", None, (512, 512, 48), 2),
    "challenge-images": ("image_raw", "image_id", (512, 512, 4), 2),
    "challenge-patches": ("patch_raw", "patch_id", (64, 64, 4), 3),
}
"""File to (feature of pixels, feature of the id, stored shape, number of records)."""


def challenge_pixels(kind, record):
    """The rule: float16, each plane's rows in steps, so that a swapped axis shows."""
    _, _, shape, _ = CHALLENGE[kind]
    y, x, plane = np.ogrid[: shape[0], : shape[1], : shape[2]]
    dn = 8 * (1 + plane + 50 * (y // 16 % 2) + 100 * (x // 32 % 2) + 3 * record)
    values = dn if kind == "challenge-series" else dn / 2047.5 - 1
    return values.astype("<f2")


def challenge_records(kind):
    """Bytes of the records, by TensorFlow alone."""
    import tensorflow as tf

    pixels_name, id_name, _, count = CHALLENGE[kind]
    for record in range(count):
        raw = challenge_pixels(kind, record).tobytes()
        features = {pixels_name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[raw]))}
        if id_name:
            features[id_name] = tf.train.Feature(int64_list=tf.train.Int64List(value=[7 - record]))
        example = tf.train.Example(features=tf.train.Features(feature=features))
        yield example.SerializeToString(deterministic=True)


def our_series():
    """Three series: what float16 holds, what it doesn't, and bytes."""
    from tfrecords.schema import BANDS, Series

    small = np.arange(2 * 3 * 4 * 4, dtype=np.uint16).reshape(2, 3, 4, 4)
    yield Series(small, "dn", BANDS, 0.0, ("2020-01-01", "2020-07-01"), "plain", x0=5, y0=6, overlap_group=7)
    yield Series(small * 97 + 1, "dn", BANDS, 0.0, ("2020-01", "2020-07"), "exact", overlap_group=2**63 - 1)
    byte = np.arange(3 * 2 * 2 * 1, dtype=np.uint8).reshape(3, 2, 2, 1)
    yield Series(byte, "byte", ("B08",), None, ("a", "b", "c"), "byte", overlap_group=0)


def our_images():
    """Two images: digital numbers with a place on the map, and one band of bytes."""
    from tfrecords.schema import BANDS, Image

    y, x, b = np.ogrid[:64, :70, :4]
    pixels = (100 * b + 10 * (y // 8) + x // 8).astype(np.uint16) * 9
    transform = (10.0, 0.0, 600000.0, 0.0, -10.0, 5700000.0)
    where = "a/b.tif", "EPSG:32631", transform, "2020-01-01"
    yield Image(3, pixels, "dn", BANDS, 0.0, *where, clipped=True)
    yield Image(0, pixels[..., :1].astype(np.uint8), "byte", ("B08",), None, clipped=True)


def our_patches():
    """Two patches of reflectance, NaN where nothing is known."""
    from tfrecords.schema import BANDS, Patches

    y, x, b = np.ogrid[:64, :64, :3]
    pixels = np.stack([(y // 8 + x // 8 + b) / (32 + n) for n in range(2)]).astype(np.float32)
    pixels[0, :8] = np.nan
    return Patches(np.array([9, 4]), pixels, "reflectance", BANDS[:3], float("nan"), clipped=True)


def make(folder):
    """Write all golden files of the current format version into a folder."""
    from tfrecords.write import write_images, write_patches, write_records, write_series

    folder.mkdir(parents=True, exist_ok=True)
    for kind in CHALLENGE:
        write_records(folder / f"{kind}.tfrecords", challenge_records(kind))
    write_images(our_images(), folder / "images-v1.tfrecords")
    write_patches(our_patches(), folder / "patches-v1.tfrecords")
    write_series(our_series(), folder / "series-v1", per_shard=2)
    for path in folder.glob("*.tfrecords"):
        with path.open("rb") as source, lzma.open(f"{path}.xz", "wb", preset=9) as target:
            shutil.copyfileobj(source, target)
        path.unlink()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    make(Path(sys.argv[1]))
