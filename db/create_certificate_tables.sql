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

-- 0002 verification
do $bundle$
begin
    if not exists (select from jobqueue.migration where line = 'certificates' and version = 2) then
        execute $mig$
-- Verification and revocation of certificates.

----------------------------------------------------------------------------------------------------------------------
-- Serials that nobody can work out

-- A serial is a keyed hash of event and recipient: a run that is tried again finds the same one, and somebody who knows
-- the event and the recipient's name or address does not. It lies here, and not in `events`, which applications show.
alter table public.certificate_configs add column serial_secret uuid default gen_random_uuid() not null;
comment on column public.certificate_configs.serial_secret is 'Key of the event''s serials: show it to nobody';

----------------------------------------------------------------------------------------------------------------------
-- Revocation: a reason everybody may read, and a note that nobody else does

alter table public.certificates add column revoke_note text;
update public.certificates
   set revoke_note = left(revoke_reason, 2000), revoke_reason = case when revoked_at is not null then 'withdrawn' end
 where revoked_at is not null or revoke_reason is not null;
alter table public.certificates
    add constraint certificates_revoke_reason check (revoke_reason in ('error', 'replaced', 'withdrawn')),
    add constraint certificates_revoked       check ((revoked_at is null) = (revoke_reason is null)),
    add constraint certificates_revoke_note   check (length(revoke_note) <= 2000);
comment on column public.certificates.revoke_reason is 'error (issued in error), replaced (by another certificate) or withdrawn: shown to whoever verifies, so no free text';
comment on column public.certificates.revoke_note is 'Why it was revoked, in words: for the organisers, shown to nobody else';

create function public.revoke_certificate(serial text, reason text default 'withdrawn', note text default null) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_serial text := upper(btrim(revoke_certificate.serial));
begin
    if coalesce(revoke_certificate.reason, '') not in ('error', 'replaced', 'withdrawn') then
        raise exception 'reason % is not known: use error, replaced or withdrawn; the rest belongs into note',
              quote_nullable(revoke_certificate.reason) using errcode = '22023';
    end if;
    if length(revoke_certificate.note) > 2000 then
        raise exception 'note has % characters: at most 2000', length(revoke_certificate.note) using errcode = '22023';
    end if;
    update public.certificates c
       set revoked_at = now(), revoke_reason = revoke_certificate.reason, revoke_note = revoke_certificate.note
     where c.serial = v_serial and c.revoked_at is null;
    if not found and not exists (select from public.certificates c where c.serial = v_serial) then
        raise exception 'there is no certificate %', quote_nullable(revoke_certificate.serial) using errcode = 'P0002';
    end if;
    return found;
end $$;
comment on function public.revoke_certificate is 'Revoke a certificate. False when it was revoked before: then the first reason stays.';

create function public.reinstate_certificate(serial text) returns boolean
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_serial text := upper(btrim(reinstate_certificate.serial));
begin
    update public.certificates c set revoked_at = null, revoke_reason = null, revoke_note = null
     where c.serial = v_serial and c.revoked_at is not null;
    if not found and not exists (select from public.certificates c where c.serial = v_serial) then
        raise exception 'there is no certificate %', quote_nullable(reinstate_certificate.serial) using errcode = 'P0002';
    end if;
    return found;
end $$;
comment on function public.reinstate_certificate is 'Take a revocation back. False when the certificate was not revoked.';

do $$
declare
    r text;
begin
    foreach r in array array['public', 'anon', 'authenticated'] loop
        continue when r <> 'public' and not exists (select from pg_catalog.pg_roles where rolname = r);
        if r <> 'public' then
            r := quote_ident(r);
        end if;
        execute 'revoke all on function public.revoke_certificate, public.reinstate_certificate from ' || r;
    end loop;
    if exists (select from pg_catalog.pg_roles where rolname = 'service_role') then
        grant execute on function public.revoke_certificate, public.reinstate_certificate to service_role;
    end if;
end $$;
$mig$;
        insert into jobqueue.migration (line, version, name, sha256)
        values ('certificates', 2, 'verification', 'a83c5f482586e2e193a7ef0021967d02a351f422559e812c81c1a2d4818813fc');
    end if;
end $bundle$;

-- 0003 batches
do $bundle$
begin
    if not exists (select from jobqueue.migration where line = 'certificates' and version = 3) then
        execute $mig$
-- Many certificates at once: a file or a query of attendees, looked at first, issued when somebody has said yes.

create table public.certificate_batches (
    id           uuid        default gen_random_uuid() primary key,
    event_id     uuid        not null references public.events on delete cascade,
    user_id      text        not null,
    source       text        not null,
    options      jsonb       default '{}' not null constraint certificate_batches_options check (jsonb_typeof(options) = 'object'),
    created_at   timestamptz default now() not null,
    runs         integer     default 0 not null,
    confirmed_at timestamptz,
    started_at   timestamptz,
    finished_at  timestamptz,
    summary      jsonb
);
comment on column public.certificate_batches.source is 'Where the attendees came from: a file''s name, or a query';
comment on column public.certificate_batches.runs is 'How often its jobs were queued: once, and once for every resume';
comment on column public.certificate_batches.confirmed_at is 'Somebody said yes; a batch without it has issued nothing';
comment on column public.certificate_batches.started_at is 'When the jobs of the last run were queued';
comment on column public.certificate_batches.summary is 'What came out, when all of its jobs have ended';
create index certificate_batches_event on public.certificate_batches (event_id, created_at desc);

create table public.certificate_batch_rows (
    batch_id       uuid    not null references public.certificate_batches on delete cascade,
    line           integer not null,
    recipient_name text    not null,
    recipient_key  text    not null,
    email          text,
    state          text    not null constraint certificate_batch_rows_state
                           check (state in ('good', 'bad', 'duplicate', 'issued', 'queued')),
    note           text,
    run            integer,
    task_id        text,
    primary key (batch_id, line)
);
comment on column public.certificate_batch_rows.line is 'Line of the file where the attendee begins; number of the query''s row';
comment on column public.certificate_batch_rows.state is 'good: to be issued; bad: cannot be; duplicate: stands further up; issued: has this certificate already; queued: has a job';
comment on column public.certificate_batch_rows.note is 'Why it is not issued';
comment on column public.certificate_batch_rows.run is 'Run of the batch that queued it last';
comment on column public.certificate_batch_rows.task_id is 'Task id of the job that this run queued';
create index certificate_batch_rows_key on public.certificate_batch_rows (batch_id, recipient_key, line);

-- What was sent to whom: a retry does not send it again.
create table public.certificate_mails (
    certificate_id uuid        not null references public.certificates on delete cascade,
    email          text        not null,
    sha256         text        not null,
    message_id     text        not null,
    queued_at      timestamptz default now() not null,
    sent_at        timestamptz,
    primary key (certificate_id, email, sha256)
);
comment on column public.certificate_mails.sha256 is 'The file that was sent: a corrected certificate is sent again';
comment on column public.certificate_mails.sent_at is 'When the mail server took it';

do $$
declare
    t text;
    r text;
begin
    foreach t in array array['certificate_batches', 'certificate_batch_rows', 'certificate_mails'] loop
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
        values ('certificates', 3, 'batches', '505d1de70354205fd4801a9f45cbbf53818c2a9183af4ce5944ee476dbaa0022');
    end if;
end $bundle$;

commit;
