"""Who may do what, in a cluster like Supabase's: proven by trying everything, and by real workers with few rights."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from celery import chord
from celery.exceptions import TaskRevokedError

from celery_jobqueue.db import embedded, migrate
from tests.support import supabase, workers
from tests.support.app import make_app
from tests.support.database import one, rows
from tests.support.powers import FUNCTIONS, attempts, powers
from tests.support.waiting import wait_until

APPLICATION = {"public.events", "public.event_organisers", "public.certificate_configs", "public.certificates",
               "public.certificate_batches", "public.certificate_batch_rows", "public.certificate_mails"}
TABLES = {"public.job_queue", *APPLICATION,
          "jobqueue.worker", "jobqueue.exchange", "jobqueue.queue", "jobqueue.binding", "jobqueue.message", "jobqueue.result",
          "jobqueue.group_result", "jobqueue.waiter", "jobqueue.chord", "jobqueue.chord_part", "jobqueue.schedule",
          "jobqueue.retirement", "jobqueue.watcher", "jobqueue.migration"}
#: What an end user may read of their own jobs.
VISIBLE = {"id", "status", "task_name", "queue", "priority", "attempts", "max_attempts", "user_id", "error_message", "created_at",
           "run_at", "started_at", "finished_at", "state", "result", "task_id"}
PUBLISHING = {"public.enqueue_job", "jobqueue.publish", "jobqueue.publish_one", "jobqueue.send", "jobqueue.destinations",
              "jobqueue.channel",
              'jobqueue."fetch"', "jobqueue.touch", "jobqueue.reap", "jobqueue.begin_chord", "jobqueue.size_chord",
              "jobqueue.revoke", "jobqueue.forget"}
READING = {"public.get_user_jobs", "jobqueue.current_user_id"}
WATCHING = READING | {"jobqueue.health"}
#: What an end user may read of their own events and certificates, and what they may do.
VISIBLE_TOO = {
    "public.events": {"id", "name", "starts_on", "ends_on", "place", "organiser"},
    "public.event_organisers": {"event_id", "user_id"},
    "public.certificates": {"id", "event_id", "serial", "recipient_name", "user_id", "storage_key", "sha256", "size_bytes",
                            "issued_at", "expires_on", "revoked_at", "revoke_reason"}}
ISSUING = {"public.queue_certificate_generation", "jobqueue.queue_certificate_generation"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of this module's own, because roles belong to the whole cluster and migrations look for them."""
    home = tmp_path_factory.mktemp("supabase")
    url = embedded.ensure(home)
    supabase.prepare(url)
    yield url
    embedded.down(home)


@pytest.fixture(scope="module")
def url(cluster: str) -> Iterator[str]:
    """A migrated database, as its superuser. The tests leave it as it is."""
    with supabase.project(cluster) as url:
        yield url


@pytest.fixture
def own_url(cluster: str) -> Iterator[str]:
    """A migrated database of the test's own."""
    with supabase.project(cluster) as url:
        yield url


def functions(statements: set[str]) -> set[str]:
    """Names of the functions that these statements call."""
    return {match[1] for statement in statements if (match := re.match(r"select ((?:public|jobqueue)\.[\w\"]+)\(", statement))}


def changes(statements: set[str]) -> set[str]:
    """Names of the tables that these statements change."""
    return {match[1] for statement in statements
            if (match := re.match(r"(?:insert into|update|delete from|truncate) (\w+\.\w+)", statement))}


def alter(statements: set[str]) -> set[str]:
    """Those of the statements that define something."""
    return {statement for statement in statements if re.match("create|alter|drop|truncate", statement)}


# -- by trying everything ---------------------------------------------------------------------------------------------


def test_everything_is_tried(url: str) -> None:
    tried = attempts(url)
    assert {name for statement in tried for name in re.findall(r" from (\w+\.\w+)$", statement)} >= TABLES
    assert len(functions(set(tried))) == len({function["name"] for function in rows(url, FUNCTIONS)}) > 30
    assert powers(url, tried) == set(tried)  # nothing is refused to the superuser, so a refusal is one of rights


