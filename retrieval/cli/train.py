"""`retrieve train`: time series to an encoder."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from retrieval.cli.app import command, import_tensorflow, print_result
from retrieval.cli.console import ConsoleProgress
from retrieval.cli.options import AsJson, ConfigFile, DeviceOption, Overwrite, Quiet, Verbose
from retrieval.config import Loss, TrainConfig
from retrieval.config.settings import Settings, read_settings
from retrieval.errors import ConfigError


@command(
    "train",
    "retrieve train series/ --out encoder.keras",
    "retrieve train series/ --out encoder.keras --validation other-places/ --steps 20000 --loss infonce",
)
def train(
    series: Annotated[
        Path, typer.Argument(metavar="SERIES", help="Folder of time series, or one .tfrecords file.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Encoder to write, a .keras file.")] = Path(
        "encoder.keras"
    ),
    validation: Annotated[
        Path | None,
        typer.Option(
            help="Time series of other places to validate on.", show_default="some places of SERIES"
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Settings of section [train] as JSON. Flags override them."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, show_default=str(TrainConfig.steps), help="Training steps.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=2, show_default=str(TrainConfig.batch), help="Pairs per step.")
    ] = None,
    loss: Annotated[Loss | None, typer.Option(show_default=TrainConfig.loss, help="Loss function.")] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            show_default=str(TrainConfig.seed),
            help="Random seed; the same seed gives the same weights.",
        ),
    ] = None,
    device: DeviceOption = "auto",
    config_file: ConfigFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train an encoder on time series: two dates of a place against other places.

    It validates on places that it does not learn from. Checkpoints are kept in OUT.training/, from which an
    interrupted run resumes.
    """
    settings = read_settings(config_file)
    config = _recipe(settings, recipe, steps=steps, batch=batch, loss=loss, seed=seed)
    import_tensorflow()
    from retrieval.index.device import on_device
    from retrieval.report.plots import draw_curve, read_history
    from retrieval.training.siamese import train as fit

    with ConsoleProgress(quiet, verbose=verbose) as console, on_device(device):
        console.note(settings.note(TrainConfig))
        console.detail(f"train: {config.to_dict()}")
        report = fit(
            series, out, config, validation=validation, overwrite=overwrite, progress=console.training
        )
    free = report.training_free[0] if report.training_free else None
    curve = report.history.with_name("curve.png")
    title = f"Training of {report.out.name}"
    draw_curve(read_history(report.history, free), curve, title=title, overwrite=True)
    result = asdict(report) | {k: str(v) for k, v in (("out", report.out), ("history", report.history))}
    result["curve"] = str(curve)
    template = (
        "{out}: step {best_step} of {steps}; of {patches} patches {recall_at_1:.1%} have their right "
        "place first among {windows} windows"
    ) + ("" if free is None else f", training-free {free:.1%}")
    print_result(as_json, result, template + "; see {curve}")


def _recipe(settings: Settings, path: Path | None, **flags: Any) -> TrainConfig:
    """Return the training's settings: flags, then the recipe, then the settings file, then defaults."""
    try:
        values = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except ValueError as error:
        raise ConfigError(
            f'{path} is no JSON ({error}). Expected an object such as {{"learning_rate": 5e-4}}.'
        ) from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}. Expected an object of settings by name.")
    return settings.make(TrainConfig, **values | {name: v for name, v in flags.items() if v is not None})
