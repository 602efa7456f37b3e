"""The web application's small parts: limits in bounded memory, who a client is, what of a name is shown."""

from __future__ import annotations

import base64

import pytest
from starlette.requests import Request

from celery_jobqueue.db.errors import ConfigurationError
from tasks.certificates.verification import _initials, plain_serial
from tasks.web.auth import User, basic
from tasks.web.limits import Limiter, client_of


class Clock:
    """A clock that is set by hand."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_limit_grants_a_minutes_worth_and_then_as_time_goes_by() -> None:
    clock = Clock()
    limiter = Limiter(6, clock=clock)
    assert [limiter.take("a") for _ in range(7)] == [0] * 6 + [10]
    assert limiter.wait("a") == 10
    assert limiter.take("b") == 0
    clock.now += 9.5
    assert limiter.take("a") == 1, "refused again, without starting anew"
    clock.now += 0.5
    assert [limiter.take("a"), limiter.take("a")] == [0, 10]
    clock.now += 3600
    assert [limiter.take("a") for _ in range(7)] == [0] * 6 + [10], "nobody saves up"


def test_a_limits_memory_is_bounded() -> None:
    limiter = Limiter(1, keys=100, clock=Clock())
    for number in range(10_000):
        limiter.take(str(number))
        limiter.take("always here")
        assert len(limiter) <= 100
    assert limiter.take("always here") > 0, "the quietest is forgotten, not the busiest"
    assert limiter.take("0") == 0


def request(client: tuple[str, int] | None = ("203.0.113.7", 1), **headers: str) -> Request:
    """A request from there."""
    return Request({"type": "http", "method": "GET", "path": "/", "query_string": b"", "client": client,
                    "headers": [(name.encode(), value.encode()) for name, value in headers.items()]})


@pytest.mark.parametrize(("host", "client"), [
    ("203.0.113.7", "203.0.113.7"), ("::ffff:203.0.113.7", "203.0.113.7"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
    ("2001:db8:1:2::", "2001:db8:1:2::/64"), ("not an address", "not an address"), (None, "local")])
def test_who_a_client_is(host: str | None, client: str) -> None:
    assert client_of(request(None if host is None else (host, 1))) == client


def signed(value: str) -> Request:
    """A request with these credentials."""
    return request(authorization="Basic " + base64.b64encode(value.encode()).decode())


def test_basic_authentication() -> None:
    who = basic("olga:s3cret:with colon, ivo:pass")
    assert who(signed("olga:s3cret:with colon")) == User("olga", "olga")
    assert who(signed("ivo:pass")) == User("ivo", "ivo")
    for wrong in ("olga:", "olga:pass", "ivo:pass ", "nobody:\0nobody", ":", "olga"):
        assert who(signed(wrong)) is None
    for header in ("Basic ???", "Bearer abc", "Basic", "basic /w==", ""):
        assert who(request(authorization=header)) is None
    assert who(request()) is None
    for bad in ("", "olga", "olga:", ":secret", "olga:pass,"):
        with pytest.raises(ConfigurationError, match=r"WEB_BASIC_AUTH: entry \d is not user:password"):
            basic(bad)


@pytest.mark.parametrize(("name", "shown"), [
    ("Łukasz Gutiérrez", "Ł… G…"), ("Ada Augusta King Lovelace", "A… L…"), ("Madonna", "M…"), ("X", "…"), ("王小明", "王…"),
    ("王 明", "… …"), ("e\u0301va", "e\u0301…"), ("क्षमा शर्मा", "क्… श…"), ("عائشة محمد", "ع… م…")])
def test_what_of_a_name_is_shown(name: str, shown: str) -> None:
    assert _initials(name) == shown


@pytest.mark.parametrize("given", ["", "X", "AAAA-BBBB-CCC", "AAAA-BBBB-CCCCC", "AAAA-BBBB-CCC0", "AAAA-BBBB-CCCI", "../../x",
                                   "A" * 10_000, "ＡＡＡＡ-BBBB-CCCC"])
def test_what_can_be_no_serial(given: str) -> None:
    assert plain_serial(given) is None