@pytest.mark.parametrize("role", ["anon", supabase.STRANGER])
def test_anon_and_a_role_without_memberships_can_do_nothing(role: str, own_url: str) -> None:
    tried = attempts(own_url)
    who = (supabase.login(own_url, role if role == supabase.STRANGER else supabase.ENDUSER), tried, role)
    assert powers(*who) == set()
    # Not even where somebody opens the schema: each object is closed on its own.
    rows(own_url, f"grant usage on schema jobqueue to {role}")
    assert powers(*who) == set()


def test_public_and_anon_have_no_right_to_anything(url: str) -> None:
    held = rows(url, """
        with acl as (
            select format('%I.%I', n.nspname, c.relname) as name,
                   coalesce(c.relacl, acldefault(case c.relkind when 'S' then 's' else 'r' end::"char", c.relowner)) as acl
              from pg_class c join pg_namespace n on n.oid = c.relnamespace
             where n.nspname in ('public', 'jobqueue') and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
             union all
            select format('%s.%I', a.attrelid::regclass, a.attname), a.attacl
              from pg_attribute a join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace
             where n.nspname in ('public', 'jobqueue') and a.attacl is not null
             union all
            select p.oid::regprocedure::text, coalesce(p.proacl, acldefault('f', p.proowner))
              from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname in ('public', 'jobqueue')
             union all
            select nspname, coalesce(nspacl, acldefault('n', nspowner)) from pg_namespace where nspname = 'jobqueue')
        select acl.name, entry.grantee, entry.privilege_type from acl, aclexplode(acl.acl) as entry
         where entry.grantee in (0, 'anon'::regrole)""")
    assert held == []


def test_row_level_security_is_on_for_every_table(url: str) -> None:
    found = rows(url, "select format('%I.%I', n.nspname, c.relname) as name, c.relrowsecurity as secured from pg_class c"
                      " join pg_namespace n on n.oid = c.relnamespace"
                      " where n.nspname in ('public', 'jobqueue') and c.relkind in ('r', 'p')")
    assert {row["name"] for row in found} == TABLES
    assert [row["name"] for row in found if not row["secured"]] == []


def test_an_end_user_reads_chosen_columns_and_nothing_else(url: str) -> None:
    allowed = powers(supabase.login(url, supabase.ENDUSER), attempts(url), "authenticated")
    assert functions(allowed) == READING | ISSUING
    assert {statement for statement in allowed if statement.split("(")[0].removeprefix("select ") not in READING | ISSUING} == {
        f"select {column} from {table}" for table, columns in {"public.job_queue": VISIBLE, **VISIBLE_TOO}.items()
        for column in columns}


def test_a_monitor_only_reads(url: str, jobs: dict[str | None, str]) -> None:
    allowed = powers(supabase.login(url, supabase.MONITOR), attempts(url))
    assert functions(allowed) == WATCHING
    assert "select stuck from public.job_queue_health" in allowed
    assert all(statement.startswith("select ") for statement in allowed)
    assert "select payload from public.job_queue" in allowed
    assert {status.line: status.missing for status in migrate.status(supabase.login(url, supabase.MONITOR))} == {
        "queue": 0, "certificates": 0}
    assert {row["user_id"] for row in rows(supabase.login(url, supabase.MONITOR), "select * from job_queue")} == set(jobs)


def test_a_publisher_neither_claims_nor_finishes_nor_changes_jobs(url: str) -> None:
    allowed = powers(supabase.login(url, supabase.PUBLISHER), attempts(url))
    assert functions(allowed) == PUBLISHING | WATCHING
    assert alter(allowed) == set()
    assert changes(allowed) == {"jobqueue.exchange", "jobqueue.queue", "jobqueue.binding", "jobqueue.waiter", "jobqueue.result",
                                "jobqueue.group_result", "jobqueue.message", "jobqueue.chord", "jobqueue.chord_part",
                                "jobqueue.schedule"}
    # Neither around jobqueue.send, nor saying that a chord's task has ended.
    assert not {statement for statement in allowed if re.match(r"insert into jobqueue\.(message|chord_part)", statement)}


def test_a_worker_has_the_queue_and_nothing_else(url: str) -> None:
    allowed = powers(supabase.login(url, supabase.WORKER), attempts(url))
    assert alter(allowed) == set()
    assert changes(allowed) == TABLES - APPLICATION - {"jobqueue.migration", "jobqueue.retirement", "jobqueue.watcher"}
    assert not {statement for statement in allowed if re.search(r" public\.(events|event_organisers|certificate)", statement)}


