"""`retrieve doctor`: what is installed, what works, and what to do."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Annotated

import typer

from retrieval.cli.app import app, import_tensorflow
from retrieval.cli.options import AsJson, DeviceOption, examples


@app.command(
    short_help="What is installed and works, and what to do",
    epilog=examples("retrieve doctor", "retrieve doctor --device gpu --json"),
)
def doctor(
    device: DeviceOption = "auto",
    trial: Annotated[
        bool, typer.Option("--trial/--no-trial", help="Also do the job in small: about ten seconds.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Look at versions, devices, libraries, threads, memory and disk, and do the job in small.

    X begins a line about something needed that is broken, ! one about what could be better; -> says what to
    do. The exit code is 1 where there is an X; what only a GPU needs is needed with --device gpu.
    """
    with suppress(Exception):  # a TensorFlow that does not open is what the doctor is asked about
        import_tensorflow()
    from retrieval.doctor import examine

    report = examine(device, trial)
    typer.echo(json.dumps(report.to_dict()) if as_json else str(report))
    raise typer.Exit(int(report.broken))
