"""Write `segmenter-trees-v1.tar.xz`: a tiny model of trees, and what it answers for an image.

    python tests/golden/make_forest.py

A later release must open the model and give the same answers. Trees and pixels follow a rule. Run it again
only for a new version, and keep the old file.
"""

import sys
import tarfile
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

import numpy as np  # noqa: E402
from segmentable import golden_description  # noqa: E402

from retrieval.tasks.forest import Forest  # noqa: E402
from retrieval.tasks.segment.model import Segmenter, save_segmenter  # noqa: E402

SIDES, REDUCTION = (3, 9), 4
CONFIG = {"recipe": {"trees": 3}, "data": "make_forest.py"}
COUNTS = {"scenes": 1, "pixels": 32 * 40, "trees": 3}
NAME, ANSWERS = "segmenter-trees-v1", "answers.npy"


def pixels():
    """An image of bytes whose blocks differ in colour and texture."""
    y, x, b = np.ogrid[:32, :40, :3]
    return (60 + 30 * b + 11 * (y // 8) + 13 * (x // 8) + (x // 16) * 20 * ((x + y) % 2)).astype(np.uint8)


def segmenter():
    """Three whole trees of four leaves whose nodes follow a rule."""
    seen = np.array([0, 9, 16, 1, 35])  # levels of a block and of squares, and the fine texture of a block
    nodes = np.arange(21)
    inner = nodes % 7 < 3
    share = np.stack([1 + (nodes * 3 + c * 5) % 7 for c in range(3)], 1).astype(np.float32)
    forest = Forest(
        reduction=REDUCTION,
        sides=SIDES,
        channels=3,
        roots=np.array([0, 7, 14], np.int32),
        feature=np.where(inner, seen[nodes % len(seen)], -1).astype(np.int32),
        limit=np.where(
            inner, np.where(seen[nodes % len(seen)] == 9, 0.02, 0.34 + (nodes % 5) / 20), 0
        ).astype("f4"),
        child=np.where(inner, nodes // 7 * 7 + 2 * (nodes % 7) + 1, 0).astype(np.int32),
        share=share / share.sum(1, keepdims=True),
    )
    return Segmenter(forest, golden_description(REDUCTION), "golden")


def main():
    """Write it, in place of what was there."""
    with tempfile.TemporaryDirectory() as parent:
        folder, model = Path(parent), segmenter()
        save_segmenter(model, folder / NAME, CONFIG, COUNTS)
        np.save(folder / ANSWERS, model.map_probabilities(pixels()[None]))
        with tarfile.open(HERE / f"{NAME}.tar.xz", "w:xz") as archive:
            for name in (NAME, ANSWERS):
                archive.add(folder / name, name)


if __name__ == "__main__":
    main()
