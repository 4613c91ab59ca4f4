"""The job in small on a generated scene: embed, index, search, refine, and look whether it is right."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX, IndexConfig
from retrieval.doctor.report import Finding
from retrieval.index.device import on_device, resolve_device
from tfrecords.errors import RetrieveError

SIZE_PX, PLACES, ASKED = 256, 2, 24
"""Images of the trial, their number, and how many patches are looked for."""
RIGHT_PX, RIGHT_SHARE = 3, 0.8
"""An answer so near is right; so many must be."""


def try_out(device: str = "auto") -> list[Finding]:
    """Do the job, and tell what each stage took and whether its answers are right.

    Args:
        device: "auto", "cpu" or "gpu".
    """
    stages: dict[str, float] = {}
    try:
        right = _job(device, stages)
    except (RetrieveError, RuntimeError, ValueError, OSError, ImportError, MemoryError) as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        done = f" after {', '.join(stages)}" if stages else ""
        return [Finding("trial", f"failed{done}: {said[0][:300]}", "broken", "see the lines above")]
    text = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in stages.items())
    where = f"on the {resolve_device(device).upper()}"  # type: ignore[arg-type]
    if right < RIGHT_SHARE:
        advice = "the installation computes wrongly: install it anew, in an environment of its own"
        return [Finding("trial", f"{right:.0%} of {ASKED} patches found {where}: {text}", "broken", advice)]
    return [Finding("trial", f"{right:.0%} of {ASKED} patches of another day found {where}: {text}")]


def _job(device: Any, stages: dict[str, float]) -> float:
    """The share of right answers."""
    from retrieval.index.builder import write_index
    from retrieval.index.folder import IndexFolder
    from retrieval.matching.pyramid import refine_full_resolution
    from retrieval.matching.rounds import search_vectors
    from retrieval.matching.session import Session
    from retrieval.models.embed import embed_patches
    from retrieval.models.encoder import load_encoder
    from tfrecords.schema import BANDS, Image, Patches

    clock = _Clock(stages)
    images, cut, truth = _scenes()
    clock("generate")
    with tempfile.TemporaryDirectory() as folder, on_device(device):
        encoder = load_encoder()
        clock("load the encoder")
        kept = [Image(i, pixels, "dn", BANDS, 0.0) for i, pixels in enumerate(images)]
        path = Path(folder) / "index"
        write_index(kept, path, encoder, IndexConfig(kind="exact"), source="doctor", device=device)
        store = IndexFolder(path, encoder=encoder, device=device)
        clock("embed and index")
        patches = Patches(np.arange(ASKED), cut, "dn", BANDS, 0.0)
        vectors = embed_patches(encoder, patches.scaled())
        clock("embed patches")
        session = Session(images=store, queries=patches, vectors=store.vectors)
        found = refine_full_resolution(session, search_vectors(session, vectors))
        clock("search and refine")
    near = np.hypot(found.x[:, 0] - truth[:, 1], found.y[:, 0] - truth[:, 2]) <= RIGHT_PX
    return float(((found.image_ids[:, 0] == truth[:, 0]) & near).mean())


def _scenes() -> tuple[list[NDArray[np.uint16]], NDArray[np.uint16], NDArray[np.int64]]:
    """Images, patches of another day, and where they are: image, x, y."""
    from retrieval.synthetic.scene import Scene

    rng = np.random.default_rng(0)
    scenes = [Scene(seed, SIZE_PX, SIZE_PX) for seed in range(1, PLACES + 1)]
    images, later = ([scene.render(day) for scene in scenes] for day in (160, 200))
    corners = rng.integers(0, SIZE_PX - PATCH_PX + 1, (ASKED, 2))
    truth = np.column_stack([np.arange(ASKED) % PLACES, corners])
    cut = [later[i][y : y + PATCH_PX, x : x + PATCH_PX] for i, x, y in truth]
    return images, np.stack(cut), truth


class _Clock:
    """Notes what each stage took."""

    def __init__(self, stages: dict[str, float]) -> None:
        self._stages, self._since = stages, time.monotonic()

    def __call__(self, stage: str) -> None:
        now = time.monotonic()
        self._stages[stage] = round(now - self._since, 2)
        self._since = now
