"""`retrieve demo`, `models`, `doctor` and `config`: try, list, check and configure; they need no data."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from retrieval.cli.app import command, elapsed_s, import_tensorflow
from retrieval.cli.console import ConsoleProgress
from retrieval.cli.options import AsJson, ConfigFile, DeviceOption, Encoder, Overwrite, Quiet, Verbose
from retrieval.config import PATCH_PX, DemoConfig
from retrieval.config.settings import Settings, page, read_settings, resolved


@command("demo", "retrieve demo", "retrieve demo --out small --images 6 --patches 200")
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = Path("demo"),
    images: Annotated[
        int | None,
        typer.Option(
            min=1, show_default=str(DemoConfig.images), help="Images to generate, each of another place."
        ),
    ] = None,
    patches: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default=str(DemoConfig.patches),
            help="Patches to generate, of other dates than the images.",
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            min=PATCH_PX, show_default=str(DemoConfig.size_px), help="Side of the images, in pixels."
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, show_default=str(DemoConfig.seed), help="Random seed; the same seed gives the same images."
        ),
    ] = None,
    encoder: Encoder = None,
    device: DeviceOption = "auto",
    config: ConfigFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Generate a small challenge, index it, query it, score it and write a report: about a minute.

    It needs no data and no GPU. The folder then holds the challenge, the index, the submission, all matches
    and the report.
    """
    settings = read_settings(config)
    demo_config = settings.make(DemoConfig, images=images, patches=patches, size_px=size, seed=seed)
    import_tensorflow()
    from retrieval.demo import run_demo

    start = time.monotonic()
    with ConsoleProgress(quiet, verbose=verbose) as console:
        console.note(settings.note(DemoConfig))
        report = run_demo(
            out, demo_config, encoder=encoder, device=device, overwrite=overwrite, progress=console
        )
    result = report.to_dict() | {"seconds": elapsed_s(start)}
    typer.echo(json.dumps(result) if as_json else f"{report.score.table()}\n\n{report.guide()}")


@command("models", "retrieve models", "retrieve models --json")
def models(as_json: AsJson = False) -> None:
    """List the models in the package with their bands, classes, licence and size."""
    from retrieval.models.registry import shipped_models

    found = shipped_models()
    if as_json:
        typer.echo(json.dumps({"models": [asdict(model) for model in found]}))
        return
    for model in found:
        bands = " ".join(model.bands) or "any bands"
        line = f"{model.name:<18}{model.purpose:<38}{bands:<16}{model.licence:<12}{model.size_mb:.1f} MB"
        typer.echo(line)
        if model.classes:
            typer.echo(f"{'':<18}{', '.join(model.classes)}")


@command("doctor", "retrieve doctor", "retrieve doctor --device gpu --json")
def doctor(
    device: DeviceOption = "auto",
    trial: Annotated[
        bool, typer.Option("--trial/--no-trial", help="Also run a small search, about ten seconds.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Check packages, devices, threads, memory and disk, then run a small search.

    X marks a broken requirement, ! a warning, -> the suggested fix. Exit code 1 means that a requirement is
    broken. GPU packages are required with --device gpu only.
    """
    with suppress(Exception):  # the checks report a TensorFlow that cannot be imported
        import_tensorflow()
    from retrieval.doctor import examine

    report = examine(device, trial)
    typer.echo(json.dumps(report.to_dict()) if as_json else str(report))
    raise typer.Exit(int(report.broken))


@command("config", "retrieve config --defaults > retrieve.toml", "retrieve config --config fast.toml --json")
def config(
    defaults: Annotated[
        bool, typer.Option("--defaults", help="Print the defaults; read no settings file.")
    ] = False,
    config_file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Print all settings with their meaning and the values in use: the file's, else the defaults.

    index, query, train and demo read retrieve.toml in the working folder automatically.
    """
    settings = Settings() if defaults else read_settings(config_file)
    typer.echo(json.dumps(resolved(settings)) if as_json else page(settings), nl=as_json)
