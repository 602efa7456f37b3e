"""Celery's schedules as text, and the moments at which they are due. The clock is the test's."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from celery.beat import BeatLazyFunc, ScheduleEntry
from celery.exceptions import ImproperlyConfigured
from celery.schedules import BaseSchedule, crontab, schedule, solar

from celery_jobqueue.broker.schedules import Row, first_tick, moment, next_tick, read_schedule, text_of

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


class Odd(BaseSchedule):
    """A schedule of an application's own: due whenever the last run lies before this hour's beginning."""

    answer: Any = None

    def is_due(self, last_run_at: datetime) -> tuple[bool, Any]:
        return self.answer or (last_run_at < self.now().replace(minute=0, second=0, microsecond=0), 7)


class Payday(crontab):  # type: ignore[misc]
    """Not a crontab that could be written as one."""


@pytest.fixture
def berlin() -> Iterator[Celery]:
    app = Celery("berlin", set_as_current=False)
    app.conf.timezone = "Europe/Berlin"
    yield app
    app.close()


def row(text: str, *, every: float | None = None, timezone: str | None = None) -> Row:
    return Row(
        name="n", task="t", args="[]", kwargs="{}", options="{}", schedule=text, timezone=timezone, in_code="f", total_runs="0",
        every=None if every is None else f"{every:.6f}", due=None, last_run=None, changed="0", now="0")


def read(text: str, app: Celery, *, every: float | None = None, timezone: str | None = None) -> Any:
    return read_schedule(row(text, every=every, timezone=timezone), app)


def entry(made: Any, app: Celery, **fields: Any) -> ScheduleEntry:
    return ScheduleEntry(name="n", task="t", schedule=made, app=app, **fields)


def local(text: str, zone: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)


def ticks(made: Any, start: datetime, end: datetime) -> list[datetime]:
    """When a beat that is always there sends, from a row's first moment on."""
    found, due, last = [], first_tick(made, None, start, start), start
    while due < end:
        send, following = next_tick(made, due, last, due)
        assert send
        assert following > due
        found.append(due)
        due, last = following, due
    return found


# -- as text ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("made", "text", "zone"), [
    (30, "30 seconds", None), (1, "1 second", None), (0.25, "0.25 seconds", None), (90, "90 seconds", None),
    (120, "2 minutes", None), (HOUR, "1 hour", None), (36 * HOUR, "36 hours", None), (2 * DAY, "2 days", None),
    (timedelta(microseconds=1500001), "1.500001 seconds", None),
    (crontab(), "* * * * *", "Europe/Berlin"),
    (crontab(minute=0, hour="7", day_of_week="mon-fri"), "0 7 * * mon-fri", "Europe/Berlin"),
    (crontab(minute={0, 30}, hour=[8, 9], day_of_month="1, 15", month_of_year="*/3"), "0,30 8,9 1,15 */3 *", "Europe/Berlin"),
    (solar("sunset", 48.1, -11), "solar sunset 48.1 -11", None),
])
def test_people_can_read_it_and_beat_reads_it_back(made: Any, text: str, zone: str | None, berlin: Celery) -> None:
    written = text_of(entry(made, berlin))
    assert (written.schedule, written.timezone, written.in_code) == (text, zone, False)
    seconds = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
    number, _, unit = text.partition(" ")
    every = float(number) * seconds[unit.rstrip("s")] if unit.rstrip("s") in seconds else None
    again = read(written.schedule, berlin, every=every, timezone=zone)
    assert again == entry(made, berlin).schedule
    assert again.tz == ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize("made", [
    schedule(60, relative=True), schedule(60, nowfun=lambda: NOON), 0, Odd(), Payday(), crontab(nowfun=lambda: NOON)])
def test_what_is_no_text_stays_in_the_code(made: Any, berlin: Celery) -> None:
    written = text_of(entry(made, berlin, args=(1,), kwargs={"a": "b"}, options={"queue": "q"}))
    assert written.in_code
    assert written.schedule == repr(entry(made, berlin).schedule)
    assert (written.args, written.kwargs, written.options) == ("[1]", '{"a": "b"}', '{"queue": "q"}')


@pytest.mark.parametrize(("args", "shown"), [
    ((1, BeatLazyFunc(dict)), [1, "BeatLazyFunc"]), ((NOON,), ["datetime.datetime"]), ((float("nan"),), ["nan"]),
    (({"pair": (1, 2)},), ["(1, 2)"]), (("a\0b",), ["\\x00"]), (("\ud800",), ["\\ud800"]), ((float("inf"),), ["inf"]),
])
def test_arguments_that_json_cannot_hold_stay_in_the_code(args: tuple[Any, ...], shown: list[Any], berlin: Celery) -> None:
    written = text_of(entry(30, berlin, args=args))
    assert written.in_code
    for is_there, wanted in zip(json.loads(written.args), shown, strict=True):
        assert is_there == wanted or wanted in is_there
    assert "\0" not in written.args
    assert "\\u0000" not in written.args
    kwargs = text_of(entry(30, berlin, kwargs=dict.fromkeys(("key", "a\0"), args[-1])))
    assert kwargs.in_code
    assert "\\u0000" not in kwargs.kwargs


