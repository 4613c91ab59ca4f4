"""A small index, queries and their matches, and a parser of pages, for the tests of the report."""

from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
from engine import digital, image_of, small_encoder, texture

from retrieval.evaluation.submission import Submission
from retrieval.pipeline import build_index
from tfrecords.read import ImageSource
from tfrecords.schema import BANDS, Patches

EVIL = """<script>alert("1")</script>&'"""
"""A name out of a file that nobody would give, and anybody can."""
SIDE = 160
VOID = {"br", "img", "input", "link", "meta"}


def ground():
    """Four images: two neighbours, a second date of the first, one without a CRS."""
    pixels = [digital(texture(SIDE, SIDE, seed=seed)) for seed in (1, 2, 3)]
    noise = np.random.default_rng(0).integers(-60, 60, pixels[0].shape)
    again = np.clip(pixels[0] * 0.8 + 300 + noise, 1, 4095).astype(np.uint16)
    here = (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_600_000.0)
    beside = (10.0, 0.0, 501_600.0, 0.0, -10.0, 5_600_000.0)
    utm = {"crs": "EPSG:32631"}
    return [
        image_of(pixels[0], 0, path=f"all/{EVIL}/2019.tif", transform=here, date="2019-07-01", **utm),
        image_of(pixels[1], 1, path="all/east/2019.tif", transform=beside, date="2019-07-01", **utm),
        image_of(again, 2, path="all/east/2020.tif", transform=here, date="2020-02-03", **utm),
        image_of(pixels[2], 7, path="all/nowhere.tif"),
    ]


def asked(images):
    """Patches out of the images, of ground that is nowhere, and a flat one; and what is right of each."""
    by_id = {image.image_id: image.pixels for image in images}
    places = [(1, 10 * n, 7 * n) for n in range(9)] + [(7, 96 - 9 * n, 8 * n + 3) for n in range(9)]
    cuts = [by_id[i][y : y + 64, x : x + 64] for i, x, y in places]
    cuts += [digital(texture(64, 64, seed=90 + n)) for n in range(3)] + [np.full_like(cuts[0], 900)]
    places += [(0, 0, 0), (7, 5, 5), (1, 1, 2), (0, 9, 9)]
    ids = np.arange(len(cuts)) * 3 + 1
    right = np.array(places)
    patches = Patches(ids, np.stack(cuts), "dn", BANDS, 0.0)
    return patches, Submission(ids, right[:, 0], right[:, 1], right[:, 2], source="answers.csv")


def world(folder):
    """An index, patches, answers and the table of candidates."""
    images = ground()
    index = build_index(
        ImageSource("four", 4, lambda: iter(images)), folder / "index", encoder=small_encoder()
    )
    patches, answers = asked(images)
    found = index.matches(patches)
    return SimpleNamespace(
        index=index.folder, patches=patches, answers=answers, details=found.details(), images=images
    )


class Outline(HTMLParser):
    """The elements of a page; `problems` says what is not as it should be."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.problems, self.elements, self.words = [], [], [], []
        self.feed(html)
        self.close()
        if self.open:
            self.problems.append(f"never closed: {self.open}")

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        if len(names) != len(set(names)):
            self.problems.append(f"an attribute twice: {tag} {names}")
        self.elements.append((tag, dict(attrs), tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.problems.append(f"closes itself: {tag}")

    def handle_endtag(self, tag):
        if not self.open or self.open[-1] != tag:
            self.problems.append(f"</{tag}> at {self.getpos()} closes {self.open[-3:]}")
        else:
            self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    def all(self, tag, **wanted):
        """Attributes of the elements of a kind, and with certain attributes."""
        return [
            attributes
            for name, attributes, _ in self.elements
            if name == tag and all(attributes.get(k) == v for k, v in wanted.items())
        ]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def cards(outline):
    """Attributes of the cards, in the order of the page."""
    return [a for a in outline.all("article") if "card" in a["class"].split()]
