-- Jobs that kill their workers, and those that only stood beside one. When a worker dies, each job that it had started has used an
-- attempt and is a suspect. A suspect at its last attempt runs alone in its worker (broker/worker.py), so whoever dies then is
-- known, and nobody else is failed for it.

alter table public.job_queue add column suspect boolean default false not null;
comment on column public.job_queue.suspect is 'Its worker died while this job was running; at its last attempt it runs alone, to see whether it was the reason';

-- What it returns has changed, so it is made anew; its rights with it.
drop function jobqueue.claim(uuid, integer, text[], smallint[], timestamptz[], uuid[]);
create function jobqueue.claim(p_owner uuid, p_limit integer, p_queues text[], p_priorities smallint[],
                               p_after_run_at timestamptz[], p_after_id uuid[])
returns table (id uuid, lease uuid, queue text, priority smallint, run_at timestamptz, attempts integer,
               max_attempts integer, redelivered boolean, task_name text, task_id text, expires_at timestamptz,
               reply_to text, envelope text, payload text, payload_binary bytea, suspect boolean)
language plpgsql
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_bitmapscan = off
as $$
#variable_conflict use_column
begin
    -- One level is one (queue, priority); levels come in the order to serve them. Each resumes behind the rows that this
    -- worker has claimed already: with a long transaction open their dead index entries cannot be removed, and without
    -- the cursor every claim would walk over all of them (13,000 jobs/s flat with it, 1,300 and falling without).
    return query
    with picked as materialized (
        select c.id
          from unnest(p_queues, p_priorities, p_after_run_at, p_after_id)
               as level(queue, priority, after_run_at, after_id)
         cross join lateral (
            select j.id
              from public.job_queue j
             where j.queue = level.queue
               and j.priority = level.priority
               and j.status = 'pending'
               and j.owner is null
               -- Near the present a job may still be on its way to commit, so the cursor stays a little behind it.
               and (j.run_at, j.id) > (case when level.after_run_at > now() - interval '1 second'
                                            then level.after_run_at - interval '250 milliseconds'
                                            else level.after_run_at end, level.after_id)
               and j.run_at <= now()
             order by j.run_at, j.id
             limit p_limit
               for update skip locked) c
         limit p_limit),
    claimed as (
        update public.job_queue j
           set owner = p_owner, lease = gen_random_uuid()
          from picked
         where j.id = picked.id
        returning j.id, j.lease, j.queue, j.priority, j.run_at, j.attempts, j.max_attempts, j.redelivered, j.task_name,
                  j.task_id, j.expires_at, j.reply_to, j.envelope, j.payload, j.payload_binary, j.suspect)
    select * from claimed order by claimed.priority, claimed.run_at, claimed.id;
end $$;

create or replace function jobqueue.rescue(p_self uuid, p_grace interval default interval '3 seconds')
returns table (id uuid, lease uuid, task_id text, task_name text, error text, envelope text, payload text, payload_binary bytea)
language plpgsql set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    w record;
    v_free boolean;
begin
    -- One rescuer at a time; everybody else has nothing to do here.
    if not pg_try_advisory_xact_lock(7001, 1) then
        return;
    end if;
    -- Not oneself: a session may take its own advisory lock again, which would look like a free one.
    for w in select * from jobqueue.worker x where x.id <> p_self loop
        v_free := false;
        if w.holds_lock then
            v_free := pg_try_advisory_xact_lock(jobqueue.lock_key(w.id));
        end if;
        if v_free and w.lock_free_since is null then
            update jobqueue.worker x set lock_free_since = now() where x.id = w.id;
        elsif not v_free and w.lock_free_since is not null then
            update jobqueue.worker x set lock_free_since = null where x.id = w.id;
        end if;
        if (v_free and w.lock_free_since < now() - p_grace) or w.heartbeat_at < now() - w.heartbeat_limit then
            delete from jobqueue.worker x where x.id = w.id;
        end if;
    end loop;
    return query
    with gone as (
        select j.id, j.owner, j.status, j.queue, j.at_most_once, j.attempts >= j.max_attempts as last, j.suspect, j.revoked_at,
               j.leased_until, j.worker, j.max_attempts
          from public.job_queue j
         where (j.owner is not null and j.leased_until is null
                and not exists (select from jobqueue.worker x where x.id = j.owner))
            or j.leased_until < now()
           for update of j skip locked),
    -- Everything that its worker had started, whoever holds it at this moment. A lease from get_next_job() is nobody's company.
    lost as (
        select g.*, g.leased_until is not null or g.suspect
                    or not exists (select from public.job_queue c
                                    where c.owner = g.owner and c.id <> g.id and c.status = 'processing') as guilty
          from gone g),
    sentenced as (
        select l.*, l.revoked_at is not null
                    or l.status = 'processing' and (l.at_most_once or l.last and l.guilty) as ends,
               case when l.revoked_at is not null then 'revoked'
                    else 'Worker lost: ' || coalesce(l.worker, 'unknown') || ' stopped while the job was running'
                         || case when l.status <> 'processing' or not l.last or l.at_most_once or l.leased_until is not null then ''
                                 when not l.guilty then ' beside others: it will run again, alone'
                                 when l.suspect then ' alone, at the last of ' || l.max_attempts || ' attempts: the job seems to kill its worker'
                                 else '' end
                    end as error
          from lost l),
    settled as (
        update public.job_queue j
           set status        = case when s.ends then 'failed' else 'pending' end,
               finished_at   = case when s.ends then now() end,
               started_at    = case when s.ends then j.started_at end,
               redelivered   = j.redelivered or s.status = 'processing',
               -- Nobody knows which of the jobs has killed the worker. At its last attempt each of them runs alone; until then
               -- none is failed for it, and who has used its last one beside others gets it back.
               suspect       = j.suspect or s.status = 'processing' and s.leased_until is null,
               attempts      = case when s.status = 'processing' and s.last and not s.ends then j.attempts - 1 else j.attempts end,
               error_message = case when s.status = 'processing' or s.ends then s.error else j.error_message end,
               errors        = case when s.status = 'processing'
                                    then jobqueue.with_error(j.errors, j.total_starts, j.worker, s.error) else j.errors end,
               -- A new lease: whoever comes back from the dead with the old one changes nothing.
               owner = null, leased_until = null, lease = gen_random_uuid()
          from sentenced s
         where j.id = s.id
        returning j.id, j.lease, j.task_id, j.task_name, s.error, j.envelope, j.payload, j.payload_binary, s.ends, j.queue),
    woken as (select jobqueue.wake(array_agg(distinct settled.queue), true) from settled where not settled.ends)
    select settled.id, settled.lease, settled.task_id, settled.task_name, settled.error, settled.envelope,
           settled.payload, settled.payload_binary
      from settled cross join woken where settled.ends;
end $$;

do $$
declare
    r text;
begin
    foreach r in array array['public', 'anon', 'authenticated'] loop
        continue when r <> 'public' and not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('revoke all on function jobqueue.claim from %s', case when r = 'public' then r else quote_ident(r) end);
    end loop;
    foreach r in array array['jobqueue_worker', 'service_role'] loop
        continue when not exists (select from pg_catalog.pg_roles where rolname = r);
        execute format('grant execute on function jobqueue.claim to %I', r);
    end loop;
end $$;
