"""Index thousands of images in shards, and ask the joined index: time, memory and answers.

    python benchmarks/many_shards.py --images 6000 --shards 10 --size 256 --json FILE

Images are seeded squares with noise, drawn when a shard reads them, so that the script holds no images.
Patches are cut from known places of some images, with other light and further noise. Build and query each
run in a separate process, whose peak of memory includes the imports; pages of mapped files count too.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from context import arguments, context, stage, table, write_json
from watching import cpu, watched

BANDS = ("B04", "B03", "B02", "B08")
ENGINE = ("tensorflow", "keras", "faiss", "retrieval.pipeline")


def pixels_of(number: int, size: int) -> Any:
    """Return an image (size, size, 4) of digital numbers, drawn by number."""
    rng = np.random.default_rng([8, number])
    coarse = [rng.uniform(-1, 1, (-(-size // side),) * 2 + (4,)) for side in (64, 16, 4)]
    layers = [
        np.kron(c, np.ones((side, side, 1)))[:size, :size]
        for c, side in zip(coarse, (64, 16, 4), strict=True)
    ]
    return (
        1600 + 600 * layers[0] + 350 * layers[1] + 150 * layers[2] + rng.normal(0, 30, layers[0].shape)
    ).astype(np.uint16)


def squares(first: int, stop: int, size: int) -> Any:
    """Return some of the images as a source; a part of it draws only its own images."""
    from tfrecords.read.images import ImageSource
    from tfrecords.schema import Image

    class Squares(ImageSource):
        def part(self, start: int, stop: int) -> ImageSource:
            return squares(first + start, first + stop, size)

    def begin() -> Any:
        return (Image(n, pixels_of(n, size), "dn", BANDS, 0.0) for n in range(first, stop))

    return Squares("squares", stop - first, begin, own_ids=True)


def patches_of(images: int, size: int, count: int) -> tuple[Any, Any]:
    """Return patches (n, 64, 64, 4) and their places (n, 3): image, x and y."""
    rng = np.random.default_rng(5)
    places = np.stack([rng.choice(images, count, replace=False), *rng.integers(0, size - 63, (2, count))], 1)
    cut = np.stack([pixels_of(n, size)[y : y + 64, x : x + 64] for n, x, y in places.tolist()])
    return (0.7 * cut + 250 + rng.normal(0, 40, cut.shape)).astype(np.uint16), places


def build(out: str, images: int, shards: int, size: int, executor: str) -> dict[str, Any]:
    """Build the index; return its counts, its bytes, processor seconds and the peak of unmapped memory."""
    import retrieval
    from retrieval.config import IndexConfig

    start = cpu()
    with watched() as peak, retrieval.open_executor(executor) as runner:
        config = IndexConfig(parts="never")
        index = retrieval.build_index(
            squares(0, images, size), out, config=config, shards=shards, device="cpu", executor=runner
        )
    files = [file for file in Path(out).rglob("*") if file.is_file()]
    counts = index.folder.manifest.counts | {"kind": index.folder.vectors.kind}
    size_gb = sum(file.stat().st_size for file in files) / 1e9
    return {"counts": counts, "gb": size_gb, "cpu_s": cpu() - start, "anonymous_mb": peak[0]}


def ask(out: str, images: int, size: int, queries: int) -> dict[str, Any]:
    """Locate patches; return the shares of right images and places, and processor seconds."""
    import retrieval

    warnings.simplefilter("ignore")
    patches, places = patches_of(images, size, queries)
    start = cpu()
    with watched() as peak:
        frame = retrieval.open_index(out, device="cpu").locate(patches)
    found = frame[["image_id", "x", "y"]].to_numpy(np.int64)
    image = found[:, 0] == places[:, 0]
    near = image & (np.abs(found[:, 1:] - places[:, 1:]).max(1) <= 2)
    shares = {"image": float(image.mean()), "within_2px": float(near.mean())}
    return {"right": shares, "cpu_s": cpu() - start, "anonymous_mb": peak[0]}


def main() -> None:
    """Build, ask and print."""
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=6000)
    parser.add_argument("--shards", type=int, default=10)
    parser.add_argument("--size", type=int, default=256, help="side of an image in pixels")
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--executor", default="threads:2")
    parser.add_argument("--work", type=Path, help="folder for the index; default: a temporary one")
    args = parser.parse_args()
    with TemporaryDirectory(dir=args.work) as folder:
        out = str(Path(folder) / "index")
        shape = (args.images, args.shards, args.size, args.executor)
        built = stage("build", build, out, *shape, imports=ENGINE)
        asked = stage("query", ask, out, args.images, args.size, args.queries, imports=ENGINE)
    print(
        table(("stage", "time", "throughput", "peak memory"), [built.row(args.images, "images"), asked.row()])
    )
    print(built.result, asked.result)
    shapes = {k: getattr(args, k) for k in ("images", "shards", "size", "queries", "executor")}
    stages = {s.name: {"s": s.seconds, "peak_mb": s.peak_mb} | s.result for s in (built, asked)}
    write_json(args.json, {"context": context(**shapes)} | stages)


if __name__ == "__main__":
    main()
