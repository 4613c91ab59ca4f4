"""Charts as inline SVG in the page's own colours: drawn by hand, since they follow light and dark.

Each is an image with a name and a description for who does not see it, and has its numbers as a table
under it. Colours are classes of `page.css`; nothing is told by colour alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil, floor, log10

from retrieval.report.markup import Markup, folded, join, tag

WIDTH, HEIGHT = 360.0, 244.0
LEFT, RIGHT, TOP, FOOT = 44.0, 14.0, 24.0, 40.0
Point = tuple[float, float]


@dataclass
class Chart:
    """Two axes, and what is drawn between them, in the order in which it is added."""

    x: tuple[float, float]
    """Ends of the horizontal axis."""
    y: tuple[float, float]
    """Ends of the vertical axis."""
    marks: list[Markup] = field(default_factory=list)
    """What was drawn."""

    def at(self, x: float, y: float) -> Point:
        """Where a point of the data lies in the picture; points beyond an axis lie on its end."""
        share_x = (min(max(x, self.x[0]), self.x[1]) - self.x[0]) / (self.x[1] - self.x[0])
        share_y = (min(max(y, self.y[0]), self.y[1]) - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + share_x * (WIDTH - LEFT - RIGHT), HEIGHT - FOOT - share_y * (HEIGHT - TOP - FOOT)

    def line(self, points: Iterable[Point], style: str) -> None:
        """A line through points."""
        self.marks.append(tag("path", d="M" + _path(self.at(*p) for p in points), class_=f"line {style}"))

    def area(self, low: Sequence[Point], high: Sequence[Point], style: str) -> None:
        """The area between two lines over the same places."""
        around = [self.at(*p) for p in (*low, *reversed(high))]
        self.marks.append(tag("path", d="M" + _path(around) + "Z", class_=f"area {style}"))

    def bar(self, ends: tuple[float, float], low: float, high: float, style: str, told: str) -> None:
        """An upright bar; one that is not empty is seen."""
        (left, foot), (right, top) = self.at(ends[0], low), self.at(ends[1], high)
        tall = max(foot - top, 1.5 if high > low else 0)
        self.marks.append(
            tag(
                "rect",
                tag("title", told),
                x=left + 1,
                y=foot - tall,
                width=max(right - left - 2, 1.0),
                height=tall,
                class_=f"bar {style}",
            )
        )

    def dot(self, x: float, y: float, style: str, told: str, radius: float = 4.0) -> None:
        """A point, with what it says."""
        cx, cy = self.at(x, y)
        self.marks.append(tag("circle", tag("title", told), cx=cx, cy=cy, r=radius, class_=f"dot {style}"))

    def text(
        self, x: float, y: float, words: str, anchor: str = "middle", rise: float = 6, style: str = ""
    ) -> None:
        """Words at a place, some pixels above it."""
        at_x, at_y = self.at(x, y)
        self.marks.append(
            tag("text", words, x=at_x, y=at_y - rise, text_anchor=anchor, class_=f"note {style}".strip())
        )

    def svg(
        self,
        name: str,
        about: str,
        labels: tuple[str, str],
        ticks: tuple[Sequence[float], Sequence[float]],
        percent: tuple[bool, bool] = (False, False),
    ) -> Markup:
        """The whole picture.

        Args:
            name: what it shows, for who does not see it.
            about: what there is to see.
            labels: of the horizontal and of the vertical axis.
            ticks: on both.
            percent: whether the numbers at the ticks are shares.
        """
        grid = [self._rule_x(tick, percent[0]) for tick in ticks[0]]
        grid += [self._rule_y(tick, percent[1]) for tick in ticks[1]]
        middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
        words = (
            tag("text", labels[0], x=middle, y=HEIGHT - 6, text_anchor="middle", class_="axis"),
            tag("text", labels[1], x=0.0, y=10.0, text_anchor="start", class_="axis"),
        )
        return tag(
            "svg",
            tag("title", name),
            tag("desc", about),
            *grid,
            *words,
            *self.marks,
            viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
            role="img",
            aria_label=f"{name}. {about}",
            class_="chart",
        )

    def _rule_x(self, tick: float, percent: bool) -> Markup:
        x, foot = self.at(tick, self.y[0])
        words = tag("text", _number(tick, percent), x=x, y=foot + 15, text_anchor="middle", class_="tick")
        return join((tag("line", x1=x, x2=x, y1=foot, y2=foot + 4, class_="rule"), words))

    def _rule_y(self, tick: float, percent: bool) -> Markup:
        left, y = self.at(self.x[0], tick)
        words = tag("text", _number(tick, percent), x=left - 6, y=y + 4, text_anchor="end", class_="tick")
        return join((tag("line", x1=left, x2=WIDTH - RIGHT, y1=y, y2=y, class_="rule"), words))


def figure(picture: Markup, heading: str, caption: str, numbers: Markup) -> Markup:
    """A chart with its heading, what it means, and its numbers on demand."""
    return tag(
        "figure",
        tag("h3", heading),
        picture,
        tag("figcaption", caption),
        folded("Numbers", numbers),
        class_="panel plot",
    )


def strip(value: float, low: float, high: float) -> Markup:
    """A share and its interval on a line from 0 to 1, for a cell of a table that says the same in numbers."""
    at = [100 * min(max(v, 0.0), 1.0) for v in (low, value, high)]
    return tag(
        "svg",
        tag("line", x1="0%", x2="100%", y1=8, y2=8, class_="rule"),
        tag("line", x1=f"{at[0]:.2f}%", x2=f"{max(at[2], at[0] + 0.5):.2f}%", y1=8, y2=8, class_="interval"),
        tag("circle", cx=f"{at[1]:.2f}%", cy=8, r=4, class_="dot blue"),
        class_="strip",
        aria_hidden="true",
    )


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from low to high, some `about` of them, which is at least 3."""
    if high <= low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** floor(log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * 0.999)
    return [n * step for n in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def _number(value: float, percent: bool) -> str:
    if percent:
        return f"{100 * value:.3g}%"
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{round(value, 6):g}"


def _path(points: Iterable[Point]) -> str:
    return "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
