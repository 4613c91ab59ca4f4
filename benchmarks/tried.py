"""Compare settings of the encoder's recipe in short trainings, one change at a time.

    retrieve ingest DATA/train --out build/series
    python benchmarks/tried.py DATA build/series --out build/tried --json benchmarks/results/tried.json

Every variant is the recipe `siamese`, shortened (`SHORT`), with one change and the same seed. The
protocol of `benchmarks/accuracy.py` gives queries and databases. The figures are of exact search at stride 8:
the right place within 12 px among the first 1, 20 and 500 distinct places. They are measured for the indexed
vector, and for its learned half alone. Intervals are bootstrapped over blocks of ground; differences to the
first variant are paired.

The JSON is written after every variant, so an interrupted run resumes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from context import arguments, context, write_json
from numpy.typing import NDArray
from protocol import GROUPS, TURNS, Database, Question, ask, by_database, recalled, share, share_as_submission

from retrieval.config import IndexConfig, SearchConfig, TrainConfig
from retrieval.evaluation.scoring import compare
from retrieval.evaluation.submission import Submission
from retrieval.index.recall import exact_search
from retrieval.matching.candidates import non_max_suppression
from retrieval.models.embed import embed_image, embed_patches
from retrieval.models.encoder import load_encoder
from retrieval.synthetic.sets import make_series
from retrieval.training.recipes import read_recipe
from retrieval.training.siamese import train_encoder
from retrieval.types import Candidates, Encoder, pack_ids
from tfrecords.read import series_files

Vectors = NDArray[np.float32]
MEASURED = ("cities", "fields and forest", "venice")
"""Groups of queries."""
FIRST = (1, 20, 500)
"""Numbers of places for which recall is reported."""
DEEP = SearchConfig(top_k=SearchConfig.round2_top_k, max_candidates=SearchConfig.round2_max_candidates)
"""The numbers of windows and places of round 2."""
BLOCK = 1 << 17
"""Windows per block."""
RECIPE = "siamese"
STEPS = 300
"""Steps of every training."""
SHORT: dict[str, Any] = {
    "average": 0.98,
    "warmup_steps": 40,
    "projection_crops": 6000,
    "held_out": 0.02,
    "validation_series": 1,
    "validation_queries": 20,
    "workers": 1,
}
"""Changes for a short training; its validation is not used, so it is small."""
GENERATED, GENERATED_DATES = 24, 6
"""Generated series that one variant adds, and their dates."""


@dataclass(frozen=True)
class Variant:
    """One variant of the recipe."""

    question: str
    """The question that it answers."""
    name: str
    """Name of the variant."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Changed settings of the recipe."""
    generated: bool = False
    """Whether generated series are added."""
    stride: int = 8
    """Stride of the index in pixels."""
    shipped: str = ""
    """Name of a shipped encoder, which is not trained here."""

    @property
    def key(self) -> str:
        """Name in the JSON."""
        return f"{self.question}: {self.name}"


def augmented(**knobs: float) -> dict[str, Any]:
    """Return changes of the augmentation."""
    return {"augment": knobs}


PHOTOMETRY = dict.fromkeys(("gain", "offset", "tone_curve_std", "haze", "blur", "noise_dn", "eight_bit"), 0.0)
BASE = Variant("recipe", "as shipped, short")
VARIANTS = (
    BASE,
    Variant("loss", "triplet, hardest negative", {"loss": "triplet", "mining": "hard"}),
    Variant("loss", "triplet, semi-hard", {"loss": "triplet", "mining": "semi-hard"}),
    Variant("loss", "Multi-Similarity", {"loss": "multi-similarity"}),
    Variant("stem", "raw bands, no training-free half", {"arch": "plain", "compile": False}),
    Variant("stem", "learnable derivatives", {"learned": {"stem": "learnable"}, "compile": False}),
    Variant("stem", "training-free half alone, as shipped", shipped="structure-tensor"),
    Variant("negatives", "random places: 1 pair of a place in turn", {"per_place": 1}),
    Variant("negatives", "more near-by: 32 pairs of a place", {"per_place": 32}),
    Variant("negatives", "clusters of 24 look-alikes instead of places", {"alike": 24}),
    Variant("negatives", "overlapping ground kept as negatives", {"overlaps": True}),
    Variant("clouds", "none", augmented(clouds=0.0)),
    Variant("clouds", "over half of the pairs", augmented(clouds=0.5)),
    Variant("generated scenes", f"{GENERATED} series mixed in", generated=True),
    Variant("photometry", "none", augmented(**PHOTOMETRY)),
    Variant("jitter", "none", {"jitter_px": 0}),
    Variant("missing bands", "none", augmented(bands=0.0, cross_bands=0.0)),
    Variant("dimension", "64", {"learned": {"dim": 64}}),
    Variant("dimension", "256", {"learned": {"dim": 256}}),
    Variant("width", "32", {"learned": {"width": 32}}),
    Variant("width", "96", {"learned": {"width": 96}}),
    Variant("stride", "4 px", stride=4),
    Variant("recipe", "as shipped, in full", shipped="siamese"),
)
"""In the order of measurement, the most important first."""


