"""A small generated challenge: made, indexed, queried, scored and drawn, without any download.

    demo/
      test_images.tfrecords  test_patches.tfrecords  answers.csv    the challenge's files
      truth.csv              dates, sub-pixel positions, share of cloud
      index/                 output of `retrieve index`
      submission.csv         output of `retrieve query`
      matches.parquet        all candidates of all patches
      matches.csv            the best match of each patch with its answer
      matches.png            some matches as a picture
      report.html            score, map and patches as a page
      score.json             output of `retrieve score --json`, and the reliability of the confidence
      manifest.json          configuration and checksums

`retrieve index`, `query` and `score` run in this folder too. The scenes are generated
(`retrieval.synthetic`): the scores test the installation, not the accuracy on real images.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX, DemoConfig, Device
from retrieval.evaluation.calibration_fit import expected_calibration_error
from retrieval.evaluation.figures import Score
from retrieval.evaluation.submission import Submission, read_submission
from retrieval.models.calibration import RIGHT_PX
from retrieval.models.encoder import load_encoder
from retrieval.pipeline import Index, build_index, evaluate, locate, open_index
from retrieval.report.page import write_page
from retrieval.report.plots import MatchPicture, draw_matches
from retrieval.results.matches import Matches
from retrieval.results.outputs import QueryOutputs
from retrieval.results.tables import write_table
from retrieval.synthetic.sets import make_challenge
from retrieval.types import Encoder, Progress, silent
from tfrecords.artifacts import MANIFEST, PartialFolder, read_manifest, writing_folder
from tfrecords.challenge import ANSWERS, IMAGES, PATCHES, TRUTH
from tfrecords.read import ImageSource, read_images, read_patches

INDEX, SUBMISSION, REPORT = "index", "submission.csv", "report.html"
CANDIDATES, MATCHES, PICTURE, SCORE = "matches.parquet", "matches.csv", "matches.png", "score.json"
PICTURED = {"right": 9, "shifted": 4, "wrong": 6}
"""Largest number of patches in the picture, by verdict."""
CONFIDENT = 0.9
"""Limit of the confidence for the counts of `score.json`."""


@dataclass(frozen=True)
class DemoReport:
    """Result of `run_demo`."""

    path: Path
    """The folder."""
    score: Score
    """The score of the submission."""
    windows: int
    """Number of windows in the index."""
    encoder: str
    """Name of the encoder."""
    confident: int
    """Matches with a confidence of `CONFIDENT` or more."""
    confident_right: float
    """Share of the confident matches that are right, within 5 px; NaN without any."""
    calibration_error: float
    """Mean gap between confidence and share right, 0 to 1; NaN without a calibration."""

    def to_dict(self) -> dict[str, Any]:
        """Return the content of `score.json`: the score's keys, `encoder`, `windows` and `sure`."""
        sure = {"from": CONFIDENT, "answers": self.confident, "right": _json_number(self.confident_right)}
        sure["calibration_error"] = _json_number(self.calibration_error)
        return self.score.to_dict() | {"encoder": self.encoder, "windows": self.windows, "sure": sure}

    def guide(self) -> str:
        """Return the list of the files, and the next commands."""
        files = {
            PICTURE: "patches with their matches, right and wrong",
            REPORT: "page with score, map and patches: open it in a browser",
            MATCHES: "best match and answer of each patch",
            CANDIDATES: "all candidates of all patches",
            SCORE: "the scores above as JSON",
            SUBMISSION: "the matches in the challenge's format",
            f"{INDEX}/": f"{self.windows} windows, encoder {self.encoder}",
            "test_*.tfrecords": f"images and patches; {ANSWERS} and {TRUTH} hold the answers",
        }
        confident = f"{self.confident} matches have a confidence of {CONFIDENT:g} or more"
        right = f"; {self.confident_right:.1%} of them are right." if self.confident else "."
        return "\n".join(
            [
                confident + right,
                f"Files in {self.path}/ (generated scenes):",
                *(f"  {name:<24}{text}" for name, text in files.items()),
                f"To run the steps yourself, in {self.path}/: retrieve index --overwrite, "
                "retrieve query --overwrite, retrieve score",
            ]
        )


def _json_number(value: float) -> float | None:
    return round(value, 6) if isfinite(value) else None


