"""What an envelope leaves out comes back as it was, and nothing comes back that was not there."""

from __future__ import annotations

import json
from typing import Any
from zlib import crc32

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st
from kombu.transport.memory import Channel

from celery_jobqueue.broker.messages import decode_job, encode_job
from celery_jobqueue.db.errors import InvalidJob
from tests.support.hostile import claimed_row

_TASK, _ID, _QUEUE = "t.usual", "4e1d", "q"
_USUAL_HEADERS: dict[str, Any] = {
    "lang": "py", "task": _TASK, "id": _ID, "root_id": _ID, "shadow": None, "eta": None, "expires": None, "group": None,
    "group_index": None, "retries": 0, "timelimit": [None, None], "parent_id": None, "ignore_result": False,
    "replaced_task_nesting": 0, "stamped_headers": None, "stamps": {}}
_USUAL_PROPERTIES: dict[str, Any] = {
    "correlation_id": _ID, "reply_to": "client", "delivery_mode": 2, "priority": 0,
    "delivery_info": {"exchange": "", "routing_key": _QUEUE}}
_LEFT_OUT = st.just(...)
#: What stands in the place of something usual: nothing, or what Python or a database might take for the same.
_OTHERS = st.one_of(_LEFT_OUT, st.sampled_from([None, 0, 0.0, False, "", "0", "None", [], {}, [None], [None, 5], [None] * 3]),
                    st.sampled_from(["py", _TASK, _ID, _QUEUE, "client", 2, 2.0, True, {"exchange": ""}, {"a": {}}]))


def _said(usual: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """All that is usual but for a few."""
    return st.dictionaries(st.sampled_from(sorted(usual)), _OTHERS, max_size=3).map(
        lambda others: {key: value for key, value in {**usual, **others}.items() if value is not ...})


def published(headers: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
    return {"body": "[[], {}, {}]", "content-type": "application/json", "content-encoding": "utf-8", "headers": headers,
            "properties": properties}


@given(headers=_said(_USUAL_HEADERS), properties=_said(_USUAL_PROPERTIES), more=st.booleans())
def test_a_message_is_the_same_again(headers: dict[str, Any], properties: dict[str, Any], more: bool) -> None:
    others = {"argsrepr": "()", "kwargsrepr": "{}", "origin": "gen1@host"} if more else {}
    message = published({**headers, **others}, properties)
    try:
        row = encode_job(message, _QUEUE, "jobs")
    except InvalidJob:
        return
    before = json.dumps(message, sort_keys=True)
    decoded = decode_job(claimed_row(row))
    properties = decoded["properties"]
    properties.pop("job")
    properties.pop("delivery_tag")
    # What the transport adds or sets right in every message.
    assert properties["delivery_info"].pop("redelivered") is False
    told = message["properties"].setdefault("delivery_info", {}) or {}
    message["properties"]["delivery_info"] = {"exchange": "", **told, "routing_key": told.get("routing_key") or _QUEUE}
    assert json.dumps([decoded["headers"], properties], sort_keys=True) == json.dumps(
        [message["headers"], message["properties"]], sort_keys=True), before


def test_what_celery_publishes_is_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this fails after an upgrade, Celery's clients send other headers, and broker/usual.py has to follow."""
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(Channel, "body_encoding", None)  # as in ours
    monkeypatch.setattr(Channel, "_put", lambda _self, _queue, message, **_: sent.append(message))
    app = Celery("usual", broker="memory://", set_as_current=False)

    @app.task(name=_TASK, shared=False)
    def task() -> None: ...

    task.delay()
    task.apply_async(ignore_result=True, queue="celery", priority=3, expires=60)
    app.close()
    plain, special = (json.loads(encode_job(message, "celery", "jobs")["envelope"]) for message in sent)
    assert plain == {
        "usual": 1, "headers": {"origin": sent[0]["headers"]["origin"]}, "shown": [0, 0, crc32(b"[[], {}")]}
    assert special["properties"] == {
        "reply_to": sent[1]["properties"]["reply_to"], "priority": 3, "expiration": sent[1]["properties"]["expiration"]}
    assert special["headers"].keys() == {*plain["headers"], "expires", "ignore_result"}


def test_a_job_is_shown_as_celery_has_said() -> None:
    message = published({**_USUAL_HEADERS, "argsrepr": "('it',)", "kwargsrepr": "{'n': 7}"}, dict(_USUAL_PROPERTIES))
    row = encode_job({**message, "body": '[["it"], {"n": 7}, {}]'}, _QUEUE, "jobs")
    assert json.loads(row["envelope"]) == {"usual": 1, "headers": {}, "shown": [4, 6, crc32(b'[["it"], {"n": 7}'), ",)", "}"]}
    assert decode_job(claimed_row(row))["headers"] == message["headers"]


def test_columns_that_were_edited_win() -> None:
    row = encode_job(published(dict(_USUAL_HEADERS), dict(_USUAL_PROPERTIES)), _QUEUE, "jobs")
    decoded = decode_job(claimed_row({**row, "task_name": "t.other", "queue": "elsewhere"}))
    assert decoded["headers"]["task"] == "t.other"
    assert decoded["properties"]["delivery_info"]["routing_key"] == "elsewhere"


def test_messages_have_their_own_lists_and_dictionaries() -> None:
    row = claimed_row(encode_job(published(dict(_USUAL_HEADERS), dict(_USUAL_PROPERTIES)), _QUEUE, "jobs"))
    first, second = decode_job(row), decode_job(row)
    first["headers"]["stamps"]["a"] = first["headers"]["timelimit"][0] = 1
    first["properties"]["delivery_info"]["exchange"] = "x"
    assert second["headers"]["stamps"] == {}
    assert second["headers"]["timelimit"] == [None, None]
    assert second["properties"]["delivery_info"]["exchange"] == ""


@pytest.mark.parametrize("number", [2, "1", [1], {}])
def test_an_envelope_of_a_later_version_says_so(number: Any) -> None:
    row = encode_job(published(dict(_USUAL_HEADERS), dict(_USUAL_PROPERTIES)), _QUEUE, "jobs")
    row["envelope"] = json.dumps({**json.loads(row["envelope"]), "usual": number})
    with pytest.raises(ValueError, match="a later version of celery-jobqueue wrote it"):
        decode_job(claimed_row(row))
