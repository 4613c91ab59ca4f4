"""Embeddings, enlarged to any number by noisy copies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 65_536
"""Vectors per block."""
LEARNED = 1_000_000
"""Vectors that codes are learned from, as in an index folder."""
CACHED = 4096
"""Vectors per inner block, so that it stays in the processor's cache."""
NEAR, FAR = 0.35, 0.9
"""Noise as a share of the length, for a window a few pixels away and for a patch of another year.

The cosine to the original is 0.94 and 0.74, as measured on real imagery."""


@dataclass(frozen=True)
class Made:
    """Vectors that are recomputed on demand, always the same, in any order."""

    base: str
    """File of embeddings, (m, dim) float32."""
    count: int
    """Number of vectors."""

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(np.load(self.base, mmap_mode="r", allow_pickle=False).shape[1])

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the vectors of some rows: the embeddings first, then noisy copies.

        The row number selects a run of a table of normal numbers as noise.
        """
        known = np.load(self.base, mmap_mode="r", allow_pickle=False)
        out = np.empty((len(rows), known.shape[1]), np.float32)
        noise = np.lib.stride_tricks.sliding_window_view(_normals(), known.shape[1])
        for start in range(0, len(rows), CACHED):
            part, mine = rows[start : start + CACHED], out[start : start + CACHED]
            more = part >= len(known)
            mine[...] = known[np.where(more, _hashed(part, 1) % len(known), part)]
            if more.any():
                share = np.where(more, np.float32(NEAR / known.shape[1] ** 0.5), np.float32(0))
                mine += noise[_hashed(part, 2) % len(noise)] * share[:, None]
                length = np.sqrt(np.einsum("nd,nd->n", mine, mine))
                mine /= np.where(more, length, np.float32(1))[:, None]
        return out

    def blocks(
        self, first: int = 0, stop: int | None = None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield ids and vectors in order, all or a range."""
        stop = self.count if stop is None else min(stop, self.count)
        for start in range(first, stop, BLOCK):
            rows = np.arange(start, min(start + BLOCK, stop), dtype=np.int64)
            yield rows, self.vectors(rows)

    def queries(self, count: int) -> NDArray[np.float32]:
        """Return patches of another year for random windows."""
        rng = np.random.default_rng(99)
        return noisy(self.vectors(np.sort(rng.integers(0, self.count, count))), FAR, rng)


@cache
def _normals() -> NDArray[np.float32]:
    return np.random.default_rng(7).standard_normal(2**22, np.float32)


def _hashed(rows: NDArray[np.int64], salt: int) -> NDArray[np.int64]:
    """Return pseudo-random non-negative integers (SplitMix64)."""
    x = (rows.astype(np.uint64) + np.uint64(salt)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(1)).astype(np.int64)


def noisy(vectors: NDArray[np.float32], share: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Add noise of a share of the length; return unit vectors."""
    noise = rng.normal(scale=share / vectors.shape[1] ** 0.5, size=vectors.shape)
    moved = (vectors + noise).astype(np.float32)
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def embed(out: str, scenes: int) -> dict[str, Any]:
    """Embed generated scenes."""
    from retrieval.config import IndexConfig
    from retrieval.models.embed import embed_image
    from retrieval.models.encoder import load_encoder
    from retrieval.synthetic.scene import Scene
    from tfrecords.schema import to_scaled

    encoder, parts = load_encoder(), []
    for seed in range(scenes):
        pixels = Scene(seed, 512, 512).render(100 + 10 * (seed % 20))
        parts.append(embed_image(encoder, to_scaled(pixels, "dn", 0.0), IndexConfig()).vectors)
    np.save(out, np.concatenate(parts))
    return {"encoder": encoder.name}


def taken(out: str, indexes: list[str]) -> dict[str, Any]:
    """Return the embeddings of exact index folders made by the same encoder."""
    from retrieval.index.faiss_index import VectorIndex
    from tfrecords.artifacts import read_manifest

    opened = [VectorIndex.open(Path(i) / "vectors.faiss", "exact", 0) for i in indexes]
    encoders = {read_manifest(Path(i), "index", verify="sizes").extra["encoder"] for i in indexes}
    assert len(encoders) == 1, f"made by several encoders: {sorted(encoders)}"
    shape = (sum(map(len, opened)), opened[0].dim)
    kept, start = np.lib.format.open_memmap(out, "w+", np.float32, shape), 0
    for _, vectors in (block for index in opened for block in index.blocks(BLOCK)):
        kept[start : start + len(vectors)] = vectors
        start += len(vectors)
    kept.flush()
    return {"encoder": encoders.pop()}