# -- end users --------------------------------------------------------------------------------------------------------


def job_of(url: str, user: str | None) -> str:
    """A job of this user, enqueued by the application's server."""
    with supabase.request(url, "service_role") as conn:
        row = conn.execute("select enqueue_job('t.add', '[1, 2]', user_id => %s)::text", (user,)).fetchone()
        conn.commit()
    assert row is not None
    return str(row[0])


@pytest.fixture(scope="module")
def jobs(url: str) -> dict[str | None, str]:
    """One job of each user, and one of nobody."""
    return {user: job_of(url, user) for user in ("alice", "bob", None)}


ALICE: list[dict[str, Any]] = [{"claims": {"sub": "alice", "role": "authenticated"}}, {"sub": "alice"}]


@pytest.mark.parametrize("who", ALICE, ids=["claims", "claim.sub"])
@pytest.mark.parametrize("query", [
    "select id::text from job_queue", "select id::text from get_user_jobs()", "select id::text from get_user_jobs('alice')",
    "select id::text from get_user_jobs(user_id => 'bob')", "select id::text from get_user_jobs(user_id => null)",
    "select id::text from job_queue where user_id = 'bob' or true"])
def test_an_end_user_sees_their_own_jobs_whatever_they_ask_for(query: str, who: dict[str, Any], url: str,
                                                               jobs: dict[str | None, str]) -> None:
    with supabase.request(url, "authenticated", **who) as conn:
        assert conn.execute(query).fetchall() == [(jobs["alice"],)]


@pytest.mark.parametrize("claims", [None, {}, {"role": "authenticated"}, {"sub": None}, {"sub": "mallory"}])
def test_a_request_without_a_known_user_sees_nothing(claims: dict[str, Any] | None, url: str,
                                                        jobs: dict[str | None, str]) -> None:
    with supabase.request(url, "authenticated", claims) as conn:
        for query in ("select id from job_queue", "select id from get_user_jobs()", "select id from get_user_jobs('alice')"):
            assert conn.execute(query).fetchall() == []


def test_row_level_security_holds_for_whoever_is_given_the_table(own_url: str) -> None:
    bobs = job_of(own_url, "bob")
    rows(own_url, f"grant select on job_queue to {supabase.STRANGER}; grant usage on schema jobqueue to {supabase.STRANGER};"
              f"grant execute on function jobqueue.current_user_id, get_user_jobs to {supabase.STRANGER}")
    with psycopg.connect(supabase.login(own_url, supabase.STRANGER), autocommit=True) as conn:
        assert conn.execute("select * from job_queue").fetchall() == []
        assert conn.execute("select * from get_user_jobs('alice')").fetchall() == []
        conn.execute("set jobqueue.user_id = 'bob'")  # how an application without Supabase says who asks
        assert conn.execute("select id::text from job_queue").fetchall() == [(bobs,)]


def test_the_applications_server_asks_for_anybodys_jobs(url: str, jobs: dict[str | None, str]) -> None:
    with supabase.request(url, "service_role", {"role": "service_role"}) as conn:
        assert conn.execute("select id::text from get_user_jobs('bob')").fetchall() == [(jobs["bob"],)]


# -- security definer -------------------------------------------------------------------------------------------------

#: Functions that ours call, as an attacker would put them first.
SHADOWS = {
    "now()": "timestamptz", "clock_timestamp()": "timestamptz", "gen_random_uuid()": "uuid", "md5(text)": "text",
    "pg_notify(text, text)": "void", "jsonb_typeof(jsonb)": "text", "replace(text, text, text)": "text", "to_hex(bigint)": "text",
    "decode(text, text)": "bytea", "json_to_recordset(json)": "setof record"}
