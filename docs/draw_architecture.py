"""Draw docs/images/architecture.svg: the rooms that data pass, and what they hand on.

python docs/draw_architecture.py
"""

from __future__ import annotations

from html import escape
from pathlib import Path

FILE = Path(__file__).parent / "images" / "architecture.svg"
WIDTH, HEIGHT, BOX = 900, 676, (150, 54)

ROOMS = {
    "ingest": (20, 20, "ingest", "GeoTIFF, SAFE, STAC"),
    "training": (240, 20, "training", "trains networks"),
    "models": (460, 20, "models", "encoder, verifier, …"),
    "images": (20, 140, "tfrecords.read", "target images"),
    "embed_images": (240, 140, "models.embed", "all windows"),
    "index": (460, 140, "index", "FAISS, pixels, table"),
    "patches": (20, 260, "tfrecords.read", "query patches"),
    "embed_patches": (240, 260, "models.embed", "one window each"),
    "matching": (460, 260, "matching", "search, NCC, verify"),
    "results": (690, 260, "results", "Matches"),
    "report": (690, 140, "report, export", "page, STAC, ONNX"),
    "evaluation": (690, 460, "evaluation", "SC, IoU, intervals"),
    "labels": (20, 460, "labels", "vectors, masks, tiles"),
    "classify": (240, 388, "tasks", "classify images"),
    "segment": (240, 460, "tasks.segment", "class of each pixel"),
    "change": (240, 532, "tasks.change", "two dates, one map"),
    "maps": (460, 460, "labels", "polygons, comparison"),
}
"""Left, top, name and content of each box, in pixels."""

ARROWS = [
    ("ingest", "training", "series"),
    ("training", "models", "weights"),
    ("ingest", "images", "GeoTIFFs"),
    ("images", "embed_images", "pixels"),
    ("embed_images", "index", "vectors"),
    ("models", "index", "encoder"),
    ("index", "matching", "index folder"),
    ("patches", "embed_patches", "pixels"),
    ("embed_patches", "matching", "vectors"),
    ("matching", "results", "candidates"),
    ("results", "evaluation", "submission"),
    ("results", "report", "table"),
    ("labels", "segment", "masks"),
    ("segment", "maps", "maps"),
    ("maps", "evaluation", "maps"),
]

GROUP = (226, 374, 178, 226)
"""Left, top, width and height of the frame around the tasks, which share data and models."""
FLOOR = (
    20,
    620,
    820,
    42,
    "distributed: the work of all commands on threads, processes or a Dask cluster; indexes in shards",
)
"""Left, top, width, height and text of the room below all others."""


def arrow(start: str, end: str, label: str) -> str:
    """Return a straight arrow between two boxes of one row or one column, with its label."""
    (x, y, *_), (to_x, to_y, *_) = ROOMS[start], ROOMS[end]
    if y == to_y:
        ends = (x + BOX[0], y + BOX[1] / 2, to_x, to_y + BOX[1] / 2)
        place = f'x="{(ends[0] + ends[2]) / 2}" y="{ends[1] - 6}" text-anchor="middle"'
    else:
        down = to_y > y
        ends = (x + BOX[0] / 2, y + BOX[1] * down, to_x + BOX[0] / 2, to_y if down else to_y + BOX[1])
        place = f'x="{ends[0] + 8}" y="{(ends[1] + ends[3]) / 2 + 4}"'
    line = '<line x1="{}" y1="{}" x2="{}" y2="{}" marker-end="url(#head)"/>'.format(*ends)
    return f'{line}<text class="label" {place}>{escape(label)}</text>'


def box(x: int, y: int, name: str, content: str) -> str:
    """Return a box with the name of a room and its content."""
    middle = x + BOX[0] / 2
    return (
        f'<rect x="{x}" y="{y}" width="{BOX[0]}" height="{BOX[1]}" rx="6"/>'
        f'<text class="name" x="{middle}" y="{y + 23}">{escape(name)}</text>'
        f'<text class="content" x="{middle}" y="{y + 41}">{escape(content)}</text>'
    )


def floor() -> str:
    """Return the box of the room that runs the work of the others, and the frame of the tasks."""
    x, y, width, height, text = FLOOR
    left, top, across, down = GROUP
    return (
        f'<rect class="group" x="{left}" y="{top}" width="{across}" height="{down}" rx="8"/>'
        f'<g class="box"><rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>'
        f'<text class="content" x="{x + width / 2}" y="{y + 26}">{escape(text)}</text></g>'
    )


def drawing() -> str:
    """Return the whole figure as SVG."""
    style = (
        "text{font-family:sans-serif;fill:#222}.name{font-size:14px;font-weight:bold;text-anchor:middle}"
        ".content{font-size:12px;text-anchor:middle}.label{font-size:12px;fill:#555}"
        ".box rect{fill:#e0f2f1;stroke:#00796b}line{stroke:#555;stroke-width:1.5}"
        ".group{fill:none;stroke:#00796b;stroke-dasharray:5 4}"
    )
    head = '<marker id="head" markerWidth="8" markerHeight="8" refX="8" refY="4" orient="auto">'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        "<title>Rooms of the engine and the data between them</title>",
        f"<style>{style}</style>",
        f'<defs>{head}<path d="M0,0 L8,4 L0,8 z" fill="#555"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        floor(),
        *(arrow(*ends) for ends in ARROWS),
        *(f'<g class="box">{box(*room)}</g>' for room in ROOMS.values()),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    FILE.write_text(drawing(), encoding="utf-8")
