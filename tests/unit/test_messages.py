from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from celery_jobqueue.broker.delivered import Delivered
from celery_jobqueue.broker.messages import decode_job, encode_job, envelopes, job_id, revocation, uuid7
from celery_jobqueue.broker.priorities import to_row
from celery_jobqueue.broker.session import Row
from celery_jobqueue.db.errors import InvalidJob


def message(body: str = "[[], {}, {}]", headers: dict[str, Any] | None = None, **properties: Any) -> dict[str, Any]:
    return {"body": body, "content-type": "application/json", "content-encoding": "utf-8",
            "headers": {"task": "t.x", "id": "1", **(headers or {})}, "properties": {"delivery_info": {}, **properties}}


def test_uuid7_is_ordered_and_unique() -> None:
    ids = [uuid7() for _ in range(5000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert {value.version for value in ids} == {7}
    assert abs((ids[0].int >> 80) / 1000 - datetime.now(UTC).timestamp()) < 60


def test_a_repeated_publish_keeps_its_id() -> None:
    first = message()
    assert job_id(first, "q", only=True) == job_id(first, "q", only=True)
    assert uuid.UUID(first["properties"]["message_id"])


def test_every_queue_of_a_routed_message_gets_its_own_id() -> None:
    routed = message()
    ids = {job_id(routed, queue, only=False) for queue in ("a", "b")}
    assert len(ids) == 2
    assert ids == {job_id(routed, queue, only=False) for queue in ("a", "b")}


@pytest.mark.parametrize(("priority", "expected"), [(None, 5), (0, 5), (1, 1), (10, 10), ("7", 7)])
def test_priority_of_jobs(priority: object, expected: int) -> None:
    assert to_row(priority) == expected


@pytest.mark.parametrize("priority", [11, -1, "urgent", 1.5])
def test_priority_out_of_range_names_the_range(priority: object) -> None:
    with pytest.raises(InvalidJob, match=r"1 \(first\) to 10 \(last\)"):
        to_row(priority)


def test_foreign_scales() -> None:
    assert [to_row(p, "amqp") for p in (9, 0, 255, None)] == [1, 10, 1, 5]
    assert [to_row(p, "redis") for p in (0, 9, 3)] == [1, 10, 4]


@pytest.mark.parametrize("value", [0, -1, 2.5, "3", True, 2**31])
def test_max_attempts_is_checked(value: object) -> None:
    with pytest.raises(InvalidJob, match="max_attempts"):
        encode_job(message(max_attempts=value), "q", "jobs")


def test_user_id_option_wins_over_the_argument() -> None:
    body = '[[], {"user_id": "from-argument"}, {}]'
    assert encode_job(message(body), "q", "jobs")["user_id"] == "from-argument"
    assert encode_job(message(body, user_id="from-option"), "q", "jobs")["user_id"] == "from-option"


def test_only_a_distant_eta_waits_in_the_table() -> None:
    def run_at(seconds: float) -> object:
        eta = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
        return encode_job(message(headers={"eta": eta}), "q", "jobs")["run_at"]

    assert run_at(5) is None
    assert run_at(60) is not None


def test_a_bad_eta_is_named() -> None:
    with pytest.raises(InvalidJob, match="eta='tomorrow'"):
        encode_job(message(headers={"eta": "tomorrow"}), "q", "jobs")


@pytest.mark.parametrize("name", ["a\0b", "\ud800"])
def test_names_that_postgresql_cannot_hold(name: str) -> None:
    with pytest.raises(InvalidJob, match="task name"):
        encode_job(message(headers={"task": name}), "q", "jobs")


@pytest.mark.parametrize("body", ["[[1], {}, {}]", "nul \0 inside", "half \ud800", "ä😀"])
def test_a_body_comes_back_as_it_was(body: str) -> None:
    row = encode_job(message(body), "q", "jobs")
    binary = None
    if row["payload_base64"] is not None:
        import base64

        binary = "\\x" + base64.b64decode(row["payload_base64"]).hex()
    claimed = ("1", "2", "q", "5", "0", "3", "f", "t.x", "1", None, None, row["envelope"], row["payload"], binary, "x", "f", None)
    decoded = decode_job(claimed)
    got = decoded["body"]
    assert (got if isinstance(got, str) else got.decode("utf-8", "surrogatepass")) == body


def test_unknown_properties_are_left_out_and_odd_headers_refused() -> None:
    class Odd:
        pass

    row = encode_job(message(marker=Odd()), "q", "jobs")
    assert "marker" not in json.loads(row["envelope"])["properties"]
    with pytest.raises(InvalidJob, match="headers"):
        encode_job(message(headers={"odd": Odd()}), "q", "jobs")


def test_a_row_enqueued_from_sql_is_a_celery_message() -> None:
    row = ("1", "2", "q", "3", "1", "4", "t", "t.x", "task-1", "1893456000", "client", None, '[[1], {"a": 2}, {}]', None, "x",
           "t", "7")
    decoded = decode_job(row)
    assert decoded["headers"]["task"] == "t.x"
    assert decoded["headers"]["id"] == "task-1"
    assert decoded["headers"]["expires"].startswith("2030-01-01")
    assert decoded["properties"]["delivery_info"] == {"exchange": "", "routing_key": "q", "redelivered": True}
    assert decoded["properties"]["job"] == {"id": "1", "lease": "2", "attempts": 1, "max_attempts": 4, "expires": 1893456000.0,
                                            "suspect": True, "task": "t.x", "task_id": "task-1", "start": 7}


def claimed_job(number: int, envelope: str | None = None) -> Row:
    """A job's row as the claim returns it; no string of it is another row's."""
    task_id = f"task-{number}"
    headers = {"id": task_id, "root_id": task_id, "parent_id": None, "argsrepr": "()"}
    made = encode_job(message(headers=headers, correlation_id=task_id, reply_to="client"), "q", "jobs")
    return (f"row-{number}", "lease", "q", "5", "0", "3", "f", "t.x", task_id, None, "client",
            made["envelope"] if envelope is None else envelope, made["payload"], None, "x", "f", None)


def test_jobs_of_one_claim_share_their_keys() -> None:
    jobs = [claimed_job(number) for number in range(3)]
    together = [decode_job(row, parts) for row, parts in zip(jobs, envelopes(jobs), strict=True)]
    assert together == [decode_job(row) for row in jobs]
    first, _, last = together
    for part in ("headers", "properties"):
        ours, theirs = ({key: key for key in decoded[part]} for decoded in (first, last))
        assert all(ours[key] is theirs[key] for key in ours), part


@pytest.mark.parametrize("odd", [
    ["garbage"], ["null"], ['{"headers": {"id": "1"}'], ["{}, {}"], ["{}]", "[{}"], ['{"a": [1', "2]}", "{}, {}"], ["", "{},{}"],
    ['{"a": "', '"}'], ['{"a":' * 2000], ['{"a": "' + "x" * 500_000 + '"}'],
], ids=lambda odd: odd[0][:20])
def test_an_odd_envelope_means_one_job(odd: list[str]) -> None:
    jobs = [claimed_job(0), *(claimed_job(number, envelope) for number, envelope in enumerate(odd, 1)), claimed_job(9)]

    def read(row: Row, parts: Any) -> dict[str, Any] | type[Exception]:
        try:
            return decode_job(row, parts)
        except (ValueError, RecursionError) as error:
            return type(error)

    together = [read(row, parts) for row, parts in zip(jobs, envelopes(jobs), strict=True)]
    assert together == [read(row, None) for row in jobs]
    neighbours = [decoded["headers"]["id"] for decoded in (together[0], together[-1]) if isinstance(decoded, dict)]
    assert neighbours == ["task-0", "task-9"]


def test_a_delivered_message_has_its_body_once() -> None:
    raw = decode_job(claimed_job(1))
    delivered = Delivered(raw, channel=SimpleNamespace(decode_body=lambda body, _encoding: body))
    assert delivered.body == raw["body"].encode()
    assert not [name for name, value in vars(delivered).items() if value is raw or value is raw["body"]]
    assert delivered.lease is not None
    assert delivered.queue == "q"


def test_no_claim_and_a_claim_of_one() -> None:
    assert envelopes([]) == []
    assert envelopes([claimed_job(1)]) == [None]


@pytest.mark.parametrize(("body", "ids"), [
    ('{"method": "revoke", "arguments": {"task_id": ["a", "b"], "terminate": false}, "destination": null}', ["a", "b"]),
    (b'{"method": "revoke", "arguments": {"task_id": "a"}}', ["a"]),
    ('{"method": "revoke", "arguments": {"task_id": "a"}, "destination": ["w@h"]}', []),
    ('{"method": "ping", "arguments": {"like": "revoke"}}', []),
    ('{"method": "revoke"}', []), ('["revoke"]', []), ('"revoke"', []), ("not json", []), (None, []),
])
def test_only_a_revocation_for_everybody_is_one(body: object, ids: list[str]) -> None:
    assert revocation(body) == ids
