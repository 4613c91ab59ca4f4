"""Training of the verifier on the confusions of search and NCC.

A round indexes one date of every series and searches for patches of the other dates with the training-free
encoder. The network learns to refuse the wrong places that correlate best. Some patches come without their
right place; then every place is wrong.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX, AugmentConfig, IndexConfig, RefineConfig, SearchConfig, VerifierConfig
from retrieval.errors import TrainingError
from retrieval.index.faiss_index import VectorIndex
from retrieval.kernels.executors import SerialExecutor, stream_map
from retrieval.matching.candidates import find_candidates
from retrieval.matching.pyramid import match_half_resolution
from retrieval.matching.session import Session
from retrieval.matching.sites import Sites
from retrieval.matching.tensor_cache import TensorCache
from retrieval.matching.tensors import Arrays, Templates
from retrieval.models.embed import embed_image, embed_patches
from retrieval.models.encoder import load_encoder
from retrieval.models.registry import TRAINING_FREE
from retrieval.models.verifier import SIDE, verifier_model
from retrieval.training.augment import add_noise, blurred, change_light, in_bytes, turned_alike
from retrieval.training.checkpoint import folder_of
from retrieval.training.trainer import (
    CHECKPOINT_S,
    ProgressCallback,
    Schedule,
    Trainer,
    adam_w,
    check_output,
    identity_of,
    print_progress,
    save_model,
    seed_networks,
)
from retrieval.training.weather import add_haze, paste_clouds
from retrieval.types import Candidates, Executor, pack_ids
from tfrecords.artifacts import fingerprint, writing_file
from tfrecords.read import read_series
from tfrecords.schema import BANDS, Patches, Series, to_scaled

RIGHT_PX, NEAR_PX = 5, 16
"""A candidate this near is right; one up to the second distance is neither right nor wrong."""
LEAST_KNOWN = 0.98
"""Share of a patch that must be known on both dates."""
CANDIDATES = SearchConfig(top_k=512, max_candidates=48)
"""What search gives for a question, before NCC picks the worst confusions."""


@dataclass(frozen=True)
class Pairs:
    """Patches, each with its right place and with confusions, at half resolution."""

    template: NDArray[np.float16]
    """(n, 31, 31, 3) structure tensors of patches."""
    shown: NDArray[np.bool_]
    """(n, 31, 31, 1) what is visible of them."""
    region: NDArray[np.float16]
    """(n, 1 + k, 31, 31, 3) the right place, then confusions, the worst first."""
    known: NDArray[np.bool_]
    """(n, 1 + k, 31, 31, 1) what is visible of these."""
    usable: NDArray[np.bool_]
    """(n, 1 + k) whether there is such a pair: the right place was met by NCC, a confusion was found."""


# --- mining ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Question:
    """Patches, and where they are."""

    pixels: NDArray[np.float32]
    truth: NDArray[np.int64]  # (n, 3): image, x, y
    group: NDArray[np.int64]  # (n,): whose ground it is


def mine(series: Sequence[Series], number: int, config: VerifierConfig) -> Pairs:
    """One round: ask, confuse, keep.

    Args:
        series: at least two, all with the same bands.
        number: of the round; decides dates, bands and places.
        config: how many questions and confusions.

    Raises:
        TrainingError: no patch is known on two dates.
    """
    rng = np.random.default_rng([config.seed, number])
    columns = _bands_of_round(series[0].bands, number, rng)
    names = tuple(series[0].bands[c] for c in columns)
    target = [int(rng.integers(len(record.pixels))) for record in series]
    images = {
        2 * i: _scaled(record, t)[..., columns]
        for i, (record, t) in enumerate(zip(series, target, strict=True))
    }
    question = _ask(series, target, columns, config, rng)
    # A turned copy of every image: look-alikes that are wrong for certain.
    for i in range(len(series)):
        images[2 * i + 1] = np.ascontiguousarray(turned_alike(images[2 * i], int(rng.integers(1, 8))))
    ground = Arrays(images, dict.fromkeys(images, names))
    encoder = load_encoder(TRAINING_FREE)
    index = _indexed(encoder, images)
    groups = np.array(
        [g for record in series for g in (record.overlap_group, -1)]
    )  # a turned copy is nobody's
    patches = Patches(np.arange(len(question.pixels)), question.pixels, "scaled", names, np.nan)
    found = find_candidates(index, embed_patches(encoder, question.pixels), CANDIDATES)
    return _paired(question, groups, patches, found, ground, config)


def _bands_of_round(bands: Sequence[str], number: int, rng: np.random.Generator) -> list[int]:
    """All bands, the colours, or a single one, in turn."""
    colours = [i for i, b in enumerate(bands) if b in BANDS[:3]]
    choices = [list(range(len(bands))), colours if len(colours) == 3 else [], [int(rng.integers(len(bands)))]]
    return choices[number % 3] or choices[0]


def _scaled(series: Series, date: int) -> NDArray[np.float32]:
    return to_scaled(series.pixels[date], series.units, series.nodata)


def _ask(
    series: Sequence[Series],
    target: Sequence[int],
    columns: Sequence[int],
    config: VerifierConfig,
    rng: np.random.Generator,
) -> _Question:
    """Patches of other dates than the target's, weathered."""
    weight = np.sqrt([float(np.prod(record.pixels.shape[1:3])) for record in series])
    drawn: list[tuple[NDArray[Any], tuple[int, int, int], int]] = []
    for _ in range(50 * config.queries):
        if len(drawn) == config.queries:
            break
        i = int(rng.choice(len(series), p=weight / weight.sum()))
        record = series[i]
        date = (target[i] + int(rng.integers(1, len(record.pixels)))) % len(record.pixels)
        y, x = (int(rng.integers(n - PATCH_PX + 1)) for n in record.pixels.shape[1:3])
        both = to_scaled(
            record.pixels[[date, target[i]], y : y + PATCH_PX, x : x + PATCH_PX], record.units, record.nodata
        )[..., columns]
        if (~np.isnan(both).all(-1)).mean((1, 2)).min() >= LEAST_KNOWN:
            drawn.append((both[0], (2 * i, x, y), record.overlap_group))
    if not drawn:
        raise TrainingError("no patch is known on two dates of a series; expected clear ground on two dates")
    pixels, truth, group = (np.array([k[c] for k in drawn]) for c in range(3))
    return _Question(_weathered(pixels.astype(np.float32), config, rng), truth, group)


