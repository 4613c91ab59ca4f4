"""The command line: parse, one call, print.

`job`, `calibrate`, `look`, `make`, `catalogue`, `give` and `check` hold the commands, `app` what they hang
on, `options` the flags that they share; `change` is what `index` does to a finished index, `guard` turns
what goes wrong into one sentence and an exit code, `talk` says on standard error how far things are. Nothing
here decides anything; what takes long to import is imported inside the commands, so that `--help` is instant.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

# In the order of the help.
# isort: off
from retrieval.cli import job, look, make, calibrate, catalogue, give, check  # noqa: F401 - they enter their commands

# isort: on
from retrieval.cli.app import app


def main() -> None:
    """Run `retrieve`."""
    app(prog_name="retrieve")


__all__ = ["app", "main"]
