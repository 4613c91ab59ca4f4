"""Commands that give: export, to other tools; config, the knobs. Each parses, makes one call and prints."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from retrieval.cli.app import app, import_tensorflow, since, tell
from retrieval.cli.options import INDEX, AsJson, ConfigFile, Overwrite, Quiet, Verbose, examples
from retrieval.cli.talk import Talk
from retrieval.config.settings import Settings, page, read_settings, resolved

ExportKind = Literal["stac", "geoparquet", "onnx"]
"""What an export can be."""


@app.command(
    short_help="An index or an encoder to other tools' formats",
    epilog=examples(
        "retrieve export scenes.index --as stac --out catalogue",
        "retrieve export scenes.index --as geoparquet --out vectors.parquet",
        "retrieve export --as onnx --encoder siamese --out siamese.onnx",
    ),
)
def export(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder (stac) or file (.parquet, .onnx) to write.")
    ],
    as_: Annotated[
        ExportKind,
        typer.Option(
            "--as",
            help="stac: a catalogue of the images; geoparquet: a file, a row a window; onnx: the encoder.",
        ),
    ],
    index: Annotated[
        Path, typer.Argument(metavar="INDEX", help="Folder that `retrieve index` wrote.")
    ] = INDEX,
    encoder: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            show_default="the index's",
            help="For onnx: this encoder; no index is needed then.",
        ),
    ] = None,
    floats: Annotated[
        Literal["float32", "float16"],
        typer.Option(help="For geoparquet: type of the vectors' numbers."),
    ] = "float32",
    source_url: Annotated[
        str | None, typer.Option(metavar="URL", help="For stac: where the images are; items link to them.")
    ] = None,
    license_: Annotated[
        str, typer.Option("--license", metavar="SPDX", help="For stac: licence of the vectors.")
    ] = "other",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write an index as STAC items or as GeoParquet, or its encoder as ONNX, for other tools.

    The catalogue holds the vectors too, a GeoParquet file an item, and the encoder; its links are relative.
    ONNX needs the extra `onnx`; onnxruntime then gives the same vectors, for images of any size.
    """
    if encoder is not None and as_ != "onnx":
        raise typer.BadParameter(f"--encoder is for --as onnx; --as {as_} takes the vectors of INDEX")
    import_tensorflow()
    begun = time.monotonic()
    with Talk(quiet, verbose=verbose) as talk:
        if as_ == "onnx":
            report, text = _onnx(index, encoder, out, overwrite)
        else:
            report, text = _vectors(index, talk, _writer(as_, floats, source_url, license_), out, overwrite)
        for note in report.pop("notes", ()):
            talk.note(note)
    tell(as_json, {"out": str(report.pop("path")), "as": as_, **report, "seconds": since(begun)}, text)


@app.command(
    short_help="All knobs, as a retrieve.toml",
    epilog=examples(
        "retrieve config --defaults > retrieve.toml", "retrieve config --config fast.toml --json"
    ),
)
def config(
    defaults: Annotated[bool, typer.Option("--defaults", help="As they are where no file is read.")] = False,
    config_file: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Print all knobs with what they mean, as the commands take them here: the file's values, else defaults.

    In the working folder, retrieve.toml is read by index, query, train and demo without being named.
    """
    settings = Settings() if defaults else read_settings(config_file)
    typer.echo(json.dumps(resolved(settings)) if as_json else page(settings), nl=as_json)


def _onnx(index: Path, encoder: str | None, out: Path, overwrite: bool) -> tuple[dict[str, Any], str]:
    from retrieval.export.onnx import export_onnx
    from retrieval.models.encoder import load_encoder
    from retrieval.pipeline import open_index

    made_by = load_encoder(encoder) if encoder else open_index(index, device="cpu").folder.encoder
    text = "{out}: encoder {encoder}, vectors of {dim}, at most {largest_difference:.1g} from Keras's"
    return asdict(export_onnx(made_by, out, overwrite=overwrite)), text


def _writer(as_: ExportKind, floats: Any, source_url: str | None, license_: str) -> Callable[..., Any]:
    """The function that writes, with what it takes besides the index."""
    from functools import partial

    from retrieval.export.geoparquet import export_vectors
    from retrieval.export.stac import export_stac

    if as_ == "stac":
        return partial(export_stac, source_url=source_url, license=license_)
    return partial(export_vectors, floats=floats)


def _vectors(
    index: Path, talk: Talk, write: Callable[..., Any], out: Path, overwrite: bool
) -> tuple[dict[str, Any], str]:
    from retrieval.pipeline import open_index

    store = open_index(index, device="cpu").folder
    report = asdict(write(store, out, overwrite=overwrite, progress=talk))
    return report, "{out}: {rows} windows" + (" of {items} images" if "items" in report else "")