def _weathered(pixels: NDArray[np.float32], config: VerifierConfig, rng: np.random.Generator) -> NDArray[Any]:
    """Another light, haze, clouds, blur, noise and bytes, each on some."""
    change_light(pixels, AugmentConfig(), rng)
    changes: list[tuple[float, Any]] = [
        (0.2, lambda p: add_haze(p, rng)),
        (config.cloud_share, lambda p: paste_clouds(p, rng.uniform(0.1, 0.7, len(p)), rng)[0]),
        (0.1, blurred),
        (1.0, lambda p: _noisy(p, rng)),
        (0.15, lambda p: in_bytes(p, rng)),
    ]
    for share, change in changes:
        rows = np.flatnonzero(rng.random(len(pixels)) < share)
        if len(rows):
            pixels[rows] = change(pixels[rows])
    return np.clip(pixels, -1, 1)


def _noisy(pixels: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    add_noise(pixels, 15.0, rng)
    return pixels


def _indexed(encoder: Any, images: dict[int, NDArray[np.float32]]) -> VectorIndex:
    """All windows of all images."""
    blocks = []
    for i, image in sorted(images.items()):
        found = embed_image(encoder, image, IndexConfig())
        blocks.append((pack_ids(np.full(len(found.xy), i), *found.xy.T), found.vectors))
    return VectorIndex.build(lambda: blocks, encoder.dim, IndexConfig(kind="exact"))


def _paired(
    question: _Question,
    groups: NDArray[np.int64],
    patches: Patches,
    found: Candidates,
    images: Arrays,
    config: VerifierConfig,
) -> Pairs:
    """Align the right place and the candidates, and cut out the worst confusions."""
    session = Session(images, patches, refinement=RefineConfig(similarity_weight=0))
    truth = question.truth
    at_truth = Candidates(truth[:, :1], truth[:, 1:2], truth[:, 2:], np.zeros((len(truth), 1), np.float32))
    right = match_half_resolution(session, at_truth, 1)
    wrong = match_half_resolution(session, found, found.image_ids.shape[1])
    same_place = (wrong.image_ids >= 0) & (groups[wrong.image_ids] == question.group[:, None])
    off = np.hypot(wrong.x - truth[:, 1:2], wrong.y - truth[:, 2:3])
    same = wrong.image_ids == truth[:, :1]
    allowed = (wrong.image_ids >= 0) & np.where(same, off > NEAR_PX, ~same_place)
    order = np.argsort(~allowed, axis=1, kind="stable")[:, : config.confusions]  # NCC's order otherwise
    met = np.hypot(right.x - truth[:, 1:2], right.y - truth[:, 2:3]) <= RIGHT_PX
    usable = np.concatenate([met, np.take_along_axis(allowed, order, 1)], 1)
    ids, x, y = (
        np.concatenate([getattr(right, f), np.take_along_axis(getattr(wrong, f), order, 1)], 1)
        for f in ("image_ids", "x", "y")
    )
    template, shown = Templates(patches, range(len(patches.bands))).take(np.arange(len(patches)), 1)
    region, known = _regions(session.tensors, tuple(range(len(patches.bands))), ids, x, y, usable)
    visible = np.ones((*template.shape[:3], 1), bool) if shown is None else shown
    return Pairs(template.astype(np.float16), visible, region, known, usable)


def _regions(
    ground: TensorCache,
    columns: tuple[int, ...],
    ids: NDArray[Any],
    x: NDArray[Any],
    y: NDArray[Any],
    usable: NDArray[np.bool_],
) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """Cut out what candidates show, those that are usable."""
    region = np.zeros((*ids.shape, SIDE, SIDE, 3), np.float16)
    known = np.zeros((*ids.shape, SIDE, SIDE, 1), bool)
    pairs = np.argwhere(usable)
    pairs = pairs[np.argsort(ids[usable], kind="stable")]
    for start in range(0, len(pairs), 2048):
        rows, cols = pairs[start : start + 2048].T
        at = np.stack([x[rows, cols], y[rows, cols]], -1) >> 1
        cut = ground.regions(Sites(ids[rows, cols], at, columns, 0, 1))
        region[rows, cols], known[rows, cols] = cut.tensor(), True if cut.known is None else cut.known
    return region, known


# --- fitting --------------------------------------------------------------------------------------


def train_verifier(
    series: Any,
    out: Path | str,
    config: VerifierConfig | None = None,
    *,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
    checkpoint_s: float = CHECKPOINT_S,
    executor: Executor | None = None,
) -> dict[str, float]:
    """Mine confusions from series and train the verifier on them.

    The state and the mined rounds lie in `<out>.training/` until the verifier is written. The same call with
    the same recipe and data resumes an interrupted run.

    Args:
        series: what `tfrecords.read.read_series` opens.
        out: a `.keras` file.
        config: the recipe; the same one with the same data gives the same weights.
        overwrite: replace an existing file, and the state of another recipe or other data.
        progress: called after every round and step; None prints to standard error.
        checkpoint_s: seconds between checkpoints.
        executor: mines the rounds; None for this thread. Workers open the series by its path.

    Returns:
        Loss and share of questions answered rightly, averaged over the last tenth of the steps.

    Raises:
        TrainingError: fewer than two series, nothing in them to learn from, or the state of another run.
        OutputExistsError: `out` exists and `overwrite` is false.
    """
    out, config = Path(out), config or VerifierConfig()
    check_output(out, overwrite)
    trainer = Trainer(
        folder_of(out),
        identity_of(config.to_dict(), series=series),
        Schedule(config.steps, checkpoint_s=checkpoint_s),
        progress or print_progress(),
        "training the verifier",
    )
    trainer.load(overwrite)
    pairs = _mine_all(series, config, trainer, executor or SerialExecutor())
    seed_networks(config.seed)
    model = verifier_model(config.width)
    loss, right = _fit(model, pairs, config, trainer).tolist()
    save_model(model, out, overwrite=overwrite)
    shutil.rmtree(trainer.folder)
    return {"loss": loss, "right": right}


@dataclass(frozen=True, eq=False)
class RoundTask:
    """A round to mine; it can be pickled."""

    series: Any
    """The series, or where a worker reads them."""
    number: int
    """Number of the round, from 0."""
    config: VerifierConfig
    """The recipe."""
    path: Path
    """The file to write."""


def round_task(task: RoundTask) -> None:
    """Mine a round and write its pairs, unless a run that was stopped wrote them."""
    if task.path.exists():
        return
    records = task.series if isinstance(task.series, list) else _records(str(task.series), task.path)
    chosen = _sets(records, task.config)
    pairs = mine(chosen[task.number % len(chosen)], task.number // len(chosen), task.config)
    with writing_file(task.path, overwrite=True) as temporary, temporary.open("wb") as opened:
        np.savez(opened, **{f.name: getattr(pairs, f.name) for f in fields(Pairs)})


def _records(series: str, path: Path) -> list[Series]:
    """Return all series; a process reads them once for all rounds of a training."""
    return _read_once(series, path.name.rpartition("-")[2])


@lru_cache(maxsize=1)
def _read_once(series: str, identity: str) -> list[Series]:
    return list(read_series(series))


def _sets(series: Sequence[Series], config: VerifierConfig) -> list[list[Series]]:
    """Return the series that take turns: each set has the same bands.

    Raises:
        TrainingError: no set has enough places.
    """
    sets: dict[tuple[str, ...], list[Series]] = {}
    for record in series:
        if min(record.pixels.shape[1:3]) >= PATCH_PX:
            sets.setdefault(record.bands, []).append(record)
    grounds = {bands: len({record.overlap_group for record in group}) for bands, group in sets.items()}
    chosen = [group for bands, group in sorted(sets.items()) if grounds[bands] >= config.min_places]
    if not chosen:
        raise TrainingError(
            f"{len(series)} series of at most {max(grounds.values(), default=0)} places with the same bands; "
            f"expected {config.min_places} or more"
        )
    return chosen


def _mine_all(source: Any, config: VerifierConfig, trainer: Trainer, executor: Executor) -> Pairs:
    """Return the pairs of all rounds; rounds that an interrupted run mined are read from their files."""
    series = list(read_series(source))
    _sets(series, config)
    shared = source if not executor.in_process and isinstance(source, (str, Path)) else series
    stem = fingerprint(trainer.identity)[:16]
    paths = [trainer.folder / f"round-{number:03d}-{stem}.npz" for number in range(config.rounds)]
    tasks = [RoundTask(shared, number, config, path) for number, path in enumerate(paths)]
    for number, _ in enumerate(stream_map(executor, round_task, tasks), start=1):
        trainer.note(f"mining confusions: round {number} of {config.rounds}")
    rounds = []
    for path in paths:
        with np.load(path, allow_pickle=False) as file:
            rounds.append(Pairs(**{f.name: file[f.name] for f in fields(Pairs)}))
    return Pairs(*(np.concatenate([getattr(r, f.name) for r in rounds]) for f in fields(Pairs)))


def _fit(model: Any, pairs: Pairs, config: VerifierConfig, trainer: Trainer) -> NDArray[np.float64]:
    """Minimise the cross-entropy over the candidates of a patch and "none of them"."""
    import tensorflow as tf

    optimizer = adam_w(model.trainable_variables, config.steps, config.learning_rate, config.weight_decay)
    shown = config.candidates

    @tf.function(jit_compile=True)
    def step(template: Any, region: Any, visible: Any, label: Any) -> Any:
        with tf.GradientTape() as tape:
            odds = tf.reshape(model([template, region, visible], training=True), (-1, shown))
            odds = tf.concat([odds, tf.zeros_like(odds[:, :1])], 1)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(label, odds))
        grads = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(grads, model.trainable_variables, strict=True))
        return loss, tf.reduce_mean(tf.cast(tf.argmax(odds, 1) == label, tf.float32))

    trainer.track(variables=[*model.variables, *optimizer.variables])
    return trainer.run_drawn(
        step, lambda rng: draw(pairs, config, rng), np.random.default_rng([config.seed, 1])
    )


