"""`retrieve classify ...`: a classifier of images from a few labels."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from retrieval.cli.app import command, elapsed_s, import_tensorflow, print_result
from retrieval.cli.console import ConsoleProgress
from retrieval.cli.options import (
    AsJson,
    Bands,
    ConfigFile,
    DeviceOption,
    ExecutorOption,
    Licence,
    Memory,
    Overwrite,
    Quiet,
    TrainingSeed,
    UnitsOption,
    Verbose,
    executor_of,
    split_names,
    training_settings,
)
from retrieval.config import PATCH_PX, ClassifierConfig
from retrieval.config.settings import read_settings
from retrieval.types import Executor

Labelled = Annotated[
    Path,
    typer.Argument(
        metavar="LABELLED",
        help="Labelled images: an .npz file, a folder with one folder for each class, or a CSV of "
        "Id,Category. With --images: points or polygons, any vector file.",
    ),
]
Unlabelled = Annotated[
    Path | None,
    typer.Option(
        help="Images without labels: .npz, .npy, a folder of images, GeoTIFFs or TFRecord series.",
        show_default="none",
    ),
]
Validation = Annotated[
    Path | None,
    typer.Option(
        help="Labelled images that are never trained on, like LABELLED; they fit the temperature.",
        show_default="none",
    ),
]
Images = Annotated[
    Path | None,
    typer.Option(
        "--images",
        metavar="FOLDER|FILE",
        help="GeoTIFFs under vector labels; a chip is cut at each label.",
        show_default="none",
    ),
]
Attribute = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Attribute of vector labels that holds the class.", show_default="class"
    ),
]
Size = Annotated[
    int | None,
    typer.Option(min=16, help="Side of a chip in pixels, for vector labels.", show_default="64"),
]
Layer = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Layer of the vector file.", show_default="the only one"),
]
ClassNames = Annotated[
    str | None,
    typer.Option(
        "--classes",
        metavar="NAMES|FILE",
        help="Names of the classes in order, separated by commas, or a file with one name per line.",
        show_default="from the labels, sorted",
    ),
]
ModelFolder = Annotated[
    Path,
    typer.Option(
        "--model",
        "-m",
        metavar="FOLDER|NAME",
        help="Model that `classify train` wrote, or a shipped one; `retrieve models` lists them.",
    ),
]
Orientations = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=8,
        help="Flips and rotations of an image whose answers are averaged.",
        show_default="the model's",
    ),
]
MAPS = (".tif", ".tiff")
"""Endings of a map."""


def _ground(images: Path | None, size: int | None = None, **more: str | None) -> Any:
    """Return where vector labels get their images from; None where the labels are no vector file.

    Raises:
        typer.BadParameter: flags of vector labels without --images.
    """
    given = {name: value for name, value in (("size", size), *more.items()) if value is not None}
    if images is None:
        if given:
            flags = ", ".join(f"--{name}" for name in given)
            raise typer.BadParameter(f"{flags} belongs to vector labels. Name their GeoTIFFs with --images.")
        return None
    from retrieval.tasks.ground_labels import Ground

    return Ground(images, more.get("attribute") or "class", size or PATCH_PX, more.get("layer"))


def _class_names(text: str | None) -> tuple[str, ...] | None:
    """Return the names in "Forest, Sea lake" or in a file.

    Raises:
        typer.BadParameter: there is no name.
    """
    if text is None:
        return None
    from retrieval.tasks.labels import is_file

    try:
        lines = Path(text).read_text(encoding="utf-8").splitlines() if is_file(text) else text.split(",")
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"{text} is no text in UTF-8 ({error}). Save it as UTF-8.") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise typer.BadParameter(f"no class in {text!r}. Expected names such as Forest,River.")
    return names


@command(
    "classify explore",
    "retrieve classify explore train.npz --unlabelled unsup.npz --out explore.html",
    "retrieve classify explore train.csv --unlabelled unsup/ --validation valid.csv --out explore.html",
)
def explore(
    labelled: Labelled,
    out: Annotated[Path, typer.Option("--out", "-o", help="Page to write, an .html file.")] = Path(
        "explore.html"
    ),
    unlabelled: Unlabelled = None,
    validation: Validation = None,
    classes: ClassNames = None,
    images: Images = None,
    attribute: Attribute = None,
    size: Size = None,
    layer: Layer = None,
    bands: Bands = None,
    units: UnitsOption = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show labelled and unlabelled images on one HTML page, before a training.

    The page shows the balance of the classes, examples, mean spectra and histograms. It also shows
    near-duplicates within and across the sets, a map of colour and texture, and differences of light.
    """
    from retrieval.evaluation.exploration import Split
    from retrieval.evaluation.exploration import explore as explored
    from retrieval.report.exploration_page import write_exploration_page
    from retrieval.report.html import check_page
    from retrieval.tasks.images import FULL_SCALE, check_same_kind
    from retrieval.tasks.sources import read_labelled, read_unlabelled

    ground = _ground(images, size, attribute=attribute, layer=layer)
    start, how = time.monotonic(), {"bands": split_names(bands), "units": units}
    with ConsoleProgress(quiet, verbose=verbose) as console:
        check_page(out, overwrite)
        vectors: dict[str, Any] = {"ground": ground, "note": console.note, **how}
        examples = read_labelled(labelled, classes=_class_names(classes), **vectors)
        first = examples.images
        splits = [Split("labelled", first.pixels, first.ids, examples.labels)]
        if unlabelled is not None:
            others = read_unlabelled(unlabelled, first, **how)  # type: ignore[arg-type]
            splits.append(Split("unlabelled", others.pixels, others.ids))
        if validation is not None:
            held_out = read_labelled(validation, classes=examples.classes, complete=False, **vectors)
            check_same_kind(held_out.images, first)
            shown = held_out.images
            splits.append(Split("validation", shown.pixels, shown.ids, held_out.labels))
        console("comparing images", 0, None)
        found = explored(splits, examples.classes, first.bands, FULL_SCALE[first.form])
        write_exploration_page(out, found, title=f"Images of {labelled.name}", overwrite=overwrite)
    result = {
        "out": str(out),
        "images": {split.name: len(split.pixels) for split in splits},
        "classes": dict(zip(found.classes, found.counts[0].tolist(), strict=True)),
        "near_duplicates": len(found.duplicates),
        "across_splits": sum(d.splits[0] != d.splits[1] for d in found.duplicates),
        "seconds": elapsed_s(start),
    }
    template = "{out}: {near_duplicates} pairs of near-duplicates, {across_splits} across splits"
    print_result(as_json, result, template)


