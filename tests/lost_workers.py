"""Executors whose workers die: the first one that has done a task of a kind is killed before it answers."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path


class Deadly:
    """Runs a function on a worker; the first worker that has done a task dies with it, once."""

    def __init__(self, function, mark):
        self.function, self.mark = function, Path(mark)

    def __call__(self, task):
        result = self.function(task)
        with suppress(FileExistsError):
            self.mark.touch(exist_ok=False)  # only one worker makes it
            os.kill(os.getpid(), signal.SIGKILL)
        return result


class Losing:
    """An executor that loses a worker in each step, when its first task is nearly done."""

    in_process = False

    def __init__(self, inner, folder):
        self.inner, self.folder = inner, Path(folder)

    def slots(self):
        return self.inner.slots()

    def sees(self, path):
        return self.inner.sees(path)

    def map(self, function, tasks):
        mark = self.folder / f"{getattr(function, '__name__', 'task')}.killed"
        return self.inner.map(Deadly(function, mark), tasks)

    @property
    def killed(self):
        """Names of the functions whose worker died."""
        return {path.stem for path in self.folder.glob("*.killed")}