TEMPORARY_TYPES = ("text", "uuid", "json", "jsonb", "bytea", "timestamptz")
#: The cycle through every `security definer` function; {id} and {lease} are the last claimed job's, {new} an unused id.
ERRANDS = (
    "select public.enqueue_job('t.add', '[1]', '{{}}', 'celery', 5, 2, 'alice', null, 'infinity', 'a')",
    "select public.enqueue_job('t.add', task_id => 'b')",
    ("select jobqueue.publish('[{{\"id\": \"{new}\", \"queue\": \"celery\","
     " \"task_id\": \"c\", \"priority\": 1}}]')"),
    ("select jobqueue.publish_one('00000000-0000-4000-8000-000000000001', 'celery', 't.add', 'd', null, null, null, null, null,"
     " '[]', 5::smallint, null, 2)"),
    "select jobqueue.send('{{celery}}', 5::smallint, null, '{{}}', 'x', null)",
    "select * from jobqueue.destinations('celery', 'celery')",
    "claim",
    "select public.extend_job('{id}', '{lease}', '10 minutes')",
    "select public.complete_job('{id}', '{lease}', '{{\"a\": 1}}')",
    "claim",
    "select public.fail_job('{id}', '{lease}', 'no', false)",
    "claim",
    "select public.reset_stuck_jobs('0 seconds')",
    "update public.job_queue set status = 'pending' where status = 'completed'",
    "select * from jobqueue.revoke('{{b}}')",
    "select jobqueue.forget('b')",
    "select jobqueue.retire('7 days', '30 days', '1 day')",
    "select jobqueue.retire('7 days', '30 days', '1 day', '1 day', '1 day')",
    "select * from jobqueue.health()",
    "select jobqueue.watch('{{alice}}')",
    "update public.job_queue set error_message = 'noted' where user_id = 'alice'",
    "insert into jobqueue.schedule (name, task, schedule, timezone) values ('{new}', 't.add', '0 7 * * 1-5', 'Europe/Berlin')",
    "update jobqueue.schedule set schedule = '5 minutes'",
    "select pg_catalog.set_config('jobqueue.user_id', 'alice', false)",
    "select jobqueue.queue_certificate_generation('{event}', 'Zoë', null, 5, null)",
    "select public.revoke_certificate('{serial}')",
    "select public.reinstate_certificate('{serial}')",
)
_EVENT, _SERIAL = "00000000-0000-0000-0000-00000000e0e0", "SHAD-OWED-0000"
#: What the errands need besides, and the worker's role does not have.
_GROUND = f"""
insert into events (id, name, starts_on, ends_on) values ('{_EVENT}', 'E', '2026-11-16', '2026-11-16');
insert into event_organisers (event_id, user_id) values ('{_EVENT}', 'alice');
insert into certificates (event_id, serial, recipient_name, recipient_key, user_id, storage_key, url, sha256, size_bytes)
values ('{_EVENT}', '{_SERIAL}', 'Ada', 'ada', 'alice', 'k', 'u', 's', 1);
grant execute on function jobqueue.watch, jobqueue.queue_certificate_generation, revoke_certificate, reinstate_certificate
   to {supabase.WORKER}
"""


def run_errands(conn: psycopg.Connection[Any]) -> None:
    """The whole cycle by SQL. Raises what the server raises."""
    job: dict[str, Any] = {"id": "", "lease": "", "new": uuid.uuid4(), "event": _EVENT, "serial": _SERIAL}
    for errand in ERRANDS:
        if errand == "claim":
            row = conn.execute("select id::pg_catalog.text, lease_token::pg_catalog.text from public.get_next_job()").fetchone()
            assert row is not None
            job |= dict(zip(("id", "lease"), row, strict=True))
        else:
            conn.execute(errand.format(**job))


def test_every_function_pins_its_search_path(url: str) -> None:
    found = rows(url, FUNCTIONS)
    assert len([function for function in found if function["definer"]]) >= 10
    # Temporary objects last: where pg_temp is not named it is searched first, for types.
    assert {function["name"] for function in found if "search_path=pg_catalog, pg_temp" not in function["config"]} == set()


def test_the_errands_visit_every_security_definer_function(url: str) -> None:
    visited = functions(set(ERRANDS)) | {"public.get_next_job", "jobqueue.on_manual_status", "jobqueue.on_schedule",
                                         "jobqueue.on_job_change"}
    visited |= {f"jobqueue.{name}" for name in re.findall(r"from jobqueue\.(\w+)\(", "\n".join(ERRANDS))}
    assert {function["name"] for function in rows(url, FUNCTIONS) if function["definer"]} == visited


