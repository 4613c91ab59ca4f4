"""A STAC catalogue on the loopback: /search by POST and GET, paging, collections, and faults on demand."""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from threading import Lock
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from loopback import Handler, listening

CONFORMS = {
    "core": "https://api.stacspec.org/v1.0.0/core",
    "search": "https://api.stacspec.org/v1.0.0/item-search",
    "collections": "https://api.stacspec.org/v1.0.0/collections",
    "query": "https://api.stacspec.org/v1.0.0/item-search#query",
}


@dataclass
class Fault:
    """A failure of requests of a path, a number of times."""

    kind: int | str
    times: int = 10**9
    path: str = "/search"
    headers: Mapping[str, str] = field(default_factory=dict)


class Catalogue:
    """A catalogue of items; knows every request."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.items: list[dict[str, Any]] = []
        self.collections = ["sentinel-2-l2a", "landsat-c2-l2"]
        self.page, self.methods, self.conforms = 3, ("GET", "POST"), tuple(CONFORMS)
        self.hidden_links: tuple[str, ...] = ()
        self.requests: list[tuple[str, str, dict[str, Any]]] = []
        self.faults: list[Fault] = []
        self.lock = Lock()

    def fail(self, kind: int | str, **more: Any) -> None:
        """Fail with a status, "html", "cut" (half a body) or "other" (JSON that is no catalogue's)."""
        self.faults.append(Fault(kind, **more))

    def fault(self, path: str) -> Fault | None:
        for fault in self.faults:
            if path.startswith(fault.path) and fault.times > 0:
                fault.times -= 1
                return fault
        return None

    def answer(self, method: str, path: str, asked: dict[str, Any]) -> dict[str, Any] | None:
        if path == "/":
            return self.landing()
        if path == "/collections":
            return {"collections": [self.collection(name) for name in self.collections], "links": []}
        if path.startswith("/collections/"):
            name = path.split("/")[2]
            return self.collection(name) if name in self.collections else None
        return self.search(method, asked) if path == "/search" and method in self.methods else None

    def landing(self) -> dict[str, Any]:
        links = [{"rel": "self", "href": self.url}, {"rel": "root", "href": self.url}]
        links += [{"rel": "data", "href": f"{self.url}/collections"}]
        links += [{"rel": "search", "href": f"{self.url}/search", "method": m} for m in self.methods]
        links = [link for link in links if link["rel"] not in self.hidden_links]
        told = {"type": "Catalog", "stac_version": "1.0.0", "id": "test", "description": "A catalogue"}
        if self.conforms is None:
            return told | {"links": links}
        return told | {"conformsTo": [CONFORMS[name] for name in self.conforms], "links": links}

    def collection(self, name: str) -> dict[str, Any]:
        extent = {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}}
        told = {"type": "Collection", "stac_version": "1.0.0", "id": name, "description": name}
        return told | {"license": "none", "extent": extent, "links": []}

    def search(self, method: str, asked: dict[str, Any]) -> dict[str, Any]:
        if method == "GET":
            asked = {**asked, "collections": asked["collections"].split(",")}
            asked["bbox"] = [float(value) for value in asked["bbox"].split(",")]
            asked["query"] = json.loads(asked.get("query", "{}"))
        found = [item for item in self.items if self.fits(item, asked)]
        first = int(asked.get("token", 0))
        links = []
        if first + self.page < len(found):
            links = [self.next(method, asked, first + self.page)]
        return {"type": "FeatureCollection", "features": found[first : first + self.page], "links": links}

    def next(self, method: str, asked: dict[str, Any], token: int) -> dict[str, Any]:
        link: dict[str, Any] = {"rel": "next", "href": f"{self.url}/search", "method": method}
        if method == "POST":
            return link | {"body": asked | {"token": token}}
        plain = {
            **asked,
            "collections": ",".join(asked["collections"]),
            "bbox": ",".join(map(str, asked["bbox"])),
            "query": json.dumps(asked["query"]),
        }
        return link | {"href": f"{self.url}/search?{urlencode(plain | {'token': token})}"}

    def fits(self, item: dict[str, Any], asked: dict[str, Any]) -> bool:
        west, south, east, north = asked["bbox"]
        w, s, e, n = item["bbox"]
        when = datetime.datetime.fromisoformat(item["properties"]["datetime"])
        first, last = (datetime.datetime.fromisoformat(text) for text in asked["datetime"].split("/"))
        limit = asked.get("query", {}).get("eo:cloud_cover", {}).get("lte")
        cover = item["properties"].get("eo:cloud_cover")
        return (
            item["collection"] in asked["collections"]
            and (w <= east and e >= west if w <= e else w <= east or e >= west)
            and s <= north
            and n >= south
            and first <= when <= last
            and (limit is None or (cover is not None and cover <= limit))
        )


class _Handler(Handler):
    """Answers for one `Catalogue`."""

    state: Catalogue

    def do_GET(self) -> None:
        self.reply("GET", dict(parse_qsl(urlsplit(self.path).query)))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.reply("POST", json.loads(body))

    def reply(self, method: str, asked: dict[str, Any]) -> None:
        path = urlsplit(self.path).path.rstrip("/") or "/"
        with self.state.lock:
            self.state.requests.append((method, path, asked))
            fault = self.state.fault(path)
        kind = fault.kind if fault else None
        if isinstance(kind, int):
            assert fault is not None
            return self.send(kind, b'{"description": "no"}', "application/json", fault.headers)
        if kind == "html":
            return self.send(200, b"<!DOCTYPE html><html>Sign in</html>", "text/html")
        if kind == "other":
            return self.send(200, b'{"hello": "world"}', "application/json")
        answer = self.state.answer(method, path, asked)
        if answer is None:
            return self.send(404, b'{"code": "NotFound", "description": "not found"}', "application/json")
        self.send(200, json.dumps(answer).encode(), "application/geo+json", cut=kind == "cut")


def cataloguing() -> AbstractContextManager[Catalogue]:
    """Serve a catalogue on the loopback while the block lasts."""
    return listening(_Handler, Catalogue)
