"""Run the whole job on generated scenes: time, throughput and memory of each stage, and SC.

    python benchmarks/challenge.py --images 24 --patches 1536 --out build/challenge --json FILE
    python benchmarks/challenge.py --images 600 --patches 38400 --out build/challenge    # the reference job

Every stage runs in a separate process, as the commands do, so its peak memory is separate too. Importing
TensorFlow and FAISS, some seconds, is not counted. A challenge in the folder is reused. The scenes come from
`retrieval.synthetic`: speed holds for real imagery, SC does not.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

from context import Stage, arguments, clocked, context, stage, table, write_json

from retrieval.kernels.executors import limit_tf_threads

LOST = 0.8
"""Share of a patch under cloud, shadow or open water above which no method can find it."""

ENGINE = ("tensorflow", "keras", "faiss", "retrieval.pipeline")
"""Imports of indexing and querying, made before the clock starts."""


def generate(out: str, images: int, patches: int, size: int, seed: int) -> None:
    """Write the challenge."""
    from retrieval.synthetic.sets import make_challenge

    make_challenge(
        out,
        images=images,
        patches=patches,
        size_px=size,
        seed=seed,
        progress=lambda n, m: tell("generating", n, m),
    )


def index(folder: str, encoder: str | None, stride: int, kind: str, device: str) -> dict[str, Any]:
    """Embed and index the images."""
    from retrieval.config import IndexConfig
    from retrieval.index import builder, image_parts
    from retrieval.pipeline import build_index

    parts: dict[str, float] = {}
    config = IndexConfig(stride_px=stride, kind=kind)  # type: ignore[arg-type]
    with clocked(
        parts,
        (image_parts, "embed_image", "embedding images, threads together"),
        (builder, "finish_index", "building the vector index"),
    ):
        built = build_index(
            Path(folder) / "test_images.tfrecords",
            Path(folder) / "index",
            encoder=encoder,
            config=config,
            device=device,  # type: ignore[arg-type]
            overwrite=True,
            progress=tell,
        )
    size = sum(p.stat().st_size for p in (Path(folder) / "index").rglob("*") if p.is_file())
    manifest = built.folder.manifest
    return {"parts": parts, "bytes": size, "kind": manifest.extra["kind"], **manifest.counts}


def query(folder: str, device: str) -> dict[str, Any]:
    """Locate the patches and write the submission."""
    from retrieval import pipeline
    from retrieval.matching import blocks, exhaustive, rounds, session
    from retrieval.matching.local_search import LocalSearch
    from retrieval.results.outputs import QueryOutputs

    parts: dict[str, float] = {}
    places = (
        (session, "open_index_and_queries", "opening the index, reading patches"),
        (rounds, "embed_patches", "embedding patches"),
        (rounds, "find_candidates", "searching"),
        (rounds, "match_and_verify", "correlating and verifying"),
        (blocks, "refine_full_resolution", "full resolution"),
        (exhaustive, "select_uncertain", "measuring texture"),
        (LocalSearch, "search_images", "comparing everywhere"),
        (exhaustive, "find_places", "searching parts"),
        (exhaustive, "rank_candidates", "ranking places"),
    )
    with clocked(parts, *places):
        opened, queries = session.open_index_and_queries(
            Path(folder) / "index",
            Path(folder) / "test_patches.tfrecords",
            device=device,  # type: ignore[arg-type]
        )
        found = pipeline.locate(pipeline.Index(opened, device), queries, progress=tell)  # type: ignore[arg-type]
        QueryOutputs(Path(folder) / "submission.csv", overwrite=True).write(found)
    return {"parts": parts, "mean_confidence": float(found.confidence.mean())}


def evaluate(folder: str) -> dict[str, Any]:
    """Score the submission on all patches, and on the patches that can be found."""
    import numpy as np

    from retrieval.evaluation.scoring import score
    from retrieval.evaluation.submission import Submission, read_submission

    submission, answers = (read_submission(Path(folder) / f) for f in ("submission.csv", "answers.csv"))
    with (Path(folder) / "truth.csv").open(newline="") as file:
        lost = {int(r["Patch ID"]) for r in csv.DictReader(file) if float(r["lost"]) > LOST}

    def without_lost(one: Submission) -> Submission:
        keep = ~np.isin(one.patch_ids, list(lost))
        return Submission(one.patch_ids[keep], one.image_ids[keep], one.x[keep], one.y[keep])

    return {
        "all": score(submission, answers).to_dict(),
        "findable": score(without_lost(submission), without_lost(answers)).to_dict(),
        "lost": len(lost),
    }


def tell(name: str, done: int, total: int | None) -> None:
    """Print one line of progress on standard error."""
    if sys.stderr.isatty():
        print(f"\r{name} {done}{f' of {total}' if total else ''}\033[K", end="", file=sys.stderr)


def rows(stages: dict[str, Stage], images: int, patches: int) -> list[tuple[str, ...]]:
    """Print the table, parts below their stage."""
    windows = stages["index"].result["windows"]
    amounts = {"generate": (images, "images"), "index": (windows, "windows"), "query": (patches, "patches")}
    out = []
    for name, one in stages.items():
        amount, unit = amounts.get(name, (0, ""))
        out.append(one.row(amount, unit))
        for part, took in one.parts.items():
            out.append((f"  {part}", f"{took:.1f} s", f"{amount / took:,.1f} {unit}/s", ""))
    return out


def main() -> None:
    """Run the stages and print their figures."""
    parser = arguments(__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/challenge"))
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--patches", type=int, default=1536)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stride", type=int, default=8)
    parser.add_argument("--kind", choices=("auto", "exact", "fast", "ivf"), default="auto")
    parser.add_argument("--encoder", help="name or file; default: the shipped encoder")
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto")
    args = parser.parse_args()
    limit_tf_threads()  # as the commands do
    folder, stages = str(args.out), {}
    if not (args.out / "manifest.json").is_file():
        made = (folder, args.images, args.patches, args.size, args.seed)
        stages["generate"] = stage("generate", generate, *made, imports=("tensorflow",))
    made = (folder, args.encoder, args.stride, args.kind, args.device)
    stages["index"] = stage("index", index, *made, imports=ENGINE)
    stages["query"] = stage("query", query, folder, args.device, imports=ENGINE)
    stages["score"] = stage("score", evaluate, folder)
    print(table(("stage", "time", "throughput", "peak memory"), rows(stages, args.images, args.patches)))
    scores = stages["score"].result
    for name in ("all", "findable"):
        figures = {k: v for k, v in scores[name].items() if isinstance(v, dict) and "value" in v}
        said = "  ".join(
            f"{k} {v['value']:.3f} [{v['low']:.3f}, {v['high']:.3f}]" for k, v in figures.items()
        )
        print(f"{name} patches: {said}")
    shapes = {k: getattr(args, k) for k in ("images", "patches", "size", "seed", "stride", "kind", "encoder")}
    figures = {n: {**vars(s)} for n, s in stages.items()}
    write_json(args.json, {"context": context(**shapes), "stages": figures})


if __name__ == "__main__":
    main()
