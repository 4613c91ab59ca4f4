"""`retrieve export`: an index as STAC or GeoParquet, an encoder as ONNX."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from retrieval.cli.app import command, elapsed_s, import_tensorflow, print_result
from retrieval.cli.console import ConsoleProgress
from retrieval.cli.options import INDEX, AsJson, Overwrite, Quiet, Verbose

ExportKind = Literal["stac", "geoparquet", "onnx"]
"""Formats of an export."""


@command(
    "export",
    "retrieve export scenes.index --as stac --out catalogue",
    "retrieve export scenes.index --as geoparquet --out vectors.parquet",
    "retrieve export scenes.index --as geoparquet --parts --out parts.parquet",
    "retrieve export --as onnx --encoder siamese --out siamese.onnx",
    "retrieve export --as onnx --model model --out model.onnx",
)
def export(
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder (stac) or file (.parquet, .onnx) to write.")
    ],
    as_: Annotated[
        ExportKind,
        typer.Option(
            "--as",
            help="stac: a catalogue of the images; geoparquet: one row per window; onnx: the encoder.",
        ),
    ],
    index: Annotated[
        Path, typer.Argument(metavar="INDEX", help="Index folder that `retrieve index` wrote.")
    ] = INDEX,
    encoder: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            show_default="the index's",
            help="For onnx: export this encoder; no index is needed.",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            show_default="none",
            help="For onnx: export the network that `segment train` wrote; no index is needed.",
        ),
    ] = None,
    floats: Annotated[
        Literal["float32", "float16"],
        typer.Option(help="For geoparquet: number type of the vectors."),
    ] = "float32",
    parts: Annotated[
        bool, typer.Option("--parts", help="For geoparquet: one row per part of the parts index.")
    ] = False,
    source_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="For stac: base URL of the images, which the items link to."),
    ] = None,
    license_: Annotated[
        str, typer.Option("--license", metavar="SPDX", help="For stac: licence of the vectors.")
    ] = "other",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write an index as a STAC catalogue or GeoParquet file, or an encoder or a segmentation network as ONNX.

    The catalogue also holds the vectors, one GeoParquet file per item, and the encoder; its links are
    relative. ONNX needs the extra `onnx`; exported networks accept images of any size.
    """
    if model is not None and (as_ != "onnx" or encoder is not None):
        raise typer.BadParameter("--model needs --as onnx, and no --encoder.")
    if encoder is not None and as_ != "onnx":
        raise typer.BadParameter(f"--encoder needs --as onnx; --as {as_} exports the vectors of INDEX.")
    if parts and as_ != "geoparquet":
        raise typer.BadParameter(f"--parts needs --as geoparquet; got --as {as_}.")
    import_tensorflow()
    start = time.monotonic()
    with ConsoleProgress(quiet, verbose=verbose) as console:
        if model is not None:
            report, template = _export_network(model, out, overwrite)
        elif as_ == "onnx":
            report, template = _export_encoder(index, encoder, out, overwrite)
        else:
            write = _vector_writer(as_, floats, source_url, license_, parts)
            rows = "parts" if parts else "windows"
            report, template = _export_vectors(index, console, write, out, overwrite, rows)
        for note in report.pop("notes", ()):
            console.note(note)
    result = {"out": str(report.pop("path")), "as": as_, **report, "seconds": elapsed_s(start)}
    print_result(as_json, result, template)


def _export_encoder(
    index: Path, encoder: str | None, out: Path, overwrite: bool
) -> tuple[dict[str, Any], str]:
    from retrieval.export.onnx import export_onnx
    from retrieval.models.encoder import load_encoder
    from retrieval.pipeline import open_index

    model = load_encoder(encoder) if encoder else open_index(index, device="cpu").folder.encoder
    template = "{out}: encoder {encoder}, vectors of {dim}, at most {largest_difference:.1g} from Keras's"
    return asdict(export_onnx(model, out, overwrite=overwrite)), template


def _export_network(model: Path, out: Path, overwrite: bool) -> tuple[dict[str, Any], str]:
    """Export the network of a segmentation; its file takes inputs of any size."""
    from retrieval.errors import ModelError
    from retrieval.export.onnx import export_network
    from retrieval.tasks.forest import Forest
    from retrieval.tasks.segment.model import load_segmenter

    segmenter = load_segmenter(model)
    if isinstance(segmenter.network, Forest):
        raise ModelError(
            f"{model}: a model of trees. Expected a network. Train one with `--method network`, or read "
            "forest.npz with NumPy."
        )
    d = segmenter.description
    facts = {"classes": json.dumps(d.classes), "bands": json.dumps(d.bands), "dates": d.dates}
    facts |= {"full_scale": segmenter.full_scale, "temperature": d.temperature, "threshold": d.threshold}
    report = export_network(segmenter.network, out, d.unit_px, facts, overwrite=overwrite)
    difference = "logits at most {largest_difference:.1g} from Keras's"
    return asdict(report), "{out}: sides are multiples of {unit_px} px, " + difference


def _vector_writer(
    as_: ExportKind, floats: Any, source_url: str | None, license_: str, parts: bool
) -> Callable[..., Any]:
    """Return the export function with the arguments of its format."""
    from retrieval.export.geoparquet import export_parts, export_vectors
    from retrieval.export.stac import export_stac

    if as_ == "stac":
        return partial(export_stac, source_url=source_url, license=license_)
    return partial(export_parts if parts else export_vectors, floats=floats)


def _export_vectors(
    index: Path, console: ConsoleProgress, write: Callable[..., Any], out: Path, overwrite: bool, rows: str
) -> tuple[dict[str, Any], str]:
    """Export the vectors of windows or parts; `rows` names these in the report."""
    from retrieval.pipeline import open_index

    folder = open_index(index, device="cpu").folder
    report = asdict(write(folder, out, overwrite=overwrite, progress=console))
    return report, f"{{out}}: {{rows}} {rows}" + (" of {items} images" if "items" in report else "")
