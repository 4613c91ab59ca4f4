"""Searches a STAC catalogue: pages of items, with retries, and one clear message for each failure."""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

from retrieval.ingest.redaction import redact, redact_text
from retrieval.ingest.retry import RetryPolicy
from retrieval.ingest.stac.connection import retrying_io
from retrieval.ingest.stac.query import CATALOGUES, CatalogQuery
from tfrecords.errors import CatalogueError, MissingPackageError

if TYPE_CHECKING:
    from pystac_client import Client

PAGE = 100
"""Items per page."""
MOST_ITEMS = 20_000
"""A search that finds more is refused: it is a mistake, or a catalogue that turns in a circle."""
MOST_COLLECTIONS = 1000
"""Collections that are read to name some in an error: a catalogue may list them without end."""
NAMED = 12
"""Largest number of collections that an error names."""

OnFound = Callable[[int], None]
"""Called with the number of items found so far."""
Item = dict[str, Any]
"""A STAC item as JSON."""


def check_installed() -> None:
    """Check that the extra `stac` is installed.

    Raises:
        MissingPackageError: the extra `stac` is not installed.
    """
    try:
        import odc.stac  # noqa: F401
        import pystac_client  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"{error.name}: not installed, but needed to search a catalogue. Run: pip install "
            "'patch-retrieval[stac]'"
        ) from error


def find_items(query: CatalogQuery, retry: RetryPolicy, found: OnFound | None = None) -> list[Item]:
    """Search a catalogue.

    Args:
        query: the query.
        retry: how often a request is made.
        found: called with the number of items found so far.

    Returns:
        The items, each once, oldest first. Only some catalogues leave out items above `max_cloud`.

    Raises:
        CatalogueError: the catalogue cannot be reached, is not a STAC API, has no such collection, or no
            matching item.
    """
    with _readable_errors(redact(query.api)):
        client = _open(query, retry)
        _check_collection(client, query)
        items = _items(client, query, cloudy=False, found=found)
        return items or _explain_nothing(client, query)


def _open(query: CatalogQuery, retry: RetryPolicy) -> Client:
    from pystac_client import Client

    client = Client.open(query.api, stac_io=retrying_io(retry))
    # A root can have the links of an API without the list of standards that it conforms to.
    if not client.conforms_to("ITEM_SEARCH"):
        links = [link for link in client.links if link.rel == "search" and link.media_type != "text/html"]
        for link in links:
            link.media_type = "application/geo+json"  # pystac-client follows no other
        if not links:
            raise CatalogueError(
                f"{redact(query.api)}: it cannot be searched, its root has no search link. {_EXPECTED}"
            )
        client.add_conforms_to("ITEM_SEARCH")
    if not _lists_collections(client) and client.get_single_link("data") is not None:
        client.add_conforms_to("COLLECTIONS")
    return client


def _lists_collections(client: Client) -> bool:
    return client.conforms_to("COLLECTIONS") or client.conforms_to("FEATURES")


def _check_collection(client: Client, query: CatalogQuery) -> None:
    from pystac_client.exceptions import APIError

    if not _lists_collections(client):
        return  # the search alone knows
    try:
        if client.get_collection(query.collection) is not None:
            return
    except APIError as error:
        if getattr(error, "status_code", None) not in (400, 404):
            raise
    names = sorted(collection.id for collection in islice(client.get_collections(), MOST_COLLECTIONS))
    likely = [name for name in names if "sentinel-2" in name.lower()] or names
    shown = ", ".join(likely[:NAMED]) + (" ..." if len(names) > min(NAMED, len(likely)) else "")
    raise CatalogueError(
        f"{redact(query.api)}: no collection {query.collection!r}. It has {shown or 'none'}. Choose one with "
        "--collection"
    )


def _items(client: Client, query: CatalogQuery, *, cloudy: bool, found: OnFound | None = None) -> list[Item]:
    """Return all items of the ground and the days; `cloudy` includes those above `max_cloud`."""
    more: dict[str, Any] = {}
    if not cloudy and query.max_cloud < 100 and client.conforms_to("QUERY"):
        more["query"] = {"eo:cloud_cover": {"lte": query.max_cloud}}
    items: dict[str, Item] = {}
    # Not every catalogue understands a box across the antimeridian: each side is searched by itself.
    for half in query.bbox.split():
        pages = client.search(
            method=_method(client),
            collections=[query.collection],
            bbox=list(half),
            datetime=_times(query, half),
            limit=PAGE,
            **more,
        ).pages_as_dicts()
        _collect(pages, items, query, found)
    return sorted(items.values(), key=lambda item: (str(item["properties"].get("datetime")), item["id"]))


def _times(query: CatalogQuery, box: tuple[float, float, float, float]) -> str:
    """Return the span in UTC that holds the solar days of a query anywhere in a box."""
    west, _, east, _ = box
    start = datetime.datetime.combine(query.first, datetime.time()) - datetime.timedelta(hours=east / 15)
    end = datetime.datetime.combine(query.last, datetime.time(23, 59, 59)) - datetime.timedelta(
        hours=west / 15
    )
    return f"{start:%Y-%m-%dT%H:%M:%SZ}/{end:%Y-%m-%dT%H:%M:%SZ}"


