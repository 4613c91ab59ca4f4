"""`retrieve segment ...`: class maps of scenes, learnt from masks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from retrieval.cli.app import command, import_tensorflow, print_result
from retrieval.cli.console import ConsoleProgress
from retrieval.cli.options import (
    AsJson,
    Bands,
    ClassesOption,
    ConfigFile,
    DeviceOption,
    Overwrite,
    Quiet,
    UnitsOption,
    Verbose,
    Zoom,
    split_names,
)
from retrieval.config import SegmenterConfig
from retrieval.config.settings import Settings, read_settings

Images = Annotated[
    Path,
    typer.Argument(
        metavar="IMAGES", help="Folder of images of any size, such as GeoTIFFs or XYZ tiles, or one image."
    ),
]
Masks = Annotated[
    Path,
    typer.Argument(
        metavar="MASKS",
        help="Folder of masks with the names of the images, perhaps the same folder, or one mask.",
    ),
]


@command(
    "segment train",
    "retrieve segment train images/ masks/ --validation images-val/ masks-val/ --out model",
    "retrieve segment train tiles/ masks/ --zoom 20 --out model --steps 300",
    "retrieve segment train deepglobe/ deepglobe/ --classes deepglobe --out model",
)
def train(
    images: Images,
    masks: Masks,
    out: Annotated[Path, typer.Option("--out", "-o", help="Model folder to write.")],
    validation: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="IMAGES MASKS",
            help="Images and masks of other ground, which change no weight.",
            show_default="none",
        ),
    ] = None,
    classes: ClassesOption = None,
    zoom: Zoom = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="FILE", help="Settings as JSON. Flags override them.")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, show_default=str(SegmenterConfig.steps), help="Training steps."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            show_default=str(SegmenterConfig.seed),
            help="Random seed; the same seed gives the same weights.",
        ),
    ] = None,
    class_weights: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=W,...",
            help="Weight of classes in the loss; classes that are not named weigh 1.",
            show_default="by frequency",
        ),
    ] = None,
    tile_weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="CSV of name,weight: how often an image is drawn, relative to the others.",
            show_default="1 each",
        ),
    ] = None,
    licence: Annotated[
        str, typer.Option(metavar="SPDX", help="Licence of the weights, for the manifest.")
    ] = "not stated",
    bands: Bands = None,
    units: UnitsOption = None,
    device: DeviceOption = "auto",
    config_file: ConfigFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a segmentation network on images with masks.

    The state is kept in OUT.training/, from which an interrupted run resumes. Validation changes no weight:
    it measures IoU and MCC, and fits the model's temperature and threshold.
    """
    settings = read_settings(config_file)
    config = _recipe(settings, recipe, steps=steps, seed=seed)
    import_tensorflow()
    from retrieval.index.device import on_device
    from retrieval.tasks.segment.sources import read_scenes
    from retrieval.tasks.segment.training import train_segmenter

    how: dict[str, Any] = {"zoom": zoom, "bands": split_names(bands), "units": units}
    with ConsoleProgress(quiet, verbose=verbose) as console, on_device(device):
        console.note(settings.note(SegmenterConfig))
        console.detail(f"segment train: {config.to_dict()}")
        scenes = read_scenes(images, masks, classes=classes, weights=tile_weights, **how)
        held_out = validation and read_scenes(*validation, classes=scenes.classes, like=scenes, **how)
        for note in (*scenes.notes, *(held_out.notes if held_out else ())):
            console.note(note)
        report = train_segmenter(
            scenes,
            out,
            config,
            validation=held_out or None,
            class_weight=_class_weights(class_weights, scenes.classes.names),
            licence=licence,
            overwrite=overwrite,
            progress=console.training,
        )
    result = asdict(report) | {"out": str(report.out), "history": str(report.history)}
    template = "{out}: {steps} steps on {scenes} scenes in {seconds:.0f} s"
    if report.miou is not None:
        template += "; on {validation} validation scenes IoU {miou:.3f}, MCC {mcc:.3f}"
    print_result(as_json, result, template)


def _recipe(settings: Settings, recipe: str | None, **flags: Any) -> SegmenterConfig:
    """Return the training's settings: flags, then the recipe, then the settings file, then defaults."""
    from retrieval.training.recipes import read_recipe

    values = read_recipe(recipe) if recipe else {}
    given = {name: value for name, value in flags.items() if value is not None}
    return settings.make(SegmenterConfig, **values | given)


def _class_weights(text: str | None, classes: tuple[str, ...]) -> list[float] | None:
    """Return the weight of each class in "water=2,forest=0.5".

    Raises:
        typer.BadParameter: another form, or an unknown class.
    """
    if text is None:
        return None
    weights = dict.fromkeys(classes, 1.0)
    for part in text.split(","):
        name, _, number = part.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = -1.0
        if name.strip() not in weights or not 0 <= weight < float("inf"):
            raise typer.BadParameter(
                f"--class-weights has {part!r}. Expected a class and a number from 0 on, such as "
                f"{classes[-1]}=2; the classes are {', '.join(classes)}."
            )
        weights[name.strip()] = weight
    return list(weights.values())
