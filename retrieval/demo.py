"""The challenge in small: generated, indexed, asked, scored and shown, with nothing to download.

    demo/
      test_images.tfrecords  test_patches.tfrecords  answers.csv    the challenge's own files
      truth.csv              dates, the place to parts of a pixel, what clouds hide
      index/                 what `retrieve index` writes
      submission.csv         what `retrieve query` writes
      matches.parquet        every candidate of every patch
      matches.csv            the answer of every patch beside what is right
      matches.png            some of them as a picture
      report.html            all of it as a page to look at
      score.json             what `retrieve score --json` prints, and how far the confidence can be trusted
      manifest.json          configuration and checksums

So the three bare commands run in that folder too. The ground is generated (`retrieval.synthetic`), not
observed: scores say that all works, not how well it works on Earth.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
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

INDEX, SUBMISSION = "index", "submission.csv"
CANDIDATES, MATCHES, PICTURE, SCORE = "matches.parquet", "matches.csv", "matches.png", "score.json"
REPORT = "report.html"
SHOWN = {"right": 9, "shifted": 4, "wrong": 6}
"""Patches in the picture, at most, by verdict."""
SURE = 0.9
"""Answers of this confidence or more are counted for `score.json`."""


@dataclass(frozen=True)
class Demo:
    """What the demo gave."""

    path: Path
    """The folder."""
    score: Score
    """What the submission scores."""
    windows: int
    """Windows in the index."""
    encoder: str
    """Name of the encoder."""
    sure: int
    """Answers with a confidence of `SURE` or more."""
    sure_right: float
    """Share of these that are right, within 5 px; NaN where there are none."""
    calibration_error: float
    """Mean gap between confidence and the share of right answers, 0 to 1."""

    def to_dict(self) -> dict[str, Any]:
        """The content of `score.json`: the score's own keys; `encoder`, `windows`, `sure`."""
        sure = {
            "from": SURE,
            "answers": self.sure,
            "right": round(self.sure_right, 6) if self.sure else None,
            "calibration_error": round(self.calibration_error, 6),
        }
        about = {"encoder": self.encoder, "windows": self.windows, "sure": sure}
        return self.score.to_dict() | about

    def guide(self) -> str:
        """Say what is where, and what to do next."""
        lines = [
            f"Of {self.sure} answers with a confidence of {SURE:g} or more {self.sure_right:.1%} are right."
            if self.sure
            else f"No answer has a confidence of {SURE:g} or more.",
            f"Everything is in {self.path}/, generated, not observed:",
            f"  {PICTURE:<24}patches beside what was found, right and wrong ones",
            f"  {REPORT:<24}all of it as a page: score, map, patches one by one; open it in a browser",
            f"  {MATCHES:<24}the answer of every patch beside what is right",
            f"  {CANDIDATES:<24}every candidate of every patch",
            f"  {SCORE:<24}the figures above, for programs",
            f"  {SUBMISSION:<24}the answers in the challenge's form",
            f"  {INDEX + '/':<24}{self.windows} windows, encoder {self.encoder}",
            f"  {'test_*.tfrecords':<24}the images and the patches; {ANSWERS} and {TRUTH} beside them",
            f"The same by hand, in {self.path}/: retrieve index --overwrite, retrieve query --overwrite, "
            "retrieve score",
        ]
        return "\n".join(lines)


def run_demo(
    out: str | Path = "demo",
    config: DemoConfig | None = None,
    *,
    encoder: str | Path | Encoder | None = None,
    device: Device = "auto",
    overwrite: bool = False,
    progress: Progress = silent,
) -> Demo:
    """Generate a challenge, run it, score it and show it.

    Args:
        out: the folder; written whole. A run that was stopped goes on after the last stage it finished.
        config: how large, and which places.
        encoder: as for `retrieval.pipeline.build_index`.
        device: "auto", "cpu" or "gpu".
        overwrite: replace a finished demo.
        progress: told of each stage.

    Returns:
        The score, and what to say about it.

    Raises:
        OutputExistsError: the folder is there and `overwrite` is false.
        UnfinishedOutputError: a stopped demo of another configuration is in the way.
        EncoderError: there is no such encoder.
    """
    config, out = config or DemoConfig(), Path(out)
    made_by = load_encoder(encoder)
    settings = config.to_dict() | {"encoder": made_by.fingerprint}
    with writing_folder(out, kind="demo", config=settings, overwrite=overwrite) as folder:
        _generate(folder, config, progress)
        index = _indexed(folder, out, made_by, device, progress)
        patches = replace(read_patches(folder.path / PATCHES), paths=())
        found = locate(index, patches, progress=progress)
        QueryOutputs(folder.path / SUBMISSION, folder.path / CANDIDATES, overwrite=True).write(found)
        answers = read_submission(folder.path / ANSWERS)
        table = beside_answers(found, answers)
        write_table(table, folder.path / MATCHES, overwrite=True)
        progress("drawing", 0, None)
        result = _summary(out, index, evaluate(folder.path / SUBMISSION, folder.path / ANSWERS), table)
        _draw(folder.path / PICTURE, found, table, result, config)
        write_page(
            folder.path / REPORT,
            found.folder,
            found.patches,
            found.details(),
            answers=answers,
            title="The demo: generated ground",
            overwrite=True,
            progress=progress,
        )
        (folder.path / SCORE).write_text(json.dumps(result.to_dict(), indent=1) + "\n", encoding="utf-8")
        folder.counts |= {"images": config.images, "patches": config.patches, "windows": result.windows}
    return result


# --- the stages ---------------------------------------------------------------------------------