def recipe_of(variant: Variant, steps: int) -> TrainConfig:
    """Return the recipe of a variant.

    Raises:
        ConfigError: it changes an unknown setting.
    """
    values = read_recipe(RECIPE) | SHORT
    values |= {k: steps for k in ("steps", "validate_every", "checkpoint_every")}
    for name, value in variant.changes.items():
        values[name] = values[name] | value if isinstance(value, Mapping) else value
    return TrainConfig.from_mapping(values)


# --- search -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Windows:
    """All windows of a database."""

    ids: NDArray[np.int64]
    """(n,) packed ids."""
    vectors: Vectors
    """(n, dim) vectors."""

    def nearest(self, queries: Vectors, of: slice) -> Candidates:
        """Return distinct places, best first, by a part of the vectors scaled to unit length."""

        def blocks() -> Iterator[tuple[NDArray[np.int64], Vectors]]:
            for start in range(0, len(self.ids), BLOCK):
                rows = slice(start, start + BLOCK)
                yield self.ids[rows], unit(self.vectors[rows, of])

        asked = unit(queries[:, of])
        found = exact_search(blocks, asked, DEEP.top_k)
        found[~asked.any(1)] = -1  # a patch that shows nothing finds nothing
        return non_max_suppression(np.zeros(found.shape, np.float32), found, DEEP)


def unit(vectors: Vectors) -> Vectors:
    """Return vectors of unit length; zero stays zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)


def banded(scaled: Vectors, encoder: Encoder) -> Vectors:
    """Return pixels with the number of bands that a model requires, missing ones NaN."""
    wanted = getattr(encoder, "model").input_shape[-1] or scaled.shape[-1]  # noqa: B009 - of a Keras encoder
    missing = [(0, 0)] * (scaled.ndim - 1) + [(0, wanted - scaled.shape[-1])]
    return np.pad(scaled, missing, constant_values=np.nan)


def embedded(encoder: Encoder, database: Database, stride: int, copies: int) -> Windows:
    """Embed every image and some of its turned copies."""
    config = IndexConfig(stride_px=stride, kind="exact")
    ids, vectors = [], []
    for image in database.images():
        if image.image_id % TURNS > copies:
            continue
        seen = embed_image(encoder, banded(image.scaled(), encoder), config)
        ids.append(pack_ids(np.full(len(seen.xy), image.image_id), seen.xy[:, 0], seen.xy[:, 1]))
        vectors.append(seen.vectors)
    return Windows(np.concatenate(ids), np.concatenate(vectors))


# --- one variant --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """Input of a process."""

    variant: Variant
    config: TrainConfig
    series: tuple[Path, ...]
    out: Path
    databases: Mapping[Database, Mapping[str, Question]]
    copies: int


def done(job: Job) -> dict[str, Any]:
    """Train and measure a variant in a separate process.

    Returns:
        Processor seconds, number of windows, and for every half and group the queries that found their
        place: {half: {group: {first: (n,) bool}}}.
    """
    begun = time.process_time()
    name = job.variant.shipped or str(job.out)
    if not job.variant.shipped:
        train_encoder(job.series, job.out, job.config, overwrite=True)
    trained = time.process_time()
    encoder = load_encoder(name)
    halves = {"indexed": slice(None)}
    if job.config.arch == "siamese" and job.variant.shipped != "structure-tensor":
        halves["learned"] = slice(encoder.dim - job.config.learned.dim, None)
    found: dict[str, dict[str, Any]] = {half: {} for half in halves}
    windows = {}
    for database, questions in job.databases.items():
        searched = embedded(encoder, database, job.variant.stride, job.copies)
        for group, question in questions.items():
            windows[group] = len(searched.ids)
            queries = embed_patches(encoder, banded(question.patches.scaled(), encoder))
            for half, of in halves.items():
                nearest = searched.nearest(queries, of)
                found[half][group] = {k: recalled(nearest, question.answers, k) for k in FIRST}
    seconds = {"train": trained - begun, "measure": time.process_time() - trained}
    return {"cpu_s": seconds, "windows": windows, "dim": encoder.dim, "found": found}


# --- figures ------------------------------------------------------------------------------------------


def packed(right: NDArray[np.bool_]) -> str:
    """Return a mask of queries as hexadecimal digits."""
    return np.packbits(right).tobytes().hex()


def unpacked(digits: str, count: int) -> NDArray[np.bool_]:
    """Return the mask of hexadecimal digits."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8), count=count).astype(bool)


def together(questions: Mapping[str, Question]) -> Submission:
    """Concatenate the answers of all groups; every query counts once."""
    ids, x, y = (
        np.concatenate([getattr(q.answers, f) for q in questions.values()]) for f in ("image_ids", "x", "y")
    )
    return Submission(np.arange(len(x)), ids, x, y, source="answers")


