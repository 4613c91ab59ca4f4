"""Dates in names of files, the days that a date covers, and the day of an acquisition."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable

_DAY = re.compile(r"(?<!\d)((?:19|20)\d\d)([-_.]?)(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])(?!\d)")
_MONTH = re.compile(r"(?<!\d)((?:19|20)\d\d)[-_.](0[1-9]|1[0-2])(?!\d)")
_YEAR = re.compile(r"(?<!\d)((?:19|20)\d\d)(?!\d)")
_WORD = re.compile(r"(?<![a-z])(before|pre|after|post)(?![a-z])", re.IGNORECASE)
_WORDS = {"before": "before", "pre": "before", "after": "after", "post": "after"}
_TIFF = re.compile(r"(\d{4}):(\d\d):(\d\d)(?=\D|$)")
_WHOLE = re.compile(r"(\d{4})(?:-(\d\d)(?:-(\d\d))?)?")


def date_of(name: str) -> str | None:
    """Return the date in a file name.

    Args:
        name: name without its suffix, such as `2015-08-20`, `S2A_20180723T100031_crop`, `2019-09`,
            `2018` or `before`. A day takes precedence over a month, a month over a year, a year over a word.

    Returns:
        YYYY-MM-DD, YYYY-MM, YYYY, `before` or `after`; None where the name holds no date.
    """
    if date := sure_date_of(name):
        return date
    if year := _YEAR.search(name):
        return year[1]
    word = _WORD.search(name)
    return _WORDS[word[1].lower()] if word else None


def sure_date_of(name: str) -> str | None:
    """Return the day or month in a file name; a year alone may be another number and does not count."""
    for match in _DAY.finditer(name):
        text = f"{match[1]}-{match[3]}-{match[4]}"
        try:
            datetime.date.fromisoformat(text)
        except ValueError:
            continue
        return text
    month = _MONTH.search(name)
    return f"{month[1]}-{month[2]}" if month else None


def days_of(date: str) -> tuple[str, str] | None:
    """Return the first and last day of a date.

    Args:
        date: YYYY, YYYY-MM, YYYY-MM-DD, or an ISO moment that begins with a day.

    Returns:
        Two ISO days, equal for a day; None if the text is not a date.
    """
    match = _WHOLE.fullmatch(date.split("T")[0])
    if not match:
        return None
    year, month, day = (int(v) if v else None for v in match.groups())
    try:
        first = datetime.date(int(year or 0), month or 1, day or 1)
        if day:
            last = first
        elif month and month < 12:
            last = datetime.date(first.year, month + 1, 1) - datetime.timedelta(days=1)
        else:
            last = datetime.date(first.year, 12, 31)
    except ValueError:
        return None
    return first.isoformat(), last.isoformat()


def solar_day(when: datetime.datetime, longitude: float | None) -> datetime.date:
    """Return the acquisition day: the solar day, on which one pass has one date everywhere.

    Args:
        when: the time; without a zone it is UTC.
        longitude: of the image's centre, degrees; None = unknown, then the day is that of UTC.
    """
    utc = when.astimezone(datetime.UTC) if when.tzinfo else when
    return (utc + datetime.timedelta(hours=(longitude or 0.0) / 15)).date()


def moment_of(text: str) -> datetime.datetime | None:
    """Return the time of a text in metadata, in UTC.

    Args:
        text: ISO 8601, or TIFF's YYYY:MM:DD hh:mm:ss; without a zone it is UTC.

    Returns:
        The time; None where the text is a date without a time, or neither.
    """
    text = _TIFF.sub(r"\1-\2-\3", text.strip(), count=1)
    if _WHOLE.fullmatch(text):
        return None
    try:
        when = datetime.datetime.fromisoformat(text)
        return when.astimezone(datetime.UTC) if when.tzinfo else when.replace(tzinfo=datetime.UTC)
    except (ValueError, OverflowError):
        return None


def acquisition_day(text: str, longitude: Callable[[], float | None]) -> str | None:
    """Return the acquisition day of a time in metadata.

    Args:
        text: ISO 8601, or TIFF's YYYY:MM:DD hh:mm:ss. A date without a time is its own day.
        longitude: returns the longitude of the image's centre; called where there is a time.

    Returns:
        YYYY-MM-DD, or a month or a year as it is; None where the text is not a date.
    """
    text = _TIFF.sub(r"\1-\2-\3", text.strip(), count=1)
    if _WHOLE.fullmatch(text):
        return text if days_of(text) else None
    try:
        return solar_day(datetime.datetime.fromisoformat(text), longitude()).isoformat()
    except (ValueError, OverflowError):
        day = re.split(r"[T ]", text)[0]
        return day if days_of(day) else None
