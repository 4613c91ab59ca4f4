"""Imagery of a cover from XYZ, TMS and WMS servers, tile by tile.

Requests keep to a rate. Failures that may pass are retried, an interrupted run resumes, and a cache spares
requests that an earlier run made. The credits of the source stand in `CREDITS.txt` and in the manifest. No
key or password of an address is printed or written.
"""

from __future__ import annotations

import hashlib
import io
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from retrieval.errors import LabelsError
from retrieval.ingest.redaction import redact, redact_text
from retrieval.ingest.retry import BUSY_STATUS, RetryPolicy, TransientError
from retrieval.kernels.executors import prefetch_map
from retrieval.labels.covers import read_cover
from retrieval.types import Progress, silent
from tfrecords.artifacts import PartialFolder, writing_folder
from tfrecords.artifacts.manifest import created_by
from tfrecords.errors import RemoteError, parse_json
from tfrecords.storage import writing_file

if TYPE_CHECKING:
    from mercantile import Tile

ENDINGS = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}
"""Ending of a tile's file, by the format of the answer."""
CREDITS = "CREDITS.txt"
MISSING = (204, 404, 410)
"""HTTP statuses of a tile that does not exist."""
MAX_BYTES = 2**26
"""Largest answer that is read."""
PARALLEL = 4
"""Requests that run at the same time."""
_FIELD = re.compile(r"\{(z|x|y|-y|q|bbox|size|switch:[^}]+)\}")
_EXPECTED = (
    "Expected a template with {z}, {x} and {y} (or {-y}, or {q}), a WMS address with {bbox}, or a TileJSON"
)


@dataclass(frozen=True)
class DownloadReport:
    """Result of `download`."""

    path: Path
    """The folder of tiles."""
    tiles: int
    """Tiles in the folder."""
    new: int
    """Tiles that this run requested."""
    missing: tuple[str, ...]
    """Tiles that the server does not have."""
    credits: str
    """Credits of the source; empty where it names none."""
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class TileSource:
    """Where tiles come from."""

    template: str
    """Address with fields in braces."""
    credits: str = ""
    size_px: int = 256
    """Side of a tile, the field {size}."""

    def __post_init__(self) -> None:
        names = {name.partition(":")[0] for name in _FIELD.findall(self.template)}
        is_tiled = {"z", "x"} <= names and names & {"y", "-y"}
        if not self.template.startswith(("http://", "https://")) or not (is_tiled or names & {"q", "bbox"}):
            raise LabelsError(f"{redact(self.template)}: not an address of tiles. {_EXPECTED}.")

    def address(self, tile: Tile) -> str:
        """Return the address of a tile: {-y} counts rows from the south, {bbox} is in EPSG:3857."""
        import mercantile

        def value(match: re.Match[str]) -> str:
            name = match[1]
            if name.startswith("switch:"):
                hosts = name.removeprefix("switch:").split(",")
                return hosts[(tile.x + tile.y) % len(hosts)]
            if name == "q":
                return str(mercantile.quadkey(tile))
            if name == "bbox":
                return ",".join(f"{side:.6f}" for side in mercantile.xy_bounds(tile))
            rows = {"z": tile.z, "x": tile.x, "y": tile.y, "-y": 2**tile.z - 1 - tile.y, "size": self.size_px}
            return str(rows[name])

        return _FIELD.sub(value, self.template)


