"""Celery's schedules ⇄ rows of jobqueue.schedule, and when a row is due.

A schedule stands in a row as text: an interval, a crontab, or `solar <event> <latitude> <longitude>`. What is none of these, or
has arguments that JSON cannot hold, stays in the application's code, and the row only describes it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from datetime import timezone as fixed_offset
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

from celery.schedules import crontab, schedule, solar
from celery.utils.functional import is_numeric_value

__all__ = ["Row", "Text", "first_tick", "moment", "next_tick", "read_schedule", "text_of"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS = {"day": timedelta(days=1), "hour": timedelta(hours=1), "minute": timedelta(minutes=1), "second": timedelta(seconds=1)}
#: Seconds until a schedule that does not say when is asked again.
_ASK_AGAIN = 60.0


@dataclass(frozen=True, slots=True)
class Row:
    """A row of jobqueue.schedule as the statement take_schedule returns it. Moments and durations are seconds, as text."""

    name: str
    task: str
    args: str
    kwargs: str
    options: str
    schedule: str
    every: str | None
    timezone: str | None
    in_code: str
    total_runs: str
    due: str | None
    last_run: str | None
    changed: str
    now: str


@dataclass(frozen=True, slots=True)
class Text:
    """An entry of the configuration as a row holds it."""

    schedule: str
    timezone: str | None
    args: str
    kwargs: str
    options: str
    in_code: bool


# -- entry → row -----------------------------------------------------------------------------------------------------------


def text_of(entry: Any, *, in_code: bool = False) -> Text:
    """The entry's row. in_code: do not even try to write it as people would."""
    values = [entry.args or [], entry.kwargs or {}, entry.options or {}]
    written = _schedule_text(entry.schedule)
    args, kwargs, options = (_exact(value) for value in values)
    if in_code or written is None or args is None or kwargs is None or options is None:
        args, kwargs, options = (_description(value) for value in values)
        return Text(_clean(repr(entry.schedule)), None, args, kwargs, options, in_code=True)
    zone = getattr(entry.schedule.tz, "key", None) if isinstance(entry.schedule, crontab) else None
    return Text(written, zone, args, kwargs, options, in_code=False)


def _schedule_text(made: Any) -> str | None:
    """None unless reading the text gives an equal schedule."""
    if getattr(made, "nowfun", None) is not None:
        return None
    if type(made) is schedule:
        return None if made.relative or made.run_every <= timedelta(0) else _interval_text(made.run_every)
    if type(made) is crontab:
        fields = (made._orig_minute, made._orig_hour, made._orig_day_of_month, made._orig_month_of_year, made._orig_day_of_week)
        text = " ".join(map(_field, fields))
        return text if len(text.split()) == 5 and crontab.from_string(text) == made else None
    return f"solar {made.event} {made.lat} {made.lon}" if type(made) is solar else None


def _interval_text(every: timedelta) -> str:
    for name, unit in _UNITS.items():
        if every % unit == timedelta(0):
            number = every // unit
            return f"{number} {name}{'' if number == 1 else 's'}"
    return f"{every.total_seconds():.6f}".rstrip("0") + " seconds"


def _field(value: Any) -> str:
    if isinstance(value, str):
        return "".join(value.split())
    return ",".join(map(str, sorted(value))) if hasattr(value, "__iter__") else str(value)


def _exact(value: Any) -> str | None:
    """As JSON; None when reading that back gives something else, or PostgreSQL cannot hold it."""
    value = list(value) if isinstance(value, tuple) else value
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
        return text if json.loads(text) == value and "\\u0000" not in text else None
    except (TypeError, ValueError, RecursionError):
        return None


def _description(value: Any) -> str:
    """JSON for readers only: what it cannot hold is there as Python shows it."""
    def shown(item: Any) -> Any:
        return _clean(repr(item)) if _exact(item) is None else item

    if isinstance(value, dict):
        return json.dumps({_clean(str(key)): shown(item) for key, item in value.items()})
    return json.dumps([shown(item) for item in value])


def _clean(text: str) -> str:
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()


