"""How far things are, on standard error: a line that is rewritten on a terminal, a line a stage elsewhere."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from retrieval.train import Progress as TrainingProgress

REDRAW_S = 0.1
"""The line on a terminal is rewritten this often at most."""


class Talk:
    """Notes and progress of one command; a `retrieval.types.Progress` when called."""

    def __init__(self, quiet: bool = False, stream: TextIO | None = None) -> None:
        """Talk on a stream, standard error by default.

        Args:
            quiet: say nothing at all; errors and warnings do not come this way.
            stream: where to.
        """
        self._stream = stream or sys.stderr
        self._quiet, self._live = quiet, self._stream.isatty()
        self._stage, self._done, self._total = "", 0, None  # type: tuple[str, int, int | None]
        self._since = self._drawn = time.monotonic()
        self._first = (0, self._since)
        # How many were done, and when, at the first call of a stage: what was there before took no time.

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        elif self._stage:
            self._clear()

    def note(self, text: str) -> None:
        """Say a sentence on a line of its own."""
        if text and not self._quiet:
            self._clear()
            print(text, file=self._stream, flush=True)

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Hear that so many of so many things of a stage are done; None = how many is not known."""
        if stage != self._stage or done < self._done:
            self._finish()
            self._stage, self._first = stage, (done, time.monotonic())
        self._done, self._total = done, total
        self._draw(self._line())

    def counted(self, stage: str) -> Callable[[int, int], None]:
        """Hear of one stage from what only tells (done, total)."""
        return lambda done, total: self(stage, done, total)

    def training(self, at: TrainingProgress) -> None:
        """Hear from a training: notes and validations stay, steps pass by."""
        if at.note:
            self.note(at.note)
        elif at.recall:
            loss = (
                f"loss {at.loss:.4f}, " if math.isfinite(at.loss) else ""
            )  # before the first step there is none
            found = f"right place first {at.recall.first:.3f}, in 20 {at.recall.in_20:.3f}"
            self.note(f"step {at.step} of {at.steps}: {loss}{found}")
        else:
            left = f"  {clock(at.seconds_left)} left" if at.rate else ""
            self._draw(f"training  {at.step}/{at.steps}  loss {at.loss:.4f}  {pace(at.rate)}{left}")

    def _line(self) -> str:
        if self._total is None:
            return f"{self._stage} ..."
        text = f"{self._stage}  {self._done}/{self._total}"
        done, took = self._done - self._first[0], time.monotonic() - self._first[1]
        if done <= 0 or took <= 0 or self._done == self._total:
            return text
        rate = done / took
        return f"{text}  {pace(rate)}  {clock((self._total - self._done) / rate)} left"

    def _draw(self, text: str) -> None:
        now = time.monotonic()
        if self._quiet or not self._live or (now - self._drawn < REDRAW_S and self._done != self._total):
            return
        self._drawn = now
        width = shutil.get_terminal_size().columns - 1
        print(f"\r{text[:width]}\033[K", end="", file=self._stream, flush=True)

    def _clear(self) -> None:
        if self._live and not self._quiet:
            print("\r\033[K", end="", file=self._stream, flush=True)

    def _finish(self) -> None:
        """Leave one line about the stage that is over."""
        now = time.monotonic()
        if self._stage:
            took = now - self._since
            done = f": {self._done}" if self._done else ""
            rate = f", {pace(self._done / took)}" if self._done and took > 0 else ""
            self.note(f"{self._stage}{done} in {took:.1f} s{rate}")
            self._since = now
        self._stage, self._done = "", 0


def pace(rate: float) -> str:
    """A rate for people: "7.5/s", or "3.1 s each" where it is slow."""
    return f"{rate:.{1 if rate < 100 else 0}f}/s" if rate >= 1 or rate <= 0 else f"{1 / rate:.1f} s each"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds: "0:42", "1:02:03"."""
    minutes, rest = divmod(round(min(seconds, 3.6e6)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
