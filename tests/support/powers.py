"""What a role can do to the queue, found out by trying everything."""

from __future__ import annotations

import psycopg

from tests.support.database import rows

#: Every object of the two schemas, in a database where nobody else has made any.
RELATIONS = """
select format('%I.%I', n.nspname, c.relname) as name, c.relkind::text as kind,
       array(select quote_ident(a.attname) from pg_attribute a
              where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped order by a.attnum)::text[] as columns
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where n.nspname in ('public', 'jobqueue') and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
 order by 1
"""
FUNCTIONS = """
select format('%I.%I', n.nspname, p.proname) as name, p.prosecdef as definer, coalesce(p.proconfig, '{}') as config,
       format('%I.%I(%s)', n.nspname, p.proname,
              (select string_agg(format('(select null::%s)', t::regtype), ', ') from unnest(p.proargtypes) t)) as call
  from pg_proc p join pg_namespace n on n.oid = p.pronamespace
 where n.nspname in ('public', 'jobqueue')
 order by 1
"""


def attempts(url: str) -> list[str]:
    """A statement for everything that could be granted: each column read and written, each function called."""
    tried = ["create table jobqueue.mine ()", "create table public.mine ()"]
    for relation in rows(url, RELATIONS):
        name, columns = relation["name"], relation["columns"]
        if relation["kind"] == "S":
            tried += [f"select nextval('{name}')", f"select setval('{name}', 1)", f"select last_value from {name}"]
            continue
        tried += [f"select {column} from {name}" for column in columns]
        if relation["kind"] == "v":  # that cannot be written to, whoever tries
            tried += [f"create or replace view {name} as select 1", f"drop view {name} cascade"]
            continue
        tried += [f"update {name} set {column} = default" for column in columns]
        tried += [f"insert into {name} ({column}) values (default)" for column in columns]
        trigger = "for each row execute function suppress_redundant_updates_trigger()"
        tried += [f"insert into {name} default values", f"delete from {name}", f"truncate {name} cascade",
                  f"lock table {name} in access exclusive mode", f"create trigger t before insert on {name} {trigger}",
                  f"alter table {name} disable row level security", f"drop table {name} cascade"]
    tried += [f"select {function['call']}" for function in rows(url, FUNCTIONS)]
    tried += [f"create or replace function {function['name']}() returns int language sql as 'select 1'"
              for function in rows(url, FUNCTIONS)]
    return tried


def powers(url: str, statements: list[str], role: str | None = None) -> set[str]:
    """Those of the statements that are not refused for want of a right. Nothing of it stays.

    role: taken with SET ROLE first.
    """
    allowed = set()
    with psycopg.connect(url, autocommit=True) as conn:
        if role is not None:
            conn.execute(f"set role {role}")
        for statement in statements:
            try:
                with conn.transaction(force_rollback=True):
                    conn.execute(statement)
            except psycopg.errors.InsufficientPrivilege:
                continue
            except psycopg.Error:
                pass  # refused for another reason, so the right was there
            allowed.add(statement)
    return allowed
