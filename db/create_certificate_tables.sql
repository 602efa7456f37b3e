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

-- 0004 browsers
do $bundle$
begin
    if not exists (select from jobqueue.migration where line = 'certificates' and version = 4) then
        execute $mig$
-- Users at their browsers: who is told of their jobs, and what they may do by themselves (Supabase).

do $$
begin
    if to_regclass('public.job_queue') is null then
        raise exception 'the certificates'' tables need the queue''s: run create_job_queue_table.sql (jobqueue migrate) first';
    end if;
end $$;

----------------------------------------------------------------------------------------------------------------------
-- Who is told of a user's jobs: whoever looks at them right now, and only then. A web process LISTENs on `jobqueue_users`,
-- and says with jobqueue.watch() whose pages are open.

create unlogged table jobqueue.watcher (
    user_id text primary key,
    seen_at timestamptz default now() not null
);
comment on table jobqueue.watcher is 'Users whose jobs somebody looks at right now: nobody else''s changes are notified';
alter table jobqueue.watcher enable row level security;

create function jobqueue.watch(p_users text[]) returns void
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    delete from jobqueue.watcher w where w.seen_at < now() - interval '10 minutes';
    insert into jobqueue.watcher as w (user_id) select distinct u from unnest(p_users) as u order by u
    on conflict (user_id) do update set seen_at = now();
end $$;
comment on function jobqueue.watch is 'Have these users'' changes notified for the next two minutes';

create function jobqueue.on_job_change() returns trigger
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
begin
    -- The user and nothing else, hashed: PostgreSQL folds equal payloads, so ten thousand jobs of one user in one
    -- transaction are one notification, and who listens in learns nothing.
    if exists (select from jobqueue.watcher w where w.user_id = new.user_id and w.seen_at > now() - interval '2 minutes') then
        perform pg_notify('jobqueue_users', md5(new.user_id));
    end if;
    return null;
end $$;
create trigger job_queue_inserted after insert on public.job_queue for each row
    when (new.user_id is not null) execute function jobqueue.on_job_change();
-- Only the columns that a page shows: claims, heartbeats and leases pass by without a comparison.
create trigger job_queue_changed after update of status, state, result, error_message on public.job_queue for each row
    when (new.user_id is not null and (new.status, new.state, new.result, new.error_message)
          is distinct from (old.status, old.state, old.result, old.error_message))
    execute function jobqueue.on_job_change();

----------------------------------------------------------------------------------------------------------------------
-- A browser's own way to a certificate (Supabase: rpc). Only this task, only for one's own events: a function that enqueues
-- any task would let every user run any code the workers know. PostgREST makes HTTP's status 403 of the error code PT403.

create function jobqueue.queue_certificate_generation(p_event_id uuid, p_recipient_name text, p_recipient_key text,
                                                      p_priority integer) returns uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_user text := jobqueue.current_user_id();
    v_name text := p_recipient_name;
    v_key text := nullif(btrim(p_recipient_key), '');
begin
    if v_user is null then
        raise exception 'sign in first: this request names no user' using errcode = 'PT401';
    end if;
    -- One answer whether there is such an event or not.
    if not exists (select from public.event_organisers o where o.event_id = p_event_id and o.user_id = v_user) then
        raise exception 'you may not issue certificates for event %', coalesce(p_event_id::text, 'null')
              using errcode = 'PT403', hint = 'Its organisers may: they stand in the table event_organisers.';
    end if;
    -- Normalising may shorten a name, and megabytes are not worth the work.
    if length(v_name) <= 1200 then
        if pg_catalog.getdatabaseencoding() = 'UTF8' then
            v_name := normalize(v_name, nfc);
        end if;
        v_name := btrim(regexp_replace(v_name, '\s+', ' ', 'g'));
    end if;
    if coalesce(v_name, '') = '' then
        raise exception 'recipient_name is empty: give the name that stands on the certificate' using errcode = '22023';
    end if;
    if length(v_name) > 120 then
        raise exception 'recipient_name has % characters: at most 120', length(v_name) using errcode = '22023';
    end if;
    if v_name ~ '<[A-Za-z/!?][^<>]*>|&(#\d+|#[xX][0-9A-Fa-f]+|[A-Za-z]{2,8});' then
        raise exception 'recipient_name holds HTML: write the name as it is read' using errcode = '22023';
    end if;
    -- Controls, bidi and other invisible characters, private use. The worker refuses what else no font can show.
    if v_name ~ '[\u0001-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ue000-\uf8ff]' then
        raise exception 'recipient_name holds a character that does not print: remove it' using errcode = '22023';
    end if;
    if length(v_key) > 200 then
        raise exception 'recipient_key has % characters: at most 200', length(v_key) using errcode = '22023';
    end if;
    -- Looks at the user's newest thousand, so that a long history costs nothing.
    if 100 <= (select count(*) from (select j.status from public.job_queue j where j.user_id = v_user
                                      order by j.created_at desc limit 1000) newest
                where newest.status in ('pending', 'processing')) then
        raise exception 'you have 100 jobs that are not finished: wait for some of them' using errcode = 'PT429';
    end if;
    return public.enqueue_job(
        'tasks.generate_certificate', priority => p_priority, user_id => v_user,
        kwargs => jsonb_strip_nulls(jsonb_build_object('event_id', p_event_id, 'recipient_name', v_name, 'user_id', v_user,
                                                       'recipient_key', v_key)));
