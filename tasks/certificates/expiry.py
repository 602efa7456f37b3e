"""Until when a certificate is valid: the day that was asked for, or what the event's design says."""

from __future__ import annotations

import re
from datetime import date, datetime

from dateutil.relativedelta import relativedelta  # type: ignore[import-untyped,unused-ignore]

from tasks.certificates.errors import DesignError, InvalidExpiry

__all__ = ["check_expiry", "day_in", "duration_in", "last_day"]


def day_in(given: object) -> date:
    """A day, given as a date or as YYYY-MM-DD. Raises ValueError."""
    if isinstance(given, date) and not isinstance(given, datetime):
        return given
    if not isinstance(given, str) or not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", given):
        raise ValueError(f"{str(given)[:80]!r} is no day: write the last one of the certificate's validity, such as 2028-12-31")
    try:
        return date.fromisoformat(given)
    except ValueError as error:
        raise ValueError(f"{given!r} is no day: {error}") from error


def duration_in(given: object) -> str:
    """A length of time as designs write it: `90 days`, `18 months`, `2 years`. Raises ValueError."""
    if not isinstance(given, str) or not re.fullmatch(r"[1-9][0-9]{0,3} (day|month|year)s?", given):
        raise ValueError(f"{str(given)[:80]!r} is no length of time: write for instance 90 days, 18 months or 2 years")
    return given


def check_expiry(expires_on: object, issued_on: date) -> date | None:
    """The last day on which the certificate is valid, given as a date or as YYYY-MM-DD; None when nothing is given.

    Raises InvalidExpiry for what is no day, and for one before `issued_on`.
    """
    if expires_on is None:
        return None
    try:
        day = day_in(expires_on)
    except ValueError as error:
        raise InvalidExpiry(f"expires_on {error}") from error
    if day < issued_on:
        raise InvalidExpiry(f"expires_on {day} is before {issued_on}: a certificate cannot expire before it is issued")
    return day


def last_day(valid_for: str | None, expires_on: date | None, issued_on: date) -> date | None:
    """What a design's two fields mean for a certificate of this day; None: it is valid for ever.

    `1 month` from 31 January ends on 28 February. Raises DesignError for a day that has passed, or will never come.
    """
    if valid_for is None:
        if expires_on is not None and expires_on < issued_on:
            raise DesignError(f"certificate design: expires_on: {expires_on} has passed: correct it, or order with another day")
        return expires_on
    number, unit = valid_for.removesuffix("s").split(" ")
    try:
        last: date = issued_on + relativedelta(**{f"{unit}s": int(number)})
    except (ValueError, OverflowError) as error:
        raise DesignError(f"certificate design: valid_for: {valid_for} from {issued_on} end after the year 9999") from error
    return last
