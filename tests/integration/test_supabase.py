"""The flow of docs/supabase.md: a browser with a user's token, in a cluster like Supabase's, and a real worker."""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from celery_jobqueue.db import embedded
from tasks.certificates.design import parse_design
from tests.support import supabase
from tests.support.database import one, rows
from tests.support.issuing import add_event, certificates_of
from tests.support.waiting import wait_until
from tests.support.workers import ROOT, worker

DOCUMENT = ROOT / "docs" / "supabase.md"
ALICE, BOB = {"sub": "alice", "role": "authenticated"}, {"sub": "bob", "role": "authenticated"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of this module's own: roles belong to the whole cluster."""
    home = tmp_path_factory.mktemp("supabase")
    url = embedded.ensure(home)
    supabase.prepare(url)
    yield url
    embedded.down(home)


@pytest.fixture(scope="module")
def url(cluster: str) -> Iterator[str]:
    """A migrated project, as its superuser."""
    with supabase.project(cluster) as url:
        yield url


@pytest.fixture
def event(url: str) -> str:
    """An event of alice's."""
    return add_event(url, user="alice")


def rpc(url: str, claims: dict[str, Any] | None = ALICE, role: str = "authenticated", **arguments: Any) -> str:
    """supabase.rpc('queue_certificate_generation', arguments), as PostgREST runs it. Returns the job's id."""
    with supabase.request(url, role, claims) as conn:
        named = ", ".join(f"{name} => %({name})s" for name in arguments)
        row = conn.execute(f"select queue_certificate_generation({named})::text", arguments).fetchone()
        conn.commit()
    assert row is not None
    return str(row[0])


def seen(url: str, claims: dict[str, Any], query: str, params: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """What a query through the data API returns to this user."""
    with supabase.request(url, "authenticated", claims) as conn:
        return conn.execute(query, params).fetchall()


def test_the_message_is_the_one_that_delay_sends(url: str, event: str) -> None:
    """The row that Celery's own client writes, but for its envelope: what the task is given is the same."""
    from tests.support.app import make_app

    app = make_app(url)
    arguments = {"event_id": event, "recipient_name": "Zoë Ångström", "user_id": "alice", "recipient_key": "zoe@a.org"}
    sent = app.send_task("tasks.generate_certificate", kwargs=arguments, user_id="alice").id
    app.close()
    queued = rpc(url, event_id=event, recipient_name="  Zoe\u0308 \t Ångström ", recipient_key="zoe@a.org ")
    by_id = {row["task_id"]: row for row in rows(url, "select * from job_queue where user_id = 'alice'")}
    one_, other = by_id[sent], by_id[queued]
    for column in ("task_name", "queue", "priority", "max_attempts", "user_id", "status", "expires_at", "attempts"):
        assert one_[column] == other[column], column
    (args, kwargs, _), (other_args, other_kwargs, _) = json.loads(one_["payload"]), json.loads(other["payload"])
    assert (args, kwargs) == (other_args, other_kwargs) == ([], arguments)
    rows(url, "delete from job_queue where user_id = 'alice'")


def test_from_the_click_to_the_file(url: str, event: str, tmp_path: Path) -> None:
    """The guide's flow, with a worker whose login has no more than its roles, and the storage's policy of the document."""
    make_storage(url)
    rows(url, document("storage policy"))
    rows(url, document("worker login").replace("CHANGE-ME", supabase.PASSWORD))
    with worker(supabase.login(url, "certificate_worker"), tmp_path, "tasks", STORAGE_URL=(tmp_path / "files").as_uri()):
        job = rpc(url, event_id=event, recipient_name="Zoë Ångström", priority=1, expires_on="2999-12-31")
        assert seen(url, BOB, "select status from job_queue where id = %s", (job,)) == []
        query = "select status, error_message, result from job_queue where id = %s"
        assert wait_until(lambda: seen(url, ALICE, query, (job,))[0][0] == "completed", "alice sees that it is completed")
        [(_, error, result)] = seen(url, ALICE, query, (job,))
        assert error is None
    [certificate] = certificates_of(url, event)
    assert json.loads(result)["serial"] == certificate["serial"]
    mine = "select serial, recipient_name, storage_key, expires_on::text from certificates where event_id = %s"
    assert seen(url, ALICE, mine, (event,)) == [
        (certificate["serial"], "Zoë Ångström", certificate["storage_key"], "2999-12-31")]
    assert seen(url, BOB, "select serial from certificates") == []
    assert (tmp_path / "files" / certificate["storage_key"]).read_bytes().startswith(b"%PDF")

    # What createSignedUrl asks for: may this user select the object?
    rows(url, "insert into storage.objects (bucket_id, name) values ('certificates', %s), ('certificates', 'events/x/other.pdf')",
         (certificate["storage_key"],))
    objects = "select name from storage.objects where bucket_id = 'certificates'"
    assert seen(url, ALICE, objects) == [(certificate["storage_key"],)]
    assert seen(url, BOB, objects) == []
    with supabase.request(url, "anon") as conn:
        assert conn.execute(objects).fetchall() == []


@pytest.mark.parametrize(("day", "says"), [
    ("2001-01-01", "expires_on 2001-01-01 has passed"), ("infinity", "expires_on infinity is no day"),
    ("10000-01-01", "expires_on 10000-01-01 is no day"), ("-infinity", "expires_on -infinity has passed"),
    ("2028-02-30", "out of range"), ("soon", "invalid input syntax for type date")])
def test_a_day_that_cannot_be_the_last_is_refused(url: str, event: str, day: str, says: str) -> None:
    before = one(url, "select count(*) from job_queue")
    with pytest.raises(psycopg.errors.DataError, match=says):
        rpc(url, event_id=event, recipient_name="Ada", expires_on=day)
    assert one(url, "select count(*) from job_queue") == before


def test_today_may_be_the_last_day(url: str, event: str) -> None:
    today = str(one(url, "select (now() at time zone 'utc')::date"))
    job = rpc(url, event_id=event, recipient_name="Ada", expires_on=today)
    payload = one(url, "delete from job_queue where id = %s returning payload", (job,))
    assert json.loads(payload)[1] == {"event_id": event, "recipient_name": "Ada", "user_id": "alice", "expires_on": today}


@pytest.mark.parametrize(("claims", "role", "code"), [
    (BOB, "authenticated", "PT403"), ({"role": "authenticated"}, "authenticated", "PT401"), (None, "authenticated", "PT401"),
    (None, "anon", "42501")], ids=["not-an-organiser", "no-sub", "no-token", "anon"])
def test_only_organisers_may(url: str, event: str, claims: dict[str, Any] | None, role: str, code: str) -> None:
    before = one(url, "select count(*) from job_queue")
    with pytest.raises(psycopg.Error) as caught:
        rpc(url, claims, role, event_id=event, recipient_name="Ada")
    assert caught.value.sqlstate == code
    assert one(url, "select count(*) from job_queue") == before


def test_an_unknown_event_is_answered_like_somebody_elses(url: str, event: str) -> None:
    said = []
    for asked in (event, str(uuid.uuid4())):
        with pytest.raises(psycopg.Error) as caught:
            rpc(url, BOB, event_id=asked, recipient_name="Ada")
        said.append((caught.value.sqlstate, str(caught.value.diag.message_primary).replace(asked, "")))
    assert said[0] == said[1]


@pytest.mark.parametrize(("arguments", "message"), [
    ({"recipient_name": " \t "}, "recipient_name is empty"),
    ({"recipient_name": None}, "recipient_name is empty"),
    ({"recipient_name": "A" * 121}, "recipient_name has 121 characters: at most 120"),
    ({"recipient_name": "A" * 1_000_000}, "recipient_name has 1000000 characters: at most 120"),
    ({"recipient_name": "Ada\u202eecalevoL"}, "recipient_name holds a character that does not print"),
    ({"recipient_name": "<b>Ada</b>"}, "recipient_name holds HTML"),
    ({"recipient_name": "Ada &amp; Co"}, "recipient_name holds HTML"),
    ({"recipient_name": "Ada\x07"}, "recipient_name holds a character that does not print"),
    ({"recipient_name": "Ada", "recipient_key": "k" * 201}, "recipient_key has 201 characters"),
    ({"recipient_name": "Ada", "priority": 0}, "priority 0 is out of range"),
    ({"recipient_name": "Ada", "priority": 11}, "priority 11 is out of range"),
    ({"recipient_name": "Ada", "priority": None}, "priority"),
])
def test_bad_input_is_refused_and_named(url: str, event: str, arguments: dict[str, Any], message: str) -> None:
    before = one(url, "select count(*) from job_queue")
    with pytest.raises(psycopg.errors.InvalidParameterValue, match=re.escape(message)):
        rpc(url, event_id=event, **arguments)
    assert one(url, "select count(*) from job_queue") == before


def test_letters_that_need_joiners_are_let_through(url: str, event: str) -> None:
    job = rpc(url, event_id=event, recipient_name="می\u200cخواهم عائشة")
    payload = one(url, "select payload from job_queue where id = %s", (job,))
    assert json.loads(payload)[1]["recipient_name"] == "می\u200cخواهم عائشة"


def test_a_user_cannot_flood_the_queue(url: str) -> None:
    event = add_event(url, user="carol")
    carol = {"sub": "carol", "role": "authenticated"}
    rows(url, "insert into job_queue (task_name, user_id, status) select 't', 'carol', 'completed' from generate_series(1, 200)")
    rows(url, "insert into job_queue (task_name, user_id) select 't', 'carol' from generate_series(1, 99)")
    rpc(url, carol, event_id=event, recipient_name="The hundredth")
    with pytest.raises(psycopg.Error, match="100 jobs that are not finished") as caught:
        rpc(url, carol, event_id=event, recipient_name="One too many")
    assert caught.value.sqlstate == "PT429"
    rows(url, "update job_queue set status = 'completed' where user_id = 'carol'")
    rpc(url, carol, event_id=event, recipient_name="Now it may")


def test_users_see_their_own_events_and_can_change_nothing(url: str, event: str) -> None:
    assert (uuid.UUID(event),) in seen(url, ALICE, "select id from events")
    assert (uuid.UUID(event),) not in seen(url, BOB, "select id from events")
    assert seen(url, BOB, "select event_id from event_organisers") == []
    for statement in ("insert into event_organisers (event_id, user_id) values (gen_random_uuid(), 'bob')",
                      "update certificates set revoked_at = null", "select serial_secret from certificate_configs",
                      "select revoke_note from certificates", "select revoke_certificate('X')", "select jobqueue.watch('{a}')",
                      "select enqueue_job('tasks.generate_certificate')"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            seen(url, ALICE, statement)


def test_the_applications_server_revokes(url: str, event: str) -> None:
    rows(url, "insert into certificates (event_id, serial, recipient_name, recipient_key, user_id, storage_key, url, sha256, "
              "size_bytes) values (%s, 'ABCD-EFGH-JKLM', 'Ada', 'ada', 'alice', 'k', 'u', 's', 1)", (event,))
    with supabase.request(url, "service_role") as conn:
        assert conn.execute("select revoke_certificate('abcd-efgh-jklm', 'replaced', 'a typing error')").fetchone() == (True,)
        assert conn.execute("select revoke_certificate('ABCD-EFGH-JKLM')").fetchone() == (False,)
        assert conn.execute("select revoke_reason, revoke_note from certificates where event_id = %s", (event,)).fetchone() == (
            "replaced", "a typing error")
        assert conn.execute("select reinstate_certificate('ABCD-EFGH-JKLM')").fetchone() == (True,)
        with pytest.raises(psycopg.errors.NoDataFound, match="there is no certificate 'NOPE'"):
            conn.execute("select revoke_certificate('NOPE')")


def test_realtime_publishes_what_users_may_see(url: str) -> None:
    published = rows(url, "select schemaname || '.' || tablename as name from pg_publication_tables"
                          " where pubname = 'supabase_realtime'")
    assert {row["name"] for row in published} == {"public.job_queue", "public.certificates"}
    # Realtime sends columns that the role may select, and rows that its policies let through: both are proven above and in
    # test_security. An UPDATE of a published table needs an identity, or every worker would fail.
    identity = rows(url, "select relreplident::text as kind from pg_class where relname in ('job_queue', 'certificates')")
    assert {row["kind"] for row in identity} == {"d"}


def test_a_watched_user_is_told_and_nobody_else(url: str, event: str) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("listen jobqueue_users")
        rpc(url, event_id=event, recipient_name="Unwatched")
        assert list(conn.notifies(timeout=0)) == []
        with supabase.request(url, "service_role") as server:
            server.execute("select jobqueue.watch(array['alice'])")
            server.commit()
        rows(url, "insert into job_queue (task_name, user_id) select 't', 'alice' from generate_series(1, 1000)")
        told = list(conn.notifies(timeout=10, stop_after=1))
        told += list(conn.notifies(timeout=0))
        hashed = one(url, "select md5('alice')")
        assert [notification.payload for notification in told] == [hashed], "a thousand jobs are one notification"
        rows(url, "insert into job_queue (task_name, user_id) values ('t', 'bob');"
                  "update job_queue set lease = gen_random_uuid()")
        assert list(conn.notifies(timeout=0)) == []
        rows(url, "update job_queue set status = 'completed' where user_id = 'alice' and status = 'pending'")
        assert [notification.payload for notification in conn.notifies(timeout=10, stop_after=1)] == [hashed]
    rows(url, "delete from job_queue where user_id in ('alice', 'bob')")


# -- the document --------------------------------------------------------------------------------------------------------


def document(title: str) -> str:
    """The SQL block of the document that begins with this comment."""
    blocks = re.findall(r"```sql\n(-- .*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    [found] = [block for block in blocks if block.startswith(f"-- {title}")]
    return str(found)


def make_storage(url: str) -> None:
    """What of Supabase's storage schema a policy sees."""
    rows(url, """
        create schema storage;
        create table storage.buckets (id text primary key, name text not null, public boolean default false);
        create table storage.objects (id uuid default gen_random_uuid() primary key, bucket_id text references storage.buckets,
                                      name text, owner_id text);
        alter table storage.objects enable row level security;
        grant usage on schema storage to anon, authenticated, service_role;
        grant all on storage.objects, storage.buckets to anon, authenticated, service_role;
    """)


def test_the_roles_of_the_document_can_be_pasted(url: str) -> None:
    """Twice: what one pastes into an editor, one pastes again."""
    for _ in range(2):
        rows(url, document("worker login").replace("CHANGE-ME", supabase.PASSWORD))
    assert one(supabase.login(url, "certificate_worker"), "select count(*) from certificate_configs") >= 0


def test_the_event_of_the_document_has_a_design_that_can_be_drawn(url: str) -> None:
    rows(url, document("an event, its organiser and its design"))
    user = {"sub": "00000000-0000-0000-0000-000000000000", "role": "authenticated"}
    [(event,)] = seen(url, user, "select id from events")
    parse_design(one(url, "select design from certificate_configs where event_id = %s", (event,)))
    rpc(url, user, event_id=event, recipient_name="Ada")


def test_every_function_the_document_calls_exists(url: str) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    called = set(re.findall(r"rpc\('(\w+)'", text))
    assert "queue_certificate_generation" in called
    for name in called:
        assert one(url, "select count(*) from pg_proc where proname = %s and pronamespace = 'public'::regnamespace", (name,)) == 1
    arguments = set(re.findall(r"^\s+(\w+):", re.findall(r"rpc\('queue_certificate_generation', \{(.*?)\}", text, re.DOTALL)[0],
                               re.MULTILINE))
    assert arguments <= {"event_id", "recipient_name", "recipient_key", "priority", "expires_on"}


def test_two_at_once_are_two_jobs_of_one_certificate(url: str, event: str) -> None:
    """Two clicks: whoever is second finds the same certificate."""
    jobs: list[str] = []
    threads = [threading.Thread(target=lambda: jobs.append(rpc(url, event_id=event, recipient_name="Ada"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(set(jobs)) == 2
