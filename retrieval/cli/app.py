"""The program: its commands, the flags before a command, and how a command prints its result.

A command's module is imported when the command is used, so that `retrieve --help` imports Typer alone.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command_from_info
from typer.models import CommandInfo

from retrieval.cli.error_handling import error_handling
from retrieval.errors import MemoryLimitError

COMMANDS = {
    "index": ("index", "Index the windows of images"),
    "query": ("query", "Locate patches in an index"),
    "score": ("query", "Score a submission against the answers"),
    "report": ("report", "Write an HTML report of the matches"),
    "ingest": ("ingest", "Turn Sentinel-2 products or GeoTIFFs into images, series or a challenge"),
    "ingest-stac": ("ingest_stac", "Download dated GeoTIFFs from a STAC catalogue"),
    "train": ("train", "Train an encoder on time series"),
    "calibrate": ("calibrate", "Fit the confidence of an index to known answers"),
    "export": ("export", "Write an index or an encoder in other tools' formats"),
    "classify explore": ("classify", "Show labelled and unlabelled images on one page"),
    "classify train": ("classify", "Train a classifier of images from a few labels"),
    "classify predict": ("classify", "Classify images, or each pixel of a scene"),
    "classify evaluate": ("classify", "Measure a classifier on labelled images, with a page"),
    "segment train": ("segment", "Train a segmentation network from images and masks"),
    "segment predict": ("segment", "Write the class of each pixel of scenes or tiles"),
    "segment evaluate": ("segment", "Measure class maps on masks"),
    "labels cover": ("labels", "List the XYZ tiles of an area, split into train, val and test"),
    "labels download": ("labels", "Download the tiles of a cover"),
    "labels check": ("labels", "Check that images and masks fit each other"),
    "labels rasterize": ("labels", "Burn vector labels into masks on the pixels of images"),
    "labels vectorize": ("labels", "Turn class maps into polygons"),
    "labels compare": ("labels", "Compare a class map with labels, and rank the disagreement"),
    "labels subset": ("labels", "Copy or link selected tiles or files"),
    "change detect": ("change", "Map what differs between two dates"),
    "change train": ("change", "Train a network of change on labelled places"),
    "change evaluate": ("change", "Measure maps of change against labels"),
    "demo": ("setup", "Run a small generated challenge"),
    "config": ("setup", "Print all settings as a retrieve.toml"),
    "models": ("setup", "List the models in the package"),
    "doctor": ("setup", "Check the installation"),
}
"""Module and summary of each command, in the order of the help; the first of two words is a group."""
START_MB = (("RLIMIT_DATA", "-d", 1200), ("RLIMIT_AS", "-v", 3700))
"""Limits, their flags of `ulimit`, and what TensorFlow, Keras and FAISS take when they start, in MB."""
GROUPS = {
    "change": "Find what differs between two dates of a place",
    "classify": "Classify images by a few labelled ones",
    "segment": "Map the classes of masks over images",
    "labels": "Prepare, convert and judge vector labels and masks",
}
"""Summary of each group of commands."""
_TENSORFLOW_CHATTER = re.compile(r"WARNING: All log messages before absl|[IW]\d{4} ")
"""Lines of TensorFlow's log that report no error."""
KEEPS_TENSORFLOW_THREADS = ("change", "classify", "doctor", "segment", "train")
"""Commands that do not limit TensorFlow's threads."""


class Commands(TyperGroup):
    """A group of commands; it imports a command's module on first use."""

    prefix = ""
    """Words before the names of the commands in `COMMANDS`: "" or the group and a blank."""

    def summaries(self) -> dict[str, str]:
        """Return the summary of each command and group, in the order of the help."""
        names = (name.removeprefix(self.prefix) for name in COMMANDS if name.startswith(self.prefix))
        words = dict.fromkeys(name.split()[0] for name in names)
        return {word: _summary(self.prefix + word) for word in words}

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Return the names of the commands, in the order of the help."""
        return list(self.summaries())

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]
        """Return a command, or None where the name is unknown."""
        if cmd_name in self.summaries() and cmd_name not in self.commands:
            self.commands[cmd_name] = _load(self.prefix + cmd_name)
        return self.commands.get(cmd_name)

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:  # type: ignore[override]
        """Return the command that the arguments name; an unknown name lists similar ones."""
        if args[0] not in self.summaries():
            for name in self.summaries():
                self.get_command(ctx, name)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]
        """Write the table of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self.summaries().items()))

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Run a command and translate its errors."""
        with error_handling(ctx):
            return super().invoke(ctx)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def command(name: str, *examples: str, **settings: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as a command.

    Args:
        name: a key of `COMMANDS`.
        examples: at least two command lines for the end of the help.
        settings: further arguments of `typer.Typer.command`.
    """
    epilog = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in examples)
    return app.command(name, short_help=COMMANDS[name][1], epilog=epilog, **settings)


