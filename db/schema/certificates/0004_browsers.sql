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
