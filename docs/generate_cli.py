"""Write docs/cli.md and docs/settings.md from what the commands and the records of knobs declare.

With --check, only say whether they are up to date.

python docs/generate_cli.py
python docs/generate_cli.py --check
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from typer.models import ArgumentInfo, CommandInfo, OptionInfo

from retrieval.cli import app
from retrieval.config.settings import Settings
from retrieval.config.settings import page as settings_page

HERE = Path(__file__).parent
SETTINGS = """# Settings

<!-- Made by docs/generate_cli.py from retrieval/config: change it there, then run the script. -->

Every knob can be set in a file. `retrieve index`, `query`, `train` and `demo` read `retrieve.toml` in the
working folder, or the file that `--config` or the variable `RETRIEVE_CONFIG` names, and say which knobs they
took from it: `index` those of `[index]`, `query` those of `[search]` and `[refine]`, `train` and `demo` their
own. A flag on the command line comes before the file, the file before the defaults. A section, a key or a
value that cannot be is refused, with what can.

```sh
retrieve config --defaults > retrieve.toml   # all knobs: delete what shall stay as it is
retrieve config                              # what holds here; --json for programs
```

From Python, `retrieval.config.settings.read_settings("retrieve.toml").make(IndexConfig)` returns the record
that the commands use. These are the defaults:

```toml
{text}```
"""
HEAD = """# Command line

<!-- Made by docs/generate_cli.py from what the commands declare: change it there, then run the script. -->

{intro}

Exit codes: 0 done, 1 failed (one sentence on standard error says why), 2 wrong usage, 130 interrupted.
A finished output is left alone without `--overwrite`; an unfinished one is gone on with by the same command.

`retrieve --install-completion` teaches the shell to complete commands and flags. Progress goes to standard
error: a bar with rate and time left on a terminal, lines in a file; `--quiet` leaves it out, `--verbose` adds
to it, and `NO_COLOR` takes the colours away. `--json` prints one object on standard output. Knobs without a
flag are set in [`retrieve.toml`](settings.md).

| command | from what to what |
|---|---|
"""


def page() -> str:
    """The page's whole text."""
    intro = inspect.getdoc(app.registered_callback.callback)  # type: ignore[union-attr,arg-type]
    rows = [
        f"| [`retrieve {_name(c)}`](#retrieve-{_name(c)}) | {c.short_help} |" for c in app.registered_commands
    ]
    sections = ["\n".join(_section(command)) for command in app.registered_commands]
    return HEAD.format(intro=intro) + "\n".join(rows) + "\n\n" + "\n\n".join(sections) + "\n"


def _name(command: CommandInfo) -> str:
    return command.name or command.callback.__name__.rstrip("_")  # type: ignore[union-attr]


def _section(command: CommandInfo) -> Iterator[str]:
    """Lines of one command."""
    yield f"## retrieve {_name(command)}"
    yield ""
    yield inspect.getdoc(command.callback) or ""
    yield ""
    yield "```sh"
    yield from (line.strip() for line in (command.epilog or "").splitlines()[2:])
    yield "```"
    yield ""
    yield "| argument or flag | default | meaning |"
    yield "|---|---|---|"
    assert command.callback is not None
    parameters = inspect.signature(command.callback).parameters
    for name, hint in get_type_hints(command.callback, include_extras=True).items():
        if get_args(hint) and isinstance(info := get_args(hint)[-1], (ArgumentInfo, OptionInfo)):
            yield _row(name, get_args(hint)[0], info, parameters[name].default)


def _row(name: str, kind: Any, info: ArgumentInfo | OptionInfo, default: Any) -> str:
    """One argument or flag."""
    if isinstance(info, ArgumentInfo):
        told = f"`{info.metavar}`"
    else:
        value = "" if kind is bool else f" {_value(kind, info)}"
        # In an annotation Typer takes the first flag for the default, and mends that later.
        flags = [flag for flag in (info.default, *(info.param_decls or ())) if isinstance(flag, str)]
        told = ", ".join(f"`{flag}{value}`" for flag in flags or [f"--{name.replace('_', '-')}"])
    meaning = (info.help or "") + _range(info)
    return f"| {told} | {_default(kind, info, default)} | {meaning} |".replace(" |  |", " | |")


def _value(kind: Any, info: OptionInfo) -> str:
    """What a flag takes."""
    kinds = (
        [one for one in (get_args(kind) or (kind,)) if one is not type(None)] if not _choices(kind) else []
    )
    words = {int: "NUMBER", float: "NUMBER", Path: "PATH", str: "TEXT"}
    return (info.metavar or "").replace("|", "/") or "/".join(_choices(kind)) or words[kinds[0]]


def _choices(kind: Any) -> tuple[str, ...]:
    """The words of a Literal, also of one that may be None."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return next((get_args(one) for one in get_args(kind) if get_origin(one) is Literal), ())


def _range(info: ArgumentInfo | OptionInfo) -> str:
    if info.min is None:
        return ""
    return f" From {info.min:g}." if info.max is None else f" {info.min:g} to {info.max:g}."


def _default(kind: Any, info: ArgumentInfo | OptionInfo, default: Any) -> str:
    if isinstance(info.show_default, str):
        return info.show_default
    if default is inspect.Parameter.empty:
        return "required"
    return "" if kind is bool or default is None else f"`{default}`"


def main() -> int:
    """Write or check the page; 0 if it is as it should be."""
    pages = {"cli.md": page(), "settings.md": SETTINGS.format(text=settings_page(Settings()))}
    for name, text in pages.items():
        path = HERE / name
        if sys.argv[1:] != ["--check"]:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            print(f"{path} is not what the code declares: run python docs/generate_cli.py", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
