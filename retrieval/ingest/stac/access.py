"""Access to the files of items: signed addresses, and what to do where access is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from threading import Lock, Thread
from typing import Any, TypeVar
from urllib.parse import urlsplit

from retrieval.ingest.redaction import redact_text
from retrieval.ingest.retry import BUSY_STATUS, RetryPolicy, TransientError
from tfrecords.errors import CatalogueError, MissingPackageError

Sign = Callable[[str], str]
"""Returns an address with a signature that allows reading."""
BLOBS = ".blob.core.windows.net"
"""End of the hosts whose addresses planetary-computer signs."""
T = TypeVar("T")

_STATUS = re.compile(r"\bcode(?: on \S+)?\s*:\s*(\d{3})\b", re.IGNORECASE)
_REFUSED = re.compile(
    r"\bcode(?: on \S+)?\s*:\s*(401|403|409)\b|credential|access.?denied|access.?key|forbidden|"
    r"public access|not authori[sz]ed|options? not defined|://None\.|host: None\.",
    re.IGNORECASE,
)
_REMEDIES = {
    "s3": "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_S3_ENDPOINT where the store is not "
    "Amazon's), or AWS_NO_SIGN_REQUEST=YES for a public bucket",
    "gs": "Set GOOGLE_APPLICATION_CREDENTIALS, or GS_NO_SIGN_REQUEST=YES for a public bucket",
    "az": "Set AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_ACCESS_KEY, or AZURE_NO_SIGN_REQUEST=YES for a public "
    "container",
}


def explain_final(message: str, href: str, *, signed: bool) -> str:
    """Return why a failed read cannot succeed when it is repeated, and the remedy.

    Args:
        message: GDAL's message.
        href: the address, unsigned.
        signed: whether addresses are signed.

    Returns:
        The end of a sentence; empty where the failure may pass.
    """
    text = redact_text(" ".join(message.split()))[:160]
    if _REFUSED.search(message):
        return f"access is refused ({text}). {_remedy(href, signed)}"
    status = _STATUS.search(message)
    if status and 400 <= int(status[1]) < 500 and int(status[1]) not in BUSY_STATUS:
        return f"it cannot be read ({text})"
    return ""


def _remedy(href: str, signed: bool) -> str:
    scheme = urlsplit(href).scheme
    if scheme in _REMEDIES:
        return _REMEDIES[scheme]
    if signed:
        return "The signature is not accepted: check that --sign fits the catalogue"
    return "Addresses of Planetary Computer must be signed: add --sign planetary-computer"


def signer(sign: str | None, retry: RetryPolicy) -> Sign:
    """Return the function that signs addresses.

    Args:
        sign: "planetary-computer"; None = addresses need no signature.
        retry: how often the signing service is tried. After it has failed, the function fails at once.

    Raises:
        MissingPackageError: the package that signs is not installed.
    """
    if sign is None:
        return str
    try:
        import planetary_computer
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            "--sign planetary-computer: a package is not installed. Run: pip install planetary-computer"
        ) from error
    return _Signer(planetary_computer, retry)


class _Signer:
    """Signs with the package planetary-computer; many threads share one request for a signature."""

    def __init__(self, package: Any, retry: RetryPolicy) -> None:
        self._package, self._retry = package, retry
        self._lock, self._failure = Lock(), ""

    def __reduce__(self) -> tuple[Any, ...]:
        return signer, ("planetary-computer", self._retry)

    def __call__(self, href: str) -> str:
        """Return the signed address.

        Raises:
            CatalogueError: the signing service refuses, or cannot be reached.
        """
        with self._lock:
            if not self._failure:
                try:
                    return self._retry.call(lambda: self._attempt(href))
                except TransientError as error:
                    self._failure = (
                        f"--sign planetary-computer: the signing service cannot be reached, tried "
                        f"{error.attempts} times ({error}). Check the network, and run the same command again"
                    )
            raise CatalogueError(self._failure)

    def _attempt(self, href: str) -> str:
        try:
            return _within(self._retry.timeout_s, lambda: self._sign(href))
        except Exception as error:  # of requests, pydantic or the package
            status = getattr(getattr(error, "response", None), "status_code", 0)
            reason = redact_text(" ".join(str(error).split()))[:160] or type(error).__name__
            if 400 <= status < 500 and status not in BUSY_STATUS:
                self._failure = (
                    f"--sign planetary-computer: the signing service refuses ({status}). Expected files of "
                    "Planetary Computer: check --api"
                )
                raise CatalogueError(self._failure) from None
            raise TransientError(reason) from None

    def _sign(self, href: str) -> str:
        parts = urlsplit(href)
        tokens = getattr(self._package, "sas", None)
        if tokens and parts.netloc.endswith(BLOBS) and not parts.query:
            # The package would repeat the request for minutes: this fills its cache without repeating.
            account, container = parts.netloc.split(".")[0], parts.path.split("/")[1]
            tokens.get_token(account, container, retry_total=0)
        return str(self._package.sign(href))


def _within(seconds: float, action: Callable[[], T]) -> T:
    """Call a function in a thread, because the package's requests have no time limit.

    Raises:
        TimeoutError: it did not return in time.
    """
    results: list[T] = []
    errors: list[Exception] = []

    def act() -> None:
        try:
            results.append(action())
        except Exception as error:
            errors.append(error)

    thread = Thread(target=act, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError("no answer in time")
    return results[0]
