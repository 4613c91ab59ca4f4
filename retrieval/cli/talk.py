"""How far things are, on standard error: a bar that is redrawn on a terminal, lines elsewhere.

A terminal shows bar, count, rate and time left. A file or a pipe gets a line when a stage is over, and
one each half minute of a long one. `NO_COLOR` (https://no-color.org) leaves colours out.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from retrieval.training.progress import Progress as TrainingProgress

REDRAW_S = 0.1
"""The line on a terminal is rewritten this often at most."""
LOG_S = 30.0
"""A line about a stage that goes on is written this often where there is no terminal."""
BAR = 24
"""Columns of the bar."""
GREEN, YELLOW, RED = 32, 33, 31
"""Colours of a terminal."""


class Talk:
    """Notes and progress of one command; a `retrieval.types.Progress` when called."""

    def __init__(self, quiet: bool = False, stream: TextIO | None = None, verbose: bool = False) -> None:
        """Talk on a stream, standard error by default.

        Args:
            quiet: say nothing at all; errors and warnings do not come this way.
            stream: where to.
            verbose: say details too, and at the end time and memory.
        """
        self._stream = stream or sys.stderr
        self._quiet, self._verbose, self._live = quiet, verbose and not quiet, is_live(self._stream)
        self._stage, self._done, self._total = "", 0, None  # type: tuple[str, int, int | None]
        self._begun = self._since = self._drawn = time.monotonic()
        self._first = (0, self._since)
        # How many were done, and when, at the first call of a stage: what was there before took no time.

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
            self.detail(f"{time.monotonic() - self._begun:.1f} s in all{_memory()}")
        elif self._stage:
            self._clear()

    def note(self, text: str) -> None:
        """Say a sentence on a line of its own."""
        if text and not self._quiet:
            self._clear()
            print(text, file=self._stream, flush=True)

    def detail(self, text: str) -> None:
        """Say a sentence that only `--verbose` asks for."""
        if self._verbose:
            self.note(text)

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
            self._done, self._total = at.step, at.steps
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
        pause = REDRAW_S if self._live else LOG_S
        if self._quiet or (now - self._drawn < pause and not (self._live and self._done == self._total)):
            return
        self._drawn = now
        if not self._live:
            print(text, file=self._stream, flush=True)
            return
        bar, columns = self._bar()
        width = max(0, shutil.get_terminal_size().columns - 1 - columns)
        print(f"\r{bar}{text[:width]}\033[K", end="", file=self._stream, flush=True)

    def _bar(self) -> tuple[str, int]:
        """A bar with a blank behind it, and how many columns it takes; nothing where it has no end."""
        if not self._total:
            return "", 0
        full = min(BAR, BAR * self._done // self._total)
        plain = (getattr(self._stream, "encoding", None) or "").lower().replace("-", "") != "utf8"
        done, rest = ("#" * full, "-" * (BAR - full)) if plain else ("━" * full, "─" * (BAR - full))
        return f"{coloured(done, GREEN, self._stream)}{rest}  ", BAR + 2

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


def is_live(stream: TextIO) -> bool:
    """Whether a stream is a terminal on which a line can be redrawn."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def coloured(text: str, colour: int, stream: TextIO) -> str:
    """A text in a colour on a terminal, unless `NO_COLOR` is set."""
    if not text or os.environ.get("NO_COLOR") or not is_live(stream):
        return text
    return f"\033[{colour}m{text}\033[0m"


def _memory() -> str:
    """The most memory that the program has taken so far, where the system tells."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return ""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f", {peak / 1e6:.0f} MB at most"


def pace(rate: float) -> str:
    """A rate for people: "7.5/s", or "3.1 s each" where it is slow."""
    return f"{rate:.{1 if rate < 100 else 0}f}/s" if rate >= 1 or rate <= 0 else f"{1 / rate:.1f} s each"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds: "0:42", "1:02:03"."""
    minutes, rest = divmod(round(min(seconds, 3.6e6)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
