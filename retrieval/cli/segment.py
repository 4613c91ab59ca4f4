"""`retrieve segment ...`: class maps of scenes, learnt from masks."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from retrieval.cli.app import command, elapsed_s, import_tensorflow, print_result
from retrieval.cli.console import ConsoleProgress
from retrieval.cli.options import (
    AsJson,
    Bands,
    ClassesOption,
    ConfigFile,
    DeviceOption,
    ExecutorOption,
    Licence,
    Memory,
    Method,
    Overwrite,
    Quiet,
    TrainingSeed,
    UnitsOption,
    Verbose,
    Zoom,
    executor_of,
    forest_result,
    refuse_for_trees,
    split_names,
    training_settings,
)
from retrieval.config import ForestConfig, SegmenterConfig
from retrieval.config.settings import read_settings

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
    "retrieve segment train images/ masks/ --method trees --recipe texture --out model",
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
    unlabelled: Annotated[
        Path | None,
        typer.Option(
            help="Images of the same kind without masks: the network must answer alike in any light.",
            show_default="none",
        ),
    ] = None,
    classes: ClassesOption = None,
    zoom: Zoom = None,
    method: Method = "network",
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            help="Settings as JSON, or aerial (below 1 m), land-cover (4 m), texture (trees, below 1 m).",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, show_default=str(SegmenterConfig.steps), help="Training steps."),
    ] = None,
    seed: TrainingSeed = None,
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
    licence: Licence = "not stated",
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
    it measures IoU and MCC, and fits the model's temperature and threshold. Trees take seconds; they take
    none of --unlabelled, --steps and the weights.
    """
    settings = read_settings(config_file)
    kind: Any = ForestConfig if method == "trees" else SegmenterConfig
    if method == "trees":
        refuse_for_trees(
            unlabelled=unlabelled, steps=steps, class_weights=class_weights, tile_weights=tile_weights
        )
    config = training_settings(settings, kind, recipe, steps=steps, seed=seed)
    import_tensorflow()
    from retrieval.index.device import on_device
    from retrieval.tasks.segment.sources import read_scenes, read_unlabelled
    from retrieval.tasks.segment.training import train_segmenter
    from retrieval.tasks.segment.trees import train_forest

    how: dict[str, Any] = {"zoom": zoom, "bands": split_names(bands), "units": units}
    with ConsoleProgress(quiet, verbose=verbose) as console, on_device(device):
        console.note(settings.note(kind))
        console.detail(f"segment train: {config.to_dict()}")
        scenes = read_scenes(images, masks, classes=classes, weights=tile_weights, **how)
        held_out = validation and read_scenes(*validation, classes=scenes.classes, like=scenes, **how)
        others = read_unlabelled(unlabelled, scenes, **how) if unlabelled else None
        for note in (*scenes.notes, *(held_out.notes if held_out else ())):
            console.note(note)
        if method == "trees":
            more: dict[str, Any] = {"licence": licence, "overwrite": overwrite, "progress": console}
            grown = train_forest(scenes, out, config, validation=held_out or None, **more)
            print_result(as_json, *forest_result(grown))
            return
        report = train_segmenter(
            scenes,
            out,
            config,
            validation=held_out or None,
            unlabelled=others,
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


@command(
    "segment predict",
    "retrieve segment predict scene.tif --model model --out classes.tif",
    "retrieve segment predict tiles/ --model model --zoom 20 --out predicted/",
    "retrieve segment predict scenes/ --model a --model b --out predicted/ --probabilities p/",
)
def predict(
    images: Images,
    model: Annotated[
        list[Path],
        typer.Option(
            "--model",
            "-m",
            metavar="FOLDER",
            help="Model that `segment train` wrote; of several, the mean probability decides.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Map to write, a .tif; for a folder, the folder of maps.")
    ],
    probabilities: Annotated[
        Path | None,
        typer.Option(
            help="Also write the probability of each class: a .tif, or for a folder a folder.",
            show_default="none",
        ),
    ] = None,
    zoom: Zoom = None,
    orientations: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=8,
            help="Flips and rotations whose answers are averaged; each takes the time of one map.",
            show_default="the model's",
        ),
    ] = None,
    bands: Bands = None,
    units: UnitsOption = None,
    device: DeviceOption = "auto",
    executor: ExecutorOption = None,
    memory: Memory = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write the class of each pixel of a scene, or of all images of a folder.

    A map is a cloud-optimized GeoTIFF on the image's grid, with colours and class names; 255 is nodata. XYZ
    tiles become palette PNGs. Memory does not grow with a scene's height. A stopped run over a folder
    resumes.
    """
    import_tensorflow()
    from retrieval.index.device import on_device
    from retrieval.tasks.segment.prediction import predict as predicted

    start = time.monotonic()
    with (
        ConsoleProgress(quiet, verbose=verbose) as console,
        executor_of(executor, memory, console) as runner,
        on_device(device),
    ):
        report = predicted(
            images,
            model,
            out,
            probabilities=probabilities,
            zoom=zoom,
            bands=split_names(bands),
            units=units,
            orientations=orientations,
            overwrite=overwrite,
            executor=runner,
            progress=console,
        )
    result = asdict(report) | {"out": str(report.path), "seconds": elapsed_s(start)}
    result.pop("path")
    shares = ", ".join(f"{name} {share:.1%}" for name, share in report.shares.items())
    print_result(as_json, result, f"{{out}}: {{images}} images; {shares}; {{nodata_share:.1%}} nodata")


@command(
    "segment evaluate",
    "retrieve segment evaluate predicted/ masks/ --json",
    "retrieve segment evaluate predicted/ masks/ --classes deepglobe",
    "retrieve segment evaluate predicted/ masks/ --zoom 20 --group-zoom 19",
)
def evaluate(
    predicted: Annotated[
        Path, typer.Argument(metavar="PREDICTED", help="Folder of class maps, or one class map.")
    ],
    masks: Annotated[
        Path, typer.Argument(metavar="MASKS", help="Folder of masks with the names of the maps, or one mask.")
    ],
    classes: ClassesOption = None,
    zoom: Zoom = None,
    group_zoom: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=30,
            help="For the intervals, draw all tiles within one tile of this zoom together.",
            show_default="each tile alone",
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure class maps on masks: IoU, F1 and MCC of each class, with intervals by scene or tile.

    All pixels with a label share one confusion matrix.
    """
    from retrieval.tasks.segment.evaluation import evaluate as evaluated

    with ConsoleProgress(quiet, verbose=verbose) as console:
        result = evaluated(
            predicted, masks, classes=classes, zoom=zoom, group_zoom=group_zoom, progress=console
        )
        for note in result.notes:
            console.note(note)
    if as_json:
        print_result(True, result.figures.to_dict(), "")
        return
    typer.echo(_figures_table(result.figures, result.pairs))


def _figures_table(figures: Any, pairs: int) -> str:
    """Return the figures as lines for people."""

    def text(figure: Any) -> str:
        return f"{figure.value:.3f} ({figure.low:.3f} to {figure.high:.3f})"

    width = max(map(len, figures.by_class))
    lines = [f"{pairs} maps, {figures.units} drawn for the 95 % intervals"]
    lines += [
        f"{name:<{width}}  IoU {text(of.iou)}  F1 {text(of.f1)}  MCC {text(of.mcc)}"
        for name, of in figures.by_class.items()
    ]
    lines.append(f"{'mean':<{width}}  IoU {text(figures.miou)}  F1 {text(figures.macro_f1)}")
    return "\n".join(lines)
