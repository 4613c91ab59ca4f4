"""`retrieve index`: index images, add images to an index, remove images from it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retrieval.cli.app import command, elapsed_s, import_tensorflow, print_result
from retrieval.cli.console import ConsoleProgress
from retrieval.cli.options import (
    INDEX,
    ONE_SOURCE,
    AsJson,
    Bands,
    ConfigFile,
    DeviceOption,
    Encoder,
    ExecutorOption,
    ImagesArgument,
    Memory,
    Overwrite,
    Quiet,
    UnitsOption,
    Verbose,
    check_one,
    executor_of,
    split_names,
)
from retrieval.config import PATCH_PX, IndexConfig, IndexKind
from retrieval.config.settings import read_settings
from tfrecords.challenge import IMAGES

if TYPE_CHECKING:
    from retrieval.index.update import Change
    from retrieval.pipeline import Index
    from retrieval.types import StoredImage
    from tfrecords.artifacts import Manifest
    from tfrecords.read import ImageSource

NAMED = 5
"""Ranges of ids that a line names."""


@command(
    "index",
    "retrieve index scenes/ --bands B04,B03,B02 --out scenes.index",
    "retrieve index new-scenes/ --out scenes.index --add",
    context_settings=ONE_SOURCE,
)
def index(
    context: typer.Context,
    images: ImagesArgument = IMAGES,
    out: Annotated[Path, typer.Option("--out", "-o", help="Index folder to write.")] = INDEX,
    encoder: Encoder = None,
    add: Annotated[
        bool,
        typer.Option(
            "--add",
            help="Add IMAGES to the index in --out, or replace the same scenes; only these are embedded.",
        ),
    ] = False,
    remove: Annotated[
        list[str] | None,
        typer.Option(metavar="ID|NAME", help="Remove the image with this id or file name; repeatable."),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="With --add or --remove: discard an unfinished change.")
    ] = False,
    stride: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=PATCH_PX,
            show_default=str(IndexConfig.stride_px),
            help="Distance between indexed windows, in pixels.",
        ),
    ] = None,
    kind: Annotated[
        IndexKind | None,
        typer.Option(
            show_default=IndexConfig.kind,
            help="exact: brute force; fast: quantized codes, then re-ranking; ivf: inverted lists, then "
            "re-ranking; auto: chosen by index size.",
        ),
    ] = None,
    shards: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default="one folder",
            help="Write this many index folders, joined by a file. Each is a task of --executor.",
        ),
    ] = None,
    bands: Bands = None,
    units: UnitsOption = None,
    device: DeviceOption = "auto",
    executor: ExecutorOption = None,
    memory: Memory = None,
    config: ConfigFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Embed the windows of images and write an index folder, which holds all that a query needs.

    An interrupted run resumes. --add and --remove change a finished index; it stays usable until the change
    is complete.
    """
    check_one(context)
    _check_flags(context, add, remove or [])
    names = split_names(bands)
    settings = read_settings(config)
    import_tensorflow()
    from retrieval.distributed.shard_changes import add_to_index, remove_from_index
    from retrieval.pipeline import build_index

    start, change = time.monotonic(), None
    with ConsoleProgress(quiet, verbose=verbose) as console:
        common: dict[str, Any] = {"device": device, "progress": console}
        if add or remove:
            ignored = settings.note(IndexConfig)
            console.note(ignored and f"{ignored}: ignored, the index keeps the settings it was built with")
        if remove:
            change = remove_from_index(out, remove, restart=restart, **common)
        elif add:
            source = _open_images(images, names, units, console)
            common |= {"encoder": encoder, "stride_px": stride, "kind": kind}
            change = add_to_index(source, out, restart=restart, **common)
            outdated = f"ids {_ids_text(change.outdated)}: their file no longer holds them"
            console.note(f"{outdated}; --remove takes them out" if change.outdated else "")
        else:
            index_config = settings.make(IndexConfig, stride_px=stride, kind=kind)
            console.note(settings.note(IndexConfig))
            console.detail(f"index: {index_config.to_dict()}")
            source = _open_images(images, names, units, console)
            common |= {"encoder": encoder, "config": index_config}
            with executor_of(executor, memory, console) as runner:
                built = build_index(
                    source, out, overwrite=overwrite, executor=runner, shards=shards, **common
                )
    if change:
        _print_change(as_json, out, change, start)
    else:
        _print_index(as_json, out, built, start)


