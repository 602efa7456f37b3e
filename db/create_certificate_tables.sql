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
-- 0001 certificates
do $bundle$
begin
    if not exists (select from jobqueue.migration where line = 'certificates' and version = 1) then
        execute $mig$
-- The tables of this repository's own application: events, their certificate designs, and what was issued.

create table public.events (
    id         uuid        default gen_random_uuid() primary key,
    name       text        not null constraint events_name check (length(btrim(name)) between 1 and 200),
    starts_on  date        not null,
    ends_on    date        not null,
    place      text        default '' not null,
    organiser  text        default '' not null,
    created_at timestamptz default now() not null,
    constraint events_dates check (ends_on >= starts_on)
);

-- Who may issue certificates for an event.
create table public.event_organisers (
    event_id uuid not null references public.events on delete cascade,
    user_id  text not null,
    primary key (event_id, user_id)
);

-- How an event's certificates look; validated by tasks/certificates/design.py.
create table public.certificate_configs (
    event_id   uuid        primary key references public.events on delete cascade,
    design     jsonb       not null constraint certificate_configs_design check (jsonb_typeof(design) = 'object'),
    updated_at timestamptz default now() not null
);

create table public.certificates (
    id             uuid        default gen_random_uuid() primary key,
    event_id       uuid        not null references public.events on delete restrict,
    serial         text        not null constraint certificates_serial unique,
    recipient_name text        not null constraint certificates_name check (length(recipient_name) between 1 and 120),
    recipient_key  text        not null,
    user_id        text        not null,
    storage_key    text        not null,
    url            text        not null,
    sha256         text        not null,
    size_bytes     integer     not null,
    issued_at      timestamptz default now() not null,
    expires_on     date,
    revoked_at     timestamptz,
    revoke_reason  text,
    constraint certificates_recipient unique (event_id, recipient_key)
);
comment on column public.certificates.recipient_key is 'Who this is within the event: an explicit key such as an e-mail address, else the name. One recipient has one certificate.';
create index certificates_user on public.certificates (user_id, issued_at desc);

do $$
declare
    t text;
    r text;
begin
    foreach t in array array['events', 'event_organisers', 'certificate_configs', 'certificates'] loop
        execute format('alter table public.%I enable row level security', t);
        execute format('revoke all on public.%I from public', t);
        foreach r in array array['anon', 'authenticated'] loop
            if exists (select from pg_catalog.pg_roles where rolname = r) then
                execute format('revoke all on public.%I from %I', t, r);
            end if;
        end loop;
    end loop;
end $$;
$mig$;
        insert into jobqueue.migration (line, version, name, sha256)
        values ('certificates', 1, 'certificates', 'c1733c512f1d6e3d2ce2d2a362956b52be9b0d15dc26466c23611f4e58f1654e');
    end if;
end $bundle$;

commit;