def run_demo(
    out: str | Path = "demo",
    config: DemoConfig | None = None,
    *,
    encoder: str | Path | Encoder | None = None,
    device: Device = "auto",
    overwrite: bool = False,
    progress: Progress = silent,
) -> DemoReport:
    """Generate a challenge, run it, score it and draw the matches.

    Args:
        out: the folder, written as a whole. An interrupted run resumes after its last finished stage.
        config: size and seed of the challenge.
        encoder: as in `retrieval.pipeline.build_index`.
        device: "auto", "cpu" or "gpu".
        overwrite: replace an existing demo.
        progress: called at each stage.

    Returns:
        The score, and a guide to the files.

    Raises:
        OutputExistsError: the folder exists and `overwrite` is false.
        UnfinishedOutputError: an interrupted demo with other settings is in the way.
        EncoderError: there is no such encoder.
    """
    config, out, encoder = config or DemoConfig(), Path(out), load_encoder(encoder)
    settings = config.to_dict() | {"encoder": encoder.fingerprint}
    with writing_folder(out, kind="demo", config=settings, overwrite=overwrite) as folder:
        _generate(folder, config, progress)
        index = _build_or_open_index(folder, out, encoder, device, progress)
        patches = replace(read_patches(folder.path / PATCHES), paths=())
        matches = locate(index, patches, progress=progress)
        answers = read_submission(folder.path / ANSWERS)
        table = with_answers(matches, answers)
        QueryOutputs(folder.path / SUBMISSION, folder.path / CANDIDATES, overwrite=True).write(matches)
        write_table(table, folder.path / MATCHES, overwrite=True)
        report = _report(out, index, evaluate(folder.path / SUBMISSION, folder.path / ANSWERS), table)
        progress("drawing", 0, None)
        _draw(folder.path / PICTURE, matches, table, report, config)
        write_page(
            folder.path / REPORT,
            index.folder,
            patches,
            matches.details(),
            answers=answers,
            title="Demo on generated scenes",
            overwrite=True,
            progress=progress,
        )
        (folder.path / SCORE).write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
        folder.counts |= {"images": config.images, "patches": config.patches, "windows": report.windows}
    return report


# --- stages -------------------------------------------------------------------------------------


def _generate(folder: PartialFolder, config: DemoConfig, progress: Progress) -> None:
    """Write the challenge's files, unless an earlier run did."""
    names = (IMAGES, PATCHES, ANSWERS, TRUTH)
    temporary = folder.path / "challenge"
    _remove(temporary)
    if all([folder.done(name) for name in names]):
        return
    make_challenge(
        temporary,
        images=config.images,
        patches=config.patches,
        size_px=config.size_px,
        seed=config.seed,
        progress=lambda done, total: progress("generating places", done, total),
    )
    for name in names:
        with folder.part(name) as path:
            (temporary / name).replace(path)
    _remove(temporary)


def _build_or_open_index(
    folder: PartialFolder, out: Path, encoder: Encoder, device: Device, progress: Progress
) -> Index:
    """Build the index, or open the index of an earlier run."""
    path, manifest = folder.path / INDEX, f"{INDEX}/{MANIFEST}"
    if folder.done(manifest):
        files = [f"{INDEX}/{name}" for name in read_manifest(path, "index", verify=False).files]
        if all([folder.done(name) for name in files]):
            return open_index(path, encoder=encoder, device=device)
    _remove(path)
    source = _with_final_path(out, read_images(folder.path / IMAGES))
    index = build_index(source, path, encoder=encoder, device=device, progress=progress)
    # The manifest enters the demo's journal last: once it is there, all other files are.
    files = [file.relative_to(folder.path).as_posix() for file in path.rglob("*") if file.is_file()]
    for name in sorted(files, key=lambda name: (name == manifest, name)):
        with folder.part(name) as part:
            (folder.path / name).replace(part)
    return index


def _remove(path: Path) -> None:
    """Remove a folder and its unfinished version."""
    for leftover in (path, path.with_name(path.name + ".partial")):
        shutil.rmtree(leftover, ignore_errors=True)


