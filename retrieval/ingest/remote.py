"""Reading parts of files on the web: settings, retries, and a clear word on what is wrong with an address."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from http.client import HTTPException
from typing import Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tfrecords.errors import RemoteError

TRIES = 4
"""A read that fails is tried so many times in all."""
PAUSE_S = 1.0
"""Before the second try; doubled each time."""
LONGEST_PAUSE_S = 60.0
"""A server that asks for more is not waited for."""
TIMEOUT_S = 60
"""An answer that takes longer is none."""
SIGNATURES = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
"""A TIFF begins with one of these."""

_WORDS = {
    401: "it asks for a login: give a signed address, or download the file",
    403: "it is not allowed: the address may have to be signed, or its signature has run out",
    404: "there is no such file: look at the address",
    410: "the file is gone: look at the address",
    416: "the file is empty",
    429: "the server says that there were too many requests: wait, and run the same command again",
}

Result = TypeVar("Result")


class _BusyError(Exception):
    """What may be otherwise in a moment."""

    def __init__(self, text: str, pause_s: float = 0.0) -> None:
        super().__init__(text)
        self.pause_s = pause_s


def is_remote(name: str) -> bool:
    """Whether a name is an address on the web."""
    return name.lower().startswith(("http://", "https://"))


def shown(address: str) -> str:
    """An address without what may be secret: a user's name, a signature."""
    if not is_remote(address):
        return address
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def web_settings() -> AbstractContextManager[Any]:
    """GDAL's settings for parts of files on the web."""
    import rasterio

    return rasterio.Env(
        GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR",  # or it asks for files beside, which nobody has
        GDAL_HTTP_CONNECTTIMEOUT=TIMEOUT_S,
        GDAL_HTTP_LOW_SPEED_TIME=TIMEOUT_S,
        GDAL_HTTP_LOW_SPEED_LIMIT=1,
        GDAL_INGESTED_BYTES_AT_OPEN=32768,
        CPL_VSIL_CURL_NON_CACHED="/vsicurl/",  # a failure would be remembered
    )


def retrying(address: str, action: Callable[[], Result]) -> Result:
    """Do what reads from an address, again after a pause where it fails.

    Args:
        address: where it reads from.
        action: what to do; begins anew each time.

    Returns:
        What it returns.

    Raises:
        RemoteError: it failed each time, or what is wrong will stay so.
    """
    from rasterio.errors import RasterioError

    for tried in range(1, TRIES + 1):
        pause = PAUSE_S * 2 ** (tried - 1)
        try:
            probe(address)
            return action()
        except _BusyError as busy:
            said, pause = str(busy), max(pause, busy.pause_s)
        except (RasterioError, OSError) as error:
            said = f"the connection was cut, or the file is damaged ({error})"
        if pause > LONGEST_PAUSE_S:
            break
        if tried < TRIES:
            time.sleep(pause)
    raise RemoteError(f"{shown(address)} can't be read, tried {tried} times: {said}")


def probe(address: str) -> None:
    """Ask for the first bytes of a file, to know what is wrong before GDAL does not say it.

    Raises:
        RemoteError: there is no such file, it is not to be had, or no TIFF; or parts are not served.
        _BusyError: the server can't answer now.
    """
    request = Request(address, headers={"Range": "bytes=0-15", "User-Agent": "patch-retrieval"})
    try:
        with urlopen(request, timeout=TIMEOUT_S) as answer:
            _check_answer(address, answer.status, answer.headers.get("Content-Type", ""), answer.read(16))
    except HTTPError as error:
        error.close()
        said = _WORDS.get(error.code, f"the server answers with status {error.code} ({error.reason})")
        if error.code in (408, 425, 429) or error.code >= 500:
            wait = error.headers.get("Retry-After", "")
            raise _BusyError(said, float(wait) if wait.isdecimal() else 0.0) from error
        raise RemoteError(f"{shown(address)}: {said}") from error
    except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
        raise _BusyError(f"the server can't be reached ({getattr(error, 'reason', error)})") from error
    except ValueError as error:
        raise RemoteError(f"{shown(address)} is no address: {error}") from error


def _check_answer(address: str, status: int, kind: str, begin: bytes) -> None:
    if "html" in kind.lower() or begin.lstrip().startswith(b"<"):
        raise RemoteError(
            f"{shown(address)} answers with a page rather than a GeoTIFF, perhaps to log in: look at the "
            "address"
        )
    if begin and not begin.startswith(SIGNATURES):
        raise RemoteError(f"{shown(address)} is no GeoTIFF: it begins with {begin[:4]!r}")
    if status != 206:
        raise RemoteError(f"{shown(address)}: its server does not serve parts of files: download it first")
