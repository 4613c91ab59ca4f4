"""The base of all settings records: ranges, choices, renamed keys, checked in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from numbers import Integral, Real
from typing import Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

from retrieval.errors import ConfigError

UNBOUNDED = 10**6
"""An upper limit from here on only catches nonsense; texts leave it out."""


@dataclass(frozen=True)
class Setting:
    """Text, range and unit of a setting."""

    help: str
    """Meaning, in one or two sentences."""
    low: float | str | None = None
    """Smallest value, or the name of the setting that holds it; None for other than numbers."""
    high: float | str | None = None
    """Largest value, likewise."""
    unit: str = ""
    """Unit of the value."""

    @property
    def range(self) -> str:
        """The range for people: "1 to 64 px"; empty without a range."""
        if self.low is None or self.high is None:
            return ""
        unit = f" {self.unit}" if self.unit else ""
        if isinstance(self.high, (int, float)) and self.high >= UNBOUNDED:
            return f"at least {_number(self.low)}{unit}"
        return f"{_number(self.low)} to {_number(self.high)}{unit}"


def setting(
    default: Any,
    low: float | str | None = None,
    high: float | str | None = None,
    *,
    unit: str = "",
    help: str,
) -> Any:
    """Declare a field of a record.

    Args:
        default: the default; a record's class for a record within the record.
        low: smallest value, or the name of the field that holds it.
        high: largest value, likewise.
        unit: unit of the value.
        help: meaning, in one or two sentences.
    """
    metadata = {"setting": Setting(help, low, high, unit)}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


class Config:
    """What every settings record can do."""

    READ_BY: ClassVar[tuple[str, ...]] = ()
    """Commands that read the record's section of `retrieve.toml`."""
    RENAMED: ClassVar[Mapping[str, str]] = {}
    """Former key -> present key, for older settings files and manifests."""

    def __post_init__(self) -> None:
        for name, hint in field_types(type(self)).items():
            value = getattr(self, name)
            if is_dataclass(hint) and isinstance(value, Mapping):
                object.__setattr__(self, name, hint.from_mapping(value))  # type: ignore[union-attr]
            else:
                self._check(name, hint, value)

    def _check(self, name: str, hint: Any, value: Any) -> None:
        """Refuse a value of another type, out of range, or not among the choices."""
        expected, word = "", ""
        if get_origin(hint) is Union:  # a number or a word
            hint, words = get_args(hint)
            if value in get_args(words):
                return
            word = f"{', '.join(get_args(words))} or "
        if get_origin(hint) is Literal and value not in get_args(hint):
            expected = f"one of {', '.join(get_args(hint))}"
        elif is_dataclass(hint) and not isinstance(value, hint):  # type: ignore[arg-type]
            expected = f"a mapping or a {hint.__name__}"  # type: ignore[union-attr]
        elif hint is bool and not isinstance(value, bool):
            expected = "true or false"
        elif hint in (int, float):
            description = settings_of(type(self))[name]
            low, high = (self._limit(limit) for limit in (description.low, description.high))
            numeric = isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
            if not numeric or not low <= value <= high:
                number = "a whole number" if hint is int else "a number"
                expected = f"{word}{number}, {replace(description, low=low, high=high).range}"
        if expected:
            raise ConfigError(f"{type(self).__name__}.{name} is {value!r}. Expected {expected}.")

    def _limit(self, limit: float | str | None) -> float:
        assert limit is not None, "every number has a range"
        return getattr(self, limit) if isinstance(limit, str) else limit

    @classmethod
    def current_names(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the mapping with former keys replaced by present ones."""
        return {cls.RENAMED.get(name, name): value for name, value in values.items()}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Return the record of a mapping.

        Raises:
            ConfigError: an unknown key, with the known ones, or a value out of range.
        """
        values = cls.current_names(values)
        known = list(field_types(cls))
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ConfigError(f"{cls.__name__} has no {', '.join(unknown)}. Expected {', '.join(known)}.")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain values, for manifests and fingerprints."""
        return asdict(self)  # type: ignore[call-overload]


def field_types(kind: Any) -> dict[str, Any]:
    """Return the type of each field of a record, in order."""
    hints = get_type_hints(kind)
    return {f.name: hints[f.name] for f in fields(kind)}


def settings_of(kind: Any) -> dict[str, Setting]:
    """Return the description of each field of a record, in order."""
    return {f.name: f.metadata["setting"] for f in fields(kind)}


def _number(value: float | str) -> str:
    return f"`{value}`" if isinstance(value, str) else f"{value:,g}" if value < 1000 else f"{value:,.0f}"
