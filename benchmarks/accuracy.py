"""Accuracy on real imagery: is the place found, years and seasons apart?

    python benchmarks/accuracy.py DATA --out build/accuracy

DATA holds `train/` and `val/`, each with a folder for every group of places, a folder for every
place and a GeoTIFF for every date. Protocol, for each group of scenes:

* targets: the later date of every `val` place (the first of Venice and of `pajottenland`);
* distractors: the latest date of every other place that has the group's bands, reduced to them,
  and seven turned and mirrored copies of every image: the database is large and look-alike;
* queries: patches of the other dates, the same number for every place, at seeded random places
  with under 2 % nodata in both dates;
* a query is *featureless* (open water, flat lagoon) where less than 13 % of its pixels have a
  gradient above 150 DN: fixed by that rule on the query's pixels, before any encoder is asked;
* splits are by place. `val` chooses between encoders, so its figures are those of the set that chose.

Encoders are compared in one run, on the same queries; intervals are bootstrapped over disjoint
256-pixel blocks of ground, differences paired.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from context import context
from numpy.typing import NDArray

from retrieval import build_index
from retrieval.config import IndexConfig
from retrieval.features import structure_tensor
from retrieval.matches import Matches
from retrieval.report import MatchPicture, draw_matches
from retrieval.score import Submission, compare, score
from retrieval.train.weather import paste_clouds
from tfrecords.read import ImageSource, read_images
from tfrecords.schema import Image, Patches, to_scaled

FIRST_DATE_IS_TARGET = ("venice", "pajottenland")
NEAR_PX = 12.0
"""Search has found a place if a window within this distance of it is among the candidates."""
EDGE_DN, FEATURELESS_SHARE = 150.0, 0.13
RGBN = ("B04", "B03", "B02", "B08")


@dataclass(frozen=True)
class Group:
    """A group of scenes and the bands that it is asked in."""

    folders: tuple[str, ...]
    """Folders of `val` that hold its places."""
    bands: tuple[str, ...]
    """Bands of targets, distractors and queries."""
    clouds: bool = False
    """Whether thick clouds with their shadows are pasted over 30 to 70 % of each query."""


GROUPS = {
    "cities": Group(("oscd",), RGBN),
    "flood": Group(("ombria",), ("B11", "B08", "B03")),
    "venice": Group(("venice",), RGBN[:3]),
    "fields and forest": Group(("belgium", "forest"), RGBN),
    "cities, near infrared only": Group(("oscd",), ("B08",)),
    "cities under cloud": Group(("oscd",), RGBN, clouds=True),
}


# --- the data of a group ------------------------------------------------------------------------------


def dates(place: Path) -> list[Path]:
    """A place's files in time's order."""
    return sorted(place.glob("*.tif"), key=lambda p: (p.stem == "after", p.stem))


def places(root: Path) -> Iterator[Path]:
    """All folders that hold the dates of a place."""
    yield from sorted({p.parent for p in root.rglob("*.tif")})


def opened(file: Path, bands: tuple[str, ...]) -> Image | None:
    """A file in the bands asked for, or None where it lacks one."""
    image = next(iter(read_images(file)))
    if not set(bands) <= set(image.bands):
        return None
    return replace(image, pixels=image.pixels[..., [image.bands.index(b) for b in bands]], bands=bands)


def turned(image: Image) -> list[Image]:
    """The image and its seven turned and mirrored copies."""
    both = image.pixels, image.pixels[:, ::-1]
    return [replace(image, pixels=np.ascontiguousarray(np.rot90(p, k))) for p in both for k in range(4)]


@dataclass(frozen=True)
class Question:
    """A group's targets, files of distractors, queries and answers."""

    targets: list[Image]
    distractors: list[Path]
    bands: tuple[str, ...]
    patches: Patches
    answers: Submission
    places: NDArray[np.str_]
    featureless: NDArray[np.bool_]

    def database(self) -> ImageSource:
        """Every image of the database; a target's id is eight times its rank, upright."""

        def begin() -> Iterator[Image]:
            number = 0
            for image in self.targets:
                for copy in turned(image):
                    yield replace(copy, image_id=number, crs=None, transform=None)
                    number += 1
            for file in self.distractors:
                image = opened(file, self.bands)
                assert image is not None
                for copy in turned(image):
                    yield replace(copy, image_id=number, crs=None, transform=None)
                    number += 1

        return ImageSource("real imagery", 8 * (len(self.targets) + len(self.distractors)), begin)