# -- row → schedule --------------------------------------------------------------------------------------------------------


def moment(seconds: str | None) -> datetime | None:
    """A moment as a row tells it. Raises OverflowError, ValueError for infinity."""
    return None if seconds is None else _EPOCH + timedelta(microseconds=int(Decimal(seconds) * 1_000_000))


def read_schedule(row: Row, app: Any) -> Any:
    """The schedule that the row's text means. Raises ValueError and other errors of Celery's that say what is wrong with it."""
    if row.every is not None:
        made: Any = schedule(timedelta(microseconds=int(Decimal(row.every) * 1_000_000)))
    elif row.schedule.startswith("solar "):
        _, event, latitude, longitude = row.schedule.split()
        made = solar(event, float(latitude), float(longitude))
    else:
        made = crontab.from_string(" ".join(row.schedule.split()))
    made.app = app
    if row.timezone is not None:
        made.tz = ZoneInfo(row.timezone)
    return made


def first_tick(made: Any, last_run: datetime | None, changed: datetime, now: datetime) -> datetime:
    """When a row is due that is new or was changed. Only an interval counts from the last run, even one before the change."""
    if _is_interval(made):
        every: timedelta = made.run_every
        return max(now, (last_run or now) + every)
    if type(made) is crontab:
        return now + _until_match(_at(made, now), now)
    send, wait = _ask(made, max(last_run or changed, changed), now)
    return now if send else now + wait


def next_tick(made: Any, due: datetime, since: datetime, now: datetime) -> tuple[bool, datetime]:
    """Whether to send a job for the tick that was due, and when the next one is.

    Ticks that were missed are one job. since: the last run, or the change if that came later. Raises OverflowError and what a
    schedule of the application's own raises.
    """
    if _is_interval(made):  # on its grid, however late this tick is
        return True, due + made.run_every * ((now - due) // made.run_every + 1)
    if type(made) is crontab:
        clocked = _at(made, now)
        return not _too_late(clocked, now), now + _until_match(clocked, now)
    send, wait = _ask(made, since, now)
    return send, now + wait


def _is_interval(made: Any) -> bool:
    return type(made) is schedule and not made.relative and made.run_every > timedelta(0)


def _at(made: Any, now: datetime) -> Any:
    """The schedule with the database's clock; one of the application's own keeps its clock."""
    if type(made) not in (schedule, crontab, solar):
        return made
    clocked = object.__new__(type(made))
    clocked.__dict__.update(made.__dict__, nowfun=lambda: now)
    return clocked


def _ask(made: Any, since: datetime, now: datetime) -> tuple[bool, timedelta]:
    send, wait = _at(made, now).is_due(since)
    return bool(send), timedelta(seconds=max(float(wait) if is_numeric_value(wait) else _ASK_AGAIN, 0.0 if send else 0.1))


def _until_match(made: Any, now: datetime) -> timedelta:
    """Celery goes by the hands of the clock. Where it is set back it would pause what runs every hour for the hour that comes
    twice, and in the second of these hours it finds moments in the first.
    """
    wait: timedelta = made.remaining_estimate(now)
    every_hour = (len(made.hour), len(made.day_of_month), len(made.month_of_year), len(made.day_of_week)) == (24, 31, 12, 7)
    if every_hour or wait <= timedelta(0):
        steady = _at(made, now)
        steady.tz = fixed_offset(now.astimezone(made.tz).utcoffset() or timedelta(0))
        sooner: timedelta = steady.remaining_estimate(now)
        # Lord Howe Island sets its clock back by half an hour.
        if wait <= timedelta(0) or (sooner < wait and (now + sooner).astimezone(made.tz).minute in made.minute):
            return sooner
    return wait


def _too_late(made: Any, now: datetime) -> bool:
    """Whether all that was missed is older than beat_cron_starting_deadline."""
    deadline = made.app.conf.beat_cron_starting_deadline
    if deadline is None:
        return False
    return bool(made.remaining_estimate(now - timedelta(seconds=deadline, microseconds=1)) > timedelta(0))
