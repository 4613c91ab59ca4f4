r"""Draw places in the light of other dates, decoded from the two codes of the representation.

    python benchmarks/decoded.py docs/images/two-codes.png

The scenes are generated. Two linear decoders learn by ridge regression from some scenes and draw others.
The shared code gives the strength of the edges in 8 x 8 cells, the exclusive code mean and spread of red,
green and blue. A decoded picture is the mean colour, brighter by the spread where edges are.
Each row shows a crop on two dates and the strength of its edges. Then follow the crop, decoded in the light
of both dates and of another place, and this place. The command prints which share of the variance of the
edges the shared code explains, on scenes that the decoder did not learn from.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retrieval.config import PATCH_PX
from retrieval.models.representation import Representation, load_representation
from retrieval.synthetic import Scene, SceneConfig
from tfrecords.schema import to_scaled

DAYS = (110, 170, 230, 290)
"""Days of the year of the images of a scene."""
CELLS, SHOWN_PX, GAP_PX = 8, 96, 4
"""Cells along a side of a decoded crop; pixels of a picture and of its border."""
RIDGE = 100.0
"""Weight of the penalty of both decoders."""
CLEAR = SceneConfig(cloudy=0.0, shift_px=0.0)
"""Scenes without clouds, on one grid."""
FIRST_SHOWN, ROWS, TESTED = 1000, 4, 12
"""Seed of the first scene that is not learned from; number of scenes drawn, and measured."""
Pixels = NDArray[np.float32]


def crops_of(seed: int, size: int) -> Pixels:
    """Return crops of a generated place on all days: (days, n, 64, 64, 4) scaled."""
    scene = Scene(seed, size, size, CLEAR)
    images = [to_scaled(scene.render(day), "dn", 0.0) for day in DAYS]
    starts = range(0, size - PATCH_PX + 1, PATCH_PX)
    parts = [np.s_[y : y + PATCH_PX, x : x + PATCH_PX] for y in starts for x in starts]
    return np.stack([[image[part] for part in parts] for image in images])


def colours(crops: Pixels) -> NDArray[np.float64]:
    """Return crops (n, 64, 64, 4) as colours on a square-root scale: (n, 64, 64, 3)."""
    light: NDArray[np.float64] = np.sqrt(np.clip((crops[..., :3].astype(np.float64) + 1) * 0.7, 0, 1))
    return light


def edges(crops: Pixels) -> NDArray[np.float64]:
    """Return the strength of the edges of crops in cells, mean 0 and spread 1: (n, 64)."""
    across = np.abs(np.diff(crops, axis=1))[:, :, :-1] + np.abs(np.diff(crops, axis=2))[:, :-1]
    strength = np.pad(np.log(across.mean(-1) + 0.01), ((0, 0), (0, 1), (0, 1)), mode="edge")
    step = PATCH_PX // CELLS
    cells = strength.reshape(len(crops), CELLS, step, CELLS, step).mean((2, 4)).reshape(len(crops), -1)
    return (cells - cells.mean(1, keepdims=True)) / (cells.std(1, keepdims=True) + 1e-6)


def light_of(crops: Pixels) -> NDArray[np.float64]:
    """Return mean and spread of each colour: (n, 6)."""
    picture = colours(crops)
    return np.concatenate([picture.mean((1, 2)), picture.std((1, 2))], 1)


def fitted(x: NDArray[Any], y: NDArray[Any]) -> Any:
    """Return a ridge regression as a function."""
    mean, spread, level = x.mean(0), x.std(0) + 1e-9, y.mean(0)
    z = (x - mean) / spread
    weights = np.linalg.solve(z.T @ z + RIDGE * np.eye(z.shape[1]), z.T @ (y - level))
    return lambda at: (at - mean) / spread @ weights + level


def row(model: Representation, structure: Any, light: Any, seed: int, size: int) -> NDArray[np.float64]:
    """Draw a place: two dates and its edges, decoded in three lights, and the place of the third light."""
    here, there = crops_of(seed, size), crops_of(seed + 500, size)
    chosen = int(here.std((0, 2, 3, 4)).argmax())
    real = np.stack([here[0, chosen], here[2, chosen], there[3, chosen]])
    codes = model(real)
    decoded = structure(codes.shared[:1])[0]
    strength = smooth(decoded / (decoded.std() + 1e-6))[..., None]
    true_edges = smooth(edges(real[:1])[0])[..., None].repeat(3, 2)
    lit = [mean_and_spread[:3] + mean_and_spread[3:] * strength for mean_and_spread in light(codes.exclusive)]
    first, second, foreign = colours(real)
    pictures = (first, second, 0.5 + 0.2 * true_edges, *lit, foreign)
    return np.concatenate([framed(picture) for picture in pictures], 1)


def smooth(cells: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the values of 8 x 8 cells, interpolated to the pixels of a picture."""
    small = Image.fromarray(cells.reshape(CELLS, CELLS).astype(np.float32))
    return np.asarray(small.resize((SHOWN_PX, SHOWN_PX), Image.Resampling.BICUBIC)).astype(np.float64)


def framed(picture: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bring a picture to its size and put a white border around it."""
    shown = Image.fromarray((255 * np.clip(picture, 0, 1)).astype(np.uint8)).resize((SHOWN_PX, SHOWN_PX))
    return np.pad(np.asarray(shown) / 255, ((GAP_PX, GAP_PX), (GAP_PX, GAP_PX), (0, 0)), constant_values=1.0)


def explained(model: Representation, structure: Any, mean: NDArray[np.float64], size: int) -> float:
    """Return the share of the variance of the edges of other scenes that the shared code explains."""
    crops = np.concatenate([crops_of(FIRST_SHOWN + number, size)[0] for number in range(TESTED)])
    true = edges(crops)
    return float(1 - ((structure(model(crops).shared) - true) ** 2).sum() / ((true - mean) ** 2).sum())


def main() -> None:
    """Fit the decoders and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--scenes", type=int, default=48, help="scenes to learn from")
    parser.add_argument("--size", type=int, default=256)
    args = parser.parse_args()
    model = load_representation(args.model)
    learn = np.concatenate([crops_of(seed, args.size) for seed in range(args.scenes)], 1)
    crops = learn.reshape(-1, *learn.shape[2:])
    codes = model(crops)
    structure, light = fitted(codes.shared, edges(crops)), fitted(codes.exclusive, light_of(crops))
    shared = explained(model, structure, edges(crops).mean(0), args.size)
    print(f"explained variance of the edges in {CELLS} x {CELLS} cells: {shared:.3f}")
    rows = [row(model, structure, light, FIRST_SHOWN + number, args.size) for number in range(ROWS)]
    picture = np.clip(np.concatenate(rows), 0, 1)
    Image.fromarray((255 * picture).astype(np.uint8)).quantize(256).save(args.out, optimize=True)


if __name__ == "__main__":
    main()