def _check_flags(context: typer.Context, add: bool, remove: Sequence[str]) -> None:
    """Refuse flags that exclude each other.

    Raises:
        typer.BadParameter: `--add` with `--remove`, `--overwrite` with either, `--restart` without both, or
            settings of a new index with `--remove`.
    """

    def given(*names: str) -> list[str]:
        sources = {name: context.get_parameter_source(name) for name in names}
        return [name for name, source in sources.items() if getattr(source, "name", "DEFAULT") != "DEFAULT"]

    if add and remove:
        raise typer.BadParameter("--add and --remove exclude each other. Run one after the other.")
    if (add or remove) and given("overwrite"):
        raise typer.BadParameter(
            "--overwrite replaces a whole index; --add and --remove change one. "
            "To discard an unfinished change, pass --restart."
        )
    if given("restart") and not (add or remove):
        raise typer.BadParameter("--restart needs --add or --remove. To replace an index, pass --overwrite.")
    if (add or remove) and given("executor", "memory", "shards"):
        raise typer.BadParameter("--executor, --memory and --shards serve a new index. Leave them out.")
    unused = given("images", "encoder", "stride", "kind", "bands", "units")
    if remove and unused:
        raise typer.BadParameter(f"--remove takes images out of --out. Leave out {', '.join(unused)}.")


def _open_images(
    images: str, bands: Sequence[str] | None, units: str | None, console: ConsoleProgress
) -> ImageSource:
    """Open images, and print the units and bands that were inferred."""
    from tfrecords.read import read_images

    source = read_images(images, bands=bands, units=units)
    console.note(source.note)
    return source


def _recall_text(recall: Mapping[str, Any] | None) -> str:
    """Return the measured recall for people; empty for exact search."""
    if recall is None:
        return ""
    at_1, at_20 = recall["recall_at_1"], recall["recall_at_20"]
    return f"; recall {at_1:.1%} of the nearest window, {at_20:.1%} of the nearest 20"


def _print_index(as_json: bool, out: Path, built: Index, start: float) -> None:
    from retrieval.index.without_windows import as_records

    vectors, manifest = built.folder.vectors, built.folder.manifest
    recall = manifest.extra.get("recall")
    result: dict[str, Any] = {
        "index": str(out),
        **manifest.counts,
        "kind": vectors.kind,
        "encoder": built.folder.encoder.name,
    }
    result |= {"dim": vectors.dim, "recall": recall}
    result |= {"without_windows": as_records(built.folder.images, built.folder.without_windows)}
    result |= {"seconds": elapsed_s(start)}
    shards = " in {shards} shards" if "shards" in result else ""
    template = (
        f"{{index}}: {{images}} images, {{windows}} windows{shards}, {{kind}} search, encoder {{encoder}}"
    )
    print_result(as_json, result, template + _recall_text(recall))


def _print_change(as_json: bool, out: Path, change: Change, start: float) -> None:
    from retrieval.index.without_windows import as_records

    manifest, images, reasons = _state(out)
    recall = manifest.extra.get("recall")
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(change).items()}
    result: dict[str, Any] = {"index": str(out), **values, **manifest.counts}
    result |= {"kind": manifest.extra["kind"], "recall": recall}
    result |= {"without_windows": as_records(images, reasons)}
    result |= {"seconds": elapsed_s(start)}
    changes = [f"{len(change.added)} added (ids {_ids_text(change.added)})"] if change.added else []
    changes += (
        [f"{len(change.replaced)} replaced (ids {_ids_text(change.replaced)})"] if change.replaced else []
    )
    changes += [f"{len(change.removed)} removed"] if change.removed else []
    changes += [f"{change.present} already present"] if change.present else []
    counts = "; now {images} images, {windows} windows, {kind} search"
    print_result(as_json, result, "{index}: " + ", ".join(changes) + counts + _recall_text(recall))


def _state(out: Path) -> tuple[Manifest, Mapping[int, StoredImage], Mapping[int, str]]:
    """Return manifest and table of an index, and why images have no window."""
    from retrieval.distributed.shards import open_folder
    from retrieval.index.folder import SHARDS, TABLE, read_index_manifest, read_table
    from retrieval.index.without_windows import stored_reasons

    if (out / SHARDS).is_file():
        folder = open_folder(out, device="cpu", just_written=True)
        return folder.manifest, folder.images, folder.without_windows
    manifest = read_index_manifest(out, verify=False)
    images = {image.image_id: image for image in read_table(out / TABLE)}
    return manifest, images, stored_reasons(images, manifest.extra)


def _ids_text(ids: Sequence[int]) -> str:
    """Return ids as a short text: 3, 5 to 9."""
    runs: list[list[int]] = []
    for image_id in ids:
        if runs and runs[-1][-1] == image_id - 1:
            runs[-1][1:] = [image_id]
        else:
            runs.append([image_id])
    texts = [" to ".join(map(str, run)) for run in runs[:NAMED]]
    return ", ".join(texts) + (", ..." if len(runs) > NAMED else "")
