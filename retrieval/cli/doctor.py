"""`retrieve doctor` and `retrieve config`: the installation and the settings in use."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Annotated

import typer

from retrieval.cli.app import command, import_tensorflow
from retrieval.cli.options import AsJson, ConfigFile, DeviceOption
from retrieval.config.settings import Settings, page, read_settings, resolved


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
