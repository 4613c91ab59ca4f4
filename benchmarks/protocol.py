"""The protocol of `benchmarks/accuracy.py`: places, dates, patches and copies.

DATA holds `train/` and `val/`, each with a folder for every group of places, a folder for every place and a
GeoTIFF for every date. An image number is eight times the rank of its place plus the number of its turned
copy. Places of `val` rank first, so numbers are the same in every database. What enlarges a database ranks
behind them: copies at each scale from a multiple of `RESCALED_FROM` on, generated scenes from
`GENERATED_FROM` on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture

from retrieval.config import PATCH_PX, TensorConfig
from retrieval.evaluation.calibration_fit import expected_calibration_error
from retrieval.evaluation.intervals import ground_blocks
from retrieval.evaluation.scoring import RESAMPLES, compare, score
from retrieval.evaluation.submission import Submission
from retrieval.models.calibration import RIGHT_PX
from retrieval.models.structure_tensor import structure_tensor
from retrieval.synthetic.scene import Scene
from retrieval.training.weather import paste_clouds
from retrieval.types import Candidates, RankedCandidates
from tfrecords.read import ImageSource, read_images
from tfrecords.read.rasters import describe_raster
from tfrecords.schema import Image, Patches, to_scaled

FIRST_DATE_IS_TARGET = ("venice", "pajottenland")
RECALLED = (1, 5, 20, 500)
"""Numbers of places for which recall is reported."""
TURNS = 8
"""The upright image and its seven turned and mirrored copies."""
NEAR_PX = 12.0
"""Distance within which a candidate counts as the right place."""
EDGE_DN, FEATURELESS_SHARE, POOR_SHARE = 150.0, 0.13, 0.7
"""Gradient above which a pixel is an edge; shares of edges below which a query is featureless, or poor."""
RENDER_PERCENT = (2.0, 98.0)
TRAINING_FREE = "training-free"
"""Name of the baseline: the training-free encoder, without learned parts after it."""
BILINEAR = Picture.Resampling.BILINEAR
RGBN = ("B04", "B03", "B02", "B08")
RESCALED_FROM = 1000
"""Rank of the first copy at the first scale; copies at the second scale begin at twice this number."""
GENERATED_FROM = 10_000
"""Rank of the first generated scene."""
GENERATED_PX = 512
"""Side of a generated scene."""


@dataclass(frozen=True)
class Group:
    """A group of scenes and the form of its queries."""

    folders: tuple[str, ...]
    """Folders of `val` that hold its places."""
    bands: tuple[str, ...]
    """Bands of the queries."""
    index_bands: tuple[str, ...] = ()
    """Bands of the database; empty = the bands of the queries."""
    clouds: bool = False
    """Whether clouds with shadows cover 30 to 70 % of each query."""
    eight_bit: bool = False
    """Whether queries and database are 8-bit renderings."""
    form_of: str = ""
    """The group with the same queries in full form, for comparison."""
    generated: int = 0
    """Generated scenes that enlarge the database; with their turned copies each adds 2.1 megapixels."""
    scales: tuple[float, ...] = ()
    """Scales of copies of all places that enlarge the database."""


GROUPS = {
    "cities": Group(("oscd",), RGBN),
    "fields and forest": Group(("belgium", "forest"), RGBN),
    "cities under cloud": Group(("oscd",), RGBN, clouds=True),
    "cities under cloud, 300 megapixels": Group(
        ("oscd",), RGBN, clouds=True, form_of="cities under cloud", generated=114
    ),
    "cities under cloud, 246 megapixels": Group(
        ("oscd",), RGBN, clouds=True, form_of="cities under cloud", scales=(0.75, 0.93, 1.25)
    ),
    "cities, RGB in an index of four bands": Group(("oscd",), RGBN[:3], RGBN, form_of="cities"),
    "venice": Group(("venice",), RGBN[:3]),
    "cities, RGB only": Group(("oscd",), RGBN[:3], form_of="cities"),
    "cities, eight-bit renderings": Group(("oscd",), RGBN, eight_bit=True, form_of="cities"),
    "flood": Group(("ombria",), ("B11", "B08", "B03")),
    "cities, near infrared only": Group(("oscd",), ("B08",), form_of="cities"),
}


# --- files --------------------------------------------------------------------------------------------


def dates(place: Path) -> list[Path]:
    """Return the files of a place by date."""
    return sorted(place.glob("*.tif"), key=lambda p: (p.stem == "after", p.stem))


def places(root: Path) -> list[Path]:
    """Return all folders that hold the dates of a place."""
    return sorted({p.parent for p in root.rglob("*.tif")})


def target_date(place: Path) -> Path:
    """Return the date of a place that is in the database; queries come from the others."""
    return dates(place)[0 if place.name in FIRST_DATE_IS_TARGET else -1]


@lru_cache(maxsize=4096)
def has_bands(file: Path, bands: tuple[str, ...]) -> bool:
    """Return whether a file names all bands."""
    return set(bands) <= {d for d in describe_raster(file).descriptions if d}


def opened(file: Path, bands: tuple[str, ...], eight_bit: bool = False) -> Image:
    """Read some bands of a file."""
    image = next(iter(read_images(file)))
    columns = [image.bands.index(b) for b in bands]
    image = replace(image, pixels=image.pixels[..., columns], bands=bands, crs=None, transform=None)
    return rendered(image) if eight_bit else image


def rendered(image: Image) -> Image:
    """Return an 8-bit rendering: 2 to 98 % of each band stretched to 1 to 255, nodata 0."""
    if image.units == "byte":
        return image
    scaled = image.scaled()
    low, high = np.nanpercentile(scaled, RENDER_PERCENT, axis=(0, 1))
    bright = 1 + 254 * (scaled - low) / np.maximum(high - low, 1e-6)
    pixels = np.where(np.isnan(scaled), 0, np.clip(np.rint(bright), 1, 255)).astype(np.uint8)
    return replace(image, pixels=pixels, units="byte", nodata=0.0)


def turned(pixels: NDArray[Any]) -> list[NDArray[Any]]:
    """Return a picture (h, w, ...), upright, and its seven turned and mirrored copies."""
    return [np.ascontiguousarray(np.rot90(p, k)) for p in (pixels, pixels[:, ::-1]) for k in range(4)]


# --- the database -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Database:
    """The database: one date of every place with the bands, and its turned copies."""

    files: tuple[tuple[int, Path], ...]
    """Rank of each place, and the file of its date."""
    bands: tuple[str, ...]
    """Bands of the images."""
    eight_bit: bool = False
    """Whether they are 8-bit renderings."""
    generated: int = 0
    """Number of generated scenes of four bands besides."""
    scales: tuple[float, ...] = ()
    """Scales of further copies of all places."""

    @property
    def is_enlarged(self) -> bool:
        """Whether it holds more than the places."""
        return bool(self.generated or self.scales)

    def upright(self) -> Iterator[tuple[int, Image]]:
        """Yield rank and image of every place, every rescaled place and every generated scene."""
        for rank, file in self.files:
            yield rank, opened(file, self.bands, self.eight_bit)
        for rank, file, scale in self._rescaled():
            yield rank, rescaled(opened(file, self.bands, self.eight_bit), scale)
        for number in range(self.generated):
            yield GENERATED_FROM + number, generated_scene(number)

    def images(self) -> ImageSource:
        """Return every image and copy, numbered."""

        def begin() -> Iterator[Image]:
            for rank, image in self.upright():
                for turn, pixels in enumerate(turned(image.pixels)):
                    yield replace(image, image_id=TURNS * rank + turn, pixels=pixels)

        count = len(self.files) + len(self._rescaled()) + self.generated
        return ImageSource("real imagery", TURNS * count, begin)

    def _rescaled(self) -> list[tuple[int, Path, float]]:
        """Rank, file and scale of every copy that holds a patch."""
        return [
            (RESCALED_FROM * (number + 1) + rank, file, scale)
            for number, scale in enumerate(self.scales)
            for rank, file in self.files
            if min(describe_raster(file).height, describe_raster(file).width) * scale >= PATCH_PX
        ]


def rescaled(image: Image, scale: float) -> Image:
    """Return an image with `scale` times as many pixels a side, bilinear; nodata by the nearest pixel."""
    height, width = (round(side * scale) for side in image.pixels.shape[:2])
    row, column = (
        np.minimum((np.arange(n) + 0.5) / scale, side - 1).astype(int)
        for n, side in zip((height, width), image.pixels.shape[:2], strict=True)
    )
    nearest = image.pixels[row[:, None], column]
    bands = np.moveaxis(image.pixels, -1, 0).astype(np.float32)
    smooth = np.stack([np.asarray(Picture.fromarray(b).resize((width, height), BILINEAR)) for b in bands], -1)
    hidden = nearest == image.nodata
    return replace(image, pixels=np.where(hidden, nearest, np.rint(smooth)).astype(image.pixels.dtype))


def generated_scene(number: int) -> Image:
    """Return one date of a generated scene, the same for the same number."""
    rng = np.random.default_rng([0, number])
    scene = Scene(int(rng.integers(1 << 62)), GENERATED_PX, GENERATED_PX)
    seen = scene.observe(int(rng.integers(1, 366)), year=int(rng.integers(2016, 2022)))
    return Image(GENERATED_FROM + number, seen.dn, "dn", RGBN, 0.0)


def database_of(data: Path, group: Group) -> Database:
    """Return the database of a group: target dates of `val` places, latest dates of `train` places."""
    bands = group.index_bands or group.bands
    val = [target_date(p) for p in places(data / "val")]
    train = [dates(p)[-1] for p in places(data / "train")]
    files = tuple((rank, f) for rank, f in enumerate([*val, *train]) if has_bands(f, bands))
    return Database(files, bands, group.eight_bit, group.generated, group.scales)


def by_database(data: Path, names: Iterable[str]) -> dict[Database, list[str]]:
    """Return the groups, sorted by shared database."""
    together: dict[Database, list[str]] = {}
    for name in names:
        together.setdefault(database_of(data, GROUPS[name]), []).append(name)
    return together


# --- the queries --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """Queries and answers of a group."""

    patches: Patches
    """The queries."""
    answers: Submission
    """The right answers."""
    places: NDArray[np.str_]
    """(n,) name of each query's place."""
    dates: NDArray[np.str_]
    """(n,) file that each query was cut from, below `val`."""
    edges: NDArray[np.float64]
    """(n,) share of edge pixels of each query, before clouds or renderings."""

    @property
    def featureless(self) -> NDArray[np.bool_]:
        """Open water and flat lagoon, by the share of edges of the query."""
        return self.edges < FEATURELESS_SHARE

    def kinds(self) -> dict[str, NDArray[np.bool_]]:
        """Return the rows of every kind of ground and of every place."""
        poor = self.edges < POOR_SHARE
        kinds = {"all": np.ones(len(self.edges), bool), "with features": ~self.featureless}
        kinds |= {"texture-poor": poor & ~self.featureless, "texture-rich": ~poor}
        kinds |= {"featureless": self.featureless}
        kinds |= {str(p): self.places == p for p in np.unique(self.places)}
        return {name: rows for name, rows in kinds.items() if rows.any()}