def _with_final_path(out: Path, source: ImageSource) -> ImageSource:
    """Return images whose path is in the finished folder, not in the unfinished one."""
    path = (out / IMAGES).as_posix()
    note = f"{path}: {source.count} generated images"
    return replace(source, note=note, begin=lambda: (replace(image, path=path) for image in source))


# --- results ------------------------------------------------------------------------------------


def with_answers(matches: Matches, answers: Submission) -> Any:
    """Join the best match of each patch with its answer.

    Args:
        matches: the matches.
        answers: answers of the same patches, in any order.

    Returns:
        `matches.frame()` with right_image_id, right_x, right_y, distance_px (NaN in another image) and
        right: whether the image is right and the position within 5 px.
    """
    table = matches.frame()
    order = np.argsort(answers.patch_ids)
    rows = order[np.searchsorted(answers.patch_ids[order], matches.patch_ids)]
    for name in ("image_ids", "x", "y"):
        table[f"right_{name.removesuffix('s')}"] = getattr(answers, name)[rows]
    distance = np.hypot(table.x - table.right_x, table.y - table.right_y)
    table["distance_px"] = distance.where(table.image_id == table.right_image_id)
    table["right"] = table.distance_px <= RIGHT_PX
    return table


def _report(out: Path, index: Index, score: Score, table: Any) -> DemoReport:
    confidence, right = table.confidence.to_numpy(), table.right.to_numpy()
    confident, calibrated = confidence >= CONFIDENT, np.isfinite(confidence).all()
    return DemoReport(
        path=out,
        score=score,
        windows=len(index.folder.vectors),
        encoder=index.folder.encoder.name,
        confident=int(confident.sum()),
        confident_right=float(right[confident].mean()) if confident.any() else nan,
        calibration_error=expected_calibration_error(confidence, right) if calibrated else nan,
    )


def _draw(path: Path, matches: Matches, table: Any, report: DemoReport, config: DemoConfig) -> None:
    figures = report.score.figures()
    scores = ", ".join(f"{name} {figures[name].value:.3f}" for name in ("SC_img", "SC_loc", "SC"))
    rows = choose_rows(table, config.seed)
    chosen = table.iloc[rows]
    images = {i: matches.folder.scaled(i) for i in {*chosen.image_id, *chosen.right_image_id}}
    draw_matches(
        [match_picture(table.iloc[row], matches.query(row), images) for row in rows],
        path,
        title=f"{report.score.n} patches, searched in {config.images} images of other dates",
        note=f"{scores}, within 2 px {figures['within_2px'].value:.3f}. Generated scenes. "
        "The patches of each verdict are a random choice.",
        pixel_m=10,
        overwrite=True,
    )


def choose_rows(table: Any, seed: int) -> list[int]:
    """Choose rows for the picture: some of each verdict at random, the most confident first.

    Args:
        table: from `with_answers`.
        seed: of the choice.
    """
    verdict = np.where(table.right, "right", np.where(table.distance_px.isna(), "wrong", "shifted"))
    shuffled = np.random.default_rng(seed).permutation(len(table))
    rows = [row for name, n in PICTURED.items() for row in shuffled[verdict[shuffled] == name][:n].tolist()]
    return sorted(rows, key=lambda row: -np.nan_to_num(table.confidence.iloc[row]))


def match_picture(
    at: Any, query: NDArray[np.float32], images: Mapping[int, NDArray[np.float32]]
) -> MatchPicture:
    """Return the picture of a match.

    Args:
        at: a row of the table from `with_answers`.
        query: (h, w, b) the query patch.
        images: (h, w, b) scaled pixels of the images by id.
    """

    def window(image_id: int, x: int, y: int) -> NDArray[np.float32]:
        return images[image_id][y : y + PATCH_PX, x : x + PATCH_PX]

    image_id, x, y = int(at.image_id), int(at.x), int(at.y)
    right_image_id, right_x, right_y = int(at.right_image_id), int(at.right_x), int(at.right_y)
    return MatchPicture(
        patch_id=int(at.patch_id),
        query=query,
        match=window(image_id, x, y),
        image_id=image_id,
        x=x,
        y=y,
        confidence=float(at.confidence) if isfinite(at.confidence) else None,
        right=window(right_image_id, right_x, right_y),
        right_image_id=right_image_id,
        right_x=right_x,
        right_y=right_y,
    )