class RateLimit:
    """Lets a number of requests pass per second, over all threads."""

    def __init__(
        self,
        per_second: float,
        sleep: Callable[[float], object] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pause, self._sleep, self._clock = 1 / per_second, sleep, clock
        self._lock, self._next = Lock(), 0.0

    def wait(self) -> None:
        """Wait for the next request's turn."""
        with self._lock:
            now = self._clock()
            turn = max(now, self._next)
            self._next = turn + self._pause
        if turn > now:
            self._sleep(turn - now)


def download(
    cover: str | Path,
    url: str,
    out: str | Path,
    *,
    split: str | None = None,
    credits: str = "",
    size_px: int = 256,
    per_second: float = 8.0,
    cache: str | Path | None = None,
    retry: RetryPolicy | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> DownloadReport:
    """Download the tiles of a cover.

    Args:
        cover: CSV with the columns z, x and y.
        url: template with `{z}`, `{x}` and `{y}`, or the address of a TileJSON. `{-y}` is for TMS, `{q}` for
            quadkeys, and `{switch:a,b}` for hosts. WMS needs `{bbox}` in EPSG:3857, and `{size}`.
        out: folder to write, with files `z/x/y.png`, `.jpg` or `.webp`.
        split: only the tiles of this split.
        credits: credits of the source; empty takes those that a TileJSON names.
        size_px: side of a tile, for {size}.
        per_second: largest number of requests per second.
        cache: folder that keeps answers for later runs; None for none.
        retry: how often to try; None for four times.
        overwrite: replace an existing folder.
        progress: called after each tile.

    Returns:
        Numbers of tiles, and those that the server does not have.

    Raises:
        RemoteError: the server refuses, fails after all attempts, or answers with something else.
        LabelsError: the address has no fields of a tile, or no tile exists.
        OutputExistsError: the folder exists and `overwrite` is not set.
    """
    if not per_second > 0:
        raise LabelsError(f"--rate {per_second:g}: expected more than 0 requests per second.")
    policy = retry or RetryPolicy()
    tiles = list(dict.fromkeys(tile for tile, _ in read_cover(cover, split)))
    limit = RateLimit(per_second, policy.sleep)
    source = _source(url, credits, size_px, policy, limit)
    config = {"source": redact(source.template), "address": _hash(source.template), "size": size_px}
    with writing_folder(out, kind="tiles", config=config, overwrite=overwrite) as folder:
        missing, new = _fill(folder, tiles, source, policy, limit, Path(cache) if cache else None, progress)
        if len(missing) == len(tiles):
            raise LabelsError(f"{redact(source.template)}: it has none of the {len(tiles)} tiles of {cover}.")
        with folder.part(CREDITS) as partial:
            partial.write_text(_credits_text(source), encoding="utf-8")
        folder.counts |= {"tiles": len(tiles) - len(missing), "missing": len(missing)}
        folder.extra |= {"credits": source.credits, "source": redact(source.template)}
    notes = () if source.credits else ("the source names no credits; pass them with --credits",)
    return DownloadReport(Path(out), len(tiles) - len(missing), new, tuple(missing), source.credits, notes)


def _fill(
    folder: PartialFolder,
    tiles: Sequence[Tile],
    source: TileSource,
    policy: RetryPolicy,
    limit: RateLimit,
    cache: Path | None,
    progress: Progress,
) -> tuple[list[str], int]:
    """Write all tiles; return the names of missing ones, and the number of requested ones."""
    names = {tile: f"{tile.z}/{tile.x}/{tile.y}" for tile in tiles}
    wanted = [t for t in tiles if not any(folder.done(names[t] + end) for end in ENDINGS.values())]
    missing: list[str] = []
    done = len(tiles) - len(wanted)

    def fetch(tile: Tile) -> tuple[Tile, bytes | None, bool]:
        address = source.address(tile)
        stored = cache / _hash(address) if cache else None
        if stored and stored.is_file():
            return tile, stored.read_bytes() or None, False
        content = fetch_tile(address, policy, limit)
        if stored:
            with writing_file(stored, overwrite=True, durable=False) as partial:
                partial.write_bytes(content or b"")
        return tile, content, True

    new = 0
    for tile, content, requested in prefetch_map(fetch, wanted, count=PARALLEL):
        if content is None:
            missing.append(names[tile])
        else:
            with folder.part(names[tile] + _ending(source.address(tile), content)) as partial:
                partial.write_bytes(content)
        done, new = done + 1, new + requested
        progress("downloading tiles", done, len(tiles))
    return missing, new


def fetch_tile(address: str, policy: RetryPolicy, limit: RateLimit) -> bytes | None:
    """Request one tile.

    Args:
        address: the address.
        policy: how often to try.
        limit: rate of the requests.

    Returns:
        The image as it was sent; None where the server has no such tile.

    Raises:
        RemoteError: every attempt failed, or the failure will not pass.
    """

    def attempt() -> bytes | None:
        limit.wait()
        content = _read(address, policy.timeout_s)
        if content is not None:
            _ending(address, content)  # a cut or foreign answer is no tile
        return content

    try:
        return policy.call(attempt)
    except TransientError as error:
        raise RemoteError(
            f"{redact(address)}: it cannot be read, tried {error.attempts} times: {error}. Run the same "
            "command again to resume."
        ) from None


def _read(address: str, timeout_s: float) -> bytes | None:
    """Return the body of an answer; None where there is no such tile."""
    request = Request(address, headers={"User-Agent": created_by().replace(" ", "/")})
    try:
        with urlopen(request, timeout=timeout_s) as answer:
            if answer.status in MISSING:
                return None
            content = answer.read(MAX_BYTES)
            length = answer.headers.get("Content-Length")
            if length is not None and length.isdecimal() and len(content) < min(int(length), MAX_BYTES):
                raise TransientError("the connection was cut")
            return content or None
    except HTTPError as error:
        error.close()
        if error.code in MISSING:
            return None
        reason = f"the server answers with status {error.code} ({error.reason})"
        if error.code in BUSY_STATUS or error.code >= 500:
            wait = error.headers.get("Retry-After", "")
            raise TransientError(reason, float(wait) if wait.isdecimal() else 0.0) from None
        raise RemoteError(f"{redact(address)}: {reason}. Check the address and its key.") from None
    except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
        reason = redact_text(str(getattr(error, "reason", error)))
        raise TransientError(f"the server cannot be reached ({reason})") from None


def _ending(address: str, content: bytes) -> str:
    """Return the ending of a tile's file.

    Raises:
        RemoteError: the answer is not an image.
        TransientError: the image is damaged.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            return ENDINGS[str(image.format)]
    except UnidentifiedImageError:
        text = " ".join(redact_text(content[:300].decode("utf-8", "replace")).split())
        raise RemoteError(f"{redact(address)}: the answer is not an image: {text[:120]!r}") from None
    except KeyError:
        raise RemoteError(f"{redact(address)}: expected a PNG, JPEG or WebP image.") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise TransientError(f"the image is damaged ({error})") from None


def _source(url: str, credits: str, size_px: int, policy: RetryPolicy, limit: RateLimit) -> TileSource:
    """Return the source of an address, which may be that of a TileJSON."""
    if "{" in url or not url.startswith(("http://", "https://")):
        return TileSource(url, credits, size_px)

    def attempt() -> Any:
        limit.wait()
        content = _read(url, policy.timeout_s)
        try:
            return parse_json(content or b"")
        except ValueError:
            return None

    try:
        page = policy.call(attempt)
    except TransientError as error:
        raise RemoteError(f"{redact(url)}: it cannot be read: {error}.") from None
    tiles = page.get("tiles") if isinstance(page, dict) else None
    if not (isinstance(tiles, list) and tiles and isinstance(tiles[0], str)):
        raise LabelsError(f"{redact(url)}: not a TileJSON. {_EXPECTED}.")
    template = tiles[0].replace("{y}", "{-y}") if page.get("scheme") == "tms" else tiles[0]
    named = re.sub(r"<[^>]*>", "", str(page.get("attribution") or ""))
    return TileSource(template, credits or named.strip(), size_px)


def _credits_text(source: TileSource) -> str:
    credits = source.credits or "The source names no credits: look them up before you publish."
    return f"{credits}\nSource: {redact(source.template)}\n"


def _hash(address: str) -> str:
    return hashlib.sha256(address.encode()).hexdigest()
