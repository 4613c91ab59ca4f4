"""Which dates of a place are kept: spread over the time asked for first, the clearest of each stretch."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Mapping


def thin(
    hidden: Mapping[datetime.date, float],
    first: datetime.date,
    last: datetime.date,
    count: int,
    kept: Collection[datetime.date] = (),
) -> tuple[datetime.date, ...]:
    """Choose dates.

    1. The time asked for is cut into `count` stretches of one length; of each, the clearest date is taken,
       of equally clear ones the earliest.
    2. Where stretches were empty, the rest is filled up one by one: with the date that lies farthest from
       those that are chosen already, of equally far ones with the clearest, then the earliest.

    Args:
        hidden: Share of the ground that is hidden on each date, 0 to 1.
        first: First day of the time asked for.
        last: Last day.
        count: How many dates are wanted at most, 1 or more.
        kept: Dates of `hidden` that are there already: they stay, and stand for their stretches.

    Returns:
        `min(count, len(hidden))` dates in order (all of `kept` where they are more); the same for the same
        input, in whatever order it comes.
    """
    if len(hidden) <= count:
        return tuple(sorted(hidden))
    days = (last - first).days + 1
    best: dict[int, datetime.date] = {}
    for date in sorted(hidden, key=lambda date: (date not in kept, hidden[date], date)):
        # A solar day may fall just before the first or after the last day in UTC.
        at = min(max((date - first).days, 0), days - 1)
        best.setdefault(at * count // days, date)
    # Stretches that have none yet, in order: what is kept may leave room for some of them only.
    chosen = hidden.keys() & set(kept)
    for date in sorted(set(best.values()) - chosen)[: max(0, count - len(chosen))]:
        chosen.add(date)
    while len(chosen) < count:
        chosen.add(min(hidden.keys() - chosen, key=lambda date: (-_gap(date, chosen), hidden[date], date)))
    return tuple(sorted(chosen))


def _gap(date: datetime.date, chosen: set[datetime.date]) -> int:
    """Days to the nearest that is chosen."""
    return min(abs((date - other).days) for other in chosen)