def draw(pairs: Pairs, config: VerifierConfig, rng: np.random.Generator) -> tuple[NDArray[Any], ...]:
    """One batch: patches with some of their candidates, all turned alike.

    Returns:
        template and region (n * shown, 31, 31, 3), visible (n * shown, 31, 31, 1), and which candidate is
        right (n,), `shown` for none.
    """
    n, shown = config.batch, config.candidates
    rows = rng.choice(len(pairs.template), n)
    present = pairs.usable[rows, 0] & (rng.random(n) >= config.absent_share)
    others = 1 + np.argsort(rng.random((n, pairs.region.shape[1] - 1)), axis=1)[:, :shown]
    cols = np.where(present[:, None], np.c_[np.zeros(n, int), others[:, : shown - 1]], others)
    template = np.repeat(pairs.template[rows][:, None], shown, 1)
    visible = np.repeat(pairs.shown[rows][:, None], shown, 1) & pairs.known[rows[:, None], cols]
    region = pairs.region[rows[:, None], cols]
    if rng.random() < config.swapped_share:
        template, region = region, template
    turn = int(rng.integers(8))
    flat = [
        np.ascontiguousarray(v.reshape(n * shown, SIDE, SIDE, -1)).astype(np.float32)
        for v in (turned_tensor(template, turn), turned_tensor(region, turn), turned_alike(visible, turn))
    ]
    return (*flat, np.where(present, 0, shown).astype(np.int64))


def turned_tensor(tensor: NDArray[Any], turn: int) -> NDArray[Any]:
    """Structure tensors (..., y, x, 3) of turned pictures: the direction's cosine and sine change sign."""
    sign = np.array([1, 1, 1], tensor.dtype)
    if turn >= 4:
        sign = sign * np.array([1, 1, -1], tensor.dtype)
    if turn % 2:
        sign = sign * np.array([1, -1, -1], tensor.dtype)
    return turned_alike(tensor, turn) * sign
