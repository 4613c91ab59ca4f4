"""`retrieve calibrate`: the confidence of an index whose encoder has no calibration."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Annotated

import typer

from retrieval.cli.app import command, elapsed_s, import_tensorflow, print_result
from retrieval.cli.console import ConsoleProgress
from retrieval.cli.options import (
    INDEX,
    AsJson,
    Bands,
    DeviceOption,
    IndexFolder,
    Overwrite,
    PatchesArgument,
    Quiet,
    UnitsOption,
    Verbose,
    split_names,
)
from retrieval.errors import UncalibratedWarning


@command(
    "calibrate",
    "retrieve calibrate patches.npy answers.csv --index scenes.index",
    "retrieve calibrate patches.npy answers.csv --index scenes.index --out encoder.calibration.json",
)
def calibrate(
    patches: PatchesArgument,
    answers: Annotated[Path, typer.Argument(metavar="ANSWERS", help="CSV of the true positions.")],
    index: IndexFolder = INDEX,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Also write the calibration here. New indexes use it as ENCODER.calibration.json next to "
            "ENCODER.keras.",
        ),
    ] = None,
    bands: Bands = None,
    units: UnitsOption = None,
    device: DeviceOption = "auto",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Fit the confidence of an index to patches with known answers.

    An index with a custom encoder has no confidence until you run this. Use at least 20 patches, of places
    that the encoder has not learned from. Chips larger than 64 x 64 pixels need a separate calibration.
    """
    names = split_names(bands)
    import_tensorflow()
    from retrieval.evaluation.submission import read_submission
    from retrieval.pipeline import locate, open_index
    from retrieval.results.calibrate import calibrate_from

    start = time.monotonic()
    with ConsoleProgress(quiet, verbose=verbose) as console:
        opened = open_index(index, device=device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UncalibratedWarning)
            matches = locate(opened, patches, bands=names, units=units, progress=console)
        report = calibrate_from(matches, read_submission(answers), out, overwrite=overwrite)
    template = "{files[0]}: {answers} answers, {right:.1%} right"
    if report.calibration_error is not None:
        template += ", calibration error {calibration_error:.3f} on held-out ground"
    print_result(as_json, report.to_dict() | {"seconds": elapsed_s(start)}, template)
