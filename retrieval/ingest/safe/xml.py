"""Metadata in XML, which is not trusted: entities, document types and oversized files are errors."""

from __future__ import annotations

import datetime
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from xml.parsers import expat

from retrieval.ingest.safe.tree import XML_BYTES
from tfrecords.errors import ProductError

Elements = Mapping[str, Sequence[ElementTree.Element]]
"""All elements of a document by their name without namespace, in its order."""


def parse_xml(content: bytes, where: str) -> ElementTree.Element:
    """Parse untrusted XML: no document types, no entities, limited size.

    Args:
        content: the file, or its first `XML_BYTES` + 1 bytes.
        where: its name in messages.

    Raises:
        ProductError: it is damaged, too large, or declares a document type or entities.
    """

    def refuse(*_: object) -> None:
        raise ProductError(
            f"{where}: declares a document type or entities, which Sentinel-2 products never do. Download "
            "the product again"
        )

    if len(content) > XML_BYTES:
        raise ProductError(f"{where}: larger than {XML_BYTES >> 20} MB. Download the product again")
    checker = expat.ParserCreate()
    checker.StartDoctypeDeclHandler = refuse
    checker.EntityDeclHandler = refuse
    try:
        checker.Parse(content, True)
        return ElementTree.fromstring(content)
    except (expat.ExpatError, ElementTree.ParseError, LookupError, ValueError) as error:
        raise ProductError(f"{where}: damaged ({error}). Download the product again") from error


def by_name(root: ElementTree.Element) -> Elements:
    """Return all elements of a document by their name without namespace."""
    elements: dict[str, list[ElementTree.Element]] = {}
    for element in root.iter():
        elements.setdefault(element.tag.rpartition("}")[2], []).append(element)
    return elements


def optional(elements: Elements, name: str) -> str:
    """Return the text of the first element of a name, or an empty text."""
    return next(((element.text or "").strip() for element in elements.get(name, ())), "")


def text_of(elements: Elements, where: str, *names: str) -> str:
    """Return the text of the first of these elements that has one; ProductError where none has."""
    for name in names:
        if text := optional(elements, name):
            return text
    raise ProductError(f"{where}: no {' or '.join(names)}. Download the product again")


def number_of(text: str, name: str, where: str) -> float:
    """Return a finite number; ProductError with the element's name where the text is not one."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ProductError(f"{where}: {name} is {text[:40]!r}. Expected a number. Download the product again")
    return value


def time_of(text: str, where: str) -> str:
    """Return an ISO 8601 time as it is; ProductError where the text is not one."""
    try:
        datetime.datetime.fromisoformat(text)
    except ValueError:
        raise ProductError(
            f"{where}: its time is {text[:40]!r}. Expected a time such as 2023-07-06T10:56:21Z"
        ) from None
    return text
