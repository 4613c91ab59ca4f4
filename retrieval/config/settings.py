"""`retrieve.toml`: every knob of the engine in one file, a section for each record of `retrieval.config`.

    [index]
    stride_px = 16

    [train.augment]
    haze = 0.5

Sections and keys are those of the records, whatever they are: `IndexConfig` is `[index]`, a record
within a record is a section within its section. What is not known is refused with what is.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import retrieval.config as knobs
from retrieval.config import engine, recipes
from retrieval.config.engine import Config
from retrieval.errors import ConfigError

_MODULES = (engine, recipes)
"""Where the records are."""
FILE = Path("retrieve.toml")
"""Read where no other file is named and this one is in the working folder."""
WIDTH = 100
"""Columns of a page of settings."""

Record = TypeVar("Record")


@dataclass(frozen=True)
class Settings:
    """What a file says of the knobs; all else has its default."""

    path: Path | None = None
    """The file; None where there is none."""
    given: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Values by section and key, checked: only what the file states."""

    def make(self, kind: type[Record], /, **flags: Any) -> Record:
        """A record of knobs: the flags that were given, then the file's values, then the defaults.

        Args:
            kind: a record of `retrieval.config` with a section of its own.
            flags: values by key; None is a flag that was not given, a mapping a record within it.

        Raises:
            ConfigError: a value out of range, or a key that is unknown.
        """
        stated = {name: value for name, value in flags.items() if value is not None}
        return _build(kind, _merged(self.given.get(section_of(kind), {}), stated))

    def note(self, *kinds: type) -> str:
        """One line on what the file states of some records; empty where it states nothing."""
        stated = [
            f"{section}.{key} = {_toml(value)}"
            for section in map(section_of, kinds)
            for key, value in _flat(self.given.get(section, {}))
        ]
        return f"{self.path}: {', '.join(stated)}" if stated else ""


def read_settings(path: str | Path | None = None) -> Settings:
    """Read a file of settings.

    Args:
        path: the file; None takes `retrieve.toml` of the working folder where there is one.

    Returns:
        What it says; nothing where there is no file.

    Raises:
        ConfigError: no such file, no TOML, an unknown section or key, or a value that cannot be.
    """
    if path is None and not FILE.is_file():
        return Settings()
    path = Path(path or FILE)
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; `retrieve config --defaults` prints one") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML: {error}; expected such as [index] stride_px = 16") from error
    known = sections()
    for name, values in given.items():
        if name not in known or not isinstance(values, dict):
            what = f"section [{name}]" if isinstance(values, dict) else f"key {name!r} outside of a section"
            raise ConfigError(f"{path} has a {what}; expected {', '.join(f'[{s}]' for s in known)}")
        given[name] = known[name].current_names(values)
        _check(path, name, known[name], given[name])
    return Settings(path, given)


@cache
def sections() -> dict[str, type[Config]]:
    """The records that have a section of their own, by its name: those that are in no other record."""
    records = [
        c
        for _, c in inspect.getmembers(knobs, inspect.isclass)
        if issubclass(c, Config) and c.__module__ in [m.__name__ for m in _MODULES] and c is not Config
    ]
    inner = {kind for record in records for kind in _hints(record).values() if is_dataclass(kind)}
    outer = [record for record in records if record not in inner]
    return {
        section_of(c): c for c in sorted(outer, key=lambda c: (c.__module__, inspect.getsourcelines(c)[1]))
    }


