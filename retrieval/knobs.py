"""What every record of knobs can do, and how one refuses a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from numbers import Integral, Real
from typing import Any, Self

from retrieval.errors import ConfigError


def within(record: object, name: str, low: float, high: float, unit: str = "") -> None:
    """Refuse what is no number, no whole one where the default is one, or out of range."""
    value, whole = getattr(record, name), isinstance(getattr(type(record), name, None), int)
    fits = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    if not fits or not low <= value <= high:
        raise ConfigError(
            f"{type(record).__name__}.{name} is {value!r}; expected a {'whole ' if whole else ''}number from "
            f"{low:g} to {high:g}{' ' + unit if unit else ''}"
        )


def one_of(record: object, name: str, choices: tuple[str, ...]) -> None:
    """Refuse what is none of the choices."""
    value = getattr(record, name)
    if value not in choices:
        raise ConfigError(
            f"{type(record).__name__}.{name} is {value!r}; expected one of {', '.join(choices)}"
        )


class Knobs:
    """What every record of knobs can do."""

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Make the record from a mapping; an unknown key is a ConfigError that lists the known ones."""
        known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ConfigError(f"{cls.__name__} has no {', '.join(unknown)}; it has {', '.join(known)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The record as plain values, for manifests and fingerprints."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]