def test_arguments_arrive_as_they_were(berlin: Celery) -> None:
    args, kwargs, options = ("ü", 1.5, None, [True, {"x": []}]), {"a b": 'c"'}, {"priority": 2, "headers": {"x": 1}}
    written = text_of(entry(30, berlin, args=args, kwargs=kwargs, options=options))
    assert not written.in_code
    assert (json.loads(written.args), json.loads(written.kwargs), json.loads(written.options)) == (list(args), kwargs, options)
    assert "ü" in written.args


@pytest.mark.parametrize(("text", "timezone", "what"), [
    ("0 0 31 2 *", None, "never occurs"), ("0 0 * * *", "Moon/Crater", "Moon"), ("0 0 * *", None, "values to unpack"),
    ("0 61 * * *", None, "61"), ("solar noon 1 2", None, "noon"),
])
def test_what_a_row_cannot_mean(text: str, timezone: str | None, what: str, berlin: Celery) -> None:
    with pytest.raises((ValueError, KeyError), match=what):
        read(text, berlin, timezone=timezone)


def test_solar_schedules_need_ephem(berlin: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ephem", None)
    with pytest.raises(ImproperlyConfigured, match="install the ephem library"):
        read("solar sunset 48.1 11.6", berlin)


# -- moments ---------------------------------------------------------------------------------------------------------------


def test_moments_are_exact_to_the_microsecond() -> None:
    assert moment("1764000000.123457") == datetime(2025, 11, 24, 16, 0, 0, 123457, tzinfo=UTC)
    assert moment("253370764799.999999") == datetime(9998, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
    assert moment(None) is None


def test_an_interval_keeps_its_grid(berlin: Celery) -> None:
    made = read("1 hour", berlin, every=3600)
    late = timedelta(seconds=1, microseconds=1)
    assert next_tick(made, NOON, NOON, NOON) == (True, NOON + HOUR)
    assert next_tick(made, NOON, NOON, NOON + late) == (True, NOON + HOUR)
    assert next_tick(made, NOON, NOON, NOON + HOUR - late) == (True, NOON + HOUR)
    # Missed ticks are one.
    assert next_tick(made, NOON, NOON, NOON + HOUR) == (True, NOON + 2 * HOUR)
    assert next_tick(made, NOON, NOON, NOON + 30 * DAY + late) == (True, NOON + 30 * DAY + HOUR)


def test_an_interval_begins_one_interval_later_or_goes_on_from_the_last_run(berlin: Celery) -> None:
    made = read("1 hour", berlin, every=3600)
    assert first_tick(made, None, NOON, NOON) == NOON + HOUR
    assert first_tick(made, NOON - HOUR / 4, NOON, NOON) == NOON + HOUR * 3 / 4
    assert first_tick(made, NOON - 9 * HOUR, NOON, NOON) == NOON


def test_a_crontab_begins_at_its_next_match_whatever_was_before(berlin: Celery) -> None:
    made = read("0 7 * * *", berlin, timezone="Europe/Berlin")
    tomorrow = local("2026-06-02 07:00", "Europe/Berlin")
    for last_run in (None, NOON - 30 * DAY):
        assert first_tick(made, last_run, NOON - DAY, NOON) == tomorrow
    # Days without a beat are one job, and then it goes on as ever.
    assert next_tick(made, NOON - 5 * DAY, NOON - 6 * DAY, NOON) == (True, tomorrow)
    assert next_tick(made, tomorrow, NOON, tomorrow) == (True, tomorrow + DAY)


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Asia/Kolkata", "UTC"])
def test_a_crontab_goes_by_its_own_clock(zone: str, berlin: Celery) -> None:
    made = read("30 7 * * mon-fri", berlin, timezone=zone)
    found = ticks(made, datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))
    times = [tick.astimezone(ZoneInfo(zone)) for tick in found]
    assert {(time.hour, time.minute, time.second, time.microsecond) for time in times} == {(7, 30, 0, 0)}
    assert {time.isoweekday() for time in times} == {1, 2, 3, 4, 5}
    assert len(found) == len({time.date() for time in times}) == 261


@pytest.mark.parametrize(("day", "expected"), [
    ("2026-03-29", "2026-03-29T01:30:00+00:00"),  # 02:30 does not exist: an hour later by the clock
    ("2026-10-25", "2026-10-25T00:30:00+00:00"),  # 02:30 comes twice: the first time
])
def test_a_night_without_or_with_two_of_its_hour_has_one_run(day: str, expected: str, berlin: Celery) -> None:
    made = read("30 2 * * *", berlin, timezone="Europe/Berlin")
    middle = local(f"{day} 12:00", "Europe/Berlin")
    found = ticks(made, middle - 3 * DAY, middle + 3 * DAY)
    assert len(found) == 6
    assert found[2] == datetime.fromisoformat(expected)
    assert [tick.astimezone(ZoneInfo("Europe/Berlin")).strftime("%H:%M") for tick in found if tick != found[2]] == ["02:30"] * 5


@pytest.mark.parametrize(("text", "minutes"), [("* * * * *", 1), ("*/15 * * * *", 15), ("7 * * * *", 60)])
@pytest.mark.parametrize("day", ["2026-03-29", "2026-10-25"])
def test_what_runs_every_hour_does_not_pause_when_the_clock_is_set(text: str, minutes: int, day: str, berlin: Celery) -> None:
    made = read(text, berlin, timezone="Europe/Berlin")
    middle = local(f"{day} 02:00", "Europe/Berlin")
    found = ticks(made, middle - 6 * HOUR, middle + 6 * HOUR)
    assert {after - before for before, after in pairwise(found)} == {timedelta(minutes=minutes)}
    assert len(found) in (12 * 60 // minutes, 12 * 60 // minutes - 1)


@pytest.mark.parametrize("text", ["30 2 * * *", "*/10 1-4 * * *", "0 3 * * sun"])
def test_a_row_that_is_new_in_the_second_of_two_hours_makes_no_loop(text: str, berlin: Celery) -> None:
    made = read(text, berlin, timezone="Europe/Berlin")
    second_hour = datetime(2026, 10, 25, 1, 5, tzinfo=UTC)  # 02:05, for the second time
    found = ticks(made, second_hour, second_hour + 2 * DAY)
    assert found[0] - second_hour <= HOUR
    assert len(found) <= 3 or {after - before for before, after in pairwise(found)} <= {HOUR / 6, timedelta(hours=20, minutes=10)}
    for tick in found:
        time = tick.astimezone(ZoneInfo("Europe/Berlin"))
        assert time.minute in made.minute
        assert time.hour in made.hour


def test_an_island_that_sets_its_clock_by_half_an_hour(berlin: Celery) -> None:
    zone = "Australia/Lord_Howe"
    made = read("0 * * * *", berlin, timezone=zone)
    middle = local("2026-04-05 02:00", zone)
    found = ticks(made, middle - 6 * HOUR, middle + 6 * HOUR)
    assert {tick.astimezone(ZoneInfo(zone)).minute for tick in found} == {0}
    assert {after - before for before, after in pairwise(found)} == {HOUR, 1.5 * HOUR}


def test_beat_cron_starting_deadline(berlin: Celery) -> None:
    made = read("0 * * * *", berlin, timezone="UTC")
    berlin.conf.beat_cron_starting_deadline = 60
    assert next_tick(made, NOON, NOON - HOUR, NOON + timedelta(seconds=60)) == (True, NOON + HOUR)
    assert next_tick(made, NOON, NOON - HOUR, NOON + timedelta(seconds=61)) == (False, NOON + HOUR)
    # What matters is the last tick that was missed, not the first.
    assert next_tick(made, NOON - 5 * HOUR, NOON - 6 * HOUR, NOON + timedelta(seconds=59)) == (True, NOON + HOUR)
    berlin.conf.beat_cron_starting_deadline = None
    assert next_tick(made, NOON - 30 * DAY, NOON - 31 * DAY, NOON + HOUR / 2) == (True, NOON + HOUR)


def test_sunset_comes_once_a_day(berlin: Celery) -> None:
    made = read("solar sunset 48.1 11.6", berlin)
    found = ticks(made, NOON - HOUR, NOON + 10 * DAY - HOUR)
    assert len(found) == 10
    for tick in found:
        assert tick.astimezone(ZoneInfo("Europe/Berlin")).hour == 21
    assert all(timedelta(hours=24) < after - before < timedelta(hours=24, minutes=2) for before, after in pairwise(found))


def test_a_relative_schedule_rounds_as_celery_does(berlin: Celery) -> None:
    made = schedule(HOUR, relative=True, app=berlin)
    made.tz = UTC
    begun = NOON + timedelta(minutes=20)
    assert ticks(made, begun, NOON + 4 * HOUR) == [NOON + HOUR, NOON + 2 * HOUR, NOON + 3 * HOUR]


def test_a_schedule_of_the_applications_own_decides_itself(berlin: Celery) -> None:
    made = Odd(nowfun=lambda: NOON, app=berlin)
    seven = timedelta(seconds=7)
    assert first_tick(made, None, NOON, NOON) == NOON + seven
    assert first_tick(made, NOON - HOUR, NOON - 2 * HOUR, NOON) == NOON
    assert next_tick(made, NOON, NOON, NOON) == (False, NOON + seven)
    assert next_tick(made, NOON, NOON - HOUR, NOON) == (True, NOON + seven)
    for answer, wait in {(False, None): 60.0, (True, "soon"): 60.0, (False, -5): 0.1, (True, -5): 0.0}.items():
        made.answer = answer
        assert next_tick(made, NOON, NOON, NOON) == (answer[0], NOON + timedelta(seconds=wait))