def _generate(folder: PartialFolder, config: DemoConfig, progress: Progress) -> None:
    """Write the challenge's files, unless an earlier run did."""
    names = (IMAGES, PATCHES, ANSWERS, TRUTH)
    aside = folder.path / "challenge"
    _clear(aside)
    if all([folder.done(name) for name in names]):
        return
    make_challenge(
        aside,
        images=config.images,
        patches=config.patches,
        size_px=config.size_px,
        seed=config.seed,
        progress=lambda done, total: progress("generating places", done, total),
    )
    for name in names:
        with folder.part(name) as goal:
            (aside / name).replace(goal)
    _clear(aside)


def _indexed(folder: PartialFolder, out: Path, encoder: Encoder, device: Device, progress: Progress) -> Index:
    """Build the index, or open the one of an earlier run."""
    path, last = folder.path / INDEX, f"{INDEX}/{MANIFEST}"
    if folder.done(last):
        files = [f"{INDEX}/{name}" for name in read_manifest(path, "index", verify=False).files]
        if all([folder.done(name) for name in files]):
            return open_index(path, encoder=encoder, device=device)
    _clear(path)
    source = _as_if_in(out, read_images(folder.path / IMAGES))
    made = build_index(source, path, encoder=encoder, device=device, progress=progress)
    # Its manifest goes into the demo's journal last: where that is, all the others are.
    files = [file.relative_to(folder.path).as_posix() for file in path.rglob("*") if file.is_file()]
    for name in sorted(files, key=lambda name: (name == last, name)):
        with folder.part(name) as goal:
            (folder.path / name).replace(goal)
    return made


def _clear(path: Path) -> None:
    """Remove a folder, and what a stopped run left of it."""
    for leftover in (path, path.with_name(path.name + ".partial")):
        shutil.rmtree(leftover, ignore_errors=True)


def _as_if_in(out: Path, source: ImageSource) -> ImageSource:
    """Images that say they come from the folder that the demo will be in, not from the unfinished one."""
    path = (out / IMAGES).as_posix()
    note = f"{path}: {source.count} generated images"
    return replace(source, note=note, begin=lambda: (replace(image, path=path) for image in source))


# --- what is told -------------------------------------------------------------------------------


def beside_answers(found: Matches, answers: Submission) -> Any:
    """Put what was found beside what is right.

    Args:
        found: the matches.
        answers: of the same patches, in any order.

    Returns:
        `found.frame()` with `right_image_id`, `right_x`, `right_y`, `distance_px` (NaN in another image) and
        `right`: whether the image is right and the position within 5 px.
    """
    table = found.frame()
    order = np.argsort(answers.patch_ids)
    rows = order[np.searchsorted(answers.patch_ids[order], found.patch_ids)]
    for name in ("image_ids", "x", "y"):
        table[f"right_{name.removesuffix('s')}"] = getattr(answers, name)[rows]
    distance = np.hypot(table.x - table.right_x, table.y - table.right_y)
    table["distance_px"] = distance.where(table.image_id == table.right_image_id)
    table["right"] = table.distance_px <= RIGHT_PX
    return table


def _summary(out: Path, index: Index, result: Score, table: Any) -> Demo:
    sure = table.confidence >= SURE
    return Demo(
        path=out,
        score=result,
        windows=len(index.folder.vectors),
        encoder=index.folder.encoder.name,
        sure=int(sure.sum()),
        sure_right=float(table.right[sure].mean()) if sure.any() else float("nan"),
        calibration_error=expected_calibration_error(table.confidence.to_numpy(), table.right.to_numpy()),
    )


def _draw(path: Path, found: Matches, table: Any, result: Demo, config: DemoConfig) -> None:
    pictures = _pictures(found, table, config.seed)
    figures = result.score.figures()
    told = ", ".join(f"{name} {figures[name].value:.3f}" for name in ("SC_img", "SC_loc", "SC"))
    draw_matches(
        pictures,
        path,
        title=f"{result.score.n} patches, looked for in {config.images} images of other dates",
        note=f"{told}, within 2 px {figures['within_2px'].value:.3f}. Generated ground. Of each kind "
        "some are drawn at random.",
        pixel_m=10,
        overwrite=True,
    )


def _pictures(found: Matches, table: Any, seed: int) -> list[MatchPicture]:
    """Some patches of each verdict, drawn at random, the surest first."""
    all_rows = np.random.default_rng(seed).permutation(len(table))
    left, chosen = dict(SHOWN), []
    for row in all_rows:
        verdict = _picture(found, table, int(row), None).verdict
        if left.get(verdict, 0):
            left[verdict] -= 1
            chosen.append(int(row))
    chosen.sort(key=lambda row: -table.confidence[row])
    images: dict[int, NDArray[np.float32]] = {}
    return [_picture(found, table, row, images) for row in chosen]


def _picture(
    found: Matches, table: Any, row: int, images: dict[int, NDArray[np.float32]] | None
) -> MatchPicture:
    """One patch's picture; without its pixels where `images`, which keeps those that were read, is None."""
    at = table.iloc[row]
    nothing = np.zeros((1, 1, 1), np.float32)
    place = int(at.image_id), int(at.x), int(at.y)
    truth = int(at.right_image_id), int(at.right_x), int(at.right_y)

    def window(image_id: int, x: int, y: int) -> NDArray[np.float32]:
        if images is None:
            return nothing
        if image_id not in images:
            images[image_id] = found.folder.scaled(image_id)
        return images[image_id][y : y + PATCH_PX, x : x + PATCH_PX]

    return MatchPicture(
        patch_id=int(at.patch_id),
        query=nothing if images is None else found.query(row),
        match=window(*place),
        image_id=place[0],
        x=place[1],
        y=place[2],
        confidence=float(at.confidence),
        right=window(*truth),
        right_image_id=truth[0],
        right_x=truth[1],
        right_y=truth[2],
    )