def test_shadowing_names_in_the_search_path_hijacks_nothing(own_url: str) -> None:
    rows(own_url, _GROUND)
    evil = "language plpgsql as $$ begin raise exception 'hijacked as %', current_user; end $$"
    for signature, returned in SHADOWS.items():
        rows(own_url, f"create function public.{signature} returns {returned} {evil}")
    rows(own_url, f"create function public.same(uuid, uuid) returns boolean {evil};"
                  "create operator public.= (leftarg = uuid, rightarg = uuid, function = public.same)")
    rows(own_url, "create function public.naive() returns text language sql security definer as $$ select md5('x') $$")
    rows(own_url, "grant create on schema public to t_worker")
    with psycopg.connect(supabase.login(own_url, supabase.WORKER), autocommit=True) as conn:
        for table in ("job_queue", "worker", "queue", "message"):
            conn.execute(f"create temp table {table} (id int)")
        conn.execute("set search_path = pg_temp, public, pg_catalog")
        with pytest.raises(psycopg.errors.RaiseException, match="hijacked"):
            conn.execute("select public.naive()")  # the attack works on whoever pins nothing
        run_errands(conn)


def test_shadowing_types_hijacks_nothing(own_url: str) -> None:
    rows(own_url, _GROUND)
    rows(own_url, "create function public.naive() returns text language plpgsql security definer set search_path = ''"
              " as $$ begin return 5::text; end $$")
    with psycopg.connect(supabase.login(own_url, supabase.WORKER), autocommit=True) as conn:
        conn.execute("create function pg_temp.evil(pg_catalog.text) returns boolean language plpgsql as $$ begin"
                     " if current_user <> session_user then raise exception 'hijacked as %', current_user; end if;"
                     " return true; end $$")
        for name in TEMPORARY_TYPES:
            conn.execute(f"create domain pg_temp.{name} as pg_catalog.{name} check (pg_temp.evil(value::pg_catalog.text))")
        with pytest.raises(psycopg.errors.RaiseException, match="hijacked"):
            conn.execute("select public.naive()")  # an empty search_path is not enough
        run_errands(conn)


# -- Celery with few rights -------------------------------------------------------------------------------------------


def test_a_worker_and_a_publisher_need_no_more_than_their_roles(own_url: str, tmp_path: Path) -> None:
    app = make_app(supabase.login(own_url, supabase.PUBLISHER))
    with closing(app), workers.worker(supabase.login(own_url, supabase.WORKER), tmp_path, TEST_RETRIES="1") as worker:
        added, flaky = app.tasks["t.add"].delay(2, 3), app.tasks["t.flaky"].delay(str(tmp_path / "runs"), 1)
        assert added.get(timeout=20) == 5
        assert app.control.inspect(timeout=10, limit=1).ping() == {worker.name: {"ok": "pong"}}
        assert flaky.get(timeout=20) == "at last"
        by_sql = one(supabase.login(own_url, supabase.PUBLISHER), "select enqueue_job('t.add', '[3, 4]')::text")
        assert app.AsyncResult(by_sql).get(timeout=20) == 7
        failing = app.tasks["t.final"].delay()
        with pytest.raises(Exception, match="no use"):
            failing.get(timeout=20)
        add = app.tasks["t.add"]
        body = app.tasks["celery.accumulate"].s(index=0)
        assert chord([add.s(1, 1), add.s(2, 2)], body)().get(timeout=20) == [2, 4]
        again = app.tasks["t.again"].delay(2)
        assert again.get(timeout=20) == 2
        mark = str(tmp_path / "mark")
        waiting = app.tasks["t.wait"].delay(mark)
        wait_until(Path(mark).exists, "the task runs")
        waiting.revoke(terminate=True)
        with pytest.raises(TaskRevokedError):
            waiting.get(timeout=20)
        app.backend.result_consumer.stop()
        assert worker.stop() == 0
        assert "permission denied" not in worker.text
        assert "was taken from" not in worker.text
        assert one(own_url, "select count(*) from jobqueue.worker") == 0
    for statement in ("select get_next_job()", "update job_queue set status = 'pending'", "select reset_stuck_jobs()"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            rows(supabase.login(own_url, supabase.PUBLISHER), statement)
