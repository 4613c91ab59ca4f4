"""The command line: parse, one call, print.

One file holds one command; `query` also holds `score`, and `setup` holds `demo`, `doctor` and `config`.
`app` lists the commands and prints results. `options` holds the shared flags. `error_handling` turns errors
into one sentence and an exit code. `console` prints notes and progress on standard error.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

from retrieval.cli.app import all_commands, app


def main() -> None:
    """Run `retrieve`."""
    app(prog_name="retrieve")


__all__ = ["all_commands", "app", "main"]
