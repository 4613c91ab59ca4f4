"""Embeddings, and as many more as are wanted that are like them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 65_536
"""Vectors made at a time."""
LEARNED = 1_000_000
"""Vectors among which codes are learned; an index folder takes as many."""
CACHED = 4096
"""Of these so many at once: they stay in the processor's cache."""
NEAR, FAR = 0.35, 0.9
"""Noise, as a share of a vector's length, of a window a few pixels off and of a patch of another year; the
cosine between the two is then 0.94 and 0.74, as measured on real imagery."""


@dataclass(frozen=True)
class Made:
    """Vectors that are the same each time they are made, any of them at any time, without being kept."""

    base: str
    """File of embeddings, (m, dim) float32."""
    count: int
    """How many vectors there shall be."""

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(np.load(self.base, mmap_mode="r", allow_pickle=False).shape[1])

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Those of some rows: the embeddings first, then jitter of them.

        Noise is a run of a table of normal numbers, from a place that the row's number says.
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
        """Ids and vectors, in their order; all, or some of them."""
        stop = self.count if stop is None else min(stop, self.count)
        for start in range(first, stop, BLOCK):
            rows = np.arange(start, min(start + BLOCK, stop), dtype=np.int64)
            yield rows, self.vectors(rows)

    def queries(self, count: int) -> NDArray[np.float32]:
        """Patches of another year, of windows anywhere."""
        rng = np.random.default_rng(99)
        return noisy(self.vectors(np.sort(rng.integers(0, self.count, count))), FAR, rng)


@cache
def _normals() -> NDArray[np.float32]:
    return np.random.default_rng(7).standard_normal(2**22, np.float32)


def _hashed(rows: NDArray[np.int64], salt: int) -> NDArray[np.int64]:
    """Numbers of 0 or more that look random (SplitMix64)."""
    x = (rows.astype(np.uint64) + np.uint64(salt)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(1)).astype(np.int64)


def noisy(vectors: NDArray[np.float32], share: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Vectors with noise of a share of their length, of unit length again."""
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
    """The embeddings of index folders of the exact kind, made by the same encoder."""
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
