"""HTML and SVG that escape what they are given: names out of files are anybody's.

Text becomes markup in one place, `tag`, and only what `tag` made is taken for markup again. There is
no template language to keep up to date, and none whose escaping could be forgotten.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

_VOID = {"br", "img", "input", "link", "meta"}
_PYTHON_NAMES = {"class_": "class"}


class Markup(str):
    """Text that is HTML or SVG already."""

    __slots__ = ()


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """One element.

    Args:
        name: the element's; never out of a file.
        children: what is in it: `Markup` as it is, None left out, all else as escaped text.
        attributes: `class_` for the word that Python keeps, `_` for `-`. None and False are left out, True
            stands without a value, numbers are written short, and all values are escaped.

    Returns:
        The element.
    """
    shown = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{shown}>")
    return Markup(f"<{name}{shown}>{join(children)}</{name}>")


def join(parts: Iterable[Any], between: str = "") -> Markup:
    """Parts behind each other, escaped where they are no markup; None is left out."""
    return Markup(between.join(text(part) for part in parts if part is not None))


def text(part: Any) -> Markup:
    """What a part is as markup."""
    return part if isinstance(part, Markup) else Markup(escape(str(part)))


def number(value: float) -> str:
    """A coordinate, to two decimals and no longer than it must be."""
    shown = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if shown == "-0" else shown


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Markup:
    """A table whose first column names the rows."""
    cells = [
        tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in rest)) for first, *rest in rows
    ]
    return tag(
        "div",
        tag(
            "table",
            tag("caption", caption),
            tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in head))),
            tag("tbody", *cells),
        ),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=caption,
    )


def folded(summary: str, *children: Any) -> Markup:
    """What is shown on demand."""
    return tag("details", tag("summary", summary), *children)


def data_uri(kind: str, content: bytes) -> str:
    """Bytes as an address that needs no network."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def digest(content: str) -> str:
    """The hash by which a Content-Security-Policy lets one script or style in, and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode("utf-8")).digest()).decode("ascii")


def _attribute(key: str, value: Any) -> str:
    if value is None or value is False:
        return ""
    name = _PYTHON_NAMES.get(key, key.replace("_", "-"))
    if value is True:
        return f" {name}"
    return f' {name}="{escape(number(value) if isinstance(value, float) else str(value))}"'
