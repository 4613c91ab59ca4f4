"""Write `segmenter-v1.tar.xz`, a tiny model, and `probabilities-v1.tar.xz`, what it answers for two images.

    python tests/golden/make_maps.py

A later release must open the model and give the same answers, or say in its changelog that it doesn't and
raise the format version. Weights and pixels follow a rule. Run it again only for a new version, and keep the
old files.
"""

import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

import numpy as np  # noqa: E402
from segmentable import GROUND, TINY, golden_description, write_scene  # noqa: E402

from retrieval.tasks.segment import predict  # noqa: E402
from retrieval.tasks.segment.model import Segmenter, save_segmenter  # noqa: E402
from retrieval.tasks.segment.network import unet, unit_px, with_standardization  # noqa: E402
from tfrecords.artifacts import FORMAT_VERSION  # noqa: E402

BANDS = ("B04", "B03", "B02")
CONFIG = {"recipe": TINY.to_dict(), "data": "make_maps.py"}
COUNTS = {"scenes": 2, "pixels": 2 * 32 * 40, "steps": 0}


def segmenter():
    """A network whose weights follow a rule, not a library's random numbers."""
    network = unet(TINY, len(BANDS), len(GROUND.names))
    rng = np.random.Generator(np.random.PCG64(5))
    for weight in network.weights:
        values = rng.random(weight.shape)
        weight.assign(values - 0.5 if len(weight.shape) > 1 else 0.5 + values)
    whole = with_standardization(network, np.full(3, 0.4, np.float32), np.full(3, 0.04, np.float32))
    description = golden_description(unit_px(TINY), temperature=8.0, orientations=2)
    return Segmenter(whole, description, "golden")


def write_images(folder):
    """Two images of bytes, one with nodata in its first rows."""
    y, x, b = np.ogrid[:32, :40, :3]
    for number, name in enumerate(("a", "b")):
        pixels = (1 + 40 * b + 9 * (y // 8) + 17 * (x // 8) + 30 * number).astype(np.uint8)
        pixels[: 8 * number] = 0
        write_scene(folder / f"{name}.tif", pixels, nodata=0, descriptions=BANDS)
    return folder


def main():
    """Write both, in place of what was there."""
    with tempfile.TemporaryDirectory() as parent:
        folder, images = Path(parent), write_images(Path(parent) / "images")
        names = {kind: f"{kind}-v{FORMAT_VERSION[kind]}" for kind in ("segmenter", "masks", "probabilities")}
        save_segmenter(segmenter(), folder / names["segmenter"], CONFIG, COUNTS)
        maps, tables = folder / names["masks"], folder / names["probabilities"]
        predict(images, folder / names["segmenter"], maps, probabilities=tables)
        for packed, kept in (("segmenter", ("segmenter",)), ("probabilities", ("masks", "probabilities"))):
            with tarfile.open(HERE / f"{names[packed]}.tar.xz", "w:xz") as archive:
                for kind in kept:
                    archive.add(folder / names[kind], names[kind])
        shutil.rmtree(images)


if __name__ == "__main__":
    main()
