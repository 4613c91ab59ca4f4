"""`retrieve train`: time series to a network."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from retrieval.cli.app import command, import_tensorflow, print_result
from retrieval.cli.console import ConsoleProgress
from retrieval.cli.options import (
    AsJson,
    ConfigFile,
    DeviceOption,
    ExecutorOption,
    Memory,
    Overwrite,
    Quiet,
    TrainingSeed,
    Verbose,
    executor_of,
    training_settings,
)
from retrieval.config import CloudConfig, Loss, RepresentationConfig, TrainConfig, VerifierConfig
from retrieval.config.settings import read_settings

Model = Literal["encoder", "verifier", "cloud", "local", "representation"]
RECIPES: dict[Model, Any] = {
    "encoder": TrainConfig,
    "verifier": VerifierConfig,
    "cloud": CloudConfig,
    "local": CloudConfig,
    "representation": RepresentationConfig,
}
"""Settings of each model."""
FLAG_NAMES: dict[Model, dict[str, str]] = {
    "cloud": {"steps": "cloud_steps", "batch": "cloud_batch"},
    "representation": {"batch": "crops"},
}
"""Settings that the flags set, where they have other names."""


@command(
    "train",
    "retrieve train series/ --out encoder.keras",
    "retrieve train series/ --out encoder.keras --validation other-places/ --steps 20000 --recipe siamese",
    "retrieve train series/ --model verifier --recipe verifier --out verifier.keras",
    "retrieve train series/ --model representation --recipe representation --out representation.keras",
)
def train(
    series: Annotated[
        Path, typer.Argument(metavar="SERIES", help="Folder of time series, or one .tfrecords file.")
    ],
    model: Annotated[
        Model,
        typer.Option(
            help="encoder: patches to vectors; verifier: candidates to log-odds; cloud: pixels under cloud; "
            "local: descriptors for patches under cloud. representation: codes of place and light."
        ),
    ] = "encoder",
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", show_default="MODEL.keras", help="Network to write, a .keras file."),
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(
            help="Time series of other places to validate an encoder on.",
            show_default="some places of SERIES",
        ),
    ] = None,
    cloud_network: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default="the shipped one",
            help="Cloud network that hides clouds in the training of local descriptors.",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Settings as JSON; siamese, verifier, clouds and representation are the recipes of the "
            "shipped networks. Flags override them.",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, show_default=str(TrainConfig.steps), help="Training steps; the default is for an encoder."
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=2, show_default=str(TrainConfig.batch), help="Pairs per step; the default is for an encoder."
        ),
    ] = None,
    loss: Annotated[
        Loss | None, typer.Option(show_default=TrainConfig.loss, help="Loss function of an encoder.")
    ] = None,
    seed: TrainingSeed = None,
    device: DeviceOption = "auto",
    executor: ExecutorOption = None,
    memory: Memory = None,
    config_file: ConfigFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a network on time series; the encoder by default.

    An encoder learns from two dates of a place against other places, and validates on places that it does not
    learn from. Checkpoints are kept in OUT.training/, from which an interrupted run resumes.
    """
    _check_flags(model, validation=validation, loss=loss, cloud_network=cloud_network, executor=executor)
    out, settings = out or Path(f"{model}.keras"), read_settings(config_file)
    flags = {"steps": steps, "batch": batch, "seed": seed, "loss": loss}
    names = FLAG_NAMES.get(model, {})
    flags = {names.get(name, name): value for name, value in flags.items()}
    config = training_settings(settings, RECIPES[model], recipe, **flags)
    import_tensorflow()
    from retrieval.index.device import on_device

    with (
        ConsoleProgress(quiet, verbose=verbose) as console,
        executor_of(executor, memory, console) as runner,
        on_device(device),
    ):
        console.note(settings.note(RECIPES[model]))
        console.detail(f"train: {config.to_dict()}")
        more: dict[str, Any] = {"overwrite": overwrite, "progress": console.training}
        more |= {"executor": runner} if model == "verifier" else {}
        if model == "encoder":
            result, template = _train_encoder(series, out, config, validation=validation, **more)
        else:
            result, template = _train_network(model, series, out, config, cloud_network, **more)
    print_result(as_json, result, template)


def _check_flags(model: Model, **flags: Any) -> None:
    """Refuse flags of another model.

    Raises:
        typer.BadParameter: a flag does not belong to the model.
    """
    owner = {"validation": "encoder", "loss": "encoder", "cloud_network": "local", "executor": "verifier"}
    for name, value in flags.items():
        if value is not None and owner[name] != model:
            raise typer.BadParameter(
                f"--{name.replace('_', '-')} is a flag of --model {owner[name]}. Leave it out."
            )


def _train_encoder(series: Path, out: Path, config: TrainConfig, **more: Any) -> tuple[dict[str, Any], str]:
    """Train an encoder and draw its curve; return the result and its template."""
    from retrieval.report.plots import draw_curve, read_history
    from retrieval.training.siamese import train_encoder

    report = train_encoder(series, out, config, **more)
    free = report.training_free[0] if report.training_free else None
    curve = report.history.with_name("curve.png")
    title = f"Training of {report.out.name}"
    draw_curve(read_history(report.history, free), curve, title=title, overwrite=True)
    result = asdict(report) | {k: str(v) for k, v in (("out", report.out), ("history", report.history))}
    template = (
        "{out}: step {best_step} of {steps}; of {patches} patches {recall_at_1:.1%} have their right "
        "place first among {windows} windows"
    ) + ("" if free is None else f", training-free {free:.1%}")
    return result | {"curve": str(curve)}, template + "; see {curve}"


def _train_network(
    model: Model, series: Path, out: Path, config: Any, cloud_network: Path | None, **more: Any
) -> tuple[dict[str, Any], str]:
    """Train one of the other networks; return the result and its template."""
    from retrieval.models.cloud_mask import CloudMask
    from retrieval.models.registry import load_network
    from retrieval.training.cloud_networks import train_cloud_mask, train_local_descriptors
    from retrieval.training.representation import train_representation
    from retrieval.training.verifier import train_verifier

    if model == "local":
        more["cloud_mask"] = CloudMask(load_network(cloud_network)) if cloud_network else None
    trainers: dict[Model, Any] = {
        "verifier": train_verifier,
        "cloud": train_cloud_mask,
        "local": train_local_descriptors,
        "representation": train_representation,
    }
    figures = trainers[model](series, out, config, **more)
    template = "{out}: " + ", ".join(f"{name.replace('_', ' ')} {{{name}:.3f}}" for name in figures)
    return {"out": str(out)} | figures, template
