"""Errors and warnings of every command: one sentence on standard error, and an exit code."""

from __future__ import annotations

import errno
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from click import ClickException

from retrieval.cli.console import RED, YELLOW, coloured
from retrieval.errors import DependencyError
from tfrecords.errors import RetrieveError, RetrieveWarning, said_by

RESUMABLE = ("classify train", "demo", "index", "ingest", "ingest-stac", "labels download", "train")
"""Commands that keep finished parts when they are interrupted."""
BACKENDS = {"tensorflow": "TensorFlow", "faiss": "FAISS"}
"""Names of the packages that the extras `cpu` and `gpu` install, by module."""
LABELS = ("geopandas", "mercantile", "pyogrio", "pyproj")
"""Modules that the extra `labels` installs."""
NO_MEMORY = (
    *("MemoryError", "bad_alloc", "failed to map segment", "can't start new thread"),
    *("ResourceExhausted", "insufficient memory", "No space for"),  # GDAL's codecs of TIFF
)
"""What errors say where the system gives no memory: their class, or a library's words."""
VERBOSE = "retrieval.verbose"
"""Key of a context's `meta`: true where `--verbose` was given."""


@contextmanager
def error_handling(context: typer.Context) -> Iterator[None]:
    """Print the errors and warnings of a command; an error that a user can meet shows no traceback."""
    try:
        with _printed_warnings(context), _redacted_tracebacks():
            yield
    except KeyboardInterrupt as stop:
        # "retrieve labels download" -> "labels download"
        command = f"{context.command_path} {context.invoked_subcommand}".partition(" ")[2]
        typer.echo(str(stop) or _resume_hint(command), err=True)
        raise typer.Exit(130) from None
    except ModuleNotFoundError as error:
        module = (error.name or "").split(".")[0]
        if module in LABELS:
            _fail(f"{module} is not installed. Run pip install 'patch-retrieval[labels]'.", context)
        if module not in BACKENDS:
            raise
        _fail(str(missing_backend(module)), context)
    except RetrieveError as error:
        _fail(str(error), context)
    except Exception as error:
        sentence = _system_error(error)
        if sentence is None:
            raise
        _fail(sentence, context)


def _system_error(error: Exception) -> str | None:
    """Return what to say where the system refuses memory or a file; None for other errors."""
    no_memory = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if no_memory or any(mark in said_by(error) for mark in NO_MEMORY):
        return _out_of_memory(error)
    if not isinstance(error, OSError) or error.errno == errno.EPIPE:
        return None  # EPIPE: the reader of `retrieve score | head` has left
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or _own_words(error)}"


def _own_words(error: Exception) -> BaseException:
    """Return the cause of an error of rasterio that only points to it, else the error."""
    return error.__cause__ or error if "previous exception" in str(error) else error


def _out_of_memory(error: Exception) -> str:
    reason = " ".join(str(_own_words(error)).split())[:160] or type(error).__name__
    return f"out of memory ({reason}). Process less at a time, or use a machine with more memory."


def missing_backend(module: str) -> DependencyError:
    """Return the error that names the extra of a missing module of `BACKENDS`."""
    return DependencyError(
        f"{BACKENDS[module]} is not installed. Run pip install 'patch-retrieval[cpu]', or "
        "'patch-retrieval[gpu]' on a machine with an NVIDIA GPU."
    )


def _resume_hint(command: str) -> str:
    if command in RESUMABLE:
        return f"interrupted. Run the same `retrieve {command}` again to resume."
    return "interrupted. Nothing was written; earlier outputs are unchanged."


def _fail(sentence: str, context: typer.Context) -> NoReturn:
    if context.meta.get(VERBOSE):
        typer.echo(_redacted(traceback.format_exc()), err=True, nl=False)
    typer.echo(f"{coloured('error:', RED, sys.stderr)} {_redacted(sentence)}", err=True)
    raise typer.Exit(1) from None


def _redacted(text: str) -> str:
    """Return a text without signed addresses and passwords."""
    if not any(mark in text for mark in "?@="):
        return text
    from retrieval.ingest.redaction import redact_text

    return redact_text(text)


@contextmanager
def _redacted_tracebacks() -> Iterator[None]:
    """Print the traceback of an unexpected error where it holds a secret, but without it."""
    try:
        yield
    except (RetrieveError, OSError, MemoryError, ImportError, typer.Exit, typer.Abort, ClickException):
        raise
    except Exception:
        trace = traceback.format_exc()
        if _redacted(trace) == trace:
            raise
        typer.echo(_redacted(trace), err=True, nl=False)
        raise typer.Exit(1) from None


@contextmanager
def _printed_warnings(context: typer.Context) -> Iterator[None]:
    """Print our warnings, each once; warnings of libraries need `--verbose` or Python's `-W`."""
    python_handler, printed = warnings.showwarning, set[str]()

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, RetrieveWarning):
            if str(message) not in printed:
                printed.add(str(message))
                typer.echo(f"{coloured('warning:', YELLOW, sys.stderr)} {message}", err=True)
        elif sys.warnoptions or (context.meta.get(VERBOSE) and not issubclass(category, DeprecationWarning)):
            python_handler(_redacted(str(message)), category, *where, **more)

    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("default")  # `show` decides: --verbose is parsed later
        warnings.simplefilter("always", RetrieveWarning)
        warnings.showwarning = show
        yield
