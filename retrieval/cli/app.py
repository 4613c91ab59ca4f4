"""The program itself: its name, its version, its flags before a command; and how a result is printed."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any

import typer

from retrieval.cli.guard import Commands
from retrieval.kernels.executors import limit_tf_threads
from tfrecords.artifacts.manifest import created_by

_SMALL_TALK = re.compile(r"WARNING: All log messages before absl|[IW]\d{4} ")
"""Lines of TensorFlow's log that are neither errors nor anybody else's."""
OWN_THREADS = ("doctor", "train")
"""Commands that leave TensorFlow's threads as they find them."""

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(created_by())
        raise typer.Exit


@app.callback()
def retrieve(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version and stop."),
    ] = False,
) -> None:
    """This patch of Earth, seen on some day: in which image is it, and where?

    With no arguments, index, query and score take the challenge's file names in the working folder.
    Results go to files and standard output, progress and notes to standard error.
    """
    # TensorFlow reads it once, when it is first imported; 2 leaves its errors.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if context.invoked_subcommand not in OWN_THREADS:
        limit_tf_threads()


def import_tensorflow() -> None:
    """Import TensorFlow without what it says of itself meanwhile, which no setting of its own prevents.

    Where Keras is set to another backend, or there is no TensorFlow, nothing happens: who needs it, says so.
    """
    if os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
        return
    with tempfile.TemporaryFile() as said, suppress(ModuleNotFoundError):
        sys.stderr.flush()
        terminal = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            said.seek(0)
            text = said.read().decode(errors="replace")
            sys.stderr.write("".join(line for line in text.splitlines(True) if not _SMALL_TALK.match(line)))


def since(begun: float) -> float:
    """Seconds since a moment of `time.monotonic`, to a tenth."""
    return round(time.monotonic() - begun, 1)


def tell(as_json: bool, result: Mapping[str, Any], text: str) -> None:
    """Print a result.

    Args:
        as_json: all of it, for programs.
        result: what there is to say.
        text: a line for people, with the names of `result` in braces.
    """
    typer.echo(json.dumps(result) if as_json else text.format(**result))