end $$;

create function public.queue_certificate_generation(event_id uuid, recipient_name text, recipient_key text default null,
                                                    priority integer default 5) returns uuid
language sql volatile set search_path = pg_catalog, pg_temp
as $$
    select jobqueue.queue_certificate_generation(queue_certificate_generation.event_id, queue_certificate_generation.recipient_name,
                                                 queue_certificate_generation.recipient_key, queue_certificate_generation.priority)
$$;
comment on function public.queue_certificate_generation is 'Queue a certificate as the signed-in user, who must be an organiser of the event. Returns the job''s id, which is its task id.';

----------------------------------------------------------------------------------------------------------------------
-- Who may do what

create policy own_certificates on public.certificates for select to public
    using (user_id = (select jobqueue.current_user_id()));
create policy own_duties on public.event_organisers for select to public
    using (user_id = (select jobqueue.current_user_id()));
create policy own_events on public.events for select to public
    using (exists (select from public.event_organisers o
                    where o.event_id = events.id and o.user_id = (select jobqueue.current_user_id())));

do $$
declare
    r text;
    t text;
begin
    foreach r in array array['public', 'anon', 'authenticated'] loop
        continue when r <> 'public' and not exists (select from pg_catalog.pg_roles where rolname = r);
        if r <> 'public' then
            r := quote_ident(r);
        end if;
        execute 'revoke all on jobqueue.watcher from ' || r;
        execute 'revoke all on function jobqueue.watch, jobqueue.on_job_change, '
             || 'jobqueue.queue_certificate_generation, public.queue_certificate_generation from ' || r;
    end loop;
    if exists (select from pg_catalog.pg_roles where rolname = 'authenticated') then
        grant execute on function public.queue_certificate_generation, jobqueue.queue_certificate_generation to authenticated;
        grant select (id, name, starts_on, ends_on, place, organiser) on public.events to authenticated;
        grant select (event_id, user_id) on public.event_organisers to authenticated;
        grant select (id, event_id, serial, recipient_name, user_id, storage_key, sha256, size_bytes, issued_at, expires_on,
                      revoked_at, revoke_reason) on public.certificates to authenticated;
    end if;
    if exists (select from pg_catalog.pg_roles where rolname = 'service_role') then
        grant execute on function jobqueue.watch to service_role;
    end if;

    -- Supabase Realtime sends what is published to whom the policies and column grants allow.
    if exists (select from pg_catalog.pg_publication where pubname = 'supabase_realtime' and not puballtables) then
        foreach t in array array['job_queue', 'certificates'] loop
            begin
                execute format('alter publication supabase_realtime add table public.%I', t);
            exception
                when duplicate_object then null;
                when insufficient_privilege then raise notice 'table % was not added to supabase_realtime: no privilege', t;
            end;
        end loop;
    end if;
end $$;
$mig$;
        insert into jobqueue.migration (line, version, name, sha256)
        values ('certificates', 4, 'browsers', '03f2773fa00e15bffa05c196f9619eaa40bae55964fffb7f61a18b31a30d18b3');
    end if;
end $bundle$;

-- 0005 order_expires
do $bundle$
begin
    if not exists (select from jobqueue.migration where line = 'certificates' and version = 5) then
        execute $mig$
-- A browser's order may say until when the certificate is valid, as an order of the API does.

-- With one argument more it would be a second function, and a call without it would fit both.
drop function if exists public.queue_certificate_generation(uuid, text, text, integer);
drop function if exists jobqueue.queue_certificate_generation(uuid, text, text, integer);

create function jobqueue.queue_certificate_generation(p_event_id uuid, p_recipient_name text, p_recipient_key text,
                                                      p_priority integer, p_expires_on date) returns uuid
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_user text := jobqueue.current_user_id();
    v_name text := p_recipient_name;
    v_key text := nullif(btrim(p_recipient_key), '');
