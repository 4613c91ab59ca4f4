"""The seven figures of a submission with their intervals, for programs and for people."""

from __future__ import annotations

from dataclasses import dataclass

STRICT_PX = (1, 2, 5, 10)
"""A location is strictly right within this many pixels of the answer, the limit counted in."""
CONFIDENCE = 0.95
"""Share of experiments whose interval should hold the true figure."""
FIGURES = ("SC_img", "SC_loc", "SC", *(f"within_{t}px" for t in STRICT_PX))
"""Names of the figures as they are printed and written, in the order of the fields of `Figures`."""


@dataclass(frozen=True)
class Figure:
    """A measured share or mean, or the difference of two, with its interval."""

    value: float
    """The measurement: a share or mean in [0, 1], a difference in [-1, 1]."""
    low: float
    """Lower end of the 95 % interval, at most `value`."""
    high: float
    """Upper end of the 95 % interval, at least `value`."""

    @property
    def leaves_zero_out(self) -> bool:
        """Whether the interval leaves 0 out, so that the sign of a difference is certain."""
        return self.low > 0 or self.high < 0

    def to_dict(self) -> dict[str, float]:
        """Give value, low and high, rounded to six decimals: far below what any of them can tell."""
        return {"value": round(self.value, 6), "low": round(self.low, 6), "high": round(self.high, 6)}


@dataclass(frozen=True)
class Figures:
    """The seven figures of a submission, or of the difference of two, and what they rest on."""

    sc_img: Figure
    """Share of patches whose image is right."""
    sc_loc: Figure
    """Mean location credit; 0 for a patch whose image is wrong."""
    sc: Figure
    """Half `sc_img`, half `sc_loc`: the challenge's score."""
    within_1px: Figure
    """Share with the right image and a position at most 1 px from the answer."""
    within_2px: Figure
    """Likewise, 2 px."""
    within_5px: Figure
    """Likewise, 5 px."""
    within_10px: Figure
    """Likewise, 10 px."""
    n: int
    """Patches in the answers: what every share is a share of."""
    blocks: int
    """Blocks of ground that they lie in; with fewer than two an interval is all that is possible."""
    resamples: int
    """Resamples of the bootstrap."""
    seed: int
    """Seed of the bootstrap."""

    def figures(self) -> dict[str, Figure]:
        """Give the figures under the names of `FIGURES`, in that order."""
        return {name: getattr(self, name.lower()) for name in FIGURES}

    def to_dict(self) -> dict[str, object]:
        """Give everything as JSON-able values under stable keys: each figure's, then the counts."""
        figures: dict[str, object] = {name: figure.to_dict() for name, figure in self.figures().items()}
        return figures | {
            "n": self.n,
            **self._missing(),
            "blocks": self.blocks,
            "confidence": CONFIDENCE,
            "resamples": self.resamples,
            "seed": self.seed,
        }

    def _missing(self) -> dict[str, int]:
        return {}

    def _counts(self) -> str:
        patches = "1 patch" if self.n == 1 else f"{self.n} patches"
        return f"{patches} in {self.blocks} block{'s' * (self.blocks != 1)} of ground"


@dataclass(frozen=True)
class Score(Figures):
    """What a submission scores against the answers."""

    missing: int
    """Patches of the answers without a row in the submission; each is scored as wrong."""

    def _missing(self) -> dict[str, int]:
        return {"missing": self.missing}

    def table(self) -> str:
        """Lay it out for people: a line of counts, a line a figure, a note where an interval is idle."""
        missing = f", {self.missing} of them missing and scored as wrong" if self.missing else ""
        rows = [_row(name, figure, ".4f") for name, figure in self.figures().items()]
        return "\n".join([self._counts() + missing, "", _head(".4f"), *rows, *_notes(self)])


@dataclass(frozen=True)
class Comparison(Figures):
    """What submission a scores above submission b on the same answers; positive where a is better."""

    missing_a: int
    """Patches without a row in a."""
    missing_b: int
    """Patches without a row in b."""

    def _missing(self) -> dict[str, int]:
        return {"missing_a": self.missing_a, "missing_b": self.missing_b}

    def table(self) -> str:
        """Lay it out for people; a figure whose interval leaves 0 out is marked with a star."""
        missing = f"; missing: {self.missing_a} of a, {self.missing_b} of b"
        rows = [_row(name, f, "+.4f") + " *" * f.leaves_zero_out for name, f in self.figures().items()]
        star = (
            ["* the interval leaves 0 out"] if any(f.leaves_zero_out for f in self.figures().values()) else []
        )
        head = f"a minus b, patch by patch: {self._counts()}{missing}"
        return "\n".join([head, "", _head("+.4f"), *rows, *star, *_notes(self)])


def _head(form: str) -> str:
    return f"{'':<13}{'value':>{len(f'{0:{form}}')}}   {CONFIDENCE:.0%} interval"


def _row(name: str, figure: Figure, form: str) -> str:
    label = name.replace("within_", "within ").replace("px", " px")
    return f"{label:<13}{figure.value:{form}}   {figure.low:{form}} to {figure.high:{form}}"


def _notes(figures: Figures) -> list[str]:
    """Say where an interval does not mean what it seems to."""
    if figures.blocks < 2:
        return ["One block of ground says nothing about another: the intervals are all that is possible."]
    if all(figure.high - figure.low > 1e-9 for figure in figures.figures().values()):
        return []
    if figures.blocks < 6:
        return ["An interval without width: every block says the same, and there are few."]
    return [
        "An interval without width: every block says the same. What befalls fewer than one block in",
        f"{figures.blocks // 3} may still have gone unseen.",  # rule of three, at 95 %
    ]
