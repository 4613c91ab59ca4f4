"""Measure how much faster dense embedding is than embedding windows in batches.

    python benchmarks/embedding.py [FOLDER] --size 512 --stride 8 --json results/embedding.json

At stride 8 a pixel lies in 64 windows, which bounds the ratio to about 64. The script prints the largest
difference of the vectors. It takes the first image of `test_images.tfrecords` in FOLDER, or generates one.
Both ways are warmed up and measured in turns; the ratio is of the medians, with the range of single turns.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from context import arguments, context, table, write_json
from numpy.typing import NDArray

from retrieval.config import PATCH_PX, LearnedConfig, TensorConfig
from retrieval.models.embed import PATCH_BATCH, embed_dense, embed_patches
from retrieval.models.encoder import KerasEncoder, load_encoder
from retrieval.models.networks import learned_model
from retrieval.models.registry import TRAINING_FREE, encoder_names
from retrieval.types import Encoder


def image(folder: Path | None, size: int) -> NDArray[np.float32]:
    """Return an image (size, size, 4), scaled."""
    if folder is not None:
        from tfrecords.read import read_images

        return next(iter(read_images(folder / "test_images.tfrecords"))).scaled()[:size, :size]
    from retrieval.synthetic.scene import Scene

    seen = Scene(7, size, size).observe(180)
    return np.clip(seen.dn, 0, 4095).astype(np.float32) / np.float32(2047.5) - 1


def encoders() -> dict[str, Encoder]:
    """Return the shipped encoders, or an untrained learned one, which costs the same."""
    found = {name: load_encoder(name) for name in encoder_names()}
    if set(found) == {TRAINING_FREE}:
        kernel = found[TRAINING_FREE].model.get_layer("projection").get_weights()[0]  # type: ignore[attr-defined]
        model = learned_model(LearnedConfig(), kernel.reshape(-1, kernel.shape[-1]), TensorConfig())
        found["learned, untrained"] = KerasEncoder(model, "learned")
    return found


def windows_in_batches(encoder: Encoder, scaled: NDArray[np.float32], stride: int) -> NDArray[np.float32]:
    """Cut out every window and embed it in batches, as patches are."""
    view = np.lib.stride_tricks.sliding_window_view(scaled, (PATCH_PX, PATCH_PX), (0, 1))[::stride, ::stride]
    rows, cols = view.shape[:2]
    flat = np.moveaxis(view, 2, -1).reshape(rows * cols, PATCH_PX, PATCH_PX, -1)
    return embed_patches(encoder, flat).reshape(rows, cols, -1)


def seconds(function: Callable[[], Any]) -> float:
    """Return the wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(encoder: Encoder, scaled: NDArray[np.float32], stride: int, repeats: int) -> dict[str, Any]:
    """Measure both ways in turns."""
    ways = (
        lambda: embed_dense(encoder, scaled, stride),
        lambda: windows_in_batches(encoder, scaled, stride),
    )
    dense, slow = (way() for way in ways)  # also the warm-up
    turns = [[seconds(way) for way in ways] for _ in range(repeats)]
    dense_s, slow_s = (statistics.median(t) for t in zip(*turns, strict=True))
    single = [b / a for a, b in turns]
    return {
        "windows": int(dense.shape[0] * dense.shape[1]),
        "largest_difference": float(np.abs(dense - slow).max()),
        "dense_s": dense_s,
        "batches_s": slow_s,
        "ratio": slow_s / dense_s,
        "ratio_low": min(single),
        "ratio_high": max(single),
        "turns_s": turns,
    }


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="holds test_images.tfrecords")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--stride", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    scaled = image(args.folder, args.size)
    print(f"{scaled.shape} float32, stride {args.stride}, batches of {PATCH_BATCH}", file=sys.stderr)
    found = {n: measure(e, scaled, args.stride, args.repeats) for n, e in encoders().items()}
    rows = [
        (
            name,
            f"{f['windows']}",
            f"{f['dense_s']:.3f} s",
            f"{f['batches_s']:.2f} s",
            f"{f['ratio']:.1f} ({f['ratio_low']:.1f} to {f['ratio_high']:.1f})",
            f"{f['largest_difference']:.1e}",
        )
        for name, f in found.items()
    ]
    print(table(("encoder", "windows", "dense", "in batches", "ratio", "largest difference"), rows))
    shapes = context(image=list(scaled.shape), stride_px=args.stride, batch=PATCH_BATCH, repeats=args.repeats)
    write_json(args.json, {"context": shapes, "encoders": found})


if __name__ == "__main__":
    main()