begin
    if v_user is null then
        raise exception 'sign in first: this request names no user' using errcode = 'PT401';
    end if;
    -- One answer whether there is such an event or not.
    if not exists (select from public.event_organisers o where o.event_id = p_event_id and o.user_id = v_user) then
        raise exception 'you may not issue certificates for event %', coalesce(p_event_id::text, 'null')
              using errcode = 'PT403', hint = 'Its organisers may: they stand in the table event_organisers.';
    end if;
    -- Normalising may shorten a name, and megabytes are not worth the work.
    if length(v_name) <= 1200 then
        if pg_catalog.getdatabaseencoding() = 'UTF8' then
            v_name := normalize(v_name, nfc);
        end if;
        v_name := btrim(regexp_replace(v_name, '\s+', ' ', 'g'));
    end if;
    if coalesce(v_name, '') = '' then
        raise exception 'recipient_name is empty: give the name that stands on the certificate' using errcode = '22023';
    end if;
    if length(v_name) > 120 then
        raise exception 'recipient_name has % characters: at most 120', length(v_name) using errcode = '22023';
    end if;
    if v_name ~ '<[A-Za-z/!?][^<>]*>|&(#\d+|#[xX][0-9A-Fa-f]+|[A-Za-z]{2,8});' then
        raise exception 'recipient_name holds HTML: write the name as it is read' using errcode = '22023';
    end if;
    -- Controls, bidi and other invisible characters, private use. The worker refuses what else no font can show.
    if v_name ~ '[\u0001-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ue000-\uf8ff]' then
        raise exception 'recipient_name holds a character that does not print: remove it' using errcode = '22023';
    end if;
    if length(v_key) > 200 then
        raise exception 'recipient_key has % characters: at most 200', length(v_key) using errcode = '22023';
    end if;
    -- The worker looks again, on the day it runs. Infinity is a date for PostgreSQL, and none for a certificate.
    if p_expires_on < (clock_timestamp() at time zone 'utc')::date then
        raise exception 'expires_on % has passed: a certificate cannot expire before it is issued', p_expires_on
              using errcode = '22023';
    end if;
    if p_expires_on > date '9999-12-31' then
        raise exception 'expires_on % is no day: write the last one of the certificate''s validity, such as 2028-12-31', p_expires_on
              using errcode = '22023';
    end if;
    -- Looks at the user's newest thousand, so that a long history costs nothing.
    if 100 <= (select count(*) from (select j.status from public.job_queue j where j.user_id = v_user
                                      order by j.created_at desc limit 1000) newest
                where newest.status in ('pending', 'processing')) then
        raise exception 'you have 100 jobs that are not finished: wait for some of them' using errcode = 'PT429';
    end if;
    return public.enqueue_job(
        'tasks.generate_certificate', priority => p_priority, user_id => v_user,
        kwargs => jsonb_strip_nulls(jsonb_build_object('event_id', p_event_id, 'recipient_name', v_name, 'user_id', v_user,
                                                       'recipient_key', v_key,
                                                       'expires_on', to_char(p_expires_on, 'YYYY-MM-DD'))));
end $$;

create function public.queue_certificate_generation(event_id uuid, recipient_name text, recipient_key text default null,
                                                    priority integer default 5, expires_on date default null) returns uuid
language sql volatile set search_path = pg_catalog, pg_temp
as $$
    select jobqueue.queue_certificate_generation(queue_certificate_generation.event_id, queue_certificate_generation.recipient_name,
                                                 queue_certificate_generation.recipient_key, queue_certificate_generation.priority,
                                                 queue_certificate_generation.expires_on)
$$;
comment on function public.queue_certificate_generation is 'Queue a certificate as the signed-in user, who must be an organiser of the event. Returns the job''s id, which is its task id.';

do $$
declare
    r text;
begin
    foreach r in array array['public', 'anon', 'authenticated'] loop
        continue when r <> 'public' and not exists (select from pg_catalog.pg_roles where rolname = r);
        if r <> 'public' then
            r := quote_ident(r);
        end if;
        execute 'revoke all on function jobqueue.queue_certificate_generation, public.queue_certificate_generation from ' || r;
    end loop;
    if exists (select from pg_catalog.pg_roles where rolname = 'authenticated') then
        grant execute on function public.queue_certificate_generation, jobqueue.queue_certificate_generation to authenticated;
    end if;
end $$;
$mig$;
        insert into jobqueue.migration (line, version, name, sha256)
        values ('certificates', 5, 'order_expires', '508d1225c593538c8088a468f6249262f2030ca29fd042a4715cc6014258f538');
    end if;
end $bundle$;

commit;
