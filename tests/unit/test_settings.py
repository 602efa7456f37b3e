"""Options are checked when the broker is made; an error names the option and what to write instead."""

from __future__ import annotations

import dataclasses
import math
import re
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from celery import Celery
from kombu import Connection

from celery_jobqueue.broker import settings
from celery_jobqueue.broker.options import Options
from celery_jobqueue.broker.pooling import changes_hands
from celery_jobqueue.broker.session import Session
from celery_jobqueue.broker.settings import from_url, url_of
from celery_jobqueue.db.errors import ConfigurationError

URL = "postgresql://user:pass%40word@127.0.0.1:5433/jobs"


def test_what_holds_when_nothing_is_said() -> None:
    read = from_url(URL, {})
    assert (read.pooled, read.connect_timeout, read.timeout, read.priority_scale, read.automatic_retries) == (
        False, 5, 30.0, "jobs", False)
    assert (read.options.poll, read.options.heartbeat, read.options.heartbeat_limit) == (5.0, 15.0, 75.0)
    assert read.options == Options()


def test_every_option_arrives() -> None:
    said = {"poll_interval": 7, "pooled": True, "heartbeat_interval": 2, "heartbeat_timeout": 8.5, "connect_timeout": 9,
            "timeout": 11, "priority_scale": "amqp", "automatic_retries": True, "keep_completed": 60, "keep_failed": None}
    assert set(said) == set(settings._OPTIONS)
    read = from_url(URL, said)
    assert (read.pooled, read.connect_timeout, read.timeout, read.priority_scale, read.automatic_retries) == (
        True, 9, 11.0, "amqp", True)
    changed = {"pooled": True, "poll": 7.0, "heartbeat": 2.0, "heartbeat_limit": 8.5, "keep_completed": 60.0, "keep_failed": None}
    assert read.options == dataclasses.replace(Options(), **changed)


def test_seconds_may_be_a_timedelta() -> None:
    assert from_url(URL, {"poll_interval": timedelta(minutes=1)}).options.poll == 60


@pytest.mark.parametrize("value", [0, -1, "5", None, True, [1], math.nan, math.inf, timedelta(0)])
@pytest.mark.parametrize("option", ["poll_interval", "heartbeat_interval", "heartbeat_timeout", "connect_timeout", "timeout"])
def test_seconds_must_be_a_number_above_0(option: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(f"broker_transport_options['{option}']=") + ".* above 0"):
        from_url(URL, {option: value})


@pytest.mark.parametrize("value", ["true", "false", "", 0, 1, []])
@pytest.mark.parametrize("option", ["pooled", "automatic_retries"])
def test_a_switch_must_be_true_or_false(option: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=rf"'{option}'\]=.* must be True or False"):
        from_url(URL, {option: value})


@pytest.mark.parametrize("value", ["JOBS", "", None, 1, "rabbitmq", ["jobs"]])
def test_the_priority_scale_must_be_known(value: object) -> None:
    with pytest.raises(ConfigurationError, match=r"'priority_scale'\]=.* use one of jobs, amqp, redis"):
        from_url(URL, {"priority_scale": value})


@pytest.mark.parametrize(("interval", "limit"), [(15, 29.9), (100, 75), (40, None)])
def test_a_worker_has_time_for_two_heartbeats(interval: float, limit: float | None) -> None:
    said = {"heartbeat_interval": interval} | ({} if limit is None else {"heartbeat_timeout": limit})
    with pytest.raises(ConfigurationError, match=rf"'heartbeat_timeout'\]=.* at least twice heartbeat_interval \({interval:g}"):
        from_url(URL, said)


def test_a_misspelt_option_is_named_beside_those_there_are() -> None:
    with pytest.raises(ConfigurationError, match=r"\['poll_intervall'\] is not known; there are: .*poll_interval"):
        from_url(URL, {"poll_intervall": 5})


def test_options_of_celery_and_other_transports_are_let_through() -> None:
    """An application that changes nothing but its URL may have them."""
    theirs = {"max_retries": 3, "visibility_timeout": 3600, "priority_steps": [0, 5], "queue_order_strategy": "sorted",
              "global_keyprefix": "x", "confirm_publish": True}
    assert from_url(URL, theirs) == from_url(URL, {})


