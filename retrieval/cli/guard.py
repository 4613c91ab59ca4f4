"""What goes wrong becomes one sentence on standard error and an exit code, for every command alike."""

from __future__ import annotations

import errno
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from retrieval.cli.options import VERBOSE
from retrieval.cli.talk import RED, YELLOW, coloured
from retrieval.errors import DependencyError
from tfrecords.errors import RetrieveError, RetrieveWarning

GOES_ON = ("demo", "index", "ingest", "ingest-stac", "train")
"""Commands that keep what they finished when they are stopped."""
BACKENDS = {"tensorflow": "TensorFlow", "faiss": "FAISS"}
"""What the extras `cpu` and `gpu` install, by the module's name."""


class Commands(TyperGroup):
    """The group of all commands; an error that a user can meet never shows a traceback."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Run a command and translate what it raises."""
        try:
            with _warnings_told(ctx):
                return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            typer.echo(str(stop) or _how_to_go_on(ctx.invoked_subcommand), err=True)
            raise typer.Exit(130) from None
        except ModuleNotFoundError as error:
            module = (error.name or "").split(".")[0]
            if module not in BACKENDS:
                raise
            _fail(f"{missing(module)}", ctx)
        except RetrieveError as error:
            _fail(f"{error}", ctx)
        except MemoryError as error:
            _fail(f"out of memory ({error}): give less at a time, or more memory", ctx)
        except OSError as error:
            if error.errno == errno.EPIPE:  # `retrieve score | head`: nobody reads on
                raise
            where = f"{error.filename}: " if error.filename else ""
            _fail(f"{where}{error.strerror or error}", ctx)


def missing(module: str) -> DependencyError:
    """Say which extra installs a module of `BACKENDS`."""
    return DependencyError(
        f"{BACKENDS[module]} is not installed: pip install 'patch-retrieval[cpu]', or "
        "'patch-retrieval[gpu]' on a machine with an NVIDIA GPU"
    )


def _how_to_go_on(command: str | None) -> str:
    if command in GOES_ON:
        return f"stopped: run the same `retrieve {command}` again, and it goes on where it was"
    return "stopped: nothing was written, and what was there before is whole; run the same command again"


def _fail(sentence: str, context: typer.Context) -> NoReturn:
    if context.meta.get(VERBOSE):
        typer.echo(traceback.format_exc(), err=True, nl=False)
    typer.echo(f"{coloured('error:', RED, sys.stderr)} {sentence}", err=True)
    raise typer.Exit(1) from None


@contextmanager
def _warnings_told(context: typer.Context) -> Iterator[None]:
    """Print our warnings as sentences, each once; those of libraries with `--verbose` or Python's `-W`."""
    former, printed = warnings.showwarning, set[str]()

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, RetrieveWarning):
            if str(message) not in printed:
                printed.add(str(message))
                typer.echo(f"{coloured('warning:', YELLOW, sys.stderr)} {message}", err=True)
        elif sys.warnoptions or (context.meta.get(VERBOSE) and not issubclass(category, DeprecationWarning)):
            former(message, category, *where, **more)

    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("default")  # whether they are shown is known when they come
        warnings.simplefilter("always", RetrieveWarning)
        warnings.showwarning = show
        yield
