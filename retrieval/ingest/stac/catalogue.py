"""Asking a catalogue: pages of items, with patience; whatever goes wrong is one sentence."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from retrieval.ingest.retry import RetryPolicy, TransientError
from retrieval.ingest.stac.query import CATALOGUES, CatalogQuery
from tfrecords.errors import CatalogueError, MissingPackageError

if TYPE_CHECKING:
    from pystac_client import Client
    from pystac_client.stac_api_io import StacApiIO

PAGE = 100
"""Items asked for at a time."""
MOST_ITEMS = 20_000
"""A search that finds more is refused: it is a mistake, or a catalogue that turns in a circle."""
NAMED = 12
"""So many collections are named where another was asked for."""

Found = Callable[[int], None]
"""Told how many items there are so far."""
Item = dict[str, Any]
"""A STAC item as JSON."""


def check_installed() -> None:
    """Refuse to begin without what is needed.

    Raises:
        MissingPackageError: the extra `stac` is not installed.
    """
    try:
        import odc.stac  # noqa: F401
        import pystac_client  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"{error.name} is not installed, which a search in a catalogue needs: pip install "
            "'patch-retrieval[stac]'"
        ) from error


def find_items(query: CatalogQuery, retry: RetryPolicy, found: Found | None = None) -> list[Item]:
    """Ask a catalogue for items.

    Args:
        query: What is looked for.
        retry: How often a request is made.
        found: Told how many there are so far.

    Returns:
        The items, each once, oldest first. Those over `max_cloud` are left out where the catalogue can do it;
        look yourself.

    Raises:
        CatalogueError: The catalogue can't be reached, does not answer as one, has no such collection, or
            nothing that was asked for.
    """
    with _told_errors(query.api):
        client = _open(query, retry)
        _check_collection(client, query)
        items = _items(client, query, cloudy=False, found=found)
        return items or _explain_nothing(client, query)


def _open(query: CatalogQuery, retry: RetryPolicy) -> Client:
    from pystac_client import Client

    return Client.open(query.api, stac_io=_retrying_io(retry))


def _retrying_io(retry: RetryPolicy) -> StacApiIO:
    """Return a connection that repeats requests.

    urllib3 repeats a request after a busy status or a lost connection, and honours Retry-After. It does not
    repeat a request whose body ends too soon: `request` does.
    """
    from pystac_client.exceptions import APIError
    from pystac_client.stac_api_io import StacApiIO
    from requests.exceptions import ChunkedEncodingError, ConnectionError

    class RetryingIO(StacApiIO):
        def request(self, *args: Any, **named: Any) -> str:
            fetch = super().request

            def attempt() -> str:
                try:
                    return str(fetch(*args, **named))
                except APIError as error:
                    cut = isinstance(error.__context__, ChunkedEncodingError | ConnectionError)
                    if cut and "Max retries exceeded" not in str(error):
                        raise TransientError(str(error)) from error
                    raise

            try:
                return retry.call(attempt)
            except TransientError as error:
                raise error.__cause__ or error from None

    return RetryingIO(timeout=retry.timeout_s, max_retries=retry.urllib3_retry())


def _check_collection(client: Client, query: CatalogQuery) -> None:
    from pystac_client.exceptions import APIError

    try:
        if client.get_collection(query.collection) is not None:
            return
    except APIError as error:
        if getattr(error, "status_code", None) not in (400, 404):
            raise
    names = sorted(collection.id for collection in client.get_collections())
    likely = [name for name in names if "sentinel-2" in name.lower()] or names
    shown = ", ".join(likely[:NAMED]) + (" ..." if len(names) > min(NAMED, len(likely)) else "")
    raise CatalogueError(
        f"{query.api} has no collection {query.collection!r}; it has {shown or 'none at all'}: name one "
        "with --collection"
    )


def _items(client: Client, query: CatalogQuery, *, cloudy: bool, found: Found | None = None) -> list[Item]:
    """All items of the ground and the days; those over `max_cloud` only where they are wanted."""
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
            datetime=f"{query.first}/{query.last}",
            limit=PAGE,
            **more,
        ).pages_as_dicts()
        _collect(pages, items, query, found)
    return sorted(items.values(), key=lambda item: (str(item["properties"].get("datetime")), item["id"]))


def _collect(
    pages: Iterator[dict[str, Any]], items: dict[str, Item], query: CatalogQuery, found: Found | None
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
                f"{query.api}: more than {MOST_ITEMS} items. Reduce --bbox or --dates, and run several times"
            )


def _method(client: Client) -> str:
    """How the catalogue wants to be searched."""
    ways = {
        str(link.extra_fields.get("method", "GET")).upper() for link in client.links if link.rel == "search"
    }
    return "GET" if ways == {"GET"} else "POST"


def _explain_nothing(client: Client, query: CatalogQuery) -> list[Item]:
    """Say why nothing was found; give those items that tell no cloud, which the catalogue held back."""
    where = str(query.bbox)
    told = f"{query.api} has nothing of {query.collection} for {where} from {query.first} to {query.last}"
    items = _items(client, query, cloudy=True)
    if not items:
        raise CatalogueError(f"{told}; expected at least one item: look at --bbox and --dates")
    unknown = [item for item in items if cloud_cover(item) is None]
    if not unknown:
        raise CatalogueError(f"{told} {under_cloud(items, query.max_cloud)}")
    return unknown


def under_cloud(items: list[Item], max_cloud: float) -> str:
    """Say how cloudy those items are that are all over a limit."""
    covers = [cloud_cover(item) for item in items]
    least = min(cover for cover in covers if cover is not None)
    return (
        f"with at most {max_cloud:g} % cloud; the clearest of {len(items)} items has {least:.1f} %: raise "
        "--max-cloud, or ask for more days"
    )


def cloud_cover(item: Item) -> float | None:
    """Share of the tile under cloud, percent; None where the item doesn't say."""
    value = item.get("properties", {}).get("eo:cloud_cover")
    return float(value) if isinstance(value, (int, float)) else None