def ask(data: Path, group: Group, queries: int, seed: int) -> Question:
    """Draw a group's queries; the same seed gives the same question."""
    rng = np.random.default_rng(seed)
    chosen = [p for p in places(data / "val") if p.parent.name in group.folders]
    targets, drawn = [], []
    for rank, place in enumerate(chosen):
        files = dates(place)
        target = files[0] if place.name in FIRST_DATE_IS_TARGET else files[-1]
        image = opened(target, group.bands)
        assert image is not None
        targets.append(image)
        others = [opened(f, group.bands) for f in files if f != target]
        drawn += _draw(rng, [o for o in others if o], image, queries // len(chosen), (rank * 8, place.name))
    pixels, ids, x, y, names = (np.array(v) for v in zip(*drawn, strict=True))
    scaled = to_scaled(pixels, targets[0].units, targets[0].nodata)
    featureless = is_featureless(scaled)
    patches = Patches(np.arange(len(x)), pixels, targets[0].units, group.bands, targets[0].nodata)
    if group.clouds:
        scaled, _ = paste_clouds(scaled, rng.uniform(0.3, 0.7, len(x)), rng, seed=1)
        patches = Patches(np.arange(len(x)), scaled, "scaled", group.bands, np.nan)
    answers = Submission(np.arange(len(x)), ids, x, y, source="answers")
    rest = [p for p in (*places(data / "train"), *places(data / "val")) if p not in chosen]
    distractors = [dates(p)[-1] for p in rest if opened(dates(p)[-1], group.bands)]
    return Question(targets, distractors, group.bands, patches, answers, names, featureless)


def _draw(
    rng: np.random.Generator, others: list[Image], target: Image, count: int, where: tuple[int, str]
) -> list[tuple[Any, ...]]:
    """Patches of other dates at random places, with little nodata in either date."""
    drawn: list[tuple[Any, ...]] = []
    hidden = np.isnan(target.scaled()).all(-1)
    masks = [np.isnan(o.scaled()).all(-1) for o in others]
    for _ in range(200 * count):
        if len(drawn) == count:
            break
        pick = rng.integers(len(others))
        x, y = rng.integers(target.width - 63), rng.integers(target.height - 63)
        square = slice(y, y + 64), slice(x, x + 64)
        if max(hidden[square].mean(), masks[pick][square].mean()) < 0.02:
            drawn.append((others[pick].pixels[square], where[0], x, y, where[1]))
    return drawn


def is_featureless(scaled: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Open water and flat lagoon, by the protocol's rule on the query's own pixels."""
    from keras import ops

    noise = 10 / 2047.5
    g = np.concatenate(
        [
            ops.convert_to_numpy(structure_tensor(scaled[i : i + 256], noise)[0])[..., 0]
            for i in range(0, len(scaled), 256)
        ]
    )
    gradient_dn = np.sqrt(np.expm1(2 * g)) * noise * 2047.5
    return (gradient_dn > EDGE_DN).mean((1, 2)) < FEATURELESS_SHARE


# --- measuring ----------------------------------------------------------------------------------------


def run(question: Question, encoder: str, folder: Path, stride: int) -> tuple[Matches, dict[str, Any]]:
    """Index the database with an encoder and answer the queries."""
    shutil.rmtree(folder, ignore_errors=True)
    start = time.perf_counter()
    config = IndexConfig(stride_px=stride, kind="exact")
    index = build_index(
        question.database(), folder, encoder=encoder, config=config, progress=_progress(encoder)
    )
    built = time.perf_counter()
    found = index.matches(question.patches, progress=_progress(encoder))
    counts = {
        "images": len(index.store.images),
        "windows": len(index.store.vectors),
        "patches": len(question.patches),
    }
    times = {"index_s": built - start, "query_s": time.perf_counter() - built}
    return found, counts | times


def _progress(name: str) -> Any:
    def say(stage: str, done: int, total: int | None) -> None:
        if sys.stderr.isatty():
            print(f"\r{name}: {stage} {done}/{total or '?'}   ", end="", file=sys.stderr)

    return say


def recall(found: Matches, answers: Submission, first: int) -> NDArray[np.bool_]:
    """Whether search proposed the right place among its first so many."""
    c = found.candidates
    order = np.argsort(-c.similarity, axis=1, kind="stable")[:, :first]
    image, x, y = (np.take_along_axis(v, order, 1) for v in (c.image_ids, c.x, c.y))
    near = np.hypot(x - answers.x[:, None], y - answers.y[:, None]) <= NEAR_PX
    return ((image == answers.image_ids[:, None]) & near).any(1)


def part(whole: Submission, rows: NDArray[np.bool_]) -> Submission:
    """Some rows of a submission."""
    return Submission(
        whole.patch_ids[rows], whole.image_ids[rows], whole.x[rows], whole.y[rows], source=whole.source
    )


def figures(question: Question, found: Matches) -> tuple[Submission, dict[str, Any]]:
    """Scores over all queries, those with features, and each place."""
    submission = Submission(found.patch_ids, *found.best(), source="answer")
    every = np.ones(len(question.patches), bool)
    subsets = {"all": every, "with features": ~question.featureless}
    subsets |= {str(p): question.places == p for p in np.unique(question.places)}
    out: dict[str, Any] = {}
    for name, rows in subsets.items():
        if rows.any():
            out[name] = score(part(submission, rows), part(question.answers, rows)).to_dict()
            for first in (1, 5, 20, 50):
                out[name][f"recall_{first}"] = float(recall(found, question.answers, first)[rows].mean())
    return submission, out


def measure(name: str, data: Path, encoders: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """One group of scenes, all encoders side by side."""
    question = ask(data, GROUPS[name], args.queries, args.seed)
    result: dict[str, Any] = {"featureless": int(question.featureless.sum())}
    submissions: dict[str, Submission] = {}
    for encoder in encoders:
        folder = args.out / "index"
        found, counts = run(question, encoder, folder, args.stride)
        submissions[encoder], scores = figures(question, found)
        result[encoder] = {"counts": counts, "scores": scores}
        print(line(name, encoder, counts, scores), flush=True)
        draw_failures(
            question,
            found,
            args.out / f"{name.replace(', ', '-').replace(' ', '-')}-{Path(encoder).stem}.png",
        )
        np.savez(
            args.out / f"evidence-{name.replace(', ', '-').replace(' ', '-')}-{Path(encoder).stem}.npz",
            **{f: getattr(found.candidates, f) for f in found.candidates.__dataclass_fields__},
            answers=np.stack([question.answers.image_ids, question.answers.x, question.answers.y], 1),
            places=question.places.astype("U32"),
            featureless=question.featureless,
        )
        shutil.rmtree(folder)
    for encoder in encoders[1:]:
        difference = compare(submissions[encoder], submissions[encoders[0]], question.answers)
        result[encoder]["minus " + encoders[0]] = difference.to_dict()
        sc = difference.to_dict()["SC"]
        print(
            f"  {encoder} - {encoders[0]}: SC {sc['value']:+.3f} [{sc['low']:+.3f}, {sc['high']:+.3f}]",
            flush=True,
        )
    return result


def line(group: str, encoder: str, counts: dict[str, Any], scores: dict[str, Any]) -> str:
    """A row of the table that people read."""
    a, f = scores["all"], scores.get("with features", scores["all"])
    return (
        f"{group:28s} {Path(encoder).stem:18s} {counts['images']:5d} images {counts['windows']:8d} windows "
        f"{counts['patches']:4d} patches  "
        f"SC {a['SC']['value']:.3f} [{a['SC']['low']:.3f}, {a['SC']['high']:.3f}] "
        f"with features {f['SC']['value']:.3f}  in 2 px {a['within_2px']['value']:.3f}  "
        f"first {a['recall_1']:.3f}  in 20 {a['recall_20']:.3f}  in 50 {a['recall_50']:.3f}  "
        f"index {counts['index_s']:.0f} s, query {counts['query_s']:.0f} s"
    )


def draw_failures(question: Question, found: Matches, path: Path, most: int = 24) -> None:
    """The worst first: wrong answers that were given with the most confidence."""
    image_ids, x, y = found.best()
    answers = question.answers
    wrong = (image_ids != answers.image_ids) | (np.hypot(x - answers.x, y - answers.y) > 10)
    rows = np.flatnonzero(wrong)
    pictures = [_picture(found, answers, r) for r in rows[np.argsort(-found.confidence[rows])][:most]]
    if pictures:
        draw_matches(
            pictures,
            path,
            title=f"{len(rows)} of {len(wrong)} wrong, the most confident first",
            overwrite=True,
        )


def _picture(found: Matches, answers: Submission, row: int) -> MatchPicture:
    image_ids, x, y = (int(v[row]) for v in found.best())
    right = int(answers.image_ids[row]), int(answers.x[row]), int(answers.y[row])

    def window(image_id: int, x: int, y: int) -> NDArray[np.float32]:
        return found.store.scaled(image_id)[y : y + 64, x : x + 64]

    query = found.patches.scaled(slice(row, row + 1))[0]
    confidence = float(found.confidence[row])
    seen = window(image_ids, x, y), image_ids, x, y
    return MatchPicture(row, query, *seen, confidence, window(*right), *right)


def main() -> None:
    """Measure the groups asked for and write table, JSON and pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder with train/ and val/")
    parser.add_argument("--out", type=Path, default=Path("build/accuracy"))
    parser.add_argument(
        "--encoder",
        action="append",
        help="name or .keras file, the first is the yardstick; default: both shipped",
    )
    parser.add_argument("--group", action="append", choices=list(GROUPS))
    parser.add_argument("--queries", type=int, default=300, help="for a group")
    parser.add_argument("--stride", type=int, default=IndexConfig.stride_px)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    encoders = args.encoder or ["structure-tensor", "siamese"]
    result = {
        "context": context(),
        "queries": args.queries,
        "seed": args.seed,
        "stride_px": args.stride,
        "groups": {},
    }
    for name in args.group or GROUPS:
        result["groups"][name] = measure(name, args.data, encoders, args)
        (args.out / "accuracy.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
