"""The retry policy of everything that is read from the web: catalogues, GeoTIFFs and STAC items."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from urllib3 import Retry

BUSY_STATUS = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses that may pass."""

T = TypeVar("T")


class TransientError(Exception):
    """A failure that may pass: the server is busy, or the connection was cut."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        """Describe the failure.

        Args:
            message: what failed.
            retry_after_s: seconds that the server asks to wait; 0 = it does not say.
        """
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.attempts = 1


@dataclass(frozen=True)
class RetryPolicy:
    """How often a request is made, how long to wait in between, and when a request counts as failed."""

    attempts: int = 4
    """Largest number of requests, 1 or more."""
    pause_s: float = 1.0
    """Seconds before the second attempt, doubled before each later one. A server's Retry-After is longer."""
    longest_pause_s: float = 120.0
    """Longest pause, seconds."""
    timeout_s: float = 60.0
    """Seconds without an answer after which a request has failed."""
    sleep: Callable[[float], object] = field(default_factory=lambda: time.sleep)
    """Waits for a number of seconds."""

    def pause(self, failures: int) -> float:
        """Return the seconds to wait after a number of failures, 1 or more."""
        return float(min(self.pause_s * 2 ** (failures - 1), self.longest_pause_s))

    def call(self, action: Callable[[], T]) -> T:
        """Call a function; repeat it while it fails with a `TransientError`.

        Args:
            action: the function; it begins from scratch each time.

        Returns:
            What it returns.

        Raises:
            TransientError: the last failure, with the number of attempts. A server that asks for more than
                the longest pause is not waited for.
        """
        for failures in range(1, self.attempts + 1):
            try:
                return action()
            except TransientError as error:
                error.attempts = failures
                pause = max(self.pause(failures), error.retry_after_s)
                if failures == self.attempts or pause > self.longest_pause_s:
                    raise
            self.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def gdal_options(self) -> dict[str, Any]:
        """Return GDAL's options for parts of files on the web, with its own retries of busy servers."""
        return {
            "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",  # do not ask for sidecar files
            "GDAL_HTTP_MAX_RETRY": str(self.attempts - 1),
            "GDAL_HTTP_RETRY_DELAY": str(self.pause_s),
            "GDAL_HTTP_CONNECTTIMEOUT": str(round(self.timeout_s)),
            "GDAL_HTTP_LOW_SPEED_TIME": str(round(self.timeout_s)),
            "GDAL_HTTP_LOW_SPEED_LIMIT": "1",
            "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
            # GDAL remembers failures too: without this, a second attempt fails without a request.
            "CPL_VSIL_CURL_NON_CACHED": "/vsicurl/:/vsis3/:/vsigs/:/vsiaz/",
        }

    def urllib3_retry(self) -> Retry:
        """Return the policy for urllib3; it needs the extra `stac`."""
        from urllib3 import Retry

        policy = self

        class PolicyRetry(Retry):
            def sleep(self, response: Any = None) -> None:
                asked = self.get_retry_after(response) if response is not None else None
                policy.sleep(min(asked or self.get_backoff_time(), policy.longest_pause_s))

        return PolicyRetry(
            total=self.attempts - 1,
            backoff_factor=self.pause_s,
            backoff_max=self.longest_pause_s,
            status_forcelist=BUSY_STATUS,
            allowed_methods=None,  # a search is a POST that changes nothing
            raise_on_status=False,
        )
