-- Generated from db/schema/certificates by `jobqueue sql`; do not edit, a test compares it.
-- Paste into an SQL editor (Supabase, psql, pgAdmin). Safe to paste again; over an older version it upgrades.
begin;
select pg_advisory_xact_lock(7001, 0);
create schema if not exists jobqueue;
create table if not exists jobqueue.migration (
    line       text        not null,
    version    integer     not null,
    name       text        not null,
    sha256     text        not null,
    applied_at timestamptz default now() not null,
    primary key (line, version)
);
alter table jobqueue.migration enable row level security;
revoke all on schema jobqueue from public;
revoke all on jobqueue.migration from public;
commit;