@contextmanager
def _told_errors(api: str) -> Iterator[None]:
    """Turn what pystac, requests and malformed answers raise into one sentence."""
    from pystac import STACError
    from pystac_client.errors import ClientTypeError
    from pystac_client.exceptions import APIError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of conformance classes that a root doesn't declare
            yield
    except APIError as error:
        raise CatalogueError(_of_request(api, error)) from error
    except NotImplementedError as error:
        raise CatalogueError(f"{api} can't be searched: {_short(error)}; {_EXPECTED}") from error
    except (STACError, ClientTypeError, ValueError, KeyError, TypeError, AttributeError) as error:
        # HTML is no JSON; JSON of another kind lacks what a catalogue has.
        raise CatalogueError(
            f"{api} doesn't answer as a STAC catalogue ({_short(error)}); {_EXPECTED}"
        ) from error


_EXPECTED = f"expected the root of a STAC API, such as {CATALOGUES['earth-search']}"


def _of_request(api: str, error: Exception) -> str:
    status = getattr(error, "status_code", None)
    if status == 429:
        return f"{api} asks to be left alone for a while (429): try again later; what is done is kept"
    if status in (401, 403):
        return f"{api} refuses ({status}): it wants a login, which is not supported; {_EXPECTED}"
    if status == 404:
        return f"{api} has no such page (404); {_EXPECTED}"
    if status is not None and status >= 500:
        return f"{api} fails ({status}), also when asked again: try again later; what is done is kept"
    if status is not None:
        return f"{api} refuses the search ({status}): {_short(error)}"
    return (
        f"{api} can't be reached: {_reason(str(error))}; look at the address and the network, and try again"
    )


def _reason(text: str) -> str:
    """What a request failed of, out of what requests and urllib3 say."""
    for mark, told in {
        "NameResolutionError": "no such host",
        "Connection refused": "connection refused",
        "timed out": "no answer in time",
        "IncompleteRead": "the connection was cut in the midst",
        "Connection aborted": "the connection was cut",
        "Connection broken": "the connection was cut in the midst",
        "CERTIFICATE_VERIFY_FAILED": "its certificate is not valid",
    }.items():
        if mark in text:
            return told
    return _short(text)


def _short(error: object) -> str:
    """The beginning of a message, on one line."""
    return " ".join(str(error).split())[:160] or type(error).__name__