@command(
    "classify train",
    "retrieve classify train train.npz --unlabelled unsup.npz --validation valid.npz --out model",
    "retrieve classify train train.csv --unlabelled unsup/ --validation valid.csv --out model",
    "retrieve classify train classes/ --out model --steps 1000 --recipe recipe.json",
    "retrieve classify train labels.geojson --images scenes/ --attribute class --out model",
)
def train(
    labelled: Labelled,
    out: Annotated[Path, typer.Option("--out", "-o", help="Model folder to write.")],
    unlabelled: Unlabelled = None,
    validation: Validation = None,
    classes: ClassNames = None,
    images: Images = None,
    attribute: Attribute = None,
    size: Size = None,
    layer: Layer = None,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Settings as JSON. Flags override them."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, show_default=str(ClassifierConfig.steps), help="Training steps."),
    ] = None,
    seed: TrainingSeed = None,
    licence: Licence = "not stated",
    dn_range: Annotated[
        str | None,
        typer.Option(
            metavar="LOW,HIGH",
            help="Digital numbers that became 1 and 255 in the renderings; the model then takes both.",
            show_default="unknown",
        ),
    ] = None,
    bands: Bands = None,
    units: UnitsOption = None,
    device: DeviceOption = "auto",
    config_file: ConfigFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a classifier of images from a few labels and many images without.

    The state is kept in OUT.training/, from which an interrupted run resumes. Validation images change no
    weight: they measure the model, and fit its temperature and threshold.
    """
    settings, names, rendering = read_settings(config_file), _class_names(classes), _range(dn_range)
    config = training_settings(settings, ClassifierConfig, recipe, steps=steps, seed=seed)
    import_tensorflow()
    from retrieval.index.device import on_device
    from retrieval.tasks.sources import read_labelled, read_unlabelled
    from retrieval.tasks.training import train_classifier

    how: dict[str, Any] = {"bands": split_names(bands), "units": units}
    ground = _ground(images, size, attribute=attribute, layer=layer)
    with ConsoleProgress(quiet, verbose=verbose) as console, on_device(device):
        console.note(settings.note(ClassifierConfig))
        console.detail(f"classify train: {config.to_dict()}")
        vectors = {"ground": ground, "note": console.note, **how}
        examples = read_labelled(labelled, classes=names, **vectors)
        others = unlabelled and read_unlabelled(unlabelled, examples.images, seed=config.seed, **how)
        held_out = validation and read_labelled(
            validation, classes=examples.classes, complete=False, **vectors
        )
        report = train_classifier(
            examples,
            out,
            config,
            unlabelled=others or None,
            validation=held_out or None,
            licence=licence,
            dn_range=rendering,
            overwrite=overwrite,
            progress=console.training,
        )
    result = asdict(report) | {"out": str(report.out), "history": str(report.history)}
    template = "{out}: {steps} steps on {labelled} labelled and {unlabelled} unlabelled images"
    if report.accuracy is not None:
        template += "; of {validation} validation images {accuracy:.1%} right, calibration error {ece:.3f}"
    print_result(as_json, result, template)


def _range(text: str | None) -> tuple[float, float] | None:
    """Return the numbers in "0,2750".

    Raises:
        typer.BadParameter: they are no rising pair.
    """
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low, high = 0.0, 0.0
    if not 0 <= low < high <= 65535:
        raise typer.BadParameter(f"--dn-range is {text!r}. Expected two rising numbers, such as 0,2750.")
    return low, high


@command(
    "classify predict",
    "retrieve classify predict test.npz --model model --out submission.csv",
    "retrieve classify predict images/ --model eurosat-rgb --out submission.csv --probabilities p.parquet",
    "retrieve classify predict scene.tif --model model --out classes.tif --stride 10",
)
def predict(
    images: Annotated[
        Path,
        typer.Argument(
            metavar="IMAGES",
            help="Images of the model's size: .npz, .npy, a folder, or a CSV of Id,Category. For a map: "
            "one GeoTIFF of any size.",
        ),
    ],
    model: ModelFolder,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="CSV of Id,Category, or a .tif for a map of the scene's classes."),
    ],
    probabilities: Annotated[
        Path | None,
        typer.Option(help="Also write the probability of each class, a .parquet file.", show_default="none"),
    ] = None,
    stride: Annotated[
        int, typer.Option(min=1, help="For a map: distance of the classified windows in pixels.")
    ] = 10,
    orientations: Orientations = None,
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
    """Classify images, or each pixel of a scene.

    The CSV has one row for each image. Its Id is the row of an array; for files it is the number where all
    stems are numbers, else the stem. A map lies on the scene's own grid, with 255 for nodata.
    """
    is_map, names = out.suffix.lower() in MAPS, split_names(bands)
    if is_map and probabilities:
        raise typer.BadParameter("--probabilities needs a CSV as --out. A map has none.")
    import_tensorflow()
    from retrieval.index.device import on_device

    start = time.monotonic()
    with (
        ConsoleProgress(quiet, verbose=verbose) as console,
        executor_of(executor, memory, console) as runner,
        on_device(device),
    ):
        if is_map:
            result, template = _predict_scene(
                images,
                model,
                out,
                stride,
                console,
                bands=names,
                units=units,
                orientations=orientations,
                overwrite=overwrite,
                executor=runner,
            )
        else:
            result, template = _predict_images(
                images, model, out, probabilities, console, names, units, orientations, overwrite, runner
            )
    print_result(as_json, result | {"seconds": elapsed_s(start)}, template)


def _predict_scene(
    scene: Path, model: Path, out: Path, stride: int, console: ConsoleProgress, **more: Any
) -> tuple[dict[str, Any], str]:
    """Write a map; return the result and its template."""
    from retrieval.tasks.classifier import load_classifier
    from retrieval.tasks.scene_map import classify_scene

    report = classify_scene(scene, load_classifier(model), out, stride=stride, progress=console, **more)
    result = asdict(report) | {"out": str(report.path)}
    result.pop("path")
    return result, "{out}: {height} x {width} pixels, {windows} windows, {nodata_share:.1%} nodata"


def _predict_images(
    source: Path,
    model: Path,
    out: Path,
    table: Path | None,
    console: ConsoleProgress,
    bands: Sequence[str] | None,
    units: str | None,
    orientations: int | None,
    overwrite: bool,
    executor: Executor | None,
) -> tuple[dict[str, Any], str]:
    """Write a submission and its probabilities; return the result and its template."""
    from retrieval.tasks.classifier import load_classifier
    from retrieval.tasks.outputs import check_table, write_probabilities, write_submission
    from retrieval.tasks.sources import read_images
    from tfrecords.artifacts import check_free

    check_free(out, overwrite=overwrite)
    if table is not None:
        check_table(table)
        check_free(table, overwrite=overwrite)
    classifier = load_classifier(model)
    images = read_images(source, bands=bands, units=units)
    probability = classifier.probabilities(images, orientations, console, executor)
    classes = classifier.description.classes
    chosen = [classes[row] for row in classifier.choose(probability)]
    if table is not None:
        write_probabilities(table, images.ids, probability, classes, overwrite=overwrite)
    write_submission(out, images.ids, chosen, overwrite=overwrite)
    counts = {name: chosen.count(name) for name in classes}
    result: dict[str, Any] = {"out": str(out), "images": len(images), "classes": counts}
    return result | {"probabilities": str(table) if table else None}, "{out}: {images} images"


@command(
    "classify evaluate",
    "retrieve classify evaluate valid.npz --model model --out evaluation.html",
    "retrieve classify evaluate valid.csv --model model --json > evaluation.json",
)
def evaluate(
    labelled: Labelled,
    model: ModelFolder,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Page to write, an .html file.", show_default="none")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Of two classes: probability from which an image belongs to the second.",
            show_default="the model's",
        ),
    ] = None,
    images: Images = None,
    attribute: Attribute = None,
    layer: Layer = None,
    orientations: Orientations = None,
    bands: Bands = None,
    units: UnitsOption = None,
    device: DeviceOption = "auto",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure a classifier on labelled images that it was not trained on.

    The page shows figures with intervals, the confusion matrix, the reliability of the confidence, the worst
    mistakes as pictures, and labels that are probably wrong. --json prints all figures.
    """
    import_tensorflow()
    from retrieval.evaluation.classification import measure
    from retrieval.index.device import on_device
    from retrieval.report.classification_page import Answers, write_evaluation_page
    from retrieval.report.html import check_page
    from retrieval.tasks.classifier import chosen, load_classifier
    from retrieval.tasks.sources import read_labelled

    with ConsoleProgress(quiet, verbose=verbose) as console, on_device(device):
        if out is not None:
            check_page(out, overwrite)
        classifier = load_classifier(model)
        classes = classifier.description.classes
        if threshold is not None and len(classes) != 2:
            raise typer.BadParameter(f"--threshold needs a model of two classes; {model} has {len(classes)}.")
        limit = threshold if threshold is not None else classifier.description.threshold
        rows, columns = classifier.description.size
        if images is not None and rows != columns:
            raise typer.BadParameter(
                f"--images needs a model of square images; {model} takes {rows} x {columns}."
            )
        examples = read_labelled(
            labelled,
            classes=classes,
            bands=split_names(bands),
            units=units,
            complete=False,
            ground=_ground(images, rows if images else None, attribute=attribute, layer=layer),
            note=console.note,
        )
        probability = classifier.probabilities(examples.images, orientations, console)
        answers = chosen(probability, limit)
        figures = measure(probability, examples.labels, answers, classes, threshold=limit)
        if out is not None:
            seen = examples.images
            shown = Answers(probability, examples.labels, answers, seen.pixels, seen.bands, seen.ids)
            title = f"{classifier.name} on {labelled.name}"
            write_evaluation_page(out, figures, shown, title=title, overwrite=overwrite)
    page = figures.to_dict()
    if as_json:
        print_result(True, page, "")
        return
    f1, ece = page["macro_f1"], page["ece"]
    line = f"{len(examples)} images: accuracy {_interval(page['accuracy'])}, macro F1 {_interval(f1)}"
    typer.echo(f"{line}, calibration error {ece['value']:.3f}" + (f"; see {out}" if out else ""))


def _interval(figure: dict[str, Any]) -> str:
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"
