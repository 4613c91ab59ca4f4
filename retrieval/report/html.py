"""The frame of all HTML pages: a self-contained file with the same head, style and footer."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retrieval.errors import ConfigError
from retrieval.report.cards import SIGNS, confidence_text
from retrieval.report.charts import KIND_NAMES
from tfrecords.artifacts import check_free, writing_file
from tfrecords.artifacts.manifest import created_by

ENDINGS = (".html", ".htm")
"""Endings of a page."""


def check_page(out: str | Path, overwrite: bool) -> None:
    """Refuse a page with another ending than `.html`, or one that exists.

    Raises:
        ConfigError: another ending.
        OutputExistsError: the file exists and `overwrite` is false.
    """
    if Path(out).suffix.lower() not in ENDINGS:
        raise ConfigError(f"{out}: the ending is {Path(out).suffix!r}. Expected .html.")
    check_free(out, overwrite=overwrite)


def write_html(out: str | Path, html: str, overwrite: bool) -> None:
    """Write a page as a whole.

    A path may hold bytes that are not UTF-8. Python keeps them as characters without an encoding, so they
    become `?`.

    Raises:
        OutputExistsError: the file exists and `overwrite` is false.
    """
    with writing_file(out, overwrite=overwrite) as temporary:
        temporary.write_text(html, encoding="utf-8", errors="replace", newline="\n")


def render_template(
    name: str, title: str, *, styles: Sequence[str] = (), script: str | None = None, **values: Any
) -> str:
    """Return the HTML of a template in `templates/`, in the frame and style of all pages.

    Args:
        name: file of the template; it extends `frame.html`.
        title: title and heading of the page.
        styles: files of further styles.
        script: file of the page's script; None for a page without one.
        values: what it shows; every text and attribute is escaped.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    loader = PackageLoader("retrieval.report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style, code = (
        Markup("").join(Markup(loader.get_source(environment, file)[0]) for file in files)
        for files in (("page.css", *styles), (script,) if script else ())
    )
    environment.filters |= {"digest": digest, "confidence": confidence_text}
    environment.globals |= {"signs": SIGNS, "kind_names": KIND_NAMES}
    shared = {"title": title, "style": style, "script": code, "generator": created_by()}
    return environment.get_template(name).render(shared, **values) + "\n"


def digest(content: str) -> str:
    """Return the hash by which a Content-Security-Policy allows one script or style and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(str(content).encode("utf-8")).digest()).decode("ascii")
