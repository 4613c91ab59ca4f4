"""What `retrieve index` does with `--add` and `--remove`: a finished index gets images, or loses some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from retrieval.cli.app import since, tell

if TYPE_CHECKING:
    from retrieval.index.update import Change


def check_change(context: typer.Context, add: bool, remove: Sequence[str]) -> None:
    """Refuse what does not go together.

    Raises:
        typer.BadParameter: both at once, or settings of a new index beside `--remove`.
    """
    if add and remove:
        raise typer.BadParameter("--add and --remove: do one after the other")
    given = [
        name
        for name in ("images", "encoder", "stride", "kind", "bands", "units")
        if getattr(context.get_parameter_source(name), "name", "DEFAULT") != "DEFAULT"
    ]
    if remove and given:
        raise typer.BadParameter(f"--remove takes images out of --out and needs no {', '.join(given)}")


def told_recall(recall: Mapping[str, Any] | None) -> str:
    """What a line for people says of the measured recall; nothing of exact search."""
    if recall is None:
        return ""
    at_1, at_20 = recall["recall_at_1"], recall["recall_at_20"]
    return f"; finds {at_1:.1%} of the nearest windows, {at_20:.1%} of the nearest 20"


def tell_change(as_json: bool, out: Path, change: Change, begun: float) -> None:
    """Print what became of the index."""
    from retrieval.index.folder import read_index_manifest

    manifest = read_index_manifest(out, verify=False)
    told = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(change).items()}
    result: dict[str, Any] = {"index": str(out), **told, **manifest.counts}
    result["kind"] = manifest.extra["kind"]
    recall = manifest.extra.get("recall")
    result |= {"recall": recall, "seconds": since(begun)}
    done = [f"{len(change.added)} added (ids {_span(change.added)})"] if change.added else []
    done += [f"{len(change.removed)} removed"] if change.removed else []
    done += [f"{change.present} there already"] if change.present else []
    now = "; now {images} images, {windows} windows, {kind} search" + told_recall(recall)
    tell(as_json, result, "{index}: " + ", ".join(done) + now)


def _span(ids: Sequence[int]) -> str:
    return str(ids[0]) if len(ids) == 1 else f"{ids[0]} to {ids[-1]}"
