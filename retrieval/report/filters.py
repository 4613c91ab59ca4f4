"""What chooses between cards: by verdict, probability, place and image; how they are sorted and seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from retrieval.report.cards import SIGNS, WORDS, Words
from retrieval.report.found import Results
from retrieval.report.gather import Card
from retrieval.report.markup import Markup, tag

ORDERS = {
    "order": "as chosen",
    "-confidence": "surest first",
    "confidence": "least sure first",
    "-ncc": "best correlated first",
    "ncc": "worst correlated first",
    "patch": "by number",
}
"""How cards can be sorted: the attribute, `-` for falling, and its name."""
VIEWS = {"swipe": "swipe", "blink": "blink", "beside": "side by side"}
"""How the two dates can be compared."""


def toolbar(cards: Sequence[Card], words: Words, found: Results) -> Markup:
    """The form above the cards."""
    return tag(
        "form",
        _verdicts(cards) if found.answered else None,
        _range(),
        _select("place", "Place", _places(cards, words)),
        _select("image", "Image", _images(cards, words)),
        _select("sort", "Sort", [(value, name) for value, name in ORDERS.items()], any_=False),
        _radios("view", "Compare", VIEWS),
        _radios("colour", "Colours", {"natural": "natural", "infrared": "infrared"})
        if "B08" in words.bands
        else None,
        tag(
            "div",
            tag("button", "Previous", type="button", id="previous", title="k, while a patch is focused"),
            tag("button", "Next", type="button", id="next", title="j, while a patch is focused"),
            tag("button", "Blink each second", type="button", id="blink", aria_pressed="false"),
            tag("button", "Reset", type="reset"),
            class_="buttons",
        ),
        tag("output", f"{len(cards)} of {len(cards)} patches", id="count", role="status", aria_live="polite"),
        id="filters",
        class_="toolbar panel",
        aria_label="Choose patches",
    )


def _verdicts(cards: Sequence[Card]) -> Markup | None:
    count = Counter(card.best.verdict for card in cards)
    boxes = [
        tag(
            "label",
            tag("input", type="checkbox", name="verdict", value=kind, checked=True),
            tag("span", SIGNS[kind], class_=f"sign {kind}", aria_hidden="true"),
            f"{WORDS[kind] or 'not known'} ({count[kind]})",
            class_="chip",
        )
        for kind in SIGNS
        if count[kind]
    ]
    return tag("fieldset", tag("legend", "Answer"), *boxes)


def _range() -> Markup:
    ends = [
        tag(
            "label",
            tag("span", word),
            tag("input", type="range", name=name, min=0, max=1, step="0.01", value=value),
            tag("output", f"{value:.2f}", id=f"{name}-told"),
        )
        for word, name, value in (("from", "least", 0), ("to", "largest", 1))
    ]
    return tag("fieldset", tag("legend", "Probability"), *ends, class_="ends")


def _places(cards: Sequence[Card], words: Words) -> list[tuple[str, str]]:
    """Places that hold several images; none where every image is a place of its own."""
    layout = words.layout
    if len(layout.places) == len(layout.labels):
        return []
    numbers = sorted({layout.place_of[int(c.best.image_id)] for c in cards if c.best.image_id >= 0})
    return [(str(number), layout.places[number]) for number in numbers]


def _images(cards: Sequence[Card], words: Words) -> list[tuple[str, str]]:
    ids = sorted({int(card.best.image_id) for card in cards if card.best.image_id >= 0})
    return [(str(image_id), words.layout.labels[image_id]) for image_id in ids]


def _select(name: str, label: str, options: Sequence[tuple[str, str]], any_: bool = True) -> Markup | None:
    if len(options) < 2:
        return None
    first = [tag("option", "all", value="")] if any_ else []
    choices = first + [tag("option", told, value=value) for value, told in options]
    return tag("label", tag("span", label), tag("select", *choices, name=name), class_="choice")


def _radios(name: str, legend: str, choices: dict[str, str]) -> Markup:
    boxes = [
        tag("label", tag("input", type="radio", name=name, value=value, checked=n == 0), told, class_="chip")
        for n, (value, told) in enumerate(choices.items())
    ]
    return tag("fieldset", tag("legend", legend), *boxes)
