"""A small search on generated scenes: embed, index, search, refine, and compare with the truth."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX, IndexConfig
from retrieval.doctor.checks import Finding
from retrieval.index.device import on_device, resolve_device
from tfrecords.errors import RetrieveError

SIZE_PX, PLACES, QUERIES = 256, 2, 24
"""Side and number of the images, and number of the patches."""
TOLERANCE_PX, MIN_SHARE = 3, 0.8
"""Largest error of a right position, and smallest share of right positions."""


def search_generated_scenes(device: Any, stages: dict[str, float]) -> float:
    """Index generated scenes, locate patches of another day, and return the share of right positions.

    Args:
        device: "auto", "cpu" or "gpu".
        stages: receives the seconds of each finished stage.
    """
    from retrieval.index.builder import write_index
    from retrieval.index.folder import IndexFolder
    from retrieval.matching.pyramid import refine_full_resolution
    from retrieval.matching.rounds import search_vectors
    from retrieval.matching.session import Session
    from retrieval.models.embed import embed_patches
    from retrieval.models.encoder import load_encoder
    from tfrecords.schema import BANDS, Image, Patches

    finish = _StageClock(stages)
    scenes, crops, truth = _scenes()
    finish("generate")
    with tempfile.TemporaryDirectory() as temporary, on_device(device):
        encoder = load_encoder()
        finish("load the encoder")
        images = [Image(i, pixels, "dn", BANDS, 0.0) for i, pixels in enumerate(scenes)]
        path = Path(temporary) / "index"
        write_index(images, path, encoder, IndexConfig(kind="exact"), source="doctor", device=device)
        folder = IndexFolder(path, encoder=encoder, device=device)
        finish("embed and index")
        patches = Patches(np.arange(QUERIES), crops, "dn", BANDS, 0.0)
        vectors = embed_patches(encoder, patches.scaled())
        finish("embed patches")
        session = Session(images=folder, queries=patches, vectors=folder.vectors)
        ranked = refine_full_resolution(session, search_vectors(session, vectors))
        finish("search and refine")
    close = np.hypot(ranked.x[:, 0] - truth[:, 1], ranked.y[:, 0] - truth[:, 2]) <= TOLERANCE_PX
    return float(((ranked.image_ids[:, 0] == truth[:, 0]) & close).mean())


def run_trial(
    device: str = "auto", search: Callable[[Any, dict[str, float]], float] = search_generated_scenes
) -> Finding:
    """Run a small search, and report its times and its share of right positions.

    Args:
        device: "auto", "cpu" or "gpu".
        search: as `search_generated_scenes`.
    """
    stages: dict[str, float] = {}
    try:
        share = search(device, stages)
    except (RetrieveError, RuntimeError, ValueError, OSError, ImportError, MemoryError) as error:
        message = (str(error).strip().splitlines() or [type(error).__name__])[0]
        after = f" after {', '.join(stages)}" if stages else ""
        return Finding("trial", f"failed{after}: {message[:300]}", "broken", "see the lines above")
    times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in stages.items())
    where = f"on the {resolve_device(device).upper()}"  # type: ignore[arg-type]
    value = f"{share:.0%} of {QUERIES} patches of another day found {where}: {times}"
    if share < MIN_SHARE:
        return Finding("trial", value, "broken", "reinstall in a new environment: the results are wrong")
    return Finding("trial", value)


def _scenes() -> tuple[list[NDArray[np.uint16]], NDArray[np.uint16], NDArray[np.int64]]:
    """Return images, patches of another day (n, 64, 64, 4), and their image, x and y (n, 3)."""
    from retrieval.synthetic.scene import Scene

    rng = np.random.default_rng(0)
    scenes = [Scene(seed, SIZE_PX, SIZE_PX) for seed in range(1, PLACES + 1)]
    images, later = ([scene.render(day) for scene in scenes] for day in (160, 200))
    corners = rng.integers(0, SIZE_PX - PATCH_PX + 1, (QUERIES, 2))
    truth = np.column_stack([np.arange(QUERIES) % PLACES, corners])
    crops = [later[i][y : y + PATCH_PX, x : x + PATCH_PX] for i, x, y in truth]
    return images, np.stack(crops), truth


class _StageClock:
    """Records the seconds of each stage."""

    def __init__(self, stages: dict[str, float]) -> None:
        self._stages, self._start = stages, time.monotonic()

    def __call__(self, stage: str) -> None:
        now = time.monotonic()
        self._stages[stage] = round(now - self._start, 2)
        self._start = now
