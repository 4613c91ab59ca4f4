"""A file server on the loopback that serves parts of files, counts what it served, and fails on request."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Lock
from urllib.parse import unquote, urlsplit

from loopback import Handler, listening

CHUNK = 1 << 14
"""Bytes that go out at a time, and are counted."""
Trouble = Callable[[str], int | str | None]
"""Given the path of a request: an HTTP status to fail with, "html", "cut", "whole" (no ranges), or None."""


class RangeServer:
    """Serves the files of a folder; knows every request and how many bytes of files went out."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.requests: list[tuple[str, str, str]] = []
        self.served = 0
        self.trouble: Trouble = lambda path: None
        self.answers: dict[str, tuple[str, bytes]] = {}
        self.headers: Mapping[str, str] = {}
        self.lock = Lock()

    def of(self, name: str) -> str:
        """The address of a file."""
        return f"{self.url}/{name}"

    def fail(self, status: int | str, times: int = 10**9, path: str = "") -> None:
        """Fail a number of times with a status, "html", "cut" or "whole", for paths that hold a text."""
        left = [times]

        def trouble(asked: str) -> int | str | None:
            if path not in asked or left[0] < 1:
                return None
            left[0] -= 1
            return status

        self.trouble = trouble


class _Handler(Handler):
    """Answers for one `RangeServer`."""

    state: RangeServer

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        with self.state.lock:
            self.state.requests.append((self.command, self.path, self.headers.get("Range", "")))
            trouble = self.state.trouble(path)
        if isinstance(trouble, int):
            return self.send(trouble, b"<html>no</html>", "text/html")
        if trouble == "html":
            return self.send(200, b"<!DOCTYPE html><html>Sign in</html>", "text/html")
        if path in self.state.answers:
            return self.send(200, self.state.answers[path][1], self.state.answers[path][0])
        file = self.state.folder / path.lstrip("/")
        if not file.is_file():
            return self.send(404, b"not found", "text/plain")
        self.send_file(file.read_bytes(), trouble)

    def send_file(self, content: bytes, trouble: str | None) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        whole, cut = len(content), trouble == "cut"
        if not asked or trouble == "whole":
            return self.send(200, content, "image/tiff", cut=cut)
        first, last = int(asked[1]), min(int(asked[2] or whole - 1), whole - 1)
        if first >= whole:
            return self.send(416, b"", "text/plain")
        where = {"Content-Range": f"bytes {first}-{last}/{whole}"}
        self.send(206, content[first : last + 1], "image/tiff", where, cut=cut)

    def send(
        self,
        status: int,
        content: bytes,
        kind: str,
        extra: Mapping[str, str] | None = None,
        cut: bool = False,
    ) -> None:
        ranges = {"Accept-Ranges": "bytes"} if status in (200, 206) else {}
        super().send(status, content, kind, {**ranges, **self.state.headers, **(extra or {})}, cut)

    def put(self, content: bytes) -> None:
        for begin in range(0, len(content), CHUNK):
            part = content[begin : begin + CHUNK]
            with self.state.lock:
                self.state.served += len(part)
            self.wfile.write(part)


def serving(folder: Path) -> AbstractContextManager[RangeServer]:
    """Serve a folder on the loopback while the block lasts."""
    return listening(_Handler, lambda url: RangeServer(folder, url))
