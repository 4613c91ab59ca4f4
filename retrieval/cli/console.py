"""Progress and notes on standard error: a bar on a terminal, lines elsewhere.

A terminal shows bar, count, rate and time left. A file or a pipe receives a line when a stage ends, and one
every half minute of a long stage. `NO_COLOR` (https://no-color.org) turns colours off.
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
    from retrieval.training.trainer import Progress as TrainingProgress

REDRAW_S = 0.1
"""Shortest time between two redraws of the bar on a terminal."""
LOG_S = 30.0
"""Time between two lines of a running stage where there is no terminal."""
BAR = 24
"""Columns of the bar."""
GREEN, YELLOW, RED = 32, 33, 31
"""Colours of a terminal (ANSI)."""


class ConsoleProgress:
    """Notes and progress of one command; call it as a `retrieval.types.Progress`."""

    def __init__(
        self,
        quiet: bool = False,
        stream: TextIO | None = None,
        verbose: bool = False,
        redraw_s: float = REDRAW_S,
    ) -> None:
        """Print to a stream.

        Args:
            quiet: print nothing; errors and warnings do not pass through here.
            stream: where to print; None for standard error.
            verbose: also print details, and at the end time and memory.
            redraw_s: shortest time between two redraws of the bar.
        """
        self._stream = stream or sys.stderr
        self._quiet, self._verbose, self._live = quiet, verbose and not quiet, is_live(self._stream)
        self._interval_s = redraw_s if self._live else LOG_S
        self._stage, self._done, self._total = "", 0, None  # type: tuple[str, int, int | None]
        self._start = self._stage_start = self._last_draw = time.monotonic()
        # Count and time at the first call of a stage: the rate leaves out what an earlier run finished.
        self._origin = (0, self._stage_start)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish_stage()
            self.detail(f"{time.monotonic() - self._start:.1f} s in all{_peak_memory()}")
        elif self._stage:
            self._clear_line()

    def note(self, text: str) -> None:
        """Print a sentence on its own line."""
        if text and not self._quiet:
            self._clear_line()
            print(text, file=self._stream, flush=True)

    def detail(self, text: str) -> None:
        """Print a sentence with `--verbose` only."""
        if self._verbose:
            self.note(text)

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        """Show that `done` of `total` items of a stage are done; None for an unknown total."""
        if stage != self._stage or done < self._done:
            self._finish_stage()
            self._stage, self._origin = stage, (done, time.monotonic())
        self._done, self._total = done, total
        self._draw(self._stage_text())

    def counted(self, stage: str) -> Callable[[int, int], None]:
        """Return a callback of (done, total) for one stage."""
        return lambda done, total: self(stage, done, total)

    def training(self, state: TrainingProgress) -> None:
        """Show the state of a training: notes and validations as lines, steps on the bar."""
        if state.note:
            self.note(state.note)
        elif state.recall:
            # There is no loss before the first step.
            loss = f"loss {state.loss:.4f}, " if math.isfinite(state.loss) else ""
            recall = f"recall@1 {state.recall.first:.3f}, recall@20 {state.recall.in_20:.3f}"
            self.note(f"step {state.step} of {state.steps}: {loss}{recall}")
        elif state.accuracy:
            accuracy = f"loss {state.loss:.4f}, validation accuracy {state.accuracy.share:.3f}"
            self.note(f"step {state.step} of {state.steps}: {accuracy}")
        elif state.maps:
            agreement = f"validation IoU {state.maps.miou:.3f}, MCC {state.maps.mcc:.3f}"
            self.note(f"step {state.step} of {state.steps}: loss {state.loss:.4f}, {agreement}")
        else:
            left = f"  {clock(state.seconds_left)} left" if state.rate else ""
            self._done, self._total = state.step, state.steps
            count = f"{state.stage}  {state.step}/{state.steps}"
            self._draw(f"{count}  loss {state.loss:.4f}  {pace(state.rate)}{left}")

    def _stage_text(self) -> str:
        if self._total is None:
            return f"{self._stage} ..."
        text = f"{self._stage}  {self._done}/{self._total}"
        count, seconds = self._done - self._origin[0], time.monotonic() - self._origin[1]
        if count <= 0 or seconds <= 0 or self._done == self._total:
            return text
        rate = count / seconds
        return f"{text}  {pace(rate)}  {clock((self._total - self._done) / rate)} left"

    def _draw(self, text: str) -> None:
        now = time.monotonic()
        complete = self._live and self._done == self._total
        if self._quiet or (now - self._last_draw < self._interval_s and not complete):
            return
        self._last_draw = now
        if not self._live:
            print(text, file=self._stream, flush=True)
            return
        bar, columns = self._bar()
        width = max(0, shutil.get_terminal_size().columns - 1 - columns)
        print(f"\r{bar}{text[:width]}\033[K", end="", file=self._stream, flush=True)

    def _bar(self) -> tuple[str, int]:
        """Return the bar and its width in columns; empty where the total is unknown."""
        if not self._total:
            return "", 0
        full = min(BAR, BAR * self._done // self._total)
        unicode = (getattr(self._stream, "encoding", None) or "").lower().replace("-", "") == "utf8"
        done, rest = ("━" * full, "─" * (BAR - full)) if unicode else ("#" * full, "-" * (BAR - full))
        return f"{coloured(done, GREEN, self._stream)}{rest}  ", BAR + 2

    def _clear_line(self) -> None:
        if self._live and not self._quiet:
            print("\r\033[K", end="", file=self._stream, flush=True)

    def _finish_stage(self) -> None:
        """Print one line about the finished stage."""
        now = time.monotonic()
        if self._stage:
            seconds = now - self._stage_start
            count = f": {self._done}" if self._done else ""
            rate = f", {pace(self._done / seconds)}" if self._done and seconds > 0 else ""
            self.note(f"{self._stage}{count} in {seconds:.1f} s{rate}")
            self._stage_start = now
        self._stage, self._done = "", 0


def is_live(stream: TextIO) -> bool:
    """Return whether a stream is a terminal on which a line can be redrawn."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def coloured(text: str, colour: int, stream: TextIO) -> str:
    """Return a text in a colour on a terminal, unless `NO_COLOR` is set."""
    if not text or os.environ.get("NO_COLOR") or not is_live(stream):
        return text
    return f"\033[{colour}m{text}\033[0m"


def _peak_memory() -> str:
    """Return the peak memory of the process for people; empty where the system does not report it."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return ""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f", {peak / 1e6:.0f} MB at most"


def pace(rate: float) -> str:
    """Return a rate for people: "7.5/s", or "3.1 s each" where it is slow."""
    return f"{rate:.{1 if rate < 100 else 0}f}/s" if rate >= 1 or rate <= 0 else f"{1 / rate:.1f} s each"


def clock(seconds: float) -> str:
    """Return hours, minutes and seconds: "0:42", "1:02:03"."""
    minutes, rest = divmod(round(min(seconds, 3.6e6)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
