"""GeoTIFFs on the web: what is wrong with an address, in words, before and while GDAL reads it."""

from __future__ import annotations

from collections.abc import Callable
from http.client import HTTPException
from typing import TypeVar
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from retrieval.ingest.redaction import redact, redact_text
from retrieval.ingest.retry import BUSY_STATUS, RetryPolicy, TransientError
from tfrecords.errors import RemoteError

SIGNATURES = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
"""The first bytes of a TIFF, one of these."""

_MEANING = {
    401: "it asks for a login. Use a signed address, or download the file",
    403: "access is not allowed. The address may need a signature, or its signature may have expired",
    409: "public access is not allowed. The address needs a signature",
    404: "there is no such file. Check the address",
    410: "the file is gone. Check the address",
    416: "the file is empty",
    429: "the server says that there were too many requests. Wait, and run the same command again",
}

T = TypeVar("T")


def is_remote(name: str) -> bool:
    """Return whether a name is an address on the web."""
    return name.lower().startswith(("http://", "https://"))


def read_remote(address: str, read: Callable[[], T], policy: RetryPolicy) -> T:
    """Read from an address, and retry failures that may pass.

    Args:
        address: the file that `read` reads.
        read: reads with rasterio; it opens the file itself.
        policy: how often to try.

    Returns:
        What `read` returns.

    Raises:
        RemoteError: every attempt failed, or the failure will not pass.
    """
    from rasterio.errors import RasterioError

    def attempt() -> T:
        _probe(address, policy.timeout_s)
        try:
            return read()
        except (RasterioError, OSError) as error:
            reason = redact_text(str(error))
            raise TransientError(f"the connection was cut, or the file is damaged ({reason})") from None

    try:
        return policy.call(attempt)
    except TransientError as error:
        raise RemoteError(
            f"{redact(address)}: it cannot be read, tried {error.attempts} times: {error}"
        ) from None


def _probe(address: str, timeout_s: float) -> None:
    """Request the first bytes of a file: GDAL does not say what is wrong with an address.

    Raises:
        RemoteError: no such file, no access, no TIFF, or a server that does not serve parts of files.
        TransientError: the server cannot answer now.
    """
    request = Request(address, headers={"Range": "bytes=0-15", "User-Agent": "patch-retrieval"})
    try:
        with urlopen(request, timeout=timeout_s) as answer:
            _check_answer(address, answer.status, answer.headers.get("Content-Type", ""), answer.read(16))
    except HTTPError as error:
        error.close()
        meaning = _MEANING.get(error.code, f"the server answers with status {error.code} ({error.reason})")
        if error.code in BUSY_STATUS or error.code >= 500:
            wait = error.headers.get("Retry-After", "")
            raise TransientError(meaning, float(wait) if wait.isdecimal() else 0.0) from error
        raise RemoteError(f"{redact(address)}: {meaning}") from None
    except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise TransientError(f"the server cannot be reached ({redact_text(str(reason))})") from None
    except ValueError as error:
        raise RemoteError(f"{redact(address)}: not an address ({redact_text(str(error))})") from None


def _check_answer(address: str, status: int, kind: str, begin: bytes) -> None:
    name = redact(address)
    if "html" in kind.lower() or begin.lstrip().startswith(b"<"):
        raise RemoteError(
            f"{name}: the server answers with a web page instead of a GeoTIFF, perhaps a login. Check the "
            "address"
        )
    if begin and not begin.startswith(SIGNATURES):
        raise RemoteError(f"{name}: not a GeoTIFF, it begins with {begin[:4]!r}")
    if status != 206:
        raise RemoteError(f"{name}: the server does not serve parts of files. Download the file first")
