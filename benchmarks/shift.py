"""Measure whether unlabelled images of another processing level help a classifier.

    python benchmarks/shift.py EUROSAT --steps 500 --arm shifted --json shift.json

EUROSAT holds `train.csv`, `unsup/` and `valid.csv`. *shifted* alters the unlabelled images like Level-2A: the
light of the air leaves each band, and the transmission rises. Accuracy of the validation images, which stay
as they are. *none* trains on the labelled images alone, *same* on unaltered unlabelled ones too.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from context import arguments, context, write_json
from numpy.typing import NDArray

from retrieval.config import ClassifierConfig
from retrieval.evaluation.classification import measure
from retrieval.tasks.classifier import load_classifier
from retrieval.tasks.sources import read_labelled, read_unlabelled
from retrieval.tasks.training import train_classifier

AIR_DN = np.array([200.0, 400.0, 650.0])
"""Light of the air over a clear scene in B04, B03 and B02, digital numbers."""
TRANSMISSION = np.array([0.92, 0.89, 0.85])
"""Share of the ground's light that passes the air."""
STRETCH = 254 / 2750
"""Steps of an 8-bit rendering for a digital number."""
ARMS = ("none", "same", "shifted")


def as_level_2a(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return renderings (n, h, w, 3) of Level-1C as Level-2A would look."""
    dn = (pixels.astype(np.float32) - 1) / STRETCH
    ground = np.maximum(dn - AIR_DN, 0) / TRANSMISSION
    return np.rint(1 + np.clip(ground * STRETCH, 0, 254)).astype(np.uint8)


def main() -> None:
    """Train one arm and print its accuracy."""
    parser = arguments(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--arm", choices=ARMS, default="shifted")
    args = parser.parse_args()
    labelled = read_labelled(args.data / "train.csv")
    validation = read_labelled(args.data / "valid.csv", classes=labelled.classes, complete=False)
    unlabelled = None
    if args.arm != "none":
        unlabelled = read_unlabelled(args.data / "unsup", labelled.images)
        if args.arm == "shifted":
            unlabelled = replace(unlabelled, pixels=as_level_2a(unlabelled.pixels))
    config = ClassifierConfig(steps=args.steps)
    with tempfile.TemporaryDirectory() as folder:
        train_classifier(labelled, Path(folder) / "model", config, unlabelled=unlabelled)
        classifier = load_classifier(Path(folder) / "model")
    probability = classifier.probabilities(validation.images)
    answers = classifier.choose(probability)
    figures = measure(probability, validation.labels, answers, labelled.classes).to_dict()
    accuracy = figures["accuracy"]
    print(f"{args.arm}: accuracy {accuracy['value']:.3f} ({accuracy['low']:.3f} to {accuracy['high']:.3f})")
    shapes = context(steps=args.steps, arm=args.arm)
    write_json(args.json, {"context": shapes, "accuracy": accuracy, "macro_f1": figures["macro_f1"]})


if __name__ == "__main__":
    main()
