"""Write docs/cli.md and docs/settings.md from the commands and the settings records.

With --check, only report whether they are up to date.

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

from retrieval.cli import all_commands, app
from retrieval.config.settings import SECTIONS, Settings
from retrieval.config.settings import page as settings_page

HERE = Path(__file__).parent
SETTINGS = """# Settings

<!-- Made by docs/generate_cli.py from retrieval/config: change it there, then run the script. -->

`retrieve index`, `query`, `train` and `demo` read `retrieve.toml` in the working folder, or the file that
`--config` or the variable `RETRIEVE_CONFIG` names. They print the settings that they take from it. A flag
overrides the file, and the file overrides the defaults. An unknown section or key, or a value out of range,
is an error that lists the allowed ones.

| command | sections that it reads |
|---|---|
{commands}

```sh
retrieve config --defaults > retrieve.toml   # all settings: delete those that keep their default
retrieve config                              # the settings in use here; --json for programs
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
Finished outputs are kept unless you pass `--overwrite`. Run the same command again to resume an unfinished
output.

`retrieve --install-completion` enables shell completion. Progress goes to standard error: a bar with rate and
time left on a terminal, lines in a file. `--quiet` hides it, `--verbose` adds details, `NO_COLOR` turns
colours off. `--json` prints one object on standard output. Warnings are always printed. Settings without a
flag are in [`retrieve.toml`](settings.md).

| command | purpose |
|---|---|
"""


def page() -> str:
    """Return the text of docs/cli.md."""
    intro = inspect.getdoc(app.registered_callback.callback)  # type: ignore[union-attr,arg-type]
    commands = all_commands()
    rows = [
        f"| [`retrieve {c.name}`](#retrieve-{(c.name or '').replace(' ', '-')}) | {c.short_help} |"
        for c in commands
    ]
    sections = ["\n".join(_section(command)) for command in commands]
    return HEAD.format(intro=intro) + "\n".join(rows) + "\n\n" + "\n\n".join(sections) + "\n"


def settings_text() -> str:
    """Return the text of docs/settings.md."""
    commands = dict.fromkeys(name for kind in SECTIONS.values() for name in kind.READ_BY)
    rows = []
    for name in commands:
        sections = [f"`[{section}]`" for section, kind in SECTIONS.items() if name in kind.READ_BY]
        rows.append(f"| `retrieve {name}` | {', '.join(sections)} |")
    return SETTINGS.format(commands="\n".join(rows), text=settings_page(Settings()))


def _section(command: CommandInfo) -> Iterator[str]:
    """Yield the lines of one command."""
    yield f"## retrieve {command.name}"
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
    """Return the table row of one argument or flag."""
    if isinstance(info, ArgumentInfo):
        text = f"`{info.metavar}`"
    else:
        value = "" if kind is bool else f" {_value(kind, info)}"
        # In an annotation Typer takes the first flag for the default, and mends that later.
        flags = [flag for flag in (info.default, *(info.param_decls or ())) if isinstance(flag, str)]
        text = ", ".join(f"`{flag}{value}`" for flag in flags or [f"--{name.replace('_', '-')}"])
    meaning = (info.help or "") + _range(info)
    return f"| {text} | {_default(kind, info, default)} | {meaning} |".replace(" |  |", " | |")


def _value(kind: Any, info: OptionInfo) -> str:
    """Return the kind of value that a flag takes."""
    if info.metavar or _choices(kind):
        return (info.metavar or "").replace("|", "/") or "/".join(_choices(kind))
    words = {int: "NUMBER", float: "NUMBER", Path: "PATH", str: "TEXT"}
    return next(words[part] for part in (get_args(kind) or (kind,)) if part in words)


def _choices(kind: Any) -> tuple[str, ...]:
    """Return the words of a Literal, optional or not."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return next((get_args(part) for part in get_args(kind) if get_origin(part) is Literal), ())


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
    """Write or check the pages; return 0 if they are up to date."""
    pages = {"cli.md": page(), "settings.md": settings_text()}
    for name, text in pages.items():
        path = HERE / name
        if sys.argv[1:] != ["--check"]:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            print(f"{path} is out of date. Run python docs/generate_cli.py.", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
