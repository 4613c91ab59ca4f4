"""An index larger than the disk: complete codes, and a hole in the file instead of full vectors."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from enlarged import BLOCK, LEARNED, Made
from watching import anonymous_mb, cpu, watched


def hollow(made: Made, kind: str, path: str) -> dict[str, Any]:
    """Build an index with all codes, and a hole in the file instead of full vectors."""
    from retrieval.index.kinds import as_float16, regroup_blocks, set_nprobe, train_quantizer
    from retrieval.index.spool import spooled_codes
    from retrieval.index.vector_file import begin_refined, end_refined, half_precision

    start, begun = cpu(), time.perf_counter()
    few, dim = Made(made.base, min(made.count, LEARNED)), made.dim
    with watched() as peak:
        codes = train_quantizer(kind, as_float16(few.blocks), few.count, dim, made.count)  # type: ignore[arg-type]
        if kind == "ivf":
            set_nprobe(codes, 0)
        blocks, folder = (
            with_progress(regroup_blocks(as_float16(made.blocks)()), made.count),
            Path(path).parent,
        )
        with (
            spooled_codes(codes, blocks, made.count, folder) as write,
            Path(path).open("wb") as file,
            tempfile.TemporaryFile(dir=folder) as ids,
        ):
            after = begin_refined(file, codes, write)
            file.seek(made.count * half_precision(dim).code_size, os.SEEK_CUR)
            for first in range(0, made.count, BLOCK):
                ids.write(np.arange(first, min(first + BLOCK, made.count), dtype=np.int64).data)
            ids.seek(0)
            end_refined(file, after, made.count, ids)
    spent = time.perf_counter() - begun
    size = Path(path).stat().st_size
    return {"cpu_s": cpu() - start, "s": spent, "own_peak_mb": peak[0], "bytes": size}


def with_progress(blocks: Iterator[Any], count: int) -> Iterator[Any]:
    """Yield the blocks, and print a line of progress now and then."""
    done, start = 0, time.perf_counter()
    for ids, vectors in blocks:
        if done // LEARNED != (done + len(ids)) // LEARNED:
            spent = time.perf_counter() - start
            print(
                f"  {done / 1e6:.0f} of {count / 1e6:.0f} M windows, {spent:.0f} s, {anonymous_mb():.0f} MB",
                flush=True,
            )
        done += len(ids)
        yield ids, vectors