def figures(
    found: Mapping[str, Mapping[int, NDArray[np.bool_]]],
    questions: Mapping[str, Question],
    base: str | None,
) -> dict[str, Any]:
    """Return the recall of one half: by group, of all, and minus the base.

    Args:
        found: for every group and number of places, the mask of queries that found theirs.
        questions: queries of the groups, in the same order.
        base: `first` of the base.
    """
    out: dict[str, Any] = {
        group: {str(k): share(right, questions[group].answers) for k, right in of_group.items()}
        for group, of_group in found.items()
    }
    answers = together(questions)
    right = {k: np.concatenate([of_group[k] for of_group in found.values()]) for k in FIRST}
    out["all"] = {str(k): share(r, answers) for k, r in right.items()}
    out["first"] = packed(right[1])
    if base is not None:
        there = share_as_submission(unpacked(base, len(answers.x)), answers)
        out["minus"] = compare(share_as_submission(right[1], answers), there, answers).to_dict()["SC_img"]
    return out


def entered(variant: Variant, made: Mapping[str, Any], asked: Mapping[str, Question], base: Any) -> Any:
    """Return a variant as written to the JSON."""
    of_base = base["halves"] if base else {}
    halves = {
        half: figures(found, asked, of_base.get(half, {}).get("first"))
        for half, found in made["found"].items()
    }
    cost = {k: made[k] for k in ("cpu_s", "windows", "dim")}
    one = {"question": variant.question, "name": variant.name, "stride_px": variant.stride}
    return one | {"changes": dict(variant.changes)} | cost | {"halves": halves}


def line(key: str, one: Mapping[str, Any]) -> str:
    """Return the printed line of a variant."""
    parts = []
    for half, result in one["halves"].items():
        recall = " ".join(f"@{k} {result['all'][str(k)]['value']:.3f}" for k in FIRST)
        groups = " ".join(f"{g} {result[g]['1']['value']:.3f}" for g in MEASURED)
        minus = f" ({result['minus']['value']:+.3f})" if "minus" in result else ""
        parts.append(f"{half} {recall}{minus}, first: {groups}")
    return f"{key}: {'; '.join(parts)}; {sum(one['cpu_s'].values()):.0f} s of processor"


# --- all ----------------------------------------------------------------------------------------------


def taken_up(path: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Read the results of an earlier run.

    Raises:
        SystemExit: the earlier run had other settings.
    """
    if not path.exists():
        return {}
    former: dict[str, Any] = json.loads(path.read_text())
    if any(former[k] != v for k, v in asked.items()):
        sys.exit(f"{path} was asked otherwise; expected {dict(asked)}")
    return dict(former["variants"])


def main() -> None:
    """Train and measure the variants that the JSON lacks."""
    parser = arguments(__doc__)
    parser.add_argument("data", type=Path, help="folder with train/ and val/")
    parser.add_argument("series", type=Path, help="training series, as `retrieve ingest` writes them")
    parser.add_argument("--out", type=Path, default=Path("build/tried"), help="folder for encoders")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="questions or variants, as in the JSON")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--queries", type=int, default=300, help="queries per group")
    parser.add_argument("--copies", type=int, default=TURNS - 1, help="turned copies of every image, up to 7")
    args = parser.parse_args()
    path = args.json or args.out / "tried.json"
    args.out.mkdir(parents=True, exist_ok=True)
    asked = {"queries": args.queries, "seed": 0, "steps": args.steps, "copies": args.copies}
    variants = taken_up(path, asked)
    questions = {name: ask(args.data, GROUPS[name], args.queries, 0) for name in MEASURED}
    databases = {
        database: {name: questions[name] for name in names}
        for database, names in by_database(args.data, questions).items()
    }
    for variant in VARIANTS:
        names = {variant.question, variant.name, variant.key}
        if variant.key in variants or (args.only and not names & set(args.only)):
            continue
        series = series_of(variant, args.series, args.out)
        config, file = recipe_of(variant, args.steps), encoder_file(variant, args.out)
        job = Job(variant, config, series, file, databases, args.copies)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            made = pool.submit(done, job).result()
        variants[variant.key] = entered(variant, made, questions, variants.get(BASE.key))
        print(line(variant.key, variants[variant.key]), flush=True)
        ordered = {v.key: variants[v.key] for v in VARIANTS if v.key in variants}
        write_json(path, {"context": context(), **asked, "batch": job.config.batch, "variants": ordered})


def encoder_file(variant: Variant, out: Path) -> Path:
    """Return the path of a variant's encoder."""
    return out / ("".join(c if c.isalnum() else "-" for c in variant.key) + ".keras")


def series_of(variant: Variant, series: Path, out: Path) -> tuple[Path, ...]:
    """Return the training files of a variant; generate series on first use."""
    files = series_files(series)
    if not variant.generated:
        return files
    folder = out / "generated"
    if not folder.exists():
        make_series(folder, series=GENERATED, dates=GENERATED_DATES, seed=1)
    return (*files, *series_files(folder))


if __name__ == "__main__":
    main()
