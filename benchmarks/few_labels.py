r"""Compare what a classifier learns from: labels alone, unlabelled images, retrieval series, fewer labels.

    python benchmarks/few_labels.py DATA --steps 1000 --work build/few --json few-labels.json

DATA holds `eurosat/` and `s2/`. Every arm trains the default recipe with the given number of steps on
`eurosat/train.csv`, and is measured on `valid.csv`, which trains nothing. A repeated call resumes: finished
arms are kept in the JSON file, and an interrupted arm resumes from its state below the work folder.

The arm *series* adds crops of the training cities of `s2/` to the unlabelled images, rendered as EuroSAT is.
The arm *half* trains on the first half of the labels of each class, by the number of the image.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from context import arguments, context, table, write_json
from numpy.typing import NDArray

from retrieval.config import ClassifierConfig
from retrieval.evaluation.classification import measure
from retrieval.tasks.classifier import load_classifier
from retrieval.tasks.images import ImageSet, LabelledSet, image_set, rendered
from retrieval.tasks.sources import read_labelled, read_unlabelled
from retrieval.tasks.training import train_classifier

ARMS = {
    "supervised": "labels alone",
    "semi": "labels and unlabelled images",
    "series": "labels, unlabelled images, and crops of retrieval series",
    "half": "half of the labels, and unlabelled images",
}
RGB = ("B04", "B03", "B02")
DN_RANGE = 0, 2750
"""Digital numbers that became 1 and 255 in EuroSAT's renderings."""


def crops(folder: Path, side: int) -> Iterator[NDArray[np.uint16]]:
    """Yield the crops (side, side, 3) without nodata of every image below a folder, side by side."""
    for path in sorted(folder.rglob("*.tif")):
        with rasterio.open(path) as image:
            if not set(RGB) <= set(image.descriptions):
                continue
            dn = image.read([1 + image.descriptions.index(name) for name in RGB]).transpose(1, 2, 0)
        rows, columns = (n // side * side for n in dn.shape[:2])
        blocks = dn[:rows, :columns].reshape(rows // side, side, columns // side, side, 3).swapaxes(1, 2)
        blocks = blocks.reshape(-1, side, side, 3)
        yield from blocks[(blocks > 0).all((1, 2, 3))]


def with_series(unlabelled: ImageSet, folder: Path) -> ImageSet:
    """Return the unlabelled images and the crops of the series."""
    dn = np.stack(list(crops(folder, unlabelled.size[0])))
    names = tuple(f"series-{i}" for i in range(len(dn)))
    more = rendered(image_set(dn, "dn", RGB, names, str(folder)), DN_RANGE)
    pixels = np.concatenate([unlabelled.pixels, more.pixels])
    return replace(unlabelled, pixels=pixels, ids=(*unlabelled.ids, *names))


def half_of(labelled: LabelledSet) -> LabelledSet:
    """Return the first half of the images of each class."""
    kept = [np.flatnonzero(labelled.labels == k) for k in range(len(labelled.classes))]
    return labelled.select(np.sort(np.concatenate([rows[: len(rows) // 2] for rows in kept])))


def train(arm: str, data: Path, steps: int, work: Path) -> dict[str, Any]:
    """Train one arm and return its figures on the validation images."""
    labelled = read_labelled(data / "eurosat/train.csv")
    validation = read_labelled(data / "eurosat/valid.csv", classes=labelled.classes, complete=False)
    unlabelled = None
    if arm != "supervised":
        unlabelled = read_unlabelled(data / "eurosat/unsup", labelled.images)
    if arm == "series":
        unlabelled = with_series(unlabelled, data / "s2/train/oscd")
    if arm == "half":
        labelled = half_of(labelled)
    out = work / f"{arm}-{steps}"
    report = train_classifier(
        labelled, out, ClassifierConfig(steps=steps), unlabelled=unlabelled, overwrite=out.exists()
    )
    classifier = load_classifier(out)
    probability = classifier.probabilities(validation.images)
    answers = classifier.choose(probability)
    figures = measure(probability, validation.labels, answers, labelled.classes).to_dict()
    counts = {"labelled": report.labelled, "unlabelled": report.unlabelled, "steps": report.steps}
    return {**counts, "seconds": report.seconds, **{k: figures[k] for k in ("accuracy", "macro_f1")}}


def main() -> None:
    """Train the arms that lack figures and print the table."""
    parser = arguments(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--work", type=Path, default=Path("build/few-labels"), help="folder of the trainings")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Any] = {}
    if args.json and args.json.is_file():
        rows = json.loads(args.json.read_text())["rows"]
    for arm in args.arms:
        if f"{arm}-{args.steps}" not in rows:
            rows[f"{arm}-{args.steps}"] = {"arm": ARMS[arm], **train(arm, args.data, args.steps, args.work)}
            write_json(args.json, {"context": context(), "rows": rows})
    head = ("learned from", "labels", "unlabelled", "steps", "accuracy", "macro F1")
    print(table(head, [_cells(row) for row in rows.values()]))


def _cells(row: dict[str, Any]) -> list[str]:
    shown = [f"{row[k]['value']:.3f}" for k in ("accuracy", "macro_f1")]
    return [row["arm"], *(str(row[k]) for k in ("labelled", "unlabelled", "steps")), *shown]


if __name__ == "__main__":
    main()
