"""What a training says while it runs: to a callback, once a step; ours prints lines on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from retrieval.training.validate import Recall


@dataclass(frozen=True)
class Progress:
    """Where a training stands, after a step or at a note."""

    step: int
    """Steps done."""
    steps: int
    """Steps in all."""
    loss: float
    """Running mean of the loss."""
    rate: float
    """Steps in a second, of late; 0 where it is not known yet."""
    recall: Recall | None = None
    """Where it was just measured."""
    note: str = ""
    """A sentence for people, where there is one."""

    @property
    def seconds_left(self) -> float:
        """Time that the rest will take; infinite where it is not known."""
        return (self.steps - self.step) / self.rate if self.rate else float("inf")


ProgressCallback = Callable[[Progress], None]
"""Called after every step and at every note, in the thread that trains."""


def print_progress(every_s: float = 10.0) -> ProgressCallback:
    """A callback that prints to standard error: notes and validations at once, steps now and then.

    Args:
        every_s: seconds between lines about steps.

    Returns:
        The callback.
    """
    last = [0.0]

    def show(progress: Progress) -> None:
        now = time.monotonic()
        if (
            not (progress.recall or progress.note)
            and now - last[0] < every_s
            and progress.step < progress.steps
        ):
            return
        if not progress.note:
            last[0] = now
        print(_line(progress), file=sys.stderr, flush=True)

    return show


def _line(progress: Progress) -> str:
    """One line."""
    if progress.note:
        return progress.note
    text = f"step {progress.step}/{progress.steps}  loss {progress.loss:.4f}"
    if progress.rate:
        text += f"  {progress.rate:.1f} steps/s  {_clock(progress.seconds_left)} left"
    if progress.recall:
        text += f"  right place first {progress.recall.first:.3f}, in 20 {progress.recall.in_20:.3f}"
    return text


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