def ask(data: Path, group: Group, queries: int, seed: int) -> Question:
    """Draw a group's queries; the same seed gives the same queries."""
    rng = np.random.default_rng(seed)
    chosen = [(r, p) for r, p in enumerate(places(data / "val")) if p.parent.name in group.folders]
    drawn: list[tuple[Any, ...]] = []
    for rank, place in chosen:
        target = target_date(place)
        files = [f for f in dates(place) if f != target and has_bands(f, group.bands)]
        images = [opened(f, group.bands) for f in [target, *files]]
        asked = [rendered(image) for image in images[1:]] if group.eight_bit else images[1:]
        for d, x, y in _draw(rng, images, queries // len(chosen)):
            square = slice(y, y + PATCH_PX), slice(x, x + PATCH_PX)
            image = images[1 + d]
            before = to_scaled(image.pixels[square], image.units, image.nodata)
            name = f"{place.parent.name}/{place.name}/{files[d].name}"
            drawn.append((asked[d].pixels[square], before, TURNS * rank, x, y, place.name, name))
    units, nodata = asked[0].units, asked[0].nodata
    pixels, plain, ids, x, y, where, when = (np.array(v) for v in zip(*drawn, strict=True))
    number = np.arange(len(x))
    patches = Patches(number, pixels, units, group.bands, nodata)
    if group.clouds:
        scaled, _ = paste_clouds(patches.scaled(), rng.uniform(0.3, 0.7, len(x)), rng, seed=1)
        patches = Patches(number, scaled, "scaled", group.bands, np.nan)
    answers = Submission(number, ids, x, y, source="answers")
    return Question(patches, answers, where, when, edge_share(plain))


def _draw(rng: np.random.Generator, images: list[Image], count: int) -> list[tuple[int, int, int]]:
    """Draw date (0 = the first other than the target), x and y, with little nodata on both dates."""
    hidden = [np.isnan(image.scaled()).all(-1) for image in images]
    height, width = hidden[0].shape
    drawn: list[tuple[int, int, int]] = []
    for _ in range(200 * count):
        if len(drawn) == count:
            break
        date = int(rng.integers(len(images) - 1))
        x, y = int(rng.integers(width - PATCH_PX + 1)), int(rng.integers(height - PATCH_PX + 1))
        square = slice(y, y + PATCH_PX), slice(x, x + PATCH_PX)
        if max(hidden[0][square].mean(), hidden[1 + date][square].mean()) < 0.02:
            drawn.append((date, x, y))
    return drawn


def edge_share(scaled: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the share of pixels with a gradient above `EDGE_DN`: (n, 64, 64, b) -> (n,)."""
    from keras import ops

    parts = [structure_tensor(scaled[i : i + 256], TensorConfig.noise)[0] for i in range(0, len(scaled), 256)]
    strength = np.concatenate([ops.convert_to_numpy(p)[..., 0] for p in parts])
    gradient_dn = np.sqrt(np.expm1(2 * strength.astype(np.float64))) * TensorConfig.noise * 2047.5
    return (gradient_dn > EDGE_DN).mean((1, 2))


# --- names ------------------------------------------------------------------------------------------


def title(encoder: str) -> str:
    """Return an encoder's name in tables."""
    return Path(encoder).stem


def slug(name: str) -> str:
    """Return a group's name for files."""
    return re.sub(r"\W+", "-", name)


def evidence_file(out: Path, name: str, encoder: str) -> Path:
    """Return the path of the evidence of a group and an encoder."""
    return out / f"evidence-{slug(name)}-{title(encoder)}.npz"


# --- arithmetic ---------------------------------------------------------------------------------------


def recalled(found: Candidates | RankedCandidates, answers: Submission, first: int) -> NDArray[np.bool_]:
    """Return whether the right place is among the first k candidates."""
    image, x, y = (v[:, :first] for v in (found.image_ids, found.x, found.y))
    near = np.hypot(x - answers.x[:, None], y - answers.y[:, None]) <= NEAR_PX
    return ((image == answers.image_ids[:, None]) & near).any(1)


def is_right(image_ids: NDArray, x: NDArray, y: NDArray, answers: Submission) -> NDArray[np.bool_]:
    """Return whether answers are in the right image and within 5 px."""
    return (image_ids == answers.image_ids) & (np.hypot(x - answers.x, y - answers.y) <= RIGHT_PX)


def reranking(first: NDArray[np.bool_], last: NDArray[np.bool_]) -> dict[str, int]:
    """Count the answers that matching corrected and broke.

    Args:
        first: (n,) whether the first place of the search was right.
        last: (n,) whether the answer is right.
    """
    counts = {"kept_right": first & last, "mended": ~first & last, "broken": first & ~last}
    counts["kept_wrong"] = ~first & ~last
    return {name: int(rows.sum()) for name, rows in counts.items()}


def part(whole: Submission, rows: NDArray[Any]) -> Submission:
    """Return some rows of a submission, by a mask or by numbers."""
    return Submission(
        whole.patch_ids[rows], whole.image_ids[rows], whole.x[rows], whole.y[rows], source=whole.source
    )


def share_as_submission(right: NDArray[np.bool_], answers: Submission) -> Submission:
    """Return exact answers for true rows and answers in another image for others, to bootstrap a share."""
    wrong = answers.image_ids + 10**6
    image_ids = np.where(right, answers.image_ids, wrong)
    return Submission(answers.patch_ids, image_ids, answers.x, answers.y, source="share")


def figures(
    question: Question,
    submission: Submission,
    first: dict[int, NDArray[np.bool_]],
    ranked: Candidates | RankedCandidates,
) -> dict[str, Any]:
    """Return scores and recall before and after matching, for every kind of ground and every place.

    Args:
        question: queries and right answers.
        submission: the answers of the engine.
        first: `recalled` of the search for each of `RECALLED`.
        ranked: the candidates after matching.
    """
    answers = question.answers
    right = is_right(submission.image_ids, submission.x, submission.y, answers)
    after = {k: recalled(ranked, answers, k) for k in RECALLED if k <= ranked.x.shape[1]}
    out: dict[str, Any] = {}
    for kind, rows in question.kinds().items():
        of_kind = part(answers, rows)
        one = score(part(submission, rows), of_kind).to_dict()
        one["recall"] = {str(k): share(found[rows], of_kind) for k, found in first.items()}
        one["recall_after"] = {str(k): share(found[rows], of_kind) for k, found in after.items()}
        one["right"] = share(right[rows], of_kind)
        out[kind] = one | {"reranking": reranking(first[1][rows], right[rows])}
    return {"scores": out}


def share_less(a: NDArray[np.bool_], b: NDArray[np.bool_], answers: Submission) -> dict[str, float]:
    """Return the paired difference of two shares of the same queries, with its interval."""
    return compare(share_as_submission(a, answers), share_as_submission(b, answers), answers).to_dict()[
        "SC_img"
    ]  # type: ignore[no-any-return]


def share(right: NDArray[np.bool_], answers: Submission) -> dict[str, float]:
    """Return a share of queries, with its interval."""
    return score(share_as_submission(right, answers), answers).to_dict()["SC_img"]  # type: ignore[no-any-return]


def calibration_error(
    confidence: NDArray[np.float64], right: NDArray[np.bool_], answers: Submission
) -> dict[str, float]:
    """Return the calibration error in 10 equal bins, with its interval over blocks of ground."""
    blocks, rng = ground_blocks(answers), np.random.default_rng(0)
    members = [np.flatnonzero(blocks == b) for b in range(int(blocks.max()) + 1)]
    errors = []
    for _ in range(RESAMPLES):
        rows = np.concatenate([members[b] for b in rng.integers(len(members), size=len(members))])
        errors.append(expected_calibration_error(confidence[rows], right[rows]))
    low, high = np.quantile(errors, [0.025, 0.975]).tolist()
    value = expected_calibration_error(confidence, right)
    return {"value": value, "low": min(low, value), "high": max(high, value)}


def look_alikes(given: Submission, right: NDArray[np.bool_]) -> dict[str, float]:
    """Return the shares of queries whose wrong answer lies in a real image, and in a generated scene."""
    generated = given.image_ids >= TURNS * GENERATED_FROM
    return {"real": float((~right & ~generated).mean()), "generated": float((~right & generated).mean())}
