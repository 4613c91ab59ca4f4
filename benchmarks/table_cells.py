"""Cells and rows of the tables of the documentation."""

from __future__ import annotations

from collections.abc import Sequence


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def interval(figure: dict[str, float] | None, signed: bool = False) -> str:
    """Return a figure with its interval."""
    if figure is None:
        return "–"
    form = "+.3f" if signed else ".3f"
    low, high = (format(figure[k], form) for k in ("low", "high"))
    return f"{figure['value']:{form}} [{low}, {high}]"


def plain(figure: dict[str, float] | None) -> str:
    """Return a figure without its interval."""
    return "–" if figure is None else f"{figure['value']:.3f}"
