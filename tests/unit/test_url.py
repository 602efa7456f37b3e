from __future__ import annotations

import pytest
from sqlalchemy.engine import make_url

from celery_jobqueue.broker import settings
from celery_jobqueue.db.errors import ConfigurationError
from celery_jobqueue.db.url import database_url, libpq_dsn, looks_like_transaction_pooler, masked, sqlalchemy_url


def test_both_schemes_and_any_libpq_parameter() -> None:
    url = "postgres://postgres.ref:p%40ss@host:5432/db?sslmode=require&application_name=a%20b"
    assert libpq_dsn(url) == "postgresql://postgres.ref:p%40ss@host:5432/db?sslmode=require&application_name=a%20b"
    parsed = make_url(sqlalchemy_url(url))
    assert (parsed.drivername, parsed.password, parsed.host, parsed.query["sslmode"]) == (
        "postgresql+psycopg", "p@ss", "host", "require")


def test_several_hosts() -> None:
    url = "postgresql://u:p@h1:5432,h2:5433/db?target_session_attrs=read-write"
    assert libpq_dsn(url) == url
    assert make_url(sqlalchemy_url(url)).query["host"] == ("h1:5432", "h2:5433")


def test_our_own_parameter_does_not_reach_libpq() -> None:
    assert libpq_dsn("postgresql://u@h/db?pooler=transaction&sslmode=disable") == "postgresql://u@h/db?sslmode=disable"


@pytest.mark.parametrize(("url", "pooled"), [
    ("postgresql://u@h:5432/db", False), ("postgresql://u@h:6543/db", True), ("postgresql://u@h:6543/db?pooler=session", False),
    ("postgresql://u@h/db?pooler=transaction", True),
])
def test_pooler_detection(url: str, pooled: bool) -> None:
    assert looks_like_transaction_pooler(url) is pooled


@pytest.mark.parametrize("url", [
    "postgresql://u:secret@h/db", "postgresql://u@h/db?password=secret&x=1", "postgresql://u:secret@h1:1,h2:2/db",
    "postgresql://u:sec@ret@h:bad/db?sslpassword=secret", "host=h password=secret",
])
def test_passwords_never_show(url: str) -> None:
    assert "secret" not in masked(url)
    assert "**" in masked(url)


@pytest.mark.parametrize("url", ["mysql://u:secret@h/db", "postgresql:/h", "postgresql://h/db?sslmod=x", "nonsense"])
def test_what_cannot_be_used_is_said_without_the_password(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        libpq_dsn(url)
    assert "secret" not in str(caught.value)
    assert "database URL" in str(caught.value)


def test_database_url_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u@h/db")
    assert database_url() == "postgresql://u@h/db"
    monkeypatch.setenv("DATABASE_URL", "redis://h")
    with pytest.raises(ConfigurationError, match="postgresql://"):
        database_url()


@pytest.mark.parametrize(("option", "value", "message"), [
    ("poll_interval", 0, "above 0"), ("priority_scale", "loud", "jobs, amqp, redis"), ("pol_interval", 1, "not known"),
    ("heartbeat_timeout", 20, "at least twice heartbeat_interval"),
])
def test_wrong_transport_options_are_named(option: str, value: object, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        settings.from_url("postgresql://u@h/db", {option: value})
    assert option in str(caught.value)


def test_a_pooler_polls() -> None:
    direct, pooled = (settings.from_url(f"postgresql://u@h:{port}/db", {}) for port in (5432, 6543))
    assert (direct.pooled, pooled.pooled) == (False, True)
    assert pooled.options.poll < direct.options.poll
