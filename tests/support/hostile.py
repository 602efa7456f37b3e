"""Messages and rows as an enemy or an accident would write them, and what has to hold for each. For the tests and `make fuzz`."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from celery_jobqueue.broker import messages
from celery_jobqueue.broker.messages import (
    decode_job,
    decode_lost,
    decode_transient,
    encode_job,
    encode_transient,
    envelopes,
    revocation,
)
from celery_jobqueue.broker.session import Row
from celery_jobqueue.broker.usual import Columns
from celery_jobqueue.db.errors import InvalidJob

__all__ = ["ENVELOPES", "JSON", "NAMES", "PROPERTIES", "claimed_row"]

#: Any text that Python can hold, half characters and NUL too; and what has been used in attacks.
TEXT = st.one_of(
    st.text(max_size=40), st.text(st.characters(), max_size=10),
    st.sampled_from(["", "\0", "\ud800", "'; drop table job_queue; --", "{\"a\"}", "$$", "\\", "%s", "../../etc/passwd",
                     "é" * 500, "\u202e", "null", "None", "infinity", "celery@host.celery.pidbox", "9" * 5000, "[" * 2000]))
#: What PostgreSQL's text can hold.
NAMES = TEXT.filter(lambda text: "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text))
_SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT)
JSON = st.recursive(_SCALARS, lambda inner: st.one_of(
    st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)), max_leaves=12)
_ANYTHING = st.one_of(JSON, st.binary(max_size=20), st.sets(st.integers(), max_size=3), st.datetimes(), st.uuids(),
                      st.just(10 ** 5000), st.builds(object))
_BODIES = st.one_of(TEXT, st.binary(max_size=60), JSON.map(json.dumps), st.just("[" * 4000))
_HEADERS = st.fixed_dictionaries({}, optional=dict.fromkeys(
    ("task", "id", "eta", "expires", "timelimit", "ignore_result", "group", "retries", "traceparent"), _ANYTHING))
_PROPERTY_VALUES = st.fixed_dictionaries({}, optional=dict.fromkeys(
    ("priority", "correlation_id", "reply_to", "expiration", "user_id", "max_attempts", "message_id", "delivery_info",
     "delivery_mode", "not_of_amqp"), _ANYTHING))
_MESSAGES = st.fixed_dictionaries({
    "body": _BODIES, "headers": _HEADERS, "properties": _PROPERTY_VALUES,
    "content-type": st.sampled_from(["application/json", "application/x-python-serialize", "", "text/\0"]),
    "content-encoding": st.sampled_from(["utf-8", "binary", "no such"])})
#: Envelopes and payloads as a hand may leave them in a row.
_PARTS = st.sampled_from(["headers", "properties", "content-type", "content-encoding", "delivery_info", "usual", "shown"])
_PLACES = st.one_of(JSON, st.lists(st.one_of(st.integers(-1, 2000), st.sampled_from([")", "...'}"])), max_size=6))
ENVELOPES = st.one_of(st.none(), NAMES, JSON.map(json.dumps), st.dictionaries(_PARTS, JSON, max_size=4).map(json.dumps),
                      st.fixed_dictionaries({"usual": st.just(1), "shown": _PLACES}).map(json.dumps),
                      st.fixed_dictionaries({"properties": st.dictionaries(_PARTS, JSON, max_size=3)}).map(json.dumps),
                      st.just('{"a":' * 2000))
_PAYLOADS = st.one_of(st.none(), NAMES, JSON.map(json.dumps), st.just("[" * 4000))
_BINARIES = st.one_of(st.none(), st.binary(max_size=30).map(lambda data: "\\x" + data.hex()))
_NUMBERS = st.sampled_from([None, "0", "1", "5", "2147483647", "-1"])
_MOMENTS = st.sampled_from([None, "Infinity", "-Infinity", "0", "-62135596800", "1893456000.5", "253402300800",
                            "9224318015999.999999"])


def claimed_row(row: dict[str, Any], **columns: str | None) -> tuple[str | None, ...]:
    """A row that encode_job() made, as the claim returns it."""
    binary = None if row["payload_base64"] is None else "\\x" + base64.b64decode(row["payload_base64"]).hex()
    return ("id", "lease", row["queue"], str(row["priority"]), "0", "3", "f", row["task_name"], row["task_id"], None,
            row["reply_to"], row["envelope"], row["payload"], binary, columns.get("run_at"), "f", None)


def _as_bytes(body: Any) -> bytes:
    return body.encode("utf-8", "surrogatepass") if isinstance(body, str) else bytes(body)


@given(message=_MESSAGES, queue=TEXT, scale=st.sampled_from(["jobs", "amqp", "redis"]))
def every_message_is_stored_whole_or_refused_by_name(message: dict[str, Any], queue: str, scale: str) -> None:
    """A row that PostgreSQL can hold and that is the same message again, or InvalidJob. Nothing else, ever."""
    try:
        row = encode_job(message, queue, scale)
    except InvalidJob:
        return
    for name, value in row.items():
        if isinstance(value, str):
            assert "\0" not in value, name
            value.encode()
    assert 1 <= row["priority"] <= 10
    assert row.get("max_attempts", 1) >= 1
    decoded = decode_job(claimed_row(json.loads(json.dumps(row))))
    assert _as_bytes(decoded["body"]) == _as_bytes(message["body"])
    assert (decoded["content-type"], decoded["content-encoding"]) == (message["content-type"], message["content-encoding"])
    assert decoded["headers"].keys() == message["headers"].keys()
    assert "not_of_amqp" not in decoded["properties"]
    assert decoded["properties"]["delivery_tag"] == "id:lease"


@given(envelope=ENVELOPES, payload=_PAYLOADS, binary=_BINARIES, name=st.one_of(st.none(), NAMES), number=_NUMBERS,
       moment=_MOMENTS)
def every_row_is_a_message_or_an_error_that_a_worker_survives(
        envelope: str | None, payload: str | None, binary: str | None, name: str | None, number: str | None,
        moment: str | None) -> None:
    """What a hand has left in a row never ends a worker: its errors are Exceptions, and mean one job."""
    row = ("id", "lease", "q", number, number, number, "t", name, "task", moment, name, envelope, payload, binary, None, "f",
           number)
    try:
        decoded = decode_job(row)
    except (ValueError, TypeError, AttributeError, RecursionError):
        assert envelope is not None, "without an envelope there is nothing that cannot be read"
        return
    assert isinstance(decoded["headers"], dict)
    assert decoded["properties"]["job"]["lease"] == "lease"


@given(texts=st.lists(ENVELOPES, max_size=5))
def rows_read_together_are_what_each_is_alone(texts: list[str | None]) -> None:
    """Whatever stands in one row, its neighbours are the jobs that they were."""
    rows = [("id", "lease", "q", "5", "0", "3", "f", "t", "task", None, None, text, "[]", None, None, "f", None)
            for text in texts]

    def read(row: Row, parts: Any) -> str:
        try:
            return json.dumps(decode_job(row, parts))
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            return repr(error)

    assert [read(row, parts) for row, parts in zip(rows, envelopes(rows), strict=True)] == [read(row, None) for row in rows]


@given(envelope=ENVELOPES, payload=_PAYLOADS, binary=_BINARIES)
def the_end_of_any_job_can_be_told(envelope: str | None, payload: str | None, binary: str | None) -> None:
    """Never raises: the job has ended already, and others wait to be told of theirs."""
    headers, (args, kwargs, embed), properties = decode_lost(Columns(None, "task", "q", None, payload), envelope, binary)
    assert isinstance(headers, dict)
    assert isinstance(properties, dict)
    assert isinstance(args, list)
    assert isinstance(kwargs, dict)
    assert isinstance(embed, dict)


@given(body=st.one_of(_BODIES, JSON, JSON.map(lambda inner: json.dumps({"method": "revoke", "arguments": inner})),
                      JSON.map(lambda inner: json.dumps({"method": "revoke", "arguments": {"task_id": inner}}))))
def no_control_message_breaks_its_sender(body: object) -> None:
    """revocation() returns texts and never raises."""
    assert all(isinstance(task_id, str) for task_id in revocation(body))


@given(message=_MESSAGES)
def transient_messages_come_back_as_they_were(message: dict[str, Any]) -> None:
    """Events, control and replies too: the same body again, or InvalidJob."""
    try:
        envelope, payload, binary = encode_transient(message)
    except InvalidJob:
        return
    envelope.encode()
    decoded = decode_transient("q", envelope, payload, None if binary is None else "\\x" + binary.hex(), "t1")
    assert _as_bytes(decoded["body"]) == _as_bytes(message["body"])
    assert decoded["properties"]["delivery_tag"] == "t1"


@given(value=_ANYTHING)
def a_name_is_storable_or_refused(value: object) -> None:
    """As `task`, `queue`, `user_id` … travel."""
    try:
        text = messages.storable(value, "name")
    except InvalidJob:
        return
    assert text is None or b"\0" not in text.encode()


#: What `make fuzz` runs without end and the tests run briefly.
PROPERTIES: tuple[Callable[[], None], ...] = (
    every_message_is_stored_whole_or_refused_by_name, every_row_is_a_message_or_an_error_that_a_worker_survives,
    rows_read_together_are_what_each_is_alone,
    the_end_of_any_job_can_be_told, no_control_message_breaks_its_sender, transient_messages_come_back_as_they_were,
    a_name_is_storable_or_refused)
