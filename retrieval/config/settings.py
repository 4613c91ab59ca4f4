"""`retrieve.toml`: all settings in one file, with a section for each record of `retrieval.config`.

    [index]
    stride_px = 16

    [train.augment]
    haze = 0.5

A record within a record is a section within its section. Unknown keys are errors that list the known ones.
"""

from __future__ import annotations

import inspect
import json
import re
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from retrieval.config.engine import ChipConfig, IndexConfig, RefineConfig, SearchConfig
from retrieval.config.recipes import (
    CloudConfig,
    DemoConfig,
    RepresentationConfig,
    TrainConfig,
    VerifierConfig,
)
from retrieval.config.record import Config, Setting, field_types, settings_of
from retrieval.config.task_recipes import ClassifierConfig, ForestConfig, SegmenterConfig
from retrieval.errors import ConfigError

FILE = Path("retrieve.toml")
"""Settings file of the working folder, read where no other is named."""
RENAMED_SECTIONS = {"covered": "cloud"}
"""Sections of 0.1.0 and their present names."""
WIDTH = 100
"""Columns of a printed settings file."""

Record = TypeVar("Record", bound=Config)


def section_of(kind: type) -> str:
    """Return the name of a record's section: "tile_server" for `TileServerConfig`."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", kind.__name__.removesuffix("Config")).lower()


RECORDS = (
    IndexConfig,
    SearchConfig,
    RefineConfig,
    ChipConfig,
    VerifierConfig,
    CloudConfig,
    RepresentationConfig,
    TrainConfig,
    ClassifierConfig,
    SegmenterConfig,
    ForestConfig,
    DemoConfig,
)
SECTIONS: dict[str, type[Config]] = {section_of(kind): kind for kind in RECORDS}
"""Record of each section that a settings file may hold."""


@dataclass(frozen=True)
class Settings:
    """The values that a settings file states; all others have their default."""

    path: Path | None = None
    """The file, or None."""
    given: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Checked values by section and key."""

    def make(self, kind: type[Record], /, **flags: Any) -> Record:
        """Return a record: flags override the file, the file overrides the defaults.

        Args:
            kind: a record with a section.
            flags: values by key; None for a flag that was not given, a mapping for a record within it.

        Raises:
            ConfigError: an unknown key, or a value out of range.
        """
        given = {name: value for name, value in flags.items() if value is not None}
        return kind.from_mapping(_merged(self.given.get(section_of(kind), {}), given))

    def note(self, *kinds: type[Config]) -> str:
        """Return one line with what the file states for some records; empty for nothing."""
        stated = [
            f"{section}.{key} = {_toml(value)}"
            for section in map(section_of, kinds)
            for key, value in _flat(self.given.get(section, {}))
        ]
        return f"{self.path}: {', '.join(stated)}" if stated else ""


def read_settings(path: str | Path | None = None) -> Settings:
    """Read a settings file.

    Args:
        path: the file; None reads `retrieve.toml` of the working folder if it exists.

    Raises:
        ConfigError: the file is missing or no TOML, a section or key is unknown, or a value out of range.
    """
    if path is None and not FILE.is_file():
        return Settings()
    path = Path(path or FILE)
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. `retrieve config --defaults` prints one.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is no TOML: {error}. Expected lines such as stride_px = 16.") from error
    given = {RENAMED_SECTIONS.get(name, name): values for name, values in given.items()}
    for name, values in given.items():
        if name not in SECTIONS or not isinstance(values, dict):
            what = f"section [{name}]" if isinstance(values, dict) else f"key {name!r} outside of a section"
            raise ConfigError(f"{path} has a {what}. Expected {', '.join(f'[{s}]' for s in SECTIONS)}.")
        given[name] = SECTIONS[name].current_names(values)
        _check(path, name, SECTIONS[name], given[name])
    return Settings(path, given)


def _check(path: Path, section: str, kind: type[Config], values: Mapping[str, Any]) -> None:
    """Refuse a section with an unknown key or a value out of range; the error names file and section."""
    for key, hint in field_types(kind).items():
        if key in values and is_dataclass(hint):
            if not isinstance(values[key], Mapping):
                expected = f"a section [{section}.{key}]"
                raise ConfigError(f"{path}: {section}.{key} is {values[key]!r}. Expected {expected}.")
            _check(path, f"{section}.{key}", hint, values[key])  # type: ignore[arg-type]
    try:
        kind.from_mapping(values)
    except ConfigError as error:
        raise ConfigError(f"{path}, [{section}]: {error}") from error


def _merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of both; the second overrides the first, section by section."""
    inner = {k: low[k] for k, v in high.items() if isinstance(v, Mapping) and isinstance(low.get(k), Mapping)}
    return {**low, **high, **{key: _merged(values, high[key]) for key, values in inner.items()}}


def _flat(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield keys and values; keys of inner sections are "section.key"."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}.{inner}", v) for inner, v in _flat(value))
        else:
            yield key, value


def page(settings: Settings) -> str:
    """Return the settings that commands read as the text of a settings file.

    Args:
        settings: from `read_settings`; `Settings()` for the defaults.
    """
    head = "# Settings of `retrieve`. Flags override this file, and this file overrides the defaults."
    sections = [
        "\n".join(_section(name, kind, settings.given.get(name, {})))
        for name, kind in SECTIONS.items()
        if kind.READ_BY
    ]
    return "\n\n\n".join([head, *sections]) + "\n"


def resolved(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return the settings that commands read as plain values by section."""
    return {name: settings.make(kind).to_dict() for name, kind in SECTIONS.items() if kind.READ_BY}


def _section(name: str, kind: type[Config], given: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a record's section and of its inner sections."""
    yield from _comment(inspect.getdoc(kind) or "")
    yield f"[{name}]"
    values, defaults, types = kind.from_mapping(given).to_dict(), kind().to_dict(), field_types(kind)
    for key, description in settings_of(kind).items():
        if not is_dataclass(types[key]):
            yield ""
            yield from _comment(description.help)
            remarks = [_allowed(description, types[key])]
            remarks += [f"default {_toml(defaults[key])}"] if values[key] != defaults[key] else []
            yield f"{key} = {_toml(values[key])}" + (f"  # {'; '.join(remarks)}" if any(remarks) else "")
    for key, inner in types.items():
        if is_dataclass(inner):
            yield ""
            yield from _section(f"{name}.{key}", inner, given.get(key, {}))  # type: ignore[arg-type]


def _allowed(description: Setting, hint: Any) -> str:
    """Return the choices or the range of a setting for people."""
    if get_origin(hint) is Literal:
        return ", ".join(get_args(hint))
    if get_origin(hint) is Union:
        number, words = get_args(hint)
        return f"{_allowed(description, words)}, or {_allowed(description, number)}"
    return "true, false" if hint is bool else description.range


def _comment(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), WIDTH, initial_indent="# ", subsequent_indent="# ")


def _toml(value: Any) -> str:
    """Return a value in TOML."""
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