def section_of(kind: type) -> str:
    """Name of a record's section: `IndexConfig` is "index", `TileServerConfig` "tile_server"."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__.removesuffix("Config")).lower()


# --- checking -----------------------------------------------------------------------------------


def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {f.name: hints[f.name] for f in fields(kind)}


def _check(path: Path, section: str, kind: Any, values: Mapping[str, Any]) -> None:
    """Refuse keys that are unknown and values that cannot be, with the file's and the section's name."""
    hints = _hints(kind)
    for key, value in values.items():
        hint = hints.get(key)
        if is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise ConfigError(
                    f"{path}: {section}.{key} is {value!r}; expected a section [{section}.{key}]"
                )
            _check(path, f"{section}.{key}", hint, value)
        elif hint is bool and not isinstance(value, bool):
            raise ConfigError(f"{path}: {section}.{key} is {value!r}; expected true or false")
    try:
        _build(kind, values)
    except ConfigError as error:
        raise ConfigError(f"{path}, [{section}]: {error}") from error
    except TypeError as error:
        raise ConfigError(
            f"{path}, [{section}]: a value of another type than is expected: {error}"
        ) from error


def _build(kind: Any, values: Mapping[str, Any]) -> Any:
    """A record from plain values; lists become tuples, since records are frozen."""
    hints, plain = _hints(kind), {}
    for key, value in values.items():
        hint = hints.get(key)
        if is_dataclass(hint) and isinstance(value, Mapping):
            value = _build(hint, value)
        plain[key] = tuple(value) if isinstance(value, list) else value
    return kind.from_mapping(plain)


def _merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Values of both; where both have one, the second's, section by section."""
    both = {k: _merged(low[k], high[k]) for k in low if k in high and _are_sections(low[k], high[k])}
    return {**low, **high, **both}


def _are_sections(*values: Any) -> bool:
    return all(isinstance(value, Mapping) for value in values)


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Keys and values, those of inner sections as "section.key"."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{inner}", v) for inner, v in _flat(value))
        else:
            yield key, value


# --- writing ------------------------------------------------------------------------------------


def page(settings: Settings) -> str:
    """All knobs as a file of settings, each with its comment; what a file states is marked.

    Args:
        settings: from `read_settings`; an empty one gives the page of the defaults.
    """
    head = "# Knobs of `retrieve`. A flag on the command line comes before this file, it before the defaults."
    bodies = (
        "\n".join(_section(name, kind, settings.given.get(name, {}))) for name, kind in sections().items()
    )
    return "\n\n\n".join([head, *bodies]) + "\n"


def resolved(settings: Settings) -> dict[str, dict[str, Any]]:
    """All knobs as plain values by section, for programs."""
    return {name: settings.make(kind).to_dict() for name, kind in sections().items()}


def _section(name: str, kind: Any, given: Mapping[str, Any]) -> Iterator[str]:
    """Lines of a record's section, and of the sections within it."""
    yield from _comment(inspect.getdoc(kind) or "")
    yield f"[{name}]"
    record, texts, hints = _build(kind, given), _texts()[kind.__name__], _hints(kind)
    inner = [f.name for f in fields(kind) if is_dataclass(hints[f.name])]
    for f in fields(kind):
        if f.name not in inner:
            yield ""
            yield from _comment(texts[f.name] + _choices(hints[f.name]))
            yield _value(f.name, getattr(record, f.name), getattr(kind(), f.name), f.name in given)
    for key in inner:
        yield ""
        yield from _section(f"{name}.{key}", hints[key], given.get(key, {}))


def _value(name: str, value: Any, default: Any, stated: bool) -> str:
    """A key and its value; a comment where there is none, and what the default is where it is another."""
    if value is None:
        return f"# {name} ="
    told = "" if not stated or value == default else f"  # the default is {_toml(default)}"
    return f"{name} = {_toml(value)}{told}"


def _comment(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), WIDTH, initial_indent="# ", subsequent_indent="# ")


def _choices(hint: Any) -> str:
    """The words that a key may have, as a sentence."""
    kinds = [hint, *get_args(hint)]
    words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    return f" One of {', '.join(words)}." if words else ""


def _toml(value: Any) -> str:
    """A value as TOML has it."""
    if value is None:
        return "not set"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


@cache
def _texts() -> dict[str, dict[str, str]]:
    """The text below every field of every record: class name -> field -> text."""
    nodes = [node for module in _MODULES for node in ast.parse(inspect.getsource(module)).body]
    return {
        node.name: {
            here.target.id: inspect.cleandoc(str(after.value.value))
            for here, after in zip(node.body, node.body[1:], strict=False)
            if isinstance(here, ast.AnnAssign)
            and isinstance(here.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        }
        for node in nodes
        if isinstance(node, ast.ClassDef)
    }