# -- the URL ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_libpq_parameters_of_the_url_arrive(scheme: str) -> None:
    query = "sslmode=require&application_name=my%20app&target_session_attrs=read-write"
    read = from_url(f"{scheme}://u:p%2Fw@h1:1,h2:2/db?{query}", {})
    assert psycopg.conninfo.conninfo_to_dict(read.conninfo) == {
        "user": "u", "password": "p/w", "host": "h1,h2", "port": "1,2", "dbname": "db", "sslmode": "require",
        "application_name": "my app", "target_session_attrs": "read-write"}


@pytest.mark.parametrize(("url", "said", "pooled"), [
    (URL, None, False), (URL, True, True), (URL + "?pooler=transaction", None, True),
    (URL.replace("5433", "6543"), None, True), (URL.replace("5433", "6543"), False, False),
    (URL.replace("5433", "6543") + "?pooler=session", None, False),
    (URL + "?pooler=transaction", False, False),
])
def test_poolers_are_recognised_and_the_option_has_the_last_word(url: str, said: bool | None, pooled: bool) -> None:
    read = from_url(url, {} if said is None else {"pooled": said})
    assert (read.pooled, read.options.pooled, read.options.poll) == (pooled, pooled, 0.5 if pooled else 5.0)
    assert "pooler" not in read.conninfo


@pytest.mark.parametrize(("url", "names"), [
    (URL + "?poll_interval=3", "poll_interval"), (URL + "?pooler=maybe", "use one of transaction, session"),
    (URL.replace("5433", "port"), "port"), ("mysql://u:secret@h/db", "postgresql://"), ("", "postgresql://"),
])
def test_a_wrong_url_is_named_without_its_password(url: str, names: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(names)) as raised:
        from_url(url, {})
    assert "pass%40word" not in str(raised.value)
    assert "secret" not in str(raised.value)


def test_an_application_hears_of_a_wrong_option_when_it_publishes() -> None:
    application = Celery(broker=URL, set_as_current=False)
    application.conf.broker_transport_options = {"poll_interval": "soon"}
    with pytest.raises(ConfigurationError, match="poll_interval"):
        application.send_task("t.x", retry=False)


@pytest.mark.parametrize("url", [URL, "postgres://h/db", "postgresql://u@h1:1,h2:2/db?sslmode=require", "postgresql:///db?host=%2Ftmp"])
def test_a_kombu_connection_hands_the_url_over_whole(url: str) -> None:
    with Connection(url, transport_options={"poll_interval": 3}) as connection:
        read = settings.read(connection)
    assert (read.url, read.options.poll) == (url, 3.0)
    assert psycopg.conninfo.conninfo_to_dict(read.conninfo) == psycopg.conninfo.conninfo_to_dict(url)


@pytest.mark.parametrize(("parts", "url"), [
    ({"hostname": "h", "userid": "u", "password": "p@/w", "port": 5433, "virtual_host": "db"}, "postgresql://u:p%40%2Fw@h:5433/db"),
    ({"hostname": "h", "virtual_host": "/db"}, "postgresql://h/db"),
    ({"hostname": "h", "userid": "a b", "virtual_host": None}, "postgresql://a%20b@h/"),
    ({"hostname": None}, "postgresql:///"),
])
def test_a_url_that_kombu_has_taken_apart_is_put_together(parts: dict[str, Any], url: str) -> None:
    client = SimpleNamespace(**{"userid": None, "password": None, "port": None, "virtual_host": None, **parts})
    assert url_of(client) == url
    assert from_url(url, {}).conninfo == url


def test_who_uses_port_6543_is_told_once_what_that_means(caplog: pytest.LogCaptureFixture) -> None:
    guessed = from_url("postgresql://u:secret@pooler.example.com:6543/db", {})
    never_connected = Session(guessed.conninfo)
    assert [changes_hands(guessed, never_connected) for _ in range(3)] == [True] * 3
    [told] = [record.getMessage() for record in caplog.records if "pooler in transaction mode" in record.getMessage()]
    assert "its port is 6543" in told
    assert "every 0.5 s" in told
    assert "'pooled': True" in told
    assert "secret" not in told
    for options in ({"pooled": True}, {"pooled": False}):
        said = from_url(guessed.url.replace("pooler.", "other."), options)
        assert changes_hands(said, never_connected) is options["pooled"]
    assert len(caplog.records) == 1, "who has said so needs no telling"