def _collect(
    pages: Iterator[dict[str, Any]], items: dict[str, Item], query: CatalogQuery, found: OnFound | None
) -> None:
    """Add the items of all pages, each once."""
    seen: set[str] = set()
    for page in pages:
        ids = {str(item["id"]) for item in page["features"]}
        for item in page["features"]:
            items.setdefault(str(item["id"]), item)
        if found:
            found(len(items))
        if ids <= seen:  # the catalogue repeats a page
            break
        seen |= ids
        if len(items) > MOST_ITEMS:
            raise CatalogueError(
                f"{redact(query.api)}: more than {MOST_ITEMS} items. Reduce --bbox or --dates, and run "
                "several times"
            )


def _method(client: Client) -> str:
    """Return the HTTP method that the catalogue accepts for a search."""
    methods = {
        str(link.extra_fields.get("method", "GET")).upper() for link in client.links if link.rel == "search"
    }
    return "GET" if methods == {"GET"} else "POST"


def _explain_nothing(client: Client, query: CatalogQuery) -> list[Item]:
    """Raise the reason why nothing was found; return items of unknown cloud, which catalogues leave out."""
    request = f"{query.collection} for {query.bbox} from {query.first} to {query.last}"
    items = _items(client, query, cloudy=True)
    if not items:
        raise CatalogueError(f"{redact(query.api)}: no item of {request}. Check --bbox and --dates")
    unknown = [item for item in items if cloud_cover(item) is None]
    if not unknown:
        raise CatalogueError(
            f"{redact(query.api)}: no item of {request} {describe_cloud(items, query.max_cloud)}"
        )
    return unknown


def describe_cloud(items: list[Item], max_cloud: float) -> str:
    """Return the end of a sentence on items that are all above the cloud limit."""
    covers = [cloud_cover(item) for item in items]
    least = min(cover for cover in covers if cover is not None)
    return (
        f"has at most {max_cloud:g} % cloud. The clearest of {len(items)} items has {least:.1f} %. Raise "
        "--max-cloud, or extend --dates"
    )


def cloud_cover(item: Item) -> float | None:
    """Return the share of the tile under cloud, percent; None where it is unknown."""
    value = item.get("properties", {}).get("eo:cloud_cover")
    return float(value) if isinstance(value, (int, float)) else None


@contextmanager
def _readable_errors(api: str) -> Iterator[None]:
    """Turn errors of pystac, requests and malformed answers into one `CatalogueError`."""
    from pystac import STACError
    from pystac_client.errors import ClientTypeError
    from pystac_client.exceptions import APIError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about conformance classes that a root does not declare
            yield
    except APIError as error:
        raise CatalogueError(_explain_request(api, error)) from None
    except (NotImplementedError, Warning) as error:  # pystac-client raises its warning DoesNotConformTo
        raise CatalogueError(f"{api}: it cannot be searched ({_short(error)}). {_EXPECTED}") from None
    except (
        STACError,
        ClientTypeError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        # HTML is not JSON; other JSON lacks the members of a catalogue, or nests thousands of lists.
        raise CatalogueError(
            f"{api}: it does not answer as a STAC catalogue ({_short(error)}). {_EXPECTED}"
        ) from None


_EXPECTED = f"Expected the root of a STAC API, such as {CATALOGUES['earth-search']}"


def _explain_request(api: str, error: Exception) -> str:
    status = getattr(error, "status_code", None)
    later = "Try again later; finished dates are kept"
    if status == 429:
        return f"{api}: too many requests (429). {later}"
    if status in (401, 403):
        return f"{api}: access refused ({status}). Catalogues with a login are not supported. {_EXPECTED}"
    if status == 404:
        return f"{api}: no such page (404). {_EXPECTED}"
    if status is not None and status >= 500:
        return f"{api}: the server failed ({status}), also when retried. {later}"
    if status is not None:
        return f"{api}: the search was refused ({status}): {_short(error)}"
    return f"{api}: it cannot be reached ({_reason(str(error))}). Check the address and the network"


def _reason(text: str) -> str:
    """Return why a request failed, from the text of requests and urllib3."""
    for mark, reason in {
        "NameResolutionError": "no such host",
        "Connection refused": "connection refused",
        "timed out": "no answer in time",
        "IncompleteRead": "the connection was cut",
        "Connection aborted": "the connection was cut",
        "Connection broken": "the connection was cut",
        "CERTIFICATE_VERIFY_FAILED": "its certificate is not valid",
    }.items():
        if mark in text:
            return reason
    return _short(text)


def _short(error: object) -> str:
    """Return the beginning of a message, on one line."""
    return redact_text(" ".join(str(error).split()))[:160] or type(error).__name__
