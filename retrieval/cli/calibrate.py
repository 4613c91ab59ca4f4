"""`retrieve calibrate`: the confidence of an index whose encoder has no calibration."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from retrieval.cli.app import app, import_tensorflow, since, tell
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
    examples,
    split_names,
)
from retrieval.cli.talk import Talk


@app.command(
    short_help="Patches with known answers to a calibrated confidence",
    epilog=examples(
        "retrieve calibrate patches.npy answers.csv --index scenes.index",
        "retrieve calibrate patches.npy answers.csv --index scenes.index --out encoder.calibration.json",
    ),
)
def calibrate(
    patches: PatchesArgument,
    answers: Annotated[Path, typer.Argument(metavar="ANSWERS", help="CSV of their true images and pixels.")],
    index: IndexFolder = INDEX,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Also write the calibration here. Beside ENCODER.keras, as ENCODER.calibration.json, new "
            "indexes take it.",
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

    The index of an encoder of your own has no confidence until you run this. Use 20 patches or more, of
    places that the encoder has not learned from. Chips larger than 64 x 64 pixels have a calibration of
    their own.
    """
    names = split_names(bands)
    import_tensorflow()
    from retrieval.pipeline import calibrate as fit
    from retrieval.pipeline import open_index

    begun = time.monotonic()
    with Talk(quiet, verbose=verbose) as talk:
        report = fit(
            open_index(index, device=device),
            patches,
            answers,
            out,
            bands=names,
            units=units,
            overwrite=overwrite,
            progress=talk,
        )
    text = "{files[0]}: {answers} answers, {right:.1%} of them right"
    if report.calibration_error is not None:
        text += ", calibration error {calibration_error:.3f} on held-out ground"
    tell(as_json, report.to_dict() | {"seconds": since(begun)}, text)
