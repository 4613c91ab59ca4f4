"""HTTP on the loopback: what the servers of the tests have in common, and the thread that they run in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, TypeVar

Served = TypeVar("Served")


class Handler(BaseHTTPRequestHandler):
    """Answers without a word on the terminal, whole or cut short."""

    protocol_version = "HTTP/1.1"
    state: Any

    def log_message(self, *_: object) -> None:
        pass

    def send(
        self,
        status: int,
        content: bytes,
        kind: str,
        extra: Mapping[str, str] | None = None,
        cut: bool = False,
    ) -> None:
        """Answer; `cut` says the whole length and sends half."""
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            **(extra or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if cut:
            content, self.close_connection = content[: len(content) // 2], True
        with suppress(OSError):  # the client has what it wants
            self.put(content)

    def put(self, content: bytes) -> None:
        """Send the body."""
        self.wfile.write(content)


@contextmanager
def listening(handler: type[Handler], make: Callable[[str], Served]) -> Iterator[Served]:
    """Serve on the loopback while the block lasts.

    Args:
        handler: answers, for what it finds under `state`.
        make: makes that from the server's address.
    """
    http = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    http.daemon_threads = True
    served = make(f"http://127.0.0.1:{http.server_address[1]}")
    http.RequestHandlerClass = type("Bound", (handler,), {"state": served})
    thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        http.shutdown()
        http.server_close()
        thread.join(5)
