"""Compare losses and widths of segmentation on the first fold of the buildings, by short trainings.

    python benchmarks/segment_tried.py DATA --json benchmarks/results/segment-tried.json

Each variant changes some settings of one short form of the recipe `aerial`. As in `benchmarks/segment.py`, a
fold leaves one zoom-19 tile out, and the IoU of its buildings counts. Short trainings rank variants; they do
not state what a full one reaches. Each training is kept in WORK as it ends.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from context import arguments, context, write_json
from segment import buildings, measured, network

from retrieval.config import SegmenterConfig
from retrieval.evaluation.segmentation import measure_maps
from retrieval.training.recipes import read_recipe

SHORT: dict[str, Any] = read_recipe("aerial") | {"crop": 128, "batch": 4, "steps": 80}
"""What all variants share."""
FOLDS = (0,)
"""The folds that are measured: buildings cover 60 % of the first tile."""
VARIANTS: dict[str, dict[str, Any]] = {
    "half cross-entropy, half Lovász": {},
    "cross-entropy": {"lovasz": 0.0, "cross_entropy": 1.0},
    "Lovász": {"lovasz": 1.0, "cross_entropy": 0.0},
    "half focal, half Lovász": {"focal": 0.5, "cross_entropy": 0.0},
    "width 16": {"width": 16},
}


def main() -> None:
    """Train the variants that WORK lacks, and write the figures of those that are whole."""
    parser = arguments(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/segment-tried"))
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    scenes, fold_of = buildings(asked.data, asked.work)
    truth, folds = [scene.labels for scene in scenes.scenes], sorted(set(fold_of))
    rows: dict[str, Any] = {}
    for number, (name, changes) in enumerate(VARIANTS.items()):
        config, tables, seconds = SegmenterConfig(**SHORT | changes), [], []
        for fold in FOLDS:
            kept = asked.work / f"{number}-{fold}.json"
            if not kept.exists():
                is_test = [f == folds[fold] for f in fold_of]
                page = measured(network(config, (1,)), scenes, truth, is_test, asked.work / f"model-{number}")
                kept.write_text(json.dumps(page))
            page = json.loads(kept.read_text())
            tables.append(np.array(page["confusion"]["network"]))
            seconds.append(page["seconds"])
        figures = [measure_maps(t[None], scenes.classes.names).by_class["building"] for t in tables]
        rows[name] = {"changes": changes, "fold_seconds": seconds}
        rows[name] |= {"iou": [f.iou.value for f in figures], "mcc": [f.mcc.value for f in figures]}
        print(f"{name:<34}", [round(value, 3) for value in rows[name]["iou"]], seconds, flush=True)
        write_json(asked.json, context(folds=len(FOLDS)) | {"recipe": SHORT, "rows": rows})


if __name__ == "__main__":
    main()
