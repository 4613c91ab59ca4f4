"""The flags that commands share, declared once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from retrieval.cli.console import ConsoleProgress
from retrieval.cli.error_handling import VERBOSE
from retrieval.config import Device
from retrieval.config.settings import Record, Settings
from retrieval.types import Executor
from tfrecords.schema import Units

INDEX = Path("index")
"""Index folder of commands that name none."""
SUBMISSION = Path("submission.csv")
"""Submission of commands that name none."""

ImagesArgument = Annotated[
    str,
    typer.Argument(
        metavar="IMAGES",
        help="A .tfrecords file, an .npy array (n, h, w, bands), a GeoTIFF, a folder of GeoTIFFs, or a "
        "quoted pattern such as 'scenes/*.tif'.",
    ),
]
PatchesArgument = Annotated[
    str,
    typer.Argument(
        metavar="PATCHES",
        help="A .tfrecords file, an .npy array (n, h, w, bands), a chip, a folder of chips, or a quoted "
        "pattern such as 'chips/*.tif'. A chip is a GeoTIFF, PNG or JPEG of 64 x 64 pixels or more.",
    ),
]
Bands = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        show_default="the file's names, else by count",
        help="Band names in the order of the file, separated by commas: B04,B03,B02.",
    ),
]
UnitsOption = Annotated[
    Units | None,
    typer.Option("--units", show_default="inferred from the file", help="Units of the pixel values."),
]
IndexFolder = Annotated[Path, typer.Option("--index", "-i", help="Index folder that `retrieve index` wrote.")]
Encoder = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        show_default="siamese",
        help="A shipped encoder, siamese or structure-tensor, or a .keras file.",
    ),
]
DeviceOption = Annotated[
    Device, typer.Option("--device", help="Device to compute on; auto uses a GPU if there is one.")
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        envvar="RETRIEVE_CONFIG",
        show_envvar=False,
        show_default="retrieve.toml, if it exists",
        help="Settings in TOML, as `retrieve config` prints them. Flags override them. Also RETRIEVE_CONFIG.",
    ),
]
ExecutorOption = Annotated[
    str | None,
    typer.Option(
        "--executor",
        metavar="NAME",
        show_default="threads",
        help="Where the work runs: serial, threads:N, dask:N for N processes of this machine, or "
        "dask://HOST:PORT for a running Dask scheduler. All give the same answers.",
    ),
]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory",
        metavar="SIZE",
        show_default="an equal share",
        help="With --executor dask:N: memory of each process, such as 4GB.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing outputs.")]
Seed = Annotated[int, typer.Option(min=0, help="Random seed; the same seed gives the same output.")]
TrainingSeed = Annotated[
    int | None,
    typer.Option(
        "--seed", min=0, show_default="0", help="Random seed; the same seed gives the same weights."
    ),
]
Method = Annotated[
    Literal["network", "trees"],
    typer.Option(help="What learns: a network, or decision trees, which need few scenes and seconds."),
]
Licence = Annotated[str, typer.Option(metavar="SPDX", help="Licence of the weights, for the manifest.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Box = Annotated[
    str | None,
    typer.Option(
        "--bbox",
        metavar="W,S,E,N",
        help="Bounding box in degrees: west, south, east, north.",
        show_default="all",
    ),
]
Dates = Annotated[
    str | None,
    typer.Option(
        "--dates",
        metavar="FROM/TO",
        help="Date range, inclusive: 2019-03/2019-09-15, 2021/ or 2019-07.",
        show_default="all",
    ),
]
MaxCloud = Annotated[
    float | None,
    typer.Option(
        "--max-cloud",
        metavar="PERCENT",
        min=0,
        max=100,
        help="Skip products with more cloud over the whole tile, by their metadata.",
        show_default="no limit",
    ),
]
HideSnow = Annotated[bool, typer.Option("--hide-snow", help="Mask snow and ice as well as cloud and shadow.")]
ClassesOption = Annotated[
    str | None,
    typer.Option(
        "--classes",
        metavar="FILE|NAME",
        help="A CSV with the columns name, value and colour, or deepglobe.",
        show_default="from the data",
    ),
]
Zoom = Annotated[
    int | None, typer.Option("--zoom", min=0, max=30, help="Only XYZ tiles of this zoom.", show_default="all")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and warnings only.")]


def _verbose(context: typer.Context, requested: bool) -> bool:
    context.meta[VERBOSE] = requested
    return requested


Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        callback=_verbose,
        help="Also print the settings in use, warnings of libraries, and the traceback of an error.",
    ),
]


ONE_SOURCE = {"allow_extra_args": True}
"""Context settings of a command that calls `check_one`."""


@contextmanager
def executor_of(name: str | None, memory: str | None, console: ConsoleProgress) -> Iterator[Executor | None]:
    """Open the executor of `--executor` and `--memory`; None where no flag names one.

    Raises:
        typer.BadParameter: the name or the memory is not of the expected form.
    """
    if name is None and memory is None:
        yield None
        return
    from retrieval.distributed.executors import check_executor, open_executor
    from retrieval.errors import ConfigError

    try:
        check_executor(name or "serial", memory)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
    with open_executor(name or "serial", memory) as executor:
        console.note(getattr(executor, "note", ""))
        yield executor


def training_settings(settings: Settings, kind: type[Record], recipe: str | None, **flags: Any) -> Record:
    """Return the settings of a training: flags, then the recipe, then the settings file, then defaults.

    Args:
        settings: content of the settings file.
        kind: record of the settings.
        recipe: value of `--recipe`.
        flags: values of other flags by the name of their setting; None where the user gave none.

    Raises:
        ConfigError: the recipe is not readable, or a setting is unknown or out of range.
    """
    from retrieval.training.recipes import read_recipe

    values = read_recipe(recipe) if recipe else {}
    return settings.make(kind, **values | {name: v for name, v in flags.items() if v is not None})


def refuse_for_trees(**flags: Any) -> None:
    """Refuse flags that only a network takes.

    Args:
        flags: values by name; None where the user gave none.

    Raises:
        typer.BadParameter: one is given.
    """
    for name, value in flags.items():
        if value is not None:
            flag = "--" + name.replace("_", "-")
            raise typer.BadParameter(f"{flag} is for networks. Expected none with --method trees.")


def forest_result(report: Any) -> tuple[dict[str, Any], str]:
    """Return the report of a training of trees for `print_result`: values and template."""
    template = "{out}: {trees} trees on {sample} of {pixels} labelled pixels in {seconds:.0f} s"
    if report.miou is not None:
        template += "; on {validation} validation scenes IoU {miou:.3f}, MCC {mcc:.3f}"
    return asdict(report) | {"out": str(report.out)}, template


def split_names(names: str | None) -> tuple[str, ...] | None:
    """Return the names in "B04,B03 B02", or None where none are given.

    Raises:
        typer.BadParameter: the text holds only separators.
    """
    if names is None:
        return None
    split = tuple(name for name in re.split(r"[,\s]+", names) if name)
    if not split:
        raise typer.BadParameter(f"no band name in {names!r}. Expected names such as B04,B03,B02.")
    return split


def check_one(context: typer.Context) -> None:
    """Refuse several inputs, which a command receives where the shell has expanded a pattern.

    Raises:
        typer.BadParameter: there is more than one input.
    """
    if context.args:
        raise typer.BadParameter(
            f"received {1 + len(context.args)} inputs, the second {context.args[0]}; expected one. Name "
            "their folder, or quote the pattern so that the shell does not expand it."
        )