def _summary(name: str) -> str:
    """Return the summary of a command or a group."""
    return GROUPS[name] if name in GROUPS else COMMANDS[name][1]


def _load(name: str) -> Any:
    """Return a command, whose module is imported, or a group."""
    if name in GROUPS:
        group = Commands(
            name=name,
            help=f"{GROUPS[name]}.",
            short_help=GROUPS[name],
            no_args_is_help=True,
            rich_markup_mode=None,
        )
        group.prefix = f"{name} "
        return group
    loaded = get_command_from_info(_command_info(name), pretty_exceptions_short=False, rich_markup_mode=None)
    loaded.name = name.split()[-1]
    return loaded


def _command_info(name: str) -> CommandInfo:
    import_module(f"retrieval.cli.{COMMANDS[name][0]}")
    return next(info for info in app.registered_commands if info.name == name)


def all_commands() -> list[CommandInfo]:
    """Import every command and return what each declares, in the order of the help."""
    return [_command_info(name) for name in COMMANDS]


def _show_version(requested: bool) -> None:
    if requested:
        from tfrecords.artifacts.manifest import created_by

        typer.echo(created_by())
        raise typer.Exit


@app.callback()
def retrieve(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version and exit."),
    ] = False,
) -> None:
    """Find where a Sentinel-2 patch comes from: in which image, and at which pixel.

    Without arguments, index, query and score use the challenge's file names in the working folder.
    Results go to files and standard output, progress and notes to standard error.
    """
    from tfrecords.storage import check_memory

    check_memory()
    # TensorFlow reads it once, when it is first imported; 2 leaves its errors.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if context.invoked_subcommand not in KEEPS_TENSORFLOW_THREADS:
        from retrieval.kernels.executors import limit_tf_threads

        limit_tf_threads()


def check_memory_limits() -> None:
    """Refuse limits of memory under which TensorFlow and FAISS cannot start.

    Raises:
        MemoryLimitError: a limit is lower than `START_MB`.
    """
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return
    for name, flag, needed in START_MB:
        allowed = resource.getrlimit(getattr(resource, name))[0]
        if allowed != resource.RLIM_INFINITY and allowed < needed * 1e6:
            raise MemoryLimitError(
                f"memory limit: {allowed / 1e6:.0f} MB (ulimit {flag}). TensorFlow and FAISS need {needed} "
                f"MB to start. Raise it with ulimit {flag} {needed * 1_000_000 // 1024} or more."
            )


def import_tensorflow() -> None:
    """Import TensorFlow without its start-up log, which no setting of TensorFlow prevents.

    Nothing happens where Keras uses another backend or TensorFlow is missing; later steps report that.

    Raises:
        MemoryLimitError: the limits of the process are too low. The libraries would end it without a word.
    """
    if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
        return
    check_memory_limits()
    with tempfile.TemporaryFile() as log, suppress(ModuleNotFoundError):
        sys.stderr.flush()
        terminal = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            log.seek(0)
            lines = log.read().decode(errors="replace").splitlines(keepends=True)
            sys.stderr.write("".join(line for line in lines if not _TENSORFLOW_CHATTER.match(line)))


def elapsed_s(start: float) -> float:
    """Return the seconds since a moment of `time.monotonic`, to a tenth."""
    return round(time.monotonic() - start, 1)


def print_result(as_json: bool, result: Mapping[str, Any], template: str) -> None:
    """Print a command's result on standard output.

    Args:
        as_json: print the whole mapping as one JSON object.
        result: values by name.
        template: a line for people, with names of `result` in braces.
    """
    typer.echo(json.dumps(result) if as_json else template.format(**result))
