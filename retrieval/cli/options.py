"""The flags that commands share, spelled once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from retrieval.config import Device
from tfrecords.challenge import ANSWERS, IMAGES, PATCHES
from tfrecords.schema import Units

INDEX = Path("index")
"""Folder that `retrieve index` writes and `retrieve query` opens where none is named."""
SUBMISSION = Path("submission.csv")
"""File that `retrieve query` writes and `retrieve score` reads where none is named."""

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
        help="A .tfrecords file, an .npy array (n, h, w, bands), a chip as GeoTIFF, PNG or JPEG of 64 x 64 "
        "pixels or more, a folder of chips, or a quoted pattern such as 'chips/*.tif'.",
    ),
]
Bands = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        show_default="the file's names, else by count",
        help="Names of the bands in their order, separated by commas: B04,B03,B02.",
    ),
]
UnitsOption = Annotated[
    Units | None,
    typer.Option("--units", show_default="told from the file", help="What pixel values mean."),
]
IndexFolder = Annotated[Path, typer.Option("--index", "-i", help="Folder that `retrieve index` wrote.")]
Encoder = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        show_default="the shipped one",
        help="A shipped encoder, such as structure-tensor, or a .keras file.",
    ),
]
DeviceOption = Annotated[
    Device, typer.Option("--device", help="Where to compute; auto takes a GPU where there is one.")
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        envvar="RETRIEVE_CONFIG",
        show_envvar=False,
        show_default="retrieve.toml, where there is one",
        help="Knobs in TOML, as `retrieve config` prints them; flags come first. Also RETRIEVE_CONFIG.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that is there.")]
Seed = Annotated[int, typer.Option(min=0, help="Decides all that is drawn; the same seed, the same output.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Box = Annotated[
    str | None,
    typer.Option(
        "--bbox",
        metavar="W,S,E,N",
        help="Only this part: degrees of longitude and latitude.",
        show_default="all",
    ),
]
Dates = Annotated[
    str | None,
    typer.Option(
        "--dates",
        metavar="FROM/TO",
        help="Only these days, both in it: 2019-03/2019-09-15, 2021/, 2019-07.",
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
        help="Leave out what has more cloud by its metadata, over its whole tile.",
        show_default="take all",
    ),
]
HideSnow = Annotated[
    bool, typer.Option("--hide-snow", help="Hide snow and ice too, as cloud and its shadow are.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors and warnings.")]
VERBOSE = "retrieval.verbose"
"""Key under which a command's context tells the guard that `--verbose` was given."""


def _verbose(context: typer.Context, wanted: bool) -> bool:
    context.meta[VERBOSE] = wanted
    return wanted


Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        callback=_verbose,
        help="Say also which knobs are taken, what libraries warn of, and where an error arose.",
    ),
]


ONE_SOURCE = {"allow_extra_args": True}
"""Settings of a command that calls `check_one`."""


def split_names(names: str | None) -> tuple[str, ...] | None:
    """The names in "B04,B03 B02"; None where none are given.

    Raises:
        typer.BadParameter: there are only separators.
    """
    if names is None:
        return None
    found = tuple(name for name in re.split(r"[,\s]+", names) if name)
    if not found:
        raise typer.BadParameter(f"no name in {names!r}; expected names such as B04,B03,B02")
    return found


def check_one(context: typer.Context) -> None:
    """Refuse several inputs, which is what a command gets where the shell has replaced a pattern by names.

    Raises:
        typer.BadParameter: there are several.
    """
    if context.args:
        raise typer.BadParameter(
            f"{1 + len(context.args)} inputs, the second {context.args[0]}; expected one: name their folder, "
            "or put the pattern in quotes so that the shell leaves it alone"
        )


def examples(*lines: str) -> str:
    """The end of a command's help."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


__all__ = ["ANSWERS", "IMAGES", "INDEX", "PATCHES", "SUBMISSION"]
