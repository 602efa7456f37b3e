"""db/roles.sql and the SQL of docs/security.md, run as they stand on a plain PostgreSQL."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from celery_jobqueue.db import embedded, migrate
from tests.support import workers
from tests.support.app import make_app
from tests.support.database import fresh_database, one, rows
from tests.support.workers import ROOT

DOCUMENT = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
LOGINS, USERS, REQUEST, TASK = re.findall(r"```sql\n(.*?)```", DOCUMENT, re.DOTALL)
REFUSED = psycopg.errors.InsufficientPrivilege


@dataclass(frozen=True)
class Place:
    """A database set up by the documents' words."""

    admin: str

    def login(self, name: str) -> str:
        parts = urlsplit(self.admin)
        return urlunsplit(parts._replace(netloc=f"{name}:%E2%80%A6@{parts.hostname}:{parts.port}"))  # the password is …


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A server of this module's own, because roles belong to the whole of it."""
    home = tmp_path_factory.mktemp("roles")
    with fresh_database(embedded.ensure(home)) as admin:
        for _ in range(2):  # a second time changes nothing
            rows(admin, (ROOT / "db" / "roles.sql").read_text(encoding="utf-8"))
        rows(admin, LOGINS)
        place = Place(admin)
        migrate.migrate(place.login("deploy"), migrate.LINES)
        rows(admin, USERS)
        rows(place.login("deploy"), TASK)
        yield place
    embedded.down(home)


def test_the_migrator_owns_everything_and_is_no_superuser(place: Place) -> None:
    owners = rows(place.admin, """
        select distinct pg_get_userbyid(c.relowner) as owner from pg_class c join pg_namespace n on n.oid = c.relnamespace
         where n.nspname in ('public', 'jobqueue')
         union select pg_get_userbyid(p.proowner) from pg_proc p join pg_namespace n on n.oid = p.pronamespace
         where n.nspname in ('public', 'jobqueue')""")
    assert [row["owner"] for row in owners] == ["jobqueue_migrator"]
    powers = "select rolsuper or rolcreaterole or rolcreatedb or rolbypassrls or rolreplication from pg_roles where rolname = %s"
    for role in ("jobqueue_migrator", "jobqueue_publisher", "jobqueue_worker", "jobqueue_monitor", "deploy", "web_user"):
        assert one(place.admin, powers, (role,)) is False
    # The next deployment, by somebody else.
    rows(place.admin, "create role deploy2 login password '…' in role jobqueue_migrator;"
                      "alter role deploy2 set role = 'jobqueue_migrator'")
    assert migrate.migrate(place.login("deploy2"), migrate.LINES) == []
    rows(place.login("deploy2"), "alter table job_queue alter max_attempts set default 4")
    job = one(place.login("shop"), "select enqueue_job('t.add')")
    assert one(place.admin, "select max_attempts from job_queue where id = %s", (job,)) == 4


def test_each_program_does_its_work_and_no_more(place: Place, tmp_path: Path) -> None:
    app = make_app(place.login("shop"))
    with closing(app), workers.worker(place.login("shop_worker"), tmp_path) as worker:
        assert app.tasks["t.add"].delay(2, 3).get(timeout=30) == 5
        app.backend.result_consumer.stop()
        row = rows(place.login("grafana"), "select * from job_queue_health")[0]
        assert (row["workers"], row["hidden_sessions"]) == (1, 0)
        assert worker.stop() == 0
        assert "permission denied" not in worker.text
    everybody = ("shop", "shop_worker", "grafana")
    for refused, logins in {
        "create table public.mine ()": everybody, "create table jobqueue.mine ()": everybody,
        "alter table job_queue disable row level security": everybody, "drop table job_queue": everybody,
        "select get_next_job()": ("shop", "grafana"), "update job_queue set status = 'pending'": ("shop", "grafana"),
        "delete from job_queue": ("shop", "grafana"), "insert into job_queue default values": ("shop", "grafana"),
        "select enqueue_job('t.add')": ("grafana",), "select * from certificates": everybody,
    }.items():
        for login in logins:
            with pytest.raises(REFUSED):
                rows(place.login(login), refused)


def as_user(place: Place, user: str, statement: str) -> list[tuple[object, ...]]:
    """What a request of this user gets, made by the application's server."""
    with psycopg.connect(place.admin) as conn:
        conn.execute(REQUEST.replace("u-17", user))
        return conn.execute(statement).fetchall()


def test_end_users_see_their_own_jobs_and_send_what_is_theirs(place: Place) -> None:
    jobs = {user: str(one(place.login("shop"), "select enqueue_job('t.add', '[1]', user_id => %s)", (user,)))
            for user in ("ada", "bob")}
    for query in ("select id::text from job_queue", "select id::text from get_user_jobs('ada')",
                  "select id::text from job_queue where user_id = 'ada' or true"):
        assert as_user(place, "bob", query) == [(jobs["bob"],)]
    assert as_user(place, "", "select id from job_queue") == []
    for forbidden in ("select payload from job_queue", "select envelope from job_queue", "select traceback from job_queue",
                      "select lease from job_queue", "select errors from job_queue", "select * from job_queue",
                      "select enqueue_job('tasks.anything')", "select get_next_job()", "select reset_stuck_jobs()",
                      f"select complete_job('{jobs['ada']}', gen_random_uuid())", "insert into job_queue default values",
                      "update job_queue set user_id = 'bob'", "delete from job_queue", "select * from jobqueue.result",
                      "select * from jobqueue.group_result", "select * from jobqueue.message",
                      "select * from jobqueue.chord_part", "select * from jobqueue.schedule",
                      "select * from job_queue_health", "select jobqueue.forget('x')", "select * from jobqueue.revoke('{x}')"):
        with pytest.raises(REFUSED):
            as_user(place, "bob", forbidden)
    for wrong in (("", "select request_report(2026)"), ("bob", "select request_report(1066)")):
        with pytest.raises(REFUSED, match="no report of"):
            as_user(place, *wrong)
    with psycopg.connect(place.admin) as conn:
        conn.execute(REQUEST)
        made = conn.execute("select request_report(2026)").fetchone()
    assert made is not None
    assert rows(place.admin, "select task_name, user_id, payload from job_queue where id = %s", made) == [
        {"task_name": "shop.report", "user_id": "u-17", "payload": "[[2026], {}, {}]"}]
