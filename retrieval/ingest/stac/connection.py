"""The connection to a STAC catalogue: requests that are repeated, and answers that are not trusted.

A catalogue may be hostile. Only addresses on the web are opened, wherever its links and redirects lead, and
no answer is read beyond a limit.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from retrieval.ingest.redaction import redact, redact_text
from retrieval.ingest.retry import RetryPolicy, TransientError
from tfrecords.errors import CatalogueError

if TYPE_CHECKING:
    from pystac_client.stac_api_io import StacApiIO

MOST_BYTES = 64 << 20
"""Largest answer of a catalogue that is read, unpacked. A page of items has some megabytes."""


def retrying_io(retry: RetryPolicy) -> StacApiIO:
    """Return a connection that repeats requests.

    urllib3 repeats a request after a busy status or a lost connection, and honours Retry-After. It does not
    repeat a request whose body ends too soon: `request` does.
    """
    from pystac_client.exceptions import APIError
    from pystac_client.stac_api_io import StacApiIO
    from requests.exceptions import ChunkedEncodingError, ConnectionError

    class RetryingIO(StacApiIO):
        def read_text(self, source: Any, *args: Any, **named: Any) -> str:
            if isinstance(source, str):
                check_on_web(source)
            return str(super().read_text(source, *args, **named))

        def request(self, href: str, *args: Any, **named: Any) -> str:
            check_on_web(href)
            fetch = partial(super().request, href)

            def attempt() -> str:
                try:
                    return str(fetch(*args, **named))
                except APIError as error:
                    if isinstance(error.__context__, CatalogueError):
                        raise error.__context__ from None
                    cut = isinstance(error.__context__, ChunkedEncodingError | ConnectionError)
                    if cut and "Max retries exceeded" not in str(error):
                        raise TransientError(str(error)) from error
                    raise

            try:
                return retry.call(attempt)
            except TransientError as error:
                raise error.__cause__ or error from None

    connection = RetryingIO(timeout=retry.timeout_s)
    for scheme in ("http://", "https://"):
        connection.session.mount(scheme, _limited_adapter(retry))
    return connection


def _limited_adapter(retry: RetryPolicy) -> Any:
    """Return an adapter of requests that reads no answer beyond `MOST_BYTES`."""
    from requests.adapters import HTTPAdapter

    class LimitedAdapter(HTTPAdapter):
        def send(self, request: Any, *args: Any, **named: Any) -> Any:
            answer = super().send(request, *args, **named)
            content = bytearray()
            for part in answer.iter_content(1 << 20):
                content += part
                if len(content) > MOST_BYTES:
                    answer.close()
                    raise CatalogueError(
                        f"{redact(str(request.url))}: an answer of more than {MOST_BYTES >> 20} MB. Expected "
                        "a page of items. Check the address of the catalogue"
                    )
            answer._content = bytes(content)
            return answer

    return LimitedAdapter(max_retries=retry.urllib3_retry())


def check_on_web(href: str) -> None:
    """Check that an address which a catalogue names is on the web.

    Raises:
        CatalogueError: it is not: a local file, for instance.
    """
    if not href.lower().startswith(("http://", "https://")):
        raise CatalogueError(
            f"{redact_text(href)[:80]!r}: the catalogue leads to an address that is not on the web. Expected "
            "http or https"
        )
